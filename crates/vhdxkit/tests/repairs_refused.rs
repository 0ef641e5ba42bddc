//! What a repair must not do: touch what it cannot mend, guess, take the last trace of anything.

mod common;

use std::sync::Arc;

use common::repairing::{MIB, block, everything, some_fault};
use vhdxkit::defect::Severity;
use vhdxkit::ops::check::check;
use vhdxkit::ops::recover::{Salvage, SalvageOptions};
use vhdxkit::ops::repair::{Repair, RepairOptions, Word, plan, plan_file};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_testkit::faults::{repairable, sound};
use vhdxkit_testkit::patch::{put_u64, reseal_region_table};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{Contents, Image, LogEntry, guid};

/// Whatever may be lost, these are beyond a repair: not a byte changes, and the words say what to try.
#[test]
fn what_cannot_be_mended_is_left_byte_for_byte() {
    let sealed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = sound().build_vec();
        change(&mut bytes);
        bytes
    };
    let partial = Image::differencing(16 * MIB, guid(9, 9)).partial_block(4, [0], vec![7; 512]);
    let mut no_bitmap = partial.build_vec();
    put_u64(&mut no_bitmap, partial.layout().bat_offset + 8 * 4096, 0);
    let mut state_four = sound().build_vec();
    put_u64(&mut state_four, sound().layout().bat_offset + 8 * 9, 4);
    for (code, bytes) in [
        ("V1", vec![0; 2 << 20]),
        ("V1", b"vhdxfile".to_vec()),
        ("V2", sealed(|bytes| bytes[0x1_0000..0x3_0000].fill(0))),
        (
            "V5",
            sealed(|bytes| {
                for copy in 0..2 {
                    bytes[0x1_0042 + copy * 0x1_0000] = 2;
                    vhdxkit_testkit::reseal_header(bytes, copy);
                }
            }),
        ),
        ("V11", sealed(|bytes| bytes[0x3_0000..0x5_0000].fill(0))),
        (
            "V13",
            sealed(|bytes| {
                // The metadata region over the block table.
                for copy in 0..2 {
                    put_u64(bytes, 0x3_0010 + copy * 0x1_0000 + 32 + 16, 3 * MIB);
                    reseal_region_table(bytes, copy as usize);
                }
            }),
        ),
        ("V14", sealed(|bytes| bytes.truncate(3 << 20))),
        ("V17", sealed(|bytes| bytes[2 << 20] = 0)),
        ("V21", sealed(|bytes| bytes[(2 << 20) + 0x1_0000] = 1)),
        ("V26", state_four),
        ("V31", no_bitmap),
    ] {
        let file = Arc::new(MemoryStorage::new(bytes.clone()));
        let plan = plan(file.clone(), &everything(), &mut ()).unwrap();
        let _named = common::NamedOnFailure(format!("{code} {plan:?}"));
        assert!(plan.is_empty() && plan.steps().is_empty());
        plan.carry_out(&*file, &mut ()).unwrap();
        assert!(file.to_vec() == bytes, "something was written");
        let left = plan.left().iter().find(|left| left.code == code).expect("it is told");
        assert!(left.severity == Severity::Error && left.word.is_none() && left.why.len() > 20);
    }
}

/// A file that starts with nothing at all may be one that was never finished: writing its name on it would make
/// an image of it.
#[test]
fn a_file_that_was_never_finished_is_not_taken_for_an_image() {
    let mut bytes = sound().build_vec();
    bytes[..0x1_0000].fill(0);
    let file = Arc::new(MemoryStorage::new(bytes));
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    assert!(thought.is_empty() && thought.left()[0].word.is_some());
    let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
    thought.carry_out(&*file, &mut ()).unwrap();
    assert!(!check(file, &mut ()).unwrap().has_problems());
}

