//! Bringing a long copy to the medium while it is being made, so that the sync at its end finds little
//! left to do.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::storage::Storage;
use crate::{Error, Result};

/// So many bytes are written before they are sent to the medium.
const STEP: u64 = 32 << 20;

/// Tells the thread behind the copy how far it is.
pub(super) struct Writeback {
    wanted: SyncSender<()>,
    /// Bytes written since the last time they were sent to the medium.
    unsent: u64,
}

impl Writeback {
    /// Runs `work` while another thread brings what it has written to the medium. Not everything may be
    /// durable at the end.
    ///
    /// # Errors
    /// Those of `work`, or a sync has failed.
    pub(super) fn during(
        target: &dyn Storage,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let (wanted, receiver) = sync_channel(1);
        std::thread::scope(|scope| {
            let behind = scope.spawn(move || serve(target, &receiver));
            let mut writeback = Self { wanted, unsent: 0 };
            let done = work(&mut writeback);
            drop(writeback);
            let synced = behind
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that syncs has panicked")));
            done?;
            synced.map_err(|e| Error::io_whole("cannot make the copy durable", e))
        })
    }

    /// So many more bytes were written. A writeback that is still under way is not waited for.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.unsent = self.unsent.saturating_add(bytes);
        if self.unsent >= STEP {
            match self.wanted.try_send(()) {
                Ok(()) | Err(TrySendError::Disconnected(())) => self.unsent = 0,
                Err(TrySendError::Full(())) => {}
            }
        }
    }
}

fn serve(target: &dyn Storage, wanted: &Receiver<()>) -> io::Result<()> {
    while wanted.recv().is_ok() {
        target.sync()?;
    }
    Ok(())
}
