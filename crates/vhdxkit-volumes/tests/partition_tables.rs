//! Partition tables that are lost, or lie about what is where: no byte of what they name, or named, may be called
//! free.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{FileDisk, have, sh};
use vhdxkit_volumes::{Disk, Trouble, Volume, volumes};

const MIB: usize = 1 << 20;

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Swap space of 4 MiB over the whole disk: the smallest thing that has free bytes.
fn swap() -> Vec<u8> {
    let mut disk = vec![0; 4 * MIB];
    put(&mut disk, 0x400, &1u32.to_le_bytes());
    put(&mut disk, 0x404, &1023u32.to_le_bytes());
    put(&mut disk, 4086, b"SWAPSPACE2");
    disk
}

fn free(volume: &Volume) -> u64 {
    volume.free_to_give(true).map_or(0, |free| free.bytes())
}

fn only(disk: &dyn Disk) -> Volume {
    let mut found = volumes(disk).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// The disk is one volume of which nothing is known, and the reason speaks of a partition table.
#[track_caller]
fn nothing_is_known(disk: &dyn Disk, table: &str) {
    let found = only(disk);
    let told = matches!(&found.space, Err(Trouble::NotKnown(why)) if why.contains(table));
    assert!(told && found.partition.is_none(), "{:?}", found.space);
    assert_eq!(free(&found), 0);
}

/// A disk that was formatted whole and partitioned later: what is left of its table when the partitions are lost.
#[test]
fn a_trace_of_a_partition_table_is_enough_to_believe_nobody() {
    let bare = swap();
    assert!(free(&only(&bare)) > 0);
    let mut signed = bare.clone();
    put(&mut signed, 510, &[0x55, 0xAA]);
    assert!(free(&only(&signed)) > 0, "an MBR without entries names no partition");

    let end = bare.len();
    for at in [512, 4096, end - 512, end - 4096] {
        let mut gpt = bare.clone();
        put(&mut gpt, at, b"EFI PART");
        nothing_is_known(&gpt, "GPT");
    }
    // Of the protective entry; of partitions without sectors, behind the disk's end, and with a damaged flag.
    for (flag, kind, start, count) in [
        (0u8, 0xEEu8, 1u32, u32::MAX),
        (0, 0x83, 2048, 0),
        (0x80, 0x83, 1 << 20, 2048),
        (0x7F, 0x83, 2048, 2048),
    ] {
        for slot in 0..4 {
            let mut mbr = signed.clone();
            let at = 446 + slot * 16;
            put(&mut mbr, at, &[flag, 0, 0, 0, kind]);
            put(&mut mbr, at + 8, &start.to_le_bytes());
            put(&mut mbr, at + 12, &count.to_le_bytes());
            nothing_is_known(&mbr, "MBR");
        }
    }
    let mut unsigned = bare;
    put(&mut unsigned, 446 + 4, &[0x83]);
    nothing_is_known(&unsigned, "MBR");
}

/// The first sector of FAT and NTFS ends like an MBR, and has a loader, with its messages, where that has entries.
#[test]
fn a_loader_in_the_first_sector_of_a_file_system_is_no_trace_of_a_table() {
    if !["mkfs.fat", "mkfs.ntfs", "mkfs.exfat"].into_iter().all(have) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    for make in ["mkfs.fat -F 16", "mkfs.fat -F 32", "mkfs.ntfs -F -q -f", "mkfs.exfat"] {
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        sh(&format!("{make} {} >/dev/null 2>&1", path.display()));
        let disk = fs::read(&path).unwrap();
        assert!(free(&only(&disk)) > 0, "{make}");
        if make.contains("exfat") {
            // Its sectors have a checksum.
            continue;
        }
        let mut loader = disk.clone();
        put(&mut loader, 446, &[b'!'; 64]);
        assert!(free(&only(&loader)) > 0, "{make}");
        // One that can be read as an entry, of a partition that cannot be.
        let mut loader = disk.clone();
        put(&mut loader, 497, b"KERNEL  SYS");
        assert!(free(&only(&loader)) > 0, "{make}");
        // But partitioned since, with the loader left where it was.
        let mut table = disk.clone();
        put(&mut table, 446 + 4, &[0xEE]);
        nothing_is_known(&table, "MBR");
        let mut table = disk;
        let end = table.len();
        put(&mut table, end - 512, b"EFI PART");
        nothing_is_known(&table, "GPT");
    }
}

/// A btrfs over the whole disk, then a GPT with an ext4 at 100 MiB. Partitioning leaves the superblock at 64 KiB, and
/// once the table is damaged the btrfs looks whole, and unmounted: its free space is the ext4.
#[test]
fn a_btrfs_of_before_a_lost_partition_table_is_not_believed() {
    if !["mkfs.btrfs", "mkfs.ext4", "sfdisk"].into_iter().all(have) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let size = 1u64 << 30;
    File::create(&path).unwrap().set_len(size).unwrap();
    sh(&format!("mkfs.btrfs -q -f {}", path.display()));
    assert!(free(&only(&FileDisk::open(&path))) > 0);
    sh(&format!(
        "printf 'label: gpt\nstart=100MiB,size=600MiB,type=L\n' | sfdisk -q --wipe never {0}
         mkfs.ext4 -q -F -E offset={1} {0} 600M",
        path.display(),
        100 << 20,
    ));
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let zero = |at: u64, length: usize| disk.write_all_at(&vec![0; length], at).unwrap();
    let whole = volumes(&FileDisk::open(&path)).unwrap();
    assert!(whole[0].partition.is_some() && free(&whole[0]) == 0, "{whole:?}");

    let mut first = vec![0; 512];
    disk.read_exact_at(&mut first, 0).unwrap();
    zero(0, 512);
    nothing_is_known(&FileDisk::open(&path), "GPT");
    // Of the GPT, only the second copy.
    zero(512, 33 * 512);
    nothing_is_known(&FileDisk::open(&path), "GPT");
    // The MBR alone.
    disk.write_all_at(&first, 0).unwrap();
    zero(size - 33 * 512, 33 * 512);
    nothing_is_known(&FileDisk::open(&path), "MBR");
}

/// As WSL has its disks: ext4 from the first sector on, and no table at all.
#[test]
fn a_file_system_on_a_disk_that_never_had_a_table_is_surveyed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    for make in ["mkfs.ext4 -q -F", "mkfs.xfs -q -f", "mkfs.btrfs -q -f"] {
        if !have(make.split(' ').next().unwrap()) {
            return;
        }
        File::create(&path).unwrap().set_len(512 << 20).unwrap();
        sh(&format!("{make} {}", path.display()));
        let found = only(&FileDisk::open(&path));
        assert!(free(&found) > 0, "{make}: {:?}", found.space);
    }
}

