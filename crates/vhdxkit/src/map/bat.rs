//! The block allocation table, read lazily through a cache of fixed size.

use std::sync::Arc;

use crate::Result;
use crate::format::bat::{ENTRIES_PER_PAGE, RawEntry};
use crate::format::limits::MAX_CACHED_BAT_BYTES;
use crate::storage::{Storage, StorageExt};

use super::pages::Pages;
use super::sectors::Sectors;

/// The table of one image.
pub(crate) struct Bat {
    storage: Arc<dyn Storage>,
    /// Of an image that is written: pages that are newer than the file's.
    sectors: Option<Arc<Sectors>>,
    offset: u64,
    pages: Pages,
}

impl Bat {
    /// A table of `entries` entries at file offset `offset`. Reads nothing yet.
    pub(crate) fn new(storage: Arc<dyn Storage>, offset: u64, entries: u64) -> Self {
        Self::with_memory(storage, offset, entries, MAX_CACHED_BAT_BYTES)
    }

    fn with_memory(storage: Arc<dyn Storage>, offset: u64, entries: u64, memory: usize) -> Self {
        let pages = Pages::new(entries.div_ceil(ENTRIES_PER_PAGE), memory);
        Self { storage, sectors: None, offset, pages }
    }

    /// The same table, of an image that is written: the newest pages may be in `sectors`.
    pub(crate) fn over(self, sectors: Arc<Sectors>) -> Self {
        Self { sectors: Some(sectors), ..self }
    }

    /// The file offset of the page that holds an entry.
    pub(crate) fn page_offset(&self, index: u64) -> u64 {
        self.offset.saturating_add((index / ENTRIES_PER_PAGE).saturating_mul(4096))
    }

    /// Changes the entry at `index`, of an image that is written. Readers see it at once.
    ///
    /// Two changes must not run at once: the caller holds the lock of the mapping.
    pub(crate) fn set(&self, index: u64, raw: RawEntry) -> Result<()> {
        let Some(sectors) = &self.sectors else {
            return Err(crate::Error::invalid("the image is open for reading"));
        };
        let (page, slot) = place_of(index);
        sectors.change(self.page_offset(index), |sector| {
            if let Some(place) = sector.chunks_exact_mut(8).nth(slot) {
                place.copy_from_slice(&raw.0.to_le_bytes());
            }
        })?;
        self.pages.replace(page, slot, raw.0);
        Ok(())
    }

    /// The entry at `index`, which must be below the number of entries.
    pub(crate) fn entry(&self, index: u64) -> Result<RawEntry> {
        let (page, slot) = place_of(index);
        let offset = self.page_offset(index);
        let word = self.pages.word(page, slot, |bytes| match &self.sectors {
            Some(sectors) => sectors.read(offset, bytes),
            None => self.storage.read_zero_filled(offset, bytes).map(|_| ()),
        })?;
        Ok(RawEntry(word))
    }
}

/// The page of an entry, and its number in it.
fn place_of(index: u64) -> (u64, usize) {
    let slot = usize::try_from(index % ENTRIES_PER_PAGE).unwrap_or_default();
    (index / ENTRIES_PER_PAGE, slot)
}

#[cfg(test)]
mod tests {
    use super::super::pages::PAGE;
    use super::*;
    use crate::storage::MemoryStorage;

    fn table(pages: u64) -> Arc<dyn Storage> {
        let bytes = (0..pages * 512).flat_map(|i| (i * 3 + 1).to_le_bytes()).collect();
        Arc::new(MemoryStorage::new(bytes))
    }

    #[test]
    fn entries_are_right_with_room_for_all_and_with_room_for_one_page() {
        for memory in [1 << 20, PAGE] {
            let bat = Bat::with_memory(table(5), 0, 5 * 512, memory);
            for index in (0..5 * 512).chain((0..5 * 512).rev().step_by(7)) {
                assert_eq!(bat.entry(index).unwrap().0, index * 3 + 1);
            }
        }
    }

    #[test]
    fn memory_is_bounded_whatever_the_table_claims() {
        let bat = Bat::new(table(1), 0, 67_125_247);
        assert_eq!(bat.pages.memory(), MAX_CACHED_BAT_BYTES);
    }

    /// The same through the whole table: two pages, one frame, four threads.
    #[test]
    fn a_table_with_too_little_memory_is_still_right() {
        let bat = Bat::with_memory(table(2), 0, 1024, PAGE);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let bat = &bat;
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let index = (round * 37 + thread * 511) % 1024;
                        assert_eq!(bat.entry(index).unwrap().0, index * 3 + 1);
                    }
                });
            }
        });
    }
}
