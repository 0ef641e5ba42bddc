//! A range of a medium as alternating runs of data and holes, so that a copy need not read zeros.

use std::io;
use std::ops::Range;

use super::Storage;

/// A part of a medium that is all data or all hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Bytes.
    pub(crate) range: Range<u64>,
    /// Whether it has to be read; otherwise it is known to be zeros.
    pub(crate) data: bool,
}

/// The [`Run`]s of a range, in order, without gaps, data and holes taking turns. What lies beyond
/// the medium's end is hole. After an error the iterator ends.
pub(crate) struct DataRuns<'a> {
    storage: &'a dyn Storage,
    at: u64,
    end: u64,
    /// The answer to a question that was asked for the previous run.
    ahead: Option<Range<u64>>,
}

impl<'a> DataRuns<'a> {
    /// Divides `range` of `storage`.
    pub(crate) fn new(storage: &'a dyn Storage, range: Range<u64>) -> Self {
        Self { storage, at: range.start, end: range.end, ahead: None }
    }

    /// The first data at or after `at`, cut to the range; empty at its end when there is none.
    fn ask(&self, at: u64) -> io::Result<Range<u64>> {
        Ok(match self.storage.next_data(at)? {
            Some(found) if found.start < self.end => {
                let start = found.start.max(at);
                // A medium that gives an answer without an extent must not keep us here for ever:
                // then all of it is data.
                let end = if found.end > start { found.end.min(self.end) } else { self.end };
                start..end
            }
            _ => self.end..self.end,
        })
    }

    fn next_run(&mut self) -> io::Result<Run> {
        let found = match self.ahead.take() {
            Some(found) => found,
            None => self.ask(self.at)?,
        };
        if found.start > self.at {
            let range = self.at..found.start;
            self.ahead = Some(found);
            return Ok(Run { range, data: false });
        }
        let mut end = found.end;
        while end < self.end {
            let more = self.ask(end)?;
            if more.start > end {
                self.ahead = Some(more);
                break;
            }
            end = more.end;
        }
        Ok(Run { range: self.at..end, data: true })
    }
}

impl Iterator for DataRuns<'_> {
    type Item = io::Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let run = self.next_run();
        self.at = run.as_ref().map_or(self.end, |run| run.range.end);
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStorage;
    use super::*;

    fn runs(storage: &dyn Storage, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        DataRuns::new(storage, range).map(|run| run.map(|r| (r.range, r.data)).unwrap()).collect()
    }

    #[test]
    fn runs_take_turns_and_cover_the_range() {
        let storage = MemoryStorage::empty();
        storage.set_len(10 << 20).unwrap();
        storage.write_at(1 << 20, &[1; 1 << 17]).unwrap();
        storage.write_at(9 << 20, &[1]).unwrap();
        let (first, second) = (1 << 20..(1 << 20) + (1 << 17), 9 << 20..(9 << 20) + (1 << 16));
        assert_eq!(
            runs(&storage, 0..20 << 20),
            [
                (0..first.start, false),
                (first.clone(), true),
                (first.end..second.start, false),
                (second.clone(), true),
                (second.end..20 << 20, false),
            ]
        );
        assert_eq!(
            runs(&storage, first.start + 5..first.start + 7),
            [(first.start + 5..first.start + 7, true)]
        );
        assert_eq!(runs(&storage, 7..7), []);
        assert_eq!(runs(&storage, 30 << 20..31 << 20), [(30 << 20..31 << 20, false)]);
    }

    /// Answers in steps of one byte, or without an extent, or not at all.
    struct Odd(fn(u64) -> io::Result<Option<Range<u64>>>);

    impl Storage for Odd {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(100)
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, _: Range<u64>) -> io::Result<()> {
            Ok(())
        }
        fn allocate(&self, _: Range<u64>) -> io::Result<()> {
            Ok(())
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            (self.0)(offset)
        }
    }

    #[test]
    fn touching_pieces_are_one_run() {
        let storage = Odd(|at| Ok((at < 100).then_some(at..at + 1)));
        assert_eq!(runs(&storage, 0..150), [(0..100, true), (100..150, false)]);
    }

    #[test]
    fn an_answer_without_extent_does_not_hang() {
        assert_eq!(runs(&Odd(|at| Ok(Some(at..at))), 0..150), [(0..150, true)]);
    }

    #[test]
    fn an_error_ends_the_iteration() {
        let storage = Odd(|_| Err(io::Error::other("broken")));
        let mut runs = DataRuns::new(&storage, 0..10);
        assert!(runs.next().unwrap().is_err());
        assert!(runs.next().is_none());
    }
}
