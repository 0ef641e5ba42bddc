//! The GUID partition table: a header and an array of entries, both with a checksum, twice.
//!
//! The first copy whose checksums hold is believed. Where none does, the first that can be read at all:
//! a table that another tool wrote carelessly is better than no table to whoever wants files back.

use std::io::Result;
use std::ops::Range;

use uuid::Uuid;

use super::{Entry, PartitionType, bytes};
use crate::Disk;
use crate::bytes::{u16_at, u32_at, u64_at};

/// A GPT may have more entries; no known system makes more than 128.
const MOST_ENTRIES: u64 = 1024;
/// Bytes of an entry at least, and at most as far as we look.
const ENTRY_SIZES: std::ops::RangeInclusive<u64> = 128..=4096;
/// Bytes of a header at least, and at most as far as we look.
const HEADER_SIZES: std::ops::RangeInclusive<usize> = 92..=512;

/// One copy of the table.
struct Copy {
    /// Of its header and of its entries.
    places: [Range<u64>; 2],
    entries: Vec<u8>,
    entry_size: usize,
    /// Its checksums hold.
    intact: bool,
}

pub(super) fn entries(disk: &dyn Disk, sector: u64) -> Result<Vec<Entry>> {
    let mut best: Option<Copy> = None;
    for at in headers(disk, sector)? {
        let Some(copy) = read(disk, sector, at)? else { continue };
        if copy.intact {
            return Ok(in_use(&copy, sector));
        }
        best = best.or(Some(copy));
    }
    Ok(best.map(|copy| in_use(&copy, sector)).unwrap_or_default())
}

/// Where the copies stand, headers and entries.
pub(super) fn places(disk: &dyn Disk, sector: u64) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    for at in headers(disk, sector)? {
        found.extend(read(disk, sector, at)?.into_iter().flat_map(|copy| copy.places));
    }
    Ok(found)
}

/// The sectors where a header may stand.
fn headers(disk: &dyn Disk, sector: u64) -> Result<[u64; 3]> {
    let last = disk.size().checked_div(sector).unwrap_or(0).saturating_sub(1);
    let first = bytes::<512>(disk, sector)?.filter(|header| has_signature(header));
    // A disk that has grown since has its second copy where the first one says, not at its end.
    Ok([1, last, first.map_or(last, |header| u64_at(&header, 32))])
}

/// Whether the copy at the start of the disk is whole, and says that it lies there.
pub(super) fn first_is_intact(disk: &dyn Disk, sector: u64) -> Result<bool> {
    let Some(copy) = read(disk, sector, 1)? else { return Ok(false) };
    let header = bytes::<512>(disk, sector)?;
    Ok(copy.intact && header.is_some_and(|header| u64_at(&header, 24) == 1))
}

pub(super) fn has_signature(header: &[u8]) -> bool {
    header.starts_with(b"EFI PART")
}

/// The copy whose header is the sector `at`; `None` when there is nothing of the kind.
fn read(disk: &dyn Disk, sector: u64, at: u64) -> Result<Option<Copy>> {
    let place = at.saturating_mul(sector);
    let header = bytes::<512>(disk, place)?;
    let Some(header) = header.filter(|header| has_signature(header)) else { return Ok(None) };
    let count = u64::from(u32_at(&header, 80));
    let entry_size = u64::from(u32_at(&header, 84));
    if !ENTRY_SIZES.contains(&entry_size) {
        return Ok(None);
    }
    let start = u64_at(&header, 72).saturating_mul(sector);
    let room = disk.size().saturating_sub(start);
    let wanted = count.saturating_mul(entry_size);
    let length = wanted.min(MOST_ENTRIES.saturating_mul(entry_size)).min(room);
    let mut entries = vec![0; usize::try_from(length).unwrap_or_default()];
    if !entries.is_empty() {
        disk.read_at(start, &mut entries)?;
    }
    let intact =
        length == wanted && header_is_intact(&header) && crc32(&entries) == u32_at(&header, 88);
    let places = [place..place.saturating_add(sector), start..start.saturating_add(length)];
    let entry_size = usize::try_from(entry_size).unwrap_or(128);
    Ok(Some(Copy { places, entries, entry_size, intact }))
}

/// The checksum is that of a header in whose place for it are zeros.
fn header_is_intact(header: &[u8; 512]) -> bool {
    let length = usize::try_from(u32_at(header, 12)).unwrap_or(usize::MAX);
    if !HEADER_SIZES.contains(&length) {
        return false;
    }
    let mut header_without = *header;
    if let Some(place) = header_without.get_mut(16..20) {
        place.fill(0);
    }
    crc32(header_without.get(..length).unwrap_or_default()) == u32_at(header, 16)
}

fn in_use(copy: &Copy, sector: u64) -> Vec<Entry> {
    let entries = (1..).zip(copy.entries.chunks_exact(copy.entry_size));
    let entries = entries.filter_map(|(number, entry)| {
        let kind = Uuid::from_bytes_le(entry.first_chunk::<16>().copied()?);
        (!kind.is_nil()).then(|| Entry {
            number,
            start: u64_at(entry, 32).saturating_mul(sector),
            end: u64_at(entry, 40).saturating_add(1).saturating_mul(sector),
            kind: PartitionType::Gpt(kind),
            name: name(entry.get(56..128).unwrap_or_default()),
        })
    });
    entries.collect()
}

fn name(raw: &[u8]) -> String {
    let units = raw.chunks_exact(2).map(|unit| u16_at(unit, 0));
    let read = char::decode_utf16(units.take_while(|unit| *unit != 0));
    // A terminal would obey some of them.
    read.map(|c| c.ok().filter(|c| !c.is_control()).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// CRC-32 as in Ethernet, which is not the one of VHDX. A few mebibytes at most, once: no table is needed.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0xEDB8_8320,
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(super::crc32(b"123456789"), 0xCBF4_3926);
    }
}
