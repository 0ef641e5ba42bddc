//! What looks like a file system at rest and is none: members of arrays and pools that lie over what was
//! there before, and guests that sleep while their disk is looked at. None of their bytes may be called free.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{FileDisk, have, sh};
use vhdxkit_volumes::volumes;

/// A superblock of md 1.x, with its checksum.
fn md(super_sector: u64, data_sector: u64, sectors: u64) -> Vec<u8> {
    let mut raw = vec![0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(16, &[7; 16]);
    put(72, &1u32.to_le_bytes());
    put(80, &sectors.to_le_bytes());
    put(92, &2u32.to_le_bytes());
    put(128, &data_sector.to_le_bytes());
    put(136, &sectors.to_le_bytes());
    put(144, &super_sector.to_le_bytes());
    put(220, &128u32.to_le_bytes());
    put(256, &[0, 0, 1, 0]);
    let sum: u64 =
        raw.chunks_exact(4).map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap()))).sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    raw[216..220].copy_from_slice(&u32::try_from(sum & 0xffff_ffff).unwrap().to_le_bytes());
    raw
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn raw(name: &str, size: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    (folder, path)
}

fn nothing_is_given(path: &Path) {
    for volume in volumes(&FileDisk::open(path)).unwrap() {
        let free = volume.free_to_give(false).map_or(0, |free| free.bytes());
        let why = volume.kept_because();
        assert_eq!(free, 0, "{:?} {:?} of {:?}", volume.range, why, volume.name());
    }
}

/// `mdadm --create` writes 4 KiB from byte 4096 on and leaves the rest; the array's data begins MiBs later,
/// where the old btrfs has free space.
#[test]
fn a_member_of_an_array_over_an_old_btrfs_is_not_believed() {
    if !have("mkfs.btrfs") {
        return;
    }
    let (_folder, path) = raw("md", 1 << 30);
    sh(&format!("mkfs.btrfs -q -f {}", path.display()));
    put(&path, 4096, &md(8, 264_192, 1 << 20));
    nothing_is_given(&path);
}

/// The whole disk is a member; the second copy of its old GPT still names a partition with a FAT.
#[test]
fn a_member_of_an_array_over_an_old_partition_table_is_not_believed() {
    if !have("mkfs.vfat") || !have("sfdisk") {
        return;
    }
    let (folder, path) = raw("md", 1 << 30);
    let esp = folder.path().join("esp");
    File::create(&esp).unwrap().set_len(512 << 20).unwrap();
    sh(&format!("mkfs.vfat -F 32 {} >/dev/null", esp.display()));
    sh(&format!(
        "printf 'label: gpt\nstart=2048,size=512M,type=U\n' | sfdisk -q {}",
        path.display()
    ));
    put(&path, 1 << 20, &fs::read(&esp).unwrap());
    put(&path, 4096, &md(8, 264_192, 1 << 20));
    nothing_is_given(&path);
}

