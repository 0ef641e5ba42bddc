//! What a disk holds: pages that share their bytes, so that a crash state costs what differs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vhdxkit_testkit::random::mix;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

/// A page and the hash of its bytes.
#[derive(Debug)]
struct Page {
    bytes: Box<[u8; PAGE_LEN]>,
    hash: u64,
}

impl Page {
    /// `None` for zeros, which are not kept.
    fn new(bytes: Box<[u8; PAGE_LEN]>) -> Option<Arc<Self>> {
        let hash = hash_page(&bytes);
        (hash != 0).then(|| Arc::new(Self { bytes, hash }))
    }
}

/// Multiply and rotate, four lanes; zero for zeros.
fn hash_page(bytes: &[u8; PAGE_LEN]) -> u64 {
    let mut lanes = [0u64; 4];
    let mut any = 0u64;
    for group in bytes.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(group.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            any |= word;
            *lane = (*lane ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }
    if any == 0 {
        return 0;
    }
    lanes.iter().fold(1, |sum: u64, lane| mix(sum.wrapping_add(*lane))) | 1
}

type Pages = BTreeMap<u64, Option<Arc<Page>>>;

/// The bytes of a disk at one moment. Clones share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Medium {
    base: Arc<Pages>,
    /// Over the base; `None` is a page of zeros.
    patch: Pages,
    length: u64,
    /// Sum over all pages: equal for equal contents, whatever way they came about.
    hash: u64,
}

impl Medium {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A hash of contents and length.
    #[must_use]
    pub fn hash(&self) -> u64 {
        mix(self.hash ^ mix(self.length))
    }

    /// Moves the patches into the base, so that clones are cheap again.
    pub fn rebase(&mut self) {
        if self.patch.len() < 48 {
            return;
        }
        let mut base = (*self.base).clone();
        for (number, page) in std::mem::take(&mut self.patch) {
            match page {
                Some(page) => base.insert(number, Some(page)),
                None => base.remove(&number),
            };
        }
        self.base = Arc::new(base);
    }

    fn page(&self, number: u64) -> Option<&Arc<Page>> {
        match self.patch.get(&number) {
            Some(page) => page.as_ref(),
            None => self.base.get(&number).and_then(Option::as_ref),
        }
    }

    fn put(&mut self, number: u64, page: Option<Arc<Page>>) {
        let term = |page: Option<&Arc<Page>>| page.map_or(0, |p| mix(p.hash ^ mix(number)));
        self.hash = self.hash.wrapping_sub(term(self.page(number)));
        self.hash = self.hash.wrapping_add(term(page.as_ref()));
        self.patch.insert(number, page);
    }

    /// Reads what is there; returns how much that was.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let there = self.length.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < there {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE_LEN - within).min(there - done);
            let target = &mut buf[done..done + step];
            match self.page(at / PAGE) {
                Some(page) => target.copy_from_slice(&page.bytes[within..within + step]),
                None => target.fill(0),
            }
            done += step;
        }
        there
    }

    /// Writes without changing the length: what lies beyond it shows when the length grows.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE_LEN - within).min(bytes.len() - done);
            let mut page = match self.page(at / PAGE) {
                Some(page) if step < PAGE_LEN => page.bytes.clone(),
                _ => Box::new([0; PAGE_LEN]),
            };
            page[within..within + step].copy_from_slice(&bytes[done..done + step]);
            self.put(at / PAGE, Page::new(page));
            done += step;
        }
    }

    /// Makes a range zeros.
    pub fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let numbers: Vec<u64> = {
            let wanted = range.start / PAGE..range.end.div_ceil(PAGE);
            let patched = self.patch.range(wanted.clone()).filter(|(_, page)| page.is_some());
            let base = self.base.range(wanted);
            let base = base.filter(|(number, _)| !self.patch.contains_key(number));
            patched.chain(base).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            let start = number * PAGE;
            if range.start <= start && range.end >= start + PAGE {
                self.put(number, None);
                continue;
            }
            let from = range.start.max(start) - start;
            let to = range.end.min(start + PAGE) - start;
            let mut bytes = self.page(number).expect("it was listed").bytes.clone();
            bytes[from as usize..to as usize].fill(0);
            self.put(number, Page::new(bytes));
        }
    }

    /// Cuts or extends.
    pub fn set_len(&mut self, length: u64) {
        if length < self.length {
            self.zero(length..u64::MAX / 2);
        }
        self.length = length;
    }

    /// Sets the length that a crash has left: everything written beyond it is lost.
    pub fn settle(&mut self, length: u64) {
        self.zero(length..u64::MAX / 2);
        self.length = length;
    }

    /// The first run of pages that are not zeros, at or after an offset.
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let from = offset / PAGE;
        let patched = self.patch.range(from..).find(|(_, page)| page.is_some());
        let mut based = self.base.range(from..);
        let based = based.find(|(number, _)| !self.patch.contains_key(number));
        let first = match (patched.map(|(n, _)| *n), based.map(|(n, _)| *n)) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => return None,
        };
        let start = (first * PAGE).max(offset);
        (start < self.length).then(|| start..((first + 1) * PAGE).min(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_contents_not_history() {
        let mut one = Medium::default();
        one.set_len(1 << 20);
        let mut other = one.clone();
        one.write(5000, &[1; 10_000]);
        other.write(0, &[9; 4096]);
        other.write(5000, &[1; 5000]);
        assert_ne!(one.hash(), other.hash());
        other.write(10_000, &[1; 5000]);
        other.zero(0..4096);
        assert_eq!(one.hash(), other.hash());
        other.set_len(2 << 20);
        assert_ne!(one.hash(), other.hash());
        other.rebase();
        other.set_len(1 << 20);
        assert_eq!(one.hash(), other.hash());
        let mut bytes = [0; 3];
        assert_eq!(one.read((1 << 20) - 1, &mut bytes), 1);
        assert_eq!(one.next_data(0), Some(4096..8192));
    }
}
