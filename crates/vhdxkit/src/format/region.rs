//! The region table, in two copies at 192 KiB and 256 KiB (MS-VHDX 2.2.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Guid, checksum};

/// The four bytes a region table starts with.
pub const SIGNATURE: [u8; 4] = *b"regi";
/// Bytes of a region table, all of them under its checksum.
pub const TABLE_LENGTH: usize = 64 << 10;
/// The block allocation table.
pub const BAT_REGION: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The metadata region.
pub const METADATA_REGION: Guid = Guid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

/// The first 16 bytes of a region table.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionTableHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 4],
    /// CRC-32C of all 64 KiB with this field zero.
    pub checksum: U32,
    /// How many entries follow, at most 2047.
    pub entry_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// One region.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RegionTableEntry {
    /// What the region is; unique in the table.
    pub guid: Guid,
    /// File offset, a multiple of 1 MiB and not less than 1 MiB.
    pub file_offset: U64,
    /// Bytes, a multiple of 1 MiB.
    pub length: U32,
    /// Bit 0: whoever does not know the region must not open the file.
    pub required: U32,
}

const _: () = assert!(size_of::<RegionTableHeader>() == 16);
const _: () = assert!(size_of::<RegionTableEntry>() == 32);

/// The bytes of a region table holding `entries`; `None` when they do not fit.
#[must_use]
pub fn encode_table(entries: &[RegionTableEntry]) -> Option<Vec<u8>> {
    let entry_count = u32::try_from(entries.len()).ok()?;
    if entry_count > super::limits::MAX_REGIONS {
        return None;
    }
    let header = RegionTableHeader {
        signature: SIGNATURE,
        checksum: U32::ZERO,
        entry_count: U32::new(entry_count),
        reserved: U32::ZERO,
    };
    let mut table = Vec::with_capacity(TABLE_LENGTH);
    table.extend_from_slice(header.as_bytes());
    table.extend_from_slice(entries.as_bytes());
    table.resize(TABLE_LENGTH, 0);
    let sum = checksum::of_structure(&table);
    table.get_mut(checksum::CHECKSUM_FIELD)?.copy_from_slice(&sum.to_le_bytes());
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(guid: Guid, mib: u64, required: u32) -> RegionTableEntry {
        RegionTableEntry {
            guid,
            file_offset: U64::new(mib << 20),
            length: U32::new(1 << 20),
            required: U32::new(required),
        }
    }

    /// Tables as Windows, QEMU and Disk2vhd write them, with the checksums they carry.
    #[test]
    fn golden_tables() {
        let (bat, meta) = (BAT_REGION, METADATA_REGION);
        for (entries, sum) in [
            ([entry(bat, 3, 1), entry(meta, 2, 1)], 0xC66B_8CAE_u32),
            ([entry(bat, 2, 0), entry(meta, 3, 0)], 0x2C6F_CE83),
            ([entry(meta, 2, 1), entry(bat, 3, 1)], 0x1C14_2859),
        ] {
            let table = encode_table(&entries).unwrap();
            let (header, rest) = RegionTableHeader::read_from_prefix(&table).unwrap();
            assert_eq!((header.checksum.get(), header.entry_count.get()), (sum, 2));
            let (read, _) = <[RegionTableEntry; 2]>::read_from_prefix(rest).unwrap();
            assert_eq!(read, entries);
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        assert!(encode_table(&vec![entry(BAT_REGION, 3, 1); 2047]).is_some());
        assert!(encode_table(&vec![entry(BAT_REGION, 3, 1); 2048]).is_none());
    }
}
