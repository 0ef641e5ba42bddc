//! The block allocation table from all its witnesses.
//!
//! For each page of 4 KiB: the page in the file (with the log replayed over it), the newest image in the log,
//! older images. What counts:
//!
//! * **The file's page, when the last header says that it is complete** (the log is clean, or was replayed), and
//!   it looks like a page of a table. Entries that are malformed are lost; a page with more than one in eight
//!   malformed is overwritten: of its entries those that name a place in the file count, and not as certain.
//! * **Else the log's newest image**, where it is known to be that: changes are logged before they are made.
//! * **A page of zeros** is what an unused part of a table looks like, and a wiped one. If an image in the log
//!   names blocks there it was wiped, as far as anybody can tell: the image is taken.
//! * **A sector of the disk within a page** may be all that was lost. Entries that are zeros as far as a sector goes, or
//!   malformed, while the log's newest image names blocks, are taken from there, at places that nobody else has.
//! * **Older images** are taken for want of anything better, and never as certain.
//! * When the order of the log's sessions is unknown, an entry on which file and log disagree is not certain
//!   either.
//! * When a log should have been replayed and cannot be, or no header and no log are left to tell whether one
//!   should, nothing of the file's table is certain: the last changes may be missing.
//! * Nor is anything where newer entries of the log lie behind one that is damaged, so that no replay reaches
//!   them: the damaged one may have changed any page. The newer images are taken all the same.

use std::sync::Arc;

use crate::Result;
use crate::format::LOG_SECTOR_LEN;
use crate::format::bat::{ENTRIES_PER_PAGE, RawEntry};
use crate::storage::{Storage, StorageExt};

use super::history::{History, Order, SectorImage};
use super::looks::{self, Looks, Page};

const CONTRADICTED: &str = "the log contradicts the table; either may be older";
const NO_LOG: &str = "the table may lack the last changes: the log that would tell is lost";

const BEHIND_A_GAP: &str =
    "the table lacks the last changes: newer entries of the log lie behind a damaged one";
/// Of a disk, the smallest part of a page that is lost at once.
const ENTRIES_PER_SECTOR: usize = 64;
const AMID_JUNK: &str = "its part of the table is overwritten, its entry still makes sense";
const OVERWRITTEN: &str = "the table is overwritten";

/// How far the file's table and the log can be relied upon.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reliance {
    /// A sound header says that the table in the file is complete.
    pub(super) is_complete: bool,
    /// The newest session of the log is in what is read.
    pub(super) is_replayed: bool,
    /// But for newer entries of it, which no replay reaches.
    pub(super) has_gap: bool,
}

