//! ext2, ext3 and ext4 against e2fsprogs: what we call free is, block for block, what `dumpe2fs` lists.
//!
//! Every image is made by `mke2fs`, filled and emptied again through the kernel, and unmounted; the shapes
//! are those that change where free space is written down.

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    Changed, FileDisk, Mounted, can_mount, have, joined, no_flipped_bit_frees_anything, sh,
    survey_of,
};
use vhdxkit_volumes::{Disk, Survey, Trouble};

fn tools() -> bool {
    have("mke2fs") && have("dumpe2fs") && have("debugfs")
}

/// An image made by `mke2fs` with these options.
fn made(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
    let image = dir.path().join("ext.img");
    let path = image.display();
    sh(&format!("truncate -s {size} {path}; mke2fs -q -F {options} {path}"));
    image
}

/// Many small files, some with holes, of which every third goes again; and a directory of many names.
fn fill(at: &Path) {
    let (files, names) = (at.join("files"), at.join("names"));
    fs::create_dir(&files).unwrap();
    fs::create_dir(&names).unwrap();
    for n in 0..300 {
        fs::write(files.join(n.to_string()), vec![7; n * 977 % 50_000]).unwrap();
        fs::write(names.join(format!("a-name-that-takes-some-room-in-a-directory-{n}")), [])
            .unwrap();
    }
    fs::write(at.join("big"), vec![7; 1 << 20]).unwrap();
    sh(&format!("sync -f {}", at.display()));
    for n in (0..300).step_by(3) {
        fs::remove_file(files.join(n.to_string())).unwrap();
    }
    // Block maps, which have no extents, may have no punched holes either.
    sh(&format!("fallocate -p -o 100K -l 300K {}/big || true", at.display()));
}

/// The free bytes as `dumpe2fs` lists them.
fn listed(image: &Path) -> Vec<Range<u64>> {
    let text = sh(&format!("dumpe2fs {} 2>/dev/null", image.display()));
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim().parse::<u64>().unwrap())
    };
    let (block, blocks) = (number("Block size:").unwrap(), number("Block count:").unwrap());
    // `dumpe2fs` names the first block of each cluster of a range, and of its last one that first block.
    let cluster = number("Cluster size:").unwrap_or(block) / block;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let Some(list) = line.strip_prefix("  Free blocks: ") else { continue };
        for part in list.split(", ").filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let end = if cluster > 1 { (last / cluster + 1) * cluster } else { last + 1 };
            ranges.push(first * block..end.min(blocks) * block);
        }
    }
    joined(ranges)
}

/// What a shape promises: equal ranges, equal count, clean.
fn compare(image: &Path, story: &str) {
    let found = survey_of(image).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(found.unclean, None, "{story}");
    let expected = listed(image);
    assert!(!expected.is_empty(), "{story}: nothing is free");
    assert_eq!(found.free.ranges(), expected, "{story}");
    let text = sh(&format!("dumpe2fs -h {} 2>/dev/null", image.display()));
    let counted = text.lines().find_map(|line| line.strip_prefix("Free blocks:")).unwrap();
    let counted: u64 = counted.trim().parse().unwrap();
    let block = text.lines().find_map(|line| line.strip_prefix("Block size:")).unwrap();
    let block: u64 = block.trim().parse().unwrap();
    let short = found.unit - found.length % found.unit; // a last cluster that is not whole
    let bytes = counted * block;
    assert!(
        found.free.bytes() == bytes || found.free.bytes() + short == bytes,
        "{story}: {} and {bytes}",
        found.free.bytes()
    );
    let blkid = sh(&format!("blkid -p -s TYPE -o value {}", image.display()));
    assert_eq!(found.name, blkid.trim(), "{story}");
}

