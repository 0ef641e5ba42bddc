//! The structures of a VHD file: footer, dynamic disk header, parent locators. Bytes only, big-endian.
//!
//! Names are those of the Virtual Hard Disk Image Format Specification, version 1.0.

use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::Guid;

/// Bytes of a sector, in which the format counts everything.
pub const SECTOR: u64 = 512;
/// Bytes of a [`Footer`].
pub const FOOTER_BYTES: u64 = 512;
/// Bytes of a [`DynamicHeader`].
pub const HEADER_BYTES: u64 = 1024;
/// `Cookie` of a footer.
pub const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// `Cookie` of a dynamic disk header.
pub const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// `File Format Version` and `Header Version`: 1.0, the major number in the upper half.
pub const VERSION: u32 = 0x0001_0000;
/// A BAT entry without a block.
pub const UNUSED: u32 = u32::MAX;
/// Largest disk: 2040 GiB, what a BAT of 32-bit sector numbers can address with room for its bitmaps.
pub const MAX_SIZE: u64 = 2040 << 30;
/// Blocks that Windows makes.
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;
/// Largest block that is read. Windows makes 512 KiB and 2 MiB; the format names no bound, and a bitmap
/// must fit memory.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Smallest block that is read; others make no sense beside a bitmap of a sector.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Bytes of a path in a parent locator that is read; Windows' longest paths need 64 KiB.
pub const MAX_LOCATOR_BYTES: u32 = 1 << 16;
/// Sectors of the largest geometry, `0xFFFF` cylinders, 16 heads, 255 sectors per track: about 127 GiB.
pub const MAX_GEOMETRY: u64 = 65535 * 16 * 255;
/// `Disk Type`: fixed hard disk.
pub const TYPE_FIXED: u32 = 2;
/// `Disk Type`: dynamic hard disk.
pub const TYPE_DYNAMIC: u32 = 3;
/// `Disk Type`: differencing hard disk.
pub const TYPE_DIFFERENCING: u32 = 4;
/// Platform code: a relative Windows path, UTF-16, little-endian whatever the rest of the file is.
pub const WINDOWS_RELATIVE: [u8; 4] = *b"W2ru";
/// Platform code: an absolute Windows path, UTF-16, little-endian.
pub const WINDOWS_ABSOLUTE: [u8; 4] = *b"W2ku";
/// Platform code: a file URL, UTF-8.
pub const MAC_URL: [u8; 4] = *b"MacX";

/// Seconds between the epochs of Unix and of this format, 1 January 2000.
const EPOCH: u64 = 946_684_800;

/// Hard disk footer: the last sector of every file, and the first one of a file with a BAT.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Footer {
    /// [`FOOTER_COOKIE`].
    pub cookie: [u8; 8],
    /// Bit 0: temporary disk. Bit 1: always set.
    pub features: U32,
    /// [`VERSION`].
    pub file_format_version: U32,
    /// Where the dynamic disk header lies; all ones for a fixed disk.
    pub data_offset: U64,
    /// When it was made, in seconds since 2000.
    pub time_stamp: U32,
    /// Who made it.
    pub creator_application: [u8; 4],
    /// Its version.
    pub creator_version: U32,
    /// `Wi2k` or `Mac `.
    pub creator_host_os: [u8; 4],
    /// Bytes of the disk when it was made.
    pub original_size: U64,
    /// Bytes of the disk.
    pub current_size: U64,
    /// Geometry: cylinders.
    pub cylinders: U16,
    /// Geometry: heads.
    pub heads: u8,
    /// Geometry: sectors per track.
    pub sectors_per_track: u8,
    /// [`TYPE_FIXED`], [`TYPE_DYNAMIC`] or [`TYPE_DIFFERENCING`].
    pub disk_type: U32,
    /// [`checksum`] of the footer with zeros here.
    pub checksum: U32,
    /// Who this disk is; its children name it.
    pub unique_id: [u8; 16],
    /// 1 when a machine was suspended on it.
    pub saved_state: u8,
    /// Zeros.
    pub reserved: [u8; 427],
}

/// Dynamic disk header.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DynamicHeader {
    /// [`HEADER_COOKIE`].
    pub cookie: [u8; 8],
    /// All ones.
    pub data_offset: U64,
    /// Where the BAT lies.
    pub table_offset: U64,
    /// [`VERSION`].
    pub header_version: U32,
    /// Entries of the BAT.
    pub max_table_entries: U32,
    /// Bytes of a block, its bitmap not counted.
    pub block_size: U32,
    /// [`checksum`] of the header with zeros here.
    pub checksum: U32,
    /// The parent's unique id.
    pub parent_unique_id: [u8; 16],
    /// When the parent was last changed, in seconds since 2000.
    pub parent_time_stamp: U32,
    /// Zero.
    pub reserved: U32,
    /// The parent's file name, UTF-16, big-endian.
    pub parent_unicode_name: [u8; 512],
    /// Where the parent may be.
    pub parent_locators: [LocatorEntry; 8],
    /// Zeros.
    pub reserved_end: [u8; 256],
}

