//! Where the last partition ends is known for every table that disks carry, and a table made in bad
//! faith costs nothing.

use std::sync::Arc;

use vhdxkit::ops::partitions::end_of_last;
use vhdxkit::storage::MemoryStorage;
use vhdxkit::{CreateOptions, Image, OpenOptions};

const MIB: u64 = 1 << 20;

fn disk(sector: u32) -> Image {
    let file = Arc::new(MemoryStorage::empty());
    let options = CreateOptions::new(64 * MIB).block_size(1 << 20).logical_sector_size(sector);
    options.create_storage(&*file).unwrap();
    OpenOptions::new().write(true).open_storage(file).unwrap()
}

fn put(disk: &Image, at: u64, bytes: &[u8]) {
    let sector = u64::from(disk.geometry().logical_sector_size());
    let start = at / sector * sector;
    let mut whole =
        vec![0; ((at - start) as usize + bytes.len()).next_multiple_of(sector as usize)];
    disk.read_at(start, &mut whole).unwrap();
    whole[(at - start) as usize..][..bytes.len()].copy_from_slice(bytes);
    disk.write_at(start, &whole).unwrap();
}

fn mbr(disk: &Image, partitions: &[(u8, u32, u32)]) {
    put(disk, 510, &[0x55, 0xAA]);
    for (number, (kind, start, count)) in (0u64..).zip(partitions) {
        let at = 446 + number * 16;
        put(disk, at + 4, &[*kind]);
        put(disk, at + 8, &[start.to_le_bytes(), count.to_le_bytes()].concat());
    }
}

/// A GPT's header, with entries of `size` bytes at sector `table`.
fn gpt(disk: &Image, table: u64, count: u32, size: u32) {
    let sector = u64::from(disk.geometry().logical_sector_size());
    mbr(disk, &[(0xEE, 1, u32::MAX)]);
    put(disk, sector, b"EFI PART");
    put(disk, sector + 72, &table.to_le_bytes());
    put(disk, sector + 80, &[count.to_le_bytes(), size.to_le_bytes()].concat());
}

#[test]
fn a_disk_without_partitions_has_no_last_one() {
    let empty = disk(512);
    assert_eq!(end_of_last(&empty).unwrap(), None);
    mbr(&empty, &[]);
    assert_eq!(end_of_last(&empty).unwrap(), None);
}

#[test]
fn mbr_counts_the_sectors_of_the_disk() {
    for sector in [512, 4096] {
        let disk = disk(sector);
        mbr(&disk, &[(0x83, 100, 50), (0x07, 300, 7), (0, 4000, 4000), (0x0F, 200, 20)]);
        assert_eq!(end_of_last(&disk).unwrap(), Some(307 * u64::from(sector)));
    }
}

#[test]
fn gpt_entries_are_found_wherever_and_however_large_they_are() {
    for (sector, table, size) in [(512, 2, 128), (512, 9, 256), (4096, 2, 128), (4096, 3, 512)] {
        let disk = disk(sector);
        gpt(&disk, table, 128, size);
        assert_eq!(end_of_last(&disk).unwrap(), None, "no entry is in use");
        for (number, last) in [(0u64, 99u64), (5, 8191), (127, 120)] {
            let at = table * u64::from(sector) + number * u64::from(size);
            put(&disk, at, &[7; 16]);
            put(&disk, at + 40, &last.to_le_bytes());
        }
        assert_eq!(end_of_last(&disk).unwrap(), Some(8192 * u64::from(sector)));
    }
}

#[test]
fn impossible_tables_are_read_in_bounded_time() {
    let size = 64 * MIB;
    for (table, count, entry) in [
        (2, u32::MAX, 128),
        (2, 128, 0),
        (2, u32::MAX, u32::MAX),
        (u64::MAX, 128, 128),
        (size / 512 - 1, 128, 128),
    ] {
        let disk = disk(512);
        gpt(&disk, table, count, entry);
        assert_eq!(end_of_last(&disk).unwrap(), None, "{table}, {count}, {entry}");
    }
    let disk = disk(512);
    gpt(&disk, 2, 1, 128);
    put(&disk, 1024, &[7; 16]);
    put(&disk, 1024 + 40, &[0xFF; 8]);
    assert_eq!(end_of_last(&disk).unwrap(), Some(u64::MAX), "behind any end");
}
