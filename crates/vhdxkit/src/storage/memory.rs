//! A medium in memory.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Storage, to_usize};

/// Granularity of what is kept.
const PAGE: u64 = 64 << 10;
const PAGE_LEN: usize = 64 << 10;
/// One run of data reports no more pages than this, so that asking for it stays cheap.
const MAX_RUN_PAGES: usize = 1024;

/// A medium that lies in memory. Pages never written cost nothing, so that it can be terabytes long.
///
/// Nothing limits how much memory the written pages take.
#[derive(Debug, Default)]
pub struct MemoryStorage(RwLock<Contents>);

#[derive(Debug, Default)]
struct Contents {
    /// By page number. Bytes of a page beyond `length` are zeros.
    pages: BTreeMap<u64, Box<[u8]>>,
    length: u64,
}

/// The part of a range of bytes that lies in one page.
struct Part {
    page: u64,
    /// Within the page.
    within: Range<usize>,
}

impl MemoryStorage {
    /// A medium with these contents. Pages of zeros are not kept.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let pages = (0u64..)
            .zip(bytes.chunks(PAGE_LEN))
            .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
            .map(|(number, chunk)| {
                let mut page = zero_page();
                for (to, from) in page.iter_mut().zip(chunk) {
                    *to = *from;
                }
                (number, page)
            })
            .collect();
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self(RwLock::new(Contents { pages, length }))
    }

    /// A medium without any bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// A copy of everything, from the first byte to the end.
    ///
    /// # Panics
    /// When the medium is too long for memory: a long, sparse medium should be read in parts.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let contents = self.contents();
        let mut bytes = vec![0; to_usize(contents.length)];
        contents.read(0, &mut bytes);
        bytes
    }

    // A panic cannot leave the contents half changed in a way that matters: pages and length are
    // each changed in one step.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    /// Reads what lies below the length; returns how much that was.
    fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let there = to_usize(self.length.saturating_sub(offset)).min(buf.len());
        let mut rest = buf.get_mut(..there).unwrap_or_default();
        for part in parts(offset, there) {
            let (now, later) = rest.split_at_mut_checked(part.within.len()).unwrap_or_default();
            match self.pages.get(&part.page).and_then(|page| page.get(part.within)) {
                Some(bytes) => now.copy_from_slice(bytes),
                None => now.fill(0),
            }
            rest = later;
        }
        there
    }

    fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        for part in parts(offset, bytes.len()) {
            let (now, later) = bytes.split_at_checked(part.within.len()).unwrap_or_default();
            let page = self.pages.entry(part.page).or_insert_with(zero_page);
            if let Some(target) = page.get_mut(part.within) {
                target.copy_from_slice(now);
            }
            bytes = later;
        }
    }

    /// Drops the pages of a range, and zeros its parts of the pages at both ends.
    fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        if !whole.is_empty() {
            // Costs what is stored there, not what the range could hold.
            while let Some((&page, _)) = self.pages.range(whole.clone()).next() {
                self.pages.remove(&page);
            }
        }
        for end in [range.start, range.end] {
            let page = end / PAGE;
            let start = page.saturating_mul(PAGE);
            let from = to_usize(range.start.saturating_sub(start));
            let to = to_usize(range.end.saturating_sub(start)).min(PAGE_LEN);
            if let Some(bytes) = self.pages.get_mut(&page).and_then(|page| page.get_mut(from..to)) {
                bytes.fill(0);
            }
        }
    }
}

fn zero_page() -> Box<[u8]> {
    vec![0; PAGE_LEN].into_boxed_slice()
}

fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut at = offset;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let from = to_usize(at % PAGE);
        let now = PAGE_LEN.saturating_sub(from).min(left);
        let part = Part { page: at / PAGE, within: from..from.saturating_add(now) };
        left = left.saturating_sub(now);
        at = at.saturating_add(u64::try_from(now).unwrap_or(u64::MAX));
        Some(part)
    })
}

impl Storage for MemoryStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.contents().read(offset, buf))
    }

    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        Ok(self.contents().read(offset, buf) == buf.len())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = super::advance(offset, buf.len())?;
        let mut contents = self.contents_mut();
        contents.write(offset, buf);
        contents.length = contents.length.max(end);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.contents().length)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut contents = self.contents_mut();
        if length < contents.length {
            contents.zero(length..u64::MAX);
        }
        contents.length = length;
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let mut contents = self.contents_mut();
        let end = range.end.min(contents.length);
        contents.zero(range.start..end);
        Ok(())
    }

    /// Only makes the medium longer: memory is not reserved.
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if !range.is_empty() {
            let mut contents = self.contents_mut();
            contents.length = contents.length.max(range.end);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let contents = self.contents();
        let mut numbers = contents.pages.range(offset / PAGE..).map(|(number, _)| *number);
        let Some(first) = numbers.next() else { return Ok(None) };
        let joined = numbers.zip(first.saturating_add(1)..).take(MAX_RUN_PAGES);
        let last = joined.take_while(|(is, next)| is == next).map(|(is, _)| is).last();
        let behind = last.unwrap_or(first).saturating_add(1);
        let start = first.saturating_mul(PAGE).max(offset);
        let end = behind.saturating_mul(PAGE).min(contents.length);
        Ok((start < end).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terabytes_of_nothing_cost_nothing() {
        let storage = MemoryStorage::empty();
        storage.set_len(64 << 40).unwrap();
        storage.write_at(40 << 40, b"here").unwrap();
        assert_eq!(storage.contents().pages.len(), 1);
        assert_eq!(storage.next_data(0).unwrap(), Some(40 << 40..(40 << 40) + PAGE));
        assert_eq!(storage.next_data((40 << 40) + PAGE).unwrap(), None);
        storage.punch(0..u64::MAX).unwrap();
        assert_eq!(storage.contents().pages.len(), 0);
        assert_eq!(storage.len().unwrap(), 64 << 40);
    }

    #[test]
    fn a_write_beyond_all_offsets_is_refused() {
        let storage = MemoryStorage::empty();
        let error = storage.write_at(u64::MAX - 1, b"abc").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        storage.write_at(u64::MAX - 3, b"abc").unwrap();
        assert_eq!(storage.len().unwrap(), u64::MAX);
        let mut buf = [9; 10];
        assert_eq!(storage.read_at(u64::MAX - 4, &mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"\0abc");
        assert_eq!(storage.next_data(5).unwrap(), Some(u64::MAX - PAGE + 1..u64::MAX));
    }

    #[test]
    fn growing_again_shows_zeros() {
        let storage = MemoryStorage::new(vec![7; 100]);
        storage.set_len(10).unwrap();
        storage.set_len(20).unwrap();
        assert_eq!(storage.to_vec(), [vec![7; 10], vec![0; 10]].concat());
    }

    #[test]
    fn contents_given_are_contents_kept_and_zero_pages_are_holes() {
        let mut bytes = vec![0; 3 * PAGE_LEN + 5];
        bytes[2 * PAGE_LEN + 1] = 1;
        let storage = MemoryStorage::new(bytes.clone());
        assert_eq!(storage.to_vec(), bytes);
        assert_eq!(storage.next_data(0).unwrap(), Some(2 * PAGE..3 * PAGE));
    }
}
