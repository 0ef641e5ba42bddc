//! Writing the header pair (MS-VHDX 2.2.2.1).
//!
//! # Why a torn write cannot take both copies
//! A new header always goes to the copy that is not current, and no two header writes are ever
//! unsynced together: [`HeaderWriter::put`] syncs first when the last one is still under way. So at
//! any moment at most one copy is undefined on the medium, and the other is the last one that was
//! made durable.
//!
//! The second copy of a new header ([`HeaderWriter::put_second`]) needs no sync of its own; it rides
//! on the next one, whatever that is for. Until then the older copy has a lower sequence number and
//! does not count.
//!
//! Before each write the current copy is read back: another sequence number than ours means that
//! somebody else writes the file, and then we stop.

use zerocopy::IntoBytes;

use crate::error::Repr;
use crate::format::HEADER_OFFSETS;
use crate::format::header::Header;
use crate::storage::Storage;
use crate::view::headers::{HeaderPair, sequence_on_disk};
use crate::{Error, Result};

/// The pair, and whether a write to it may still be torn by a crash.
#[derive(Debug)]
pub(crate) struct HeaderWriter {
    pair: HeaderPair,
    unsynced: bool,
}

impl HeaderWriter {
    /// Takes over a pair as it was read. What was read must be durable: sync before the first write,
    /// since it may come from the operating system's cache.
    pub(crate) fn new(pair: HeaderPair) -> Self {
        Self { pair, unsynced: false }
    }

    pub(crate) fn pair(&self) -> &HeaderPair {
        &self.pair
    }

    /// Whether the sequence number has room for so many more headers.
    pub(crate) fn require_room(&self, headers: u64) -> Result<()> {
        match self.pair.current().sequence_number.get().checked_add(headers) {
            Some(_) => Ok(()),
            None => Err(sequence_at_end()),
        }
    }

    /// Writes the current header with a change, without a sync: the caller syncs, and says so with
    /// [`synced`](Self::synced).
    pub(crate) fn put(
        &mut self,
        storage: &dyn Storage,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        self.settle(storage)?;
        self.require_unchanged(storage)?;
        let (next, offset) = self.pair.next(change).ok_or_else(sequence_at_end)?;
        self.unsynced = true;
        storage
            .write_at(offset, next.current().as_bytes())
            .map_err(|e| Error::io("cannot write the header", offset, e))?;
        self.pair = next;
        Ok(())
    }

    /// Writes the same header into the other copy. The sync that completes it may come at any time.
    pub(crate) fn put_second(&mut self, storage: &dyn Storage) -> Result<()> {
        self.put(storage, |_| {})
    }

    /// Makes what was written last durable, if it is not.
    pub(crate) fn settle(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.unsynced {
            sync(storage)?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// A sync has completed that began after the last write.
    pub(crate) fn synced(&mut self) {
        self.unsynced = false;
    }

    fn require_unchanged(&self, storage: &dyn Storage) -> Result<()> {
        let current = self.pair.current();
        let expected = current.sequence_number.get();
        let copy = self.pair.current_copy();
        match sequence_on_disk(storage, copy)? {
            Some((found, guid)) if found == expected && guid == current.file_write_guid => Ok(()),
            other => {
                let at = HEADER_OFFSETS.get(copy).copied().unwrap_or_default();
                let found = other.map_or(0, |(found, _)| found);
                Err(Error::new(Repr::ForeignWriter { at, found, expected }))
            }
        }
    }
}

fn sequence_at_end() -> Error {
    Error::limit("the header's sequence number cannot grow any more")
}

/// Makes everything written so far durable.
pub(crate) fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::io_whole("cannot make the file durable", e))
}
