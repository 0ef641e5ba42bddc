//! What a repair says of contents that it gives up, or cannot tell whose they are: that they may be among what the file
//! holds and nothing names; and which blocks nobody can vouch for afterwards, though a check finds nothing any more.

mod common;

use std::sync::Arc;

use common::repairing::{MIB, block, everything};
use vhdxkit::ops::check::check;
use vhdxkit::ops::recover::{Salvage, SalvageOptions};
use vhdxkit::ops::repair::{Plan, RepairOptions, plan};
use vhdxkit::storage::MemoryStorage;
use vhdxkit_testkit::faults::sound;
use vhdxkit_testkit::patch::put_u64;
use vhdxkit_testkit::{Contents, Image, guid};

/// The whole of a disk of 16 blocks of one mebibyte.
fn full() -> Image {
    (0..16u8).fold(Image::dynamic(16 * MIB), |image, number| {
        image.block(number.into(), Contents::Pattern(number + 1))
    })
}

/// The image with some entries of its block table replaced.
fn with(image: &Image, entries: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = image.build_vec();
    for (block, raw) in entries {
        put_u64(&mut bytes, image.layout().bat_offset + 8 * block, *raw);
    }
    bytes
}

fn thought(bytes: &[u8], options: &RepairOptions) -> (Arc<MemoryStorage>, Plan) {
    let file = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let plan = plan(file.clone(), options, &mut ()).unwrap();
    (file, plan)
}

/// An entry was copied over its neighbour's: after the repair the check is clean, and the neighbour's contents lie in a
/// gap that the next compaction closes.
#[test]
fn of_two_owners_of_a_place_one_may_be_what_nothing_names_and_neither_is_vouched_for() {
    let image = full();
    let (own, other) = (image.layout().blocks[&5], image.layout().blocks[&6]);
    let mut bytes = with(&image, &[(6, own | 6)]);
    let (file, plan) = thought(&bytes, &RepairOptions::default());
    let [step] = plan.steps() else { panic!("{plan:?}") };
    for part in ["1 MiB that nothing names", "recover IMAGE --orphans DIR", "before compacting"] {
        assert!(step.code == "V30" && step.why.contains(part), "{step:?}");
    }
    assert_eq!((plan.nameless_bytes(), plan.lost_bytes()), (MIB, 0));
    assert_eq!(plan.doubtful_blocks(), std::slice::from_ref(&(5..7)));
    plan.carry_out(&*file, &mut ()).unwrap();
    assert!(!check(file.clone(), &mut ()).unwrap().has_problems());
    // That is where it is.
    let salvage = Salvage::read(file, &SalvageOptions::new(), &mut ()).unwrap();
    assert_eq!(salvage.report().orphans, std::slice::from_ref(&(other..other + MIB)));

    // Where nothing but zeros lie, nothing is promised.
    bytes[other as usize..(other + MIB) as usize].fill(0);
    let (_, plan) = thought(&bytes, &RepairOptions::default());
    assert!(!plan.steps()[0].why.contains("--orphans"), "{plan:?}");
    assert_eq!(plan.nameless_bytes(), 0);
    assert_eq!(plan.doubtful_blocks(), std::slice::from_ref(&(5..7)));
}

/// Random bytes over eight entries: whatever their states happen to be, the blocks are given up; "not in this file" was
/// said of contents that lie in it.
#[test]
fn every_entry_of_an_overwritten_page_counts_as_given_up() {
    let image = full();
    let junk: Vec<(u64, u64)> = (4..12)
        .zip([
            0xd453_fe4e_f0fc_5307, // 4: partially present, in a disk without a parent
            0x2a16_9893_1102_f164, // 5: the reserved state
            0x3292_52a4_90a4_5835, // 6: trimmed, as the draft says it
            0x701a_ff00_41a3_0fd8, // 7: not present
            0x9eae_5e80_1e35_f50a, // 8: zero
            0x632d_882f_4c64_a3f3, // 9: trimmed
            image.layout().blocks[&3] | 0x706, // 10: a place in the file
            0xe842_fca9_770d_caef, // 11: partially present
        ])
        .collect();
    let bytes = with(&image, &junk);
    let (_, asked) = thought(&bytes, &RepairOptions::default());
    assert!(asked.is_empty() && asked.nameless_bytes() == 8 * MIB, "{asked:?}");
    let mut left = asked.left().iter().filter(|left| left.code != "V30");
    assert!(left.all(|left| left.word.is_some()), "{asked:?}");
    assert!(asked.left()[0].why.contains("8 MiB that nothing names"), "{asked:?}");

    let (file, plan) = thought(&bytes, &everything());
    assert_eq!(plan.doubtful_blocks(), std::slice::from_ref(&(3..12)));
    // Of 5 the state stays, 10 shows another's bytes.
    assert_eq!(plan.lost(), [4 * MIB..5 * MIB, 6 * MIB..10 * MIB, 11 * MIB..12 * MIB]);
    assert_eq!((plan.lost_bytes(), plan.nameless_bytes()), (6 * MIB, 8 * MIB));
    assert!(plan.changes_contents());
    for step in plan.steps().iter().filter(|step| step.code != "V30") {
        assert!(step.why.contains("overwritten") && step.why.contains("--orphans"), "{step:?}");
    }
    plan.carry_out(&*file, &mut ()).unwrap();
    for number in [4, 6, 7, 8, 9, 11] {
        let shown = block(&file, number).unwrap();
        assert!(shown.iter().all(|byte| *byte == 0), "block {number}");
    }
    let after = check(file, &mut ()).unwrap();
    assert_eq!(after.doubtful_blocks(), std::slice::from_ref(&(5..6)));
}