/// Entries of the table in the sector at `at`: type, start, sectors.
fn table(disk: &mut [u8], at: usize, entries: &[(u8, u32, u32)]) {
    put(disk, at + 510, &[0x55, 0xAA]);
    for (slot, (kind, start, sectors)) in entries.iter().enumerate() {
        let entry = at + 446 + slot * 16;
        put(disk, entry + 4, &[*kind]);
        put(disk, entry + 8, &start.to_le_bytes());
        put(disk, entry + 12, &sectors.to_le_bytes());
    }
}

/// Which partitions are refused because somebody else claims their bytes.
fn contested(disk: &dyn Disk) -> Vec<u32> {
    let found = volumes(disk).unwrap();
    let refused = found.iter().filter(|volume| matches!(volume.space, Err(Trouble::Damaged(_))));
    refused.map(|volume| volume.partition.as_ref().unwrap().number).collect()
}

/// The tables of logical partitions stand in no partition but the extended one. Whoever else has their bytes calls
/// them free, and the logical partitions are gone.
#[test]
fn what_reaches_over_the_tables_of_logical_partitions_is_not_believed() {
    let mut disk = vec![0; 16 * MIB];
    let kib = |kib: u32| kib * 2;
    // Swap space in every partition, so that each of them would have something to give.
    for start in [1, 5, 7, 9] {
        put(&mut disk, start * MIB, &swap()[..MIB]);
        put(&mut disk, start * MIB + 0x404, &255u32.to_le_bytes());
    }
    let primary = (0x82, kib(1024), kib(1024));
    table(&mut disk, 0, &[primary, (5, kib(4096), kib(4096))]);
    table(&mut disk, 4 * MIB, &[(0x82, kib(1024), kib(1024)), (5, kib(2048), kib(2048))]);
    table(&mut disk, 6 * MIB, &[(0x82, kib(1024), kib(1024))]);
    assert_eq!(contested(&disk), [0u32; 0]);
    assert_eq!(volumes(&disk).unwrap().len(), 3, "the extended partition is no volume");

    // The primary one reaches into the extended one, in whichever order they stand in the table.
    let mut into = disk.clone();
    table(&mut into, 0, &[(0x82, kib(1024), kib(3073))]);
    assert_eq!(contested(&into), [1]);
    table(&mut into, 0, &[(5, kib(4096), kib(4096)), (0x82, kib(1024), kib(3073))]);
    assert_eq!(contested(&into), [2]);
    // Or lies in a gap of it, where no table stands yet.
    table(&mut into, 0, &[(5, kib(4096), kib(8192)), (0x82, kib(9216), kib(1024))]);
    assert_eq!(contested(&into), [2]);
    // A logical one over the next table, and over its own.
    let mut over = disk.clone();
    table(&mut over, 4 * MIB, &[(0x82, kib(1024), kib(1025))]);
    assert_eq!(contested(&over), [5]);
    let mut over = disk.clone();
    table(&mut over, 6 * MIB, &[(0x82, 0, kib(1024))]);
    assert_eq!(contested(&over), [6]);
    // A table outside the extended partition, in the free space of a primary one.
    let mut outside = disk.clone();
    table(&mut outside, 0, &[primary, (5, kib(4096), kib(4096)), (0x82, kib(9216), kib(1024))]);
    assert_eq!(contested(&outside), [0u32; 0]);
    table(&mut outside, 4 * MIB, &[(0x82, kib(1024), kib(1024)), (5, kib(5632), kib(2048))]);
    table(&mut outside, 4 * MIB + 5632 * 1024, &[(0x82, kib(1024), kib(512))]);
    assert_eq!(contested(&outside), [3]);
    // A logical one in a second extended partition, whose tables nobody reads.
    let mut second = disk;
    table(&mut second, 0, &[primary, (5, kib(4096), kib(2048)), (5, kib(6144), kib(2048))]);
    assert_eq!(contested(&second), [6]);
}

