//! The block allocation table, entry by entry: what each should say, and which space two owners claim.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::Result;
use crate::defect::Defect;
use crate::format::bat::{DRAFT_UNMAPPED, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::format::limits::{MAX_REPAIR_COPIES, MAX_REPAIR_LOST};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::ops::check::slot_name;
use crate::ops::doubt::Doubt;
use crate::ops::progress::Progress;
use crate::storage::Storage;
use crate::view::geometry::BatSlot;
use crate::view::headers::LogPlace;

use super::draft::Pages;
use super::report::{
    BEHIND_THE_END, BEHIND_THE_END_GIVEN_UP, NO_PLACE, NO_PLACE_GIVEN_UP, ORPHANS, Report,
    TRIMMED_OUTSIDE, hex, mebibytes,
};
use super::shifted::Unshifted;
use super::traces::Traces;
use super::{RepairOptions, Word};
use crate::ops::nameless::nameless;

/// A block whose space somebody else has claimed before.
pub(super) struct Clash {
    pub(super) index: u64,
    pub(super) raw: RawEntry,
    pub(super) length: u64,
}

/// What was found, and what is to be changed.
pub(super) struct Entries<'a> {
    pub(super) rules: EntryRules,
    pub(super) space: SpaceMap,
    /// Changed pages, at their present offsets.
    pub(super) pages: Pages,
    pub(super) clashes: Vec<Clash>,
    /// How long the file must be for its blocks to lie in it.
    pub(super) extend_to: u64,
    /// The end of the last thing that is claimed.
    pub(super) highest: u64,
    /// Payload blocks without a place.
    pub(super) unplaced: u64,
    /// Something lies behind the end of the file and stays there: the file must not grow over it.
    pub(super) held_back: bool,
    /// Places behind the end of the file of blocks that are given up.
    lost_places: BTreeSet<u64>,
    /// What a file that was cut off has lost and nothing can stand in for.
    pub(super) hopeless: bool,
    /// Pages that were shifted are moved back: the guest sees other contents than before.
    pub(super) moved_back: bool,
    /// Bytes from here on are gone, though the file is longer.
    pub(super) data_end: u64,
    options: &'a RepairOptions,
    pub(super) report: &'a mut Report,
    pub(super) traces: Traces,
    /// The chunk of the last partially present block.
    partial: Option<u64>,
}

impl<'a> Entries<'a> {
    /// `space` has everything claimed that is not a block; `missing` is what was cut off the file.
    pub(super) fn new(
        storage: &Arc<dyn Storage>,
        rules: EntryRules,
        space: SpaceMap,
        highest: u64,
        missing: &Range<u64>,
        options: &'a RepairOptions,
        report: &'a mut Report,
    ) -> Self {
        let data_end = if missing.is_empty() { rules.file_size } else { missing.start };
        Self {
            rules,
            traces: Traces::new(storage, space.clone()),
            space,
            pages: Pages::new(Arc::clone(storage)),
            clashes: Vec::new(),
            extend_to: 0,
            highest,
            unplaced: rules.geometry.blocks(),
            held_back: false,
            lost_places: BTreeSet::new(),
            hopeless: false,
            moved_back: false,
            data_end,
            options,
            report,
            partial: None,
        }
    }

