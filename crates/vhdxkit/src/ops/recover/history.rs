//! The log as a witness: what any entry in its ring, whatever its session and age, put where.
//!
//! A log entry is under a checksum, and holds whole sectors of the tables as they were meant to be. Even of a
//! file that was closed cleanly the ring still holds the last ones. How much one of them says depends on
//! whether anything later could have changed the same sector.
//!
//! Within one session it cannot: the sequence numbers tell, and an entry that is overwritten is always the
//! oldest. So **an image from the newest session, of which every later entry is there, is what the sector was
//! last**. An image from an earlier session may be out of date, since entries of a session between may be gone.
//!
//! Which session is the newest, [`crate::log`]'s `sessions` tell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::format::limits::MAX_SALVAGED_SECTORS;
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::log::{Log, Session, Update, has_whole_start, newest_by_place, sessions};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::LogPlace;

use super::headers::Headers;
use super::looks::{self, Heads, Page};
use super::report::{Report, Trust};

/// Zero descriptors that are kept.
const MOST_ZEROS: usize = 1 << 12;

/// How the newest session is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The last header names it.
    Named,
    /// There is only one, and it starts the ring.
    Only,
    /// By places in the ring.
    Inferred,
    /// It is not.
    Unknown,
}

/// A sector as a session last wrote it.
#[derive(Debug, Clone)]
pub(super) struct SectorImage {
    /// 0 is the newest session.
    pub(super) rank: usize,
    pub(super) sequence: u64,
    /// Nothing later can have changed the sector.
    pub(super) sure: bool,
    pub(super) bytes: Box<Page>,
}

struct Zeroed {
    range: Range<u64>,
    image: (usize, u64, bool),
}

/// The file as it is once its log is replayed.
pub(super) struct Replayed {
    pub(super) storage: Arc<dyn Storage>,
    /// Whether anything was replayed.
    pub(super) is_replayed: bool,
    /// Newer entries lie behind one that is damaged: no replay reaches them.
    pub(super) has_gap: bool,
    /// Where the file ends. Replay makes it longer; what has been cut off does not come back by that.
    pub(super) file_size: u64,
}

/// Everything that the log says.
pub(super) struct History {
    log: Option<Log>,
    sessions: Vec<Session>,
    order: Order,
    images: BTreeMap<u64, Vec<SectorImage>>,
    zeros: Vec<Zeroed>,
    left_out: u64,
}

impl History {
    /// Finds the log, by the header or by its looks, and reads all of it.
    pub(super) fn read(
        storage: &dyn Storage,
        headers: &Headers,
        heads: &Heads,
        report: &mut Report,
    ) -> Result<Self> {
        let named = headers.log_place(storage.length()?);
        let mut places: Vec<(LogPlace, Trust)> =
            named.into_iter().map(|place| (place, Trust::Sound)).collect();
        if !headers.is_sound() {
            let known: Vec<u64> = heads.metadata.iter().chain(&heads.tables).copied().collect();
            for &offset in heads.logs.iter().take(8) {
                let length = looks::log_length(storage, offset, &known)?;
                places.push((LogPlace { offset, length }, Trust::Inferred));
            }
        }
        for (place, trust) in places {
            let log = Log::at(storage, place, headers.session().unwrap_or(Guid::ZERO))?;
            if log.entries().iter().any(|entry| entry.fault.is_none()) || headers.is_sound() {
                let history = Self::of(storage, log, headers)?;
                history.tell(place, trust, report);
                if history.order == Order::Unknown && !history.sessions.is_empty() {
                    let text = "which session of the log is the newest is not known: where log and table disagree nothing is certain";
                    report.remarks.push(text.to_owned());
                }
                return Ok(history);
            }
        }
        report.say("log", Trust::Lost, None, "no entry of a log was found");
        Ok(Self {
            log: None,
            sessions: Vec::new(),
            order: Order::Unknown,
            images: BTreeMap::new(),
            zeros: Vec::new(),
            left_out: 0,
        })
    }

    fn of(storage: &dyn Storage, log: Log, headers: &Headers) -> Result<Self> {
        let mut sessions = sessions(&log);
        let newest = newest(storage, &log, &sessions, headers)?;
        // The newest first, then those that it went on from, then what is left of the round before.
        let first = newest.and_then(|(guid, _)| sessions.iter().find(|s| s.guid == guid));
        let start = first.map_or(0, |session| session.lowest_offset);
        sessions.sort_by_key(|session| match session.lowest_offset {
            offset if offset <= start => (false, start.saturating_sub(offset)),
            offset => (true, offset),
        });
        let order = newest.map_or(Order::Unknown, |(_, order)| order);
        let mut history = Self {
            log: Some(log),
            sessions,
            order,
            images: BTreeMap::new(),
            zeros: Vec::new(),
            left_out: 0,
        };
        history.collect(storage)?;
        Ok(history)
    }

    fn collect(&mut self, storage: &dyn Storage) -> Result<()> {
        let Some(log) = self.log.take() else { return Ok(()) };
        let sessions = std::mem::take(&mut self.sessions);
        let (mut kept, newest_known) = (0usize, self.order != Order::Unknown);
        for (rank, session) in sessions.iter().enumerate() {
            for entry in &session.entries {
                let sequence = entry.info.sequence;
                let sure = newest_known && rank == 0 && sequence >= session.sound_from;
                log.updates(storage, entry, |update| {
                    match update {
                        Update::Data { file_offset, sector } => {
                            let images = self.images.entry(file_offset).or_default();
                            let bytes = Box::new(*sector);
                            let image = SectorImage { rank, sequence, sure, bytes };
                            match images.iter_mut().find(|old| old.rank == rank) {
                                Some(old) if old.sequence <= sequence => *old = image,
                                Some(_) => {}
                                None if kept < MAX_SALVAGED_SECTORS => {
                                    kept = kept.saturating_add(1);
                                    images.push(image);
                                }
                                None => self.left_out = self.left_out.saturating_add(1),
                            }
                        }
                        Update::Zero { file_offset, length } => {
                            if self.zeros.len() < MOST_ZEROS {
                                let range = file_offset..file_offset.saturating_add(length);
                                self.zeros.push(Zeroed { range, image: (rank, sequence, sure) });
                            } else {
                                self.left_out = self.left_out.saturating_add(1);
                            }
                        }
                    }
                    Ok(())
                })?;
            }
        }
        self.sessions = sessions;
        self.log = Some(log);
        Ok(())
    }

