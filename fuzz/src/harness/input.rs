//! What the bytes of an input mean.
//!
//! | bytes | |
//! |---|---|
//! | 1 | which [`Base`] |
//! | 1 | bits: make checksums right of 1 headers, 2 region tables, 4 log entries; 8 set the length |
//! | 4 | length of the file in units of 512 bytes, when bit 8 is set |
//! | … | records, to the end |
//!
//! A record puts bytes somewhere: place (1 byte, see [`PLACES`]), offset from there (2 bytes),
//! how many (1 byte), the bytes. Place 255 lays out a whole valid log entry instead: sector,
//! sequence number, tail, session, number of descriptors (1 byte each), then for each descriptor
//! its kind (bit 1: zeros; the rest: how many pages) and the page it targets (2 bytes).
//! What is cut off at the end counts as far as it goes.

use std::sync::{Arc, OnceLock};

use vhdxkit::format::{Guid, HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS, checksum, region};
use vhdxkit::log::EntryBuilder;
use vhdxkit::storage::{Overlay, Storage};

use super::base::{BAT_AT, Base, EARLIER, FIRST_AT, LOG_AT, METADATA_AT, SECOND_AT, SESSION};

/// Make the headers' checksums right.
pub const FIX_HEADERS: u8 = 1;
/// Make the region tables' checksums right.
pub const FIX_REGIONS: u8 = 2;
/// Make the log entries' checksums right.
pub const FIX_LOG: u8 = 4;
/// Set the file's length.
pub const SET_LENGTH: u8 = 8;
/// The place that means a whole log entry.
pub const LOG_ENTRY: u8 = 255;

/// Where records count their offsets from. Further places are steps of 256 KiB through the file.
pub const PLACES: [u64; 16] = [
    0,
    HEADER_OFFSETS[0],
    HEADER_OFFSETS[1],
    REGION_TABLE_OFFSETS[0],
    REGION_TABLE_OFFSETS[1],
    LOG_AT,
    LOG_AT + 2 * 4096,
    LOG_AT + 20 * 4096,
    LOG_AT + 251 * 4096,
    LOG_AT + 253 * 4096,
    METADATA_AT,
    METADATA_AT + 65536,
    BAT_AT,
    BAT_AT + 4096 * 8,
    FIRST_AT,
    SECOND_AT,
];

/// No file is longer, so that each input takes milliseconds.
const LONGEST: u64 = 64 * MIB;
/// Bytes of log entries that are summed for one input.
const MOST_SUMMED: usize = 8 << 20;

/// The file that an input describes; `None` when it is too short for one.
pub fn decode(input: &[u8]) -> Option<Overlay> {
    static BASES: OnceLock<Vec<Arc<dyn Storage>>> = OnceLock::new();
    let bases = BASES.get_or_init(|| {
        (0..Base::COUNT).map(|n| Arc::new(Base::number(n).build()) as Arc<dyn Storage>).collect()
    });
    let mut bytes = Bytes(input);
    let (base, flags) = (usize::from(bytes.byte()?), bytes.byte()?);
    let file = Overlay::new(Arc::clone(&bases[base % bases.len()])).unwrap();
    let length = match flags & SET_LENGTH {
        0 => file.len().unwrap(),
        _ => {
            u64::from(u32::from_le_bytes([
                bytes.byte()?,
                bytes.byte()?,
                bytes.byte()?,
                bytes.byte()?,
            ])) * 512
        }
    };
    while bytes.record(&file).is_some() {}
    file.set_len(length.min(LONGEST)).unwrap();
    fix(&file, flags);
    Some(file)
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn pair(&mut self) -> Option<u64> {
        Some(u64::from(u16::from_le_bytes([self.byte()?, self.byte()?])))
    }

    fn record(&mut self, file: &Overlay) -> Option<()> {
        let place = self.byte()?;
        if place == LOG_ENTRY {
            return self.log_entry(file);
        }
        let start = match PLACES.get(usize::from(place)) {
            Some(start) => *start,
            None => (u64::from(place) - PLACES.len() as u64) * (256 << 10),
        };
        let offset = self.pair()?;
        let wanted = usize::from(self.byte()?);
        let (now, later) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = later;
        file.write_at(start + offset, now).unwrap();
        Some(())
    }

    fn log_entry(&mut self, file: &Overlay) -> Option<()> {
        let (sector, sequence, tail) = (self.byte()?, self.byte()?, self.byte()?);
        let guid: Guid = if self.byte()? & 1 == 0 { SESSION } else { EARLIER };
        let mut entry = EntryBuilder::new(guid, u64::from(sequence).max(1));
        entry = entry.tail(u32::from(tail) * 4096).file_sizes(SECOND_AT, SECOND_AT + MIB);
        for number in 0..self.byte()? % 160 {
            let Some(kind) = self.byte() else { break };
            let Some(page) = self.pair() else { break };
            match kind & 1 {
                0 => entry.data(page * 4096, &[number; 4096]).unwrap(),
                _ => entry.zero(page * 4096, u64::from(kind >> 1) * 4096).unwrap(),
            }
        }
        let bytes = entry.encode().unwrap();
        for (number, piece) in (u64::from(sector)..).zip(bytes.chunks(4096)) {
            file.write_at(LOG_AT + number % 256 * 4096, piece).unwrap();
        }
        Some(())
    }
}

