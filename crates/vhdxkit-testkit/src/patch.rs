//! Making checksums right again after a test has changed bytes of a built image.

use std::ops::Range;

use vhdxkit::format::checksum::{CHECKSUM_FIELD, StructureSum, of_structure};
use vhdxkit::format::region::TABLE_LENGTH;
use vhdxkit::format::{HEADER_OFFSETS, REGION_TABLE_OFFSETS};

/// Recomputes the checksum of header `copy` (0 or 1) of a whole image.
pub fn reseal_header(image: &mut [u8], copy: usize) {
    seal(image, at(HEADER_OFFSETS[copy], 4096));
}

/// Recomputes the checksum of region table `copy` (0 or 1) of a whole image.
pub fn reseal_region_table(image: &mut [u8], copy: usize) {
    seal(image, at(REGION_TABLE_OFFSETS[copy], TABLE_LENGTH));
}

/// Recomputes the checksum of the log entry that starts at `entry_offset` of the file, round the
/// end of the ring if it goes there. An entry that claims to be longer than the log is summed as
/// far as the log goes.
pub fn reseal_log_entry(image: &mut [u8], entry_offset: u64, log_offset: u64, log_length: u64) {
    let start = usize::try_from(entry_offset).unwrap();
    let claimed = u32::from_le_bytes(image[start + 8..start + 12].try_into().unwrap());
    let length = u64::from(claimed).min(log_length);
    let before_wrap = length.min(log_offset + log_length - entry_offset);
    let first = at(entry_offset, usize::try_from(before_wrap).unwrap());
    let second = at(log_offset, usize::try_from(length - before_wrap).unwrap());
    let mut sum = StructureSum::new();
    sum.update(&image[first]);
    sum.update(&image[second]);
    image[at(entry_offset + 4, 4)].copy_from_slice(&sum.finish().to_le_bytes());
}

/// Stores a little-endian `u32` at `offset`.
pub fn put_u32(image: &mut [u8], offset: u64, value: u32) {
    image[at(offset, 4)].copy_from_slice(&value.to_le_bytes());
}

/// Stores a little-endian `u64` at `offset`.
pub fn put_u64(image: &mut [u8], offset: u64, value: u64) {
    image[at(offset, 8)].copy_from_slice(&value.to_le_bytes());
}

fn seal(image: &mut [u8], range: Range<usize>) {
    let structure = &mut image[range];
    let sum = of_structure(structure);
    structure[CHECKSUM_FIELD].copy_from_slice(&sum.to_le_bytes());
}

fn at(offset: u64, length: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + length
}
