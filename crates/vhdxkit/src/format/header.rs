//! The header, in two copies at 64 KiB and 128 KiB (MS-VHDX 2.2.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Guid, checksum};

/// The four bytes a header starts with.
pub const SIGNATURE: [u8; 4] = *b"head";
/// The only `Version` there is.
pub const VERSION: u16 = 1;
/// The only `LogVersion` there is.
pub const LOG_VERSION: u16 = 0;

/// One header copy. The checksum covers all 4096 bytes.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`SIGNATURE`].
    pub signature: [u8; 4],
    /// CRC-32C of the 4096 bytes with this field zero.
    pub checksum: U32,
    /// The greater of two valid copies is current.
    pub sequence_number: U64,
    /// Identity of the file's contents; new in every session that writes.
    pub file_write_guid: Guid,
    /// Identity of what the guest sees; what children are linked to.
    pub data_write_guid: Guid,
    /// Zero: the log is empty. Otherwise only log entries carrying this GUID count.
    pub log_guid: Guid,
    /// [`LOG_VERSION`].
    pub log_version: U16,
    /// [`VERSION`].
    pub version: U16,
    /// Bytes of the log, a multiple of 1 MiB.
    pub log_length: U32,
    /// File offset of the log, a multiple of 1 MiB.
    pub log_offset: U64,
    /// Zero.
    pub reserved: [u8; 4016],
}

const _: () = assert!(size_of::<Header>() == 4096);

impl Header {
    /// The checksum its bytes should carry.
    #[must_use]
    pub fn computed_checksum(&self) -> u32 {
        checksum::of_structure(self.as_bytes())
    }

    /// The same header with its checksum made right.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.signature = SIGNATURE;
        self.checksum = U32::new(self.computed_checksum());
        self
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("sequence_number", &self.sequence_number)
            .field("file_write_guid", &self.file_write_guid)
            .field("data_write_guid", &self.data_write_guid)
            .field("log_guid", &self.log_guid)
            .field("log_length", &self.log_length)
            .field("log_offset", &self.log_offset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header written by Windows, with the checksum Windows gave it.
    #[test]
    fn golden_windows_header() {
        let guid = |text: &str| text.parse::<Guid>().unwrap();
        let mut header = Header::new_zeroed();
        header.sequence_number = U64::new(9);
        header.file_write_guid = guid("b98791bc-45d8-445b-ade6-5cbe550f2290");
        header.data_write_guid = guid("8fbc9db8-2cfd-45b8-9688-1c6fedbc7230");
        header.log_guid = guid("e6fc743c-81ed-4fe8-bf54-698ed57ba0b8");
        header.version = U16::new(VERSION);
        header.log_length = U32::new(1 << 20);
        header.log_offset = U64::new(1 << 20);
        let header = header.sealed();
        assert_eq!(header.checksum.get(), 0xEF9A_95BF);
        let again = Header::read_from_bytes(header.as_bytes()).unwrap();
        assert_eq!(again, header);
        assert_eq!(again.computed_checksum(), again.checksum.get());
    }

    use zerocopy::FromZeros;
}
