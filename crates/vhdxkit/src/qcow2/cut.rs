//! Whether a qcow2 image is all there. What lies behind the end of its file would read as zeros, and nobody could
//! tell them from the disk's own.
//!
//! So all tables are walked before anything is handed out. A cluster has to be there as far as the disk reaches
//! into it. The length of a compressed cluster is known in sectors, of which the last one may be short.
//!
//! Time: each table is read once, however often it is named, and holes of the file are passed by.

use std::ops::Range;

use super::Header;
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::{Error, Result};

/// The bits of an entry that hold a place.
const PLACE: u64 = 0x00FF_FFFF_FFFF_FE00;
const IS_COMPRESSED: u64 = 1 << 62;
/// Reads zeros, whatever place it has; from version 3 on.
const IS_ZERO: u64 = 1;
const SECTOR: u64 = 512;

/// Refuses an image of which a part lies behind the end of its file.
pub(super) fn refuse_cut(file: &dyn Storage, header: &Header) -> Result<()> {
    let walk = Walk { file, header, length: file.length()? };
    let Range { start, end } = header.refcount_table;
    walk.require("refcount table", start, end.saturating_sub(start))?;
    let covered = header.cluster_size.saturating_mul(header.per_table());
    let end = header.l1_table.saturating_add(u64::from(header.l1_entries).saturating_mul(8));
    let mut tables = Vec::new();
    walk.words(header.l1_table..end, |index, word| {
        let (place, start) = (word & PLACE, index.saturating_mul(covered));
        if place == 0 || start >= header.size {
            return Ok(());
        }
        if !place.is_multiple_of(header.cluster_size) {
            let what = format!("an L2 table at {place:#x}, which is not on a cluster");
            return Err(Error::malformed("qcow2 L1 table", header.l1_table, what));
        }
        tables.push((place, start));
        walk.require("L2 table", place, header.cluster_size)
    })?;
    // Of a table that is named twice the first part of the disk needs the most.
    tables.sort_unstable();
    tables.dedup_by_key(|(place, _)| *place);
    tables.iter().try_for_each(|(place, start)| walk.table(*place, *start))
}

struct Walk<'a> {
    file: &'a dyn Storage,
    header: &'a Header,
    length: u64,
}

impl Walk<'_> {
    fn require(&self, what: &str, place: u64, length: u64) -> Result<()> {
        let end = self.length;
        if place.checked_add(length).is_some_and(|needed| needed <= end) {
            return Ok(());
        }
        Err(Error::damaged(format!(
            "the file ends at {end:#x}, the {what} at {place:#x} is behind its end: it was cut off"
        )))
    }

    /// The clusters of an L2 table whose first one is the disk's at `start`.
    fn table(&self, place: u64, start: u64) -> Result<()> {
        let size = self.header.cluster_size;
        self.words(place..place.saturating_add(size), |index, word| {
            self.cluster(word, start.saturating_add(index.saturating_mul(size)))
        })
    }

    /// A cluster of the disk at `at`.
    fn cluster(&self, entry: u64, at: u64) -> Result<()> {
        let size = self.header.cluster_size;
        let used = size.min(self.header.size.saturating_sub(at));
        if entry == 0 || used == 0 {
            return Ok(());
        }
        if entry & IS_COMPRESSED != 0 {
            let bits = 70u32.saturating_sub(size.trailing_zeros());
            let place = entry & 1u64.checked_shl(bits).unwrap_or_default().saturating_sub(1);
            let more = (entry & (IS_COMPRESSED - 1)).checked_shr(bits).unwrap_or_default();
            let last = (place / SECTOR).saturating_add(more).saturating_mul(SECTOR).max(place);
            let length = last.saturating_sub(place).saturating_add(1);
            return self.require("compressed cluster", place, length);
        }
        let is_zero = self.header.version > 2 && entry & IS_ZERO != 0;
        match entry & PLACE {
            0 => Ok(()),
            _ if is_zero => Ok(()),
            place => self.require("cluster", place, used),
        }
    }

    /// Calls `visit` with the numbers of the words of a table and the words, but for those in holes of the file.
    fn words(
        &self,
        table: Range<u64>,
        mut visit: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut buf = vec![0; 1 << 16];
        for run in DataRuns::new(self.file, table.clone()) {
            let run = run.map_err(|e| Error::io_whole("cannot map the file's holes", e))?;
            // Whole words, wherever the hole before them ends.
            let before = run.range.start.saturating_sub(table.start) / 8;
            let mut at = table.start.saturating_add(before.saturating_mul(8));
            while run.data && at < run.range.end {
                let left = table.end.saturating_sub(at);
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                let piece = buf.get_mut(..wanted).unwrap_or_default();
                self.file.read_zero_filled(at, piece)?;
                let first = at.saturating_sub(table.start) / 8;
                for (index, word) in (first..).zip(piece.as_chunks::<8>().0) {
                    visit(index, u64::from_be_bytes(*word))?;
                }
                at = at.saturating_add(1 << 16);
            }
        }
        Ok(())
    }
}
