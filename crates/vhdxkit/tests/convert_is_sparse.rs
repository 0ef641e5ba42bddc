//! A copy to raw is the guest's bytes and costs what the guest stored: nothing is read of blocks that
//! hold nothing, what is zero becomes a hole, and a block that cannot be read is named rather than
//! filled with zeros.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::Counting;
use vhdxkit::defect::Defect;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::ops::export::{Target, to_storage, to_stream};
use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode, Storage};
use vhdxkit::{ErrorKind, Image, OpenOptions};
use vhdxkit_testkit::{Contents, Image as Built, LogEntry};

const MIB: u64 = 1 << 20;

fn new_file(path: &Path) -> FileStorage {
    std::fs::File::create_new(path).unwrap();
    FileStorage::open(path, OpenMode::ReadWrite).unwrap()
}

fn raw(path: &Path) -> Disk {
    Disk::open(path, Some(DiskFormat::Raw), false).unwrap()
}

/// Both ways round: a comparison that only walks the data of its first disk misses what only the
/// second one has.
fn same(a: &Disk, b: &Disk) -> bool {
    let (there, back) = (compare(a, b, &mut ()).unwrap(), compare(b, a, &mut ()).unwrap());
    assert_eq!(there.first_difference, back.first_difference);
    assert_eq!((there.size_a, there.size_b), (back.size_b, back.size_a));
    assert_eq!(there.identical(), back.identical());
    there.identical()
}

/// Disks of every kind of block.
fn disks() -> Vec<(&'static str, Built)> {
    let mixed = Built::dynamic(9 * MIB + 1536)
        .block(7, Contents::Pattern(7))
        .block(1, Contents::Data(vec![1; 70_000]))
        .block(2, Contents::State(2, 0))
        .block(3, Contents::State(3, 0))
        .block(9, Contents::Pattern(9));
    let crashed = Built::dynamic(16 * MIB).block(0, Contents::Pattern(1));
    let session = crashed.session(1);
    let crashed = crashed
        .dirty(session)
        .log_entry(LogEntry::new().allocate(5, Contents::Pattern(5)))
        .log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)));
    vec![
        ("empty", Built::dynamic(5 * MIB)),
        ("mixed", mixed),
        ("crashed", crashed),
        ("fixed", Built::fixed(3 * MIB + 512).block(1, Contents::Pattern(4))),
        (
            "4096-byte sectors",
            Built::dynamic(5 * MIB).sectors(4096, 4096).block(4, Contents::Pattern(2)),
        ),
        (
            "large blocks",
            Built::dynamic(70 * MIB).block_size(32 << 20).block(2, Contents::Pattern(6)),
        ),
    ]
}

#[test]
fn a_copy_is_the_guests_bytes_whatever_the_target_held() {
    for (name, built) in disks() {
        let guest = built.expected_guest();
        let image = common::open(MemoryStorage::new(built.build_vec())).unwrap();

        let empty = MemoryStorage::default();
        to_storage(&image, &empty, Target::Empty, &mut ()).unwrap();
        assert!(empty.to_vec() == guest, "{name}: into an empty target");

        // A block device: longer than the disk, and full of something else.
        let used = MemoryStorage::new(vec![0xEE; guest.len() + 12_345]);
        to_storage(&image, &used, Target::InUse, &mut ()).unwrap();
        let used = used.to_vec();
        assert!(used[..guest.len()] == guest, "{name}: into a target in use");
        assert!(used[guest.len()..].iter().all(|&byte| byte == 0xEE), "{name}: beyond the disk");

        let mut stream = Vec::new();
        let report = to_stream(&image, &mut stream, &mut ()).unwrap();
        assert!(stream == guest, "{name}: into a stream");
        assert_eq!(report.written, guest.len() as u64, "{name}");
    }
}

#[test]
fn an_image_and_its_copy_are_identical_both_ways_until_a_byte_changes() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (name, built)) in disks().into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.raw"));
        let image = common::open(MemoryStorage::new(built.build_vec())).unwrap();
        let size = image.virtual_size();
        let file = new_file(&path);
        to_storage(&image, &file, Target::Empty, &mut ()).unwrap();
        drop(file);
        let ours = Disk::Vhdx(Box::new(image));
        assert!(same(&ours, &raw(&path)), "{name}");

        // At the ends, and in places that only one of the two stores.
        for at in [0, 2 * MIB + 511, size / 2, size - 1] {
            let mut byte = [0];
            ours.read_at(at, &mut byte).unwrap();
            let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
            file.write_at(at, &[byte[0] ^ 0x40]).unwrap();
            drop(file);
            let theirs = raw(&path);
            assert!(!same(&ours, &theirs), "{name}: byte {at} was missed");
            let result = compare(&theirs, &ours, &mut ()).unwrap();
            assert_eq!(result.first_difference, Some(at), "{name}");
            drop(theirs);
            let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
            file.write_at(at, &byte).unwrap();
        }

        let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
        file.set_len(size + 512).unwrap();
        drop(file);
        assert!(!same(&ours, &raw(&path)), "{name}: a longer disk is another disk");
    }
}

