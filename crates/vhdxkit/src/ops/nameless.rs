//! Data in a file that no entry of its block table names.
//!
//! A crash while blocks were being placed leaves some, and it is nothing. So do blocks that were trimmed, and the old
//! places of blocks that a compaction has moved before it was interrupted. But a table that has lost entries,
//! to a sector of zeros for one, leaves the same: then it is the disk's contents, and an entry of zeros is as good
//! an entry as any. So what has another explanation is taken off: a block without a place that says that it was
//! trimmed or cleared; a mebibyte that is the copy of one that is named. Of what is then left, more than a crash leaves
//! is told, and is not given back without the user's word.
//!
//! A child is left out: it shows its parent where it has nothing, and what became of such blocks leaves no sign.
//!
//! Where the log's entries are still there, they tell more than that, of a child, too: `remembered`.

mod remembered;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

use crate::format::bat::PayloadState;
use crate::format::{HEADER_SECTION_LENGTH, LOG_SECTOR_LEN, MIB, mib_floor};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::ops::progress::{Progress, advance};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::geometry::BatSlot;
use crate::view::headers::LogPlace;
use crate::view::regions::RegionMap;
use crate::{Error, Result};

use super::check::entries_at_hand;

/// Bytes of zeros that are read in search of such data: what lies behind them is not counted.
const MOST_READ: u64 = 16 << 30;
/// So much is not worth a word: what was being placed when a crash came. Or this many blocks, if that is more.
pub(crate) const CRASHES_LEAVE: u64 = 64 * MIB;
const CRASHES_LEAVE_BLOCKS: u64 = 4;
/// Mebibytes that are named and looked at as the originals of copies: a terabyte of a disk.
const MOST_COMPARED: u64 = 1 << 20;
/// Mebibytes that are looked for among those that are named; further ones are taken for copies.
const MOST_SOUGHT: usize = 1 << 20;

/// A file of which everything that its table names is known.
pub(crate) struct Named<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) log: Option<LogPlace>,
    pub(crate) regions: &'a RegionMap,
    pub(crate) rules: EntryRules,
}

