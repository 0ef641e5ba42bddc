//! Sector bitmaps of differencing disks (MS-VHDX 2.5.2): which sectors of a partially present block
//! lie in this file.
//!
//! One sector bitmap block describes a *chunk* of 2^23 sectors, one bit each, least significant bit
//! first, set when the sector lies in this file. The bits are read through a cache like the BAT's, and
//! looked at 64 at a time.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::format::bat::SECTORS_PER_BITMAP;
use crate::format::limits::MAX_CACHED_BITMAP_BYTES;
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::Geometry;

use super::pages::{PAGE, Pages, WORDS};
use super::sectors::Sectors;

/// Sectors that a word of a bitmap describes.
const WORD: u64 = 64;
/// Sectors that a 4 KiB page describes.
const SECTORS_PER_PAGE: u64 = WORDS * WORD;
const PAGES_PER_CHUNK: u64 = SECTORS_PER_BITMAP / SECTORS_PER_PAGE;

/// A chunk and where its bitmap block lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) chunk: u64,
    pub(crate) file_offset: u64,
}

/// Sectors that share a bit value: their numbers within the chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BitRun {
    pub(crate) sectors: Range<u64>,
    pub(crate) present: bool,
}

/// The sector bitmaps of one image.
pub(crate) struct Bitmaps {
    storage: Arc<dyn Storage>,
    /// Of an image that is written: pages that are newer than the file's.
    sectors: Option<Arc<Sectors>>,
    pages: Pages,
}

impl Bitmaps {
    /// Those of a disk. Reads nothing yet.
    pub(crate) fn new(storage: Arc<dyn Storage>, geometry: &Geometry) -> Self {
        let chunks = if geometry.is_differencing() { geometry.chunks() } else { 0 };
        let pages = Pages::new(chunks.saturating_mul(PAGES_PER_CHUNK), MAX_CACHED_BITMAP_BYTES);
        Self { storage, sectors: None, pages }
    }

    /// The same, of an image that is written.
    pub(crate) fn over(self, sectors: Arc<Sectors>) -> Self {
        Self { sectors: Some(sectors), ..self }
    }

    /// The runs of equal bits among `wanted` sectors of a chunk, in order and without gaps.
    pub(crate) fn runs(
        &self,
        bitmap: Bitmap,
        wanted: Range<u64>,
    ) -> impl Iterator<Item = Result<BitRun>> {
        let mut at = wanted.start;
        std::iter::from_fn(move || {
            let run = (at < wanted.end).then(|| self.run(bitmap, at..wanted.end))?;
            at = run.as_ref().map_or(wanted.end, |run| run.sectors.end);
            Some(run)
        })
    }

    /// The first of these sectors, and those after it with the same bit.
    fn run(&self, bitmap: Bitmap, wanted: Range<u64>) -> Result<BitRun> {
        let mut word = self.word(bitmap, wanted.start / WORD)?;
        let mut at = wanted.start;
        let present = word.checked_shr(low(at)).unwrap_or_default() & 1 == 1;
        loop {
            // Ones where the run ends.
            let others = if present { !word } else { word };
            let others = others.checked_shr(low(at)).unwrap_or_default();
            let next = (at / WORD).saturating_add(1);
            if others != 0 {
                at = at.saturating_add(u64::from(others.trailing_zeros()));
                break;
            }
            at = next.saturating_mul(WORD);
            if at >= wanted.end {
                break;
            }
            word = self.word(bitmap, next)?;
        }
        Ok(BitRun { sectors: wanted.start..at.min(wanted.end), present })
    }

