//! Log entries (MS-VHDX 2.3.1): header, descriptors, data sectors.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Guid, LOG_SECTOR};

/// The four bytes an entry starts with.
pub const ENTRY_SIGNATURE: [u8; 4] = *b"loge";
/// The four bytes a zero descriptor starts with.
pub const ZERO_SIGNATURE: [u8; 4] = *b"zero";
/// The four bytes a data descriptor starts with.
pub const DATA_DESCRIPTOR_SIGNATURE: [u8; 4] = *b"desc";
/// The four bytes a data sector starts with.
pub const DATA_SECTOR_SIGNATURE: [u8; 4] = *b"data";

/// Bytes of an entry header.
pub const ENTRY_HEADER_LENGTH: usize = 64;
/// Bytes of a descriptor.
pub const DESCRIPTOR_LENGTH: usize = 32;

/// Entry header (MS-VHDX 2.3.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EntryHeader {
    /// [`ENTRY_SIGNATURE`].
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry with this field zero.
    pub checksum: U32,
    /// Bytes of the entry: 4096 times its sectors.
    pub entry_length: U32,
    /// Log offset of the oldest entry that is still needed when this one is the newest.
    pub tail: U32,
    /// Greater than zero; one more than the entry before.
    pub sequence_number: U64,
    /// How many descriptors follow; zero is legal.
    pub descriptor_count: U32,
    /// Zero.
    pub reserved: U32,
    /// The header's `LogGuid` at the time of writing.
    pub log_guid: Guid,
    /// A file size that was stable when the entry was written.
    pub flushed_file_offset: U64,
    /// A file size into which every structure fits once the entry is applied.
    pub last_file_offset: U64,
}

/// Zero descriptor (MS-VHDX 2.3.1.2): a range to fill with zeros.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZeroDescriptor {
    /// [`ZERO_SIGNATURE`].
    pub signature: [u8; 4],
    /// Zero.
    pub reserved: U32,
    /// Bytes to zero, a multiple of 4 KiB.
    pub zero_length: U64,
    /// Where, a multiple of 4 KiB.
    pub file_offset: U64,
    /// The entry's.
    pub sequence_number: U64,
}

/// Data descriptor (MS-VHDX 2.3.1.3): a 4 KiB sector to write.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataDescriptor {
    /// [`DATA_DESCRIPTOR_SIGNATURE`].
    pub signature: [u8; 4],
    /// Bytes 4092 to 4095 of the sector.
    pub trailing_bytes: [u8; 4],
    /// Bytes 0 to 7 of the sector.
    pub leading_bytes: [u8; 8],
    /// Where, a multiple of 4 KiB.
    pub file_offset: U64,
    /// The entry's.
    pub sequence_number: U64,
}

/// Data sector (MS-VHDX 2.3.1.4): bytes 8 to 4091 of the sector to write, framed so that a torn or
/// misplaced write shows.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataSector {
    /// [`DATA_SECTOR_SIGNATURE`].
    pub signature: [u8; 4],
    /// Upper half of the entry's sequence number.
    pub sequence_high: U32,
    /// Bytes 8 to 4091.
    pub data: [u8; 4084],
    /// Lower half of the entry's sequence number.
    pub sequence_low: U32,
}

const _: () = assert!(size_of::<EntryHeader>() == ENTRY_HEADER_LENGTH);
const _: () = assert!(size_of::<ZeroDescriptor>() == DESCRIPTOR_LENGTH);
const _: () = assert!(size_of::<DataDescriptor>() == DESCRIPTOR_LENGTH);
const _: () = assert!(size_of::<DataSector>() == LOG_SECTOR as usize);

/// Sectors that an entry header and `descriptors` descriptors take: at least one.
#[must_use]
pub const fn descriptor_sectors(descriptors: u32) -> u32 {
    // 126 descriptors share the first sector with the entry header, every further one holds 128.
    descriptors.saturating_sub(126).div_ceil(128).saturating_add(1)
}

/// A sequence number as the two halves that frame a data sector: high, low.
#[must_use]
pub const fn sequence_halves(sequence: u64) -> ([u8; 4], [u8; 4]) {
    let [a, b, c, d, e, f, g, h] = sequence.to_le_bytes();
    ([e, f, g, h], [a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_sectors_follow_the_64_byte_header() {
        for (descriptors, sectors) in
            [(0, 1), (1, 1), (126, 1), (127, 2), (254, 2), (255, 3), (1000, 8)]
        {
            assert_eq!(descriptor_sectors(descriptors), sectors, "{descriptors}");
            assert_eq!(descriptor_sectors(descriptors), (64 + 32 * descriptors).div_ceil(4096));
        }
        assert!(descriptor_sectors(u32::MAX) > 1);
    }

    #[test]
    fn halves_are_little_endian_and_high_first() {
        let (high, low) = sequence_halves(0x0000_0005_0000_0007);
        assert_eq!((high, low), ([5, 0, 0, 0], [7, 0, 0, 0]));
    }
}
