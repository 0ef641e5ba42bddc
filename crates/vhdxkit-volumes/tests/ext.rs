//! ext2, ext3 and ext4 against e2fsprogs: what we call free is, block for block, what `dumpe2fs` lists.
//!
//! Every image is made by `mke2fs`, filled and emptied again through the kernel, and unmounted; the shapes
//! are those that change where free space is written down.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::ext::{compare, fill, made, tools};
use common::{Changed, FileDisk, Mounted, can_mount, sh, survey_of};
use vhdxkit_volumes::Trouble;

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

/// File systems change their shape: grown by `resize2fs` and by the kernel, beyond what was reserved for
/// descriptors too; shrunk; given 64 bits, taken; given checksums, taken.
#[test]
fn a_file_system_that_was_resized_or_converted_is_read_too() {
    if !tools() || !can_mount() {
        return;
    }
    for options in [
        "-t ext4 -b 1024",
        "-t ext4 -b 1024 -E resize=100000",
        "-t ext4 -b 1024 -O ^flex_bg,^metadata_csum,uninit_bg",
        "-t ext3 -b 1024",
        "-t ext2 -b 1024 -g 1024 -O ^resize_inode",
        "-t ext4 -b 4096 -O sparse_super2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "60M", options);
        fill(Mounted::new(&image).path());
        let path = image.display();
        sh(&format!("e2fsck -fp {path}; truncate -s 200M {path}; resize2fs {path} 2>&1"));
        compare(&image, &format!("{options}, grown"));
        if !options.contains("ext2") && !options.contains("sparse_super2") {
            let mounted = Mounted::new(&image);
            let at = mounted.path().display();
            let said = sh(&format!(
                "truncate -s 700M {path}; d=$(findmnt -no SOURCE {at}); losetup -c $d
                 resize2fs $d 2>&1 || echo denied; touch {at}/more"
            ));
            if said.contains("denied") {
                eprintln!("SKIPPED: {options} cannot be resized while mounted here");
            }
            drop(mounted);
            compare(&image, &format!("{options}, grown while mounted"));
        }
        sh(&format!("e2fsck -fp {path}; resize2fs {path} 150M 2>&1"));
        compare(&image, &format!("{options}, shrunk"));
    }
    for conversion in [
        "tune2fs -O ^metadata_csum",
        "tune2fs -O ^metadata_csum,uninit_bg",
        "resize2fs -s",
        "tune2fs -O metadata_csum_seed -U random",
        "tune2fs -U random",
        "tune2fs -O ^has_journal",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "100M", "-t ext4 -b 1024");
        fill(Mounted::new(&image).path());
        sh(&format!(
            "e2fsck -fp {0}; echo y | {conversion} {0} 2>&1; e2fsck -fp {0}",
            image.display()
        ));
        compare(&image, conversion);
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
        // 512 groups, each with a descriptor of 64 bytes and a bitmap of 4 KiB; and the labels of arrays and pools.
        let bytes = disk.bytes_read();
        assert!(bytes <= 512 * (4096 + 64) + (640 << 10), "{options}: {bytes} bytes");
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
        Err(Trouble::NotKnown(why)) => assert!(why.contains("journal of an ext3"), "{why}"),
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
