//! Sessions of writers, as the ring shows them: which entries are of one session, and which session is the newest.
//!
//! The last header names the session that is open. Without it the ring itself tells, because writers begin a
//! session at the start of the ring, over what was there: **the session that lies at the ring's first sector is the
//! newest, and what lies behind it is what is left of earlier ones.** QEMU is an exception that makes a session of
//! each entry and goes on behind the last one: so entries that are sessions of their own are followed from the
//! start, as long as the next one touches the last, carries the next number, and drops no block that an earlier one
//! had in the table. A ring whose first sector belongs to no whole entry tells nothing.
//!
//! Of our own sessions more can be told. The LogGuid of an epoch is the session's FileWriteGuid and the epoch's number
//! added to it: so entries say to which header they belong, and which of them are the newest, even where the header
//! that named them is lost. Another session has another FileWriteGuid (MS-VHDX 2.2.2.1).

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::format::Guid;
use crate::format::bat::{self, Page};
use crate::format::limits::MAX_SALVAGED_SECTORS;
use crate::storage::Storage;

use super::{Log, LogEntry, Update};

/// More epochs than any session has.
const MOST_EPOCHS: u32 = 1 << 30;

/// The LogGuid of a session's epoch, the first of which is 1.
pub(crate) fn log_guid(file_write_guid: Guid, epoch: u32) -> Guid {
    let (mut bytes, base) = (file_write_guid.to_bytes(), counted(file_write_guid));
    let number = base.wrapping_add(epoch).to_be_bytes();
    bytes.iter_mut().skip(12).zip(number).for_each(|(to, from)| *to = from);
    Guid::from_bytes(bytes)
}

/// The epoch of which this is the LogGuid, where it is one of the session with that FileWriteGuid.
pub(crate) fn epoch_of(file_write_guid: Guid, guid: Guid) -> Option<u32> {
    let epoch = counted(guid).wrapping_sub(counted(file_write_guid));
    (epoch > 0 && epoch <= MOST_EPOCHS && log_guid(file_write_guid, epoch) == guid).then_some(epoch)
}

/// The part of a GUID that counts: its last four bytes.
fn counted(guid: Guid) -> u32 {
    guid.to_bytes().last_chunk().map_or(0, |last| u32::from_be_bytes(*last))
}

/// What a session of the log left in the ring.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The LogGuid of its entries.
    pub(crate) guid: Guid,
    /// The first number from which on every entry up to the last is there.
    pub(crate) sound_from: u64,
    /// Where in the ring the first of them lies.
    pub(crate) lowest_offset: u32,
    /// In the order of their numbers.
    pub(crate) entries: Vec<LogEntry>,
}

/// What each session left, in no order.
pub(crate) fn sessions(log: &Log) -> Vec<Session> {
    let mut by_guid: BTreeMap<Guid, Vec<LogEntry>> = BTreeMap::new();
    for entry in log.entries().iter().filter(|entry| entry.fault.is_none()) {
        by_guid.entry(entry.info.log_guid).or_default().push(entry.clone());
    }
    let session = |(guid, mut entries): (Guid, Vec<LogEntry>)| {
        entries.sort_by_key(|entry| entry.info.sequence);
        let last = entries.last()?.info.sequence;
        let mut sound_from = last;
        for entry in entries.iter().rev().skip(1) {
            if entry.info.sequence.checked_add(1) != Some(sound_from) {
                break;
            }
            sound_from = entry.info.sequence;
        }
        let lowest_offset = entries.iter().map(|entry| entry.info.log_offset).min()?;
        Some(Session { guid, sound_from, lowest_offset, entries })
    };
    by_guid.into_iter().filter_map(session).collect()
}

/// The session that lies newest in the ring, whatever a header names; `None` where the ring does not tell.
pub(crate) fn newest_by_place(
    storage: &dyn Storage,
    log: &Log,
    sessions: &[Session],
) -> Result<Option<Guid>> {
    if let [only] = sessions {
        return Ok(Some(only.guid));
    }
    if !has_whole_start(log) {
        return Ok(None);
    }
    let mut whole = log.entries().iter().filter(|entry| entry.fault.is_none());
    let Some(first) = whole.next() else { return Ok(None) };
    let alone: BTreeSet<Guid> = sessions
        .iter()
        .filter(|session| session.entries.len() == 1)
        .map(|session| session.guid)
        .collect();
    let stands_alone = |entry: &LogEntry| alone.contains(&entry.info.log_guid);
    let mut last = first;
    let mut seen = Tables::default();
    seen.add(storage, log, last)?;
    for next in whole {
        let touches = last.info.log_offset.saturating_add(last.info.length) == next.info.log_offset;
        let follows = last.info.sequence.checked_add(1) == Some(next.info.sequence);
        let same = last.info.log_guid == next.info.log_guid;
        let alone = stands_alone(last) && stands_alone(next);
        if !touches || !follows || !(same || (alone && seen.add(storage, log, next)?)) {
            break;
        }
        last = next;
    }
    Ok(Some(last.info.log_guid))
}

/// Whether the ring's first sector belongs to a whole entry: where it does not, a newer session than any that is left
/// may have lain there.
pub(crate) fn has_whole_start(log: &Log) -> bool {
    let length = log.place().map_or(0, |place| place.length);
    let mut whole = log.entries().iter().filter(|entry| entry.fault.is_none());
    whole.any(|entry| {
        let info = entry.info;
        info.log_offset == 0 || info.log_offset.saturating_add(info.length) > length
    })
}

/// Pages of the table as entries have left them.
#[derive(Default)]
struct Tables(BTreeMap<u64, Box<Page>>);

impl Tables {
    /// Takes an entry's pages. `false` when one of them drops a block that was there.
    fn add(&mut self, storage: &dyn Storage, log: &Log, entry: &LogEntry) -> Result<bool> {
        let mut grows = true;
        log.updates(storage, entry, |update| {
            if let Update::Data { file_offset, sector } = update
                && bat::names_blocks(sector)
                && self.0.len() < MAX_SALVAGED_SECTORS
                && let Some(old) = self.0.insert(file_offset, Box::new(*sector))
            {
                let mut pairs = bat::entries(&old).zip(bat::entries(sector));
                grows &= pairs.all(|(old, new)| old == new || !bat::is_present(old));
            }
            Ok(())
        })?;
        Ok(grows)
    }
}
