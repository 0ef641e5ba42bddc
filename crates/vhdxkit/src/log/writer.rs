//! Writing the log: epochs of entries, so that no crash leaves a file that cannot be opened.
//!
//! An *epoch* is one LogGuid. Its entries lie one behind another from log offset 0 on and never wrap:
//!
//! ```text
//! offset 0       0x1000                                       end of the log
//! | empty entry  | first real entry | entry | entry | ...     | two sectors always free |
//! ```
//!
//! # Each step, and the crash it is there for
//!
//! **The empty entry and the Tail.** Every real entry names the epoch's first *real* entry as its
//! Tail, never the empty one. When the log is full the next epoch's empty entry is written over the
//! old one at offset 0, and nothing that the header's epoch still needs is touched. Were the empty
//! entry part of the active sequence, a crash right then would leave the old LogGuid in the header
//! and no valid sequence for it.
//!
//! **An epoch without a real entry is never replaced**: its active sequence is the empty entry
//! itself. [`LogWriter::must_change`] is false for it, since it has all the room there is.
//!
//! **The first epoch of a session** follows a header with LogGuid zero: no entry counts. So the empty
//! entry and the first real one are written together, and made durable with whatever payload the
//! guest's flush is about; then the header names the epoch. A crash before the header is stable
//! shows the file as it was before the flush; after it, the entry was durable already. The second copy
//! of the session's header is made durable first, and the payload with it: were that copy torn by the same crash, the
//! entry would be found by the copy that is left, and used.
//!
//! **Later epochs.** Everything that the old epoch's entries say is written in place, then the new
//! empty entry; one sync makes both stable; then the header names the new epoch. Before the header
//! is stable the old epoch counts, and its entries are all still there (they start at 0x1000).
//! Replaying them again changes nothing: they carry what is in place.
//!
//! **Both header copies name the epoch**, the second one from the next sync on: so a log is not lost with one of them,
//! be it years later, for no program that reads it.
//!
//! **The LogGuid of an epoch** is made from the session's FileWriteGuid, so that the epoch is found when the header that
//! names it is lost (`sessions`).
//!
//! **Sequence numbers** go on across epochs, so that no data sector of an earlier epoch can be taken
//! for one of the present, whatever a reader checks.
//!
//! **FlushedFileOffset** is a length that a completed sync has made durable: a file shorter than that
//! would be refused. **LastFileOffset** covers every structure there is, regions and log included.
//!
//! **Size.** An entry has at most [`MOST_DESCRIPTORS`] descriptors, so that header and descriptors
//! are one sector, which QEMU needs. Of those QEMU survives a torn first sector only up to 14: what
//! is beyond the first 512 bytes may then be of an older entry.
//!
//! Nothing here syncs but [`HeaderWriter::put`]; the caller does, since payload, images in place and
//! entries share their syncs.

use std::sync::Arc;

use crate::format::{Guid, GuidSource, LOG_SECTOR, LOG_SECTOR_LEN};
use crate::storage::Storage;
use crate::view::headers::{HeaderPair, LogPlace};
use crate::{Error, Result};

use super::encode::EntryBuilder;
use super::headers::HeaderWriter;
use super::sessions::log_guid;

/// Descriptors that share the first sector with the entry's header.
pub(crate) const MOST_DESCRIPTORS: usize = 126;
/// Where the first real entry of an epoch lies.
const FIRST_REAL: u32 = LOG_SECTOR;
/// Bytes at the end of the log that are never written. The format wants one sector; with only one free
/// QEMU 10.0.2 searches the log for ever.
const NEVER_WRITTEN: u32 = 2 * LOG_SECTOR;

/// A change that an entry makes durable.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// These bytes at this file offset.
    Data(u64, Arc<[u8; LOG_SECTOR_LEN]>),
    /// Zeros at this file offset, so many bytes (multiples of 4 KiB).
    Zero(u64, u64),
}

/// The two lengths that an entry carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileSizes {
    /// A length that a crash cannot take back.
    pub(crate) durable: u64,
    /// A length into which everything fits.
    pub(crate) last: u64,
}

#[derive(Debug, Clone, Copy)]
struct Epoch {
    guid: Guid,
    /// Log offset of the next entry.
    next: u32,
    /// The header names it.
    live: bool,
}

/// The log of an image that is open for writing, and its headers.
#[derive(Debug)]
pub(crate) struct LogWriter {
    headers: HeaderWriter,
    place: LogPlace,
    epoch: Option<Epoch>,
    /// Epochs that have begun.
    epochs: u32,
    sequence: u64,
}

impl LogWriter {
    /// Takes over a clean file, whose headers are durable.
    ///
    /// # Errors
    /// The file has no log.
    pub(crate) fn new(headers: HeaderPair, guids: &GuidSource) -> Result<Self> {
        let place = headers.log_place().ok_or_else(|| {
            Error::invalid("the image has no room for a log, so it cannot be written safely")
        })?;
        let sequence = guids.first_sequence();
        Ok(Self { headers: HeaderWriter::new(headers), place, epoch: None, epochs: 0, sequence })
    }

