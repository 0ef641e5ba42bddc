//! A log that no header names any more, because the header that named it is damaged.
//!
//! When one header copy is damaged and the other names no log, the file looks clean: but the lost one may have
//! been the newer, and have named a log that holds changes which are not in place. Whatever is logged next would
//! be written over them. The other copy may also name an epoch that the lost one had gone beyond.
//!
//! **Of our own sessions** both copies name the log, from the sync after the first one on. Where the second one had no
//! time for that, the entries say to which header they belong (`log/sessions.rs`): so the newest epoch is known. If it
//! is certain that a header has named it, and replaying it would change something that is in use, it was open, and is
//! taken for named. Where the lost copy seems to be of yet another session, nothing is certain, and nobody writes.
//!
//! **Of other writers'** there is only the ring. After a clean close all that the newest session holds is in place,
//! but for space that was given back since; so where that session is whole, and replaying it would change
//! something that is in use, it was most likely open. Then nobody writes the image without having been told to.
//! Of a first entry that differs nobody was promised anything: a crash that tears the header leaves that, too. What
//! older sessions hold may have been changed since, and says nothing.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::header::{Header, SIGNATURE};
use crate::format::{Guid, HEADER_OFFSETS, HEADER_SECTION_LENGTH, LOG_SECTOR_LEN, MIB, mib_floor};
use crate::log::{Log, LogEntry, Session, Update, epoch_of, newest_by_place, sessions};
use crate::map::{EntryRules, SpaceMap, walk};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::{HeaderPair, LogPlace};

use super::open::{Recovered, read_image_parts};

/// Bytes that zero descriptors clear, of those that are compared.
const MOST_COMPARED: u64 = 256 << 20;
/// Bits of a GUID in which damage makes it differ from itself; two different ones differ in 61 or so.
const MOST_WRONG_BITS: u32 = 24;
/// What looking at one costs at least.
const LEAST_CHARGED: u64 = 64 << 10;

/// Looks for it. The headers come back naming it where it is certain that they should; the finding tells. `findings` are
/// those of reading the headers.
///
/// # Errors
/// Reading fails.
pub(crate) fn find_lost_log(
    file: &Arc<dyn Storage>,
    headers: HeaderPair,
    findings: &Findings,
) -> Result<(HeaderPair, Option<Defect>)> {
    let is_single =
        findings.list().iter().any(|defect| matches!(defect, Defect::HeaderCopyInvalid { .. }));
    let Some(place) = headers.log_place().filter(|_| is_single) else {
        return Ok((headers, None));
    };
    let ring = Log::at(&**file, place, Guid::ZERO)?;
    let sessions = sessions(&ring);
    let comparison = Comparison { file, used: used_space(file, &headers)? };
    if let Some(log) = newest_epoch(&**file, &headers, place, &sessions)? {
        let outcome = comparison.of_log(&log)?;
        let entries = log.active().map_or(0, |active| active.entries().len());
        if tells_of_another_session(&**file, &headers)? {
            return Ok((headers, orphan(outcome, place, entries, true)));
        }
        // An epoch that was gone beyond is dead, whatever is in place.
        if outcome == Outcome::Same && !headers.is_dirty() {
            return Ok((headers, None));
        }
        let found = Defect::LostLogFound { at: place.offset, entries: number(entries) };
        return Ok((headers.naming(log.guid()), Some(found)));
    }
    if headers.is_dirty() {
        return Ok((headers, None));
    }
    let orphan = match newest_by_place(&**file, &ring, &sessions)? {
        Some(guid) => comparison.of_session(place, guid)?,
        None => comparison.of_all(place, &ring)?,
    };
    Ok((headers, orphan))
}

