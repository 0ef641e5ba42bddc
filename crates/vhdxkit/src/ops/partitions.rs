//! Where the last partition of a disk ends, or the file system of one without partitions: a disk must not be
//! cut shorter than that by accident.
//!
//! Both partition tables that disks carry are understood as far as that takes: MBR (its four primary
//! entries; an extended one covers those inside it) and GPT (primary header and entries).

use crate::{Image, Result};

/// A GPT may have more entries; no known system makes more than 128.
const MOST_ENTRIES: u64 = 1024;
/// Bytes of an entry at least, and at most as far as we look.
const ENTRY_SIZES: std::ops::RangeInclusive<u64> = 128..=4096;

/// The byte behind the last partition; `None` when no partition table is found.
///
/// # Errors
/// The disk cannot be read.
pub fn end_of_last(image: &Image) -> Result<Option<u64>> {
    let sector = u64::from(image.geometry().logical_sector_size());
    if image.virtual_size() < sector.saturating_mul(2) {
        return Ok(None);
    }
    let mut first = [0; 512];
    image.read_at(0, &mut first)?;
    if first.get(510..) != Some(&[0x55, 0xAA]) {
        return Ok(None);
    }
    let entries = first.get(446..510).unwrap_or_default().chunks_exact(16);
    let mut end = None;
    for entry in entries {
        let kind = entry.get(4).copied().unwrap_or_default();
        if kind == 0xEE {
            return end_of_gpt(image, sector);
        }
        if kind != 0 {
            let start = u64::from(u32_at(entry, 8));
            let last = start.saturating_add(u64::from(u32_at(entry, 12))).saturating_mul(sector);
            end = end.max(Some(last));
        }
    }
    Ok(end)
}

fn end_of_gpt(image: &Image, sector: u64) -> Result<Option<u64>> {
    let mut header = [0; 512];
    image.read_at(sector, &mut header)?;
    if header.get(..8) != Some(b"EFI PART") {
        return Ok(None);
    }
    let table = u64_at(&header, 72).saturating_mul(sector);
    let count = u64::from(u32_at(&header, 80)).min(MOST_ENTRIES);
    let size = u64::from(u32_at(&header, 84));
    let mut end = None;
    if !ENTRY_SIZES.contains(&size) {
        return Ok(None);
    }
    for number in 0..count {
        let at = table.saturating_add(number.saturating_mul(size));
        let mut entry = [0; 48];
        if at.saturating_add(48) > image.virtual_size() {
            break;
        }
        image.read_at(at, &mut entry)?;
        if entry.get(..16) != Some(&[0; 16]) {
            let last = u64_at(&entry, 40).saturating_add(1).saturating_mul(sector);
            end = end.max(Some(last));
        }
    }
    Ok(end)
}

/// A file system on a disk without partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// What people call it.
    pub name: &'static str,
    /// The byte behind it, as it says itself; the end of the disk where it does not say.
    pub end: u64,
}

/// The file system that fills a disk without partitions, as WSL's disks have it: ext2 to ext4, XFS, btrfs,
/// NTFS; or LVM, swap. `None` when none of them is recognised.
///
/// # Errors
/// The disk cannot be read.
pub fn whole_disk_file_system(image: &Image) -> Result<Option<FileSystem>> {
    let mut start = vec![0; 72 << 10];
    let length = usize::try_from(image.virtual_size()).unwrap_or(usize::MAX).min(start.len());
    image.read_at(0, start.get_mut(..length).unwrap_or_default())?;
    let at = |offset: usize| start.get(offset..).unwrap_or_default();
    let big = |offset: usize| u64_at(at(offset), 0).swap_bytes();
    let disk = image.virtual_size();
    let found = |name, end: u64| Some(FileSystem { name, end });
    Ok(if at(0x438).starts_with(&[0x53, 0xEF]) {
        let blocks = u64::from(u32_at(at(0x404), 0)) | u64::from(u32_at(at(0x550), 0)) << 32;
        let size = 1024u64.checked_shl(u32_at(at(0x418), 0)).unwrap_or(disk);
        found("ext4", blocks.saturating_mul(size))
    } else if at(0).starts_with(b"XFSB") {
        let block = u64::from(u32_at(at(4), 0).swap_bytes());
        found("XFS", big(8).saturating_mul(block))
    } else if at(0x10040).starts_with(b"_BHRfS_M") {
        found("btrfs", u64_at(at(0x10070), 0))
    } else if at(3).starts_with(b"NTFS    ") {
        let sector = u64::from(u32_at(at(0xB), 0) & 0xFFFF);
        found("NTFS", u64_at(at(0x28), 0).saturating_add(1).saturating_mul(sector))
    } else if at(0x218).starts_with(b"LVM2 001") {
        found("LVM", disk)
    } else if at(0xFF6).starts_with(b"SWAPSPACE2") {
        found("swap", disk)
    } else {
        None
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    raw.copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    raw.copied().map_or(0, u64::from_le_bytes)
}