/// Entries that show nothing today are lost all the same; but the guest sees what it saw, and children go on knowing the
/// disk.
#[test]
fn what_is_given_up_and_shows_nothing_already_leaves_the_disk_its_identity() {
    let image = full();
    let bytes = with(&image, &[4, 5, 6, 7].map(|block| (block, (block << 40) | 0x1002)));
    let (file, plan) = thought(&bytes, &everything());
    assert_eq!(plan.lost(), std::slice::from_ref(&(4 * MIB..8 * MIB)));
    assert!(!plan.changes_contents(), "{plan:?}");
    plan.carry_out(&*file, &mut ()).unwrap();
    assert!(!check(file, &mut ()).unwrap().has_problems());
}

/// The same of a child, whose blocks show the parent's where it has none.
#[test]
fn an_overwritten_entry_of_a_child_may_show_the_parents() {
    let image = Image::differencing(16 * MIB, guid(9, 9)).block(4, Contents::Pattern(3));
    let bytes = with(&image, &[4, 5, 6, 7].map(|block| (block, (block << 40) | 0x1000)));
    let (_, plan) = thought(&bytes, &everything());
    let told = plan.steps().iter().any(|step| step.what.contains("show the parent's"));
    assert!(told && plan.shows_parent_where_lost() && plan.nameless_bytes() == MIB, "{plan:?}");
}

/// A block behind the end of the file is missing; but the place may be what is wrong, where data lie that nothing names.
#[test]
fn a_place_behind_the_end_may_be_the_damage() {
    let image = sound();
    let place = image.layout().blocks[&5];
    let bytes = with(&image, &[(5, (900 * MIB) | 6)]);
    let (_, asked) = thought(&bytes, &RepairOptions::default());
    let [left] = asked.left() else { panic!("{asked:?}") };
    assert!(left.why.contains("--orphans DIR"), "{left:?}");
    let (_, plan) = thought(&bytes, &everything());
    assert!(plan.steps()[0].why.contains("1 MiB that nothing names"), "{plan:?}");
    assert_eq!(plan.doubtful_blocks(), std::slice::from_ref(&(5..6)));
    // Cut off there: nothing else is in the file.
    let mut cut = image.build_vec();
    cut.truncate(place as usize);
    let (_, plan) = thought(&cut, &everything());
    assert!(!plan.steps()[0].why.contains("--orphans"), "{plan:?}");
}

/// "Clear the reserved bits" was told of an entry that stays as it is, since nobody knows its state.
#[test]
fn no_step_is_told_for_an_entry_that_stays() {
    let (_, plan) = thought(&with(&full(), &[(9, 0x1004)]), &everything());
    assert!(plan.is_empty() && plan.steps().is_empty(), "{plan:?}");
}

/// An offset that is all that names a block's contents goes at the user's word: then the block is in doubt, and the
/// step says how to get at them.
#[test]
fn a_trace_that_is_given_up_is_told() {
    let image = full();
    let bytes = with(&image, &[(5, image.layout().blocks[&5] | 2)]);
    let (_, plan) = thought(&bytes, &everything());
    let [step] = plan.steps() else { panic!("{plan:?}") };
    assert!(step.code == "V32" && step.why.contains("--orphans"), "{step:?}");
    assert_eq!(plan.doubtful_blocks(), std::slice::from_ref(&(5..6)));
}

/// Damage makes a block's entry that of a trimmed one, with a place behind the end. "Nothing is lost with it" was said,
/// while its contents lay in the file and the next compaction would have taken them.
#[test]
fn a_trimmed_block_behind_the_end_may_be_what_nothing_names() {
    let image = full();
    let whole = image.build_vec().len() as u64;
    let bytes = with(&image, &[(4, (whole + 8 * MIB).next_multiple_of(MIB) | 3)]);
    let (_, plan) = thought(&bytes, &RepairOptions::default());
    let [step] = plan.steps() else { panic!("{plan:?}") };
    assert!(step.code == "V29" && step.why.contains("1 MiB that nothing names"), "{step:?}");
    assert_eq!(plan.nameless_bytes(), MIB);
}
