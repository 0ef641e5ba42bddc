//! File space: what is free, what may be handed out, and what is known to be zeros there.
//!
//! # Where new space comes from
//! From gaps in the file, lowest first, and from growing it. A gap may hold anything: bytes of a
//! block long gone, or of another file that lived on these sectors. Space counts as zeros only with
//! a proof that a crash cannot undo:
//!
//! * it came into being when this writer extended the file, or
//! * the file system says that it is a hole, and a sync has completed since the hole was punched.
//!
//! Whoever stores a block in space without that proof makes the payload durable before the entry
//! that points to it. So that this is rare, gaps are punched ahead of need: the sync of some flush then
//! makes the proof.
//!
//! # Growing
//! The file grows in large steps, one step ahead of need, so that the sync of some flush has already
//! made the length durable when an entry first uses it. An entry that relies on a length that no
//! sync has made durable would be replayed into a file that is too short, which QEMU does not mend.
//!
//! Nothing here does I/O. The owner of a [`Space`] extends, punches and syncs, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::format::limits::MAX_FILE_OFFSET;
use crate::format::{MIB, mib_ceil, mib_floor};

/// Least and greatest step of growth, and the number of blocks in between.
const STEP_BLOCKS: u64 = 64;
const LEAST_STEP: u64 = 64 * MIB;
const GREATEST_STEP: u64 = 1024 * MIB;

/// What is known about the bytes of free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Anything.
    Unknown,
    /// They read as zeros, and a crash cannot change that once a sync has completed that was begun
    /// after this many others.
    ZeroAfter(u64),
}

/// Space that has been handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// File offset, a multiple of 1 MiB.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// It reads as zeros now.
    pub(crate) zero: bool,
    /// It reads as zeros, whatever crashes.
    pub(crate) proven: bool,
}

impl Place {
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A sync under way: what it will prove when it completes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncMark {
    number: u64,
    length: u64,
}

#[derive(Debug, Clone, Copy)]
struct Free {
    end: u64,
    contents: Contents,
}

/// The space of one file.
#[derive(Debug)]
pub(crate) struct Space {
    /// By start; bounds are multiples of 1 MiB.
    free: BTreeMap<u64, Free>,
    /// Starts of those that hold a payload block.
    fitting: BTreeSet<u64>,
    block: u64,
    /// The file's length as it was set.
    length: u64,
    /// The length when the last completed sync began.
    durable: u64,
    /// The end of the highest structure that was ever in use.
    highest: u64,
    begun: u64,
    completed: u64,
}

impl Space {
    /// A file of `length` bytes, all of it durable, whose structures end at `highest`.
    pub(crate) fn new(length: u64, highest: u64, block: u64) -> Self {
        Self {
            free: BTreeMap::new(),
            fitting: BTreeSet::new(),
            block,
            length,
            durable: length,
            highest: mib_ceil(highest).unwrap_or(highest),
            begun: 0,
            completed: 0,
        }
    }

    /// Bytes of a payload block.
    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// Bytes of the file.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// A length of the file that a crash cannot take back.
    pub(crate) fn durable_length(&self) -> u64 {
        self.durable
    }

    /// A length into which every structure fits, those that were given up included.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// Adds free space; its bounds are multiples of 1 MiB.
    pub(crate) fn release(&mut self, range: Range<u64>, contents: Contents) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Space that is free twice would be handed out twice.
        let before = self.free.range(..end).next_back();
        assert!(before.is_none_or(|(_, free)| free.end <= start), "space is released twice");
        let like = |space: &Self, free: &Free| {
            free.contents == contents || (space.proven(free.contents) && space.proven(contents))
        };
        if let Some((&before, free)) = self.free.range(..start).next_back()
            && free.end == start
            && like(self, free)
        {
            self.take(before);
            start = before;
        }
        if let Some(after) = self.free.get(&end).copied()
            && like(self, &after)
        {
            self.take(end);
            end = after.end;
        }
        self.put(start, Free { end, contents });
    }