/// The newest epoch of the session that the copy which is left belongs to, if that does not name it, and of which it
/// is certain that a header has named it: only then a session's second entry is written, and the first one of a later
/// epoch. An entry that nobody has named is what a crash in the first flush leaves; whoever opens the file afterwards
/// sees it as it was before, and may have used the space of it since.
fn newest_epoch(
    file: &dyn Storage,
    headers: &HeaderPair,
    place: LogPlace,
    sessions: &[Session],
) -> Result<Option<Log>> {
    let current = headers.current();
    let named = epoch_of(current.file_write_guid, current.log_guid);
    if headers.is_dirty() && named.is_none() {
        return Ok(None);
    }
    let logged =
        |session: &&Session| session.entries.iter().any(|entry| entry.info.descriptors > 0);
    let epochs = sessions.iter().filter(logged).filter_map(|session| {
        let epoch = epoch_of(current.file_write_guid, session.guid)?;
        (epoch > named.unwrap_or(0)).then_some((epoch, session.guid))
    });
    let Some((_, guid)) = epochs.max() else { return Ok(None) };
    let log = Log::at(file, place, guid)?;
    Ok(log.active().is_some().then_some(log))
}

/// Whether what is left of the damaged copy is of another session than the copy that is whole. Some wrong bits do not
/// make it one: two FileWriteGuids differ in half of theirs.
fn tells_of_another_session(file: &dyn Storage, headers: &HeaderPair) -> Result<bool> {
    let lost = 1usize.saturating_sub(headers.current_copy());
    let mut bytes = [0; size_of::<Header>()];
    file.read_zero_filled(HEADER_OFFSETS.get(lost).copied().unwrap_or_default(), &mut bytes)?;
    let Ok(header) = Header::read_from_bytes(&bytes) else { return Ok(false) };
    let own = headers.current().file_write_guid;
    if header.signature != SIGNATURE
        || header.file_write_guid.is_zero()
        || epoch_of(own, header.log_guid).is_some()
    {
        return Ok(false);
    }
    let pairs = header.file_write_guid.to_bytes().into_iter().zip(own.to_bytes());
    let wrong: u32 = pairs.map(|(one, other)| (one ^ other).count_ones()).sum();
    Ok(wrong > MOST_WRONG_BITS)
}

fn number(entries: usize) -> u64 {
    u64::try_from(entries).unwrap_or(u64::MAX)
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
    let file_size = file.length()?;
    let headers = headers.naming(Guid::ZERO);
    let log = Log::read_pending(&**file, &headers)?;
    let clean = Recovered { storage: Arc::clone(file), file_size, headers, log };
    let parts = read_image_parts(&clean, &mut Findings::tolerant())?;
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

/// Whether what entries write is in the file, of what is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Same,
    Differs,
    /// There was too much to compare.
    Unknown,
}

/// Of the file with what its log would make of it.
struct Comparison<'a> {
    file: &'a Arc<dyn Storage>,
    used: Option<SpaceMap>,
}

