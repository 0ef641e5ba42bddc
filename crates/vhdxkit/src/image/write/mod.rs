//! Writing a disk: guest writes in, crash-proof changes of the file out.
//!
//! A [`Writer`] belongs to an image that is open for writing. The work is divided so:
//!
//! * `guest`: what a guest asks for: write, zero, discard. Payload goes into the file at once; the
//!   mapping changes in memory.
//! * `blocks`: one change of a block's mapping at a time, and room for it.
//! * `payload`: bytes and zeros into the file. `sectors`: blocks of a child that hold only some of their sectors.
//! * `commit`: what a flush does: one log entry for all changes of the mapping so far, one sync.
//! * `session`: the first write of all, and the clean close.
//! * `compact`: blocks lose their places, or change them. `resize`: another size. `items`: other metadata, such as the parent locator.
//!
//! # What makes a mapping change safe
//! A block's new entry is published (seen by readers, taken by the next commit) only when the payload
//! writes and zeroing that it stands for have returned; until then readers see the old one. So what
//! is visible is always what may be logged, and no commit can catch a block whose bytes are not
//! there yet. Two first writes to one block take turns at its gate.
//!
//! Space that the mapping gives up goes a long way before it is handed out again: it waits in
//! `dropped` for an entry that carries the change to become stable (before, a crash would bring its
//! old owner back), then in `retired` for the pins of those who may still be using it. Space that log
//! entries of the present epoch write to waits in `held` for the next epoch, since a replay would
//! write it again.
//!
//! # Locks
//! `log` (commits, headers, all syncs) before `state` (mapping, space) before those inside the BAT's
//! cache and the sectors. Payload I/O holds none of them. `docs/crash-protocol.md` has the argument for
//! the order of the writes.

mod blocks;
mod commit;
mod compact;
mod guest;
mod items;
mod payload;
mod resize;
mod sectors;
mod session;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::Repr;
use crate::format::GuidSource;
use crate::log::LogWriter;
use crate::map::{Pins, Sectors, Space};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::HeaderPair;
use crate::{Error, Result};

use commit::Group;
pub(crate) use compact::GivenUp;
pub use resize::{ResizeReport, Shrink};

/// Open for writing, nothing changed yet.
const IDLE: u8 = 0;
/// The session's header is stable: everything may be changed.
const RUNNING: u8 = 1;
/// Closed: no more writes.
const CLOSED: u8 = 2;
/// A log write, header write or sync has failed: no more writes.
const POISONED: u8 = 3;

/// Everything that an image needs for being written.
pub(crate) struct Writer {
    file: Arc<dyn Storage>,
    sectors: Arc<Sectors>,
    pins: Pins,
    guids: GuidSource,
    /// The FileWriteGuid is this writer's already: a replay has changed it.
    replayed: bool,
    status: AtomicU8,
    /// The disk has this writer's DataWriteGuid.
    identified: AtomicBool,
    poison: OnceLock<String>,
    /// Something was written since the last sync began.
    unsynced: AtomicBool,
    /// How many spaces were given up since the last snapshot.
    dropped: AtomicUsize,
    /// The file's length, for those who do not hold the lock of the mapping.
    length: AtomicU64,
    log: Mutex<LogWriter>,
    state: Mutex<State>,
    /// A gate has opened.
    opened: Condvar,
    group: Group,
}

/// What changes with the mapping.
struct State {
    space: Space,
    /// Blocks whose mapping is being changed.
    busy: BTreeSet<u64>,
    /// Space given up since the last commit took its snapshot.
    dropped: Vec<Range<u64>>,
    /// Space whose release is stable, with the generation in which it was last visible.
    retired: VecDeque<(u64, Range<u64>)>,
    /// Space that entries of the present epoch write to.
    held: Vec<Range<u64>>,
    /// Where the BAT lies.
    bat: Range<u64>,
    /// The file of a fixed disk is never cut below this: what all of its blocks need, those without a place
    /// included (MS-VHDX 2.6.2.1).
    least: u64,
    /// Ranges that the next commit zeroes, before its data.
    zeroes: Vec<Range<u64>>,
    /// A published block relies on payload that a crash must not take: sync before the entry.
    payload_first: bool,
    /// The end of the highest block published since the last snapshot.
    exposed: u64,
    /// Blocks that were given a place since then.
    placed: u64,
    /// Blocks that may still be given a place.
    unplaced: u64,
    /// Space is being given back: the file is not extended ahead of need.
    never_grows: bool,
}

impl Writer {
    /// For a clean file of which everything read is durable.
    pub(super) fn new(
        file: Arc<dyn Storage>,
        headers: HeaderPair,
        guids: GuidSource,
        replayed: bool,
    ) -> Result<Self> {
        let length = file.length()?;
        let log = LogWriter::new(headers, &guids)?;
        let sectors = Arc::new(Sectors::new(Arc::clone(&file)));
        Ok(Self {
            sectors,
            pins: Pins::default(),
            replayed,
            status: AtomicU8::new(IDLE),
            identified: AtomicBool::new(false),
            poison: OnceLock::new(),
            unsynced: AtomicBool::new(false),
            dropped: AtomicUsize::new(0),
            length: AtomicU64::new(length),
            log: Mutex::new(log),
            state: Mutex::new(State {
                // Until the session begins nothing is known of the space, and nothing is handed out.
                space: Space::new(0, 0, 1),
                busy: BTreeSet::new(),
                dropped: Vec::new(),
                retired: VecDeque::new(),
                held: Vec::new(),
                bat: 0..0,
                least: 0,
                zeroes: Vec::new(),
                payload_first: false,
                exposed: 0,
                placed: 0,
                unplaced: 0,
                never_grows: false,
            }),
            opened: Condvar::new(),
            group: Group::default(),
            guids,
            file,
        })
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(crate) fn sectors(&self) -> &Arc<Sectors> {
        &self.sectors
    }

    /// The length of the file: a block that was published lies below it.
    pub(crate) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    // A panic while one of these is held leaves what it guards in an unknown state: whoever comes
    // next must not build on it.

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|broken| self.broken(broken))
    }

    fn log(&self) -> MutexGuard<'_, LogWriter> {
        self.log.lock().unwrap_or_else(|broken| self.broken(broken))
    }

    fn broken<T>(&self, broken: PoisonError<T>) -> T {
        self.poison_with("an earlier operation panicked".to_owned());
        broken.into_inner()
    }

    /// Fails when the handle does not take changes any more.
    fn require_usable(&self) -> Result<()> {
        match self.status.load(Ordering::Acquire) {
            IDLE | RUNNING => Ok(()),
            CLOSED => Err(Error::invalid("the image has been closed")),
            _ => Err(self.poisoned()),
        }
    }

    fn poisoned(&self) -> Error {
        let why = self.poison.get().cloned().unwrap_or_default();
        Error::new(Repr::Poisoned { why })
    }

    fn poison_with(&self, why: String) {
        // The first reason is the one that matters.
        let _ = self.poison.set(why);
        self.status.store(POISONED, Ordering::Release);
        // Whoever waits at a gate is to find out.
        self.opened.notify_all();
    }

    /// After a failed log write, header write or sync nobody knows what is durable: the handle takes
    /// no more changes, and a failed sync is never tried again.
    fn poison(&self, error: Error) -> Error {
        self.poison_with(error.to_string());
        error
    }
}