    pub(crate) fn headers(&mut self) -> &mut HeaderWriter {
        &mut self.headers
    }

    /// Whether the header names an epoch of ours: what entries say counts as soon as it is stable.
    pub(crate) fn is_live(&self) -> bool {
        self.epoch.is_some_and(|epoch| epoch.live)
    }

    /// Whether the present epoch holds an entry beside the empty one.
    pub(crate) fn has_entries(&self) -> bool {
        self.epoch.is_some_and(|epoch| epoch.next > FIRST_REAL)
    }

    /// How many changes the next entry can carry.
    pub(crate) fn room(&self) -> usize {
        let next = self.epoch.map_or(FIRST_REAL, |epoch| epoch.next);
        let left = self.place.length.saturating_sub(NEVER_WRITTEN).saturating_sub(next);
        // One sector is for header and descriptors.
        let sectors = (left / LOG_SECTOR).saturating_sub(1);
        usize::try_from(sectors).unwrap_or(usize::MAX).min(MOST_DESCRIPTORS)
    }

    /// Whether an entry of `changes` has to wait for a new epoch.
    pub(crate) fn must_change(&self, changes: usize) -> bool {
        self.has_entries() && changes.min(MOST_DESCRIPTORS) > self.room()
    }

    /// Writes an entry that carries `changes`, as many as there is [`room`](Self::room) for. It counts
    /// once it is stable and the epoch is live.
    pub(crate) fn append(
        &mut self,
        storage: &dyn Storage,
        changes: &[Change],
        sizes: FileSizes,
    ) -> Result<()> {
        let (mut epoch, mut bytes) = match self.epoch {
            Some(epoch) => (epoch, Vec::new()),
            None => {
                self.headers.settle(storage)?;
                let guid = self.next_guid();
                let empty = self.encode(guid, 0, &[], sizes)?;
                (Epoch { guid, next: FIRST_REAL, live: false }, empty)
            }
        };
        let start = epoch.next.saturating_sub(length_of(&bytes));
        let entry = self.encode(epoch.guid, FIRST_REAL, changes, sizes)?;
        epoch.next = epoch.next.saturating_add(length_of(&entry));
        if epoch.next > self.place.length.saturating_sub(NEVER_WRITTEN) {
            return Err(Error::invalid("the log has no room for this entry"));
        }
        bytes.extend_from_slice(&entry);
        self.epoch = Some(epoch);
        self.write(storage, start, &bytes)
    }

    /// Writes the empty entry of a new epoch. Everything that the old epoch's entries say must have
    /// been written in place. Sync, then [`publish`](Self::publish).
    pub(crate) fn begin_epoch(&mut self, storage: &dyn Storage, sizes: FileSizes) -> Result<()> {
        let guid = self.next_guid();
        let empty = self.encode(guid, 0, &[], sizes)?;
        self.epoch = Some(Epoch { guid, next: FIRST_REAL, live: false });
        self.write(storage, 0, &empty)
    }

    /// Writes a header that names the present epoch, whose first entries are stable. It counts after a
    /// sync; then the second copy follows ([`HeaderWriter::put_second`]).
    pub(crate) fn publish(&mut self, storage: &dyn Storage) -> Result<()> {
        let Some(epoch) = &mut self.epoch else { return Ok(()) };
        let guid = epoch.guid;
        epoch.live = true;
        self.headers.put(storage, |header| header.log_guid = guid)
    }

    /// Writes a header that names no log. Everything that entries say must be stable in place.
    pub(crate) fn retire(&mut self, storage: &dyn Storage) -> Result<()> {
        self.epoch = None;
        self.headers.put(storage, |header| header.log_guid = Guid::ZERO)
    }

    fn next_guid(&mut self) -> Guid {
        self.epochs = self.epochs.wrapping_add(1);
        log_guid(self.headers.pair().current().file_write_guid, self.epochs)
    }

    fn encode(
        &mut self,
        guid: Guid,
        tail: u32,
        changes: &[Change],
        sizes: FileSizes,
    ) -> Result<Vec<u8>> {
        let entry = EntryBuilder::new(guid, self.sequence).tail(tail);
        let mut entry = entry.file_sizes(sizes.durable, sizes.last);
        for change in changes {
            match change {
                Change::Data(offset, sector) => entry.data(*offset, sector)?,
                Change::Zero(offset, length) => entry.zero(*offset, *length)?,
            }
        }
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| Error::limit("the log's sequence number cannot grow any more"))?;
        entry.encode()
    }

    fn write(&self, storage: &dyn Storage, at: u32, bytes: &[u8]) -> Result<()> {
        let offset = self.place.offset.saturating_add(u64::from(at));
        storage.write_at(offset, bytes).map_err(|e| Error::io("cannot write the log", offset, e))
    }
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
