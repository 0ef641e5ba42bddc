//! The metadata region: a table of items, then the items (MS-VHDX 2.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Guid;

/// The eight bytes the metadata table starts with.
pub const SIGNATURE: [u8; 8] = *b"metadata";
/// Bytes of the table; items lie behind it.
pub const TABLE_LENGTH: usize = 64 << 10;

/// Item: [`FileParameters`].
pub const FILE_PARAMETERS: Guid = Guid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
/// Item: virtual disk size, `u64` bytes.
pub const VIRTUAL_DISK_SIZE: Guid = Guid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
/// Item: virtual disk identity (SCSI page 0x83), a GUID.
pub const VIRTUAL_DISK_ID: Guid = Guid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
/// Item: logical sector size, `u32`, 512 or 4096.
pub const LOGICAL_SECTOR_SIZE: Guid = Guid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
/// Item: physical sector size, `u32`, 512 or 4096.
pub const PHYSICAL_SECTOR_SIZE: Guid = Guid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
/// Item: parent locator, of differencing disks.
pub const PARENT_LOCATOR: Guid = Guid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// Item of Microsoft's own software: CHS geometry.
pub const CHS_PARAMETERS: Guid = Guid::from_u128(0xDA02D7BC_3D3A_423C_AC88_2A36AB21479B);
/// Item of Microsoft's own software: the file's creation was not finished.
pub const INCOMPLETE_FILE: Guid = Guid::from_u128(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);
/// Item of Microsoft's own software: persistent-memory labels.
pub const PMEM_LABELS: Guid = Guid::from_u128(0x10E1AE8A_4B7E_4169_A40F_CD70DE928393);

/// Table header (MS-VHDX 2.6.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TableHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// Zero.
    pub reserved: U16,
    /// How many entries follow, at most 2047.
    pub entry_count: U16,
    /// Zero.
    pub reserved2: [u8; 20],
}

/// Table entry (MS-VHDX 2.6.1.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TableEntry {
    /// What the item is; unique together with `IsUser`.
    pub item_id: Guid,
    /// Offset from the start of the region, at least 64 KiB; zero when the item is empty.
    pub offset: U32,
    /// Bytes, at most 1 MiB.
    pub length: U32,
    /// [`IS_USER`], [`IS_VIRTUAL_DISK`], [`IS_REQUIRED`].
    pub flags: U32,
    /// Zero.
    pub reserved2: U32,
}

/// The item belongs to the user, not to the system.
pub const IS_USER: u32 = 1;
/// The item belongs to the virtual disk (and goes with it into a child), not to this file.
pub const IS_VIRTUAL_DISK: u32 = 2;
/// Whoever does not know the item must not open the file.
pub const IS_REQUIRED: u32 = 4;

/// The File Parameters item (MS-VHDX 2.6.2.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileParameters {
    /// Bytes of a payload block: a power of two, 1 MiB to 256 MiB.
    pub block_size: U32,
    /// [`LEAVE_BLOCK_ALLOCATED`], [`HAS_PARENT`].
    pub flags: U32,
}

/// A fixed disk.
pub const LEAVE_BLOCK_ALLOCATED: u32 = 1;
/// A differencing disk.
pub const HAS_PARENT: u32 = 2;

const _: () = assert!(size_of::<TableHeader>() == 32);
const _: () = assert!(size_of::<TableEntry>() == 32);
const _: () = assert!(size_of::<FileParameters>() == 8);

/// An item to be laid out by [`encode_region`].
#[derive(Debug, Clone)]
pub struct Item {
    /// What the item is.
    pub id: Guid,
    /// Its flags.
    pub flags: u32,
    /// Its bytes; an empty item is "present but empty".
    pub data: Vec<u8>,
}

impl Item {
    /// Whether it belongs to the user, not to the system.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.flags & IS_USER != 0
    }

    /// The five items every file has, with the flags Windows gives them.
    #[must_use]
    pub fn mandatory(
        parameters: FileParameters,
        virtual_size: u64,
        logical_sector: u32,
        physical_sector: u32,
        disk_id: Guid,
    ) -> Vec<Self> {
        let system = IS_VIRTUAL_DISK | IS_REQUIRED;
        let item = |id, flags, data: &[u8]| Self { id, flags, data: data.to_vec() };
        vec![
            item(FILE_PARAMETERS, IS_REQUIRED, parameters.as_bytes()),
            item(VIRTUAL_DISK_SIZE, system, U64::new(virtual_size).as_bytes()),
            item(LOGICAL_SECTOR_SIZE, system, U32::new(logical_sector).as_bytes()),
            item(PHYSICAL_SECTOR_SIZE, system, U32::new(physical_sector).as_bytes()),
            item(VIRTUAL_DISK_ID, system, disk_id.as_bytes()),
        ]
    }
}

/// The bytes of a metadata region's used part: table, then the items one after another.
/// `None` when they do not fit the table.
#[must_use]
pub fn encode_region(items: &[Item]) -> Option<Vec<u8>> {
    let count = u16::try_from(items.len()).ok()?;
    if count > super::limits::MAX_METADATA_ITEMS {
        return None;
    }
    let header = TableHeader {
        signature: SIGNATURE,
        reserved: U16::ZERO,
        entry_count: U16::new(count),
        reserved2: [0; 20],
    };
    let mut table = header.as_bytes().to_vec();
    let mut body: Vec<u8> = Vec::new();
    for item in items {
        let offset = match item.data.len() {
            0 => 0,
            _ => u32::try_from(TABLE_LENGTH.checked_add(body.len())?).ok()?,
        };
        let entry = TableEntry {
            item_id: item.id,
            offset: U32::new(offset),
            length: U32::new(u32::try_from(item.data.len()).ok()?),
            flags: U32::new(item.flags),
            reserved2: U32::ZERO,
        };
        table.extend_from_slice(entry.as_bytes());
        body.extend_from_slice(&item.data);
    }
    table.resize(TABLE_LENGTH, 0);
    table.append(&mut body);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table entry of a Windows-written parent locator, byte for byte.
    #[test]
    fn table_entry_lies_as_windows_writes_it() {
        let bytes = [
            0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34,
            0xab, 0x0c, 0x28, 0x00, 0x01, 0x00, 0xa2, 0x02, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00,
        ];
        let entry = TableEntry::read_from_bytes(&bytes).unwrap();
        assert_eq!(entry.item_id, PARENT_LOCATOR);
        assert_eq!((entry.offset.get(), entry.length.get()), (0x10028, 674));
        assert_eq!(entry.flags.get(), IS_REQUIRED);
        assert_eq!(entry.as_bytes(), bytes);
    }

    #[test]
    fn mandatory_items_land_where_windows_puts_them() {
        let parameters = FileParameters { block_size: U32::new(1 << 20), flags: U32::ZERO };
        let items = Item::mandatory(parameters, 1 << 30, 512, 4096, Guid::from_u128(7));
        let region = encode_region(&items).unwrap();
        let (header, rest) = TableHeader::read_from_prefix(&region).unwrap();
        assert_eq!((header.signature, header.entry_count.get()), (SIGNATURE, 5));
        let (entries, _) = <[TableEntry; 5]>::read_from_prefix(rest).unwrap();
        let offsets = entries.map(|entry| entry.offset.get());
        assert_eq!(offsets, [0x10000, 0x10008, 0x10010, 0x10014, 0x10018]);
        assert_eq!(region[0x10008..0x10010], (1u64 << 30).to_le_bytes());
    }
}