    fn tell(&self, place: LogPlace, trust: Trust, report: &mut Report) {
        let entries: usize = self.sessions.iter().map(|session| session.entries.len()).sum();
        let sectors = self.images.len();
        let order = match self.order {
            Order::Named => "the header names the newest",
            Order::Only => "only one",
            Order::Inferred => "the newest is inferred from their places in the ring",
            Order::Unknown => "the newest is not known",
        };
        let text = format!(
            "{} bytes; {entries} whole entries of {} sessions ({order}), images of {sectors} sectors",
            place.length,
            self.sessions.len(),
        );
        report.say("log", trust, Some(place.offset), text);
        if self.left_out > 0 {
            let text = format!("{} older sectors of the log were not looked at", self.left_out);
            report.remarks.push(text);
        }
    }

    /// The file with the newest session replayed over it, in memory; the file itself where there is nothing to
    /// replay, or no saying what.
    pub(super) fn replay(
        &self,
        file: &Arc<dyn Storage>,
        headers: &Headers,
        report: &mut Report,
    ) -> Result<Replayed> {
        let length = file.length()?;
        let as_it_is = || {
            let storage = Arc::clone(file);
            Ok(Replayed { storage, is_replayed: false, has_gap: false, file_size: length })
        };
        let Some(place) = self.log.as_ref().and_then(Log::place) else { return as_it_is() };
        let session = match (headers.is_last(), self.order, self.sessions.first()) {
            (true, Order::Named, Some(session)) => session,
            (false, Order::Only | Order::Inferred, Some(session)) => session,
            _ => return as_it_is(),
        };
        let log = Log::at(&**file, place, session.guid)?;
        let Some(active) = log.active() else {
            report.remarks.push(
                "the log of the last session is torn: it is used as a witness, and not replayed"
                    .to_owned(),
            );
            return as_it_is();
        };
        let gap = log.unreachable_entries();
        if let Some(gap) = &gap {
            let text = "nothing of the table is certain, the newer entries are used as witnesses";
            report.remarks.push(format!("{gap}: {text}"));
        }
        let has_gap = gap.is_some();
        let entries = active.entries().len();
        match log.replay_regardless(Arc::clone(file)) {
            Ok(replayed) => {
                let text =
                    format!("{entries} entries of the log's newest session are taken as done");
                report.remarks.push(text);
                let head = active.head().map_or(0, |head| head.flushed_file_offset);
                let is_cut = head == 0 || length < head;
                let file_size = if is_cut { length } else { replayed.length()? };
                Ok(Replayed { storage: replayed, is_replayed: true, has_gap, file_size })
            }
            Err(error) => {
                report.remarks.push(format!("the log was not replayed: {error}"));
                as_it_is()
            }
        }
    }

    /// Where the log lies.
    pub(super) fn place(&self) -> Option<LogPlace> {
        self.log.as_ref().and_then(Log::place)
    }

    /// Whether there is a log in which no entry was ever begun.
    pub(super) fn is_unused(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.entries().is_empty())
    }

    /// How the newest session is known.
    pub(super) fn order(&self) -> Order {
        self.order
    }

    /// The sector at a file offset as sessions left it, newest first.
    pub(super) fn images(&self, offset: u64) -> Vec<SectorImage> {
        let mut images = self.images.get(&offset).cloned().unwrap_or_default();
        for Zeroed { range, image: (rank, sequence, sure) } in &self.zeros {
            if !range.contains(&offset) {
                continue;
            }
            let image = SectorImage {
                rank: *rank,
                sequence: *sequence,
                sure: *sure,
                bytes: Box::new([0; LOG_SECTOR_LEN]),
            };
            match images.iter_mut().find(|old| old.rank == *rank) {
                Some(old) if old.sequence < *sequence => *old = image,
                Some(_) => {}
                None => images.push(image),
            }
        }
        images.sort_by_key(|image| image.rank);
        images
    }

    /// Every offset of which there is data, with the newest image.
    pub(super) fn newest(&self) -> impl Iterator<Item = (u64, &SectorImage)> {
        self.images.iter().filter_map(|(offset, images)| {
            Some((*offset, images.iter().min_by_key(|image| image.rank)?))
        })
    }
}

/// The session that has to be taken for the last one.
fn newest(
    storage: &dyn Storage,
    log: &Log,
    sessions: &[Session],
    headers: &Headers,
) -> Result<Option<(Guid, Order)>> {
    if let Some(named) = headers.session() {
        if !sessions.iter().any(|session| session.guid == named) {
            // It has left nothing: whatever the ring holds is older.
            return Ok(None);
        }
        if headers.is_last() {
            return Ok(Some((named, Order::Named)));
        }
    }
    // A single session is the newest one only if none can have lain before it in the ring: of one that was overwritten
    // nothing is left to be seen.
    if !has_whole_start(log) {
        return Ok(None);
    }
    let order = if sessions.len() == 1 { Order::Only } else { Order::Inferred };
    Ok(newest_by_place(storage, log, sessions)?.map(|guid| (guid, order)))
}
