//! The VHDX format as it lies on disk: structures, signatures, GUIDs, checksums and limits.
//!
//! Pure bytes. Nothing in here does I/O or decides what to do about a bad value; that is the work
//! of the checked views built on top. Every structure is declared once, little-endian and
//! unaligned, with its size asserted when it is compiled. Section numbers in the documentation
//! refer to the structures of MS-VHDX: 2.2 header section, 2.3 log, 2.5 BAT, 2.6 metadata.

pub mod bat;
pub mod checksum;
pub mod guid;
mod guid_source;
pub mod header;
pub mod identifier;
pub mod limits;
pub mod locator;
pub mod log;
pub mod metadata;
pub mod region;

pub use guid::Guid;
pub use guid_source::GuidSource;

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte: the unit in which a VHDX file is laid out.
pub const MIB: u64 = 1 << 20;
/// Bytes of one log sector, and of the unit in which metadata is logged (MS-VHDX 2.3).
pub const LOG_SECTOR: u32 = 4096;
/// [`LOG_SECTOR`] as a buffer length.
pub const LOG_SECTOR_LEN: usize = 4096;

/// The header section: the first mebibyte of the file (MS-VHDX 2.2).
pub const HEADER_SECTION_LENGTH: u64 = MIB;
/// Where the two header copies lie.
pub const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Where the two region table copies lie.
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];

/// Rounds `value` up to a multiple of one mebibyte; `None` when that does not fit 64 bits.
#[must_use]
pub const fn mib_ceil(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(MIB)
}

/// Rounds `value` down to a multiple of one mebibyte.
#[must_use]
pub const fn mib_floor(value: u64) -> u64 {
    value & !(MIB - 1)
}
