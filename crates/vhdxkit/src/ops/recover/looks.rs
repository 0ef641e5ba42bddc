//! Structures known by their looks, where nothing says any more where they lie.
//!
//! Everything of a VHDX lies on a mebibyte, so one sector of each mebibyte that holds data is looked at;
//! holes are passed by. A metadata table starts with its signature and names the File Parameters. A log
//! starts with an entry, or holds one somewhere in its first part. A block allocation table has no signature,
//! but hardly anything else looks like one: eight-byte numbers whose bits 3 to 19 are all zero, and which name
//! distinct mebibytes.
//!
//! A disk may hold copies of such structures as data (an image inside of an image). The first of a kind in the
//! file is taken: tables are made before blocks.

use zerocopy::FromBytes;

pub(super) use crate::format::bat::{Page, entries, is_present, is_well_formed, names_blocks};
use crate::format::limits::{MAX_FILE_OFFSET, MAX_LOG_LENGTH, MAX_METADATA_ITEMS};
use crate::format::metadata::{self, FILE_PARAMETERS, TableHeader};
use crate::format::{LOG_SECTOR_LEN, MIB, log, mib_floor};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::{Error, Result};

use super::super::progress::{Progress, advance};

/// Candidates of one kind that are kept.
const MOST: usize = 64;
/// How much of a file is searched sector by sector for a log whose first sector is no entry, and for a table
/// whose first page names no block.
const SEARCHED: u64 = 256 << 20;

/// What the mebibytes of a file look like.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// File offsets of metadata tables.
    pub(super) metadata: Vec<u64>,
    /// File offsets where a log entry starts.
    pub(super) logs: Vec<u64>,
    /// File offsets of block allocation tables.
    pub(super) tables: Vec<u64>,
}

/// Looks at the start of every mebibyte behind the first that holds data.
pub(super) fn look(storage: &dyn Storage, progress: &mut dyn Progress) -> Result<Heads> {
    let mut heads = Heads::default();
    let mut page = [0; LOG_SECTOR_LEN];
    let mut mebibyte = Vec::new();
    let mut searched = 0u64;
    let length = storage.length()?.min(MAX_FILE_OFFSET);
    for run in DataRuns::new(storage, MIB..length.max(MIB)) {
        let run = run.map_err(|e| Error::io_whole("cannot map the file's holes", e))?;
        if !run.data {
            continue;
        }
        let mut at = run.range.start.div_ceil(MIB).saturating_mul(MIB);
        while at < run.range.end {
            storage.read_zero_filled(at, &mut page)?;
            heads.judge(at, &page);
            // A table whose first blocks are not stored.
            if is_well_formed_page(&page) && !names_blocks(&page) && searched < SEARCHED {
                mebibyte.resize(1 << 20, 0);
                storage.read_zero_filled(at, &mut mebibyte)?;
                searched = searched.saturating_add(MIB);
                if names_blocks_later(&mebibyte) && heads.tables.len() < MOST {
                    heads.tables.push(at);
                }
            }
            advance(progress, 0)?;
            at = at.saturating_add(MIB);
        }
    }
    if heads.logs.is_empty() {
        heads.logs = deep_logs(storage, length.min(SEARCHED))?;
    }
    Ok(heads)
}

impl Heads {
    fn judge(&mut self, at: u64, page: &Page) {
        let list = if is_metadata(page) {
            &mut self.metadata
        } else if page.starts_with(&log::ENTRY_SIGNATURE) {
            &mut self.logs
        } else if names_blocks(page) {
            &mut self.tables
        } else {
            return;
        };
        if list.len() < MOST {
            list.push(at);
        }
    }
}

/// Mebibytes in which a log entry starts on some sector.
fn deep_logs(storage: &dyn Storage, end: u64) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut buf = vec![0; 1 << 20];
    for run in DataRuns::new(storage, MIB..end.max(MIB)) {
        let run = run.map_err(|e| Error::io_whole("cannot map the file's holes", e))?;
        let mut at = mib_floor(run.range.start);
        while run.data && at < run.range.end && found.len() < MOST {
            storage.read_zero_filled(at, &mut buf)?;
            if has_entry(&buf) && found.last() != Some(&at) {
                found.push(at);
            }
            at = at.saturating_add(MIB);
        }
    }
    Ok(found)
}

