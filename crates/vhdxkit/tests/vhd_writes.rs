//! Writing a VHD: what was written is read back, by us and by others, and whatever stops a writer leaves a
//! file that opens, with every sector old or new, and everything that was flushed.

mod common;
mod vhd;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::vhd::{Vhd, VhdOptions};
use vhdxkit::{ErrorKind, OpenOptions, ParentPolicy};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 3 * MIB + 1536;

fn for_writing(medium: Arc<dyn Storage>) -> Vhd {
    OpenOptions::new().write(true).open_vhd_storage(medium).unwrap()
}

fn whole(disk: &Vhd) -> Vec<u8> {
    let mut bytes = vec![0; disk.virtual_size() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Sectors from, sectors, byte.
fn writes() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
    prop::collection::vec((0..SIZE / 512, 1..2000u64, 1..=255u8), 1..12)
}

fn apply(disk: &Vhd, model: &mut [u8], writes: &[(u64, u64, u8)]) {
    for (first, count, byte) in writes {
        let (start, end) = (first * 512, ((first + count) * 512).min(SIZE));
        disk.write_at(start, &vec![*byte; (end - start) as usize]).unwrap();
        model[start as usize..end as usize].fill(*byte);
    }
    disk.flush().unwrap();
}

/// Bad options leave no empty file behind, and what exists stays.
#[test]
fn a_disk_that_cannot_be_made_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    for options in [VhdOptions::new(1000), VhdOptions::new(SIZE).block_size(4096)] {
        assert!(options.create(&path).is_err());
        assert!(!path.exists(), "{options:?}");
    }
    std::fs::write(&path, b"somebody's").unwrap();
    assert!(VhdOptions::new(SIZE).create(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_dynamic_disk_holds_what_was_written(writes in writes(), small in any::<bool>()) {
        let medium = Arc::new(MemoryStorage::empty());
        let block = if small { 512 << 10 } else { 2 << 20 };
        VhdOptions::new(SIZE).block_size(block).create_storage(&*medium).unwrap();
        let mut model = vec![0; SIZE as usize];
        let disk = for_writing(medium.clone());
        apply(&disk, &mut model, &writes);
        prop_assert!(whole(&disk) == model);
        drop(disk);
        prop_assert!(vhd::read(&[medium.to_vec()]) == model);
        // And again over what is there, by another writer.
        let disk = for_writing(medium.clone());
        apply(&disk, &mut model, &[(3, 5000, 0x77)]);
        prop_assert!(vhd::read(&[medium.to_vec()]) == model);
        prop_assert!(disk.remarks().is_empty());
    }

    /// Parent, child, grandchild: each written at random before the next is made.
    #[test]
    fn a_chain_shows_the_newest_sectors(
        layers in prop::collection::vec(writes(), 3),
        fixed in any::<bool>(),
        blocks in prop::collection::vec(prop::sample::select(vec![512u32 << 10, 1 << 20, 2 << 20]), 3),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = |number: usize| dir.path().join(format!("{number}.vhd"));
        let mut model = vec![0; SIZE as usize];
        for (number, writes) in layers.iter().enumerate() {
            let options = match number {
                0 => VhdOptions::new(SIZE).fixed(fixed),
                _ => VhdOptions::child_of(&Vhd::open(path(number - 1)).unwrap(), &path(number)).unwrap(),
            };
            options.block_size(blocks[number]).create(&path(number)).unwrap();
            let options = OpenOptions::new().write(true).parents(ParentPolicy::Follow);
            let disk = options.open_vhd(path(number)).unwrap();
            apply(&disk, &mut model, writes);
            prop_assert!(whole(&disk) == model);
        }
        let chain: Vec<Vec<u8>> = (0..3).rev().map(|n| std::fs::read(path(n)).unwrap()).collect();
        prop_assert!(vhd::read(&chain) == model, "by the tests' own reader");
        // By its runs as well: as a flat copy.
        let disk = OpenOptions::new().parents(ParentPolicy::Follow).open_vhd(path(2)).unwrap();
        let flat = MemoryStorage::empty();
        let options = VhdOptions::for_copy(SIZE, false);
        vhdxkit::ops::import_vhd::to_vhd(&disk, &flat, &options, &mut ()).unwrap();
        prop_assert!(vhd::read(&[flat.to_vec()]) == model, "as a flat copy");
    }
}

/// libvhdi reads our children as we do. It takes a byte of a bitmap for all ones from the first bit that is
/// set, up to its end, so that what it is given claims whole bytes of eight sectors.
#[test]
fn libvhdi_agrees_about_children() {
    let Some(python) = common::python_with_libvhdi() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    VhdOptions::new(SIZE).create(&path("p.vhd")).unwrap();
    let mut model = vec![0; SIZE as usize];
    let write = |name: &str, model: &mut Vec<u8>, writes: &[(u64, u64, u8)]| {
        let options = OpenOptions::new().write(true).parents(ParentPolicy::Follow);
        apply(&options.open_vhd(path(name)).unwrap(), model, writes);
    };
    write("p.vhd", &mut model, &[(0, 100, 1), (4090, 20, 2), (6140, 7, 3)]);
    let parent = Vhd::open(path("p.vhd")).unwrap();
    VhdOptions::child_of(&parent, &path("c.vhd")).unwrap().create(&path("c.vhd")).unwrap();
    write("c.vhd", &mut model, &[(8, 16, 9), (48, 8, 8), (4088, 16, 7), (2000, 24, 6)]);
    let chain = [path("p.vhd"), path("c.vhd")];
    let chain: Vec<&Path> = chain.iter().map(|path| path.as_path()).collect();
    let theirs = common::by_libvhdi(python, &chain, &path("out")).unwrap();
    assert!(theirs == model);
    let info = common::run("vhdiinfo", &[path("c.vhd").to_str().unwrap()]);
    assert!(info.contains("Differential"), "{info}");
    assert!(info.contains(&parent.unique_id().to_string()), "{info}");
}

/// What QEMU wrote we write on, and QEMU reads it.
#[test]
fn qemu_and_we_write_the_same_file_in_turns() {
    if !common::have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("d.vhd"), dir.path().join("d.raw"));
    let (name, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    VhdOptions::new(SIZE).create(&path).unwrap();
    let mut model = vec![0; SIZE as usize];
    for turn in 0..3u64 {
        let disk = OpenOptions::new().write(true).open_vhd(&path).unwrap();
        apply(&disk, &mut model, &[(turn * 1500, 40, turn as u8 + 1)]);
        drop(disk);
        let at = (turn * 1500 + 20) * 512;
        let pattern = format!("write -P {} {at} 64k", turn + 0x40);
        common::run("qemu-io", &["-f", "vpc", "-c", &pattern, name]);
        model[at as usize..at as usize + 65536].fill(turn as u8 + 0x40);
        common::run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", name, raw]);
        assert!(std::fs::read(raw).unwrap() == model, "turn {turn}");
        assert!(whole(&Vhd::open(&path).unwrap()) == model, "turn {turn}");
    }
}

#[test]
fn what_must_not_be_written_is_refused() {
    let medium = Arc::new(MemoryStorage::empty());
    VhdOptions::new(4 * MIB).block_size(1 << 20).create_storage(&*medium).unwrap();
    let disk = for_writing(medium.clone());
    disk.write_at(0, &[1; 512]).unwrap();
    disk.write_at(MIB, &[1; 512]).unwrap();
    for (at, length) in [(7, 512), (0, 7), (4 * MIB, 512), (u64::MAX - 511, 512)] {
        disk.write_at(at, &vec![1; length]).unwrap_err();
    }
    let reader = OpenOptions::new().open_vhd_storage(medium.clone()).unwrap();
    assert_eq!(reader.write_at(0, &[1; 512]).unwrap_err().kind(), ErrorKind::InvalidInput);
    // Two blocks in one place: read, but not written.
    let mut file = medium.to_vec();
    file.copy_within(1536..1540, 1540);
    let twice = Arc::new(MemoryStorage::new(file));
    OpenOptions::new().open_vhd_storage(twice.clone()).unwrap();
    let error = OpenOptions::new().write(true).open_vhd_storage(twice).err().unwrap();
    assert!(error.to_string().contains("lie on each other"), "{error}");
}

#[derive(Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Punch(Range<u64>),
    SetLen(u64),
    Sync,
    /// The guest's flush has returned, and the disk held this.
    Flushed(Vec<u8>),
}

/// A medium that remembers the order of things.
struct Recorder {
    inner: MemoryStorage,
    ops: Mutex<Vec<Op>>,
}

impl Recorder {
    fn note(&self, op: Op) {
        self.ops.lock().unwrap().push(op);
    }
}

impl Storage for Recorder {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.note(Op::Write(offset, buf.to_vec()));
        self.inner.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.note(Op::Sync);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.note(Op::SetLen(length));
        self.inner.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.note(Op::Punch(range.clone()));
        self.inner.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

fn carry_out(file: &MemoryStorage, op: &Op, sectors: &mut dyn FnMut() -> bool) {
    match op {
        // Of a write that nobody waited for, any sector may be missing.
        Op::Write(at, bytes) => {
            let (mut at, mut rest) = (*at, &bytes[..]);
            while !rest.is_empty() {
                let now = rest.len().min((512 - at % 512) as usize);
                if sectors() {
                    file.write_at(at, &rest[..now]).unwrap();
                }
                (at, rest) = (at + now as u64, &rest[now..]);
            }
        }
        Op::Punch(range) => {
            if sectors() {
                file.punch(range.clone()).unwrap();
            }
        }
        Op::SetLen(length) => {
            if sectors() {
                file.set_len(*length).unwrap();
            }
        }
        Op::Sync | Op::Flushed(_) => {}
    }
}

/// Every point at which a writer can be stopped, and for each of them many choices of what of the unsynced
/// part had reached the medium.
#[test]
fn a_crash_leaves_every_sector_old_or_new() {
    for child in [false, true] {
        crash_everywhere(child);
    }
}

fn crash_everywhere(child: bool) {
    const SMALL: u64 = 2 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("p.vhd");
    VhdOptions::new(SMALL).block_size(512 << 10).create(&base).unwrap();
    OpenOptions::new()
        .write(true)
        .open_vhd(&base)
        .unwrap()
        .write_at(0, &vec![0x11; SMALL as usize])
        .unwrap();
    let options = match child {
        true => {
            VhdOptions::child_of(&Vhd::open(&base).unwrap(), &dir.path().join("c.vhd")).unwrap()
        }
        false => VhdOptions::new(SMALL),
    };
    let begin = MemoryStorage::empty();
    options.block_size(512 << 10).create_storage(&begin).unwrap();
    let begin = begin.to_vec();
    let medium =
        Arc::new(Recorder { inner: MemoryStorage::new(begin.clone()), ops: Mutex::default() });
    let open = |medium: Arc<dyn Storage>, write: bool| {
        let options = OpenOptions::new().write(write).parent(&base);
        options.open_vhd_storage(medium).unwrap()
    };
    let disk = open(medium.clone(), true);
    let first = if child { 0x11 } else { 0 };
    // For each sector everything it may be: what was flushed last, and what was written since.
    let mut random = 12345u64;
    let mut next = move || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        random >> 33
    };
    let mut model = vec![first; SMALL as usize];
    let mut written = Vec::new();
    medium.note(Op::Flushed(model.clone()));
    for number in 1..=14u64 {
        let start = next() % (SMALL / 512) * 512;
        let end = (start + (1 + next() % 300) * 512).min(SMALL);
        let byte = number as u8 + 0x20;
        disk.write_at(start, &vec![byte; (end - start) as usize]).unwrap();
        written.push((medium.ops.lock().unwrap().len(), start..end, byte));
        model[start as usize..end as usize].fill(byte);
        if number % 3 == 0 {
            disk.flush().unwrap();
            medium.note(Op::Flushed(model.clone()));
        }
    }
    drop(disk);
    let ops = medium.ops.lock().unwrap().clone();
    let mut states = 0;
    for stop in 0..=ops.len() {
        let synced = ops[..stop].iter().rposition(|op| matches!(op, Op::Sync)).unwrap_or(0);
        let flushed = ops[..stop].iter().rposition(|op| matches!(op, Op::Flushed(_)));
        let Some(flushed) = flushed else { continue };
        let Op::Flushed(old) = &ops[flushed] else { unreachable!() };
        for choice in 0..16 {
            let file = MemoryStorage::new(begin.clone());
            ops[..synced].iter().for_each(|op| carry_out(&file, op, &mut || true));
            // None of it, all of it, or some.
            let mut lucky = || match choice {
                0 => false,
                1 => true,
                _ => next() % 2 == 0,
            };
            ops[synced..stop].iter().for_each(|op| carry_out(&file, op, &mut lucky));
            let bytes = whole(&open(Arc::new(file), false));
            for (sector, found) in bytes.chunks(512).enumerate() {
                let at = sector as u64 * 512;
                let allowed = |byte: u8| {
                    let mut since = written
                        .iter()
                        .filter(|(done, range, _)| *done > flushed && range.contains(&at));
                    byte == old[at as usize] || since.any(|(_, _, new)| *new == byte)
                };
                let one = found.iter().all(|byte| *byte == found[0]);
                assert!(
                    one && allowed(found[0]),
                    "child {child}, stop {stop}, sector {sector}: {}",
                    found[0]
                );
            }
            states += 1;
        }
    }
    assert!(states > 600, "only {states} states");
}
