//! What a file system keeps its own books in must be in use, by those very books.

use std::ops::Range;

use crate::{FreeMap, Trouble};

/// Bytes that hold a file system's own structures, gathered while they are read.
#[derive(Debug, Default)]
pub(crate) struct Own {
    places: Vec<(Range<u64>, &'static str)>,
}

impl Own {
    /// `what` lies in these bytes, counted from the file system's start.
    pub(crate) fn add(&mut self, what: &'static str, range: Range<u64>) {
        if !range.is_empty() {
            self.places.push((range, what));
        }
    }

    /// Two structures in one place, or one in a place that is said to be free: a map that goes in circles,
    /// or a bitmap that is not this file system's.
    pub(crate) fn judge(mut self, free: &FreeMap) -> Result<(), Trouble> {
        self.places.sort_by_key(|(range, _)| (range.start, range.end));
        let pairs = self.places.iter().zip(self.places.iter().skip(1));
        for ((earlier, first), (later, second)) in pairs {
            if later.start < earlier.end {
                let at = later.start;
                return Err(Trouble::damaged(format!("{first} and {second} both lie at {at}")));
            }
        }
        for (range, what) in &self.places {
            if let Some(at) = free.first_within(range) {
                return Err(Trouble::damaged(format!(
                    "{what} lies at {at}, which is said to be free"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FreeMapBuilder;

    #[test]
    fn what_is_free_or_taken_twice_is_found() {
        let mut builder = FreeMapBuilder::new(100);
        builder.add(20..30).unwrap();
        builder.add(50..60).unwrap();
        let free = builder.finish();
        let judge = |ranges: &[Range<u64>]| {
            let mut own = Own::default();
            ranges.iter().for_each(|range| own.add("it", range.clone()));
            own.judge(&free).is_ok()
        };
        assert!(judge(&[]));
        assert!(judge(&[30..50, 0..10, 10..20, 60..100, 5..5]));
        assert!(!judge(&[0..10, 9..20]));
        assert!(!judge(&[0..20, 3..4]));
        for free in [0..21, 29..31, 22..23, 0..100, 59..70] {
            assert!(!judge(std::slice::from_ref(&free)), "{free:?}");
        }
    }
}
