//! What the log remembers of a table that has lost entries.
//!
//! An entry of zeros is what a block shows that was never written, and what damage leaves. Entries of the log stay in its
//! ring after they are in place, until newer ones come. So where the newest session's last image of a sector of the table
//! places a block, of which every later entry is there, while the table says nothing of it, and the place holds data that
//! nobody else names, then the table has lost it, however little that is.
//!
//! Older sessions tell nothing: what took a block's place away since may have been overwritten.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Result;
use crate::format::bat::{ENTRY_LENGTH, PayloadState, RawEntry};
use crate::format::limits::MAX_SALVAGED_SECTORS;
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::log::{Log, Session, Update, newest_by_place, sessions};
use crate::map::SpaceMap;
use crate::ops::check::entries_at_hand;
use crate::storage::StorageExt;
use crate::view::geometry::BatSlot;

use super::{Named, holds_data};

/// Where blocks lie, by the index of their entries.
type Places = BTreeMap<u64, u64>;

impl Named<'_> {
    /// Bytes of the blocks that only the log still places.
    pub(super) fn remembered(&self, owned: &SpaceMap) -> Result<u64> {
        let Some(place) = self.log else { return Ok(0) };
        let ring = Log::at(self.storage, place, Guid::ZERO)?;
        let sessions = sessions(&ring);
        let newest = newest_by_place(self.storage, &ring, &sessions)?;
        let Some(session) = sessions.iter().find(|session| newest == Some(session.guid)) else {
            return Ok(0);
        };
        // A session's second entry is written only when a header names its log. What nobody has named is what a crash
        // leaves, and never was in place.
        if session.entries.iter().filter(|entry| entry.info.descriptors > 0).count() < 2 {
            return Ok(0);
        }
        let lost = self.missing(&ring, session)?;
        let block = u64::from(self.rules.geometry.block_size());
        let mut bytes = 0u64;
        for place in lost.into_values() {
            let end = place.saturating_add(block);
            let is_inside = end <= self.rules.file_size;
            if is_inside && !owned.owns_any(place, block) && holds_data(self.storage, place..end)? {
                bytes = bytes.saturating_add(block);
            }
        }
        Ok(bytes)
    }

    /// Blocks that the newest session has placed last, and whose entries are zeros.
    fn missing(&self, ring: &Log, session: &Session) -> Result<Places> {
        let table = self.table();
        let mut images: BTreeMap<u64, Box<[u8; LOG_SECTOR_LEN]>> = BTreeMap::new();
        for entry in session.entries.iter().filter(|e| e.info.sequence >= session.sound_from) {
            ring.updates(self.storage, entry, |update| {
                match update {
                    Update::Zero { file_offset, length } => {
                        let end = file_offset.saturating_add(length);
                        images.retain(|at, _| !(file_offset..end).contains(at));
                    }
                    Update::Data { file_offset, sector }
                        if table.contains(&file_offset)
                            && (images.len() < MAX_SALVAGED_SECTORS
                                || images.contains_key(&file_offset)) =>
                    {
                        images.insert(file_offset, Box::new(*sector));
                    }
                    Update::Data { .. } => {}
                }
                Ok(())
            })?;
        }
        let mut lost = Places::new();
        for (at, image) in images {
            let mut now = [0; LOG_SECTOR_LEN];
            self.storage.read_zero_filled(at, &mut now)?;
            let first = at.saturating_sub(table.start) / ENTRY_LENGTH;
            let is_empty = |index: u64| {
                let slot = usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX);
                now.chunks_exact(8).nth(slot).is_some_and(|raw| raw == [0; 8])
            };
            lost.extend(self.places(first, &image).into_iter().filter(|(i, _)| is_empty(*i)));
        }
        Ok(lost)
    }

    /// Where the table lies.
    fn table(&self) -> Range<u64> {
        let start = self.rules.bat_offset;
        let entries = entries_at_hand(&self.rules.geometry, self.regions);
        start..start.saturating_add(entries.saturating_mul(ENTRY_LENGTH))
    }

    /// Where blocks with data lie, as a sector of the table says that begins with this entry.
    fn places(&self, first: u64, sector: &[u8; LOG_SECTOR_LEN]) -> Vec<(u64, u64)> {
        let raws = sector.chunks_exact(8).map(|raw| raw.first_chunk().copied().unwrap_or_default());
        let raws = raws.map(|raw| RawEntry(u64::from_le_bytes(raw)));
        let placed = (first..).zip(raws).filter(|(index, raw)| {
            let holds_data = matches!(
                PayloadState::from_raw(raw.state()),
                Some(PayloadState::FullyPresent | PayloadState::PartiallyPresent)
            );
            holds_data && matches!(self.rules.geometry.slot(*index), BatSlot::Payload(_))
        });
        placed.filter_map(|(index, raw)| Some((index, self.rules.owned(raw)?))).collect()
    }
}
