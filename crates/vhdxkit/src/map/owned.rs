//! Who owns which mebibyte of the file: one bit each, so that overlaps and leaks of any image show
//! within a known amount of memory (32 MiB for the largest file that is accepted).

use std::ops::Range;

use crate::format::MIB;
use crate::format::limits::MAX_FILE_OFFSET;

/// The mebibytes of a file that somebody owns, those behind its end included.
#[derive(Clone)]
pub(crate) struct SpaceMap {
    owned: Vec<u64>,
    /// Of the file itself.
    mebibytes: u64,
}

impl SpaceMap {
    /// For a file of this length; what lies beyond [`MAX_FILE_OFFSET`] is not mapped.
    pub(crate) fn new(file_size: u64) -> Self {
        let mebibytes = file_size.min(MAX_FILE_OFFSET).div_ceil(MIB);
        let words = usize::try_from(mebibytes.div_ceil(64)).unwrap_or_default();
        Self { owned: vec![0; words], mebibytes }
    }

    /// Takes `length` bytes at `offset` (a multiple of 1 MiB). The value is the first offset that
    /// already had an owner.
    pub(crate) fn claim(&mut self, offset: u64, length: u64) -> Option<u64> {
        let first = offset / MIB;
        let last = offset.saturating_add(length).min(MAX_FILE_OFFSET).div_ceil(MIB);
        let words = usize::try_from(last.div_ceil(64)).unwrap_or_default();
        if words > self.owned.len() {
            self.owned.resize(words, 0);
        }
        let mut clash = None;
        for number in first..last {
            let word = usize::try_from(number / 64).ok().and_then(|word| self.owned.get_mut(word));
            let (Some(word), Some(bit)) = (word, 1u64.checked_shl(low_bits(number))) else { break };
            if *word & bit != 0 && clash.is_none() {
                clash = number.checked_mul(MIB);
            }
            *word |= bit;
        }
        clash
    }

    /// The runs of bytes that nobody owns, in order.
    pub(crate) fn gaps(&self) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        self.for_each_gap(|gap| gaps.push(gap));
        gaps
    }

    /// Calls `visit` with each of them. There may be many.
    pub(crate) fn for_each_gap(&self, mut visit: impl FnMut(Range<u64>)) {
        let mut gap: Option<Range<u64>> = None;
        // Files are mostly full: 64 mebibytes at a time are passed by.
        let open = (0u64..).step_by(64).zip(&self.owned).filter(|(_, word)| **word != u64::MAX);
        let numbers = open.flat_map(|(first, _)| first..first.saturating_add(64));
        let unowned = numbers
            .take_while(|&number| number < self.mebibytes)
            .filter(|&number| !self.is_owned(number));
        for number in unowned {
            let start = number.saturating_mul(MIB);
            let end = start.saturating_add(MIB);
            match &mut gap {
                Some(gap) if gap.end == start => gap.end = end,
                _ => {
                    if let Some(done) = gap.replace(start..end) {
                        visit(done);
                    }
                }
            }
        }
        gap.into_iter().for_each(visit);
    }

    /// Whether any mebibyte of a range has an owner.
    pub(crate) fn owns_any(&self, offset: u64, length: u64) -> bool {
        let last = offset.saturating_add(length).min(MAX_FILE_OFFSET).div_ceil(MIB);
        (offset / MIB..last).any(|number| self.is_owned(number))
    }

    /// The first mebibyte at `offset` or behind it that has an owner.
    pub(crate) fn next_owned(&self, offset: u64) -> Option<u64> {
        let first = offset / MIB;
        let words = self.owned.iter().enumerate().skip(usize::try_from(first / 64).ok()?);
        let mut words = words.map(|(at, word)| (u64::try_from(at).unwrap_or(u64::MAX), *word));
        let (at, word) = words.next()?;
        let left = word & u64::MAX.checked_shl(low_bits(first)).unwrap_or_default();
        let (at, word) = match left {
            0 => words.find(|(_, word)| *word != 0)?,
            left => (at, left),
        };
        at.checked_mul(64)?.checked_add(u64::from(word.trailing_zeros()))?.checked_mul(MIB)
    }

    fn is_owned(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.owned.get(word));
        let bit = 1u64.checked_shl(low_bits(number)).unwrap_or_default();
        word.is_some_and(|word| word & bit != 0)
    }

    /// Bytes of the file that nobody owns.
    pub(crate) fn unowned(&self) -> u64 {
        let mut bytes = 0u64;
        self.for_each_gap(|gap| bytes = bytes.saturating_add(gap.end.saturating_sub(gap.start)));
        bytes
    }
}

fn low_bits(number: u64) -> u32 {
    u32::try_from(number % 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_and_unowned_space_show() {
        let mut space = SpaceMap::new(200 * MIB + 512);
        assert_eq!(space.unowned(), 201 * MIB);
        assert_eq!(space.claim(0, MIB), None);
        assert_eq!(space.claim(60 * MIB, 10 * MIB), None);
        assert_eq!(space.claim(58 * MIB, 3 * MIB), Some(60 * MIB));
        assert_eq!(space.claim(199 * MIB, 64 * MIB), None);
        assert_eq!(space.unowned(), (201 - 1 - 12 - 2) * MIB);
        assert_eq!(space.gaps(), [MIB..58 * MIB, 70 * MIB..199 * MIB]);
        let found = [0, MIB, 59 * MIB, 70 * MIB, 263 * MIB - 1];
        let owned = found.map(|at| space.next_owned(at).map(|at| at / MIB));
        assert_eq!(owned, [Some(0), Some(58), Some(59), Some(199), Some(262)]);
        assert_eq!(space.next_owned(263 * MIB), None);
        // Behind the end of the file, too.
        assert_eq!(space.claim(262 * MIB, 9 * MIB), Some(262 * MIB));
        assert_eq!(space.claim(900 * MIB, MIB), None);
        assert_eq!(space.claim(900 * MIB, MIB), Some(900 * MIB));
        assert_eq!(space.gaps(), [MIB..58 * MIB, 70 * MIB..199 * MIB]);
    }
}
