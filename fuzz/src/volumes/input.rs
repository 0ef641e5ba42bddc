//! What the bytes of an input mean.
//!
//! | bytes | |
//! |---|---|
//! | 1 | which of the target's bases |
//! | 1 | bits: [`FIX`] checksums, [`SIZE`] of the disk set, [`SECTORS_4K`] |
//! | 4 | size of the disk in units of 512 bytes, when bit [`SIZE`] is set |
//! | … | records, to the end |
//!
//! A record puts bytes somewhere: the number of a piece of the base (2 bytes), offset in it (2 bytes), how
//! many (1 byte), the bytes. The number [`ANYWHERE`] stands for any other place: its offset on the disk in
//! units of 512 bytes (4 bytes) follows the number. What is cut off at the end counts as far as it goes.

use std::sync::Arc;

use vhdxkit_volumes::Disk;

use super::map::Changed;
use super::{Target, sums};

/// Make checksums right.
pub const FIX: u8 = 1;
/// Set the disk's size.
pub const SIZE: u8 = 2;
/// Sectors are of 4096 bytes.
pub const SECTORS_4K: u8 = 4;
/// The number of a piece that means any place.
pub const ANYWHERE: u16 = u16::MAX;

/// No disk is larger, so that reading the maps of its space takes no minutes.
const LARGEST: u64 = 64 << 30;

/// The disk that an input describes; `None` when it is too short for one.
pub fn decode(target: &Target, input: &[u8]) -> Option<Changed> {
    let mut bytes = input;
    let [base, flags] = take(&mut bytes)?;
    let maps = target.maps();
    let map = Arc::clone(&maps[usize::from(base) % maps.len()]);
    let size = match flags & SIZE {
        0 => map.size,
        _ => u64::from(u32::from_le_bytes(take(&mut bytes)?)) * 512,
    };
    let sector = if flags & SECTORS_4K == 0 { 512 } else { 4096 };
    let mut disk = Changed::new(map, size.min(LARGEST), sector);
    while record(&mut bytes, &mut disk).is_some() {}
    if flags & FIX != 0 {
        sums::fix(&mut disk);
    }
    Some(disk)
}

fn take<const LENGTH: usize>(bytes: &mut &[u8]) -> Option<[u8; LENGTH]> {
    let (now, later) = bytes.split_first_chunk::<LENGTH>()?;
    *bytes = later;
    Some(*now)
}

fn record(bytes: &mut &[u8], disk: &mut Changed) -> Option<()> {
    let number = u16::from_le_bytes(take(bytes)?);
    let start = match number {
        ANYWHERE => u64::from(u32::from_le_bytes(take(bytes)?)) * 512,
        _ => {
            let pieces = &disk.base().pieces;
            pieces.get(usize::from(number) % pieces.len().max(1))?.start
        }
    };
    let offset = u64::from(u16::from_le_bytes(take(bytes)?));
    let [length] = take(bytes)?;
    let (now, later) = bytes.split_at(bytes.len().min(length.into()));
    *bytes = later;
    if start + offset < disk.size() {
        disk.write(start + offset, now);
    }
    Some(())
}

/// A record that puts bytes at an offset of a disk; `bytes` are at most 255.
pub fn at(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut record = ANYWHERE.to_le_bytes().to_vec();
    record.extend(u32::try_from(offset / 512).expect("below 2 TiB").to_le_bytes());
    record.extend(((offset % 512) as u16).to_le_bytes());
    record.push(u8::try_from(bytes.len()).expect("a short record"));
    record.extend(bytes);
    record
}
