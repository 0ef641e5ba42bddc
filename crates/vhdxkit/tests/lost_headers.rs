//! The header that named the log is lost, and with it, for most programs, all that was flushed and is not in place.

use std::sync::Arc;

use vhdxkit::format::MIB;
use vhdxkit::log::replay_in_place;
use vhdxkit::ops::check::check;
use vhdxkit::ops::repair::{RepairOptions, plan};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{OpenOptions, PendingReplay};

/// A disk whose writer was killed after so many flushes, each of a block of its own or, from the 48th on, of the
/// same again; and how often each block was written.
fn killed_after(flushes: u32) -> (Vec<u8>, Vec<u8>) {
    let memory = Arc::new(MemoryStorage::default());
    let file: Arc<dyn Storage> = memory.clone();
    let options = vhdxkit::CreateOptions::new(64 * MIB).block_size(1 << 20);
    options.create_storage(&*file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(Arc::clone(&file)).unwrap();
    let mut written = vec![0u8; 64];
    for flush in 0..flushes {
        let block = flush as usize % 64;
        // Placed once and trimmed the next time, so that every flush changes the table.
        if written[block].is_multiple_of(2) {
            image.write_at(block as u64 * MIB, &[written[block] + 1; 512]).unwrap();
        } else {
            image.discard(block as u64 * MIB..(block as u64 + 1) * MIB).unwrap();
        }
        written[block] += 1;
        image.flush().unwrap();
    }
    drop(image);
    (memory.to_vec(), written)
}

fn shows(file: &Arc<dyn Storage>, written: &[u8], write: bool) {
    let image = OpenOptions::new().write(write).open_storage(Arc::clone(file)).unwrap();
    let mut byte = [0];
    for (block, times) in written.iter().enumerate() {
        image.read_at(block as u64 * MIB, &mut byte).unwrap();
        let expected = if times.is_multiple_of(2) { 0 } else { *times };
        assert_eq!(byte, [expected], "block {block}, written {times} times");
    }
    if write {
        image.write_at(63 * MIB, &[0x55; 512]).unwrap();
        image.close().unwrap();
    }
}

/// A guest has flushed once, a few times, or so often that the log has begun anew; the writer is killed, and the
/// sector with the newest header is lost. What was flushed is there for readers, for the next writer, and after a repair.
#[test]
fn what_was_flushed_outlives_the_header_that_named_its_log() {
    for flushes in [1, 2, 5, 60, 300, 700] {
        let (bytes, written) = killed_after(flushes);
        let newest = HeaderPair::inspect(&MemoryStorage::new(bytes.clone())).unwrap();
        assert!(newest.is_dirty());
        let at = 0x1_0000 + newest.current_copy() * 0x1_0000;
        let all_of_it = |bytes: &mut [u8]| bytes[at..at + 4096].fill(0xEE);
        let zeros = |bytes: &mut [u8]| bytes[at..at + 4096].fill(0);
        let one_bit_of_its_session = |bytes: &mut [u8]| bytes[at + 0x18] ^= 4;
        let its_log = |bytes: &mut [u8]| bytes[at + 0x30..at + 0x40].fill(0);
        // The writer was killed when all of it had been put in place, and before it could say so.
        let with_all_in_place = |bytes: &mut [u8]| {
            let file = MemoryStorage::new(bytes.to_vec());
            replay_in_place(&file).unwrap().unwrap();
            let headers = bytes[0x1_0000..0x3_0000].to_vec();
            bytes.copy_from_slice(&file.to_vec()[..bytes.len()]);
            bytes[0x1_0000..0x3_0000].copy_from_slice(&headers);
            bytes[at..at + 4096].fill(0xEE);
        };
        type Damage<'a> = &'a dyn Fn(&mut [u8]);
        let damages: [Damage; 5] =
            [&all_of_it, &zeros, &one_bit_of_its_session, &its_log, &with_all_in_place];
        for (number, damage) in damages.iter().enumerate() {
            let mut lost = bytes.clone();
            damage(&mut lost);
            let file = || -> Arc<dyn Storage> { Arc::new(MemoryStorage::new(lost.clone())) };
            let findings = check(file(), &mut ()).unwrap();
            let codes: Vec<_> = findings.list().iter().map(|found| found.code()).collect();
            assert!(codes.contains(&"I-DIRTY"), "{flushes} flushes, damage {number}: {codes:?}");
            shows(&file(), &written, false);
            let writer = file();
            shows(&writer, &written, true);
            let repaired = file();
            let thought = plan(Arc::clone(&repaired), &RepairOptions::default(), &mut ()).unwrap();
            thought.carry_out(&*repaired, &mut ()).unwrap();
            let left = check(Arc::clone(&repaired), &mut ()).unwrap();
            assert!(!left.has_problems(), "{:?}", left.list());
            shows(&repaired, &written, false);
        }
    }
}

/// The power failed before the second copy had named the log, and the first one is lost: the entries say whose they
/// are.
#[test]
fn what_was_flushed_is_found_without_any_header_that_names_it() {
    for flushes in [2, 60, 300, 700] {
        let (mut bytes, written) = killed_after(flushes);
        let newest = HeaderPair::inspect(&MemoryStorage::new(bytes.clone())).unwrap();
        let at = |copy: usize| 0x1_0000 + copy * 0x1_0000;
        let (lost, left) = (newest.current_copy(), 1 - newest.current_copy());
        bytes[at(left) + 0x30..at(left) + 0x40].fill(0);
        vhdxkit_testkit::reseal_header(&mut bytes, left);
        bytes[at(lost)..at(lost) + 4096].fill(0xEE);
        let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes.clone()));
        let findings = check(Arc::clone(&file), &mut ()).unwrap();
        assert!(findings.list().iter().any(|found| found.code() == "I-LOGFOUND"), "{flushes}");
        // Replayed by itself, for another program to open.
        let replayed: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
        let pending = PendingReplay::read(&replayed).unwrap();
        assert!(pending.was_found());
        pending.carry_out(&*replayed).unwrap().unwrap();
        assert!(!HeaderPair::inspect(&*replayed).unwrap().is_dirty());
        shows(&replayed, &written, false);
        shows(&file, &written, true);
    }
}

/// After a clean close nothing is found, whichever copy is lost, and the disk shows what it showed.
#[test]
fn a_closed_disk_that_loses_a_header_replays_nothing() {
    for flushes in [1, 5, 300] {
        let (bytes, mut written) = killed_after(flushes);
        let memory = Arc::new(MemoryStorage::new(bytes));
        let file: Arc<dyn Storage> = memory.clone();
        shows(&file, &written, true);
        written[63] = 0x55;
        let bytes = memory.to_vec();
        for copy in 0..2 {
            let mut lost = bytes.clone();
            lost[0x1_0000 + copy * 0x1_0000..][..4096].fill(0xEE);
            let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new(lost));
            let findings = check(Arc::clone(&file), &mut ()).unwrap();
            let codes: Vec<_> = findings.list().iter().map(|found| found.code()).collect();
            assert!(!codes.contains(&"I-LOGFOUND") && !codes.contains(&"W-LOGORPHAN"), "{codes:?}");
            shows(&file, &written, false);
        }
    }
}
