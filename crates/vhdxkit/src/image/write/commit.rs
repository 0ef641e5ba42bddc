//! Flushing: one log entry for everything that changed, one sync, for everybody who waits.
//!
//! # A commit
//! 1. Under the lock of the mapping: images of the changed sectors, the space they give up, whether
//!    payload has to be durable first. From here on changes belong to the next commit.
//! 2. If payload has to be durable first: sync. It has to when a block lies in space that may hold
//!    other bytes than the guest saw there before (recycled space), or beyond a length of the file
//!    that a crash could take back.
//! 3. One entry with the images; sync. Payload, entry and whatever was written in place become
//!    durable together; the flush is answered.
//! 4. The images may go in place, at any time from now on. They ride on later syncs.
//!
//! The first commit of a session has no step 2: its entry does not count before the header names the
//! epoch, and that is written after the sync of step 3.
//!
//! # Sharing
//! One commit runs at a time. Whoever asks for a flush while one runs waits for the *next* one, and
//! shares it with all others who wait: the running one may have taken its snapshot before their last
//! write returned.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::format::mib_floor;
use crate::image::Image;
use crate::log::{Change, FileSizes, LogWriter, MOST_DESCRIPTORS};
use crate::map::{Contents, SectorImage};
use crate::storage::{Storage, StorageExt};
use crate::{Error, Result};

use super::{IDLE, Writer};

/// So many logged sectors are kept in memory before they are written in place ahead of need.
const APPLY_AT: usize = 1024;

/// At most so much free space is cleared with each commit, ahead of need.
const CLEARED_AHEAD: u64 = 64 << 20;

/// Who flushes for whom.
#[derive(Debug, Default)]
pub(super) struct Group {
    rounds: Mutex<Rounds>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    /// Commits begun and ended; one of them at most is running.
    begun: u64,
    ended: u64,
    /// The last one that made everything durable.
    succeeded: u64,
}

/// A commit that runs. However it ends, those who wait for it hear of it.
struct Round<'a> {
    writer: &'a Writer,
    number: u64,
    succeeded: bool,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.writer.poison_with("a flush panicked".to_owned());
        }
        let group = &self.writer.group;
        let mut rounds = group.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.ended = self.number;
        if self.succeeded {
            rounds.succeeded = self.number;
        }
        drop(rounds);
        group.done.notify_all();
    }
}

/// What a commit has to make durable.
struct Snapshot {
    images: Vec<SectorImage>,
    changes: Vec<Change>,
    /// More changed than one entry holds.
    more: bool,
    payload_first: bool,
    dropped: Vec<std::ops::Range<u64>>,
    zeroes: Vec<std::ops::Range<u64>>,
    /// Everything fits into a file of this length.
    last: u64,
}

impl Image {
    /// Makes everything durable that was written before this call.
    ///
    /// # Errors
    /// The image is open for reading or closed; or writing the log or syncing fails. After that the
    /// image takes no more writes ([`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned)); what earlier
    /// flushes made durable is safe.
    pub fn flush(&self) -> Result<()> {
        let writer = self.writer()?;
        writer.require_usable()?;
        if writer.status.load(Ordering::Acquire) == IDLE {
            return Ok(());
        }
        writer.flush()
    }
}

impl Writer {
    pub(super) fn flush(&self) -> Result<()> {
        let ignore = PoisonError::into_inner;
        let mut rounds = self.group.rounds.lock().unwrap_or_else(ignore);
        // The next round to begin sees everything that has returned by now.
        let mine = rounds.begun.saturating_add(1);
        loop {
            if rounds.succeeded >= mine {
                return Ok(());
            }
            if rounds.ended >= mine {
                return Err(self.not_durable());
            }
            if rounds.begun == rounds.ended {
                rounds.begun = mine;
                drop(rounds);
                let mut round = Round { writer: self, number: mine, succeeded: false };
                let result = self.commit();
                round.succeeded = result.is_ok();
                return result;
            }
            rounds = self.group.done.wait(rounds).unwrap_or_else(ignore);
        }
    }

    /// The error of those whose flush was done, and failed, by somebody else.
    fn not_durable(&self) -> Error {
        match self.poison.get() {
            Some(_) => self.poisoned(),
            None => Error::io_whole(
                "cannot make the disk durable",
                std::io::Error::other("a flush that this one shared has failed"),
            ),
        }
    }

    fn commit(&self) -> Result<()> {
        let mut log = self.log();
        self.require_usable()?;
        self.commit_all(&mut log)?;
        self.reap()
    }

