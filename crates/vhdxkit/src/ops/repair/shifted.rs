//! Pages of the block allocation table that QEMU before 8.0 wrote shifted by one entry.
//!
//! When such a QEMU gave a place to the first block of a page, the page that it logged held the new first
//! entry, and behind it the *whole* old page, one entry further on: every other block showed its neighbour's
//! contents, and the last entry fell off the end (QEMU issue 727).
//!
//! # When we are certain
//! Entries that are merely moved contradict nothing by themselves. But QEMU leaves a shape: in a disk that it
//! has made, *every* payload entry says ZERO or FULLY_PRESENT, and *every* entry of a sector bitmap, and
//! behind the last one, is zero. A shifted page breaks that shape at each such place, twice: there stands
//! what belongs to a block, and behind it the zero. So a page counts as shifted only if
//!
//! * the file says that QEMU made it, and it is no child;
//! * as it stands, a bitmap entry, or one behind the last, is not zero;
//! * its first entry is FULLY_PRESENT and its second, which is the old first one, says ZERO;
//! * moved back, the page has QEMU's shape throughout, and all of its blocks lie in the file;
//! * with all such pages moved back nothing in the file overlaps;
//! * the entry that fell off is none of a block, or no space is left over that it could have named.
//!
//! Anything less is doubtful, and is left alone, when what looks like junk names a place in the file that nobody
//! else claims: it may be the only thing that still says where a block is.

use std::collections::BTreeMap;

use crate::defect::Defect;
use crate::format::LOG_SECTOR;
use crate::format::bat::{ENTRIES_PER_PAGE, PayloadState, RawEntry};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::{BatSlot, Geometry};
use crate::{Result, format};

use super::draft::Pages;

/// Shifted pages that are looked at; one page is the table of 16 GiB of QEMU's usual blocks.
const MOST_PAGES: usize = 1024;

/// Pages as they should read, by the index of their first entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unshifted(BTreeMap<u64, Vec<RawEntry>>);

impl Unshifted {
    /// Whether an entry is in one of the pages.
    pub(super) fn has(&self, index: u64) -> bool {
        let first = index.saturating_sub(index % ENTRIES_PER_PAGE);
        self.0.contains_key(&first)
    }

    /// All entries of the pages.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, RawEntry)> + '_ {
        self.0.iter().flat_map(|(first, page)| (*first..).zip(page.iter().copied()))
    }

    pub(super) fn put_into(&self, pages: &mut Pages, bat_offset: u64) -> Result<()> {
        for (index, raw) in self.entries() {
            let at = bat_offset.saturating_add(index.saturating_mul(8));
            pages.put(at, &raw.0.to_le_bytes())?;
        }
        Ok(())
    }

    /// A finding for each page.
    pub(crate) fn defects(&self, bat_offset: u64) -> impl Iterator<Item = Defect> + '_ {
        self.0.keys().map(move |first| Defect::ShiftedPage {
            at: bat_offset.saturating_add(first.saturating_mul(8)),
            first: *first,
        })
    }
}

/// What a search finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shifted {
    /// Nothing that looks like it.
    None,
    /// Pages that were shifted beyond doubt.
    Certain(Unshifted),
    /// It may be so, and may be something else.
    Doubtful,
}

/// What the search goes by.
pub(crate) struct Search<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) rules: EntryRules,
    /// Bytes of the BAT region.
    pub(crate) bat_length: u64,
    /// Who made the file.
    pub(crate) creator: &'a str,
    /// Everything claimed that is no block.
    pub(crate) space: SpaceMap,
}