/// The second copy of a GPT may be the only one that is left.
#[test]
fn what_reaches_over_a_copy_of_a_gpt_is_not_believed() {
    let sectors = 16 * MIB / 512;
    let mut disk = vec![0; 16 * MIB];
    for start in [1, 8] {
        put(&mut disk, start * MIB, &swap()[..4 * MIB]);
    }
    table(&mut disk, 0, &[(0xEE, 1, u32::MAX)]);
    let linux_swap = 0x0657_FD6D_A4AB_43C4_84E5_0933_C84B_4F4F_u128.to_be_bytes();
    let gpt = |disk: &mut [u8], last: u64| {
        for (header, entries) in [(1, 2), (sectors - 1, sectors - 33)] {
            put(disk, header * 512, b"EFI PART");
            put(disk, header * 512 + 72, &(entries as u64).to_le_bytes());
            put(disk, header * 512 + 80, &[128, 0, 0, 0, 128, 0, 0, 0]);
            for (number, (start, end)) in [(2048u64, 10239u64), (16384, last)].iter().enumerate() {
                let mut entry = linux_swap;
                entry[..4].reverse();
                entry[4..6].reverse();
                entry[6..8].reverse();
                put(disk, entries * 512 + number * 128, &entry);
                put(disk, entries * 512 + number * 128 + 32, &start.to_le_bytes());
                put(disk, entries * 512 + number * 128 + 40, &end.to_le_bytes());
            }
        }
    };
    let sectors = sectors as u64;
    gpt(&mut disk, sectors - 34);
    assert_eq!(contested(&disk), [0u32; 0]);
    assert!(volumes(&disk).unwrap().iter().all(|volume| free(volume) > 0));
    for last in [sectors - 33, sectors - 1] {
        gpt(&mut disk, last);
        assert_eq!(contested(&disk), [2]);
        let mut second = disk.clone();
        put(&mut second, 512, &[0; 512]);
        assert_eq!(contested(&second), [2]);
    }
}

/// An extended partition that begins within the one before it. Its first table lies where that has free space.
#[test]
fn an_ext4_over_the_table_of_a_logical_partition_gives_nothing_away() {
    if !have("mkfs.ext4") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(256 << 20).unwrap();
    for (start, length) in [(1, 80), (120, 64)] {
        let offset = start << 20;
        sh(&format!("mkfs.ext4 -q -F -E offset={offset} {} {length}M", path.display()));
    }
    let disk = File::options().write(true).open(&path).unwrap();
    let sectors = |mib: u32| mib * 2048;
    let write = |at: u64, entries: &[(u8, u32, u32)]| {
        let mut sector = vec![0; 512];
        table(&mut sector, 0, entries);
        disk.write_all_at(&sector, at).unwrap();
    };
    write(0, &[(0x83, sectors(1), sectors(80)), (5, sectors(100), sectors(140))]);
    write(100 << 20, &[(0x83, sectors(20), sectors(64))]);
    let apart = volumes(&FileDisk::open(&path)).unwrap();
    assert!(apart.len() == 2 && apart.iter().all(|volume| free(volume) > 0), "{apart:?}");

    write(0, &[(0x83, sectors(1), sectors(80)), (5, sectors(60), sectors(180))]);
    write(60 << 20, &[(0x83, sectors(60), sectors(64))]);
    let over = volumes(&FileDisk::open(&path)).unwrap();
    assert_eq!(over.len(), 2);
    assert_eq!(free(&over[0]), 0, "{:?}", over[0].kept_because());
    let why = over[0].kept_because().unwrap();
    assert!(why.contains("partitions 1 and 2 overlap"), "{why}");
}