    /// Commits until nothing is left that had changed when this was called.
    pub(super) fn commit_all(&self, log: &mut LogWriter) -> Result<()> {
        loop {
            let wanted = self.sectors.unlogged().saturating_add(self.state().zeroes.len());
            if wanted == 0 {
                return self.sync_payload(log);
            }
            if log.must_change(wanted) {
                self.change_epoch(log)?;
            }
            let snapshot = self.snapshot(log.room())?;
            let more = snapshot.more;
            self.make_durable(log, snapshot).map_err(|error| self.poison(error))?;
            if self.sectors.logged() > APPLY_AT {
                self.sectors.apply()?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Nothing of the mapping changed: the payload alone is made durable, if there is any.
    fn sync_payload(&self, log: &mut LogWriter) -> Result<()> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.sync(log).map_err(|error| self.poison(error))
    }

    fn snapshot(&self, room: usize) -> Result<Snapshot> {
        let mut state = self.state();
        let room = room.min(MOST_DESCRIPTORS).saturating_sub(state.zeroes.len());
        if !state.zeroes.is_empty() && self.sectors.unlogged() > room {
            return Err(Error::invalid("a change that must be one entry does not fit one"));
        }
        // Cleared first: what is written from now on belongs to the next commit.
        self.unsynced.store(false, Ordering::Release);
        let zeroes = std::mem::take(&mut state.zeroes);
        let images = self.sectors.take_unlogged(room, &state.bat);
        let more = self.sectors.unlogged() > 0;
        let payload_first = state.payload_first || state.exposed > state.space.durable_length();
        let dropped = if more { Vec::new() } else { std::mem::take(&mut state.dropped) };
        if !more {
            self.dropped.store(0, Ordering::Relaxed);
            state.payload_first = false;
            state.exposed = 0;
        }
        self.extend_ahead(&mut state);
        self.clear_ahead(&mut state);
        let zero = |range: &std::ops::Range<u64>| {
            Change::Zero(range.start, range.end.saturating_sub(range.start))
        };
        let data =
            |(offset, image): &SectorImage| Change::Data(*offset, std::sync::Arc::clone(image));
        let changes = zeroes.iter().map(zero).chain(images.iter().map(data)).collect();
        let last = state.space.highest();
        Ok(Snapshot { images, changes, more, payload_first, dropped, zeroes, last })
    }

    /// Extends the file while there is a sync to come that makes the length durable anyway.
    fn extend_ahead(&self, state: &mut super::State) {
        if state.never_grows {
            return;
        }
        let block = state.space.block();
        let wanted = state.unplaced.saturating_mul(block);
        if let Some(length) = state.space.step_ahead(wanted) {
            // Not needed yet: whoever needs it hears why it cannot be had.
            if self.file.set_len(length).is_ok() {
                self.grown(state, length);
            }
        }
    }

    /// Punches some of the free space that may hold anything, so that the sync to come makes it zeros
    /// for certain: a block that is stored there later needs no sync of its own before its entry. Twice
    /// what was needed since the last commit keeps ahead of a guest that goes on like this.
    fn clear_ahead(&self, state: &mut super::State) {
        let needed = std::mem::take(&mut state.placed).saturating_mul(state.space.block());
        let most = needed.saturating_mul(2).min(CLEARED_AHEAD);
        let Some(range) = state.space.take_unknown(most) else { return };
        let contents = match self.file.punch(range.clone()) {
            Ok(()) => state.space.punched(),
            // It stays what it was; whoever needs it clears it, and hears what is wrong.
            Err(_) => Contents::Unknown,
        };
        state.space.release(range, contents);
    }

    fn make_durable(&self, log: &mut LogWriter, snapshot: Snapshot) -> Result<()> {
        let storage = &*self.file;
        self.require_length()?;
        if snapshot.payload_first && log.is_live() {
            self.sync(log)?;
        }
        let durable = mib_floor(self.state().space.durable_length());
        let sizes = FileSizes { durable, last: snapshot.last };
        log.append(storage, &snapshot.changes, sizes)?;
        self.sync(log)?;
        if !log.is_live() {
            log.publish(storage)?;
            self.sync(log)?;
            log.headers().put_second(storage)?;
        }
        self.sectors.now_logged(snapshot.images);
        for range in &snapshot.zeroes {
            // At once: the sectors of the range have been forgotten, the file speaks for them.
            storage
                .punch(range.clone())
                .map_err(|e| Error::io("cannot zero a metadata range", range.start, e))?;
        }
        let generation = self.pins.generation();
        let mut state = self.state();
        state.retired.extend(snapshot.dropped.into_iter().map(|range| (generation, range)));
        Ok(())
    }

    /// An entry says how long the file is. When somebody has cut it that is a lie that would keep the
    /// image from being opened; and whatever lay behind the cut is lost.
    fn require_length(&self) -> Result<()> {
        let (found, expected) = (self.file.length()?, self.length());
        if found >= expected {
            return Ok(());
        }
        let cut = format!("it has {found} bytes and had {expected}: another program has cut it");
        Err(Error::io_whole("cannot go on with the file", std::io::Error::other(cut)))
    }

    /// The log is full: everything in place, and a new epoch.
    fn change_epoch(&self, log: &mut LogWriter) -> Result<()> {
        // A failure to write in place loses nothing: the entries are still there.
        self.sectors.apply()?;
        self.new_epoch(log).map_err(|error| self.poison(error))
    }

    fn new_epoch(&self, log: &mut LogWriter) -> Result<()> {
        let storage = &*self.file;
        let sizes = {
            let state = self.state();
            let durable = mib_floor(state.space.durable_length());
            FileSizes { durable, last: state.space.highest() }
        };
        log.begin_epoch(storage, sizes)?;
        self.sync(log)?;
        log.publish(storage)?;
        self.sync(log)?;
        log.headers().put_second(storage)?;
        let generation = self.pins.generation();
        let mut state = self.state();
        let held = std::mem::take(&mut state.held);
        state.retired.extend(held.into_iter().map(|range| (generation, range)));
        Ok(())
    }

    /// Everything logged goes in place, under a new epoch: what entries of the last one wrote to is free.
    pub(super) fn end_epoch(&self) -> Result<()> {
        let mut log = self.log();
        self.require_usable()?;
        // Never an epoch without a real entry after another (rule F2).
        if log.has_entries() && !self.state().held.is_empty() {
            self.change_epoch(&mut log)?;
        }
        drop(log);
        self.reap()
    }

    /// Makes everything written so far durable. A failure must poison the handle.
    pub(super) fn sync(&self, log: &mut LogWriter) -> Result<()> {
        let mark = self.state().space.begin_sync();
        crate::log::sync(&*self.file)?;
        log.headers().synced();
        self.state().space.end_sync(mark);
        Ok(())
    }
}
