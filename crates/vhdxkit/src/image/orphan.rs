//! A log that no header names any more, because the header that named it is damaged.
//!
//! When one header copy is damaged and the other names no log, the file looks clean: but the lost one may have
//! been the newer, and have named a log that holds changes which are not in place. Whatever is logged next would
//! be written over them. There are two witnesses.
//!
//! **What is left of the copy.** All fields lie in its first sector, and disks write a sector whole. Where its
//! signature is there and its number is next to that of the copy that is whole, its fields are what was last
//! written there: if it names no log, or is the older one, nothing is lost with it.
//!
//! **The ring.** After a clean close all that its newest session holds is in place, but for space that was
//! given back since; so where that session is whole, and replaying it would change something that is in use, it was
//! most likely open. What older sessions hold may have been changed since, and says nothing.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::header::{Header, SIGNATURE};
use crate::format::{Guid, HEADER_OFFSETS, HEADER_SECTION_LENGTH, LOG_SECTOR};
use crate::log::{Log, LogEntry, Update, newest_by_place, sessions};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::{HeaderPair, LogPlace};

use super::open::{Recovered, read_image_parts};

/// Bytes of a file that are compared with what its log holds.
const MOST_COMPARED: u64 = 256 << 20;
const STEP: usize = 1 << 20;

/// Looks for it. `findings` are those of reading the headers.
///
/// # Errors
/// Reading fails.
pub(crate) fn find(
    file: &Arc<dyn Storage>,
    headers: &HeaderPair,
    findings: &Findings,
) -> Result<Option<Defect>> {
    let is_single =
        findings.list().iter().any(|defect| matches!(defect, Defect::HeaderCopyInvalid { .. }));
    let Some(place) = headers.log_place().filter(|_| is_single && !headers.is_dirty()) else {
        return Ok(None);
    };
    if names_no_open_log(&**file, headers)? {
        return Ok(None);
    }
    let ring = Log::at(&**file, place, Guid::ZERO)?;
    let used = used_space(file, headers)?;
    let comparison = Comparison { file, used };
    if let Some(guid) = newest_by_place(&**file, &ring, &sessions(&ring))? {
        return comparison.of_session(place, guid);
    }
    let whole: Vec<&LogEntry> =
        ring.entries().iter().filter(|entry| entry.fault.is_none()).collect();
    let is_open = comparison.differs(file, &ring, &whole)?;
    Ok(is_open.then(|| orphan(place, whole.len(), false)))
}

fn orphan(place: LogPlace, entries: usize, certain: bool) -> Defect {
    let entries = u64::try_from(entries).unwrap_or(u64::MAX);
    Defect::LogOrphan { at: place.offset, entries, certain }
}

/// Whether what is left of the damaged copy tells that no log was open.
fn names_no_open_log(file: &dyn Storage, headers: &HeaderPair) -> Result<bool> {
    let lost = 1usize.saturating_sub(headers.current_copy());
    let at = HEADER_OFFSETS.get(lost).copied().unwrap_or_default();
    let mut bytes = [0; size_of::<Header>()];
    file.read_zero_filled(at, &mut bytes)?;
    let Ok(header) = Header::read_from_bytes(&bytes) else { return Ok(false) };
    let (number, whole) = (header.sequence_number.get(), headers.current().sequence_number.get());
    // Copies are written in turn.
    if header.signature != SIGNATURE || number.abs_diff(whole) != 1 {
        return Ok(false);
    }
    Ok(number < whole || header.log_guid.is_zero())
}

