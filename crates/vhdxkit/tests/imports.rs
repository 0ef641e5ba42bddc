//! Any disk becomes a VHDX that shows the same bytes, and costs no more than it holds.

mod common;

use std::path::Path;

use vhdxkit::ops::check::check_file;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::ops::import::{options_for, to_vhdx};
use vhdxkit::ops::measure::measure;
use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions};

const MIB: u64 = 1 << 20;

fn file(path: &Path) -> FileStorage {
    let options = std::fs::File::options().read(true).write(true).create(true).clone();
    FileStorage::from_file(options.open(path).unwrap())
}

fn raw_disk(path: &Path, size: u64) {
    let raw = file(path);
    raw.set_len(size).unwrap();
    for (at, value) in [(0u64, 1u8), (MIB - 512, 2), (5 * MIB + 4096, 3), (size - 512, 4)] {
        raw.write_at(at, &[value; 512]).unwrap();
    }
    // Zeros that are stored, and data in small pieces.
    raw.write_at(8 * MIB, &vec![0; 3 << 20]).unwrap();
    for piece in 0..40 {
        raw.write_at(12 * MIB + piece * 20_000, &[piece as u8 + 1; 700]).unwrap();
    }
}

fn open(path: &Path, format: DiskFormat) -> Disk {
    Disk::open(path, Some(format), false).unwrap()
}

fn require_same(a: &Disk, b: &Disk, what: &str) {
    let result = compare(a, b, &mut ()).unwrap();
    assert!(result.identical(), "{what}: {result:?}");
}

fn sound(path: &Path) {
    let findings = check_file(path, false, &mut ()).unwrap();
    assert!(!findings.has_problems(), "{findings:?}");
    if let Some(linter) = common::shared("tools/vhdxlint.py") {
        common::run("python3", &[linter.to_str().unwrap(), path.to_str().unwrap()]);
    }
    if common::have("qemu-img") {
        let image = Image::open(path).unwrap();
        if image.geometry().logical_sector_size() == 512 {
            common::run("qemu-img", &["check", "-q", "-f", "vhdx", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn raw_becomes_vhdx_with_every_block_and_sector_size() {
    let dir = tempfile::tempdir().unwrap();
    for (number, size) in [20 * MIB, 33 * MIB + 4096, 5 << 30].into_iter().enumerate() {
        let raw = dir.path().join(format!("{number}.raw"));
        raw_disk(&raw, size);
        let source = open(&raw, DiskFormat::Raw);
        for shift in 0..9u32 {
            for sector in [512, 4096] {
                let fixed = shift % 3 == 1 && size < 100 * MIB;
                let what = format!("{size} bytes, blocks of {} MiB, {sector}, {fixed}", 1 << shift);
                let target = dir.path().join("copy.vhdx");
                let options = options_for(&source)
                    .block_size(1 << 20 << shift)
                    .logical_sector_size(sector)
                    .fixed(fixed);
                let storage = file(&target);
                let report = to_vhdx(&source, &storage, &options, &mut ()).unwrap();
                drop(storage);
                assert!(report.read < 7 * MIB, "{what}: holes were read: {report:?}");
                assert!(report.written < 2 * MIB, "{what}: zeros were written: {report:?}");
                assert_eq!(std::fs::metadata(&target).unwrap().len(), report.file_size);
                let measured = measure(&options, Some(&source)).unwrap();
                assert!(measured.required >= report.file_size, "{what}: {measured:?}");
                let copy = open(&target, DiskFormat::Vhdx);
                require_same(&source, &copy, &what);
                drop(copy);
                sound(&target);
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}

#[test]
fn vhdx_becomes_another_vhdx_and_can_be_written_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first.vhdx");
    CreateOptions::new(600 * MIB).block_size(1 << 20).create(&first).unwrap();
    let image = OpenOptions::new().write(true).open(&first).unwrap();
    for block in [0, 7, 8, 300, 599] {
        image.write_at(block * MIB + 512, &[block as u8 + 1; 4096]).unwrap();
    }
    image.discard(7 * MIB..8 * MIB).unwrap();
    image.flush().unwrap();
    // Left dirty: the copy shows what a replay would.
    drop(image);
    let before = std::fs::read(&first).unwrap();
    let source = open(&first, DiskFormat::Vhdx);
    for (shift, fixed) in [(5, false), (3, true), (0, false), (8, false)] {
        let target = dir.path().join(format!("copy{shift}.vhdx"));
        let options = options_for(&source).block_size(1 << 20 << shift).fixed(fixed);
        to_vhdx(&source, &file(&target), &options, &mut ()).unwrap();
        require_same(&source, &open(&target, DiskFormat::Vhdx), &format!("{shift} {fixed}"));
        sound(&target);
        let image = OpenOptions::new().write(true).open(&target).unwrap();
        image.write_at(599 * MIB, &[9; 512]).unwrap();
        image.close().unwrap();
        drop(image);
        sound(&target);
    }
    assert!(std::fs::read(&first).unwrap() == before, "the source was changed");
}

#[test]
fn what_a_stopped_copy_leaves_is_no_image() {
    struct Stop(u64);
    impl vhdxkit::ops::Progress for Stop {
        fn advance(&mut self, bytes: u64) -> std::ops::ControlFlow<()> {
            self.0 = self.0.saturating_sub(bytes);
            if self.0 == 0 {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    raw_disk(&raw, 20 * MIB);
    let source = open(&raw, DiskFormat::Raw);
    let target = MemoryStorage::empty();
    let error = to_vhdx(&source, &target, &options_for(&source), &mut Stop(MIB)).unwrap_err();
    assert_eq!(error.kind(), vhdxkit::ErrorKind::Cancelled);
    let left = OpenOptions::new().open_storage(std::sync::Arc::new(target)).unwrap_err();
    assert_eq!(left.kind(), vhdxkit::ErrorKind::NotVhdx);
}

#[test]
fn impossible_copies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    raw_disk(&raw, 20 * MIB);
    let source = open(&raw, DiskFormat::Raw);
    let small = CreateOptions::new(19 * MIB);
    assert!(to_vhdx(&source, &MemoryStorage::empty(), &small, &mut ()).is_err());
    let odd = options_for(&source).block_size(3 << 20);
    assert!(to_vhdx(&source, &MemoryStorage::empty(), &odd, &mut ()).is_err());
    let full = MemoryStorage::new(vec![1; 10]);
    assert!(to_vhdx(&source, &full, &options_for(&source), &mut ()).is_err());
    assert_eq!(full.to_vec(), [1; 10]);
    let _ = OpenMode::ReadWrite;
}
