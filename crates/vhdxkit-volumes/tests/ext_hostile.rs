//! ext2, ext3 and ext4 that are damaged, or made to mislead: an error, but never a block that was in use.

mod common;

use std::ops::Range;
use std::path::PathBuf;

use common::ext::{compare, fill, made, tools};
use common::{Changed, FileDisk, Mounted, can_mount, no_flipped_bit_frees_anything, sh, survey_of};
use vhdxkit_volumes::{Disk, Survey, Trouble};

/// No single bit of what is read frees a block, not even where no checksum covers it.
#[test]
fn no_flipped_bit_frees_a_block() {
    if !tools() || !can_mount() {
        return;
    }
    for options in ["-t ext2 -b 1024", "-t ext2 -b 4096 -g 1024", "-t ext4 -b 1024 -O mmp -g 2048"]
    {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "24M", options);
        fill(Mounted::new(&image).path());
        let noticed = no_flipped_bit_frees_anything(&image, 20_000);
        eprintln!("{options}: {noticed} flips noticed");
        assert!(noticed > 1000, "{options}: {noticed}");
    }
}

/// A base without checksums, so that hostile numbers get as far as they can: four groups of 2 MiB.
fn plain(dir: &tempfile::TempDir) -> PathBuf {
    made(dir, "8M", "-t ext2 -b 1024 -g 2048 -O ^resize_inode")
}

fn hostile(base: &dyn Disk, story: &str, changes: Vec<(u64, Vec<u8>)>) {
    let changed = Changed::new(base, changes);
    match changed.survey() {
        Err(Trouble::Damaged(_) | Trouble::NotKnown(_)) => {}
        other => panic!("{story}: {other:?}"),
    }
    assert!(changed.bytes_read() < 1 << 20, "{story}");
}

#[test]
fn hostile_numbers_are_errors() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = FileDisk::open(&plain(&dir));
    let sb = |at: u64, value: u32| (1024 + at, value.to_le_bytes().to_vec());
    for (name, at, values) in [
        ("inodes", 0, &[0, 1, u32::MAX][..]),
        ("blocks", 4, &[0, 1, 1 << 20, u32::MAX]),
        ("free blocks", 12, &[0, u32::MAX]),
        ("first block", 20, &[0, 2, 8191, u32::MAX]),
        ("block size", 24, &[1, 6, 7, 32, u32::MAX]),
        ("blocks in a group", 32, &[0, 1, 8, 2047, 4096, 1 << 31, u32::MAX]),
        ("inodes in a group", 40, &[0, 1, u32::MAX]),
        ("inode size", 88, &[0, 64, 129, 0xFFFF]),
    ] {
        for value in values {
            hostile(&base, &format!("{name}: {value}"), vec![sb(at, *value)]);
        }
    }
    // So many groups that their number times that of inodes overflows.
    let all = [(4, u32::MAX), (336, u32::MAX), (96, 0x82), (254, 64), (32, 256), (0, 0)];
    hostile(&base, "2^56 groups", all.map(|(at, value)| sb(at, value)).to_vec());
    // The descriptors are in block 2; those of group 1 begin at byte 32.
    let descriptor = |at: u64, value: u32| (2048 + 32 + at, value.to_le_bytes().to_vec());
    let first = |at: u64| {
        let mut raw = [0; 4];
        base.read_at(2048 + at, &mut raw).unwrap();
        u32::from_le_bytes(raw)
    };
    for (name, at) in [("block bitmap", 0), ("inode bitmap", 4), ("inode table", 8)] {
        for value in [0, 1, 2, first(at), 8191, 8192, u32::MAX] {
            hostile(&base, &format!("{name} at {value}"), vec![descriptor(at, value)]);
            // With flex_bg it may lie anywhere, but not outside, nor where other metadata is.
            let outside = matches!(value, 0 | 8192 | u32::MAX) || value == first(at) || value <= 2;
            if outside {
                let flex = vec![sb(96, 0x202), descriptor(at, value)];
                hostile(&base, &format!("{name} at {value}, flex_bg"), flex);
            }
        }
    }
    hostile(&base, "free count", vec![descriptor(12, 7)]);
    hostile(&base, "no bitmap, and no checksums", vec![descriptor(18, 2)]);
    hostile(&base, "meta block groups", vec![sb(96, 0x12), sb(260, 9)]);
    // A bitmap that gives away the inode table and keeps as many others: the count agrees.
    let (bitmap, table) = (u64::from(first(0)) * 1024, u64::from(first(8)));
    let mut raw = [0; 256];
    base.read_at(bitmap, &mut raw).unwrap();
    let bit = (table - 1) as usize;
    raw[bit / 8] &= !(1 << (bit % 8));
    let free = raw.iter().rposition(|byte| *byte == 0).unwrap();
    raw[free] |= 1;
    hostile(&base, "the inode table is free", vec![(bitmap, raw.to_vec())]);
    // Cut off in the middle.
    let half = Window(&base, 4 << 20);
    hostile(&half, "half of it", Vec::new());
}

/// CRC-32C as ext4 chains it.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// `length` bytes at `at`, changed at `places`; then `checksum` makes what is at the place it gives.
fn rewritten(
    base: &dyn Disk,
    (at, length): (u64, usize),
    places: &[(usize, &[u8])],
    checksum: impl Fn(&mut [u8]),
) -> (u64, Vec<u8>) {
    let mut raw = vec![0; length];
    base.read_at(at, &mut raw).unwrap();
    for (place, bytes) in places {
        raw[*place..place + bytes.len()].copy_from_slice(bytes);
    }
    checksum(&mut raw);
    (at, raw)
}

