//! Metadata read lazily, page by page, into a cache of fixed size: 4 KiB pages of 64-bit words.
//!
//! # Lookup without a lock
//! The cache has a fixed number of frames; page `p` lives in frame `p mod frames` or nowhere. A
//! frame is a sequence lock built of atomics: its tag names the page it holds together with a
//! generation that grows with every refill. A reader loads the tag, the word, and the tag again;
//! when both tags are the same and name its page, the word belongs to that page. Only a miss
//! takes the frame's mutex and reads 4 KiB from the file. Disks whose whole BAT fits (most) fill
//! every frame once and never evict.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::Result;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Words of a page.
pub(crate) const WORDS: u64 = 512;
const PAGE_MASK: u64 = 0xFFFF_FFFF;
const GENERATION: u64 = PAGE_MASK + 1;

#[derive(Default)]
struct Frame {
    /// Upper half: generation. Lower half: page number plus one, or zero while there is none.
    tag: AtomicU64,
    words: OnceLock<Box<[AtomicU64]>>,
    fill: Mutex<()>,
}

/// The cache.
pub(crate) struct Pages {
    frames: Box<[Frame]>,
}

impl Pages {
    /// For `pages` pages, in `memory` bytes at most.
    pub(crate) fn new(pages: u64, memory: usize) -> Self {
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        let count = pages.clamp(1, (memory / PAGE).max(1));
        Self { frames: std::iter::repeat_with(Frame::default).take(count).collect() }
    }

    /// A word of a page, which `read` reads when it is not here. Page numbers are below 2^32 - 1.
    pub(crate) fn word(
        &self,
        page: u64,
        slot: usize,
        read: impl FnOnce(&mut [u8; PAGE]) -> Result<()>,
    ) -> Result<u64> {
        let Some(frame) = self.frame(page) else { return Ok(0) };
        if let Some(word) = frame.load(page, slot) {
            return Ok(word);
        }
        let mut bytes = [0; PAGE];
        // A panic while the frame was filled leaves its tag empty: the next one fills it again.
        let _filling = frame.fill.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = frame.load(page, slot) {
            return Ok(word);
        }
        read(&mut bytes)?;
        frame.store(page, &bytes);
        let word = bytes.chunks_exact(8).nth(slot).and_then(|raw| raw.first_chunk::<8>());
        Ok(word.copied().map_or(0, u64::from_le_bytes))
    }

    /// Replaces a word, if its page is here. The page's own bytes must have been changed before: then
    /// whoever fills the frame from now on finds the change there, and whoever is filling it with older
    /// bytes just now is waited for.
    pub(crate) fn replace(&self, page: u64, slot: usize, word: u64) {
        let Some(frame) = self.frame(page) else { return };
        let _filling = frame.fill.lock().unwrap_or_else(PoisonError::into_inner);
        frame.replace(page, slot, word);
    }

    /// The most memory that this can take.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.frames.len() * PAGE
    }

    fn frame(&self, page: u64) -> Option<&Frame> {
        let frames = u64::try_from(self.frames.len()).ok()?;
        let number = page.checked_rem(frames)?;
        self.frames.get(usize::try_from(number).ok()?)
    }
}

impl Frame {
    fn load(&self, page: u64, slot: usize) -> Option<u64> {
        let before = self.tag.load(Ordering::Acquire);
        if before & PAGE_MASK != page.checked_add(1)? {
            return None;
        }
        let word = self.words.get()?.get(slot)?.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == before).then_some(word)
    }

    /// Replaces one word, if the frame holds its page. The caller holds `fill`.
    fn replace(&self, page: u64, slot: usize, word: u64) {
        let holds = self.tag.load(Ordering::Relaxed) & PAGE_MASK == page.saturating_add(1);
        if let (true, Some(words)) = (holds, self.words.get())
            && let Some(place) = words.get(slot)
        {
            // A reader that races with this sees the old word or the new one, both whole.
            place.store(word, Ordering::Release);
        }
    }

    /// Replaces the frame's contents. The caller holds `fill`.
    fn store(&self, page: u64, bytes: &[u8; PAGE]) {
        let generation = (self.tag.load(Ordering::Relaxed) & !PAGE_MASK).wrapping_add(GENERATION);
        self.tag.store(generation, Ordering::Relaxed);
        fence(Ordering::Release);
        let words = self
            .words
            .get_or_init(|| std::iter::repeat_with(AtomicU64::default).take(PAGE / 8).collect());
        for (word, raw) in words.iter().zip(bytes.chunks_exact(8)) {
            let raw = raw.first_chunk::<8>().copied().unwrap_or_default();
            word.store(u64::from_le_bytes(raw), Ordering::Relaxed);
        }
        self.tag.store(generation | page.saturating_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                                if let Some(word) = frame.load(page, slot) {
                                    assert_eq!(word, value(page));
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
}
