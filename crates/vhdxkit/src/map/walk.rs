//! One sweep over the whole BAT, without the cache and without reading its holes.

use crate::format::bat::{ENTRY_LENGTH, RawEntry};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::{Error, Result};

/// A stretch of the table, in order.
pub(crate) enum Stretch<'a> {
    /// Entries from this index on.
    Entries(u64, &'a [u8]),
    /// So many entries of zero (NOT_PRESENT, no offset) from this index on.
    Zero(u64, u64),
}

impl Stretch<'_> {
    /// The entries of a stretch with their indices; a run of zeros has none worth looking at.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, RawEntry)> + '_ {
        let (first, bytes) = match self {
            Self::Entries(first, bytes) => (*first, *bytes),
            Self::Zero(first, _) => (*first, &[][..]),
        };
        let raws =
            bytes.chunks_exact(8).map(|raw| raw.first_chunk::<8>().copied().unwrap_or_default());
        (first..).zip(raws.map(|raw| RawEntry(u64::from_le_bytes(raw))))
    }
}

const CHUNK: u64 = 1 << 20;

/// Calls `visit` with every stretch of the `entries` entries at `offset`. Holes of the file are not
/// read. Memory: one mebibyte.
pub(crate) fn walk(
    storage: &dyn Storage,
    offset: u64,
    entries: u64,
    visit: &mut dyn FnMut(Stretch<'_>) -> Result<()>,
) -> Result<()> {
    let end = offset.saturating_add(entries.saturating_mul(ENTRY_LENGTH));
    let mut buf = Vec::new();
    let index_of = |at: u64| at.saturating_sub(offset) / ENTRY_LENGTH;
    // Holes come in pages; a stretch must not cut an entry in two.
    let mut done = offset;
    for run in DataRuns::new(storage, offset..end) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", offset, e))?;
        let inner_end = run.range.end.min(end);
        if run.data {
            let aligned = |at: u64| {
                at.saturating_sub(offset).div_ceil(ENTRY_LENGTH).saturating_mul(ENTRY_LENGTH)
            };
            let stop = offset.saturating_add(aligned(inner_end)).min(end);
            while done < stop {
                let length = stop.saturating_sub(done).min(CHUNK);
                buf.resize(usize::try_from(length).unwrap_or_default(), 0);
                storage.read_zero_filled(done, &mut buf)?;
                visit(Stretch::Entries(index_of(done), &buf))?;
                done = done.saturating_add(length);
            }
        } else {
            let count = inner_end.saturating_sub(done) / ENTRY_LENGTH;
            if count > 0 {
                visit(Stretch::Zero(index_of(done), count))?;
                done = done.saturating_add(count.saturating_mul(ENTRY_LENGTH));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn every_entry_is_visited_once_and_holes_are_not_read() {
        let storage = MemoryStorage::default();
        storage.set_len(64 << 20).unwrap();
        let offset = 1 << 20;
        let entries = 4 << 20;
        for index in [0u64, 1, 700_000, 700_001, entries - 1] {
            storage.write_at(offset + index * 8, &(index + 1).to_le_bytes()).unwrap();
        }
        let (mut next, mut found, mut read) = (0, Vec::new(), 0);
        walk(&storage, offset, entries, &mut |stretch| {
            match stretch {
                Stretch::Zero(first, count) => {
                    assert_eq!(first, next);
                    next += count;
                }
                Stretch::Entries(first, bytes) => {
                    assert_eq!(first, next);
                    next += bytes.len() as u64 / 8;
                    read += bytes.len();
                    found.extend(stretch.entries().filter(|(_, raw)| raw.0 != 0));
                }
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(next, entries);
        assert_eq!(found.len(), 5);
        assert!(found.iter().all(|(index, raw)| raw.0 == index + 1));
        assert!(read < 4 << 20, "{read}");
    }
}
