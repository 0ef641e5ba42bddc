//! ext2, ext3 and ext4 against e2fsprogs: what we call free is, block for block, what `dumpe2fs` lists.
//!
//! Every image is made by `mke2fs`, filled and emptied again through the kernel, and unmounted; the shapes
//! are those that change where free space is written down.

mod common;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use common::{FileDisk, Mounted, can_mount, have, joined, sh, survey_of};
use vhdxkit_volumes::{Disk, survey};

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
    let at = at.display();
    sh(&format!(
        "cd {at}; mkdir d e
         for i in $(seq 1 300); do head -c $((i * 977 % 50000)) /dev/zero >d/$i; done
         for i in $(seq 1 300); do : >e/a-name-that-takes-some-room-in-its-directory-$i; done
         sync
         for i in $(seq 3 3 300); do rm d/$i; done
         dd if=/dev/zero of=big bs=64k count=20 2>/dev/null; sync
         fallocate -p -o 100K -l 300K big 2>/dev/null || true"
    ));
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
        std::fs::create_dir(&source).unwrap();
        for n in 0..200 {
            std::fs::write(source.join(n.to_string()), vec![1; n * 777]).unwrap();
        }
        let image = made(&dir, "90M", &format!("-t ext4 {options} -d {}", source.display()));
        compare(&image, options);
        let removals: String = (0..200).step_by(3).map(|n| format!("rm {n}\n")).collect();
        let commands = dir.path().join("commands");
        std::fs::write(&commands, removals).unwrap();
        sh(&format!("debugfs -w -f {} {} 2>&1", commands.display(), image.display()));
        compare(&image, &format!("{options}, some deleted"));
    }
}
