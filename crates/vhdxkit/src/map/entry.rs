//! What one BAT entry means, and every rule about it: V26 to V29, V32 (MS-VHDX 2.5.1).

use crate::defect::Defect;
use crate::format::bat::{
    BITMAP_PRESENT, DRAFT_UNMAPPED, ENTRY_LENGTH, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK,
};
use crate::view::geometry::{BatSlot, Geometry};

/// Header section, log and regions, generously.
const SLACK: u64 = 64 << 20;

/// Where the contents of a payload block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// Nowhere in this file: the state says what it reads as.
    Absent(PayloadState),
    /// In this file, all of it.
    Present { file_offset: u64 },
    /// In this file, the sectors that the bitmap names.
    Partial { file_offset: u64 },
}

/// How far an entry can be trusted, whatever a reader makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    Sound,
    /// It names a place that its state does not need: harmless alone, suspicious beside junk.
    Odd,
    /// Sane, but it names a place behind the end of the file: what a file that was cut off has.
    Outside,
    /// No writer of the format writes this. `impossible`: nor can it come of an entry that one wrote.
    Junk {
        impossible: bool,
    },
}

/// The rules, for one disk in a file of a certain size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryRules {
    pub(crate) geometry: Geometry,
    /// File offset of the BAT.
    pub(crate) bat_offset: u64,
    /// Length of the replayed file.
    pub(crate) file_size: u64,
}

/// Whether an entry says that contents lie in its place, all or some.
fn holds_contents(raw: RawEntry) -> bool {
    let state = PayloadState::from_raw(raw.state());
    matches!(state, Some(PayloadState::FullyPresent | PayloadState::PartiallyPresent))
}

impl EntryRules {
    /// The file offset of an entry.
    pub(crate) fn at(&self, index: u64) -> u64 {
        self.bat_offset.saturating_add(index.saturating_mul(ENTRY_LENGTH))
    }

    /// What a payload block's entry says. An error means that the block cannot be read.
    pub(crate) fn payload(&self, block: u64, raw: RawEntry) -> Result<Block, Defect> {
        let at = self.at(self.geometry.payload_index(block));
        let Some(state) = PayloadState::from_raw(raw.state()) else {
            return Err(Defect::BlockState { at, block, state: raw.state() });
        };
        let partial = match state {
            PayloadState::FullyPresent => false,
            PayloadState::PartiallyPresent if !self.geometry.is_differencing() => {
                return Err(Defect::PartialWithoutParent { at, block });
            }
            PayloadState::PartiallyPresent => true,
            absent => return Ok(Block::Absent(absent)),
        };
        let file_offset = raw.file_offset();
        if file_offset == 0 {
            return Err(Defect::BlockWithoutPlace { at, block });
        }
        self.require_inside(block, raw)?;
        Ok(if partial { Block::Partial { file_offset } } else { Block::Present { file_offset } })
    }

    /// How far an entry can be trusted.
    pub(crate) fn trust(&self, slot: BatSlot, raw: RawEntry) -> Trust {
        let junk = |impossible| Trust::Junk { impossible };
        let place = raw.file_offset();
        let judged = match slot {
            BatSlot::Padding => return Trust::Sound,
            // Nobody reads the bitmaps of a disk without a parent, and QEMU has left junk there.
            BatSlot::Bitmap(_) if !self.geometry.is_differencing() => return Trust::Sound,
            BatSlot::Bitmap(chunk) => self.bitmap(chunk, raw).map(drop),
            BatSlot::Payload(block) => self.payload(block, raw).map(drop),
        };
        let reserved = raw.reserved() != 0;
        match judged {
            Err(Defect::BlockOutside { .. } | Defect::BitmapOutside { .. }) => {
                match reserved || place > self.farthest() {
                    true => junk(true),
                    false => Trust::Outside,
                }
            }
            Err(_) => junk(reserved),
            Ok(()) if reserved => junk(false),
            Ok(()) => {
                if holds_contents(raw) || place == 0 {
                    Trust::Sound
                } else {
                    Trust::Odd
                }
            }
        }
    }

    /// No file of this disk is longer, with room for space that is not used: a block behind it was never there.
    fn farthest(&self) -> u64 {
        let geometry = &self.geometry;
        let blocks = geometry.blocks().saturating_mul(u64::from(geometry.block_size()));
        let bitmaps = geometry.chunks().saturating_mul(SECTOR_BITMAP_BLOCK);
        let full = blocks.saturating_add(bitmaps).saturating_add(geometry.bat_bytes());
        let full = full.max(self.file_size);
        full.saturating_add(full / 2).saturating_add(SLACK)
    }

