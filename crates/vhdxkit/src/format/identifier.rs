//! File type identifier, at offset 0 (MS-VHDX 2.2.1). Written once, never changed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U16};

/// The eight bytes every VHDX file starts with.
pub const SIGNATURE: [u8; 8] = *b"vhdxfile";

/// The defined part of the identifier; the rest of its 64 KiB is reserved.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileIdentifier {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// Who made the file, UTF-16; diagnostic only.
    pub creator: [U16; 256],
}

const _: () = assert!(size_of::<FileIdentifier>() == 520);

impl FileIdentifier {
    /// An identifier naming `creator` (cut off at 256 UTF-16 units).
    #[must_use]
    pub fn new(creator: &str) -> Self {
        let mut units = [U16::ZERO; 256];
        for (slot, unit) in units.iter_mut().zip(creator.encode_utf16()) {
            *slot = U16::new(unit);
        }
        Self { signature: SIGNATURE, creator: units }
    }

    /// The creator up to its first NUL; what is not valid UTF-16 is replaced.
    #[must_use]
    pub fn creator(&self) -> String {
        let units = self.creator.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creator_round_trips() {
        let identifier = FileIdentifier::new("QEMU v10.0.2 ✓");
        let bytes = identifier.as_bytes();
        assert_eq!(&bytes[..12], b"vhdxfileQ\0E\0");
        let read = FileIdentifier::read_from_bytes(bytes).unwrap();
        assert_eq!(read.creator(), "QEMU v10.0.2 ✓");
        assert_eq!(FileIdentifier::new(&"x".repeat(300)).creator().len(), 256);
    }
}
