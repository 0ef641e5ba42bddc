//! The fate of every block, and the table that leads to those that are to be had.
//!
//! Two sweeps over the table: the first notes who names which place, the second decides. Between them the
//! file's unnamed space is looked through: data that nothing names, beside a table that was overwritten in part
//! or names nothing at all, tells that blank parts of the table are blank for the same reason.

use std::ops::Range;

use crate::Result;
use crate::format::bat::{
    BITMAP_PRESENT, ENTRIES_PER_PAGE, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK,
};
use crate::image::BatWriter;
use crate::storage::Storage;
use crate::view::geometry::{BatSlot, DiskType, Geometry};

use super::super::progress::{Progress, advance};
use super::looks;
use super::report::{Fate, FateRun, Report};
use super::space::{Claim, Claims};
use super::table::{Origin, Table};

const BLANK: &str = "the table is blank here, and the file holds data that nothing names";
const NO_TABLE: &str = "no table was found";
const INFERRED: &str = "the sizes that place it are inferred";
const UNREACHED: &str = "a newer entry of the log says so, behind a damaged one";
const RESTORED: &str = "the table has lost its entry";
const NOT_ALL: &str =
    "a fixed disk has a place for every block, and the file holds data that nothing names";
const IN_ORDER: &str = "placed by order, a guess";

/// Decides about all blocks of a disk.
pub(super) struct Settler<'a> {
    pub(super) geometry: Geometry,
    /// Which block is where rests on an inference.
    pub(super) is_guess: bool,
    pub(super) table: Option<Table<'a>>,
    pub(super) claims: Claims,
    pub(super) file_size: u64,
    /// What was seen in the first sweep.
    seen: Seen,
    /// The chunk whose sector bitmap was looked at last.
    bitmap: Option<(u64, Result<Origin, &'static str>)>,
    /// The chunk in which a block in part was placed last.
    partial_in: Option<u64>,
}

#[derive(Default)]
struct Seen {
    /// A block is present, whoever says so.
    any_present: bool,
    /// A part of the table is not what was there.
    any_destroyed: bool,
    /// A fixed disk, of which every block has a place, and data that no block names.
    has_homeless: bool,
}

/// A block's fate and its entry in the new table.
struct Settled {
    fate: Fate,
    log_entry: Option<u64>,
    why: &'static str,
    entry: RawEntry,
}

impl<'a> Settler<'a> {
    pub(super) fn new(
        geometry: Geometry,
        is_guess: bool,
        table: Option<Table<'a>>,
        claims: Claims,
        file_size: u64,
    ) -> Self {
        let seen = Seen::default();
        let (bitmap, partial_in) = (None, None);
        Self { geometry, is_guess, table, claims, file_size, seen, bitmap, partial_in }
    }

    /// Both sweeps. The entries of the new table go to `bat`.
    pub(super) fn run(
        &mut self,
        storage: &dyn Storage,
        guess_order: bool,
        bat: &mut BatWriter<'_>,
        report: &mut Report,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        self.note_claims(progress)?;
        if guess_order && !self.seen.any_present {
            self.place_in_order(bat, report)?;
            report.orphans = self.claims.orphans(storage, progress)?;
            return bat.write();
        }
        report.orphans = self.claims.orphans(storage, progress)?;
        let suspicious = self.seen.any_destroyed || !self.seen.any_present;
        let has_orphans = !report.orphans.is_empty();
        self.seen.has_homeless = has_orphans && self.geometry.disk_type() == DiskType::Fixed;
        let blank_is_lost = (suspicious || self.seen.has_homeless) && has_orphans;
        match self.table.take() {
            Some(mut table) => self.decide(&mut table, blank_is_lost, bat, report, progress)?,
            None => {
                let blocks = 0..self.geometry.blocks();
                self.lose_all(blocks, NO_TABLE, bat, report)?;
            }
        }
        bat.write()?;
        if report.fates.count(Fate::Lost) > 0 {
            let orphaned = report.orphans.iter().map(|run| run.end.saturating_sub(run.start));
            report.known = report.known.saturating_add(orphaned.sum());
        }
        Ok(())
    }

    fn note_claims(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(mut table) = self.table.take() else { return Ok(()) };
        let block_size = u64::from(self.geometry.block_size());
        for number in 0..table.pages() {
            advance(progress, 4096)?;
            let page = table.page(number)?;
            self.seen.any_destroyed |= page.is_destroyed;
            if page.whole().is_some() {
                continue;
            }
            for (index, slot) in slots(number) {
                let (raw, origin) = page.entry(slot);
                if !looks::is_present(raw) || !looks::is_well_formed(raw) {
                    continue;
                }
                let length = match self.geometry.slot(index) {
                    BatSlot::Payload(_) => block_size,
                    BatSlot::Bitmap(_) if self.geometry.is_differencing() => SECTOR_BITMAP_BLOCK,
                    BatSlot::Bitmap(_) | BatSlot::Padding => continue,
                };
                self.seen.any_present = true;
                self.claims.note(raw.file_offset(), length, is_certain(origin));
            }
        }
        for (index, raw) in table.disputed() {
            if table.entry(index)?.0.file_offset() != raw.file_offset() {
                self.claims.dispute(raw.file_offset(), block_size);
            }
        }
        self.table = Some(table);
        Ok(())
    }