const SHAPES: &[(&str, &str)] = &[
    ("24M", "-t ext2 -b 1024"),
    ("100M", "-t ext2 -b 4096 -O ^sparse_super,^resize_inode"),
    ("60M", "-t ext2 -b 2048 -r 0"),
    ("100M", "-t ext3 -b 1024"),
    ("200M", "-t ext3 -b 4096 -g 4096 -L a-label"),
    ("100M", "-t ext4 -b 1024"),
    ("100M", "-t ext4 -b 2048 -O ^64bit"),
    ("700M", "-t ext4 -b 4096"),
    ("700M", "-t ext4 -b 4096 -O ^flex_bg"),
    ("700M", "-t ext4 -b 4096 -g 1024 -G 4"),
    ("300M", "-t ext4 -b 1024 -g 1024 -O meta_bg,^resize_inode"),
    ("300M", "-t ext4 -b 1024 -g 256 -O meta_bg,^resize_inode,^64bit,^flex_bg -N 4000"),
    ("300M", "-t ext4 -b 4096 -O bigalloc -C 65536"),
    ("200M", "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 8192"),
    ("199999K", "-t ext4 -b 1024 -O bigalloc,^has_journal,^resize_inode -C 16384"),
    ("300M", "-t ext4 -b 1024 -O sparse_super2"),
    ("300M", "-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=1"),
    ("300M", "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg"),
    ("900M", "-t ext4 -b 4096 -O ^metadata_csum,uninit_bg,^flex_bg,^64bit"),
    ("300M", "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg"),
    (
        "300M",
        "-t ext4 -b 4096 -O metadata_csum,metadata_csum_seed,inline_data,large_dir,ea_inode -I 512",
    ),
    ("300M", "-t ext4 -b 4096 -O mmp,orphan_file,fast_commit"),
    ("300M", "-t ext4 -b 4096 -O encrypt,verity,stable_inodes"),
    ("300M", "-t ext4 -b 4096 -E stride=8,stripe_width=64 -O ^has_journal"),
    ("33000K", "-t ext4 -b 1024 -g 8192 -O ^has_journal"),
];

#[test]
fn free_blocks_of_every_shape_are_those_that_dumpe2fs_lists() {
    if !tools() || !can_mount() {
        return;
    }
    for (size, options) in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, size, options);
        compare(&image, &format!("{options}, as made"));
        fill(Mounted::new(&image).path());
        compare(&image, &format!("{options}, filled"));
    }
}

/// Kernels without quotas or Unicode do not mount these: `mke2fs` fills them, `debugfs` deletes.
#[test]
fn features_that_not_every_kernel_mounts_are_understood_too() {
    if !tools() {
        return;
    }
    for options in ["-O quota,project", "-O casefold,verity", "-O ^extents,^64bit,quota -b 1024"] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        for n in 0..200 {
            fs::write(source.join(n.to_string()), vec![1; n * 777]).unwrap();
        }
        let image = made(&dir, "90M", &format!("-t ext4 {options} -d {}", source.display()));
        compare(&image, options);
        let removals: String = (0..200).step_by(3).map(|n| format!("rm {n}\n")).collect();
        let commands = dir.path().join("commands");
        fs::write(&commands, removals).unwrap();
        sh(&format!("debugfs -w -f {} {} 2>&1", commands.display(), image.display()));
        compare(&image, &format!("{options}, some deleted"));
    }
}

/// A disk of 64 GiB is planned in seconds, by its metadata alone: descriptors, and a block for each bitmap.
#[test]
fn a_huge_sparse_disk_is_surveyed_by_few_bytes() {
    if !tools() || !can_mount() {
        return;
    }
    for options in ["-t ext4", "-t ext4 -O ^metadata_csum,^uninit_bg,^flex_bg", "-t ext3 -b 4096"] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "64G", &format!("{options} -E lazy_itable_init=1"));
        fill(Mounted::new(&image).path());
        let base = FileDisk::open(&image);
        let disk = Changed::new(&base, Vec::new());
        let start = Instant::now();
        let found = disk.survey().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{options}: {:?}", start.elapsed());
        // 512 groups, each with a descriptor of 64 bytes and a bitmap of 4 KiB.
        let bytes = disk.bytes_read();
        assert!(bytes <= 512 * (4096 + 64) + (128 << 10), "{options}: {bytes} bytes");
        eprintln!("{options}: {bytes} bytes read in {:?}", start.elapsed());
        assert!(found.free.bytes() > 62 << 30, "{options}");
        compare(&image, options);
    }
}

fn unclean(image: &Path) -> Option<String> {
    survey_of(image).unwrap().unclean
}

/// What a running guest leaves behind when its disk is copied, or its power fails, is not clean; once it was
/// mounted again and unmounted, it is.
#[test]
fn a_file_system_in_use_is_unclean_until_it_was_unmounted() {
    if !tools() || !can_mount() {
        return;
    }
    for options in [
        "-t ext2 -b 1024",
        "-t ext3 -b 1024",
        "-t ext4 -b 1024",
        "-t ext4 -O ^has_journal",
        "-t ext4 -O fast_commit,orphan_file",
        "-t ext4 -O mmp",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "60M", options);
        let copy = dir.path().join("copy.img");
        let copied = || sh(&format!("cp --sparse=always {} {}", image.display(), copy.display()));
        {
            let mounted = Mounted::new(&image);
            sh(&format!("sync -f {}", mounted.path().display()));
            copied();
            assert!(unclean(&copy).is_some(), "{options}: mounted");
            fill(mounted.path());
            copied();
            assert!(unclean(&copy).is_some(), "{options}: written");
            let at = mounted.path().display();
            sh(&format!("sync -f {at}; touch {at}/more; rm {at}/names/*7"));
            copied();
            assert!(unclean(&copy).is_some(), "{options}: written, not all of it synced");
        }
        compare(&image, options);
        // A killed guest's disk, after its check; multiple mount protection makes that one wait for long.
        if !options.contains("mmp") {
            sh(&format!("e2fsck -fy {} >/dev/null 2>&1 || [ $? -lt 4 ]", copy.display()));
            compare(&copy, &format!("{options}, checked"));
        }
    }
}

