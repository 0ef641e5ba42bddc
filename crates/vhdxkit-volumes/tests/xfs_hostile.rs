//! XFS that is damaged, or made to mislead: an error, or unclean, but never a block that was in use.

mod common;

use std::ops::Range;

use common::xfs::{compare, field, listed, made, tools, version_4};
use common::{Changed, FileDisk, no_flipped_bit_frees_anything, sh};
use vhdxkit_volumes::{Disk, Survey, Trouble};

/// A log without any record, and one whose only record is not what it should be.
#[test]
fn a_doubtful_log_is_not_clean() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096 -d agcount=1");
    compare(&image, "as made");
    let base = FileDisk::open(&image);
    let log = field(&image, "sb 0", "logstart") * 4096;
    let last = log + field(&image, "sb 0", "logblocks") * 4096 - 512;
    for (story, at, bytes) in [
        ("no cycle at the start", log, vec![0; 512]),
        ("another cycle", log + 4, vec![0, 0, 0, 9]),
        ("another cycle at the end", last, vec![0, 0, 0, 7]),
        ("a block behind the head was written", log + 2000 * 512, vec![0, 0, 0, 1]),
        ("a version that is not known", log + 8, vec![0, 0, 0, 3]),
        ("too long", log + 12, vec![0, 0, 4, 0]),
        ("length of all bits", log + 12, vec![0xFF; 4]),
        ("another place", log + 20, vec![0, 0, 0, 1]),
        ("two operations", log + 40, vec![0, 0, 0, 2]),
        ("another file system's", log + 304, vec![1; 16]),
        ("a checksum, and a wrong one", log + 32, vec![1, 2, 3, 4]),
        ("headers of all bits", log + 320, vec![0xFF; 4]),
        ("no unmount flag", log + 512 + 9, vec![0]),
        ("no unmount type", log + 512 + 12, vec![0x56]),
    ] {
        let changed = Changed::new(&base, vec![(at, bytes)]);
        assert!(changed.survey().unwrap().unclean.is_some(), "{story}");
    }
}

/// A disk whose superblock, changed like this, has a right checksum again.
fn with_superblock<'a>(base: &'a dyn Disk, at: usize, bytes: &[u8]) -> Changed<'a> {
    with_sector(base, 0, 224, at, bytes)
}

/// The same for any sector, with its checksum at `checksum`.
fn with_sector<'a>(
    base: &'a dyn Disk,
    sector: u64,
    checksum: usize,
    at: usize,
    bytes: &[u8],
) -> Changed<'a> {
    let mut raw = vec![0; 512];
    base.read_at(sector * 512, &mut raw).unwrap();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    raw[checksum..checksum + 4].fill(0);
    let crc = crc32c::crc32c(&raw);
    raw[checksum..checksum + 4].copy_from_slice(&crc.to_le_bytes());
    Changed::new(base, vec![(sector * 512, raw)])
}