    fn decide(
        &mut self,
        table: &mut Table<'_>,
        blank_is_lost: bool,
        bat: &mut BatWriter<'_>,
        report: &mut Report,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        for number in 0..table.pages() {
            advance(progress, 4096)?;
            let page = table.page(number)?;
            if let Some(origin) = page.whole() {
                let blocks = self.blocks_of_page(number);
                match origin {
                    Origin::Nothing(why) => self.lose_all(blocks, why, bat, report)?,
                    _ if blank_is_lost => self.lose_all(blocks, BLANK, bat, report)?,
                    _ => {
                        let (fate, why) = self.trusted(origin, Fate::Absent);
                        report.fates.push(FateRun { blocks, fate, log_entry: None, why });
                    }
                }
                continue;
            }
            let entries: Vec<(u64, RawEntry, Origin)> = slots(number)
                .map(|(index, slot)| {
                    let (raw, origin) = page.entry(slot);
                    (index, raw, origin)
                })
                .collect();
            for (index, raw, origin) in entries {
                match self.geometry.slot(index) {
                    BatSlot::Payload(block) => {
                        let settled = self.payload(table, block, raw, origin, report)?;
                        if settled.entry.0 != 0 {
                            bat.put(index, settled.entry)?;
                        }
                        let Settled { fate, log_entry, why, .. } = settled;
                        let blocks = block..block.saturating_add(1);
                        report.fates.push(FateRun { blocks, fate, log_entry, why });
                    }
                    BatSlot::Bitmap(chunk) if self.partial_in == Some(chunk) => {
                        bat.put(index, RawEntry::new(BITMAP_PRESENT, raw.file_offset()))?;
                    }
                    BatSlot::Bitmap(_) | BatSlot::Padding => {}
                }
            }
        }
        Ok(())
    }

    fn payload(
        &mut self,
        table: &mut Table<'_>,
        block: u64,
        raw: RawEntry,
        origin: Origin,
        report: &mut Report,
    ) -> Result<Settled> {
        let state = match (PayloadState::from_raw(raw.state()), origin) {
            (_, Origin::Nothing(why)) => return Ok(self.lost(why)),
            (Some(state), _) if looks::is_well_formed(raw) => state,
            _ => return Ok(self.lost("its entry is malformed")),
        };
        let differencing = self.geometry.is_differencing();
        if !looks::is_present(raw) {
            if self.seen.has_homeless && state == PayloadState::NotPresent {
                return Ok(self.lost(NOT_ALL));
            }
            let (fate, why) = self.trusted(origin, Fate::Absent);
            let entry = if differencing { RawEntry::new(state.to_raw(), 0) } else { RawEntry(0) };
            return Ok(Settled { fate, log_entry: entry_of(origin), why, entry });
        }
        let mut witness = origin;
        if state == PayloadState::PartiallyPresent {
            match self.bitmap_of(table, block)? {
                _ if !differencing => {
                    return Ok(self.lost("it is present in part, and the disk has no parent"));
                }
                Err(why) => {
                    report.known = report.known.saturating_add(self.geometry.used_bytes(block));
                    return Ok(self.lost(why));
                }
                Ok(origin) if !is_certain(origin) => witness = origin,
                Ok(_) => {}
            }
        }
        Ok(self.place(block, raw, witness, report))
    }

    /// A block that is said to lie in the file.
    fn place(&mut self, block: u64, raw: RawEntry, origin: Origin, report: &mut Report) -> Settled {
        let (place, used) = (raw.file_offset(), self.geometry.used_bytes(block));
        report.known = report.known.saturating_add(used);
        let there = used.min(self.file_size.saturating_sub(place));
        if there == 0 {
            let why = "it lies behind the end of the file";
            return Settled { fate: Fate::Cut, ..self.lost(why) };
        }
        let length = u64::from(self.geometry.block_size());
        let claim = self.claims.ask(place, length, is_certain(origin));
        if let Claim::Refused(why) = claim {
            return self.lost(why);
        }
        report.recovered = report.recovered.saturating_add(there);
        let entry = RawEntry::new(raw.state(), place);
        if raw.state() == PayloadState::PartiallyPresent.to_raw() {
            self.partial_in = Some(self.geometry.chunk_of(block));
        }
        let log_entry = entry_of(origin);
        if there < used {
            let why = "its end lies behind the end of the file";
            return Settled { fate: Fate::Cut, log_entry, why, entry };
        }
        let (fate, why) = match claim {
            Claim::Doubtful(why) => (Fate::Guessed, why),
            _ => self.trusted(origin, Fate::Intact),
        };
        Settled { fate, log_entry, why, entry }
    }