fn superblock(base: &dyn Disk, places: &[(usize, &[u8])]) -> (u64, Vec<u8>) {
    rewritten(base, (1024, 1024), places, |raw| {
        let found = crc(u32::MAX, &raw[..1020]);
        raw[1020..].copy_from_slice(&found.to_le_bytes());
    })
}

/// A descriptor of 64 bytes, with blocks of 4 KiB.
fn descriptor(base: &dyn Disk, group: u32, places: &[(usize, &[u8])]) -> (u64, Vec<u8>) {
    let mut uuid = [0; 16];
    base.read_at(1024 + 104, &mut uuid).unwrap();
    rewritten(base, (4096 + u64::from(group) * 64, 64), places, |raw| {
        raw[30..32].fill(0);
        let found = crc(crc(crc(u32::MAX, &uuid), &group.to_le_bytes()), raw);
        raw[30..32].copy_from_slice(&found.to_le_bytes()[..2]);
    })
}

/// A group without a bitmap keeps what other groups have put there, though no `mke2fs` puts it so.
#[test]
fn a_group_without_a_bitmap_keeps_metadata_of_other_groups() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "700M", "-t ext4 -b 4096");
    compare(&image, "as made");
    let base = FileDisk::open(&image);
    let text = sh(&format!("dumpe2fs {} 2>/dev/null", image.display()));
    assert!(text.contains("Group 4: (Blocks 131072-163839)"));
    assert!(text.contains("\n  32768 free blocks"), "group 4 is all free");
    let moved = descriptor(&base, 3, &[(4, &131_077u32.to_le_bytes())]);
    let found = Changed::new(&base, vec![moved.clone()]).survey();
    assert!(matches!(found, Err(Trouble::Damaged(why)) if why.contains("group 4")));
    let counted = descriptor(&base, 4, &[(12, &32_767u16.to_le_bytes())]);
    let found = Changed::new(&base, vec![moved.clone(), counted.clone()]).survey();
    assert!(matches!(found, Err(Trouble::Damaged(why)) if why.contains("superblock")));
    let whole = survey_of(&image).unwrap().free;
    let free = u32::try_from(whole.bytes() / 4096 - 1).unwrap();
    let summed = superblock(&base, &[(12, &free.to_le_bytes())]);
    let found = Changed::new(&base, vec![moved, counted, summed]).survey().unwrap();
    assert_eq!((found.unclean, found.free.bytes()), (None, whole.bytes() - 4096));
    let block = 131_077 * 4096;
    let holds = |range: &Range<u64>| range.contains(&block);
    assert!(whole.ranges().iter().any(holds) && !found.free.ranges().iter().any(holds));
}

/// A bitmap in which a used and a free block have changed places has the right count, and a wrong checksum.
#[test]
fn a_bitmap_with_the_right_count_is_not_believed_without_its_checksum() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "700M", "-t ext4 -b 4096");
    let base = FileDisk::open(&image);
    let mut place = [0; 4];
    base.read_at(4096, &mut place).unwrap();
    let place = u64::from(u32::from_le_bytes(place)) * 4096;
    let mut raw = vec![0; 4096];
    base.read_at(place, &mut raw).unwrap();
    // The last block in use is a directory's; the last block of all is free.
    let used = (0..4000).rev().find(|bit| raw[bit / 8] & 1 << (bit % 8) != 0).unwrap();
    assert_eq!(raw[4095], 0);
    raw[4095] = 0x80;
    raw[used / 8] &= !(1 << (used % 8));
    let found = Changed::new(&base, vec![(place, raw)]).survey();
    assert!(matches!(found, Err(Trouble::Damaged(why)) if why.contains("checksum")));
}

/// What checksums cover is not believed where they are wrong, even where nothing else would tell.
#[test]
fn wrong_checksums_are_errors() {
    if !tools() {
        return;
    }
    for options in ["-t ext4 -b 4096", "-t ext4 -b 4096 -O ^metadata_csum,uninit_bg"] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "700M", options);
        let base = FileDisk::open(&image);
        // The number of inodes that were never used, of group 1; a byte that only long descriptors have.
        for at in [28, 50] {
            let found = Changed::new(&base, vec![(4096 + 64 + at, vec![0xFF])]).survey();
            let why = |why: &str| why.contains("checksum of group 1's descriptor");
            assert!(matches!(&found, Err(Trouble::Damaged(found)) if why(found)), "{found:?}");
        }
        let label = Changed::new(&base, vec![(1024 + 120, b"x".to_vec())]).survey();
        assert_eq!(label.is_err(), !options.contains("^metadata_csum"), "{label:?}");
    }
}

/// The first bytes of a disk.
struct Window<'a>(&'a dyn Disk, u64);

impl Disk for Window<'_> {
    fn size(&self) -> u64 {
        self.1
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// However its metadata is changed: no panic, and no more is read than metadata can be.
#[test]
fn random_changes_end_in_a_survey_or_an_error() {
    if !tools() {
        return;
    }
    for options in [
        "-t ext2 -b 1024 -g 2048",
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,meta_bg,^resize_inode",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base = FileDisk::open(&made(&dir, "8M", options));
        let whole = Changed::new(&base, Vec::new());
        let free = whole.survey().unwrap().free;
        common::random_changes(&base, &whole.places_read(), |changed, found: Result<Survey, _>| {
            assert!(changed.bytes_read() < 4 << 20);
            if let Ok(found) = found {
                assert!(found.length <= base.size() && found.free.bytes() <= found.length);
            }
        });
        assert!(free.bytes() > 0);
    }
}
