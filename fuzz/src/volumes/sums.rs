//! Makes the checksums right again of whatever was changed, one file system after the other, as far as it
//! is found: best effort, and no more of it than takes microseconds.

mod btrfs;
mod ext;
mod tables;
mod xfs;

use vhdxkit_volumes::Disk;

use super::map::{Changed, PAGE};

/// All that is known how to make right.
pub fn fix(disk: &mut Changed) {
    ext::fix(disk);
    xfs::fix(disk);
    btrfs::fix(disk);
    tables::fix_exfat(disk);
    tables::fix_gpt(disk);
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// CRC-32C as ext4 keeps it: begun with `seed`, its bits not inverted at the end.
fn raw_crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Puts the checksum, in little-endian, of `length` bytes at `start` to offset `at` of them, as if zeros had been
/// there.
fn fix_crc32c(disk: &mut Changed, start: u64, length: usize, at: usize) {
    let Some(mut bytes) = disk.get(start, length) else { return };
    bytes[at..at + 4].fill(0);
    let sum = crc32c::crc32c(&bytes);
    disk.write(start + at as u64, &sum.to_le_bytes());
}

/// The size, for loops that must stay on the disk.
fn size(disk: &Changed) -> u64 {
    Disk::size(disk)
}