    /// What was in free space before is not there any more: something was written without its ever
    /// being used.
    pub(crate) fn give_back(&mut self, place: Place) {
        self.release(place.offset..place.end(), Contents::Unknown);
    }

    /// The lowest free space that may hold anything, up to so many bytes: to be punched and released
    /// again, so that it is known to be zeros when it is needed.
    pub(crate) fn take_unknown(&mut self, most: u64) -> Option<Range<u64>> {
        if most == 0 {
            return None;
        }
        let unknown = |free: &Free| free.contents == Contents::Unknown;
        let start = self.free.iter().find(|(_, free)| unknown(free)).map(|(start, _)| *start)?;
        let free = self.take(start)?;
        let end = free.end.min(start.saturating_add(most));
        if end < free.end {
            self.put(end, free);
        }
        Some(start..end)
    }

    /// Space that has just been punched: zeros once a later sync has completed.
    pub(crate) fn punched(&self) -> Contents {
        Contents::ZeroAfter(self.begun)
    }

    /// Space for a payload block, lowest first.
    pub(crate) fn allocate_block(&mut self) -> Option<Place> {
        let start = self.fitting.first().copied()?;
        self.cut(start, self.block)
    }

    /// Space for a payload block that begins before a file offset, lowest first.
    pub(crate) fn allocate_block_below(&mut self, limit: u64) -> Option<Place> {
        let start = self.fitting.first().copied().filter(|start| *start < limit)?;
        self.cut(start, self.block)
    }

    /// Space of any length (a multiple of 1 MiB) that begins before a file offset, lowest first.
    pub(crate) fn allocate_below(&mut self, length: u64, limit: u64) -> Option<Place> {
        let fits = |start: u64, free: &Free| free.end.saturating_sub(start) >= length;
        let mut below = self.free.range(..limit);
        let start = below.find(|(start, free)| fits(**start, free)).map(|(s, _)| *s)?;
        self.cut(start, length)
    }

    /// Space of any length (a multiple of 1 MiB), lowest first.
    pub(crate) fn allocate(&mut self, length: u64) -> Option<Place> {
        let fits = |start: u64, free: &Free| free.end.saturating_sub(start) >= length;
        let start = self.free.iter().find(|(start, free)| fits(**start, free)).map(|(s, _)| *s)?;
        self.cut(start, length)
    }

    /// Joins neighbours whose contents differ, at the price of the better proof: for when nothing
    /// fits although there is room.
    pub(crate) fn coalesce(&mut self) {
        let runs: Vec<(u64, Free)> = std::mem::take(&mut self.free).into_iter().collect();
        self.fitting.clear();
        let mut joined: Option<(u64, Free)> = None;
        for (start, free) in runs {
            joined = Some(match joined {
                Some((first, last)) if last.end == start => {
                    let contents = weaker(last.contents, free.contents);
                    (first, Free { end: free.end, contents })
                }
                Some((first, last)) => {
                    self.put(first, last);
                    (start, free)
                }
                None => (start, free),
            });
        }
        if let Some((first, last)) = joined {
            self.put(first, last);
        }
    }

    /// The length to set so that `need` more bytes are free at the end; `None` when a file cannot be
    /// that long.
    pub(crate) fn length_for(&self, need: u64) -> Option<u64> {
        self.end().checked_add(mib_ceil(need)?).filter(|length| *length <= MAX_FILE_OFFSET)
    }

    /// How far the file should be extended now, so that a block that is needed later finds durable
    /// space; `None` when enough is free. `wanted` is the most that may still be needed.
    pub(crate) fn step_ahead(&self, wanted: u64) -> Option<u64> {
        let step = self.block.saturating_mul(STEP_BLOCKS).clamp(LEAST_STEP, GREATEST_STEP);
        let step = step.min(wanted);
        let free: u64 =
            self.fitting.iter().rev().take(64).map(|start| self.length_at(*start)).sum();
        if free >= step.saturating_add(1) / 2 {
            return None;
        }
        self.length_for(step).filter(|length| *length > self.length)
    }