/// ZFS leaves the first 8 KiB of a device as they were, and 3.5 MiB behind its labels.
#[test]
fn a_pool_over_an_old_ext4_is_not_believed() {
    if !have("mkfs.ext4") {
        return;
    }
    let (_folder, path) = raw("zfs", 1 << 30);
    sh(&format!("mkfs.ext4 -q -F {}", path.display()));
    for label in [0u64, 256 << 10, (1 << 30) - (512 << 10), (1 << 30) - (256 << 10)] {
        put(&path, label + (8 << 10), &vec![0; 248 << 10]);
        put(&path, label + (16 << 10), &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        for ring in 0..8 {
            put(&path, label + (128 << 10) + ring * 1024, &0x00ba_b10c_u64.to_le_bytes());
        }
    }
    nothing_is_given(&path);
}

/// The first extent of a spanned volume of Windows' dynamic disks: NTFS counts the other disks, too.
#[test]
fn a_partition_of_a_dynamic_disk_is_not_believed() {
    if !have("mkfs.ntfs") {
        return;
    }
    let (folder, path) = raw("ldm", 1000 << 20);
    let ntfs = folder.path().join("ntfs");
    File::create(&ntfs).unwrap().set_len(600 << 20).unwrap();
    sh(&format!("mkfs.ntfs -F -q -f {} >/dev/null 2>&1", ntfs.display()));
    let extent = fs::read(&ntfs).unwrap();
    put(&path, 1 << 20, &extent[..400 << 20]);
    let mut table = [0u8; 66];
    table[4] = 0x42;
    table[8..12].copy_from_slice(&2048u32.to_le_bytes());
    table[12..16].copy_from_slice(&(999u32 * 2048).to_le_bytes());
    table[64..].copy_from_slice(&[0x55, 0xAA]);
    put(&path, 446, &table);
    nothing_is_given(&path);
}

/// Swap and btrfs carry no mark of being mounted. A machine that was saved shows itself by another file
/// system of the same disk: its swap holds its memory.
#[test]
fn beside_a_mounted_file_system_swap_and_btrfs_are_not_believed() {
    if !["mkfs.ext4", "mkswap", "mkfs.btrfs", "sfdisk", "losetup"].into_iter().all(have) {
        return;
    }
    let (folder, path) = raw("saved", 1000 << 20);
    let (disk, at) = (path.display(), folder.path().join("m"));
    sh(&format!(
        "printf 'label: gpt\nstart=2048,size=300M,type=L\nsize=200M,type=S\nsize=400M,type=L\n' | sfdisk -q {disk}
         l=$(losetup -f --show -o 1M --sizelimit 300M {disk}); mkfs.ext4 -q $l; mkdir {at}; mount $l {at}
         echo hello > {at}/file; sync; cp --sparse=always {disk} {disk}.saved
         umount {at}; losetup -d $l
         s=$(losetup -f --show -o 301M --sizelimit 200M {disk}.saved); mkswap -q $s; losetup -d $s
         b=$(losetup -f --show -o 501M --sizelimit 400M {disk}.saved); mkfs.btrfs -q -f $b; losetup -d $b; sync",
        at = at.display(),
    ));
    nothing_is_given(&folder.path().join("saved.saved"));
}

/// Windows sleeps on an NTFS from which nothing can be had in any case: for its shadow copies, or since its MFT
/// is not the one of its mirror. The btrfs beside it, which Windows may have mounted too, must not be believed for all that.
#[test]
fn a_windows_that_sleeps_is_seen_through_whatever_else_is_wrong_with_its_volume() {
    if !["mkfs.ntfs", "ntfscp", "mkfs.btrfs"].into_iter().all(have) {
        return;
    }
    let (folder, path) = raw("windows", 400 << 20);
    let ntfs = folder.path().join("ntfs");
    let memory = folder.path().join("hiberfil.sys");
    fs::write(&memory, [&b"hibr"[..], &[1; 100_000]].concat()).unwrap();
    let mut table = [0u8; 66];
    for (slot, (kind, start, count)) in [(7, 1u32, 64u32), (0x83, 100, 300)].iter().enumerate() {
        table[slot * 16 + 4] = *kind;
        table[slot * 16 + 8..][..4].copy_from_slice(&(start * 2048).to_le_bytes());
        table[slot * 16 + 12..][..4].copy_from_slice(&(count * 2048).to_le_bytes());
    }
    table[64..].copy_from_slice(&[0x55, 0xAA]);
    let btrfs = folder.path().join("btrfs");
    File::create(&btrfs).unwrap().set_len(300 << 20).unwrap();
    sh(&format!("mkfs.btrfs -q -f {}", btrfs.display()));
    put(&path, 446, &table);
    put(&path, 100 << 20, &fs::read(&btrfs).unwrap());

    let shadow = 0x52C7_6C6E_0404_AEB7_4E48_C176_3808_876B_u128.to_le_bytes();
    let shadow_copies = |volume: &mut Vec<u8>| {
        volume[0x1E00..0x1E10].copy_from_slice(&shadow);
        volume[0x1E31] = 0x40;
    };
    // mkntfs has put the mirror in the middle.
    let other_mirror = |volume: &mut Vec<u8>| {
        let cluster = u64::from_le_bytes(volume[0x38..0x40].try_into().unwrap());
        let at = usize::try_from(cluster).unwrap() * 4096;
        volume[at + 0x12] ^= 1;
    };
    let alone = |_: &mut Vec<u8>| {};
    type Wrong<'a> = &'a dyn Fn(&mut Vec<u8>);
    let wrongs: [(&str, Wrong<'_>); 3] =
        [("", &alone), ("shadow copies", &shadow_copies), ("MFT", &other_mirror)];
    for (what, wrong) in wrongs {
        for asleep in [false, true] {
            File::create(&ntfs).unwrap().set_len(64 << 20).unwrap();
            sh(&format!("mkfs.ntfs -F -q -f -c 4096 {} >/dev/null 2>&1", ntfs.display()));
            if asleep {
                sh(&format!("ntfscp -q {} {} hiberfil.sys", ntfs.display(), memory.display()));
            }
            let mut volume = fs::read(&ntfs).unwrap();
            wrong(&mut volume);
            put(&path, 1 << 20, &volume);
            let found = volumes(&FileDisk::open(&path)).unwrap();
            let windows = found[0].kept_because().unwrap_or_default();
            assert!(windows.contains(what), "{windows}");
            assert_eq!(windows.contains("hibernates"), asleep, "{windows}");
            // Nor at the user's word, what shadow copies need, or an MFT that nobody knows.
            let given = found[0].free_to_give(true).map_or(0, |free| free.bytes());
            assert!(what.is_empty() || given == 0, "{windows}");
            let why = found[1].kept_because();
            match asleep {
                true => {
                    assert_eq!(
                        why.unwrap_or_default().split(',').next(),
                        Some("a system is suspended on partition 1")
                    );
                    nothing_is_given(&path);
                }
                false => assert_eq!(why, None, "{what}"),
            }
        }
    }
}
