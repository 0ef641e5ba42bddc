//! A disk that remembers what was done to it since its last sync.
//!
//! Several disks can share their memory: what is done to them is one sequence, of which a sync of one makes
//! only its own part durable.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use vhdxkit::storage::Storage;

use crate::medium::Medium;
use crate::model::Expectation;

/// Something done to a disk that a crash may undo.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes written at an offset.
    Write(u64, Arc<[u8]>),
    /// The length set.
    SetLen(u64),
    /// A range made zeros.
    Punch(Range<u64>),
}

/// What was under way at a sync, or at the end: from here crash states are made.
#[derive(Debug, Clone)]
pub struct Window {
    /// What every crash leaves, of each disk.
    pub durable: Vec<Medium>,
    /// What a crash may lose, in order, with the number of the disk.
    pub events: Vec<(usize, Event)>,
    /// What the guest may then see.
    pub expected: Arc<Expectation>,
    /// The operation that was running, counted from zero.
    pub operation: usize,
}

#[derive(Debug, Default)]
struct Inner {
    view: Vec<Medium>,
    durable: Vec<Medium>,
    events: Vec<(usize, Event)>,
    windows: Vec<Window>,
    expected: Arc<Expectation>,
    operation: usize,
    recording: bool,
    /// Syncs until the moment is kept to which the disk goes back.
    keep_in: Option<u64>,
    kept: Option<Box<Kept>>,
}

#[derive(Debug, Clone)]
struct Kept {
    view: Vec<Medium>,
    durable: Vec<Medium>,
    events: Vec<(usize, Event)>,
}

/// When something is done beside what the disk is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The next write at or behind this offset has been issued, and has not arrived.
    Write(u64),
    /// The next sync has begun, and has not ended.
    Sync,
}

type Hook = (Moment, Box<dyn FnOnce() + Send>);

/// The disk.
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    number: usize,
    hook: Mutex<Option<Hook>>,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new(Medium::default())
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SimDisk").field(&self.inner).finish()
    }
}

impl SimDisk {
    /// A disk that holds these bytes, all of them durable.
    #[must_use]
    pub fn new(medium: Medium) -> Self {
        let (view, durable) = (vec![medium.clone()], vec![medium]);
        let inner = Inner { view, durable, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), number: 0, hook: Mutex::default() }
    }

    /// Another disk, which shares this one's memory of what was done.
    #[must_use]
    pub fn beside(&self, medium: Medium) -> Self {
        let mut inner = self.inner();
        let number = inner.view.len();
        inner.view.push(medium.clone());
        inner.durable.push(medium);
        Self { inner: Arc::clone(&self.inner), number, hook: Mutex::default() }
    }

    /// Runs `action` at a moment to come, while the operation that brought it waits.
    pub fn at(&self, moment: Moment, action: impl FnOnce() + Send + 'static) {
        *self.hook.lock().expect("no panic under this lock") = Some((moment, Box::new(action)));
    }

    /// Runs the action now if its moment has not come; tells whether it had.
    pub fn settle(&self) -> bool {
        let hook = self.hook.lock().expect("no panic under this lock").take();
        let came = hook.is_none();
        if let Some((_, action)) = hook {
            action();
        }
        came
    }

    /// The process will die in its `syncs`-th sync from now, counted from one: what it does from then on
    /// does not count.
    pub fn die_in_sync(&self, syncs: u64) {
        let mut inner = self.inner();
        inner.keep_in = Some(syncs);
        inner.kept = None;
    }

    /// Goes back to the moment of death, if there was one. What was written by then is there, and is no
    /// more durable than it was.
    pub fn go_back(&self) {
        let mut inner = self.inner();
        inner.keep_in = None;
        if let Some(kept) = inner.kept.take() {
            let Kept { view, durable, events } = *kept;
            (inner.view, inner.durable, inner.events) = (view, durable, events);
        }
    }

    fn reach(&self, now: impl Fn(Moment) -> bool) {
        let due = {
            let mut hook = self.hook.lock().expect("no panic under this lock");
            if hook.as_ref().is_some_and(|(moment, _)| now(*moment)) { hook.take() } else { None }
        };
        if let Some((_, action)) = due {
            // On a thread of its own: another of the guest's, not a call within this one.
            let done = std::thread::spawn(action).join();
            assert!(done.is_ok(), "what ran beside this has panicked");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the disk is locked")
    }

    /// From now on every sync ends a window. What happens next is operation number `operation`, during
    /// which a crash may show what `expected` says.
    pub fn record(&self, operation: usize, expected: &Arc<Expectation>) {
        let mut inner = self.inner();
        inner.recording = true;
        inner.operation = operation;
        inner.expected = Arc::clone(expected);
    }

    /// Ends the last window and gives all of them.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let mut inner = self.inner();
        inner.end_window();
        inner.events.clear();
        std::mem::take(&mut inner.windows)
    }

    /// What a crash would leave that loses everything it can.
    #[must_use]
    pub fn durable(&self) -> Medium {
        self.inner().durable[self.number].clone()
    }

    /// The bytes as they are now, durable or not.
    #[must_use]
    pub fn view(&self) -> Medium {
        self.inner().view[self.number].clone()
    }
}

impl Inner {
    fn keep(&mut self) {
        self.keep_in = match self.keep_in {
            Some(1) => {
                let (view, durable) = (self.view.clone(), self.durable.clone());
                self.kept = Some(Box::new(Kept { view, durable, events: self.events.clone() }));
                None
            }
            other => other.map(|syncs| syncs - 1),
        };
    }

    fn end_window(&mut self) {
        if self.recording && !self.events.is_empty() {
            self.windows.push(Window {
                durable: self.durable.clone(),
                events: self.events.clone(),
                expected: Arc::clone(&self.expected),
                operation: self.operation,
            });
        }
    }
}

impl Storage for SimDisk {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.inner().view[self.number].read(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.reach(|moment| matches!(moment, Moment::Write(from) if offset >= from));
        let mut inner = self.inner();
        let end = offset + buf.len() as u64;
        if end > inner.view[self.number].len() {
            inner.view[self.number].set_len(end);
            inner.events.push((self.number, Event::SetLen(end)));
        }
        inner.view[self.number].write(offset, buf);
        inner.events.push((self.number, Event::Write(offset, buf.into())));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let (covered, view) = {
            let mut inner = self.inner();
            inner.view[self.number].rebase();
            inner.keep();
            (inner.events.len(), inner.view[self.number].clone())
        };
        self.reach(|moment| moment == Moment::Sync);
        let mut inner = self.inner();
        inner.end_window();
        inner.durable[self.number] = view;
        // What came while the sync was under way may have been lost or kept, before as after it.
        let mut number = 0;
        inner.events.retain(|(disk, _)| {
            number += 1;
            *disk != self.number || number > covered
        });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().view[self.number].len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.view[self.number].set_len(length);
        inner.events.push((self.number, Event::SetLen(length)));
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let mut inner = self.inner();
        let range = range.start..range.end.min(inner.view[self.number].len());
        inner.view[self.number].zero(range.clone());
        inner.events.push((self.number, Event::Punch(range)));
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if range.end > self.len()? { self.set_len(range.end) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.inner().view[self.number].next_data(offset))
    }
}
