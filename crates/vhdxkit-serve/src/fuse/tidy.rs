//! Gives trimmed space back although nobody syncs.
//!
//! The image frees what was given up with its next commit. A file system that trims a disk that it has
//! nothing to write to asks for none: whoever runs `fstrim` would look at an image as large as before. So a
//! thread commits when the requests of a trim have ceased.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Export;

/// A trim has ceased when nothing has come for so long,
const QUIET: Duration = Duration::from_millis(300);
/// or else is committed in pieces of so long.
const LONGEST: Duration = Duration::from_secs(5);

/// The thread, and the way to wake it.
#[derive(Debug)]
pub(super) struct Tidy {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Tidy {
    /// Starts to wait for what is given up; `None` when there can be no thread, and it is left to the next
    /// sync.
    pub(super) fn start(export: Export) -> Option<Self> {
        let (wake, woken) = sync_channel(1);
        let builder = std::thread::Builder::new().name("tidy".to_owned());
        let thread = builder.spawn(move || commit_after_trims(&export, &woken)).ok()?;
        Some(Self { wake, thread })
    }

    /// Space was given up.
    pub(super) fn note(&self) {
        // When it is full, the thread is about to look.
        let _ = self.wake.try_send(());
    }

    /// Ends; nothing is committed any more when this returns.
    pub(super) fn end(self) {
        drop(self.wake);
        let _ = self.thread.join();
    }
}

fn commit_after_trims(export: &Export, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST && woken.recv_timeout(QUIET).is_ok() {}
        // What goes wrong is told, and happens again to whoever syncs.
        let _ = export.flush();
    }
}