fn fix(file: &Overlay, flags: u8) {
    if flags & FIX_LOG != 0 {
        for at in HEADER_OFFSETS {
            fix_log(file, at);
        }
    }
    if flags & FIX_REGIONS != 0 {
        for at in REGION_TABLE_OFFSETS {
            fix_whole(file, at, region::TABLE_LENGTH, region::SIGNATURE);
        }
    }
    if flags & FIX_HEADERS != 0 {
        for at in HEADER_OFFSETS {
            fix_whole(file, at, 4096, *b"head");
        }
    }
}

/// A structure that the file holds whole and whose signature is intact.
fn fix_whole(file: &Overlay, at: u64, length: usize, signature: [u8; 4]) {
    let mut bytes = vec![0; length];
    let there = file.read_at(at, &mut bytes).unwrap() == length;
    if there && bytes.starts_with(&signature) {
        let sum = checksum::of_structure(&bytes);
        file.write_at(at + 4, &sum.to_le_bytes()).unwrap();
    }
}

/// Every entry of the log that the header at `header` names.
fn fix_log(file: &Overlay, header: u64) {
    let mut place = [0; 12];
    if file.read_at(header + 0x44, &mut place).unwrap() < place.len() {
        return;
    }
    let [a, b, c, d, offset @ ..] = place;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let offset = u64::from_le_bytes(offset);
    if !length.is_multiple_of(MIB)
        || offset.checked_add(length).is_none_or(|end| end > file.len().unwrap())
    {
        return;
    }
    let mut budget = MOST_SUMMED;
    let mut at = 0;
    while at < length {
        // Most of a ring is a hole.
        match file.next_data(offset + at).unwrap() {
            Some(data) => at = at.max((data.start.saturating_sub(offset)) / 4096 * 4096),
            None => break,
        }
        if at >= length {
            break;
        }
        let mut start = [0; 12];
        file.read_at(offset + at, &mut start).unwrap();
        let [signature @ .., _, _, _, _, e, f, g, h] = start;
        let size = u32::from_le_bytes([e, f, g, h]) as usize;
        if signature == *b"loge"
            && size.is_multiple_of(4096)
            && (1..=budget).contains(&size)
            && size as u64 <= length
        {
            budget -= size;
            let mut entry = vec![0; size];
            for (piece, number) in entry.chunks_mut(4096).zip(at / 4096..) {
                file.read_at(offset + number * 4096 % length, piece).unwrap();
            }
            let sum = checksum::of_structure(&entry);
            file.write_at(offset + at + 4, &sum.to_le_bytes()).unwrap();
        }
        at += 4096;
    }
}
