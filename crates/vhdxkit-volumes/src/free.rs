//! Which bytes are free: ranges in order, that never overlap, in bounded memory.

use std::ops::Range;

use crate::Trouble;
use crate::bytes::zero_runs;

/// So many ranges are kept; that is 64 MiB.
pub(crate) const MOST_RANGES: usize = 4 << 20;

/// The free bytes of a file system, counted from its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreeMap {
    ranges: Vec<Range<u64>>,
    bytes: u64,
}

impl FreeMap {
    /// The ranges, in order. None is empty, no two touch each other.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// How many bytes are free. More than the ranges hold when those had become too many: then the smallest
    /// count as in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first free byte in `range`.
    pub(crate) fn first_within(&self, range: &Range<u64>) -> Option<u64> {
        let next = self.ranges.partition_point(|free| free.end <= range.start);
        let start = self.ranges.get(next)?.start.max(range.start);
        (start < range.end).then_some(start)
    }
}

/// How many units there are, and where: the first unit begins at byte `base`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units {
    pub(crate) base: u64,
    /// Bytes.
    pub(crate) unit: u64,
    pub(crate) count: u64,
}

/// Collects free ranges, in ascending order.
#[derive(Debug)]
pub struct FreeMapBuilder {
    map: FreeMap,
    /// The byte behind the file system.
    end: u64,
    most: usize,
    /// Shorter ranges are left out from now on: there are too many.
    least: u64,
    /// The end of the last range, whether it was kept or not.
    behind: u64,
}

impl FreeMapBuilder {
    /// For a file system of `end` bytes.
    #[must_use]
    pub fn new(end: u64) -> Self {
        Self::with_room_for(end, MOST_RANGES)
    }

    fn with_room_for(end: u64, most: usize) -> Self {
        Self { map: FreeMap::default(), end, most, least: 0, behind: 0 }
    }

    /// Adds a range; one that begins where the last one ends continues it.
    ///
    /// # Errors
    /// It overlaps an earlier one or comes before it, or lies behind the end: the file system contradicts
    /// itself.
    pub fn add(&mut self, range: Range<u64>) -> Result<(), Trouble> {
        if range.is_empty() {
            return Ok(());
        }
        if range.start < self.behind || range.end > self.end {
            return Err(Trouble::damaged(format!(
                "bytes {} to {} are said to be free, behind {} and in a file system of {} bytes",
                range.start, range.end, self.behind, self.end
            )));
        }
        self.map.bytes = self.map.bytes.saturating_add(range.end.saturating_sub(range.start));
        let touches = range.start == self.behind;
        self.behind = range.end;
        match self.map.ranges.last_mut() {
            Some(last) if touches && last.end == range.start => last.end = range.end,
            _ => self.push(range),
        }
        Ok(())
    }

    /// Adds the units whose bits are 0 in a piece of a bitmap that begins with the bit of unit `first`.
    pub(crate) fn add_bitmap(
        &mut self,
        units: Units,
        first: u64,
        piece: &[u8],
    ) -> Result<(), Trouble> {
        let byte = |bit: u64| {
            let number = first.checked_add(bit)?;
            number.checked_mul(units.unit)?.checked_add(units.base)
        };
        for run in zero_runs(piece, units.count.saturating_sub(first)) {
            let range = byte(run.start).zip(byte(run.end)).map(|(start, end)| start..end);
            self.add(range.ok_or_else(|| Trouble::damaged("it reaches over 2^64 bytes"))?)?;
        }
        Ok(())
    }

    fn push(&mut self, range: Range<u64>) {
        let length = |range: &Range<u64>| range.end.saturating_sub(range.start);
        if self.map.ranges.len() >= self.most {
            // Half of the room at least, so that this is rare.
            loop {
                let least = self.least;
                self.map.ranges.retain(|range| length(range) >= least);
                if self.map.ranges.len() <= self.most / 2 {
                    break;
                }
                self.least = least.saturating_mul(2).max(4096);
            }
        }
        // It may grow yet: short ones are dropped when room is needed.
        self.map.ranges.push(range);
    }

    /// What was collected.
    #[must_use]
    pub fn finish(self) -> FreeMap {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one_and_those_that_overlap_are_damage() {
        let mut builder = FreeMapBuilder::new(100);
        for range in [0..10, 10..20, 20..20, 30..40] {
            builder.add(range).unwrap();
        }
        assert!(builder.add(35..50).is_err());
        assert!(builder.add(5..6).is_err());
        assert!(builder.add(90..101).is_err());
        let map = builder.finish();
        assert_eq!((map.ranges(), map.bytes()), (&[0..20, 30..40][..], 30));
    }

    #[test]
    fn too_many_ranges_lose_the_smallest_and_stay_counted() {
        let mut builder = FreeMapBuilder::with_room_for(1 << 40, 20);
        let mut bytes = 0;
        for n in 0..1000u64 {
            let start = n << 20;
            let length = if n % 100 == 0 { 1 << 19 } else { 512 };
            builder.add(start..start + length).unwrap();
            bytes += length;
        }
        let map = builder.finish();
        assert!(map.ranges().len() <= 20);
        assert_eq!(map.bytes(), bytes);
        assert!(map.ranges().iter().any(|range| range.end - range.start == 1 << 19));
    }
}