    /// Whether all the bits of `wanted` sectors are set.
    pub(crate) fn all_set(&self, bitmap: Bitmap, wanted: Range<u64>) -> Result<bool> {
        let mut at = wanted.start;
        while at < wanted.end {
            let end = (at / WORD).saturating_add(1).saturating_mul(WORD).min(wanted.end);
            let mask = mask(at..end);
            if self.word(bitmap, at / WORD)? & mask != mask {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// Makes the bits of `wanted` sectors what `present` says. Readers see it at once, word by word.
    ///
    /// Two changes must not run at once: the caller holds the lock of the mapping.
    pub(crate) fn set(&self, bitmap: Bitmap, wanted: Range<u64>, present: bool) -> Result<()> {
        let Some(sectors) = &self.sectors else {
            return Err(crate::Error::invalid("the image is open for reading"));
        };
        let mut at = wanted.start;
        while at < wanted.end {
            let page = at / SECTORS_PER_PAGE;
            let end = page.saturating_add(1).saturating_mul(SECTORS_PER_PAGE).min(wanted.end);
            let mut changed = Vec::new();
            let mut word = at / WORD;
            while word.saturating_mul(WORD) < end {
                let first = word.saturating_mul(WORD);
                let part = first.max(at)..first.saturating_add(WORD).min(end);
                let (old, mask) = (self.word(bitmap, word)?, mask(part));
                let new = if present { old | mask } else { old & !mask };
                if new != old {
                    changed.push((word, new));
                }
                word = word.saturating_add(1);
            }
            at = end;
            if changed.is_empty() {
                continue;
            }
            sectors.change(page_offset(bitmap, page), |bytes| {
                for &(word, new) in &changed {
                    if let Some(place) = bytes.chunks_exact_mut(8).nth(slot_of(word)) {
                        place.copy_from_slice(&new.to_le_bytes());
                    }
                }
            })?;
            for (word, new) in changed {
                self.pages.replace(page_number(bitmap, page), slot_of(word), new);
            }
        }
        Ok(())
    }

    /// 64 bits of a chunk: word number `word`.
    fn word(&self, bitmap: Bitmap, word: u64) -> Result<u64> {
        let page = word / WORDS;
        let offset = page_offset(bitmap, page);
        self.pages.word(page_number(bitmap, page), slot_of(word), |bytes| match &self.sectors {
            Some(sectors) => sectors.read(offset, bytes),
            None => self.storage.read_zero_filled(offset, bytes).map(|_| ()),
        })
    }
}

fn page_offset(bitmap: Bitmap, page: u64) -> u64 {
    let bytes = u64::try_from(PAGE).unwrap_or_default();
    bitmap.file_offset.saturating_add(page.saturating_mul(bytes))
}

/// The number of a page among those of all chunks.
fn page_number(bitmap: Bitmap, page: u64) -> u64 {
    bitmap.chunk.saturating_mul(PAGES_PER_CHUNK).saturating_add(page)
}

fn slot_of(word: u64) -> usize {
    usize::try_from(word % WORDS).unwrap_or_default()
}

/// The bits of these sectors, which share a word.
fn mask(sectors: Range<u64>) -> u64 {
    let count = u32::try_from(sectors.end.saturating_sub(sectors.start)).unwrap_or(64);
    let ones = u64::MAX.checked_shr(64u32.saturating_sub(count)).unwrap_or_default();
    ones.checked_shl(low(sectors.start)).unwrap_or_default()
}

fn low(sector: u64) -> u32 {
    u32::try_from(sector % WORD).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use proptest::prelude::*;

    const HERE: Bitmap = Bitmap { chunk: 0, file_offset: 0 };

    fn bitmaps(bytes: Vec<u8>) -> Bitmaps {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes));
        let sectors = Some(Arc::new(Sectors::new(Arc::clone(&storage))));
        Bitmaps { storage, sectors, pages: Pages::new(256, 1 << 20) }
    }

    fn runs(maps: &Bitmaps, wanted: Range<u64>) -> Vec<BitRun> {
        maps.runs(HERE, wanted).map(Result::unwrap).collect()
    }

    fn flat(runs: &[BitRun]) -> Vec<bool> {
        runs.iter().flat_map(|r| r.sectors.clone().map(|_| r.present)).collect()
    }

    #[test]
    fn bits_count_from_the_least_significant() {
        let run = |sectors, present| BitRun { sectors, present };
        let few = bitmaps(vec![0b0000_0110]);
        assert_eq!(runs(&few, 0..8), [run(0..1, false), run(1..3, true), run(3..8, false)]);
        assert_eq!(runs(&few, 2..3), [run(2..3, true)]);
        assert_eq!(runs(&few, 3..3), []);
        assert!(few.all_set(HERE, 1..3).unwrap() && !few.all_set(HERE, 0..3).unwrap());
        let full = bitmaps(vec![0xFF; 5000]);
        assert_eq!(runs(&full, 0..40_000), [run(0..40_000, true)]);
        assert!(full.all_set(HERE, 7..39_999).unwrap());
    }

    proptest! {
        #[test]
        fn runs_say_the_same_as_the_bits(
            bits in proptest::collection::vec(any::<u8>(), 1..80),
            from in 0..640u64,
            count in 0..640u64,
        ) {
            let end = (bits.len() as u64 * 8).min(from + count);
            let from = from.min(end);
            let runs = runs(&bitmaps(bits.clone()), from..end);
            let one_by_one: Vec<bool> = (from as usize..end as usize)
                .map(|i| bits[i / 8] >> (i % 8) & 1 == 1)
                .collect();
            prop_assert_eq!(flat(&runs), one_by_one);
            prop_assert!(runs.windows(2).all(|pair| pair[0].present != pair[1].present));
        }

        #[test]
        fn what_was_set_reads_back_and_the_rest_stays(
            ranges in proptest::collection::vec((0..70_000u64, 0..40_000u64, any::<bool>()), 1..6),
        ) {
            let maps = bitmaps(vec![0b1010_0101; 16 << 10]);
            let mut model: Vec<bool> = (0..131_072).map(|i| 0b1010_0101 >> (i % 8) & 1 == 1).collect();
            for (from, count, present) in ranges {
                maps.set(HERE, from..from + count, present).unwrap();
                model[from as usize..(from + count) as usize].fill(present);
            }
            prop_assert_eq!(flat(&runs(&maps, 0..131_072)), model);
        }
    }
}
