//! Commits what nobody syncs, a moment later.
//!
//! **Space.** The image frees what was given up with its next commit. A file system that trims a disk that it
//! has nothing to write to asks for none: whoever runs `fstrim` would look at an image as large as before.
//!
//! **Writes.** The kernel passes `fsync` on to a file system like this one, but not `sync`: it does not trust
//! what is no part of it to answer. Whoever writes a file here, calls `sync` and sees it return has reached
//! nobody. So what was written is committed by itself soon, as every other file system does it.
//!
//! A thread looks at what has been noted. It is woken by the first of many requests only; the others cost a
//! count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Export;

/// A trim has ceased when no other has come for so long,
const QUIET_TRIMS: Duration = Duration::from_millis(300);
/// writing when nothing was written for so long.
const QUIET_WRITES: Duration = Duration::from_secs(2);
/// What does not cease is committed in pieces of so long.
const LONGEST: Duration = Duration::from_secs(4);
/// Meanwhile the thread looks so often.
const LOOK: Duration = Duration::from_millis(100);

/// The thread, and the way to wake it.
#[derive(Debug)]
pub(super) struct Tidy {
    noted: Arc<Noted>,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// How much has come since the start.
#[derive(Debug, Default)]
struct Noted {
    writes: AtomicU64,
    trims: AtomicU64,
    /// The thread waits to be woken.
    asleep: AtomicBool,
}

impl Tidy {
    /// Starts to wait for what nobody syncs; `None` when there can be no thread, and it is left to the next
    /// sync.
    pub(super) fn start(export: Export) -> Option<Self> {
        let (wake, woken) = sync_channel(1);
        let noted = Arc::new(Noted::default());
        let builder = std::thread::Builder::new().name("tidy".to_owned());
        let seen = Arc::clone(&noted);
        let thread = builder.spawn(move || commit_later(&export, &seen, &woken)).ok()?;
        Some(Self { noted, wake, thread })
    }

    /// Something was written; to be called after that.
    pub(super) fn note_write(&self) {
        self.note(&self.noted.writes);
    }

    /// Space was given up; to be called after that.
    pub(super) fn note_trim(&self) {
        self.note(&self.noted.trims);
    }

    fn note(&self, count: &AtomicU64) {
        count.fetch_add(1, Ordering::SeqCst);
        if self.noted.asleep.load(Ordering::SeqCst)
            && self.noted.asleep.swap(false, Ordering::SeqCst)
        {
            // When it is full, the thread is about to look.
            let _ = self.wake.try_send(());
        }
    }

    /// Ends; nothing is committed any more when this returns.
    pub(super) fn end(self) {
        drop(self.wake);
        let _ = self.thread.join();
    }
}

impl Noted {
    fn counts(&self) -> (u64, u64) {
        (self.writes.load(Ordering::SeqCst), self.trims.load(Ordering::SeqCst))
    }

    /// Returns when there is more than what was `committed`; `false` when there never will be.
    fn sleep(&self, committed: (u64, u64), woken: &Receiver<()>) -> bool {
        // Whoever counts looks then whether we sleep; so we say first that we do, and then look.
        self.asleep.store(true, Ordering::SeqCst);
        while self.counts() == committed {
            if woken.recv().is_err() {
                return false;
            }
            self.asleep.store(true, Ordering::SeqCst);
        }
        self.asleep.store(false, Ordering::SeqCst);
        true
    }
}

fn commit_later(export: &Export, noted: &Noted, woken: &Receiver<()>) {
    let mut committed = (0, 0);
    while noted.sleep(committed, woken) {
        if !until_quiet(noted, committed, woken) {
            return;
        }
        committed = noted.counts();
        // What goes wrong is told, and happens again to whoever syncs.
        let _ = export.flush();
    }
}

/// Waits until trims or writes have ceased, or go on for too long; `false` when the mount ends.
fn until_quiet(noted: &Noted, committed: (u64, u64), woken: &Receiver<()>) -> bool {
    let begun = Instant::now();
    let (mut last, mut write, mut trim) = (noted.counts(), begun, begun);
    let trims = committed.1;
    while begun.elapsed() < LONGEST {
        let trimmed = last.1 != trims && trim.elapsed() >= QUIET_TRIMS;
        if trimmed || write.elapsed() >= QUIET_WRITES {
            return true;
        }
        if woken.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
            return false;
        }
        let now = noted.counts();
        if now.0 != last.0 {
            write = Instant::now();
        }
        if now.1 != last.1 {
            trim = Instant::now();
        }
        last = now;
    }
    true
}
