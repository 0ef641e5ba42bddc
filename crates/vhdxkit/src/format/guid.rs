//! GUIDs in Microsoft's mixed-endian byte order.

use std::fmt;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID as it is stored in the file: text groups one to three little-endian, the rest as written.
///
/// Printed in lower case with hyphens and without braces. Compared byte by byte.
///
/// ```
/// use vhdxkit::format::Guid;
///
/// let bat: Guid = "{2DC27766-F623-4200-9D64-115E9BFD4A08}".parse().unwrap();
/// assert_eq!(bat, vhdxkit::format::region::BAT_REGION);
/// assert_eq!(bat.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
/// ```
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All bits zero: "no log" in a header, "no identity" in a parent locator.
    pub const ZERO: Self = Self([0; 16]);

    /// A GUID from the bytes stored in a file.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes to store in a file.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// A GUID from the 128-bit number its text form spells, most significant digit first.
    #[must_use]
    pub const fn from_u128(text: u128) -> Self {
        Self(uuid::Uuid::from_u128(text).to_bytes_le())
    }

    /// A new random (version 4) GUID.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_bytes_le())
    }

    /// Whether all bits are zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes_le(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The text was not a GUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID")]
pub struct ParseGuidError;

impl FromStr for Guid {
    type Err = ParseGuidError;

    /// Reads the usual text form in either case, with or without braces.
    fn from_str(text: &str) -> Result<Self, ParseGuidError> {
        let bare = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(ParseGuidError)?,
            None => text,
        };
        if bare.len() != 36 {
            return Err(ParseGuidError);
        }
        let uuid = uuid::Uuid::try_parse(bare).map_err(|_| ParseGuidError)?;
        Ok(Self(uuid.to_bytes_le()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_bytes_are_mixed_endian() {
        let guid: Guid = "2DC27766-F623-4200-9D64-115E9BFD4A08".parse().unwrap();
        let disk = [
            0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd,
            0x4a, 0x08,
        ];
        assert_eq!(guid.to_bytes(), disk);
        assert_eq!(Guid::from_bytes(disk).to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08), guid);
    }

    #[test]
    fn broken_text_is_refused() {
        for text in ["", "{", "{2DC27766-F623-4200-9D64-115E9BFD4A08", "2DC27766F62342009D64"] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text}");
        }
    }

    #[test]
    fn random_guids_are_version_4_and_differ() {
        let (a, b) = (Guid::random(), Guid::random());
        assert_ne!(a, b);
        assert_eq!(a.to_string().as_bytes()[14], b'4');
    }
}