/// Parent locator entry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LocatorEntry {
    /// What sort of path it is; zero: none.
    pub platform_code: [u8; 4],
    /// Room for the path. The specification counts sectors, Microsoft's programs write bytes.
    pub platform_data_space: U32,
    /// Bytes of the path.
    pub platform_data_length: U32,
    /// Zero.
    pub reserved: U32,
    /// Where the path lies.
    pub platform_data_offset: U64,
}

const _: () = assert!(size_of::<Footer>() == 512);
const _: () = assert!(size_of::<DynamicHeader>() == 1024);
const _: () = assert!(size_of::<LocatorEntry>() == 24);

/// The one's complement of the sum of all bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Identities are stored most significant byte first, unlike those of a VHDX.
#[must_use]
pub fn guid_of(bytes: [u8; 16]) -> Guid {
    Guid::from_u128(u128::from_be_bytes(bytes))
}

/// The bytes that [`guid_of`] reads.
#[must_use]
pub fn guid_bytes(guid: Guid) -> [u8; 16] {
    let mut bytes = guid.to_bytes();
    // The first three groups are little-endian in a GUID's memory.
    for group in [0..4, 4..6, 6..8] {
        if let Some(group) = bytes.get_mut(group) {
            group.reverse();
        }
    }
    bytes
}

/// Now, in the format's seconds.
#[must_use]
pub fn now() -> u32 {
    time_stamp(SystemTime::now())
}

/// A point in time in seconds since 2000; what the field cannot hold is cut to what it can.
#[must_use]
pub fn time_stamp(time: SystemTime) -> u32 {
    let unix = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// Cylinders, heads and sectors per track for a disk of so many sectors, as the specification's appendix
/// computes them. Their product is no larger than the disk, and often smaller.
#[must_use]
pub fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(MAX_GEOMETRY);
    let tracks = |per_track: u64| sectors.checked_div(per_track).unwrap_or_default();
    let (mut per_track, mut heads, mut times) = (255, 16, tracks(255));
    if sectors < 65535 * 16 * 63 {
        per_track = 17;
        times = tracks(per_track);
        heads = times.div_ceil(1024).max(4);
        if times >= heads.saturating_mul(1024) || heads > 16 {
            (per_track, heads, times) = (31, 16, tracks(31));
        }
        if times >= heads.saturating_mul(1024) {
            (per_track, heads, times) = (63, 16, tracks(63));
        }
    }
    let cylinders = times.checked_div(heads).unwrap_or_default();
    (
        u16::try_from(cylinders).unwrap_or(u16::MAX),
        u8::try_from(heads).unwrap_or(16),
        u8::try_from(per_track).unwrap_or(u8::MAX),
    )
}

impl Footer {
    /// The geometry's size in sectors.
    #[must_use]
    pub fn geometry_sectors(&self) -> u64 {
        u64::from(self.cylinders.get())
            .saturating_mul(u64::from(self.heads))
            .saturating_mul(u64::from(self.sectors_per_track))
    }

    /// Whether the checksum is right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut copy = self.clone();
        copy.checksum = U32::ZERO;
        checksum(copy.as_bytes()) == self.checksum.get()
    }

    /// The same with its checksum made right.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = U32::ZERO;
        self.checksum = U32::new(checksum(self.as_bytes()));
        self
    }
}

impl DynamicHeader {
    /// Whether the checksum is right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut copy = self.clone();
        copy.checksum = U32::ZERO;
        checksum(copy.as_bytes()) == self.checksum.get()
    }

    /// The same with its checksum made right.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = U32::ZERO;
        self.checksum = U32::new(checksum(self.as_bytes()));
        self
    }

    /// All zeros.
    #[must_use]
    pub fn empty() -> Self {
        Self::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_the_way_to_disk_and_back() {
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        let guid: Guid = text.parse().unwrap();
        let bytes = guid_bytes(guid);
        assert_eq!(bytes[..6], [0x2d, 0xc2, 0x77, 0x66, 0xf6, 0x23]);
        assert_eq!(guid_of(bytes), guid);
    }

    /// The specification's algorithm at the edges of its cases. `qemu-img create -f vpc` agrees.
    #[test]
    fn the_geometry_is_the_specifications() {
        for (sectors, expected) in [
            (0, (0, 4, 17)),
            (20480, (301, 4, 17)),
            (69632 - 1, (1023, 4, 17)),
            (2_097_152, (2080, 16, 63)),
            (65535 * 16 * 63 - 1, (65534, 16, 63)),
            (65535 * 16 * 63, (16191, 16, 255)),
            (u64::MAX, (65535, 16, 255)),
        ] {
            assert_eq!(geometry(sectors), expected, "{sectors}");
            let (c, h, s) = geometry(sectors);
            assert!(u64::from(c) * u64::from(h) * u64::from(s) <= sectors);
        }
    }

    #[test]
    fn time_begins_in_2000() {
        let at = |seconds| time_stamp(UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!((at(0), at(EPOCH), at(EPOCH + 7)), (0, 0, 7));
        assert_eq!(at(u64::from(u32::MAX) + EPOCH + 9), u32::MAX);
    }
}
