//! Any disk becomes a VHDX that shows the same bytes, and costs no more than it holds.

mod common;

use std::path::Path;

use vhdxkit::ops::check::check_file;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::ops::import::{options_for, to_vhdx};
use vhdxkit::ops::measure::measure;
use vhdxkit::storage::{FileStorage, MemoryStorage, Storage};
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
                // What is shared with the source, where the file system can do that, is not read.
                let most = if report.read > 0 { 2 } else { 7 };
                assert!(report.written < most * MIB, "{what}: zeros were written: {report:?}");
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
}

/// Between the smallest blocks and the largest, and back, on the largest disk: the work is that of the
/// data, not of the 64 TiB around it, and offsets beyond 32 bits arrive.
#[test]
fn the_largest_disk_is_copied_by_its_extents() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first.vhdx");
    let size = 64u64 << 40;
    CreateOptions::new(size).block_size(1 << 20).create(&first).unwrap();
    let image = OpenOptions::new().write(true).open(&first).unwrap();
    // The borders of 4 GiB and 2^32 sectors, of a chunk of small blocks, and both ends.
    for (at, value) in [(0, 1), (4 << 30, 2), ((2 << 40) - 512, 3), ((63 << 40) + 5 * MIB, 4)] {
        image.write_at(at, &[value; 1024]).unwrap();
    }
    image.write_at(size - 4096, &[5; 4096]).unwrap();
    image.close().unwrap();
    drop(image);
    let (large, small) = (dir.path().join("large.vhdx"), dir.path().join("small.vhdx"));
    for (from, to, block, sector) in
        [(&first, &large, 256 << 20, 4096), (&large, &small, 1 << 20, 512)]
    {
        let source = open(from, DiskFormat::Vhdx);
        let options = options_for(&source).block_size(block).logical_sector_size(sector);
        let report = to_vhdx(&source, &file(to), &options, &mut ()).unwrap();
        assert!(report.written <= 6 * 4096 || report.read == 0, "{report:?}");
        assert!(report.read < 10 * MIB, "{report:?}");
        require_same(&open(&first, DiskFormat::Vhdx), &open(to, DiskFormat::Vhdx), "copy");
        let findings = check_file(to, false, &mut ()).unwrap();
        assert!(!findings.has_problems(), "{findings:?}");
    }
}

/// Whatever shape a real disk is given, it shows what it showed, to us and to QEMU and 7-Zip.
#[test]
fn real_disks_keep_their_contents_in_every_shape() {
    for packed in [
        "iotest-dirtylog-10G-4M.vhdx.bz2",
        "test-disk2vhd.vhdx.bz2",
        "btrfs.vhdx.gz",
        "fixed.vhdx.gz",
        "dynamic.vhdx.gz",
        "fattools-base4k.vhdx.gz",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let Some(path) = common::unpack(packed, dir.path()) else { return };
        let source = open(&path, DiskFormat::Vhdx);
        let small = source.size() < 64 * MIB;
        for (block, fixed) in [(1 << 20, false), (64 << 20, false), (8 << 20, small)] {
            let _named = common::NamedOnFailure(format!("{packed}, {block}, {fixed}"));
            let target = dir.path().join("copy.vhdx");
            let options = options_for(&source).block_size(block).fixed(fixed);
            to_vhdx(&source, &file(&target), &options, &mut ()).unwrap();
            let copy = open(&target, DiskFormat::Vhdx);
            require_same(&source, &copy, "copy");
            require_same(&copy, &source, "copy");
            sound(&target);
            if small && let Some(program) = common::seven_zip() {
                let theirs = common::by_seven_zip(program, &target, dir.path());
                let mut bytes = vec![0; usize::try_from(source.size()).unwrap()];
                source.read_at(0, &mut bytes).unwrap();
                assert!(theirs == bytes, "7-Zip reads something else");
                std::fs::remove_dir_all(dir.path().join("out")).unwrap();
            }
            std::fs::remove_file(&target).unwrap();
        }
    }
}

/// Both programs convert a raw disk, and each one's image into its own format again: five files with
/// the same contents.
#[test]
fn copies_of_ours_and_of_qemu_are_the_same_disks() {
    if !common::have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    for (size, block, subformat) in [
        (3 * MIB, "1M", "dynamic"),
        (37 * MIB + 512, "2M", "fixed"),
        ((5 << 30) + 3 * 512, "32M", "dynamic"),
    ] {
        let _named = common::NamedOnFailure(format!("{size}, {block}, {subformat}"));
        let raw = path("disk.raw");
        raw_disk(&raw, size.max(14 * MIB));
        file(&raw).set_len(size).unwrap();
        let shape = format!("subformat={subformat},block_size={block}");
        let (theirs, ours) = (text("theirs.vhdx"), text("ours.vhdx"));
        let convert = ["convert", "-f", "raw", "-O", "vhdx", "-o", &shape];
        common::run("qemu-img", &[&convert[..], &[&text("disk.raw"), &theirs]].concat());
        // QEMU's image, taken over and given back.
        let source = open(&path("theirs.vhdx"), DiskFormat::Vhdx);
        to_vhdx(&source, &file(&path("ours.vhdx")), &options_for(&source), &mut ()).unwrap();
        sound(&path("ours.vhdx"));
        require_same(&open(&raw, DiskFormat::Raw), &open(&path("ours.vhdx"), DiskFormat::Vhdx), "");
        for (format, other) in [("raw", text("disk.raw")), ("vhdx", theirs.clone())] {
            common::run("qemu-img", &["compare", "-q", "-f", "vhdx", "-F", format, &ours, &other]);
        }
        let back = text("back.raw");
        common::run("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", &ours, &back]);
        require_same(&open(&raw, DiskFormat::Raw), &open(&path("back.raw"), DiskFormat::Raw), "");
        let info = common::run("qemu-img", &["info", "-f", "vhdx", "--output=json", &ours]);
        assert!(info.contains(&format!("\"virtual-size\": {size},")), "{info}");
        for name in ["disk.raw", "theirs.vhdx", "ours.vhdx", "back.raw"] {
            std::fs::remove_file(path(name)).unwrap();
        }
    }
}

/// What is reserved is reserved: no part of the file is left that a later write has to find space for.
#[test]
#[cfg(target_os = "linux")]
fn a_preallocated_copy_has_no_holes() {
    use std::os::linux::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    raw_disk(&raw, 20 * MIB);
    let source = open(&raw, DiskFormat::Raw);
    for fixed in [false, true] {
        let target = dir.path().join("copy.vhdx");
        let options = options_for(&source).block_size(2 << 20).fixed(fixed).preallocate(true);
        match to_vhdx(&source, &file(&target), &options, &mut ()) {
            Err(e) if e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::Unsupported) => {
                eprintln!("skipped: this file system cannot reserve space");
                return;
            }
            report => drop(report.unwrap()),
        }
        let meta = std::fs::metadata(&target).unwrap();
        assert!(meta.st_blocks() * 512 >= meta.len(), "fixed: {fixed}: the file is sparse");
        require_same(&source, &open(&target, DiskFormat::Vhdx), "copy");
        sound(&target);
        std::fs::remove_file(&target).unwrap();
    }
}
