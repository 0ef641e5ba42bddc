//! The metadata log (MS-VHDX 2.3): a ring of entries that make changes of the file's tables
//! survive a crash.
//!
//! [`Log::read`] finds everything the ring holds. What has to be replayed is the
//! [`ActiveSequence`]; everything else is kept for the timeline: entries that are superseded,
//! belong to an earlier session, or were torn by a crash.
//!
//! Modules: `encode` lays out entries, `ring` reads across the wrap, `entry` judges one entry,
//! `scan` finds all of them and the active sequence, `replay` carries it out, `sessions` tells whose they are,
//! `writer` appends entries, `headers` writes the header pair.

mod encode;
mod entry;
mod headers;
mod replay;
mod ring;
mod scan;
mod sessions;
mod writer;

use std::sync::Arc;

use crate::Result;
use crate::defect::{Defect, EntryFault};
use crate::findings::Findings;
use crate::format::{Guid, GuidSource};
use crate::storage::{Overlay, Patched, Storage, StorageExt};
use crate::view::headers::{HeaderPair, LogPlace};
use crate::{Error, format};

pub use encode::EntryBuilder;
pub use entry::EntryInfo;
pub use replay::{ReplayReport, Update};
pub use scan::ActiveSequence;

pub(crate) use headers::{HeaderWriter, sync};
pub(crate) use sessions::{Session, epoch_of, has_whole_start, newest_by_place, sessions};
pub(crate) use writer::{Change, FileSizes, LogWriter, MOST_DESCRIPTORS};

use ring::Ring;

/// What an entry of the ring is to the file as it lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryStatus {
    /// Part of the active sequence: it will be replayed.
    Active,
    /// Whole and of the current session, but replaced by newer entries or already in place.
    Superseded,
    /// Whole, but of an earlier session (another log GUID).
    Foreign,
    /// Damaged or never finished.
    Torn,
}

impl EntryStatus {
    /// `active`, `superseded`, `foreign` or `torn`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Foreign => "foreign",
            Self::Torn => "torn",
        }
    }
}

/// How a log lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogState {
    /// The header names no log: there is nothing to replay.
    Clean,
    /// There is an active sequence to be replayed.
    Dirty,
    /// The header names a log, but no active sequence belongs to it.
    Invalid,
}

impl LogState {
    /// `clean`, `dirty` or `invalid`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Invalid => "invalid",
        }
    }
}

/// An entry found in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its header.
    pub info: EntryInfo,
    /// What it is to the file.
    pub status: EntryStatus,
    /// Why it does not count, when it is torn.
    pub fault: Option<EntryFault>,
    /// The highest file offset it writes to; 0 when torn.
    pub highest_end: u64,
}

/// Everything that a file's log holds.
#[derive(Debug, Clone)]
pub struct Log {
    place: Option<LogPlace>,
    guid: Guid,
    entries: Vec<LogEntry>,
    active: Option<ActiveSequence>,
    sectors_judged: u64,
}

