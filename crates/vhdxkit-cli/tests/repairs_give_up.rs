//! What `vhdx check --repair` says at its end when the check is clean and the disk is not what it was.

mod common;

use common::{Workdir, json, vhdx};
use vhdxkit_testkit::patch::put_u64;
use vhdxkit_testkit::{Contents, Image};

const MIB: u64 = 1 << 20;

/// A disk of 16 blocks of one mebibyte, all of them present, with some entries of its block table replaced.
fn disk(dir: &Workdir, entries: &[(u64, u64)]) -> (String, Image) {
    let image = (0..16u8).fold(Image::dynamic(16 * MIB), |image, number| {
        image.block(number.into(), Contents::Pattern(number + 1))
    });
    let mut bytes = image.build_vec();
    for (block, raw) in entries {
        put_u64(&mut bytes, image.layout().bat_offset + 8 * block, *raw);
    }
    let path = dir.path("disk.vhdx");
    std::fs::write(&path, bytes).unwrap();
    (path, image)
}

fn place_of(block: u64) -> u64 {
    disk(&Workdir::new(), &[]).1.layout().blocks[&block]
}

/// Random bytes over the entries of blocks 4 to 11.
const JUNK: [u64; 8] = [
    0xd453_fe4e_f0fc_5307,
    0x2a16_9893_1102_f164,
    0x3292_52a4_90a4_5835,
    0x701a_ff00_41a3_0fd8,
    0x9eae_5e80_1e35_f50a,
    0x632d_882f_4c64_a3f3,
    0xab2d_973f_a9ca_42e7,
    0xe842_fca9_770d_caef,
];

fn junk() -> Vec<(u64, u64)> {
    (4..12).zip(JUNK).collect()
}

/// The text with its line breaks taken out, for searching.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One entry copied over another: "no problem found", and the contents that were lost their name go with the next
/// compaction. The end of the repair says which blocks, and what to type before that.
#[test]
fn a_repair_of_two_owners_ends_with_what_may_be_the_lost_one() {
    let dir = Workdir::new();
    let (image, _) = disk(&dir, &[(6, place_of(5) | 6)]);
    let text = flat(&vhdx(&["check", &image, "--repair"]).succeeds());
    let (plan, end) = text.split_once("no problem any more").expect(&text);
    assert!(plan.contains("1 MiB that nothing names") && plan.contains("--orphans DIR"), "{plan}");
    let typed = format!("vhdx recover {image} --orphans DIR");
    for part in ["What is safe everything but blocks 5-6", &typed, "before compacting"] {
        assert!(end.contains(part), "{part}:\n{end}");
    }
    assert!(!text.contains("IMAGE"), "{text}");
    // It does.
    let orphans = dir.path("orphans");
    vhdx(&["recover", &image, "--orphans", &orphans]).succeeds();
    let found = std::fs::read_dir(&orphans).unwrap().next().unwrap().unwrap().path();
    let mut wanted = vec![0; MIB as usize];
    wanted.copy_from_slice(&std::fs::read(found).unwrap());
    let (_, whole) = disk(&Workdir::new(), &[]);
    let place = whole.layout().blocks[&6] as usize;
    assert!(whole.build_vec()[place..place + MIB as usize] == wanted[..]);
}

/// "What is safe: everything but block 5" was said of a disk of which blocks 4 to 11 had just been given up.
#[test]
fn what_is_safe_after_a_repair_leaves_out_all_that_was_given_up() {
    let dir = Workdir::new();
    let (image, _) = disk(&dir, &junk());
    let text = flat(&vhdx(&["check", &image, "--repair", "--allow-data-loss"]).exits_with(3));
    assert!(text.contains("What is safe everything but blocks 4-11"), "{text}");
    assert!(!text.contains("not in this file"), "{text}");
    assert!(text.contains("8 MiB that nothing names") && text.contains("lost: 7 MiB"), "{text}");
    // What can be had is in the file as it was.
    assert!(text.contains("take the repair back, then `vhdx recover"), "{text}");

    // And where nothing is left that a check would find.
    let entries: Vec<_> = junk().into_iter().filter(|(block, _)| *block != 5).collect();
    let (image, _) = disk(&dir, &entries);
    let text = flat(&vhdx(&["check", &image, "--repair", "--allow-data-loss"]).succeeds());
    assert!(text.contains("What is safe everything but blocks 4, 6-11"), "{text}");
}

/// After the repair, `recover` takes the blocks for absent: it has to be typed before.
#[test]
fn who_may_give_blocks_up_is_told_to_recover_first() {
    let dir = Workdir::new();
    let (image, _) = disk(&dir, &junk());
    let first = format!("before --allow-data-loss: `vhdx recover {image} --to NEW.vhdx`");
    for words in [&["--repair", "--dry-run", "--allow-data-loss"][..], &["--repair"]] {
        let text = flat(&vhdx(&[&["check", &image], words].concat()).exits_with(3));
        assert_eq!(text.matches(&first).count(), 1, "{text}");
    }
}

/// A frightened person reads it: what eight entries have in common is told once.
#[test]
fn a_plan_for_an_overwritten_page_is_short() {
    let dir = Workdir::new();
    let (image, _) = disk(&dir, &junk());
    let words = ["check", &image, "--repair", "--dry-run"];
    for more in [&[][..], &["--allow-data-loss"]] {
        let text = vhdx(&[&words, more].concat()).exits_with(3);
        let at = text.find("disk.vhdx: ").unwrap();
        let plan = flat(&text[at..]);
        assert_eq!(plan.matches("overwritten").count(), 1, "{plan}");
        assert!(text[at..].lines().count() < 28, "{text}");
    }
}

/// Programs are told the same.
#[test]
fn json_tells_what_is_in_doubt_after_a_repair() {
    let dir = Workdir::new();
    let (image, _) = disk(&dir, &[(6, place_of(5) | 6)]);
    let told = json(&vhdx(&["check", "--json", &image, "--repair"]).succeeds());
    assert_eq!(told["doubtful_afterwards"][0]["first"], 5);
    assert_eq!(told["doubtful_afterwards"][0]["count"], 2);
    assert_eq!(told["nameless_bytes"], MIB);
}
