//! Compacting that fails at any call, or runs out of space from any call on: the disk shows what it showed,
//! the file is sound, and compacting again does the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vhdxkit::defect::Severity;
use vhdxkit::ops::compact::{CompactOptions, compact};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions, Shrink};

mod common;

use common::failing::{Failing, Fault};

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 8;

/// A disk in which everything happens that compacting knows: blocks of zeros, free ones, trimmed ones, gaps,
/// and a table at the end of the file.
fn disk() -> Vec<u8> {
    let file = Arc::new(MemoryStorage::empty());
    let options = CreateOptions::new(BLOCKS * MIB).block_size(1 << 20).reproducible(1);
    options.create_storage(&*file).unwrap();
    let mut image = open(file.clone(), 2).unwrap();
    for block in 0..BLOCKS {
        image.write_at(block * MIB, &vec![block as u8 + 1; MIB as usize]).unwrap();
    }
    image.write_at(3 * MIB, &vec![0; MIB as usize]).unwrap();
    image.resize(130 << 30, Shrink::ZerosOnly).unwrap();
    image.discard(0..MIB).unwrap();
    image.close().unwrap();
    drop(image);
    let mut all = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut all).unwrap();
    all
}

fn open(file: Arc<dyn Storage>, seed: u64) -> vhdxkit::Result<Image> {
    OpenOptions::new().write(true).reproducible(seed).open_storage(file)
}

/// Block 5 is nobody's; half of block 6.
fn options() -> CompactOptions {
    CompactOptions::default().also_free(5 * MIB..6 * MIB + MIB / 2)
}

/// What the disk shows of the blocks in use.
fn shown(file: &Arc<MemoryStorage>) -> Vec<u8> {
    let image = OpenOptions::new().open_storage(file.clone()).unwrap();
    let mut bytes = vec![0; (BLOCKS * MIB) as usize];
    image.read_at(0, &mut bytes).unwrap();
    let free = &bytes[(5 * MIB) as usize..(6 * MIB) as usize];
    assert!(free.iter().all(|byte| *byte == 6) || free.iter().all(|byte| *byte == 0));
    bytes.drain((5 * MIB) as usize..(6 * MIB) as usize);
    bytes
}

fn require_sound(file: &Arc<MemoryStorage>, what: &str) {
    let findings = vhdxkit::ops::check::check(file.clone(), &mut ()).unwrap();
    let bad = findings.list().iter().find(|finding| finding.severity() > Severity::Info);
    let torn_header = bad.is_some_and(|finding| finding.code() == "V3");
    assert!(bad.is_none() || torn_header, "{what}: {bad:?}");
}

/// Whether the fault was reached.
fn fails_at(disk: &[u8], expected: &[u8], shortest: u64, at: usize, fault: Fault) -> bool {
    let file = Arc::new(MemoryStorage::new(disk.to_vec()));
    let calls = Arc::new(AtomicUsize::new(0));
    let failing = Failing { file: file.clone(), calls: calls.clone(), at, fault };
    let done = open(Arc::new(failing), 5).and_then(|image| compact(image, options(), &mut ()));
    let what = format!("{fault:?} at call {at}");
    assert!(shown(&file) == expected, "{what}: the disk has changed");
    require_sound(&file, &what);
    // A cut that fails is no error: nothing is lost but the space.
    if done.is_err() || file.len().unwrap() != shortest {
        let again = open(file.clone(), 6).and_then(|image| compact(image, options(), &mut ()));
        again.unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert!(shown(&file) == expected, "{what}, again: the disk has changed");
        require_sound(&file, &what);
    }
    assert_eq!(file.len().unwrap(), shortest, "{what}");
    match fault {
        Fault::Once => at < calls.load(Ordering::Relaxed),
        Fault::Full => done.is_err(),
    }
}

fn expected(disk: &[u8]) -> (Vec<u8>, u64) {
    let file = Arc::new(MemoryStorage::new(disk.to_vec()));
    let before = shown(&file);
    let image = open(file.clone(), 3).unwrap();
    let report = compact(image, options(), &mut ()).unwrap();
    assert_eq!((report.plan.zero.blocks, report.plan.free.blocks), (1, 1));
    assert!(report.moved > 2 * MIB);
    (before, file.len().unwrap())
}

#[test]
fn a_fault_at_any_call_of_compacting_leaves_the_disk_good() {
    let disk = disk();
    let (expected, shortest) = expected(&disk);
    let mut sites = 0;
    while fails_at(&disk, &expected, shortest, sites, Fault::Once) {
        sites += 1;
    }
    println!("{sites} calls failed once");
    assert!(sites > 100, "{sites}");
}

#[test]
fn compacting_that_runs_out_of_space_leaves_the_disk_good() {
    let disk = disk();
    let (expected, shortest) = expected(&disk);
    let mut full = 0;
    for at in 0.. {
        match fails_at(&disk, &expected, shortest, at, Fault::Full) {
            true => full += 1,
            // Nothing takes new space from here on.
            false => break,
        }
    }
    println!("full at {full} calls");
    assert!(full > 10, "{full}");
}
