//! When an undo file may restore an image, and when it must not.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use common::failing::{Failing, Fault};
use common::repairing::some_fault;
use vhdxkit::ops::repair::{KeepUndo, Repair, RepairOptions, Undo, plan, undo_file};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_testkit::faults::sound;
use vhdxkit_testkit::random::Random;

fn undo_of(path: &Path) -> PathBuf {
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

/// A repair that was interrupted and another one that completed it: each has its undo file, and they only fit in turn,
/// the last one first. Whoever begins with the wrong one is told which.
#[test]
fn of_two_repairs_the_later_is_taken_back_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    let bytes = some_fault("V27").bytes;
    std::fs::write(&path, &bytes).unwrap();
    let repair = Repair::open(&path, &RepairOptions::default(), &mut ()).unwrap();
    let first = repair.save_undo(KeepUndo::Beside).unwrap().unwrap();
    // Up to the first write that reaches the file.
    let left = (0..).find_map(|at| {
        let file = Arc::new(MemoryStorage::new(bytes.clone()));
        let calls = Arc::new(AtomicUsize::new(0));
        let medium = Failing { file: Arc::clone(&file), calls, at, fault: Fault::Once };
        repair.plan().carry_out(&medium, &mut ()).unwrap_err();
        Some(file.to_vec()).filter(|left| *left != bytes)
    });
    drop(repair);
    std::fs::write(&path, left.unwrap()).unwrap();
    let second = undo_of(&path);
    let repaired = std::fs::read(&path).unwrap();

    let error = undo_file(&path, &first, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let (said, name) = (error.to_string(), second.file_name().unwrap().to_str().unwrap());
    assert!(said.contains("later repair") && said.contains(name), "{said}");
    assert!(std::fs::read(&path).unwrap() == repaired, "it was written");
    assert!(undo_file(&path, &second, false).unwrap().changed);
    assert!(undo_file(&path, &first, false).unwrap().changed);
    assert!(std::fs::read(&path).unwrap() == bytes);
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
