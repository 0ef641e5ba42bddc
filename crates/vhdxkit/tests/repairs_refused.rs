//! What a repair must not do: touch what it cannot mend, guess, lose an undo, make anything worse.

mod common;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vhdxkit::defect::Severity;
use vhdxkit::ops::check::check;
use vhdxkit::ops::repair::{KeepUndo, Repair, RepairOptions, Undo, plan, plan_file, undo_file};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_testkit::faults::{Fault, repairable, sound};
use vhdxkit_testkit::patch::{put_u64, reseal_region_table};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{Contents, Image, LogEntry, guid};

const MIB: u64 = 1 << 20;

fn everything() -> RepairOptions {
    RepairOptions { discard_log: true, allow_data_loss: true, header: Some(1), seed: Some(3) }
}

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

/// The file with one header copy damaged, whose fields can still be read.
fn with_damaged_header(bytes: &[u8], copy: usize) -> Arc<MemoryStorage> {
    let mut bytes = bytes.to_vec();
    bytes[0x1_0100 + copy * 0x1_0000] ^= 1;
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
    let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
    assert!(thought.is_empty(), "{thought:?}");
    let left = thought.left().iter().find(|left| left.code == "W-LOGORPHAN").unwrap();
    assert!(left.why.contains("vhdx recover"), "{left:?}");
    thought.carry_out(&**file, &mut ()).unwrap();
    // Who opens it for writing would write over it just the same; who reads is told.
    let error = OpenOptions::new().write(true).open_storage(file.clone()).unwrap_err();
    assert_eq!(error.defect().map(vhdxkit::defect::Defect::code), Some("W-LOGORPHAN"), "{error}");
    let image = OpenOptions::new().open_storage(file.clone()).unwrap();
    assert!(image.findings().list().iter().any(|found| found.code() == "W-LOGORPHAN"));
    assert!(file.to_vec() == before);
}