    /// The file has been extended.
    pub(crate) fn grown(&mut self, length: u64) {
        let start = self.end();
        self.length = length;
        self.release(start..mib_floor(length), Contents::ZeroAfter(0));
    }

    /// A structure lies in this space now, or is about to.
    pub(crate) fn used(&mut self, end: u64) {
        self.highest = self.highest.max(mib_ceil(end).unwrap_or(end));
    }

    /// A sync is about to begin.
    pub(crate) fn begin_sync(&mut self) -> SyncMark {
        self.begun = self.begun.saturating_add(1);
        SyncMark { number: self.begun, length: self.length }
    }

    /// That sync has completed.
    pub(crate) fn end_sync(&mut self, mark: SyncMark) {
        self.completed = self.completed.max(mark.number);
        self.durable = self.durable.max(mark.length.min(self.length));
    }

    /// The end of the file but for the free space there: what it may be cut to.
    pub(crate) fn cut_length(&self) -> u64 {
        // The file may end within a mebibyte: that of a last block that was cut off, and may be free now.
        let (floor, ceiling) = (mib_floor(self.length), mib_ceil(self.length));
        let last = self.free.values().next_back().map(|free| free.end);
        let top = ceiling.filter(|ceiling| last == Some(*ceiling)).unwrap_or(floor);
        let mut end = top;
        for (&start, free) in self.free.iter().rev() {
            if free.end != end {
                break;
            }
            end = start;
        }
        if end == top { self.length } else { end.min(self.length) }
    }

    /// The file has been cut.
    pub(crate) fn truncated(&mut self, length: u64) {
        while let Some((&start, free)) = self.free.range(..).next_back() {
            let end = free.end;
            if end <= length {
                break;
            }
            if let Some(free) = self.take(start)
                && start < length
            {
                self.put(start, Free { end: length, ..free });
            }
        }
        self.length = length;
        self.durable = self.durable.min(length);
        self.highest = self.highest.min(length);
    }

    /// Where new space can start: behind the file, and behind a last block that the file cuts off.
    fn end(&self) -> u64 {
        mib_ceil(self.length).unwrap_or(self.length).max(self.highest)
    }

    fn proven(&self, contents: Contents) -> bool {
        match contents {
            Contents::Unknown => false,
            // Extended by ourselves: shorter or zeros, never anything else.
            Contents::ZeroAfter(0) => true,
            Contents::ZeroAfter(begun) => self.completed > begun,
        }
    }

    fn cut(&mut self, start: u64, length: u64) -> Option<Place> {
        let free = self.take(start)?;
        let end = start.checked_add(length)?;
        if end < free.end {
            self.put(end, free);
        }
        Some(Place {
            offset: start,
            length,
            zero: free.contents != Contents::Unknown,
            proven: self.proven(free.contents),
        })
    }

    fn length_at(&self, start: u64) -> u64 {
        self.free.get(&start).map_or(0, |free| free.end.saturating_sub(start))
    }

    fn put(&mut self, start: u64, free: Free) {
        if free.end.saturating_sub(start) >= self.block {
            self.fitting.insert(start);
        }
        self.free.insert(start, free);
    }

    fn take(&mut self, start: u64) -> Option<Free> {
        self.fitting.remove(&start);
        self.free.remove(&start)
    }
}