#[test]
fn what_is_not_understood_is_refused() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096");
    let base = FileDisk::open(&image);
    assert_eq!(with_superblock(&base, 0, b"XFSB").survey().unwrap().unclean, None);
    let incompat = field(&image, "sb 0", "features_incompat") as u32;
    for (at, value, why) in [
        (216, incompat | 0x100, "metadir"),
        (216, incompat | 0x200, "zoned"),
        (216, incompat | 0x8000, "0x8000"),
        (212, 0x80, "0x80"),
        (200, 0x18A | 0x4000, "0x4000"),
        (100, 0xB4A6_0200, "version 6"),
    ] {
        match with_superblock(&base, at, &u32::to_be_bytes(value)).survey() {
            Err(Trouble::NotKnown(found)) => assert!(found.contains(why), "{found}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    let repair = with_superblock(&base, 216, &(incompat | 0x10).to_be_bytes()).survey();
    assert!(matches!(repair, Err(Trouble::Damaged(why)) if why.contains("xfs_repair")));
    let replay = with_superblock(&base, 220, &[0, 0, 0, 1]).survey().unwrap().unclean;
    assert!(replay.is_some(), "a feature of the log");
    assert!(Changed::new(&base, vec![(145, vec![9])]).survey().is_err(), "a wrong checksum");
}

/// What checksums cover is not believed where they are wrong, even where nothing else would tell; nor is a
/// block with a right one that belongs elsewhere.
#[test]
fn wrong_checksums_are_errors() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=1024");
    let base = FileDisk::open(&image);
    let root = |name| field(&image, "agf 0", name) * 1024;
    let (bno, cnt) = (root("bnoroot"), root("cntroot"));
    // Bytes that nobody looks at: behind the last record, in the spare part of a header, behind a list.
    for (story, at) in
        [("by place", bno + 1000), ("by size", cnt + 1000), ("header", 700), ("list", 2040)]
    {
        let mut byte = [0];
        base.read_at(at, &mut byte).unwrap();
        let found = Changed::new(&base, vec![(at, vec![!byte[0]])]).survey();
        assert!(
            matches!(&found, Err(Trouble::Damaged(why)) if why.contains("checksum")),
            "{story}: {found:?}"
        );
    }
    let second = field(&image, "sb 0", "agblocks") * 1024;
    for (story, at, length) in [("list", 1536, 512), ("tree", bno, 1024)] {
        let mut raw = vec![0; length];
        base.read_at(second + at, &mut raw).unwrap();
        let found = Changed::new(&base, vec![(at, raw)]).survey();
        assert!(
            matches!(&found, Err(Trouble::Damaged(why)) if why.contains("another")),
            "{story}: {found:?}"
        );
    }
}

fn hostile(story: &str, changed: &Changed<'_>) {
    match changed.survey() {
        Err(Trouble::Damaged(_) | Trouble::NotKnown(_)) => {}
        other => panic!("{story}: {other:?}"),
    }
    assert!(changed.bytes_read() < 6 << 20, "{story}: {}", changed.bytes_read());
}

/// Numbers that contradict each other, in the superblock and in the header of a group, checksums right.
#[test]
fn hostile_numbers_are_errors() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096 -d agcount=4");
    let base = FileDisk::open(&image);
    let all = [0xFF; 8];
    for (story, at, bytes) in [
        ("block size", 4, &[0, 0, 0, 0][..]),
        ("block size", 4, &[0, 0, 4, 0]),
        ("blocks", 8, &all),
        ("blocks", 8, &[0; 8]),
        ("blocks", 8, &[0, 0, 0, 0, 0, 2, 0, 0]),
        ("log start", 48, &all),
        ("log start", 48, &[0, 0, 0, 0, 0, 0, 0xFF, 0xFF]),
        ("root", 56, &all),
        ("blocks in a group", 84, &[0; 4]),
        ("blocks in a group", 84, &[0xFF; 4]),
        ("blocks in a group", 84, &[0, 0, 0, 1]),
        ("groups", 88, &[0; 4]),
        ("groups", 88, &[0xFF; 4]),
        ("groups", 88, &[0, 0, 0, 5]),
        ("log blocks", 96, &[0xFF; 4]),
        ("sector size", 102, &[0, 0]),
        ("inode size", 104, &[0, 0]),
        ("inodes in a block", 106, &[0, 1]),
        ("block log", 120, &[64]),
        ("sector log", 121, &[255]),
        ("inode log", 122, &[255]),
        ("inodes log", 123, &[255]),
        ("group log", 124, &[255]),
        ("group log", 124, &[0]),
        ("in progress", 126, &[1]),
        ("free blocks", 144, &[0; 8]),
        ("free blocks", 144, &all),
    ] {
        hostile(story, &with_superblock(&base, at, bytes));
    }
    for group in [0, 2] {
        let sector = group * field(&image, "sb 0", "agblocks") * 8 + 1;
        for (story, at, bytes) in [
            ("number", 8, &[0, 0, 0, 1][..]),
            ("length", 12, &[0xFF; 4]),
            ("length", 12, &[0; 4]),
            ("root", 16, &[0xFF; 4]),
            ("root", 16, &[0; 4]),
            ("root by size as that by place", 16, &[0, 0, 0, 2]),
            ("levels", 28, &[0; 4]),
            ("levels", 28, &[0, 0, 0, 2]),
            ("levels", 28, &[0, 0, 0, 255]),
            ("levels", 28, &[0xFF; 4]),
            ("levels by size", 32, &[0, 0, 0, 255]),
            ("free list's first", 40, &[0xFF; 4]),
            ("free list's last", 44, &[0, 0, 0, 119]),
            ("free list's count", 48, &[0xFF; 4]),
            ("free list's count", 48, &[0; 4]),
            ("free blocks", 52, &[0xFF; 4]),
            ("free blocks", 52, &[0; 4]),
            ("longest", 56, &[0, 0, 0, 1]),
            ("UUID", 64, &[1; 16]),
        ] {
            hostile(story, &with_sector(&base, sector, 216, at, bytes));
        }
    }
    let half = made(&dir, "330M", "-f -b size=4096");
    sh(&format!("truncate -s 100M {}", half.display()));
    let half = FileDisk::open(&half);
    hostile("half of it", &Changed::new(&half, Vec::new()));
}

