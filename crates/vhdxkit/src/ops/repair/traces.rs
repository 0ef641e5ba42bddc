//! Data that no entry of the block table names: it may be what an entry that was damaged named before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Result;
use crate::format::bat::{RawEntry, SECTOR_BITMAP_BLOCK};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::ops::doubt::PageJudge;
use crate::ops::nameless::holds_data;
use crate::storage::Storage;
use crate::view::geometry::BatSlot;

/// Offsets under NOT_PRESENT and ZERO that may be all that is left of an entry.
pub(super) struct Traces {
    storage: Arc<dyn Storage>,
    /// Everything that somebody owns, blocks included.
    pub(super) owned: SpaceMap,
    /// Pages of the table that were overwritten beyond doubt.
    pub(super) overwritten: Vec<u64>,
    /// What was seen at a place: each is looked at once.
    seen: BTreeMap<u64, bool>,
}

impl Traces {
    pub(super) fn new(storage: &Arc<dyn Storage>, owned: SpaceMap) -> Self {
        Self { storage: Arc::clone(storage), owned, overwritten: Vec::new(), seen: BTreeMap::new() }
    }

    pub(super) fn look(
        &mut self,
        rules: EntryRules,
        storage: &dyn Storage,
        count: u64,
    ) -> Result<()> {
        let mut pages = PageJudge::new(rules);
        let block_size = u64::from(rules.geometry.block_size());
        walk(storage, rules.bat_offset, count, &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                pages.see(index, raw);
                match rules.geometry.slot(index) {
                    BatSlot::Payload(_) => {
                        if let Some(place) = rules.owned(raw) {
                            self.owned.claim(place, block_size);
                        }
                    }
                    BatSlot::Bitmap(chunk) => {
                        if let Ok(Some(place)) = rules.bitmap(chunk, raw) {
                            self.owned.claim(place, SECTOR_BITMAP_BLOCK);
                        }
                    }
                    BatSlot::Padding => {}
                }
            }
            Ok(())
        })?;
        self.overwritten = pages.end().1;
        Ok(())
    }

    /// Whether an entry that holds nothing names a place with data, nobody else's. No writer is known that leaves such
    /// a place behind; one wrong byte makes it of the entry of a block, in a page that is sound otherwise.
    pub(super) fn may_be_one(&mut self, rules: EntryRules, raw: RawEntry) -> Result<bool> {
        let place = raw.file_offset();
        if place == 0 || place >= rules.file_size {
            return Ok(false);
        }
        if let Some(known) = self.seen.get(&place) {
            return Ok(*known);
        }
        let length = u64::from(rules.geometry.block_size());
        let end = place.saturating_add(length).min(rules.file_size);
        let found = !self.owned.owns_any(place, length) && holds_data(&*self.storage, place..end)?;
        self.seen.insert(place, found);
        Ok(found)
    }
}
