//! Who may have a place in the file: claims, best witness first.
//!
//! The file's own tables come before blocks; blocks that a certain witness places come before those of an
//! uncertain one. Of two certain claims on one place at most one is right, and nobody can tell which: the first
//! gets it, as a guess, and the other is lost. So no byte of the file is given out twice, and what is written is
//! never more than what the file holds.

use std::ops::Range;

use crate::Result;
use crate::format::{MIB, mib_floor};
use crate::map::SpaceMap;
use crate::storage::{DataRuns, Storage, StorageExt};

use super::super::progress::{Progress, advance};
use super::super::zeros::is_zero;

/// Claims on the file's space.
pub(super) struct Claims {
    file_size: u64,
    /// The file's own tables.
    tables: SpaceMap,
    /// What certain witnesses name.
    certain: SpaceMap,
    /// Named by two of them.
    contested: SpaceMap,
    /// Named by a witness that may be newer than the table.
    disputed: SpaceMap,
    /// Named by anybody.
    named: SpaceMap,
    /// Given to a block.
    given: SpaceMap,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is granted.
    Granted,
    /// It is granted, and may be wrong.
    Doubtful(&'static str),
    /// It is not.
    Refused(&'static str),
}

impl Claims {
    pub(super) fn new(file_size: u64, tables: &[Range<u64>]) -> Self {
        let map = || SpaceMap::new(file_size);
        let mut claims = Self {
            file_size,
            tables: map(),
            certain: map(),
            contested: map(),
            disputed: map(),
            named: map(),
            given: map(),
        };
        for table in tables {
            let length = table.end.min(file_size).saturating_sub(table.start);
            if length > 0 {
                claims.tables.claim(table.start, length);
                claims.named.claim(table.start, length);
            }
        }
        claims
    }

    /// The part of a place that lies in the file.
    fn inside(&self, place: u64, length: u64) -> u64 {
        length.min(self.file_size.saturating_sub(place))
    }

    /// Notes a place, in a first sweep over all entries.
    pub(super) fn note(&mut self, place: u64, length: u64, is_certain: bool) {
        let length = self.inside(place, length);
        if length == 0 {
            return;
        }
        self.named.claim(place, length);
        if is_certain && self.certain.claim(place, length).is_some() {
            self.contested.claim(place, length);
        }
    }

    /// Notes a place that a witness names which may be newer than the table.
    pub(super) fn dispute(&mut self, place: u64, length: u64) {
        let length = self.inside(place, length);
        if length > 0 {
            self.disputed.claim(place, length);
        }
    }

    /// Whether a structure may be read at a place: it is nobody else's.
    pub(super) fn is_alone(&self, place: u64, length: u64) -> bool {
        !self.tables.owns_any(place, length) && !self.contested.owns_any(place, length)
    }

    /// Asks for a place, in a second sweep.
    pub(super) fn ask(&mut self, place: u64, length: u64, is_certain: bool) -> Claim {
        let length = self.inside(place, length);
        if self.tables.owns_any(place, length) {
            return Claim::Refused("its place is that of the file's own tables");
        }
        if !is_certain && self.certain.owns_any(place, length) {
            return Claim::Refused("a better witness gives its place to another block");
        }
        if self.given.owns_any(place, length) {
            return Claim::Refused("its place was given to another block that claims it too");
        }
        self.given.claim(place, length);
        if self.contested.owns_any(place, length) {
            return Claim::Doubtful("another block claims its place too");
        }
        if self.disputed.owns_any(place, length) {
            return Claim::Doubtful("an entry of the log gives its place to another block");
        }
        Claim::Granted
    }

    /// Runs of mebibytes that hold data and that nobody names.
    pub(super) fn orphans(
        &self,
        storage: &dyn Storage,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut buf = vec![0; 1 << 20];
        for gap in self.named.gaps() {
            let gap = gap.start..gap.end.min(self.file_size);
            let mut next = gap.start;
            for run in DataRuns::new(storage, gap.clone()) {
                let run =
                    run.map_err(|e| crate::Error::io("cannot map the file's holes", gap.start, e))?;
                let mut at = next.max(mib_floor(run.range.start));
                while run.data && at < run.range.end {
                    storage.read_zero_filled(at, &mut buf)?;
                    advance(progress, 0)?;
                    let end = at.saturating_add(MIB);
                    if !is_zero(&buf) {
                        match found.last_mut() {
                            Some(last) if last.end == at => last.end = end,
                            _ => found.push(at..end),
                        }
                    }
                    at = end;
                    next = end;
                }
            }
        }
        Ok(found)
    }

    /// Where blocks of `block` bytes lie if they lie one after another up to the end of the file, behind
    /// everything that is known: `blocks` of them, or as many as fit.
    pub(super) fn in_order(&self, block: u64, blocks: u64) -> Range<u64> {
        let Some(room) = self.named.gaps().pop() else { return 0..0 };
        let length = blocks.saturating_mul(block);
        let start = self.file_size.saturating_sub(length).div_ceil(MIB).saturating_mul(MIB);
        let start = if start > room.start && start < room.end { start } else { room.start };
        start..start.saturating_add(length).min(room.end)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of ranges that happen to hold one.
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn tables_come_first_then_certain_blocks_then_the_others() {
        let mut claims = Claims::new(20 * M, &[0..M, 2 * M..3 * M]);
        claims.note(4 * M, 2 * M, true);
        claims.note(5 * M, 2 * M, false);
        claims.note(8 * M, 2 * M, false);
        claims.note(19 * M, 2 * M, true);
        assert!(matches!(claims.ask(2 * M, 2 * M, true), Claim::Refused(_)));
        assert_eq!(claims.ask(4 * M, 2 * M, true), Claim::Granted);
        assert!(matches!(claims.ask(5 * M, 2 * M, false), Claim::Refused(_)));
        assert_eq!(claims.ask(8 * M, 2 * M, false), Claim::Granted);
        assert_eq!(claims.ask(19 * M, 2 * M, true), Claim::Granted);
    }

    #[test]
    fn a_place_that_two_blocks_claim_goes_to_the_first_and_not_for_certain() {
        let mut claims = Claims::new(20 * M, &[0..M]);
        claims.note(4 * M, 2 * M, true);
        claims.note(5 * M, 2 * M, true);
        assert!(matches!(claims.ask(4 * M, 2 * M, true), Claim::Doubtful(_)));
        assert!(matches!(claims.ask(5 * M, 2 * M, true), Claim::Refused(_)));
    }

    #[test]
    fn what_nobody_names_and_is_not_zero_is_an_orphan() {
        let storage = crate::storage::MemoryStorage::empty();
        storage.set_len(10 * M).unwrap();
        for mib in [4, 5, 8] {
            storage.write_at(mib * M + 77, b"x").unwrap();
        }
        let mut claims = Claims::new(10 * M, &[0..M]);
        claims.note(5 * M, M, true);
        let orphans = claims.orphans(&storage, &mut ()).unwrap();
        assert_eq!(orphans, [4 * M..5 * M, 8 * M..9 * M]);
        assert_eq!(claims.in_order(2 * M, 2), 6 * M..10 * M);
        assert_eq!(claims.in_order(2 * M, 9), 6 * M..10 * M);
        assert_eq!(claims.in_order(M, 3), 7 * M..10 * M);
    }
}