    /// Looks at `count` entries, as pages that were shifted should read.
    pub(super) fn judge(
        &mut self,
        storage: &dyn Storage,
        count: u64,
        unshifted: &Unshifted,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        self.traces.look(self.rules, storage, count)?;
        self.moved_back = unshifted.entries().next().is_some();
        unshifted.put_into(&mut self.pages, self.rules.bat_offset)?;
        walk(storage, self.rules.bat_offset, count, &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                // Where pages were mended, the mended entries count.
                if unshifted.has(index) {
                    continue;
                }
                self.entry(geometry.slot(index), index, raw)?;
            }
            Ok(())
        })?;
        for (index, raw) in unshifted.entries().filter(|(index, raw)| *index < count && raw.0 != 0)
        {
            self.entry(geometry.slot(index), index, raw)?;
        }
        Ok(())
    }

    fn entry(&mut self, slot: BatSlot, index: u64, raw: RawEntry) -> Result<()> {
        let new = match slot {
            BatSlot::Payload(block) => self.payload(block, index, raw)?,
            BatSlot::Bitmap(chunk) => self.bitmap(chunk, index, raw)?,
            BatSlot::Padding => raw,
        };
        match new == raw {
            true => Ok(()),
            false => self.put(index, new),
        }
    }

    /// Changes an entry.
    pub(super) fn put(&mut self, index: u64, raw: RawEntry) -> Result<()> {
        self.pages.put(self.rules.at(index), &raw.0.to_le_bytes())
    }

    /// What the entry of a payload block should say.
    fn payload(&mut self, block: u64, index: u64, raw: RawEntry) -> Result<RawEntry> {
        let at = self.rules.at(index);
        let name = |what: &str| format!("block {block} (BAT entry at {}): {what}", hex(at));
        if self.is_overwritten(index, block, raw) {
            return match self.options.allow_data_loss {
                true => self.overwritten(block, index, raw),
                false => Ok(self.untouched(block, raw)),
            };
        }
        let holds_nothing = matches!(
            PayloadState::from_raw(raw.state()),
            Some(PayloadState::NotPresent | PayloadState::Zero)
        );
        let a_trace = holds_nothing && self.traces.may_be_one(self.rules, raw)?;
        if a_trace && !self.options.allow_data_loss {
            return Ok(self.trace(block, raw));
        }
        if raw.reserved() != 0 && PayloadState::from_raw(raw.state()).is_some() {
            let defect = Defect::EntryReserved { at, index, bits: raw.reserved() };
            self.report.step(&defect, name("clear the reserved bits"), "nobody reads them");
        }
        let place = raw.file_offset();
        match PayloadState::from_raw(raw.state()) {
            // What is left of it tells nothing; the check's own finding says so.
            None => Ok(raw),
            Some(state @ (PayloadState::NotPresent | PayloadState::Zero)) => {
                if place != 0 {
                    let state = state.name();
                    let defect = Defect::PlaceUnderZero { at, block, state, file_offset: place };
                    let why = match a_trace {
                        true => A_TRACE_GIVEN_UP,
                        false => "the block holds nothing, and nobody reads the offset",
                    };
                    if a_trace {
                        self.report.doubt(block);
                    }
                    self.report.step(&defect, name("clear the offset"), why);
                }
                Ok(RawEntry::new(state.to_raw(), 0))
            }
            Some(state @ (PayloadState::Undefined | PayloadState::Unmapped)) => {
                if raw.state() == DRAFT_UNMAPPED {
                    let defect = Defect::BlockStateDraft { at, block };
                    let why = "the draft of 2012 called UNMAPPED 5; it reads the same";
                    self.report.step(&defect, name("write state 3"), why);
                }
                let kept = self.keeps_anchor(block, at, place);
                Ok(RawEntry::new(state.to_raw(), if kept { place } else { 0 }))
            }
            Some(state) => self.present(block, index, raw, state),
        }
    }

    /// An offset under a state that needs none, where data lie that nothing else names: it stays.
    fn trace(&mut self, block: u64, raw: RawEntry) -> RawEntry {
        let file_offset = raw.file_offset();
        let at = self.rules.at(self.rules.geometry.payload_index(block));
        let state = PayloadState::from_raw(raw.state()).map_or("reserved", PayloadState::name);
        let defect = Defect::PlaceUnderZero { at, block, state, file_offset };
        self.report.needs(&defect, Word::AllowDataLoss, A_TRACE);
        let end = file_offset.saturating_add(u64::from(self.rules.geometry.block_size()));
        self.highest = self.highest.max(end.min(self.rules.file_size));
        raw
    }

    /// Whether a trimmed block may keep the space it held: nobody reads it, so it gives way to all.
    pub(super) fn keeps_anchor(&mut self, block: u64, at: u64, place: u64) -> bool {
        if place == 0 {
            return false;
        }
        let length = u64::from(self.rules.geometry.block_size());
        let end = place.saturating_add(self.rules.geometry.used_bytes(block));
        if end > self.data_end {
            let what = format!("block {block} (BAT entry at {}): drop its place", hex(at));
            self.report.step_of("V29", what, TRIMMED_OUTSIDE);
            return false;
        }
        if self.space.claim(place, length).is_some() {
            let what = format!("block {block} (BAT entry at {}): drop its place", hex(at));
            self.report.step_of(
                "V30",
                what,
                "the block was trimmed, so the space belongs to its other owner alone",
            );
            return false;
        }
        self.highest = self.highest.max(place.saturating_add(length));
        self.unplaced = self.unplaced.saturating_sub(1);
        true
    }

    /// A block that says that its contents lie in the file.
    pub(super) fn present(
        &mut self,
        block: u64,
        index: u64,
        raw: RawEntry,
        mut state: PayloadState,
    ) -> Result<RawEntry> {
        let geometry = self.rules.geometry;
        let (at, place) = (self.rules.at(index), raw.file_offset());
        let name = |what: &str| format!("block {block} (BAT entry at {}): {what}", hex(at));
        let zero = RawEntry::new(PayloadState::Zero.to_raw(), 0);
        let start = geometry.block_start(block);
        let used = geometry.used_bytes(block);
        let end = place.saturating_add(used);
        let outside =
            Defect::BlockOutside { at, block, file_offset: place, end, file_size: self.data_end };
        if place == 0 || place >= self.data_end {
            let (defect, why, given_up) = match place {
                0 => (Defect::BlockWithoutPlace { at, block }, NO_PLACE, NO_PLACE_GIVEN_UP),
                _ => (outside, BEHIND_THE_END, BEHIND_THE_END_GIVEN_UP),
            };
            if !self.options.allow_data_loss {
                // Without its word the file must not grow over what is missing, which would then read as zeros.
                self.held_back |= place != 0;
                self.report.needs(&defect, Word::AllowDataLoss, why);
                return Ok(RawEntry::new(raw.state(), place));
            }
            self.give_up(place)?;
            self.report.lose(block, start..start.saturating_add(used));
            self.report.step(&defect, name("make it read as zeros"), given_up);
            return Ok(zero);
        }
        if state == PayloadState::PartiallyPresent && !geometry.is_differencing() {
            state = PayloadState::FullyPresent;
            let defect = Defect::PartialWithoutParent { at, block };
            let why = "without a parent there is nowhere else that any of it could be";
            self.report.step(&defect, name("write state 6"), why);
        }
        if end > self.data_end {
            let there = self.data_end.saturating_sub(place);
            let gone = start.saturating_add(there)..start.saturating_add(used);
            let what = name(&format!(
                "extend the file with zeros over its last {} bytes",
                used.saturating_sub(there)
            ));
            self.report.step(
                &outside,
                what,
                "the rest of its contents is in the file; what was cut off is gone",
            );
            self.report.lose(block, gone);
            let full = place.saturating_add(u64::from(geometry.block_size()));
            self.extend_to = self.extend_to.max(full);
        }
        if state == PayloadState::PartiallyPresent {
            self.partial = Some(geometry.chunk_of(block));
        }
        let new = RawEntry::new(state.to_raw(), place);
        self.claim(index, new, u64::from(geometry.block_size()))?;
        self.unplaced = self.unplaced.saturating_sub(1);
        Ok(new)
    }

    /// A block's place is behind the end of the file, and its entry will be dropped.
    pub(super) fn give_up(&mut self, place: u64) -> Result<()> {
        if place == 0 {
            return Ok(());
        }
        if self.lost_places.len() >= MAX_REPAIR_LOST {
            return Err(Error::limit(format!(
                "more than {MAX_REPAIR_LOST} blocks lie behind the end of the file: that is no repair any \
                 more; `vhdx recover` makes a new file"
            )));
        }
        self.lost_places.insert(place);
        Ok(())
    }

    /// The first place at or behind `from` where bytes can go that no block which is given up shows. The file
    /// grows before the entries of those are dropped: between the two they may show zeros, and nothing else.
    pub(super) fn clear_of_lost(&self, mut from: u64, length: u64) -> u64 {
        let block_size = u64::from(self.rules.geometry.block_size());
        loop {
            let first = from.saturating_sub(block_size).saturating_add(1);
            let mut hits = self.lost_places.range(first..from.saturating_add(length).max(first));
            match hits.next_back() {
                Some(place) => from = place.saturating_add(block_size),
                None => return from,
            }
        }
    }

    /// What the entry of a sector bitmap should say.
    fn bitmap(&mut self, chunk: u64, index: u64, raw: RawEntry) -> Result<RawEntry> {
        let judged = self.rules.bitmap(chunk, raw);
        let in_use = self.partial == Some(chunk);
        let at = self.rules.at(index);
        match judged {
            Ok(None) => Ok(raw),
            Ok(Some(place)) => {
                if place.saturating_add(SECTOR_BITMAP_BLOCK) > self.data_end && in_use {
                    let file_size = self.data_end;
                    let defect = Defect::BitmapOutside { at, chunk, file_offset: place, file_size };
                    self.hopeless = true;
                    self.report.beyond(&defect, NO_BITMAP);
                }
                self.claim(index, raw, SECTOR_BITMAP_BLOCK)?;
                Ok(raw)
            }
            Err(defect) if in_use => {
                self.held_back |= matches!(defect, Defect::BitmapOutside { .. });
                self.report.beyond(&defect, NO_BITMAP);
                Ok(raw)
            }
            Err(defect) => {
                let what = format!(
                    "sector bitmap of chunk {chunk} (BAT entry at {}): clear the entry",
                    hex(at)
                );
                let why = match self.rules.geometry.is_differencing() {
                    true => {
                        "no block of the chunk is partially present, so nobody asks for its bits"
                    }
                    false => {
                        "a disk without a parent has no sector bitmaps, and nobody reads the entry"
                    }
                };
                self.report.step(&defect, what, why);
                Ok(RawEntry::default())
            }
        }
    }

    fn claim(&mut self, index: u64, raw: RawEntry, length: u64) -> Result<()> {
        let place = raw.file_offset();
        self.highest = self.highest.max(place.saturating_add(length));
        if self.space.claim(place, length).is_none() {
            return Ok(());
        }
        if self.clashes.len() >= MAX_REPAIR_COPIES {
            return Err(Error::limit(format!(
                "more than {MAX_REPAIR_COPIES} blocks claim space that something else takes: that is no \
                 repair any more; `vhdx recover` makes a new file"
            )));
        }
        self.clashes.push(Clash { index, raw, length });
        Ok(())
    }

    /// Counts what nothing names, where contents are missed that it may be; and says so there.
    pub(super) fn count_nameless(
        &mut self,
        storage: &dyn Storage,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if self.clashes.is_empty() && !self.report.misses_contents() {
            return Ok(());
        }
        // Entries that stay as they are name what they name; of those that are given up nothing remains.
        let remain = self.options.allow_data_loss || self.moved_back;
        let named = if remain { &self.space } else { &self.traces.owned };
        let found = nameless(storage, named, progress)?;
        self.report.found_nameless(found);
        Ok(())
    }

    /// Gives the blocks whose space is claimed twice a place of their own, from `to` on; tells where that ends.
    pub(super) fn move_clashes(
        &mut self,
        mut to: u64,
        copies: &mut Vec<super::draft::Copy>,
    ) -> Result<u64> {
        if self.clashes.is_empty() {
            return Ok(to);
        }
        let why = match self.report.nameless {
            0 => BOTH_SHOW_THE_SAME.to_owned(),
            bytes => format!(
                "{BOTH_SHOW_THE_SAME}. The file holds {} that nothing names: what one of them held may be that. \
                 {ORPHANS}; type that before compacting",
                mebibytes(bytes)
            ),
        };
        for Clash { index, raw, length } in std::mem::take(&mut self.clashes) {
            let from = raw.file_offset();
            to = self.clear_of_lost(to, length);
            let what = slot_name(&self.rules.geometry, index);
            let what =
                format!("copy {what} from {} to {}, the end of the file", hex(from), hex(to));
            self.report.step_of("V30", what, &why);
            copies.push(super::draft::Copy { from, to, length });
            self.put(index, RawEntry::new(raw.state(), to))?;
            to = to.saturating_add(length);
        }
        self.highest = self.highest.max(to);
        Ok(to)
    }

    /// Of two blocks that claim the same bytes, one is not what it was: neither can be vouched for.
    pub(super) fn doubt_owners(&mut self, storage: &dyn Storage, count: u64) -> Result<()> {
        let mut places = Doubt::default();
        for Clash { raw, length, .. } in &self.clashes {
            let place = raw.file_offset();
            places.add(place..place.saturating_add(*length));
        }
        let places = places.ranges();
        if places.is_empty() {
            return Ok(());
        }
        let rules = self.rules;
        walk(storage, rules.bat_offset, count, &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let BatSlot::Payload(block) = rules.geometry.slot(index) else { continue };
                let Some(place) = rules.owned(raw) else { continue };
                let end = place.saturating_add(u64::from(rules.geometry.block_size()));
                let next = places.partition_point(|range| range.end <= place);
                if places.get(next).is_some_and(|range| range.start < end) {
                    self.report.doubt(block);
                }
            }
            Ok(())
        })
    }

    /// Whether no entry is to be changed.
    pub(super) fn is_unchanged(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether the guest will see zeros where something was.
    pub(super) fn lost_anything(&self) -> bool {
        self.report.zeroed
    }

    /// Free space at the end of the file is given back.
    pub(super) fn cut_off(&mut self, length: u64, bytes: u64) {
        let defect = Defect::LeakedSpace { bytes };
        let what = format!("cut {bytes} bytes off the end of the file, at {}", hex(length));
        let why = "they are zeros and belong to nothing; unused space further inside is given back by compacting";
        self.report.step(&defect, what, why);
    }

    /// A block lies where the log does, and may not be given another place: whatever is logged would be written
    /// over it. `true` says so.
    pub(super) fn log_is_taken(&mut self, log: LogPlace) -> bool {
        let over = |clash: &&Clash| {
            let place = clash.raw.file_offset();
            place < log.end() && log.offset < place.saturating_add(clash.length)
        };
        let Some(Clash { index, raw, .. }) = self.clashes.iter().find(over) else { return false };
        let why = "it lies where the log does, and gets no other place as long as the file must not grow: what a \
                   repair changes goes through the log, over the block; so nothing at all is changed";
        let what = slot_name(&self.rules.geometry, *index);
        let (at, file_offset, with) =
            (self.rules.at(*index), raw.file_offset(), "the log".to_owned());
        let defect = Defect::BlockOverlap { at, what, file_offset, with };
        self.report.needs(&defect, Word::AllowDataLoss, why);
        true
    }

    /// The file must not grow: what would make it grow is left.
    pub(super) fn hold_back(&mut self) {
        let why =
            "the file would have to grow, and what lies behind its end would then read as zeros";
        for Clash { index, raw, .. } in std::mem::take(&mut self.clashes) {
            let what = slot_name(&self.rules.geometry, index);
            let (at, file_offset) = (self.rules.at(index), raw.file_offset());
            let defect =
                Defect::BlockOverlap { at, what, file_offset, with: "another owner".to_owned() };
            self.report.needs(&defect, Word::AllowDataLoss, why);
        }
        self.extend_to = 0;
    }
}

const A_TRACE: &str = "the offset names data that nothing else names: if the entry is damaged, it is all that tells \
                       where the block is. `vhdx recover IMAGE --orphans FOLDER` copies that data out, to look at; \
                       the word clears the offset";
const NO_BITMAP: &str = "blocks of the chunk are partially present: without the bitmap nobody knows which of \
                         their sectors are in this file and which in the parent";
const A_TRACE_GIVEN_UP: &str = "you allowed that the offset goes, though it is all that names the data there; \
                                `vhdx recover IMAGE --orphans FOLDER` copies that data out; type that before compacting";
const BOTH_SHOW_THE_SAME: &str = "both owners keep the bytes they show today; one of the two shows the other's, and \
                                  only whoever knows the contents can tell which";