impl Search<'_> {
    /// Looks for shifted pages.
    pub(crate) fn find(mut self) -> Result<Shifted> {
        let geometry = self.rules.geometry;
        if geometry.is_differencing() || !self.creator.starts_with("QEMU") {
            return Ok(Shifted::None);
        }
        let suspects = self.suspects()?;
        if suspects.is_empty() {
            return Ok(Shifted::None);
        }
        let unclaimed = self.space.clone();
        let mut mended = BTreeMap::new();
        let mut lost_a_block = false;
        for first in suspects {
            let Some(page) = self.moved_back(first)? else { return self.doubt(unclaimed) };
            let last = geometry.slot(first.saturating_add(ENTRIES_PER_PAGE.saturating_sub(1)));
            lost_a_block |= matches!(last, BatSlot::Payload(_));
            mended.insert(first, page);
        }
        let mended = Unshifted(mended);
        match self.fits(&mended, lost_a_block)? {
            true => Ok(Shifted::Certain(mended)),
            false => self.doubt(unclaimed),
        }
    }

    /// What stands where no block's entry is may be junk: then it names no place, or one that is another's.
    fn doubt(&self, mut space: SpaceMap) -> Result<Shifted> {
        let (rules, geometry) = (self.rules, self.rules.geometry);
        let block_size = u64::from(geometry.block_size());
        let mut odd = Vec::new();
        walk(self.storage, rules.bat_offset, self.entries(), &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                match (geometry.slot(index), rules.owned(raw)) {
                    (BatSlot::Payload(_), Some(place)) => drop(space.claim(place, block_size)),
                    (BatSlot::Payload(_), None) => {}
                    _ if odd.len() < MOST_PAGES => odd.push(raw),
                    _ => {}
                }
            }
            Ok(())
        })?;
        let mut traces = odd.into_iter().filter(|raw| self.is_present(*raw));
        let free = |raw: RawEntry| space.claim(raw.file_offset(), block_size).is_none();
        Ok(if traces.any(free) { Shifted::Doubtful } else { Shifted::None })
    }

    /// Entries of the table and of the rest of its last page.
    fn entries(&self) -> u64 {
        let whole = self.rules.geometry.bat_entries().next_multiple_of(ENTRIES_PER_PAGE);
        whole.min(self.bat_length / 8)
    }

    /// Pages with something where QEMU leaves zeros, by their first index.
    fn suspects(&self) -> Result<Vec<u64>> {
        let geometry = self.rules.geometry;
        let mut found: Vec<u64> = Vec::new();
        walk(self.storage, self.rules.bat_offset, self.entries(), &mut |stretch| {
            for (index, _) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let first = index.saturating_sub(index % ENTRIES_PER_PAGE);
                let odd = !matches!(geometry.slot(index), BatSlot::Payload(_));
                if odd && found.last() != Some(&first) && found.len() < MOST_PAGES {
                    found.push(first);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// A page moved back; `None` when it does not have QEMU's shape then.
    fn moved_back(&self, first: u64) -> Result<Option<Vec<RawEntry>>> {
        let mut bytes = vec![0; usize::try_from(LOG_SECTOR).unwrap_or_default()];
        self.storage.read_zero_filled(self.rules.at(first), &mut bytes)?;
        let raws =
            bytes.chunks_exact(8).map(|raw| raw.first_chunk::<8>().copied().unwrap_or_default());
        let raws: Vec<RawEntry> = raws.map(|raw| RawEntry(u64::from_le_bytes(raw))).collect();
        let zero = RawEntry::new(PayloadState::Zero.to_raw(), 0);
        let (Some(new_first), Some(old_first)) = (raws.first(), raws.get(1)) else {
            return Ok(None);
        };
        if !self.is_present(*new_first) || *old_first != zero {
            return Ok(None);
        }
        let rest = raws.iter().skip(2).copied();
        let mut page: Vec<RawEntry> = std::iter::once(*new_first).chain(rest).collect();
        let last = first.saturating_add(ENTRIES_PER_PAGE.saturating_sub(1));
        page.push(match self.rules.geometry.slot(last) {
            BatSlot::Payload(_) => zero,
            _ => RawEntry::default(),
        });
        let shape =
            (first..).zip(&page).all(|(index, raw)| match self.rules.geometry.slot(index) {
                BatSlot::Payload(_) => *raw == zero || self.is_present(*raw),
                _ => raw.0 == 0,
            });
        Ok(shape.then_some(page))
    }

    /// FULLY_PRESENT, without reserved bits, somewhere behind the header section.
    fn is_present(&self, raw: RawEntry) -> bool {
        raw.state() == PayloadState::FullyPresent.to_raw()
            && raw.reserved() == 0
            && raw.file_offset() >= format::HEADER_SECTION_LENGTH
            && raw.file_offset() < self.rules.file_size
    }

    /// Whether nothing in the file overlaps with these pages, and nothing is left over for an entry that is
    /// lost.
    fn fits(&mut self, mended: &Unshifted, lost_a_block: bool) -> Result<bool> {
        let geometry = self.rules.geometry;
        let block_size = u64::from(geometry.block_size());
        let mut fits = true;
        let (rules, space) = (self.rules, &mut self.space);
        let mut claim = |geometry: &Geometry, index: u64, raw: RawEntry| {
            if let (BatSlot::Payload(block), Some(place)) = (geometry.slot(index), rules.owned(raw))
            {
                let end = place.saturating_add(geometry.used_bytes(block));
                fits &= end <= rules.file_size && space.claim(place, block_size).is_none();
            }
        };
        walk(self.storage, rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(index, _)| !mended.has(*index)) {
                claim(&geometry, index, raw);
            }
            Ok(())
        })?;
        mended.entries().for_each(|(index, raw)| claim(&geometry, index, raw));
        let left_over =
            self.space.gaps().iter().any(|gap| gap.end.saturating_sub(gap.start) >= block_size);
        Ok(fits && !(lost_a_block && left_over))
    }
}