#[test]
fn an_empty_disk_of_100_gib_becomes_one_hole() {
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (dir.path().join("empty.vhdx"), dir.path().join("empty.raw"));
    Built::dynamic(100 << 30).build_file(&source);
    let mode = OpenMode::ReadOnly { force_share: false };
    let file = Arc::new(Counting::new(FileStorage::open(&source, mode).unwrap()));
    let image = OpenOptions::new().open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
    let target = new_file(&copy);
    let report = to_storage(&image, &target, Target::Empty, &mut ()).unwrap();
    assert_eq!((report.read, report.written), (0, 0));
    assert!(file.count() < 1 << 20, "{} bytes were read", file.count());
    assert_eq!(target.len().unwrap(), 100 << 30);
    assert_eq!(target.next_data(0).unwrap(), None, "the copy is not one hole");
    drop(target);
    assert_eq!(allocated(&copy), 0);
    assert!(same(&Disk::Vhdx(Box::new(image)), &raw(&copy)));
    assert!(file.count() < 1 << 20, "{} bytes were read to compare", file.count());
}

/// Blocks that are present and hold zeros are read, but take no space in the copy.
#[test]
fn stored_zeros_become_holes() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("zeros.raw");
    let mut contents = vec![0; MIB as usize];
    contents[512 << 10] = 1;
    let built = Built::fixed(8 * MIB).block(5, Contents::Data(contents));
    let image = common::open(MemoryStorage::new(built.build_vec())).unwrap();
    let target = new_file(&copy);
    let report = to_storage(&image, &target, Target::Empty, &mut ()).unwrap();
    assert_eq!(report.written, 4096, "only the unit that is not zero");
    drop(target);
    assert!(allocated(&copy) <= 64 << 10, "{} bytes", allocated(&copy));
    assert!(std::fs::read(&copy).unwrap() == built.expected_guest());
}

/// Bytes that a file takes on disk.
fn allocated(path: &Path) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
    #[cfg(not(unix))]
    return 0;
}

/// Never zeros in place of a block that cannot be read.
#[test]
fn a_damaged_block_fails_the_copy_and_is_named() {
    let sound = Built::dynamic(8 * MIB).block(0, Contents::Pattern(1));
    let beyond = 900 * MIB;
    let cases = [
        ("outside the file", Contents::State(6, beyond)),
        ("present nowhere", Contents::State(6, 0)),
        ("in a reserved state", Contents::State(4, 0)),
    ];
    for (name, contents) in cases {
        let built = sound.clone().block(5, contents);
        let image = common::open(MemoryStorage::new(built.build_vec())).unwrap();
        let target = MemoryStorage::default();
        let mut stream = Vec::new();
        let failures = [
            to_storage(&image, &target, Target::Empty, &mut ()).unwrap_err(),
            to_stream(&image, &mut stream, &mut ()).unwrap_err(),
        ];
        for error in failures {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
            let named = match error.defect() {
                Some(
                    Defect::BlockOutside { block, .. }
                    | Defect::BlockWithoutPlace { block, .. }
                    | Defect::BlockState { block, .. },
                ) => *block,
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(named, 5, "{name}");
            assert!(error.to_string().contains("block 5"), "{name}: {error}");
        }
        assert!(stream.len() as u64 <= 5 * MIB, "{name}: went on behind the damage");
        compare(&Disk::Vhdx(Box::new(image)), &disk_of(&sound), &mut ()).unwrap_err();
    }
}

/// A medium that fails in the middle of a block: the error names the place in the file.
#[test]
fn a_read_that_fails_fails_the_copy_and_the_comparison() {
    let built =
        Built::dynamic(8 * MIB).block(0, Contents::Pattern(1)).block(5, Contents::Pattern(5));
    let at = built.layout().blocks[&5] + (300 << 10);
    let bad = || {
        let file = MemoryStorage::new(built.build_vec());
        common::open(Counting::with_bad_spot(file, at..at + 1)).unwrap()
    };
    let mut stream = Vec::new();
    let failures = [
        to_storage(&bad(), &MemoryStorage::default(), Target::Empty, &mut ()).unwrap_err(),
        to_stream(&bad(), &mut stream, &mut ()).unwrap_err(),
        compare(&Disk::Vhdx(Box::new(bad())), &disk_of(&built), &mut ()).unwrap_err(),
        compare(&disk_of(&built), &Disk::Vhdx(Box::new(bad())), &mut ()).unwrap_err(),
    ];
    for error in failures {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.to_string().contains("file offset"), "{error}");
        assert!(error.io_error().is_some_and(|cause| cause.to_string() == "bad spot"), "{error}");
    }
    assert!(stream == built.expected_guest()[..stream.len()], "not the guest's bytes");
}

fn disk_of(built: &Built) -> Disk {
    let image: Image = common::open(MemoryStorage::new(built.build_vec())).unwrap();
    Disk::Vhdx(Box::new(image))
}