fn weaker(one: Contents, other: Contents) -> Contents {
    match (one, other) {
        (Contents::ZeroAfter(one), Contents::ZeroAfter(other)) => {
            Contents::ZeroAfter(one.max(other))
        }
        _ => Contents::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = MIB;

    #[test]
    fn gaps_come_before_the_end_and_are_not_taken_for_zeros() {
        let mut space = Space::new(10 * M, 10 * M, 2 * M);
        space.release(4 * M..7 * M, Contents::Unknown);
        let length = space.length_for(64 * M).unwrap();
        space.grown(length);
        let gap = space.allocate_block().unwrap();
        assert_eq!((gap.offset, gap.zero, gap.proven), (4 * M, false, false));
        let fresh = space.allocate_block().unwrap();
        assert_eq!((fresh.offset, fresh.zero, fresh.proven), (10 * M, true, true));
    }

    /// C9: a hole that was punched in this window may come back after a crash.
    #[test]
    fn a_hole_proves_zeros_only_after_a_sync_begun_later() {
        let mut space = Space::new(20 * M, 20 * M, M);
        let under_way = space.begin_sync();
        space.release(5 * M..6 * M, space.punched());
        space.end_sync(under_way);
        let place = space.allocate_block().unwrap();
        assert_eq!((place.zero, place.proven), (true, false));
        space.release(5 * M..6 * M, space.punched());
        let later = space.begin_sync();
        space.end_sync(later);
        assert!(space.allocate_block().unwrap().proven);
        space.release(5 * M..6 * M, Contents::Unknown);
        assert!(!space.allocate_block().unwrap().zero);
    }

    /// C12c: the length of the file is durable only after a sync that began when it was set.
    #[test]
    fn the_durable_length_follows_the_syncs() {
        let mut space = Space::new(3 * M, 3 * M, M);
        let under_way = space.begin_sync();
        space.grown(67 * M);
        space.end_sync(under_way);
        assert_eq!((space.length(), space.durable_length()), (67 * M, 3 * M));
        let next = space.begin_sync();
        space.end_sync(next);
        assert_eq!(space.durable_length(), 67 * M);
    }

    #[test]
    fn neighbours_join_and_the_free_end_can_be_cut() {
        let mut space = Space::new(10 * M + 512, 10 * M, 4 * M);
        assert_eq!(space.cut_length(), 10 * M + 512);
        space.release(6 * M..8 * M, Contents::Unknown);
        space.release(8 * M..10 * M, Contents::Unknown);
        assert_eq!(space.cut_length(), 6 * M);
        let place = space.allocate_block().unwrap();
        assert_eq!((place.offset, place.length), (6 * M, 4 * M));
        space.give_back(place);
        space.truncated(6 * M);
        assert_eq!((space.length(), space.allocate_block()), (6 * M, None));
    }

    #[test]
    fn unlike_neighbours_join_only_when_nothing_else_fits() {
        let mut space = Space::new(100 * M, 100 * M, 4 * M);
        space.release(10 * M..12 * M, Contents::ZeroAfter(0));
        space.release(12 * M..14 * M, Contents::Unknown);
        assert_eq!(space.allocate_block(), None);
        space.coalesce();
        let place = space.allocate_block().unwrap();
        assert_eq!((place.offset, place.zero), (10 * M, false));
    }

    #[test]
    fn gaps_are_taken_to_be_cleared_a_part_at_a_time() {
        let mut space = Space::new(30 * M, 30 * M, 2 * M);
        space.release(4 * M..6 * M, Contents::ZeroAfter(0));
        space.release(10 * M..20 * M, Contents::Unknown);
        assert_eq!(space.take_unknown(8 * M), Some(10 * M..18 * M));
        assert_eq!(space.take_unknown(8 * M), Some(18 * M..20 * M));
        assert_eq!(space.take_unknown(8 * M), None);
        assert_eq!(space.allocate_block().unwrap().offset, 4 * M);
    }

    #[test]
    fn growth_keeps_one_step_ahead_and_stops_at_what_is_needed() {
        let mut space = Space::new(4 * M, 4 * M, M);
        assert_eq!(space.step_ahead(1 << 40), Some(68 * M));
        space.grown(68 * M);
        assert_eq!(space.step_ahead(1 << 40), None);
        let small = Space::new(4 * M, 4 * M, M);
        assert_eq!(small.step_ahead(3 * M), Some(7 * M));
        assert_eq!(small.step_ahead(0), None);
    }
}