/// What the file uses, as the tables that are in place show it; `None` where they cannot be read.
fn used_space(file: &Arc<dyn Storage>, headers: &HeaderPair) -> Result<Option<SpaceMap>> {
    match map_used(file, headers) {
        Ok(space) => Ok(space),
        Err(error) if error.defect().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

fn map_used(file: &Arc<dyn Storage>, headers: &HeaderPair) -> Result<Option<SpaceMap>> {
    let mut findings = Findings::tolerant();
    let file_size = file.length()?;
    let log = Log::read_pending(&**file, headers)?;
    let clean = Recovered { storage: Arc::clone(file), file_size, headers: headers.clone(), log };
    let parts = read_image_parts(&clean, &mut findings)?;
    let Some(geometry) = parts.geometry else { return Ok(None) };
    let rules = EntryRules { geometry, bat_offset: parts.regions.bat().offset, file_size };
    let mut space = SpaceMap::new(file_size);
    space.claim(0, HEADER_SECTION_LENGTH);
    for region in parts.regions.all() {
        space.claim(region.offset, u64::from(region.length));
    }
    let entries = geometry.bat_entries().min(u64::from(parts.regions.bat().length) / 8);
    walk(&**file, rules.bat_offset, entries, &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            if let (Some(place), length) = rules.owner_of(index, raw) {
                space.claim(place, length);
            }
        }
        Ok(())
    })?;
    Ok(Some(space))
}

/// Of the file with what its log would make of it.
struct Comparison<'a> {
    file: &'a Arc<dyn Storage>,
    used: Option<SpaceMap>,
}

impl Comparison<'_> {
    /// The newest session, of which nothing may be missing that a replay needs.
    fn of_session(&self, place: LogPlace, guid: Guid) -> Result<Option<Defect>> {
        let log = Log::at(&**self.file, place, guid)?;
        let ours = log.entries().iter();
        let ours: Vec<&LogEntry> =
            ours.filter(|entry| entry.fault.is_none() && entry.info.log_guid == guid).collect();
        let Some(active) = log.active() else {
            let is_open = self.differs(self.file, &log, &ours)?;
            return Ok(is_open.then(|| orphan(place, ours.len(), false)));
        };
        let replayed = log.replay_regardless(Arc::clone(self.file))?;
        let is_open = self.differs(&replayed, &log, &ours)?;
        // A session's second entry is written only when the header that names its log is stable. Of a first one
        // nobody was promised anything before that: a crash that tears the header leaves this, too.
        let entries = active.entries().len();
        Ok(is_open.then(|| orphan(place, entries, entries > 1)))
    }

    /// Whether anything in a range is in use. Where nothing tells, all is.
    fn is_used(&self, at: u64, length: u64) -> bool {
        self.used.as_ref().is_none_or(|space| space.owns_any(at, length))
    }

    /// Whether something in use that the entries write is otherwise in the file: against the file replayed, or,
    /// where `replayed` is the file itself, against the entries one by one.
    fn differs(
        &self,
        replayed: &Arc<dyn Storage>,
        log: &Log,
        entries: &[&LogEntry],
    ) -> Result<bool> {
        let one_by_one = Arc::ptr_eq(self.file, replayed);
        let (mut differs, mut budget) = (false, MOST_COMPARED);
        let (mut old, mut new) = (vec![0; STEP], vec![0; STEP]);
        for entry in entries {
            log.updates(&**self.file, entry, |update| {
                let (mut at, end, sector) = match update {
                    Update::Data { file_offset, sector } => (
                        file_offset,
                        file_offset.saturating_add(u64::from(LOG_SECTOR)),
                        Some(sector),
                    ),
                    Update::Zero { file_offset, length } => {
                        (file_offset, file_offset.saturating_add(length), None)
                    }
                };
                // What lies behind the end of the file was never there, or has been cut off.
                let end = end.min(self.file.length()?);
                while at < end && !differs && budget > 0 {
                    let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
                    let room = left.min(STEP);
                    let step = u64::try_from(room).unwrap_or(u64::MAX);
                    let (Some(old), Some(new)) = (old.get_mut(..room), new.get_mut(..room)) else {
                        break;
                    };
                    if self.is_used(at, step) {
                        self.file.read_zero_filled(at, old)?;
                        match (one_by_one, sector) {
                            (false, _) => {
                                replayed.read_zero_filled(at, new)?;
                            }
                            (true, None) => new.fill(0),
                            (true, Some(sector)) => {
                                new.iter_mut().zip(sector).for_each(|(to, from)| *to = *from);
                            }
                        }
                        differs = old != new;
                        budget = budget.saturating_sub(step);
                    }
                    at = at.saturating_add(step);
                }
                Ok(())
            })?;
        }
        Ok(differs)
    }
}
