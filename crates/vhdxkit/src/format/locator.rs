//! The parent locator item of a differencing disk (MS-VHDX 2.6.2.6).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Guid;

/// The only locator type there is: the parent is a VHDX file.
pub const VHDX_LOCATOR: Guid = Guid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// Locator header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LocatorHeader {
    /// [`VHDX_LOCATOR`].
    pub locator_type: Guid,
    /// Zero.
    pub reserved: U16,
    /// How many entries follow.
    pub key_value_count: U16,
}

/// One key-value pair; offsets count from the start of the item, lengths are bytes of UTF-16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LocatorEntry {
    /// Where the key is.
    pub key_offset: U32,
    /// Where the value is.
    pub value_offset: U32,
    /// Bytes of the key.
    pub key_length: U16,
    /// Bytes of the value.
    pub value_length: U16,
}

const _: () = assert!(size_of::<LocatorHeader>() == 20);
const _: () = assert!(size_of::<LocatorEntry>() == 12);

/// The bytes of a locator item with these pairs, strings packed as Windows packs them: key, value,
/// key, value. `None` when something does not fit its field.
#[must_use]
pub fn encode(pairs: &[(&str, &str)]) -> Option<Vec<u8>> {
    let header = LocatorHeader {
        locator_type: VHDX_LOCATOR,
        reserved: U16::ZERO,
        key_value_count: U16::new(u16::try_from(pairs.len()).ok()?),
    };
    let entries_length = pairs.len().checked_mul(size_of::<LocatorEntry>())?;
    let strings_start = size_of::<LocatorHeader>().checked_add(entries_length)?;
    let mut table = header.as_bytes().to_vec();
    let mut strings: Vec<u8> = Vec::new();
    let mut place = |text: &str| -> Option<(U32, U16)> {
        let offset = u32::try_from(strings_start.checked_add(strings.len())?).ok()?;
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let length = u16::try_from(bytes.len()).ok()?;
        strings.extend_from_slice(&bytes);
        Some((U32::new(offset), U16::new(length)))
    };
    for (key, value) in pairs {
        let (key_offset, key_length) = place(key)?;
        let (value_offset, value_length) = place(value)?;
        let entry = LocatorEntry { key_offset, value_offset, key_length, value_length };
        table.extend_from_slice(entry.as_bytes());
    }
    table.append(&mut strings);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets and lengths of a locator that Windows wrote, five pairs in 674 bytes.
    #[test]
    fn strings_are_packed_as_windows_packs_them() {
        let volume = format!(r"\\?\Volume{{{}}}\VM\parent.vhdx", "0".repeat(36));
        let path = format!(r"C:\{}", "p".repeat(40));
        let relative = format!(r".\{}", "p".repeat(15));
        let volume = format!("{volume:x<89}");
        let linkage = "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}";
        let zero = "{00000000-0000-0000-0000-000000000000}";
        let item = encode(&[
            ("parent_linkage", linkage),
            ("absolute_win32_path", &path),
            ("relative_path", &relative),
            ("volume_path", &volume),
            ("parent_linkage2", zero),
        ])
        .unwrap();
        assert_eq!(item.len(), 674);
        assert_eq!(
            item[..32],
            [
                0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44,
                0x59, 0x13, 0, 0, 5, 0, 0x50, 0, 0, 0, 0x6c, 0, 0, 0, 0x1c, 0, 0x4c, 0
            ]
        );
        let (_, rest) = LocatorHeader::read_from_prefix(&item).unwrap();
        let (entries, _) = <[LocatorEntry; 5]>::read_from_prefix(rest).unwrap();
        let places = entries.map(|e| (e.key_offset.get(), e.value_offset.get()));
        assert_eq!(places, [(80, 108), (184, 222), (308, 334), (368, 390), (568, 598)]);
    }
}