/// A log is given up only where the file is sound without it.
#[test]
fn a_log_is_not_discarded_from_a_file_that_needs_it() {
    let image = sound();
    let mut bytes = image.clone().dirty(image.session(1)).build_vec();
    put_u64(&mut bytes, image.layout().bat_offset + 8 * 9, 4);
    let file = Arc::new(MemoryStorage::new(bytes));
    let plan = plan(file, &everything(), &mut ()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    assert!(plan.left().iter().any(|left| left.code == "V8" && left.why.contains("state 4")));
}

/// As long as a block lies behind the end of the file, and nobody has said that it may be lost, the file must
/// not grow: the block would read as zeros, and no check would find it any more.
#[test]
fn the_file_does_not_grow_over_what_is_missing() {
    let image = sound();
    let mut bytes = image.build_vec();
    let place = |block: u64| image.layout().blocks[&block];
    let bat = image.layout().bat_offset;
    put_u64(&mut bytes, bat + 8 * 9, place(2) | 6);
    let behind = bytes.len() as u64 + MIB;
    put_u64(&mut bytes, bat + 8 * 10, behind | 6);
    put_u64(&mut bytes, bat + 8 * 11, (900 * MIB) | 2);
    let file = Arc::new(MemoryStorage::new(bytes));
    let before = file.len().unwrap();
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    assert_eq!(thought.codes(), ["V32"], "{thought:?}");
    thought.carry_out(&*file, &mut ()).unwrap();
    assert_eq!(file.len().unwrap(), before);
    let codes = |file: &Arc<MemoryStorage>| -> Vec<&str> {
        let findings = check(file.clone(), &mut ()).unwrap();
        findings.list().iter().map(vhdxkit::defect::Defect::code).collect()
    };
    assert_eq!(codes(&file), ["V29", "V30"]);
    let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
    assert_eq!(thought.lost(), std::slice::from_ref(&(10 * MIB..11 * MIB)));
    thought.carry_out(&*file, &mut ()).unwrap();
    assert_eq!(codes(&file), Vec::<&str>::new());
}

/// Bytes behind everything that belongs to something may be a block whose entry was lost, also to a repair just
/// before: no repair throws them away. Zeros go, when nothing else is to be done.
#[test]
fn no_repair_throws_bytes_at_the_end_of_the_file_away() {
    let length = sound().build_vec().len();
    let end = (length as u64).next_multiple_of(MIB) as usize;
    let with = |byte: u8, warning: bool| {
        let mut bytes = sound().build_vec();
        bytes.resize(end + (3 << 20), 0);
        bytes[end + (1 << 20) + 700] = byte;
        if warning {
            put_u64(&mut bytes, sound().layout().bat_offset + 8 * 9, (900 * MIB) | 2);
        }
        bytes
    };
    for (byte, warning, steps) in
        [(0, false, &["V35"][..]), (0, true, &["V32"]), (7, false, &[]), (7, true, &["V32"])]
    {
        let file = Arc::new(MemoryStorage::new(with(byte, warning)));
        let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
        assert_eq!(thought.codes(), steps, "{thought:?}");
        let told = thought.left().iter().any(|left| left.why.contains("vhdx compact"));
        assert_eq!(told, byte != 0 && !warning, "{thought:?}");
        thought.carry_out(&*file, &mut ()).unwrap();
        // And once more.
        plan(file.clone(), &everything(), &mut ()).unwrap().carry_out(&*file, &mut ()).unwrap();
        match byte {
            0 => assert!(file.len().unwrap() <= end as u64, "zeros are given back"),
            _ => assert_eq!(file.to_vec()[end + (1 << 20) + 700], byte),
        }
    }
}

/// The file with one header copy damaged: its DataWriteGuid is another.
fn with_damaged_header(bytes: &[u8], copy: usize) -> Arc<MemoryStorage> {
    let mut bytes = bytes.to_vec();
    bytes[0x1_0028 + copy * 0x1_0000] ^= 1;
    Arc::new(MemoryStorage::new(bytes))
}

/// The file with one header copy of which nothing is left.
fn with_lost_header(bytes: &[u8], copy: usize) -> Arc<MemoryStorage> {
    let (mut bytes, at) = (bytes.to_vec(), 0x1_0000 + copy * 0x1_0000);
    bytes[at..at + 4096].fill(0xEE);
    Arc::new(MemoryStorage::new(bytes))
}

fn orphans(file: &Arc<MemoryStorage>) -> Vec<Severity> {
    let findings = check(file.clone(), &mut ()).unwrap();
    let found = findings.list().iter().filter(|found| found.code() == "W-LOGORPHAN");
    found.map(vhdxkit::defect::Defect::severity).collect()
}

/// A session with two entries, of which nothing is in place; the older header names no log.
fn open_session() -> Vec<u8> {
    let entry = |block| LogEntry::new().allocate(block, Contents::Pattern(0x99));
    let image = sound().dirty(sound().session(1)).log_entry(entry(9)).log_entry(entry(11));
    let mut bytes = image.build_vec();
    bytes[0x1_0030..0x1_0040].fill(0);
    vhdxkit_testkit::reseal_header(&mut bytes, 0);
    bytes
}

/// The newest header is damaged, and the older one was written before the log had anything: the file looks clean,
/// and what a repair logs would be written over the only trace of what the guest wrote last.
#[test]
fn a_log_that_only_the_damaged_header_named_is_not_written_over() {
    let mut bytes = open_session();
    put_u64(&mut bytes, sound().layout().bat_offset + 8 * 12, (900 * MIB) | 2);
    for file in [with_damaged_header(&bytes, 1), with_lost_header(&bytes, 1)] {
        refuses_to_write_over_the_log(&file);
    }
    // With the other copy damaged the log is named, and replayed.
    let file = with_damaged_header(&bytes, 0);
    assert!(orphans(&file).is_empty());
    plan(file.clone(), &everything(), &mut ()).unwrap().carry_out(&*file, &mut ()).unwrap();
    assert!(check(file, &mut ()).unwrap().list().is_empty());
}

fn refuses_to_write_over_the_log(file: &Arc<MemoryStorage>) {
    let before = file.to_vec();
    assert_eq!(orphans(file), [Severity::Error]);
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    assert!(thought.is_empty(), "{thought:?}");
    let left = thought.left().iter().find(|left| left.code == "W-LOGORPHAN").unwrap();
    assert!(left.why.contains("vhdx recover") && left.word == Some(Word::DiscardLog), "{left:?}");
    thought.carry_out(&**file, &mut ()).unwrap();
    // Who opens it for writing would write over it just the same; who reads is told.
    let error = OpenOptions::new().write(true).open_storage(file.clone()).unwrap_err();
    assert_eq!(error.defect().map(vhdxkit::defect::Defect::code), Some("W-LOGORPHAN"), "{error}");
    let image = OpenOptions::new().open_storage(file.clone()).unwrap();
    assert!(image.findings().list().iter().any(|found| found.code() == "W-LOGORPHAN"));
    assert!(file.to_vec() == before);
}

/// Who knows that the entries are old says so, and need not make a new disk that its children do not know.
#[test]
fn a_log_that_nobody_wants_is_given_up_on_the_users_word() {
    let file = with_lost_header(&open_session(), 1);
    let options = RepairOptions { discard_log: true, ..RepairOptions::default() };
    let thought = plan(file.clone(), &options, &mut ()).unwrap();
    assert_eq!(thought.codes(), ["W-LOGORPHAN", "V3"], "{thought:?}");
    thought.carry_out(&*file, &mut ()).unwrap();
    assert!(orphans(&file).is_empty());
    OpenOptions::new().write(true).open_storage(file).unwrap();
}

/// All but the first 80 bytes of a header are nothing, and yet under its checksum: a copy of which only they are
/// damaged still tells which log is open, provably.
#[test]
fn a_header_whose_reserved_bytes_are_damaged_counts_as_before() {
    let mut bytes = open_session();
    bytes[0x2_0100] ^= 1;
    let file = Arc::new(MemoryStorage::new(bytes));
    assert!(HeaderPair::inspect(&*file).unwrap().is_dirty());
    let findings = check(file.clone(), &mut ()).unwrap();
    assert!(findings.list().iter().any(|found| found.code() == "V3"));
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    assert_eq!(thought.codes(), ["V3", "W-HDRPAIR", "I-DIRTY"], "{thought:?}");
    thought.carry_out(&*file, &mut ()).unwrap();
    assert!(check(file.clone(), &mut ()).unwrap().list().is_empty());
    let image = OpenOptions::new().open_storage(file).unwrap();
    let mut byte = [0];
    for block in [9, 11] {
        image.read_at(block * MIB, &mut byte).unwrap();
        assert_eq!(byte, [0x99], "block {block}");
    }
}

/// A log that was retired before space was given back holds what that space was; nobody uses it any more.
#[test]
fn what_a_retired_log_holds_of_free_space_is_no_orphan() {
    let session = sound().session(1);
    let entry = |block| LogEntry::new().allocate(block, Contents::Pattern(0x99));
    let beyond = LogEntry::new().data(60 * MIB, &[0x77; 4096]);
    let image = sound().dirty(session).log_entry(entry(9)).log_entry(beyond);
    let file = MemoryStorage::new(image.build_vec());
    vhdxkit::log::replay_in_place(&file).unwrap().unwrap();
    let mut bytes = file.to_vec();
    let at = 60 * MIB as usize;
    assert!(bytes[at..at + 4096] == [0x77; 4096], "a replay writes it");
    bytes[at..at + 4096].fill(0);
    for copy in 0..2 {
        assert!(orphans(&with_lost_header(&bytes, copy)).is_empty(), "copy {copy}");
    }
}

/// Where nothing tells which entries are the newest, it is said, and that is all.
#[test]
fn entries_that_may_be_old_are_only_told_of() {
    let mut bytes = open_session();
    bytes[MIB as usize] ^= 1;
    let file = with_lost_header(&bytes, 1);
    assert_eq!(orphans(&file), [Severity::Info]);
    let thought = plan(file, &RepairOptions::default(), &mut ()).unwrap();
    assert_eq!(thought.codes(), ["V3"], "{thought:?}");
    assert!(thought.left().iter().any(|left| left.code == "W-LOGORPHAN"));
}

fn heals_either_header(bytes: &[u8], what: &str) {
    assert!(!HeaderPair::inspect(&MemoryStorage::new(bytes.to_vec())).unwrap().is_dirty());
    for copy in 0..2 {
        for file in [with_damaged_header(bytes, copy), with_lost_header(bytes, copy)] {
            assert!(orphans(&file).is_empty(), "{what}, copy {copy}");
            let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
            assert!(thought.codes().contains(&"V3"), "{what}, copy {copy}: {thought:?}");
            thought.carry_out(&*file, &mut ()).unwrap();
            let left = check(file, &mut ()).unwrap();
            assert!(!left.list().iter().any(|found| found.code() == "V3"), "{what}, copy {copy}");
        }
    }
}

/// A file that was closed keeps old entries in its log: what the last session wrote is in place, and what earlier
/// ones wrote may have been changed since. Either header can be lost and mended.
#[test]
fn old_entries_of_a_closed_file_keep_no_header_from_being_mended() {
    let session = sound().session(1);
    let bat = sound().layout().bat_offset;
    let old = LogEntry::new().guid(sound().session(2)).at(40).sequence(3).data(bat, &[0; 4096]);
    let entry = |block| LogEntry::new().allocate(block, Contents::Pattern(0x99));
    let image = sound().dirty(session).log_entry(entry(9)).log_entry(entry(10)).log_entry(old);
    let file = MemoryStorage::new(image.build_vec());
    vhdxkit::log::replay_in_place(&file).unwrap().unwrap();
    heals_either_header(&file.to_vec(), "replayed, with older entries behind");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours.vhdx");
    std::fs::write(&path, sound().build_vec()).unwrap();
    for round in 0..3u8 {
        let image = OpenOptions::new().write(true).open(&path).unwrap();
        for block in 0..16 {
            if (block + u64::from(round)) % 3 == 0 {
                image.write_at(block * MIB, &[0x40 + round; 512]).unwrap();
                image.flush().unwrap();
            }
        }
        image.close().unwrap();
        heals_either_header(&std::fs::read(&path).unwrap(), "written by us");
    }
    if common::have("qemu-img") && common::have("qemu-io") {
        let path = dir.path().join("qemu.vhdx");
        let name = path.to_str().unwrap();
        common::run("qemu-img", &["create", "-q", "-f", "vhdx", name, "64M"]);
        for write in ["write -P 7 1M 64k", "write -P 8 17M 64k", "write -P 9 40M 4M"] {
            common::run("qemu-io", &["-f", "vhdx", "-c", write, name]);
            heals_either_header(&std::fs::read(&path).unwrap(), "written by QEMU");
        }
    }
    for name in ["iotest-dynamic-1G.vhdx.bz2", "swap.vhdx.gz", "dynamic.vhdx.gz", "btrfs.vhdx.gz"] {
        let Some(image) = common::unpack(name, dir.path()) else { continue };
        heals_either_header(&std::fs::read(image).unwrap(), name);
    }
}

/// A block that shows the log's bytes must keep them until it may be moved: a repair that logs something would
/// write over them.
#[test]
fn a_block_that_lies_over_the_log_is_not_written_over_by_what_is_logged() {
    let bat = sound().layout().bat_offset;
    let mut bytes = sound().build_vec();
    bytes[MIB as usize..2 * MIB as usize].fill(b'G');
    put_u64(&mut bytes, bat + 8 * 9, MIB | 6);
    put_u64(&mut bytes, bat + 8 * 13, (900 * MIB) | 6);
    put_u64(&mut bytes, bat + 8 * 7, 5);
    let file = Arc::new(MemoryStorage::new(bytes.clone()));
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    assert!(thought.is_empty(), "{thought:?}");
    let told = thought.left().iter().find(|left| left.code == "V30").unwrap();
    assert!(told.why.contains("nothing at all") && told.word.is_some(), "{told:?}");
    thought.carry_out(&*file, &mut ()).unwrap();
    assert!(file.to_vec() == bytes);
    // With the word it gets a place of its own first.
    let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
    thought.carry_out(&*file, &mut ()).unwrap();
    assert!(!check(file.clone(), &mut ()).unwrap().has_problems());
    assert!(block(&file, 9).unwrap().iter().all(|byte| *byte == b'G'));
}

/// What looks like junk in a disk that QEMU has made may be a block's only trace.
#[test]
fn a_page_that_may_be_shifted_is_not_cleared() {
    let image = Image::dynamic(16 * MIB).creator("QEMU v7.2.0").block(0, Contents::Pattern(1));
    let mut bytes = image.build_vec();
    // Behind the last entry; the rest of the page is not as QEMU would have it.
    let place = bytes.len() as u64;
    bytes.resize(bytes.len() + (1 << 20), 0x77);
    put_u64(&mut bytes, image.layout().bat_offset + 8 * 16, place | 6);
    put_u64(&mut bytes, image.layout().bat_offset + 8 * 9, (900 * MIB) | 2);
    let file = Arc::new(MemoryStorage::new(bytes));
    let plan = plan(file, &RepairOptions::default(), &mut ()).unwrap();
    assert!(plan.is_empty());
    assert!(plan.left().iter().any(|left| left.why.contains("8.0")), "{plan:?}");
}

/// Junk is junk where it names nothing that is not another's: real files have it.
#[test]
fn junk_in_a_disk_of_qemus_is_cleared() {
    let image = Image::dynamic(5 << 30).creator("QEMU v7.2.0").block(0, Contents::Pattern(1));
    for junk in [image.layout().blocks[&0] | 6, (900 * MIB) | 6, 3] {
        let mut bytes = image.build_vec();
        put_u64(&mut bytes, image.layout().bat_offset + 8 * 4096, junk);
        let file = Arc::new(MemoryStorage::new(bytes));
        let plan = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
        plan.carry_out(&*file, &mut ()).unwrap();
        assert_eq!(plan.codes(), ["V26"], "{plan:?}");
        assert!(check(file, &mut ()).unwrap().list().is_empty());
    }
}

/// Thinking a repair out changes nothing, not even the time of the file; and says what would be written.
#[test]
fn a_dry_run_does_not_touch_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    for fault in repairable() {
        std::fs::write(&path, &fault.bytes).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        plan_file(&path, &RepairOptions::default(), false, &mut ()).unwrap();
        assert!(std::fs::read(&path).unwrap() == fault.bytes, "{}", fault.name);
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_image_in_use_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    std::fs::write(&path, some_fault("V32").bytes).unwrap();
    let image = OpenOptions::new().open(&path).unwrap();
    let error = Repair::open(&path, &RepairOptions::default(), &mut ()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    drop(image);
}

/// Random bytes over a page of the table: that is no file whose end is missing, and none of the blocks whose entries
/// were hit counts as safe.
#[test]
fn junk_in_the_block_table_is_not_taken_for_a_missing_end() {
    let image = sound();
    let bat = image.layout().bat_offset as usize;
    let mut random = Random::new(9);
    let mut bytes = image.build_vec();
    for byte in &mut bytes[bat + 8 * 3..bat + 8 * 12] {
        *byte = random.below(256) as u8;
    }
    // Among them one that would be harmless alone.
    let place = image.layout().blocks[&5];
    put_u64(&mut bytes, bat as u64 + 8 * 5, place);
    let file = Arc::new(MemoryStorage::new(bytes));
    let findings = check(file.clone(), &mut ()).unwrap();
    assert!(findings.is_table_overwritten());
    assert_eq!(findings.doubtful_blocks(), std::slice::from_ref(&(3..12)));
    // Nor does a repair make such entries look sound.
    let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    thought.carry_out(&*file, &mut ()).unwrap();
    let findings = check(file, &mut ()).unwrap();
    assert_eq!(findings.doubtful_blocks(), std::slice::from_ref(&(3..12)));

    // A file that was cut off: only the block that is gone.
    let mut bytes = image.build_vec();
    bytes.truncate(place as usize);
    let findings = check(Arc::new(MemoryStorage::new(bytes)), &mut ()).unwrap();
    assert!(!findings.is_table_overwritten());
    assert_eq!(findings.doubtful_blocks(), std::slice::from_ref(&(5..6)));

    // Two owners of one place: neither is safe.
    let mut bytes = image.build_vec();
    put_u64(&mut bytes, bat as u64 + 8 * 9, place | 6);
    let findings = check(Arc::new(MemoryStorage::new(bytes)), &mut ()).unwrap();
    assert_eq!(findings.doubtful_blocks(), [5..6, 9..10]);
    let clean = check(Arc::new(MemoryStorage::new(image.build_vec())), &mut ()).unwrap();
    assert!(clean.doubtful_blocks().is_empty() && !clean.is_table_overwritten());
}

/// Damage has cleared the state of an entry and left its offset: that is all that tells where the block is, whether
/// anything else in the page is wrong or not. It is cleared at the user's word alone.
#[test]
fn the_last_trace_of_a_block_is_not_cleared() {
    let image = sound();
    let bat = image.layout().bat_offset;
    let place = image.layout().blocks[&5];
    for state in [0, 2] {
        let mut bytes = image.build_vec();
        put_u64(&mut bytes, bat + 8 * 5, place | state);
        let alone = Arc::new(MemoryStorage::new(bytes.clone()));
        let thought = plan(alone, &RepairOptions::default(), &mut ()).unwrap();
        assert!(thought.is_empty() && thought.left()[0].code == "V32", "{thought:?}");
        // Where nothing but zeros lie there is no block.
        let mut zeros = bytes.clone();
        zeros[place as usize..(place + MIB) as usize].fill(0);
        let zeros = Arc::new(MemoryStorage::new(zeros));
        let thought = plan(zeros.clone(), &RepairOptions::default(), &mut ()).unwrap();
        assert_eq!(thought.codes(), ["V32"]);
        // Reserved bits in the same page.
        put_u64(&mut bytes, bat + 8 * 9, 0x8);
        let file = Arc::new(MemoryStorage::new(bytes));
        let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
        assert!(!thought.codes().contains(&"V32"), "{thought:?}");
        let left = thought.left().iter().find(|left| left.code == "V32").expect("it is told");
        assert!(left.word.is_some() && left.why.contains("--orphans"), "{left:?}");
        // As that says, it is among what nothing names.
        let salvage = Salvage::read(file.clone(), &SalvageOptions::new(), &mut ()).unwrap();
        assert_eq!(salvage.report().orphans, std::slice::from_ref(&(place..place + MIB)));
        thought.carry_out(&*file, &mut ()).unwrap();
        let now = file.to_vec();
        let at = (bat + 8 * 5) as usize;
        assert_eq!(now[at..at + 8], (place | state).to_le_bytes());
        assert!(now.len() as u64 >= place + MIB, "its contents were cut off");
        let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
        assert!(thought.codes().contains(&"V32"), "{thought:?}");
    }
}