impl Log {
    /// Reads the log of the VHDX file in `storage`: headers and ring, nothing else.
    ///
    /// ```
    /// use vhdxkit::log::{Log, LogState};
    /// use vhdxkit::storage::{FileStorage, OpenMode};
    ///
    /// let mode = OpenMode::ReadOnly { force_share: false };
    /// let file = FileStorage::open("../../testdata/crashed.vhdx".as_ref(), mode)?;
    /// let log = Log::read(&file)?;
    /// assert_eq!(log.state(), LogState::Dirty);
    /// for entry in log.entries() {
    ///     println!("{:>8} {}", entry.info.sequence, entry.status.name());
    /// }
    /// # Ok::<(), vhdxkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// The file is no VHDX file, has no valid header, or names a log that cannot lie there.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let headers = HeaderPair::read(storage, &mut Findings::strict())?;
        Self::read_ring(storage, &headers)
    }

    /// As much of the log as opening needs: the ring of a clean file holds nothing but history and
    /// is not read.
    pub(crate) fn read_pending(storage: &dyn Storage, headers: &HeaderPair) -> Result<Self> {
        match headers.is_dirty() {
            true => Self::read_ring(storage, headers),
            false => Ok(Self::unread(headers)),
        }
    }

    fn unread(headers: &HeaderPair) -> Self {
        Self {
            place: headers.log_place(),
            guid: headers.current().log_guid,
            entries: Vec::new(),
            active: None,
            sectors_judged: 0,
        }
    }

    /// Reads the ring that the headers name.
    ///
    /// # Errors
    /// Reading fails.
    pub fn read_ring(storage: &dyn Storage, headers: &HeaderPair) -> Result<Self> {
        let Some(place) = headers.log_place() else { return Ok(Self::unread(headers)) };
        Self::at(storage, place, headers.current().log_guid)
    }

    /// The ring at a place that no header has to vouch for, as if one named the session `guid`.
    pub(crate) fn at(storage: &dyn Storage, place: LogPlace, guid: Guid) -> Result<Self> {
        let ring = Ring::new(storage, place);
        let scan = scan::scan(ring)?;
        let active = match guid.is_zero() {
            true => None,
            false => scan::active_sequence(&scan, ring, guid),
        };
        let live: std::collections::BTreeSet<u32> =
            active.iter().flat_map(|a| a.entries()).map(|entry| entry.log_offset).collect();
        let sectors_judged = scan.sectors_judged;
        let status = |found: &scan::Found| match found {
            found if found.fault.is_some() => EntryStatus::Torn,
            found if guid.is_zero() || found.info.log_guid != guid => EntryStatus::Foreign,
            found if live.contains(&found.info.log_offset) => EntryStatus::Active,
            _ => EntryStatus::Superseded,
        };
        let entries = scan
            .found
            .into_iter()
            .map(|found| LogEntry {
                status: status(&found),
                info: found.info,
                fault: found.fault,
                highest_end: found.highest_end,
            })
            .collect();
        Ok(Self { place: Some(place), guid, entries, active, sectors_judged })
    }

    /// How the log lies on disk.
    #[must_use]
    pub fn state(&self) -> LogState {
        match (self.guid.is_zero(), &self.active) {
            (true, _) => LogState::Clean,
            (false, Some(_)) => LogState::Dirty,
            (false, None) => LogState::Invalid,
        }
    }

    /// The session that the header names; zero when it names none.
    #[must_use]
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Where the log lies; `None` when the file has none that could be read.
    #[must_use]
    pub fn place(&self) -> Option<LogPlace> {
        self.place
    }

    /// Everything in the ring that starts like an entry, in the order of the ring.
    #[must_use]
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// What has to be replayed.
    #[must_use]
    pub fn active(&self) -> Option<&ActiveSequence> {
        self.active.as_ref()
    }

    /// How many 4 KiB sectors were judged to find all this: never more than twice the ring's.
    #[must_use]
    pub fn sectors_judged(&self) -> u64 {
        self.sectors_judged
    }

    /// Calls `visit` with every update of a valid entry, in order.
    ///
    /// # Errors
    /// The entry is torn, the log cannot be read or has changed since, or `visit` fails.
    pub fn updates(
        &self,
        storage: &dyn Storage,
        entry: &LogEntry,
        mut visit: impl FnMut(Update<'_>) -> Result<()>,
    ) -> Result<()> {
        match (self.place, &entry.fault) {
            (Some(place), None) => {
                replay::for_each_update(Ring::new(storage, place), &entry.info, &mut visit)
            }
            _ => Err(Error::invalid("a torn entry has no updates")),
        }
    }

    /// The bytes of an entry as they lie in the ring, put together across the wrap.
    ///
    /// # Errors
    /// The entry's length makes no sense, or reading fails.
    pub fn raw_entry(&self, storage: &dyn Storage, entry: &LogEntry) -> Result<Vec<u8>> {
        let length = entry.info.length;
        let place = self.place.filter(|place| {
            length > 0 && length <= place.length && length.is_multiple_of(format::LOG_SECTOR)
        });
        let place = place.ok_or_else(|| Error::invalid("the entry's length makes no sense"))?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        Ring::new(storage, place).read(entry.info.sector(), &mut bytes)?;
        Ok(bytes)
    }

    /// Whole entries, newer than what a replay carries out, that cannot be reached because one before them
    /// is damaged ([`Defect::UnreachableEntries`]). No crash leaves that behind a writer which syncs each
    /// entry before the next one.
    #[must_use]
    pub fn unreachable_entries(&self) -> Option<Defect> {
        let head = self.active.as_ref()?.head()?.sequence;
        let newer = self.entries.iter().filter(|entry| {
            entry.status == EntryStatus::Superseded
                && entry.info.log_guid == self.guid
                && entry.info.sequence > head
        });
        let newer: Vec<_> = newer.map(|entry| &entry.info).collect();
        let oldest = newer.iter().min_by_key(|entry| entry.sequence)?;
        let newest = newer.iter().max_by_key(|entry| entry.sequence)?;
        Some(Defect::UnreachableEntries {
            at: self.place?.offset.saturating_add(u64::from(oldest.log_offset)),
            head,
            first: oldest.sequence,
            last: newest.sequence,
        })
    }

    /// The defect of a header that names a log without an active sequence.
    pub(crate) fn no_active_sequence(&self) -> Defect {
        let torn = self.entries.iter().filter(|e| e.status == EntryStatus::Torn).count();
        let valid = self.entries.iter().filter(|e| e.status == EntryStatus::Superseded).count();
        Defect::NoActiveSequence {
            at: self.place.map_or(0, |place| place.offset),
            guid: self.guid,
            valid: u64::try_from(valid).unwrap_or(u64::MAX),
            torn: u64::try_from(torn).unwrap_or(u64::MAX),
        }
    }

    /// V8 and V9: whether the log can be replayed onto a file of this length.
    pub(crate) fn judge(&self, file_size: u64) -> Result<()> {
        match (self.state(), &self.active, self.place) {
            (LogState::Dirty, Some(active), Some(place)) => {
                // The ring is only used for its offsets here.
                let nothing = crate::storage::MemoryStorage::default();
                replay::judge_length(Ring::new(&nothing, place), active, file_size)
            }
            (LogState::Invalid, ..) => Err(self.no_active_sequence().into()),
            _ => Ok(()),
        }
    }

    /// Replays into the file itself; without anything to replay nothing is written. Gives the headers
    /// as they then are.
    ///
    /// # Errors
    /// As [`replay_in_place`].
    pub(crate) fn replay_into_file(
        &self,
        storage: &dyn Storage,
        headers: HeaderPair,
        guids: &GuidSource,
    ) -> Result<(HeaderPair, Option<ReplayReport>)> {
        self.judge(storage.length()?)?;
        let (Some(active), Some(place)) = (&self.active, self.place) else {
            return Ok((headers, None));
        };
        let ring = Ring::new(storage, place);
        let (headers, report) = replay::replay_in_place(storage, headers, ring, active, guids)?;
        Ok((headers, Some(report)))
    }

    /// Carries the active sequence out in the file itself, and nothing more: the headers before and after,
    /// and the syncs, are the caller's. Whether the file is long enough must have been judged.
    pub(crate) fn apply_to(&self, storage: &dyn Storage) -> Result<()> {
        match (&self.active, self.place) {
            (Some(active), Some(place)) => {
                replay::apply(Ring::new(storage, place), active, storage).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Replays into memory: the result shows the file as it would be, and the file is not touched.
    /// Without anything to replay that is the file itself.
    ///
    /// # Errors
    /// The log is invalid, the file was cut off, or replay would need more memory than
    /// [`limits`](format::limits) allow.
    pub(crate) fn replay_in_memory(&self, file: Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
        self.judge(file.length()?)?;
        self.replay_regardless(file)
    }

    /// [`replay_in_memory`](Self::replay_in_memory), however much of the file has been cut off: for those
    /// who look at what is left.
    pub(crate) fn replay_regardless(&self, file: Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
        let (Some(active), Some(place)) = (&self.active, self.place) else { return Ok(file) };
        let overlay = Overlay::new(Arc::clone(&file))
            .map_err(|e| Error::io_whole("cannot tell the file's length", e))?;
        replay::apply(Ring::new(&*file, place), active, &overlay)?;
        let patched: Patched = overlay.freeze();
        Ok(Arc::new(patched))
    }
}

/// Replays the log of the VHDX file in `storage` in place. `None` when there was nothing to do;
/// then nothing was written.
///
/// It goes by the headers alone: [`PendingReplay`](crate::PendingReplay) looks, too, for a log whose header is lost.
///
/// # Errors
/// As [`Log::read`]; the log is invalid; the file was cut off; somebody else writes the file;
/// writing fails. After an error the file can still be replayed.
pub fn replay_in_place(storage: &dyn Storage) -> Result<Option<ReplayReport>> {
    let headers = HeaderPair::read(storage, &mut Findings::strict())?;
    let log = Log::read_pending(storage, &headers)?;
    Ok(log.replay_into_file(storage, headers, &GuidSource::random())?.1)
}
