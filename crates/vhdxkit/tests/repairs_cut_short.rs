//! Repairs that are stopped or fail on the way, and those of files with any damage at all: nothing is lost, nothing
//! gets worse, and the undo file restores every byte.

mod common;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::repairing::{MIB, block, everything};
use vhdxkit::defect::Severity;
use vhdxkit::ops::check::check;
use vhdxkit::ops::repair::{RepairOptions, Undo, plan};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit_testkit::faults::{repairable, sound};
use vhdxkit_testkit::patch::{put_u64, reseal_region_table};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{Contents, Image};

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