impl Comparison<'_> {
    /// A log that has an active sequence.
    fn of_log(&self, log: &Log) -> Result<Outcome> {
        // What a replay does not reach is not in place, either.
        if log.unreachable_entries().is_some() {
            return Ok(Outcome::Differs);
        }
        let whole = log.entries().iter().filter(|entry| entry.fault.is_none());
        let ours: Vec<&LogEntry> =
            whole.filter(|entry| entry.info.log_guid == log.guid()).collect();
        let replayed = log.replay_regardless(Arc::clone(self.file))?;
        self.compare(log, &ours, Some(&replayed))
    }

    /// The newest session of a writer that is not ours.
    fn of_session(&self, place: LogPlace, guid: Guid) -> Result<Option<Defect>> {
        let log = Log::at(&**self.file, place, guid)?;
        let whole = log.entries().iter().filter(|entry| entry.fault.is_none());
        let ours: Vec<&LogEntry> = whole.filter(|entry| entry.info.log_guid == guid).collect();
        let outcome = match log.active() {
            Some(_) => self.of_log(&log)?,
            None => self.compare(&log, &ours, None)?,
        };
        // The second entry that changes something is written only when the header that names the log is stable.
        let changing = ours.iter().filter(|entry| entry.info.descriptors > 0).count();
        let certain = log.active().is_some() && outcome == Outcome::Differs && changing > 1;
        Ok(orphan(outcome, place, ours.len(), certain))
    }

    /// Everything in a ring that does not tell which session is the newest.
    fn of_all(&self, place: LogPlace, ring: &Log) -> Result<Option<Defect>> {
        let whole: Vec<&LogEntry> =
            ring.entries().iter().filter(|entry| entry.fault.is_none()).collect();
        Ok(orphan(self.compare(ring, &whole, None)?, place, whole.len(), false))
    }

    /// Against the file replayed or, without that, against the entries one by one.
    fn compare(
        &self,
        log: &Log,
        entries: &[&LogEntry],
        replayed: Option<&Arc<dyn Storage>>,
    ) -> Result<Outcome> {
        let length = self.file.length()?;
        let mut outcome = Outcome::Same;
        for entry in entries {
            log.updates(&**self.file, entry, |update| {
                if let Update::Data { file_offset, sector } = update
                    && outcome == Outcome::Same
                    // What lies behind the end of the file was never there, or has been cut off.
                    && file_offset < length
                    && self.is_used(file_offset)
                {
                    let differs =
                        self.differs(file_offset, LOG_SECTOR_LEN, Some(sector), replayed)?;
                    outcome = if differs { Outcome::Differs } else { Outcome::Same };
                }
                Ok(())
            })?;
        }
        let mut budget = MOST_COMPARED;
        for entry in entries {
            log.updates(&**self.file, entry, |update| {
                if let Update::Zero { file_offset, length: zeros } = update
                    && outcome == Outcome::Same
                {
                    let end = file_offset.saturating_add(zeros).min(length);
                    outcome = self.compare_zeros(file_offset, end, replayed, &mut budget)?;
                }
                Ok(())
            })?;
        }
        Ok(outcome)
    }

    fn compare_zeros(
        &self,
        start: u64,
        end: u64,
        replayed: Option<&Arc<dyn Storage>>,
        budget: &mut u64,
    ) -> Result<Outcome> {
        let mut at = start;
        loop {
            *budget = budget.saturating_sub(LEAST_CHARGED);
            at = match &self.used {
                Some(space) => space.next_owned(at).map_or(end, |owned| owned.max(at)),
                None => at,
            };
            if at >= end {
                return Ok(Outcome::Same);
            }
            if *budget == 0 {
                return Ok(Outcome::Unknown);
            }
            let step = mib_floor(at).saturating_add(MIB).min(end).saturating_sub(at);
            if self.differs(at, usize::try_from(step).unwrap_or(0), None, replayed)? {
                return Ok(Outcome::Differs);
            }
            *budget = budget.saturating_sub(step);
            at = at.saturating_add(step);
        }
    }

    /// Whether the file holds something else in `length` bytes than `sector`, or zeros; or than the file replayed.
    fn differs(
        &self,
        at: u64,
        length: usize,
        sector: Option<&[u8; LOG_SECTOR_LEN]>,
        replayed: Option<&Arc<dyn Storage>>,
    ) -> Result<bool> {
        let (mut old, mut new) = (vec![0; length], vec![0; length]);
        self.file.read_zero_filled(at, &mut old)?;
        match (replayed, sector) {
            (Some(replayed), _) => {
                replayed.read_zero_filled(at, &mut new)?;
            }
            (None, Some(sector)) => {
                new.iter_mut().zip(sector).for_each(|(to, from)| *to = *from);
            }
            (None, None) => {}
        }
        Ok(old != new)
    }

    /// Whether a sector is in use. Where nothing tells, all are.
    fn is_used(&self, at: u64) -> bool {
        self.used.as_ref().is_none_or(|space| space.owns_any(at, 1))
    }
}

fn orphan(outcome: Outcome, place: LogPlace, entries: usize, certain: bool) -> Option<Defect> {
    let defect = Defect::LogOrphan { at: place.offset, entries: number(entries), certain };
    (outcome != Outcome::Same).then_some(defect)
}
