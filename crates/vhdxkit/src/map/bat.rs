//! The BAT, read lazily, page by page, into a cache of fixed size.
//!
//! # Lookup without a lock
//! The cache has a fixed number of frames; page `p` lives in frame `p mod frames` or nowhere. A
//! frame is a sequence lock built of atomics: its tag names the page it holds together with a
//! generation that grows with every refill. A reader loads the tag, the entry, and the tag again;
//! when both tags are the same and name its page, the entry belongs to that page. Only a miss
//! takes the frame's mutex and reads 4 KiB from the file. Disks whose whole BAT fits (most) fill
//! every frame once and never evict.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::Result;
use crate::format::bat::{ENTRIES_PER_PAGE, RawEntry};
use crate::format::limits::MAX_CACHED_BAT_BYTES;
use crate::storage::{Storage, StorageExt};

use super::sectors::Sectors;

const PAGE: usize = 4096;
const PAGE_MASK: u64 = 0xFFFF_FFFF;
const GENERATION: u64 = PAGE_MASK + 1;

#[derive(Default)]
struct Frame {
    /// Upper half: generation. Lower half: page number plus one, or zero while there is none.
    tag: AtomicU64,
    entries: OnceLock<Box<[AtomicU64]>>,
    fill: Mutex<()>,
}

/// The table of one image.
pub(crate) struct Bat {
    storage: Arc<dyn Storage>,
    /// Of an image that is written: pages that are newer than the file's.
    sectors: Option<Arc<Sectors>>,
    offset: u64,
    frames: Box<[Frame]>,
}

impl Bat {
    /// A table of `entries` entries at file offset `offset`. Reads nothing yet.
    pub(crate) fn new(storage: Arc<dyn Storage>, offset: u64, entries: u64) -> Self {
        Self::with_memory(storage, offset, entries, MAX_CACHED_BAT_BYTES)
    }

    fn with_memory(storage: Arc<dyn Storage>, offset: u64, entries: u64, memory: usize) -> Self {
        let pages = usize::try_from(entries.div_ceil(ENTRIES_PER_PAGE)).unwrap_or(usize::MAX);
        let count = pages.clamp(1, (memory / PAGE).max(1));
        let frames = std::iter::repeat_with(Frame::default).take(count).collect();
        Self { storage, sectors: None, offset, frames }
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
        let (page, slot) = (index / ENTRIES_PER_PAGE, index % ENTRIES_PER_PAGE);
        let slot = usize::try_from(slot).unwrap_or_default();
        // First the sector, then the cache: whoever fills the cache's frame from now on finds the
        // change there, and whoever is filling it with older bytes just now is waited for.
        sectors.change(self.page_offset(index), |sector| {
            if let Some(place) = sector.chunks_exact_mut(8).nth(slot) {
                place.copy_from_slice(&raw.0.to_le_bytes());
            }
        })?;
        let Some(frame) = self.frame(page) else { return Ok(()) };
        let _filling = frame.fill.lock().unwrap_or_else(PoisonError::into_inner);
        frame.replace(page, slot, raw);
        Ok(())
    }

    /// The entry at `index`, which must be below the number of entries.
    pub(crate) fn entry(&self, index: u64) -> Result<RawEntry> {
        let (page, slot) = (index / ENTRIES_PER_PAGE, index % ENTRIES_PER_PAGE);
        let slot = usize::try_from(slot).unwrap_or_default();
        let frame = self.frame(page);
        match frame.and_then(|frame| frame.load(page, slot)) {
            Some(raw) => Ok(raw),
            None => self.miss(page, slot),
        }
    }

    fn frame(&self, page: u64) -> Option<&Frame> {
        let frames = u64::try_from(self.frames.len()).ok()?;
        let number = page.checked_rem(frames)?;
        self.frames.get(usize::try_from(number).ok()?)
    }

    fn miss(&self, page: u64, slot: usize) -> Result<RawEntry> {
        let mut bytes = [0; PAGE];
        let offset = self.offset.saturating_add(page.saturating_mul(4096));
        let Some(frame) = self.frame(page) else { return Ok(RawEntry::default()) };
        // A panic while the frame was filled leaves its tag empty: the next one fills it again.
        let _filling = frame.fill.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(raw) = frame.load(page, slot) {
            return Ok(raw);
        }
        match &self.sectors {
            Some(sectors) => sectors.read(offset, &mut bytes)?,
            None => {
                self.storage.read_zero_filled(offset, &mut bytes)?;
            }
        }
        frame.store(page, &bytes);
        let raw = bytes.chunks_exact(8).nth(slot).and_then(|raw| raw.first_chunk::<8>());
        Ok(RawEntry(raw.copied().map_or(0, u64::from_le_bytes)))
    }
}

impl Frame {
    fn load(&self, page: u64, slot: usize) -> Option<RawEntry> {
        let before = self.tag.load(Ordering::Acquire);
        if before & PAGE_MASK != page.checked_add(1)? {
            return None;
        }
        let raw = self.entries.get()?.get(slot)?.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == before).then_some(RawEntry(raw))
    }

    /// Replaces one entry, if the frame holds its page. The caller holds `fill`.
    fn replace(&self, page: u64, slot: usize, raw: RawEntry) {
        let holds = self.tag.load(Ordering::Relaxed) & PAGE_MASK == page.saturating_add(1);
        if let (true, Some(entries)) = (holds, self.entries.get())
            && let Some(entry) = entries.get(slot)
        {
            // A reader that races with this sees the old entry or the new one, both whole.
            entry.store(raw.0, Ordering::Release);
        }
    }

    /// Replaces the frame's contents. The caller holds `fill`.
    fn store(&self, page: u64, bytes: &[u8; PAGE]) {
        let generation = (self.tag.load(Ordering::Relaxed) & !PAGE_MASK).wrapping_add(GENERATION);
        self.tag.store(generation, Ordering::Relaxed);
        fence(Ordering::Release);
        let entries = self
            .entries
            .get_or_init(|| std::iter::repeat_with(AtomicU64::default).take(PAGE / 8).collect());
        for (entry, raw) in entries.iter().zip(bytes.chunks_exact(8)) {
            let raw = raw.first_chunk::<8>().copied().unwrap_or_default();
            entry.store(u64::from_le_bytes(raw), Ordering::Relaxed);
        }
        self.tag.store(generation | page.saturating_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(bat.frames.len() * PAGE, MAX_CACHED_BAT_BYTES);
    }

    /// A frame is refilled all the time while others read it: nobody may see an entry of one page
    /// under the tag of the other.
    #[test]
    fn readers_never_see_an_entry_of_another_page() {
        let frame = Frame::default();
        let filling = std::sync::atomic::AtomicBool::new(true);
        let pages = [[1u8; PAGE], [2u8; PAGE]];
        let value = |page: u64| u64::from_le_bytes([page as u8 + 1; 8]);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut seen = 0u64;
                    while filling.load(Ordering::Relaxed) || seen == 0 {
                        for page in 0..2 {
                            for slot in [0, 255, 511] {
                                if let Some(raw) = frame.load(page, slot) {
                                    assert_eq!(raw.0, value(page));
                                    seen += 1;
                                }
                            }
                        }
                    }
                });
            }
            for round in 0..30_000u64 {
                frame.store(round % 2, &pages[(round % 2) as usize]);
            }
            filling.store(false, Ordering::Relaxed);
        });
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