    /// V29: the used part of the space that an entry takes lies in the file.
    pub(crate) fn require_inside(&self, block: u64, raw: RawEntry) -> Result<(), Defect> {
        let Some(file_offset) = self.owned(raw) else { return Ok(()) };
        let (end, file_size) =
            (file_offset.saturating_add(self.geometry.used_bytes(block)), self.file_size);
        if end > file_size {
            let at = self.at(self.geometry.payload_index(block));
            return Err(match holds_contents(raw) {
                true => Defect::BlockOutside { at, block, file_offset, end, file_size },
                false => Defect::KeptPlaceOutside { at, block, file_offset, end, file_size },
            });
        }
        Ok(())
    }

    /// What is odd about a payload block's entry without making it unreadable.
    pub(crate) fn payload_remarks(&self, block: u64, raw: RawEntry) -> [Option<Defect>; 5] {
        let index = self.geometry.payload_index(block);
        let (at, file_offset, bits) = (self.at(index), raw.file_offset(), raw.reserved());
        let state = PayloadState::from_raw(raw.state());
        let holds_nothing = matches!(state, Some(PayloadState::NotPresent | PayloadState::Zero));
        let present = holds_contents(raw);
        // A trimmed block reads the same wherever its old place is; but nobody can write it there.
        let kept = if present { None } else { self.require_inside(block, raw).err() };
        let used_end = file_offset.saturating_add(self.geometry.used_bytes(block));
        let full_end = file_offset.saturating_add(u64::from(self.geometry.block_size()));
        let cut = present && used_end <= self.file_size && full_end > self.file_size;
        let name = state.map_or("reserved", PayloadState::name);
        [
            (bits != 0).then_some(Defect::EntryReserved { at, index, bits }),
            (raw.state() == DRAFT_UNMAPPED).then_some(Defect::BlockStateDraft { at, block }),
            (holds_nothing && file_offset != 0).then_some(Defect::PlaceUnderZero {
                at,
                block,
                state: name,
                file_offset,
            }),
            cut.then_some(Defect::BlockCut { at, block, file_size: self.file_size }),
            kept,
        ]
    }

    /// Where the sector bitmap of a chunk lies; `None` when it has none.
    pub(crate) fn bitmap(&self, chunk: u64, raw: RawEntry) -> Result<Option<u64>, Defect> {
        let at = self.at(self.geometry.bitmap_index(chunk));
        let differencing = self.geometry.is_differencing();
        match raw.state() {
            0 => Ok(None),
            BITMAP_PRESENT if differencing => {
                let (file_offset, file_size) = (raw.file_offset(), self.file_size);
                if file_offset == 0 {
                    return Err(Defect::BitmapWithoutPlace { at, chunk });
                }
                if file_offset.saturating_add(SECTOR_BITMAP_BLOCK) > file_size {
                    return Err(Defect::BitmapOutside { at, chunk, file_offset, file_size });
                }
                Ok(Some(file_offset))
            }
            state => Err(Defect::BitmapEntryState { at, chunk, state, differencing }),
        }
    }

    /// The defect of a partially present block in a chunk without a bitmap (V31).
    pub(crate) fn partial_without_bitmap(&self, block: u64) -> Defect {
        let chunk = self.geometry.chunk_of(block);
        let at = self.at(self.geometry.payload_index(block));
        Defect::PartialWithoutBitmap { at, block, chunk }
    }

    /// The file space that an entry takes, whatever its state reads as: a trimmed block may still
    /// own its old place.
    pub(crate) fn owned(&self, raw: RawEntry) -> Option<u64> {
        let owns = matches!(
            PayloadState::from_raw(raw.state())?,
            PayloadState::FullyPresent
                | PayloadState::PartiallyPresent
                | PayloadState::Unmapped
                | PayloadState::Undefined
        );
        (owns && raw.file_offset() != 0).then(|| raw.file_offset())
    }

    /// The file space that the entry at an index of the table takes, and its length.
    pub(crate) fn owner_of(&self, index: u64, raw: RawEntry) -> (Option<u64>, u64) {
        match self.geometry.slot(index) {
            BatSlot::Payload(_) => (self.owned(raw), u64::from(self.geometry.block_size())),
            BatSlot::Bitmap(chunk) => (self.bitmap(chunk, raw).ok().flatten(), SECTOR_BITMAP_BLOCK),
            BatSlot::Padding => (None, 0),
        }
    }
}
