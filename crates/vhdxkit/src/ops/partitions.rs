//! Where the last partition of a disk ends: a disk must not be cut shorter than that by accident.
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    raw.copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    raw.copied().map_or(0, u64::from_le_bytes)
}