fn has_entry(bytes: &[u8]) -> bool {
    bytes.chunks(LOG_SECTOR_LEN).any(|sector| sector.starts_with(&log::ENTRY_SIGNATURE))
}

/// How long the log at `start` seems to be: as many mebibytes as hold parts of entries, but not what is `known`
/// to be something else.
pub(super) fn log_length(storage: &dyn Storage, start: u64, known: &[u64]) -> Result<u32> {
    let mut buf = vec![0; 1 << 20];
    let mut length = MIB;
    while length < u64::from(MAX_LOG_LENGTH) && !known.contains(&start.saturating_add(length)) {
        storage.read_zero_filled(start.saturating_add(length), &mut buf)?;
        let is_log = buf.chunks(LOG_SECTOR_LEN).any(|sector| {
            sector.starts_with(&log::ENTRY_SIGNATURE)
                || sector.starts_with(&log::DATA_SECTOR_SIGNATURE)
        });
        if !is_log {
            break;
        }
        length = length.saturating_add(MIB);
    }
    Ok(u32::try_from(length).unwrap_or(MAX_LOG_LENGTH))
}

/// Whether a metadata table starts here.
pub(super) fn is_metadata(page: &Page) -> bool {
    let Ok((header, rest)) = TableHeader::read_from_prefix(page) else { return false };
    let count = header.entry_count.get();
    header.signature == metadata::SIGNATURE
        && (1..=MAX_METADATA_ITEMS).contains(&count)
        && rest
            .chunks_exact(32)
            .take(usize::from(count))
            .any(|entry| entry.starts_with(&FILE_PARAMETERS.to_bytes()))
}

fn is_well_formed_page(page: &Page) -> bool {
    entries(page).all(is_well_formed)
}

/// Whether a mebibyte holds nothing but pages of a table, some of which name blocks.
fn names_blocks_later(mebibyte: &[u8]) -> bool {
    let (pages, _) = mebibyte.as_chunks::<LOG_SECTOR_LEN>();
    pages.iter().all(is_well_formed_page) && pages.iter().any(names_blocks)
}

/// What a page of the table is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    /// All zeros: nothing is stored, or it was wiped.
    Zero,
    /// Entries, few of them malformed at most.
    Table,
    /// Something else.
    Damaged,
}

/// Judges the first `used` entries of a page.
pub(super) fn judge(page: &Page, used: usize) -> Looks {
    let (mut set, mut bad) = (0usize, 0usize);
    for raw in entries(page).take(used).filter(|raw| raw.0 != 0) {
        set = set.saturating_add(1);
        bad = bad.saturating_add(usize::from(!is_well_formed(raw)));
    }
    match (set, bad) {
        (0, _) => Looks::Zero,
        (set, bad) if bad.saturating_mul(8) > set => Looks::Damaged,
        _ => Looks::Table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(values: &[u64]) -> Page {
        let mut page = [0; LOG_SECTOR_LEN];
        for (place, value) in page.chunks_mut(8).zip(values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    #[test]
    fn a_table_is_known_by_its_entries() {
        let good = [4 << 20 | 6, 0, 2, 3, 36 << 20 | 6, 9 << 20 | 7];
        assert!(names_blocks(&page(&good)));
        assert_eq!(judge(&page(&good), 512), Looks::Table);
        for odd in [
            &[4 << 20 | 6, 4 << 20 | 6][..],
            &[4 << 20 | 6, 0x1000],
            &[4 << 20 | 6, 4],
            &[6],
            &[2, 2, 0],
            &[],
        ] {
            assert!(!names_blocks(&page(odd)), "{odd:x?}");
        }
        assert_eq!(judge(&page(&[]), 512), Looks::Zero);
        assert_eq!(judge(&page(&[0, 0, 9]), 2), Looks::Zero, "entries that nobody uses");
        assert_eq!(judge(&page(&[0x1234_5678_9ABC_DEF1; 512]), 512), Looks::Damaged);
        assert_eq!(judge(&[b'a'; LOG_SECTOR_LEN], 512), Looks::Damaged);
    }

    #[test]
    fn one_bad_entry_does_not_spoil_its_page() {
        let mut values: Vec<u64> = (4..40).map(|mib| mib << 20 | 6).collect();
        values[7] = 0xFFFF;
        assert_eq!(judge(&page(&values), 512), Looks::Table);
    }
}