impl Named<'_> {
    /// Bytes of mebibytes with data that nothing names, and that only a damaged table explains; 0 where that is
    /// no more than a crash leaves.
    pub(crate) fn unexplained(&self, progress: &mut dyn Progress) -> Result<u64> {
        let (owned, emptied) = self.survey()?;
        if owned.unowned() == 0 {
            return Ok(0);
        }
        Ok(self.remembered(&owned)?.max(self.left_over(&owned, emptied, progress)?))
    }

    /// The same, and bytes that an entry names which says that its block holds nothing: one wrong bit makes that of
    /// the entry of a block with contents. A check tells such entries one by one.
    pub(crate) fn not_to_be_given_up(&self, progress: &mut dyn Progress) -> Result<u64> {
        let (owned, emptied) = self.survey()?;
        if owned.unowned() == 0 {
            return Ok(0);
        }
        let traces = self.traces(&owned)?;
        let found = traces.max(self.remembered(&owned)?);
        Ok(found.max(self.left_over(&owned, emptied, progress)?))
    }

    fn traces(&self, owned: &SpaceMap) -> Result<u64> {
        let geometry = self.rules.geometry;
        let (mut bytes, block) = (0u64, u64::from(geometry.block_size()));
        self.walk(&mut |index, raw| {
            let (place, BatSlot::Payload(_)) = (raw.file_offset(), geometry.slot(index)) else {
                return Ok(());
            };
            let end = place.saturating_add(block).min(self.rules.file_size);
            if place != 0
                && place < end
                && self.rules.owned(raw).is_none()
                && !owned.owns_any(place, block)
                && holds_data(self.storage, place..end)?
            {
                bytes = bytes.saturating_add(block);
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// What is too much for a crash, `emptied` bytes being explained by blocks that say that they have been.
    fn left_over(
        &self,
        owned: &SpaceMap,
        emptied: u64,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let geometry = self.rules.geometry;
        if geometry.is_differencing() {
            return Ok(0);
        }
        let blocks = CRASHES_LEAVE_BLOCKS.saturating_mul(u64::from(geometry.block_size()));
        let explained = emptied.saturating_add(CRASHES_LEAVE.max(blocks));
        if owned.unowned() <= explained {
            return Ok(0);
        }
        let found = nameless(self.storage, owned, progress)?;
        if found <= explained {
            return Ok(0);
        }
        let enough = found.saturating_sub(explained);
        let copies = self.copies(owned, enough, progress)?;
        let left = found.saturating_sub(emptied).saturating_sub(copies);
        Ok(if copies >= enough { 0 } else { left })
    }

    /// Everything that has an owner; and how much blocks without a place may have held that say so.
    fn survey(&self) -> Result<(SpaceMap, u64)> {
        let mut owned = SpaceMap::new(self.storage.length()?);
        owned.claim(0, HEADER_SECTION_LENGTH);
        for region in self.regions.all() {
            owned.claim(region.offset, u64::from(region.length));
        }
        if let Some(log) = self.log {
            owned.claim(log.offset, u64::from(log.length));
        }
        let (mut emptied, block) = (0u64, u64::from(self.rules.geometry.block_size()));
        self.walk(&mut |index, raw| {
            if let (Some(place), length) = self.rules.owner_of(index, raw) {
                owned.claim(place, length);
            } else if matches!(
                PayloadState::from_raw(raw.state()),
                Some(PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped)
            ) {
                emptied = emptied.saturating_add(block);
            }
            Ok(())
        })?;
        Ok((owned, emptied))
    }

    fn walk(
        &self,
        visit: &mut dyn FnMut(u64, crate::format::bat::RawEntry) -> Result<()>,
    ) -> Result<()> {
        let entries = entries_at_hand(&self.rules.geometry, self.regions);
        walk(self.storage, self.rules.bat_offset, entries, &mut |stretch| {
            let mut used = stretch.entries().filter(|(_, raw)| raw.0 != 0);
            used.try_for_each(|(index, raw)| visit(index, raw))
        })
    }

    /// Bytes of mebibytes that nothing names and that begin like one that is named; no more than `enough` are looked
    /// for.
    fn copies(&self, owned: &SpaceMap, enough: u64, progress: &mut dyn Progress) -> Result<u64> {
        let hasher = RandomState::new();
        let (mut sought, mut more, mut many) = (HashMap::<u64, u64>::new(), 0u64, 0usize);
        each_nameless(self.storage, owned, progress, &mut |range| {
            match first_data(self.storage, range)? {
                Some(_) if many >= MOST_SOUGHT => more = more.saturating_add(MIB),
                Some(sector) => {
                    let count = sought.entry(hasher.hash_one(sector)).or_default();
                    *count = count.saturating_add(1);
                    many = many.saturating_add(1);
                }
                None => {}
            }
            Ok(())
        })?;
        let (mut copies, mut compared) = (more, 0u64);
        let block = u64::from(self.rules.geometry.block_size());
        self.walk(&mut |index, raw| {
            let BatSlot::Payload(_) = self.rules.geometry.slot(index) else { return Ok(()) };
            let Some(place) = self.rules.owned(raw) else { return Ok(()) };
            let end = place.saturating_add(block);
            let mut at = place;
            while at < end && copies < enough && compared < MOST_COMPARED {
                compared = compared.saturating_add(1);
                let next = at.saturating_add(MIB);
                if let Some(sector) = first_data(self.storage, at..next)?
                    && let Some(count) = sought.get_mut(&hasher.hash_one(sector))
                    && *count > 0
                {
                    *count = count.saturating_sub(1);
                    copies = copies.saturating_add(MIB);
                }
                advance(progress, 0)?;
                at = next;
            }
            Ok(())
        })?;
        Ok(copies)
    }
}

/// Whether anything but zeros lies in a range.
pub(crate) fn holds_data(storage: &dyn Storage, range: Range<u64>) -> Result<bool> {
    Ok(first_data(storage, range)?.is_some())
}

/// The first sector of a range that is not zeros.
fn first_data(storage: &dyn Storage, range: Range<u64>) -> Result<Option<Vec<u8>>> {
    let mut buf = vec![0; 1 << 16];
    for run in DataRuns::new(storage, range.clone()) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", range.start, e))?;
        let (mut at, end) = (run.range.start, run.range.end.min(range.end));
        while run.data && at < end {
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(part) = buf.get_mut(..length.min(1 << 16)) else { break };
            storage.read_zero_filled(at, part)?;
            let found =
                part.chunks(LOG_SECTOR_LEN).find(|sector| sector.iter().any(|byte| *byte != 0));
            if let Some(sector) = found {
                return Ok(Some(sector.to_vec()));
            }
            at = at.saturating_add(1 << 16);
        }
    }
    Ok(None)
}

/// Bytes of the mebibytes that nobody owns and that hold anything but zeros.
pub(crate) fn nameless(
    storage: &dyn Storage,
    owned: &SpaceMap,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let mut found = 0u64;
    each_nameless(storage, owned, progress, &mut |_| {
        found = found.saturating_add(MIB);
        Ok(())
    })?;
    Ok(found)
}

/// Calls `visit` with each of them.
fn each_nameless(
    storage: &dyn Storage,
    owned: &SpaceMap,
    progress: &mut dyn Progress,
    visit: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let (length, mut zeros) = (storage.length()?, 0u64);
    for gap in owned.gaps() {
        let end = gap.end.min(length);
        let mut at = gap.start;
        for run in DataRuns::new(storage, gap.start..end) {
            let run = run.map_err(|e| Error::io("cannot map the file's holes", gap.start, e))?;
            at = at.max(mib_floor(run.range.start));
            while run.data && at < run.range.end && zeros < MOST_READ {
                let next = at.saturating_add(MIB);
                match holds_data(storage, at..next.min(end))? {
                    true => visit(at..next.min(end))?,
                    false => zeros = zeros.saturating_add(MIB),
                }
                advance(progress, 0)?;
                at = next;
            }
        }
    }
    Ok(())
}
