//! A log that no header names any more, because the header that named it is damaged.
//!
//! When one header copy is damaged, nothing tells whether it was the newer one. If the other names no log, the
//! file looks clean: but the lost one may have named a log that holds changes which are not in place, and
//! whatever is logged next would be written over them. The ring itself is the witness. After a clean close all
//! that its newest session holds is in place; so where that session is whole, and replaying it would change the
//! file, it was most likely open. What older sessions hold may have been changed since, and says nothing.

use std::sync::Arc;

use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::{Guid, LOG_SECTOR};
use crate::log::{Log, LogEntry, Update, newest_by_place, sessions};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::{HeaderPair, LogPlace};

/// Bytes of a file that are compared with what its log holds.
const MOST_COMPARED: u64 = 256 << 20;
const STEP: usize = 1 << 20;

/// What a repair says of it.
pub(super) const WHY: &str = "the lost header may have named a log whose newest entries are not in place, and what a \
                              repair logs is written over them; `vhdx recover` uses them";

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
    let ring = Log::at(&**file, place, Guid::ZERO)?;
    let whole: Vec<&LogEntry> =
        ring.entries().iter().filter(|entry| entry.fault.is_none()).collect();
    match newest_by_place(&**file, &ring, &sessions(&ring))? {
        Some(guid) => of_session(file, place, guid),
        None if differs(file, file, &ring, &whole)? => Ok(Some(orphan(place, whole.len(), false))),
        None => Ok(None),
    }
}

fn orphan(place: LogPlace, entries: usize, certain: bool) -> Defect {
    let entries = u64::try_from(entries).unwrap_or(u64::MAX);
    Defect::LogOrphan { at: place.offset, entries, certain }
}

/// The newest session, of which nothing may be missing that a replay needs.
fn of_session(file: &Arc<dyn Storage>, place: LogPlace, guid: Guid) -> Result<Option<Defect>> {
    let log = Log::at(&**file, place, guid)?;
    let ours = log.entries().iter();
    let ours: Vec<&LogEntry> =
        ours.filter(|entry| entry.fault.is_none() && entry.info.log_guid == guid).collect();
    let Some(active) = log.active() else {
        let is_open = differs(file, file, &log, &ours)?;
        return Ok(is_open.then(|| orphan(place, ours.len(), false)));
    };
    let replayed = log.replay_regardless(Arc::clone(file))?;
    let is_open = differs(file, &replayed, &log, &ours)?;
    // A session's second entry is written only when the header that names its log is stable. Of a first one
    // nobody was promised anything before that: a crash that tears the header leaves this, too.
    let entries = active.entries().len();
    Ok(is_open.then(|| orphan(place, entries, entries > 1)))
}

/// Whether something that the entries write is otherwise in the file: against the file replayed, or, where
/// `replayed` is the file itself, against the entries one by one.
fn differs(
    file: &Arc<dyn Storage>,
    replayed: &Arc<dyn Storage>,
    log: &Log,
    entries: &[&LogEntry],
) -> Result<bool> {
    let (mut differs, mut budget) = (false, MOST_COMPARED);
    let one_by_one = Arc::ptr_eq(file, replayed);
    let (mut old, mut new) = (vec![0; STEP], vec![0; STEP]);
    for entry in entries {
        log.updates(&**file, entry, |update| {
            let (mut at, end, sector) = match update {
                Update::Data { file_offset, sector } => {
                    (file_offset, file_offset.saturating_add(u64::from(LOG_SECTOR)), Some(sector))
                }
                Update::Zero { file_offset, length } => {
                    (file_offset, file_offset.saturating_add(length), None)
                }
            };
            // What lies behind the end of the file was never there, or has been cut off.
            let end = end.min(file.length()?);
            while at < end && !differs && budget > 0 {
                let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
                let room = left.min(STEP);
                let step = u64::try_from(room).unwrap_or(u64::MAX);
                let (Some(old), Some(new)) = (old.get_mut(..room), new.get_mut(..room)) else {
                    break;
                };
                file.read_zero_filled(at, old)?;
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
                at = at.saturating_add(step);
            }
            Ok(())
        })?;
    }
    Ok(differs)
}
