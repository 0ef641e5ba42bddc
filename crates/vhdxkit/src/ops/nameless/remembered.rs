//! What the log remembers of a table that has lost a whole sector.
//!
//! Nothing but zeros in a sector of the table is what a disk shows that was never written there, and what damage
//! leaves. Entries of the log stay in its ring after they are in place, until newer ones come: one that says what the
//! sector held, while none says that it was cleared, and data at a place that it names and nobody else does, are what
//! no writer leaves. However little it is, it was lost.

use std::collections::BTreeMap;

use crate::Result;
use crate::format::bat::{ENTRY_LENGTH, PayloadState, RawEntry};
use crate::format::limits::MAX_SALVAGED_SECTORS;
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::log::{Log, LogEntry, Update, sessions};
use crate::map::SpaceMap;
use crate::ops::check::entries_at_hand;
use crate::storage::StorageExt;
use crate::view::geometry::BatSlot;

use super::{Named, holds_data};

/// A sector of the table.
enum Sector {
    /// It holds entries, or was cleared by somebody.
    Explained,
    /// Zeros, over these places of blocks, by the index of their entries.
    Lost(BTreeMap<u64, u64>),
}

impl Named<'_> {
    /// Bytes of the blocks that only the log still places.
    pub(super) fn remembered(&self, owned: &SpaceMap) -> Result<u64> {
        let Some(place) = self.log else { return Ok(0) };
        let ring = Log::at(self.storage, place, Guid::ZERO)?;
        let mut table = BTreeMap::new();
        for session in sessions(&ring) {
            // A session's second entry is written only when a header names its log. What nobody has named is
            // what a crash leaves, and never was in place.
            let was_named = session.entries.iter().filter(is_change).count() > 1;
            for entry in &session.entries {
                self.learn(&ring, entry, was_named, &mut table)?;
            }
        }
        let block = u64::from(self.rules.geometry.block_size());
        let mut bytes = 0u64;
        for sector in table.values() {
            let Sector::Lost(places) = sector else { continue };
            for &place in places.values() {
                let end = place.saturating_add(block);
                let is_inside = end <= self.rules.file_size;
                if is_inside
                    && !owned.owns_any(place, block)
                    && holds_data(self.storage, place..end)?
                {
                    bytes = bytes.saturating_add(block);
                }
            }
        }
        Ok(bytes)
    }

    /// What an entry says of sectors of the table that are zeros now.
    fn learn(
        &self,
        ring: &Log,
        entry: &LogEntry,
        was_named: bool,
        table: &mut BTreeMap<u64, Sector>,
    ) -> Result<()> {
        let start = self.rules.bat_offset;
        let entries = entries_at_hand(&self.rules.geometry, self.regions);
        let end = start.saturating_add(entries.saturating_mul(ENTRY_LENGTH));
        ring.updates(self.storage, entry, |update| {
            match update {
                Update::Zero { file_offset, length } => {
                    let cleared = file_offset..file_offset.saturating_add(length);
                    for (_, sector) in table.range_mut(cleared) {
                        *sector = Sector::Explained;
                    }
                }
                Update::Data { file_offset, sector } if (start..end).contains(&file_offset) => {
                    let is_clear = sector.iter().all(|byte| *byte == 0);
                    if !table.contains_key(&file_offset) {
                        if table.len() >= MAX_SALVAGED_SECTORS {
                            return Ok(());
                        }
                        table.insert(file_offset, self.look(file_offset)?);
                    }
                    match table.get_mut(&file_offset) {
                        Some(known) if is_clear => *known = Sector::Explained,
                        Some(Sector::Lost(places)) if was_named => {
                            let first = file_offset.saturating_sub(start) / ENTRY_LENGTH;
                            places.extend(self.places(first, sector));
                        }
                        _ => {}
                    }
                }
                Update::Data { .. } => {}
            }
            Ok(())
        })
    }

    fn look(&self, at: u64) -> Result<Sector> {
        let mut now = [0; LOG_SECTOR_LEN];
        self.storage.read_zero_filled(at, &mut now)?;
        Ok(match now.iter().all(|byte| *byte == 0) {
            true => Sector::Lost(BTreeMap::new()),
            false => Sector::Explained,
        })
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

fn is_change(entry: &&LogEntry) -> bool {
    entry.info.descriptors > 0
}