/// Who says what an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The table in the file.
    Table,
    /// The newest image in the log, from this entry.
    Log(u64),
    /// The newest image in the log, of an entry that the file's table has lost.
    Restored(u64),
    /// An image in the log that may be out of date.
    Older(u64),
    /// An image in the log, newer than what is replayed, behind a damaged entry.
    Unreached(u64),
    /// The table in the file, which may lack the last changes; why.
    Doubted(&'static str),
    /// Nobody.
    Nothing(&'static str),
}

/// A page of the table with its witnesses.
pub(super) struct Witnessed {
    bytes: Box<Page>,
    origin: Origin,
    /// The page as it lies in the file, when `bytes` come from the log.
    in_file: Option<Box<Page>>,
    /// Images that contradict the page, perhaps rightly.
    doubts: Vec<SectorImage>,
    /// The page in the file is all zeros, and nothing says otherwise.
    pub(super) is_blank: bool,
    /// The page in the file is not what was there.
    pub(super) is_destroyed: bool,
    /// What the log's newest image says of entries that the file's page has lost.
    remembered: Option<SectorImage>,
    /// It is overwritten in part: only entries that name a place before this end of the file count.
    plausible_before: Option<u64>,
}

impl Witnessed {
    /// Entry number `slot` of the page.
    pub(super) fn entry(&self, slot: usize) -> (RawEntry, Origin) {
        let of = |page: &Page| looks::entries(page).nth(slot).unwrap_or_default();
        let raw = of(&self.bytes);
        if self.plausible_before.is_some_and(|end| !is_plausible(raw, end)) {
            return (RawEntry::default(), Origin::Nothing(OVERWRITTEN));
        }
        if let Origin::Log(_) = self.origin {
            let same = self.in_file.as_ref().is_some_and(|page| of(page) == raw);
            return (raw, if same { Origin::Table } else { self.origin });
        }
        if let Some(image) = self.remembered.as_ref().filter(|_| is_gone(&self.bytes, slot)) {
            let logged = of(&image.bytes);
            if logged != raw && looks::is_present(logged) && looks::is_well_formed(logged) {
                return (logged, Origin::Restored(image.sequence));
            }
        }
        let against = self.doubts.iter().map(|image| (of(&image.bytes), image.sequence));
        let mut against = against.filter(|(other, _)| *other != raw);
        match against.next() {
            Some((other, sequence)) if looks::is_present(other) && !looks::is_present(raw) => {
                (other, Origin::Older(sequence))
            }
            Some(_) => (raw, Origin::Doubted(CONTRADICTED)),
            None => (raw, self.origin),
        }
    }

    /// The one thing that is to say of all entries of a page without any.
    pub(super) fn whole(&self) -> Option<Origin> {
        match self.origin {
            Origin::Nothing(_) => Some(self.origin),
            Origin::Table | Origin::Doubted(_) if self.is_blank && self.doubts.is_empty() => {
                Some(self.origin)
            }
            _ => None,
        }
    }
}

/// Whether an entry may be gone from a page: the sector of the disk that it lies in is all zeros, or it makes no sense.
fn is_gone(page: &Page, slot: usize) -> bool {
    let first = slot.saturating_sub(slot % ENTRIES_PER_SECTOR);
    let mut sector = looks::entries(page).skip(first).take(ENTRIES_PER_SECTOR);
    let raw = looks::entries(page).nth(slot).unwrap_or_default();
    !looks::is_well_formed(raw) || sector.all(|raw| raw.0 == 0)
}

/// Whether any entry of a page is gone that an image of it names.
fn lacks(page: &Page, image: &Page) -> bool {
    let mut pairs = looks::entries(page).zip(looks::entries(image)).enumerate();
    pairs.any(|(slot, (raw, logged))| {
        raw != logged && looks::is_present(logged) && is_gone(page, slot)
    })
}

/// Whether an entry amid junk is one that was not overwritten, as far as can be told.
fn is_plausible(raw: RawEntry, end: u64) -> bool {
    looks::is_present(raw) && looks::is_well_formed(raw) && raw.file_offset() < end
}

/// The table of a file.
pub(super) struct Table<'a> {
    /// Replayed as far as that is possible.
    storage: Arc<dyn Storage>,
    /// As it lies on disk.
    file: Arc<dyn Storage>,
    offset: u64,
    entries: u64,
    history: &'a History,
    reliance: Reliance,
    /// The page that was looked at last.
    last: Option<(u64, Witnessed)>,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        storage: &Arc<dyn Storage>,
        file: &Arc<dyn Storage>,
        offset: u64,
        entries: u64,
        history: &'a History,
        reliance: Reliance,
    ) -> Self {
        let (storage, file) = (Arc::clone(storage), Arc::clone(file));
        Self { storage, file, offset, entries, history, reliance, last: None }
    }

    pub(super) fn pages(&self) -> u64 {
        self.entries.div_ceil(ENTRIES_PER_PAGE)
    }

    /// Entry `index`.
    pub(super) fn entry(&mut self, index: u64) -> Result<(RawEntry, Origin)> {
        let slot = usize::try_from(index % ENTRIES_PER_PAGE).unwrap_or_default();
        Ok(self.page(index / ENTRIES_PER_PAGE)?.entry(slot))
    }

    /// Page `number`.
    pub(super) fn page(&mut self, number: u64) -> Result<&Witnessed> {
        let page = match self.last.take() {
            Some((last, page)) if last == number => page,
            _ => self.witness(number)?,
        };
        Ok(&self.last.insert((number, page)).1)
    }

    fn witness(&self, number: u64) -> Result<Witnessed> {
        let at = self.offset.saturating_add(number.saturating_mul(4096));
        let mut bytes = Box::new([0; LOG_SECTOR_LEN]);
        let there = self.storage.read_zero_filled(at, &mut *bytes)?;
        let used = self.entries.saturating_sub(number.saturating_mul(ENTRIES_PER_PAGE));
        let used = usize::try_from(used).unwrap_or(usize::MAX);
        let looks = if there == 0 { Looks::Damaged } else { looks::judge(&bytes, used) };
        let gone = if there == 0 {
            "the table's part lies behind the end of the file"
        } else {
            OVERWRITTEN
        };
        let images = self.history.images(at);
        let page = |bytes, origin, is_destroyed| Witnessed {
            bytes,
            origin,
            in_file: None,
            doubts: Vec::new(),
            is_blank: looks == Looks::Zero,
            is_destroyed,
            remembered: None,
            plausible_before: None,
        };
        let newest = images.first().filter(|image| image.sure);
        let is_settled = self.reliance.is_complete && !self.reliance.has_gap;
        if let Some(image) = newest
            && is_settled
            && looks == Looks::Table
            && lacks(&bytes, &image.bytes)
        {
            let remembered = Some(image.clone());
            return Ok(Witnessed { remembered, ..page(bytes, Origin::Table, true) });
        }
        let says_more = |image: &SectorImage| image.bytes.iter().any(|byte| *byte != 0);
        if let Some(image) = newest
            && (!self.reliance.is_complete
                || looks == Looks::Damaged
                || (looks == Looks::Zero && says_more(image)))
        {
            let is_destroyed =
                looks == Looks::Damaged || (looks == Looks::Zero && says_more(image));
            if self.reliance.has_gap {
                let origin = Origin::Unreached(image.sequence);
                let newer = page(image.bytes.clone(), origin, is_destroyed);
                return Ok(Witnessed { is_blank: false, ..newer });
            }
            let origin = Origin::Log(image.sequence);
            let logged = page(image.bytes.clone(), origin, is_destroyed);
            self.file.read_zero_filled(at, &mut *bytes)?;
            return Ok(Witnessed { in_file: Some(bytes), is_blank: false, ..logged });
        }
        let in_file = match self.reliance {
            Reliance { has_gap: true, .. } => Origin::Doubted(BEHIND_A_GAP),
            Reliance { is_complete: false, is_replayed: false, .. } => Origin::Doubted(NO_LOG),
            _ => Origin::Table,
        };
        let older = images.into_iter().find(|image| says_more(image));
        Ok(match (looks, older) {
            (Looks::Table, _) => {
                let doubts = self.doubts(at);
                Witnessed { doubts, ..page(bytes, in_file, false) }
            }
            (Looks::Zero | Looks::Damaged, Some(image)) => {
                let older = page(image.bytes, Origin::Older(image.sequence), true);
                Witnessed { is_blank: false, ..older }
            }
            (Looks::Zero, None) => page(bytes, in_file, false),
            (Looks::Damaged, None) => {
                let end = self.storage.length()?;
                let any = looks::entries(&bytes).take(used).any(|raw| is_plausible(raw, end));
                let origin = if any { Origin::Doubted(AMID_JUNK) } else { Origin::Nothing(gone) };
                let plausible_before = any.then_some(end);
                Witnessed { plausible_before, ..page(bytes, origin, true) }
            }
        })
    }

    /// Images that may be newer than the page in the file.
    fn doubts(&self, at: u64) -> Vec<SectorImage> {
        match !self.reliance.is_complete && self.history.order() == Order::Unknown {
            true => self.history.images(at),
            false => Vec::new(),
        }
    }

    /// Places that log images name which may be newer than the file's table: what lies there may have changed
    /// hands.
    pub(super) fn disputed(&self) -> Vec<(u64, RawEntry)> {
        if self.reliance.is_complete || self.history.order() != Order::Unknown {
            return Vec::new();
        }
        let end = self.offset.saturating_add(self.entries.saturating_mul(8));
        let mut named = Vec::new();
        for (at, _) in self.history.newest().filter(|(at, _)| (self.offset..end).contains(at)) {
            let first = at.saturating_sub(self.offset) / 8;
            for image in self.history.images(at) {
                let entries = (first..).zip(looks::entries(&image.bytes));
                named.extend(entries.filter(|(_, raw)| looks::is_present(*raw)));
            }
        }
        named
    }
}
