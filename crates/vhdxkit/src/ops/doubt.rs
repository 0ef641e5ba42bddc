//! Which blocks a check cannot vouch for, and whether the block table was overwritten.
//!
//! One entry may be wrong by itself. Bytes that were written over the table are wrong together: some of them break
//! the format, others happen to say something that is only odd, such as an offset under NOT_PRESENT. So pages are
//! judged as a whole: in one that holds junk, what is odd counts as well.

use std::ops::Range;

use crate::format::bat::{ENTRIES_PER_PAGE, RawEntry};
use crate::map::{EntryRules, Trust};
use crate::view::geometry::BatSlot;

/// Ranges of blocks that are kept; beyond, ranges are joined, so that doubtful blocks are never left out.
const MOST_RANGES: usize = 1 << 16;
/// Junk entries of one page that are no accident of a single entry any more.
const MANY: u64 = 4;

/// The blocks that cannot be vouched for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt {
    ranges: Vec<Range<u64>>,
    overwritten: bool,
}

impl Doubt {
    pub(crate) fn add(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let full = self.ranges.len() >= MOST_RANGES;
        match self.ranges.last_mut() {
            Some(last) if full || (last.start <= blocks.start && blocks.start <= last.end) => {
                last.start = last.start.min(blocks.start);
                last.end = last.end.max(blocks.end);
            }
            _ => self.ranges.push(blocks),
        }
    }

    /// In order, none touching another.
    pub(crate) fn ranges(mut self) -> Vec<Range<u64>> {
        self.ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in self.ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        joined
    }

    pub(crate) fn is_overwritten(&self) -> bool {
        self.overwritten
    }
}

/// Looks at the entries of a table in order, page by page.
pub(crate) struct PageJudge {
    rules: EntryRules,
    page: u64,
    /// Blocks of this page with something odd.
    odd: Vec<u64>,
    junk: u64,
    impossible: bool,
    overwritten: Vec<u64>,
    doubt: Doubt,
}

impl PageJudge {
    pub(crate) fn new(rules: EntryRules) -> Self {
        let (odd, overwritten) = (Vec::new(), Vec::new());
        let doubt = Doubt::default();
        Self { rules, page: 0, odd, junk: 0, impossible: false, overwritten, doubt }
    }

    /// The next entry.
    pub(crate) fn see(&mut self, index: u64, raw: RawEntry) {
        let page = index / ENTRIES_PER_PAGE;
        if page != self.page {
            self.end_page();
            self.page = page;
        }
        let slot = self.rules.geometry.slot(index);
        let trust = self.rules.trust(slot, raw);
        if let Trust::Junk { impossible } = trust {
            self.junk = self.junk.saturating_add(1);
            self.impossible |= impossible;
        }
        match (slot, trust) {
            (_, Trust::Sound) | (BatSlot::Padding, _) => {}
            (BatSlot::Payload(block), Trust::Odd) => self.odd.push(block),
            (BatSlot::Payload(block), _) => self.doubt.add(block..block.saturating_add(1)),
            (BatSlot::Bitmap(chunk), _) => {
                if self.rules.geometry.is_differencing() {
                    let ratio = self.rules.geometry.chunk_ratio();
                    let first = chunk.saturating_mul(ratio);
                    let end = first.saturating_add(ratio).min(self.rules.geometry.blocks());
                    self.doubt.add(first..end);
                }
            }
        }
    }

    fn end_page(&mut self) {
        if self.junk > 0 {
            for block in std::mem::take(&mut self.odd) {
                self.doubt.add(block..block.saturating_add(1));
            }
        }
        if self.impossible || self.junk >= MANY {
            self.doubt.overwritten = true;
            self.overwritten.push(self.page);
        }
        self.impossible = false;
        self.junk = 0;
        self.odd.clear();
    }

    /// The blocks in doubt, and the pages that were overwritten beyond doubt: the indices of their first entries over
    /// 512, in order.
    pub(crate) fn end(mut self) -> (Doubt, Vec<u64>) {
        self.end_page();
        (self.doubt, self.overwritten)
    }
}