/// Trees of version 4, where no checksum stands in the way: they name themselves, each other, what is in use.
#[test]
fn hostile_trees_end() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = version_4(&dir, "64M", "-b size=512 -d agcount=2");
    compare(&image, "64 MiB");
    let base = FileDisk::open(&image);
    for (tree, level, at) in [("bnoroot", "bnolevel", 28), ("cntroot", "cntlevel", 32)] {
        assert_eq!(field(&image, "agf 0", level), 2, "{level}");
        let root = field(&image, "agf 0", tree) as u32;
        let place = u64::from(root) * 512;
        let word = |at: u64| {
            let mut raw = [0; 4];
            base.read_at(at, &mut raw).unwrap();
            u32::from_be_bytes(raw)
        };
        // Keys from byte 16 on, room for (512 - 16) / 12 of them, then the pointers.
        let pointers = place + 16 + 41 * 8;
        let leaf = u64::from(word(pointers)) * 512;
        let (first, second) = (word(pointers), word(pointers + 4));
        let other = field(&image, "agf 0", if tree == "bnoroot" { "cntroot" } else { "bnoroot" });
        for (story, place, value) in [
            ("the root names itself", pointers, root),
            ("a leaf twice", pointers, second),
            ("a leaf twice", pointers + 4, first),
            ("the other tree", pointers, other as u32),
            ("a block outside", pointers + 4, u32::MAX),
            ("the first block", pointers, 0),
            ("another key", place + 16 + 8, 7),
            ("level 255, no records", place + 4, 0x00FF_0000),
            ("level 65535", place + 4, 0xFFFF_0002),
            ("too many records", place + 4, 0x0001_FFFF),
            ("no records", place + 4, 0x0001_0000),
            ("a neighbour of the root", place + 8, first),
            ("the root's right neighbour is the root", place + 12, root),
            ("a leaf's left neighbour", leaf + 8, second),
            ("a leaf's right neighbour", leaf + 12, first),
            ("a leaf with records of length 0", leaf + 20, 0),
            ("a leaf with records of all blocks", leaf + 20, u32::MAX),
            ("a leaf that frees the header", leaf + 16, 0),
            ("levels", 512 + at, 1),
            ("levels", 512 + at, 3),
            ("levels", 512 + at, 255),
        ] {
            let changed = Changed::new(&base, vec![(place, value.to_be_bytes().to_vec())]);
            hostile(&format!("{tree}: {story}"), &changed);
        }
        // A root that names itself and claims to be a level higher, in the header too.
        let changes = vec![
            (512 + at, vec![0, 0, 0, 3]),
            (place + 4, vec![0, 2]),
            (pointers, root.to_be_bytes().to_vec()),
        ];
        hostile(&format!("{tree}: a loop"), &Changed::new(&base, changes));
    }
}

/// Both trees agree that a block is free which is in use, and so do all counts: the log's, the root
/// directory's, one on the free list.
#[test]
fn what_is_surely_in_use_is_not_believed_to_be_free() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "64M", "-m crc=0 -b size=4096 -d agcount=1");
    compare(&image, "as made");
    let base = FileDisk::open(&image);
    let (bno, cnt) = (field(&image, "agf 0", "bnoroot"), field(&image, "agf 0", "cntroot"));
    let longest = field(&image, "agf 0", "longest");
    let (ranges, _) = listed(&image);
    let place = |range: &&Range<u64>| (range.end - range.start) / 4096 == longest;
    let start = ranges.iter().find(place).unwrap().start / 4096;
    // The longest extent moves to where it takes one of these in: same length, same counts.
    let log = field(&image, "sb 0", "logstart");
    let wanted = [(start as u32).to_be_bytes(), (longest as u32).to_be_bytes()].concat();
    let record = |block: u64| {
        let mut raw = [0; 4080];
        base.read_at(block * 4096 + 16, &mut raw).unwrap();
        let index = raw.chunks(8).position(|record| record == wanted).unwrap();
        block * 4096 + 16 + index as u64 * 8
    };
    let last = field(&image, "sb 0", "dblocks");
    for (story, to) in [
        ("the root's inodes", start - 1),
        ("the free list", start - 5),
        ("the log", log - 1),
        ("behind", last - longest + 1),
    ] {
        let bytes = (to as u32).to_be_bytes().to_vec();
        let changes = vec![(record(bno), bytes.clone()), (record(cnt), bytes)];
        let found = Changed::new(&base, changes).survey();
        assert!(matches!(found, Err(Trouble::Damaged(_))), "{story}: {found:?}");
    }
}

/// No single bit of what is read frees a block: in version 4 because everything is there twice.
#[test]
fn no_flipped_bit_frees_a_block() {
    if !tools() {
        return;
    }
    for options in ["-b size=512 -d agcount=2", "-b size=4096 -d agcount=2"] {
        let dir = tempfile::tempdir().unwrap();
        let image = version_4(&dir, "64M", options);
        let noticed = no_flipped_bit_frees_anything(&image, 1000);
        eprintln!("version 4, {options}: {noticed} flips noticed");
        assert!(noticed > 500);
    }
    let dir = tempfile::tempdir().unwrap();
    let noticed = no_flipped_bit_frees_anything(&made(&dir, "64M", "-b size=1024"), 1000);
    eprintln!("version 5: {noticed} flips noticed");
    assert!(noticed > 500);
}

/// However its metadata is changed: no panic, and no more is read than metadata can be.
#[test]
fn random_changes_end_in_a_survey_or_an_error() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = FileDisk::open(&version_4(&dir, "64M", "-b size=512 -d agcount=2"));
    let whole = Changed::new(&base, Vec::new());
    whole.survey().unwrap();
    common::random_changes(&base, &whole.places_read(), |changed, found: Result<Survey, _>| {
        assert!(changed.bytes_read() < 8 << 20);
        if let Ok(found) = found {
            assert!(found.length <= base.size() && found.free.bytes() <= found.length);
        }
    });
}