/// A damaged copy that can still be read, and names no log or is the older one, has taken no log with it, whatever
/// the ring holds; one whose number fits to nothing is not believed.
#[test]
fn what_is_left_of_a_header_tells_whether_it_named_a_log() {
    let bytes = open_session();
    let number = |copy: usize| 0x1_0008 + copy * 0x1_0000;
    let newest = u64::from_le_bytes(bytes[number(1)..number(1) + 8].try_into().unwrap());
    for (sequence, names_a_log, found) in [
        (newest, true, &[Severity::Error][..]),
        (newest, false, &[]),
        (newest - 2, true, &[]),
        (newest + 40, false, &[Severity::Error]),
    ] {
        let mut bytes = bytes.clone();
        put_u64(&mut bytes, number(1) as u64, sequence);
        if !names_a_log {
            bytes[0x2_0030..0x2_0040].fill(0);
        }
        let file = with_damaged_header(&bytes, 1);
        assert_eq!(orphans(&file), found, "{sequence} beside {newest}, log {names_a_log}");
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

/// A block of the disk, if it can be read.
fn block(file: &Arc<MemoryStorage>, number: u64) -> Option<Vec<u8>> {
    let storage: Arc<dyn Storage> = file.clone();
    let image = OpenOptions::new().open_storage(storage).ok()?;
    let mut bytes = vec![0; MIB as usize];
    image.read_at(number * MIB, &mut bytes).ok()?;
    Some(bytes)
}

/// A block whose contents are lost lies where the repair puts its copies, its log, its table. Wherever the repair is
/// stopped, the block never shows any of these: it cannot be read, or reads as zeros.
#[test]
fn a_lost_block_never_shows_what_a_repair_adds_to_the_file() {
    type Change = fn(&mut Vec<u8>, &Image);
    let small_table =
        || Image::dynamic(160 << 30).bat_length(1 << 20).block(2, Contents::Pattern(2));
    let scenes: [(&str, Image, Change); 4] = [
        ("a copy", sound(), |bytes, image| {
            put_u64(bytes, image.layout().bat_offset + 8 * 9, image.layout().blocks[&2] | 6);
        }),
        ("a copy of what lies over the log", sound(), |bytes, image| {
            bytes[MIB as usize..2 * MIB as usize].fill(b'G');
            put_u64(bytes, image.layout().bat_offset + 8 * 9, MIB | 6);
        }),
        ("a log", sound().log_length(0), |_, _| {}),
        ("a larger table", small_table(), |_, _| {}),
    ];
    for (name, image, change) in scenes {
        let mut bytes = image.build_vec();
        change(&mut bytes, &image);
        let end = (bytes.len() as u64).next_multiple_of(MIB);
        for (block, place) in [(5, end), (6, end + 2 * MIB), (7, end + MIB)] {
            put_u64(&mut bytes, image.layout().bat_offset + 8 * block, place | 6);
        }
        let file = Arc::new(MemoryStorage::new(bytes.clone()));
        let at = image.layout().blocks[&2] as usize;
        let second = image.build_vec()[at..at + MIB as usize].to_vec();
        let thought = plan(file, &everything(), &mut ()).unwrap();
        assert!(thought.lost_bytes() == 3 * MIB, "{name}: {thought:?}");
        for at in 0.. {
            let _named = common::NamedOnFailure(format!("{name}, stopped at call {at}"));
            let inner = MemoryStorage::new(bytes.clone());
            let medium = Failing { inner, at, calls: AtomicUsize::new(0), once: false, dead: true };
            let done = thought.carry_out(&medium, &mut ());
            let left = Arc::new(MemoryStorage::new(medium.inner.to_vec()));
            for lost in [5, 6, 7] {
                let shown = block(&left, lost).unwrap_or_default();
                assert!(shown.iter().all(|byte| *byte == 0), "block {lost} shows another's bytes");
            }
            let again = plan(left.clone(), &everything(), &mut ()).unwrap();
            again.carry_out(&*left, &mut ()).unwrap();
            assert!(!check(left.clone(), &mut ()).unwrap().has_problems());
            for lost in [5, 6, 7] {
                assert!(block(&left, lost).unwrap().iter().all(|byte| *byte == 0));
            }
            assert!(block(&left, 2).unwrap() == second);
            if medium.calls.load(Ordering::Relaxed) <= at {
                done.unwrap();
                break;
            }
        }
    }
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

fn some_fault(code: &str) -> Fault {
    repairable().into_iter().find(|fault| fault.code == code).expect("it is there")
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

fn undo_of(path: &Path) -> std::path::PathBuf {
    let repair = Repair::open(path, &RepairOptions::default(), &mut ()).unwrap();
    let undo = repair.save_undo(KeepUndo::Beside).unwrap().expect("something to undo");
    repair.carry_out(&mut ()).unwrap();
    undo
}

/// Restoring old bytes into a disk that somebody has used since would destroy it.
#[test]
fn an_undo_is_refused_for_another_image_and_for_one_that_was_written_since() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    let fault = some_fault("V27");
    std::fs::write(&path, &fault.bytes).unwrap();
    let undo = undo_of(&path);
    assert!(undo.file_name().unwrap().to_str().unwrap().starts_with("disk.vhdx.undo-20"));

    let other = dir.path().join("other.vhdx");
    std::fs::write(&other, sound().seed(77).build_vec()).unwrap();
    let before = std::fs::read(&other).unwrap();
    let error = undo_file(&other, &undo, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("disk.vhdx"), "{error}");
    assert!(std::fs::read(&other).unwrap() == before);

    // A guest writes one sector.
    let image = OpenOptions::new().write(true).open(&path).unwrap();
    image.write_at(0, &[0x99; 512]).unwrap();
    image.close().unwrap();
    drop(image);
    let used = std::fs::read(&path).unwrap();
    let error = undo_file(&path, &undo, false).unwrap_err();
    assert!(error.to_string().contains("written"), "{error}");
    assert!(std::fs::read(&path).unwrap() == used);
    // At the user's word.
    assert!(undo_file(&path, &undo, true).unwrap().forced);
}

/// Both headers of another disk of the same layout are damaged. They tell nothing then; the disk's own id does.
#[test]
fn an_undo_file_is_refused_for_another_disk_whose_headers_are_damaged() {
    let fault = some_fault("V27");
    let file = Arc::new(MemoryStorage::new(fault.bytes.clone()));
    let undo = MemoryStorage::empty();
    let plan = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    plan.write_undo(&*file, "disk.vhdx", &undo).unwrap();
    plan.carry_out(&*file, &mut ()).unwrap();
    let undo = Undo::read(&undo).unwrap();
    let without_headers = |mut bytes: Vec<u8>| {
        bytes[0x1_0000..0x1_1000].fill(0x5a);
        bytes[0x2_0000..0x2_1000].fill(0x5a);
        MemoryStorage::new(bytes)
    };
    // The same blocks, the same table; only the identity differs.
    let stranger = sound().seed(77).build_vec();
    assert_eq!(stranger.len(), fault.bytes.len());
    let mut same_table = file.to_vec();
    let metadata = 2 << 20..(2 << 20) + 0x2_0000;
    same_table[metadata.clone()].copy_from_slice(&stranger[metadata]);
    for other in [stranger, same_table, sound().seed(78).build_vec()] {
        let other = without_headers(other);
        let before = other.to_vec();
        let error = undo.restore(&other, false).unwrap_err();
        assert!(error.to_string().contains("not for this image"), "{error}");
        assert!(other.to_vec() == before, "it was written");
    }
    // The same disk, its table written by others since.
    let mut written = file.to_vec();
    written[sound().layout().bat_offset as usize + 8 * 12] = 2;
    let written = without_headers(written);
    assert!(undo.restore(&written, false).is_err());
    // Its own image, before and after the repair, is restored without headers too.
    for own in [fault.bytes.clone(), file.to_vec()] {
        let own = without_headers(own);
        assert!(!undo.restore(&own, false).unwrap().forced);
        assert!(own.to_vec() == fault.bytes);
    }
}

/// Somebody has changed a table of the repaired file with other tools, which leave the headers alone.
#[test]
fn an_undo_sees_changes_that_no_header_tells_of() {
    let fault = some_fault("V27");
    let file = Arc::new(MemoryStorage::new(fault.bytes));
    let undo = MemoryStorage::empty();
    let plan = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
    plan.write_undo(&*file, "disk.vhdx", &undo).unwrap();
    plan.carry_out(&*file, &mut ()).unwrap();
    file.write_at(sound().layout().bat_offset + 8 * 12, &[2]).unwrap();
    let undo = Undo::read(&undo).unwrap();
    assert!(undo.restore(&*file, false).unwrap_err().to_string().contains("written"));
}

#[test]
fn an_undo_file_with_one_wrong_bit_is_refused() {
    let fault = some_fault("V32");
    let file = Arc::new(MemoryStorage::new(fault.bytes));
    let undo = MemoryStorage::empty();
    let options = RepairOptions::default();
    plan(file.clone(), &options, &mut ()).unwrap().write_undo(&*file, "x", &undo).unwrap();
    let whole = undo.to_vec();
    assert!(Undo::read(&undo).is_ok());
    let mut random = Random::new(5);
    for _ in 0..200 {
        let mut bytes = whole.clone();
        let at = random.below(whole.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        assert!(Undo::read(&MemoryStorage::new(bytes)).is_err());
    }
    for length in [0, 8, 79, 80, 100, whole.len() - 1] {
        assert!(Undo::read(&MemoryStorage::new(whole[..length].to_vec())).is_err());
    }
}

/// An undo file never replaces anything, two of one second included; and its partial form does not stay.
#[test]
fn undo_files_do_not_replace_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    let mut undos = Vec::new();
    for _ in 0..3 {
        std::fs::write(&path, some_fault("V27").bytes).unwrap();
        undos.push(undo_of(&path));
    }
    undos.sort();
    undos.dedup();
    assert_eq!(undos.len(), 3);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
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

/// A medium on which call number `at` and all later ones that take space fail; or one sync, once.
struct Failing {
    inner: MemoryStorage,
    at: usize,
    calls: AtomicUsize,
    /// Only the one call.
    once: bool,
    /// As if the machine had stopped: nor is anything given back.
    dead: bool,
}

impl Failing {
    fn call(&self) -> io::Result<()> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = if self.once { number == self.at } else { number >= self.at };
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Storage for Failing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.call()?;
        self.inner.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        if self.once { self.call() } else { Ok(()) }
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        if self.dead || length > self.inner.len()? {
            self.call()?;
        }
        self.inner.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.call()?;
        self.inner.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

/// The disk is full, or a call fails, at every place in turn: the error is told, a second repair comes to the
/// end, and the undo file restores every byte.
#[test]
fn a_full_disk_at_any_write_costs_nothing() {
    let mut failed = 0;
    for (number, fault) in repairable().into_iter().enumerate() {
        let options = RepairOptions {
            discard_log: fault.discard_log,
            allow_data_loss: fault.allow_data_loss,
            header: fault.header,
            seed: Some(11),
        };
        let sound = Arc::new(MemoryStorage::new(fault.bytes.clone()));
        let thought = plan(sound.clone(), &options, &mut ()).unwrap();
        let undo = MemoryStorage::empty();
        thought.write_undo(&*sound, "disk.vhdx", &undo).unwrap();
        // A call that fails alone is much the same everywhere: every third of them.
        let kinds = if number % 3 == 0 { &[false, true][..] } else { &[false] };
        for &once in kinds {
            for at in 0.. {
                let _named = common::NamedOnFailure(format!("{}, call {at}", fault.name));
                let inner = MemoryStorage::new(fault.bytes.clone());
                let medium = Failing { inner, at, calls: AtomicUsize::new(0), once, dead: false };
                let done = thought.carry_out(&medium, &mut ());
                if medium.calls.load(Ordering::Relaxed) <= at {
                    done.unwrap();
                    break;
                }
                assert_eq!(
                    done.unwrap_err().io_error().unwrap().kind(),
                    io::ErrorKind::StorageFull
                );
                failed += 1;
                let left = medium.inner.to_vec();
                // No space taken stays taken for nothing.
                let again = Arc::new(MemoryStorage::new(left.clone()));
                let second = plan(again.clone(), &options, &mut ()).unwrap();
                second.carry_out(&*again, &mut ()).unwrap();
                let findings = check(again, &mut ()).unwrap();
                assert!(!findings.has_problems(), "{:?}", findings.list());
                let back = MemoryStorage::new(left);
                Undo::read(&undo).unwrap().restore(&back, false).unwrap();
                assert!(back.to_vec() == fault.bytes, "undone, it is not what it was");
            }
        }
    }
    assert!(failed > 300, "only {failed} failures");
    println!("{failed} failures");
}

/// Any damage at all, thousands of times: no panic, never a fault that was not there, and the undo file restores
/// every byte.
#[test]
fn random_damage_is_never_made_worse() {
    let session = sound().session(1);
    let base = sound()
        .dirty(session)
        .log_entry(vhdxkit_testkit::LogEntry::new().allocate(9, Contents::Pattern(0x99)));
    let bases = [sound().build_vec(), base.build_vec()];
    let mut random = Random::new(2026);
    let mut repaired = 0;
    for round in 0..600 {
        let mut bytes = bases[round % 2].clone();
        for _ in 0..=random.below(3) {
            // Where tables are: headers, region tables, log, metadata, block table.
            let starts = [
                0u64,
                0x1_0000,
                0x2_0000,
                0x3_0000,
                0x4_0000,
                MIB,
                MIB + 4096,
                2 * MIB,
                2 * MIB + 0x1_0000,
                3 * MIB,
                3 * MIB,
            ];
            let at = starts[random.below(starts.len() as u64) as usize] + random.below(160);
            let end = (at as usize + 1 + random.below(9) as usize).min(bytes.len());
            for byte in &mut bytes[at as usize..end] {
                *byte = random.below(256) as u8;
            }
        }
        for copy in 0..2 {
            if random.below(2) == 0 {
                vhdxkit_testkit::reseal_header(&mut bytes, copy);
                reseal_region_table(&mut bytes, copy);
            }
        }
        if random.below(4) == 0 {
            let length = bytes.len() as u64 - random.below(4 * MIB);
            bytes.truncate(length as usize);
        }
        let options = if random.below(2) == 0 { RepairOptions::default() } else { everything() };
        let file = Arc::new(MemoryStorage::new(bytes.clone()));
        let _named = common::NamedOnFailure(format!("round {round}"));
        let Ok(thought) = plan(file.clone(), &options, &mut ()) else { continue };
        let undo = MemoryStorage::empty();
        thought.write_undo(&*file, "disk.vhdx", &undo).unwrap();
        thought.carry_out(&*file, &mut ()).unwrap();
        let errors = |findings: &vhdxkit::findings::Findings| {
            findings.list().iter().filter(|found| found.severity() == Severity::Error).count()
        };
        let after = check(file.clone(), &mut ()).unwrap();
        assert_eq!(errors(&after), errors(thought.after()), "not what was promised");
        if thought.is_empty() {
            assert!(file.to_vec() == bytes);
            continue;
        }
        repaired += 1;
        let report = Undo::read(&undo).unwrap().restore(&*file, false).unwrap();
        assert!(report.changed && file.to_vec() == bytes);
    }
    assert!(repaired > 100, "only {repaired} were repaired");
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

/// Damage has cleared the state of an entry and left its offset: that is all that tells where the block is. It is
/// cleared at the user's word alone.
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
        assert!(thought.codes().contains(&"V32"), "nothing else is wrong: {thought:?}");
        // Reserved bits in the same page.
        put_u64(&mut bytes, bat + 8 * 9, 0x8);
        let file = Arc::new(MemoryStorage::new(bytes));
        let thought = plan(file.clone(), &RepairOptions::default(), &mut ()).unwrap();
        assert!(!thought.codes().contains(&"V32"), "{thought:?}");
        let left = thought.left().iter().find(|left| left.code == "V32").expect("it is told");
        assert!(left.word.is_some() && left.why.contains("recover"), "{left:?}");
        thought.carry_out(&*file, &mut ()).unwrap();
        let now = file.to_vec();
        let at = (bat + 8 * 5) as usize;
        assert_eq!(now[at..at + 8], (place | state).to_le_bytes());
        assert!(now.len() as u64 >= place + MIB, "its contents were cut off");
        let thought = plan(file.clone(), &everything(), &mut ()).unwrap();
        assert!(thought.codes().contains(&"V32"), "{thought:?}");
    }
}
