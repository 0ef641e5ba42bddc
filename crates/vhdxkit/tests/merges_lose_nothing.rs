//! A merge that fails at any call, or runs out of space from any call on: the child over its parent shows
//! what it showed, both files are sound, and merging again completes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vhdxkit::defect::Severity;
use vhdxkit::ops::merge::merge_storages;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions};

mod common;

use common::failing::{Failing, Fault};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 7 * MIB;

fn copy(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(bytes.to_vec()))
}

fn bytes(file: &MemoryStorage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn shown(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn over(child: &Arc<MemoryStorage>, parent: &Arc<MemoryStorage>) -> Image {
    let below = OpenOptions::new().open_storage(parent.clone()).unwrap();
    OpenOptions::new().open_child(child.clone(), below).unwrap()
}

/// A parent and a child with everything a merge has to carry: whole and partial blocks, zeros over data, a
/// trimmed block, another size, another identity.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let parent = copy(&[]);
    let options = CreateOptions::new(5 * MIB).block_size(1 << 20).reproducible(1);
    options.create_storage(&*parent).unwrap();
    let image =
        OpenOptions::new().write(true).reproducible(2).open_storage(parent.clone()).unwrap();
    for block in 0..4 {
        image.write_at(block * MIB, &vec![1; 1 << 20]).unwrap();
    }
    image.close().unwrap();
    drop(image);
    let below = || OpenOptions::new().open_storage(parent.clone()).unwrap();
    let child = copy(&[]);
    let options = CreateOptions::child_of(&below()).unwrap().reproducible(3);
    options.block_size(2 << 20).create_storage(&*child).unwrap();
    let writable = OpenOptions::new().write(true).reproducible(4);
    let mut image = writable.open_child(child.clone(), below()).unwrap();
    image.resize(SIZE, vhdxkit::Shrink::ZerosOnly).unwrap();
    image.write_at(512, &[2; 512]).unwrap();
    image.write_zeroes(2 * MIB..3 * MIB).unwrap();
    image.write_at(4 * MIB, &vec![3; 2 << 20]).unwrap();
    image.write_at(6 * MIB, &[4; 4096]).unwrap();
    image.discard(6 * MIB..SIZE).unwrap();
    image.set_disk_id(vhdxkit::format::Guid::from_u128(77)).unwrap();
    // Left dirty: a merge replays it.
    image.flush().unwrap();
    drop(image);
    (bytes(&parent), bytes(&child))
}

fn require_sound(file: &Arc<MemoryStorage>, what: &str) {
    let findings = vhdxkit::ops::check::check(file.clone(), &mut ()).unwrap();
    let bad = findings.list().iter().find(|finding| finding.severity() > Severity::Info);
    assert!(bad.is_none(), "{what}: {bad:?}");
}

/// Whether the fault was reached.
fn fails_at(pair: &(Vec<u8>, Vec<u8>), expected: &[u8], at: usize, fault: Fault) -> bool {
    let (parent, child) = (copy(&pair.0), copy(&pair.1));
    let calls = Arc::new(AtomicUsize::new(0));
    let failing = |file: &Arc<MemoryStorage>| {
        let (file, calls) = (file.clone(), calls.clone());
        Arc::new(Failing { file, calls, at, fault })
    };
    let merged = merge_storages(failing(&child), failing(&parent), None, Some(5));
    let what = format!("{fault:?} at call {at}");
    if merged.is_err() {
        assert!(shown(&over(&child, &parent)) == expected, "{what}: the child has changed");
        merge_storages(child.clone(), parent.clone(), None, Some(6))
            .unwrap_or_else(|error| panic!("{what}, merged again: {error}"));
    }
    let alone = OpenOptions::new().open_storage(parent.clone()).unwrap();
    assert!(shown(&alone) == expected, "{what}: the parent alone");
    assert!(shown(&over(&child, &parent)) == expected, "{what}: the child, after the merge");
    drop(alone);
    require_sound(&parent, &what);
    require_sound(&child, &what);
    match fault {
        Fault::Once => at < calls.load(Ordering::Relaxed),
        Fault::Full => merged.is_err(),
    }
}

#[test]
fn a_fault_at_any_call_of_a_merge_leaves_both_files_good() {
    let pair = pair();
    let expected = shown(&over(&copy(&pair.1), &copy(&pair.0)));
    assert_eq!(expected.len() as u64, SIZE);
    let mut sites = 0;
    while fails_at(&pair, &expected, sites, Fault::Once) {
        sites += 1;
    }
    println!("{sites} calls failed once");
    assert!(sites > 60, "{sites}");
}

#[test]
fn a_merge_that_runs_out_of_space_leaves_both_files_good() {
    let pair = pair();
    let expected = shown(&over(&copy(&pair.1), &copy(&pair.0)));
    let mut full = 0;
    for at in 0.. {
        match fails_at(&pair, &expected, at, Fault::Full) {
            true => full += 1,
            // Nothing takes new space from here on.
            false => break,
        }
    }
    println!("full at {full} calls");
    assert!(full > 10, "{full}");
}