    /// The origin of the bitmap entry for a block's chunk, when the bitmap can be used; else why it cannot.
    fn bitmap_of(
        &mut self,
        table: &mut Table<'_>,
        block: u64,
    ) -> Result<Result<Origin, &'static str>> {
        let chunk = self.geometry.chunk_of(block);
        if let Some((last, verdict)) = self.bitmap.filter(|(last, _)| *last == chunk) {
            debug_assert_eq!(last, chunk);
            return Ok(verdict);
        }
        let (raw, origin) = table.entry(self.geometry.bitmap_index(chunk))?;
        let place = raw.file_offset();
        let fits = raw.state() == BITMAP_PRESENT
            && looks::is_well_formed(raw)
            && place.saturating_add(SECTOR_BITMAP_BLOCK) <= self.file_size
            && self.claims.is_alone(place, SECTOR_BITMAP_BLOCK)
            && !matches!(origin, Origin::Nothing(_));
        let verdict = match fits {
            true => Ok(origin),
            false => {
                Err("its sector bitmap is lost: which of its sectors are its own is not known")
            }
        };
        self.bitmap = Some((chunk, verdict));
        Ok(verdict)
    }

    /// The fate by witness: `best` if there is nothing against it.
    fn trusted(&self, origin: Origin, best: Fate) -> (Fate, &'static str) {
        match origin {
            Origin::Table => self.when_sizes_hold(best, ""),
            Origin::Log(_) if best == Fate::Absent => self.when_sizes_hold(best, ""),
            Origin::Log(_) => self.when_sizes_hold(Fate::Log, ""),
            Origin::Restored(_) => self.when_sizes_hold(Fate::Log, RESTORED),
            Origin::Older(_) => (Fate::Older, "an older image of the table in the log says so"),
            Origin::Unreached(_) => (Fate::Older, UNREACHED),
            Origin::Doubted(why) => (Fate::Older, why),
            Origin::Nothing(why) => (Fate::Lost, why),
        }
    }

    fn when_sizes_hold(&self, fate: Fate, why: &'static str) -> (Fate, &'static str) {
        if self.is_guess { (Fate::Guessed, INFERRED) } else { (fate, why) }
    }

    /// A block that reads zeros; in a child its parent must not show through.
    fn lost(&self, why: &'static str) -> Settled {
        let differencing = self.geometry.is_differencing();
        let zero = RawEntry::new(PayloadState::Zero.to_raw(), 0);
        let entry = if differencing { zero } else { RawEntry(0) };
        Settled { fate: Fate::Lost, log_entry: None, why, entry }
    }

    fn lose_all(
        &self,
        blocks: Range<u64>,
        why: &'static str,
        bat: &mut BatWriter<'_>,
        report: &mut Report,
    ) -> Result<()> {
        let entry = self.lost(why).entry;
        if entry.0 != 0 {
            for block in blocks.clone() {
                bat.put(self.geometry.payload_index(block), entry)?;
            }
        }
        report.fates.push(FateRun { blocks, fate: Fate::Lost, log_entry: None, why });
        Ok(())
    }

    /// Gives blocks the places that they have if the file was filled in their order.
    fn place_in_order(&mut self, bat: &mut BatWriter<'_>, report: &mut Report) -> Result<()> {
        let (size, blocks) = (u64::from(self.geometry.block_size()), self.geometry.blocks());
        let room = self.claims.in_order(size, blocks);
        let state = PayloadState::FullyPresent.to_raw();
        let mut block = 0;
        let mut place = room.start;
        while block < blocks && place < room.end {
            let there = self.geometry.used_bytes(block).min(self.file_size.saturating_sub(place));
            bat.put(self.geometry.payload_index(block), RawEntry::new(state, place))?;
            self.claims.note(place, size, false);
            report.recovered = report.recovered.saturating_add(there);
            report.known = report.known.saturating_add(there);
            block = block.saturating_add(1);
            place = place.saturating_add(size);
        }
        let (fate, why) = (Fate::Guessed, IN_ORDER);
        report.fates.push(FateRun { blocks: 0..block, fate, log_entry: None, why });
        self.lose_all(block..blocks, NO_TABLE, bat, report)
    }

    /// The payload blocks whose entries stand in a page.
    fn blocks_of_page(&self, number: u64) -> Range<u64> {
        let before = |index: u64| {
            let ratio = self.geometry.chunk_ratio();
            let period = ratio.saturating_add(1);
            let chunk = index.checked_div(period).unwrap_or_default();
            let within = index.checked_rem(period).unwrap_or_default().min(ratio);
            chunk.saturating_mul(ratio).saturating_add(within).min(self.geometry.blocks())
        };
        let first = number.saturating_mul(ENTRIES_PER_PAGE);
        before(first)..before(first.saturating_add(ENTRIES_PER_PAGE))
    }
}

fn slots(page: u64) -> impl Iterator<Item = (u64, usize)> {
    let first = page.saturating_mul(ENTRIES_PER_PAGE);
    (first..).zip(0..512usize)
}

fn is_certain(origin: Origin) -> bool {
    matches!(origin, Origin::Table | Origin::Log(_))
}

fn entry_of(origin: Origin) -> Option<u64> {
    match origin {
        Origin::Log(sequence)
        | Origin::Restored(sequence)
        | Origin::Older(sequence)
        | Origin::Unreached(sequence) => Some(sequence),
        Origin::Table | Origin::Doubted(_) | Origin::Nothing(_) => None,
    }
}
