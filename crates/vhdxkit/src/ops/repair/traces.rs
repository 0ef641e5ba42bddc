//! Data that no entry of the block table names: it may be what an entry that was damaged named before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::format::bat::{RawEntry, SECTOR_BITMAP_BLOCK};
use crate::format::{MIB, mib_floor};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::ops::doubt::PageJudge;
use crate::ops::progress::{Progress, advance};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::geometry::BatSlot;
use crate::{Error, Result};

/// Bytes of zeros that are read in search of such data: what lies behind them is not counted.
const MOST_READ: u64 = 16 << 30;

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

fn holds_data(storage: &dyn Storage, range: Range<u64>) -> Result<bool> {
    let mut buf = vec![0; 1 << 16];
    for run in DataRuns::new(storage, range.clone()) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", range.start, e))?;
        let (mut at, end) = (run.range.start, run.range.end.min(range.end));
        while run.data && at < end {
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(part) = buf.get_mut(..length.min(1 << 16)) else { break };
            storage.read_zero_filled(at, part)?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at = at.saturating_add(1 << 16);
        }
    }
    Ok(false)
}

/// Bytes of the mebibytes that nobody owns and that hold anything but zeros.
pub(super) fn nameless(
    storage: &dyn Storage,
    owned: &SpaceMap,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let length = storage.length()?;
    let (mut found, mut zeros) = (0u64, 0u64);
    for gap in owned.gaps() {
        let end = gap.end.min(length);
        let mut at = gap.start;
        for run in DataRuns::new(storage, gap.start..end) {
            let run = run.map_err(|e| Error::io("cannot map the file's holes", gap.start, e))?;
            at = at.max(mib_floor(run.range.start));
            while run.data && at < run.range.end && zeros < MOST_READ {
                let next = at.saturating_add(MIB);
                match holds_data(storage, at..next.min(end))? {
                    true => found = found.saturating_add(MIB),
                    false => zeros = zeros.saturating_add(MIB),
                }
                advance(progress, 0)?;
                at = next;
            }
        }
    }
    Ok(found)
}
