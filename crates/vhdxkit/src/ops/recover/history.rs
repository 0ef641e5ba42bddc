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
//! # Which session is the newest
//! A header names the one that is open. Without it: a single session is the newest. Of several, two things
//! speak: files grow, so the newest has seen the largest `LastFileOffset`; and where the entries lie: writers
//! begin a session at the start of the ring, so the newest lies there and the rest of earlier ones behind
//! it, unless the numbers go on from entry to entry through the whole ring, which then was filled once,
//! forwards. When both agree that is believed. When not, the one with the largest file is believed only if it
//! adds blocks to the table as it lies in the file and changes none; else the order is unknown, and then nothing
//! about which log and table disagree is certain.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::format::limits::MAX_SALVAGED_SECTORS;
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::log::{Log, LogEntry, Update};
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
    /// A sound header names it.
    Named,
    /// There is only one.
    Only,
    /// By file sizes and places in the ring.
    Inferred,
    /// It is not.
    Unknown,
}

/// What a session of the log left in the ring.
#[derive(Debug, Clone)]
struct Session {
    guid: Guid,
    /// The first number from which on every entry up to the last is there.
    sound_from: u64,
    last: u64,
    largest_file: u64,
    lowest_offset: u32,
    entries: Vec<LogEntry>,
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
                let mut history = Self::of(storage, log, headers)?;
                history.tell(place, trust, report);
                if !history.is_order_believable(storage)? {
                    history.forget_order(storage)?;
                    let text = "the log holds several sessions, and which is the newest is not known: where log and table disagree nothing is certain";
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
        let named = headers.session();
        let newest = newest(&sessions, named);
        // The newest first, then by the size of the file and the place in the ring.
        let first = newest.map(|(guid, _)| guid);
        sessions.sort_by_key(|session| {
            let behind = Some(session.guid) != first;
            (behind, std::cmp::Reverse(session.largest_file), session.lowest_offset)
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
            Order::Inferred => "the newest is inferred from file sizes and places in the ring",
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

    /// An inferred order that contradicts the file is none.
    fn is_order_believable(&self, storage: &dyn Storage) -> Result<bool> {
        let agreed = self.sessions.len() < 2 || self.two_signs_agree();
        if self.order != Order::Inferred || agreed {
            return Ok(true);
        }
        let mut disk = [0; LOG_SECTOR_LEN];
        for (offset, images) in &self.images {
            let Some(image) = images.iter().find(|image| image.rank == 0) else { continue };
            storage.read_zero_filled(*offset, &mut disk)?;
            let both = looks::names_blocks(&disk) && looks::names_blocks(&image.bytes);
            let mut pairs = looks::entries(&disk).zip(looks::entries(&image.bytes));
            if both && !pairs.all(|(old, new)| old == new || !looks::is_present(old)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn two_signs_agree(&self) -> bool {
        let Some((first, rest)) = self.sessions.split_first() else { return true };
        let largest = rest.iter().all(|session| session.largest_file < first.largest_file);
        let in_front = rest.iter().all(|session| session.lowest_offset > first.lowest_offset);
        let behind = rest.iter().all(|session| session.lowest_offset < first.lowest_offset);
        let placed = if goes_forwards(&self.sessions) { behind } else { in_front };
        largest && placed
    }

    fn forget_order(&mut self, storage: &dyn Storage) -> Result<()> {
        self.order = Order::Unknown;
        self.images.clear();
        self.zeros.clear();
        self.left_out = 0;
        self.collect(storage)
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
        let as_it_is =
            || Ok(Replayed { storage: Arc::clone(file), is_replayed: false, file_size: length });
        let Some(place) = self.log.as_ref().and_then(Log::place) else { return as_it_is() };
        let session = match (headers.is_sound(), self.order, self.sessions.first()) {
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
        let entries = active.entries().len();
        match log.replay_regardless(Arc::clone(file)) {
            Ok(replayed) => {
                let text =
                    format!("{entries} entries of the log's newest session are taken as done");
                report.remarks.push(text);
                let head = active.head().map_or(0, |head| head.flushed_file_offset);
                let is_cut = head == 0 || length < head;
                let file_size = if is_cut { length } else { replayed.length()? };
                Ok(Replayed { storage: replayed, is_replayed: true, file_size })
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

fn sessions(log: &Log) -> Vec<Session> {
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
        let largest_file = entries.iter().map(|entry| entry.info.last_file_offset).max()?;
        let lowest_offset = entries.iter().map(|entry| entry.info.log_offset).min()?;
        Some(Session { guid, sound_from, last, largest_file, lowest_offset, entries })
    };
    by_guid.into_iter().filter_map(session).collect()
}

/// Whether the numbers go on by one from entry to entry, in the order of the ring, through all sessions.
fn goes_forwards(sessions: &[Session]) -> bool {
    let entries = sessions.iter().flat_map(|session| &session.entries);
    let mut entries: Vec<(u32, u64)> =
        entries.map(|entry| (entry.info.log_offset, entry.info.sequence)).collect();
    entries.sort_unstable();
    entries.windows(2).all(|pair| match pair {
        [(_, before), (_, after)] => before.checked_add(1) == Some(*after),
        _ => true,
    })
}

fn newest(sessions: &[Session], named: Option<Guid>) -> Option<(Guid, Order)> {
    if let Some(named) = named {
        // A session that has left nothing: whatever the ring holds is older.
        return sessions
            .iter()
            .any(|session| session.guid == named)
            .then_some((named, Order::Named));
    }
    if let [only] = sessions {
        return Some((only.guid, Order::Only));
    }
    let largest = sessions.iter().map(|session| session.largest_file).max()?;
    let mut grown = sessions.iter().filter(|session| session.largest_file == largest);
    if let (Some(session), None) = (grown.next(), grown.next()) {
        return Some((session.guid, Order::Inferred));
    }
    let session = match goes_forwards(sessions) {
        true => sessions.iter().max_by_key(|session| session.last)?,
        false => sessions.iter().min_by_key(|session| session.lowest_offset)?,
    };
    Some((session.guid, Order::Inferred))
}