/// Every single thing that tells of trouble is enough.
#[test]
fn each_sign_of_trouble_makes_it_unclean() {
    if !tools() {
        return;
    }
    for (command, why) in [
        ("ssv state 0", "not unmounted cleanly"),
        ("ssv state 3", "recorded errors"),
        ("ssv state 5", "deleted while open"),
        ("ssv state 9", "not known"),
        ("ssv last_orphan 12", "deleted while open"),
        ("feature needs_recovery", "replayed"),
        ("feature orphan_present", "deleted while open"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "30M", "-t ext4 -O orphan_file");
        compare(&image, command);
        sh(&format!("debugfs -w -R '{command}' {} 2>&1", image.display()));
        let found = unclean(&image).unwrap_or_else(|| panic!("{command}: clean"));
        assert!(found.contains(why), "{command}: {found}");
    }
}

/// `debugfs` takes the protection itself, and gives it back: so the block is changed here.
#[test]
fn multiple_mount_protection_that_is_held_makes_it_unclean() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "30M", "-t ext4 -b 1024 -O mmp");
    compare(&image, "mmp");
    let text = sh(&format!("dumpe2fs -h {} 2>/dev/null", image.display()));
    let block = text.lines().find_map(|line| line.strip_prefix("MMP block number:")).unwrap();
    let block = block.trim().parse::<u64>().unwrap() * 1024;
    let base = FileDisk::open(&image);
    for sequence in [0xE24D_4D50u32, 1, 0, 0xFF4D_4D4F] {
        let changed = Changed::new(&base, vec![(block + 4, sequence.to_le_bytes().to_vec())]);
        let found = changed.survey().unwrap().unclean.unwrap();
        assert!(found.contains("multiple mount"), "{found}");
    }
    assert!(Changed::new(&base, vec![(block, vec![0])]).survey().is_err(), "no magic number");
}

/// Features that move free space elsewhere, or that nobody knows, are refused by name.
#[test]
fn what_is_not_understood_is_refused() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal.img");
    sh(&format!("truncate -s 20M {0}; mke2fs -q -F -O journal_dev {0}", journal.display()));
    match survey_of(&journal) {
        Err(Trouble::NotKnown(why)) => assert!(why.contains("journal"), "{why}"),
        other => panic!("{other:?}"),
    }
    let image = made(&dir, "30M", "-t ext2");
    let base = FileDisk::open(&image);
    for (at, flags, name) in [
        (96, 0x2u32 | 0x1, "compression"),
        (96, 0x2 | 0x8_0000, "0x80000"),
        (100, 0x3 | 0x80, "snapshot"),
        (100, 0x3 | 0x4000_0000, "0x40000000"),
        (92, 0x38 | 0x100, "exclude_bitmap"),
        (76, 2, "revision 2"),
    ] {
        let changed = Changed::new(&base, vec![(1024 + at, flags.to_le_bytes().to_vec())]);
        match changed.survey() {
            Err(Trouble::NotKnown(why)) => assert!(why.contains(name), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// An external journal is no trouble: whether it has to be replayed stands in the file system itself.
#[test]
fn a_journal_elsewhere_is_fine() {
    if !tools() || !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, journal) = (dir.path().join("ext.img"), dir.path().join("journal.img"));
    sh(&format!(
        "truncate -s 60M {0}; truncate -s 8M {1}; mke2fs -q -F -O journal_dev -b 4096 {1}
         j=$(losetup -f --show {1}); trap 'losetup -d $j' EXIT
         mke2fs -q -F -t ext4 -b 4096 -J device=$j {0}
         mkdir {0}.mnt; mount -o loop {0} {0}.mnt; seq 10000 >{0}.mnt/file; sync
         cp {0} {0}.copy; umount {0}.mnt",
        image.display(),
        journal.display()
    ));
    compare(&image, "external journal");
    assert!(unclean(&image.with_extension("img.copy")).is_some());
}

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
