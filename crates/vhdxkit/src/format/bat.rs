//! Entries of the block allocation table (MS-VHDX 2.5.1).

use super::limits::MAX_FILE_OFFSET;
use super::{LOG_SECTOR_LEN, MIB};

/// Bytes of a BAT entry.
pub const ENTRY_LENGTH: u64 = 8;
/// BAT entries in a 4 KiB page.
pub const ENTRIES_PER_PAGE: u64 = 512;
/// Bytes of a sector bitmap block, and of the unit of `FileOffsetMB`.
pub const SECTOR_BITMAP_BLOCK: u64 = 1 << 20;
/// Sectors that one sector bitmap block describes.
pub const SECTORS_PER_BITMAP: u64 = 1 << 23;

const STATE_MASK: u64 = 0x7;
const RESERVED_MASK: u64 = 0xF_FFF8;
const OFFSET_MASK: u64 = !0xF_FFFF;

/// One entry, as stored.
///
/// ```
/// use vhdxkit::format::bat::RawEntry;
///
/// let entry = RawEntry::new(6, 0x90_0000);
/// assert_eq!((entry.state(), entry.file_offset(), entry.reserved()), (6, 0x90_0000, 0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawEntry(pub u64);

impl RawEntry {
    /// An entry of the given state whose block lies at `file_offset` (its low 20 bits are dropped).
    #[must_use]
    pub const fn new(state: u8, file_offset: u64) -> Self {
        Self((file_offset & OFFSET_MASK) | (state as u64 & STATE_MASK))
    }

    /// Bits 0 to 2.
    #[must_use]
    pub const fn state(self) -> u8 {
        (self.0 & STATE_MASK).to_le_bytes()[0]
    }

    /// Bits 3 to 19, which should be zero.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        self.0 & RESERVED_MASK
    }

    /// `FileOffsetMB` (bits 20 to 63) as a file offset in bytes.
    #[must_use]
    pub const fn file_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }
}

/// What a payload block's entry says (MS-VHDX 2.5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PayloadState {
    /// 0: nothing stored here; a child shows its parent, any other disk reads zeros.
    NotPresent,
    /// 1: contents do not matter; reads zeros.
    Undefined,
    /// 2: reads zeros.
    Zero,
    /// 3 (and 5 in files after the draft of 2012): given back by the guest; reads zeros.
    Unmapped,
    /// 6: the block lies in this file.
    FullyPresent,
    /// 7: some sectors lie in this file, the sector bitmap says which. Differencing disks only.
    PartiallyPresent,
}

/// The value the 2012 draft used for [`PayloadState::Unmapped`]. Read, never written.
pub const DRAFT_UNMAPPED: u8 = 5;

impl PayloadState {
    /// The state a stored value means; `None` for the reserved value 4 (and anything above 7).
    #[must_use]
    pub const fn from_raw(state: u8) -> Option<Self> {
        Some(match state {
            0 => Self::NotPresent,
            1 => Self::Undefined,
            2 => Self::Zero,
            3 | DRAFT_UNMAPPED => Self::Unmapped,
            6 => Self::FullyPresent,
            7 => Self::PartiallyPresent,
            _ => return None,
        })
    }

    /// The value to store.
    #[must_use]
    pub const fn to_raw(self) -> u8 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::FullyPresent => 6,
            Self::PartiallyPresent => 7,
        }
    }

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPresent => "not_present",
            Self::Undefined => "undefined",
            Self::Zero => "zero",
            Self::Unmapped => "unmapped",
            Self::FullyPresent => "fully_present",
            Self::PartiallyPresent => "partially_present",
        }
    }
}

/// A page of the table, as the log holds it.
pub(crate) type Page = [u8; LOG_SECTOR_LEN];

/// The entries of a page of the table.
pub(crate) fn entries(page: &Page) -> impl Iterator<Item = RawEntry> + '_ {
    let (raws, _) = page.as_chunks::<8>();
    raws.iter().map(|raw| RawEntry(u64::from_le_bytes(*raw)))
}

/// Whether an entry is one that the format allows.
pub(crate) fn is_well_formed(raw: RawEntry) -> bool {
    let place = raw.file_offset();
    raw.reserved() == 0
        && place < MAX_FILE_OFFSET
        && match PayloadState::from_raw(raw.state()) {
            Some(PayloadState::FullyPresent | PayloadState::PartiallyPresent) => place >= MIB,
            Some(_) => true,
            None => false,
        }
}

/// Whether an entry names a place.
pub(crate) fn is_present(raw: RawEntry) -> bool {
    let state = PayloadState::from_raw(raw.state());
    matches!(state, Some(PayloadState::FullyPresent | PayloadState::PartiallyPresent))
}

/// Whether a page is one of a table that names at least one block: all of its entries are well formed, and no
/// place is named twice.
pub(crate) fn names_blocks(page: &Page) -> bool {
    let mut places = Vec::new();
    for raw in entries(page).filter(|raw| raw.0 != 0) {
        if !is_well_formed(raw) {
            return false;
        }
        if is_present(raw) {
            places.push(raw.file_offset());
        }
    }
    let named = places.len();
    places.sort_unstable();
    places.dedup();
    named > 0 && places.len() == named
}

/// Stored value of a sector bitmap entry whose block is present (MS-VHDX 2.5.1.2).
pub const BITMAP_PRESENT: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bits_are_where_the_format_puts_them() {
        let entry = RawEntry(0x0000_0000_0090_0006);
        assert_eq!((entry.state(), entry.reserved(), entry.file_offset()), (6, 0, 0x90_0000));
        let entry = RawEntry(u64::MAX);
        assert_eq!((entry.state(), entry.reserved()), (7, 0xF_FFF8));
        assert_eq!(entry.file_offset(), 0xFFFF_FFFF_FFF0_0000);
        assert_eq!(RawEntry::new(6, 0x90_0000).0, 0x90_0006);
    }

    #[test]
    fn states_round_trip_and_five_is_the_drafts_unmapped() {
        for raw in 0..8 {
            match PayloadState::from_raw(raw) {
                Some(state) if raw == DRAFT_UNMAPPED => assert_eq!(state.to_raw(), 3),
                Some(state) => assert_eq!(state.to_raw(), raw),
                None => assert_eq!(raw, 4),
            }
        }
    }
}
