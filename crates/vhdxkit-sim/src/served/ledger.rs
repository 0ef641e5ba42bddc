//! What was sent to a server and what was answered, and what the disk may hold because of it.
//!
//! Each message gets a tick of one clock: a request just before it is sent, a reply just after it has come.
//! So one operation came after another for certain if it was sent at a later tick than the other was
//! answered at; all others may have been carried out in either order. An operation is durable if it was
//! answered and had FUA, or if a flush was answered that was sent after the operation had been answered.
//!
//! A sector may then hold what an operation wrote, unless a durable one came after it for certain.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::kill::verdict::Allowed;
use crate::kill::{BLOCK, UNIT};
use crate::model::SECTOR;

/// What an operation does to its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Writes this version; zero for zeros.
    Put(u64),
    /// Leaves zeros, or leaves all as it is.
    MayZero,
}

#[derive(Debug)]
struct Operation {
    range: Range<u64>,
    deed: Deed,
    fua: bool,
    sent: u64,
    answered: Option<u64>,
    durable: bool,
}

/// The ledger of one server's life.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    clock: u64,
    operations: Vec<Operation>,
    /// By the start of a unit, those that cover it.
    units: BTreeMap<u64, Vec<usize>>,
    /// What each sector held before.
    before: BTreeMap<u64, u64>,
}

impl Ledger {
    /// Begins with a disk that holds this.
    pub(super) fn new(before: &Allowed) -> Self {
        let newest = |versions: &Vec<u64>| versions.last().copied().unwrap_or(0);
        let before: BTreeMap<_, _> = before.iter().map(|(at, all)| (*at, newest(all))).collect();
        let units = before.keys().filter(|at| at.is_multiple_of(UNIT));
        let units = units.map(|at| (*at, Vec::new())).collect();
        Self { units, before, ..Self::default() }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Now.
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    /// An operation is about to be sent. Returns its number.
    pub(super) fn send(&mut self, range: Range<u64>, deed: Deed, fua: bool) -> usize {
        let sent = self.tick();
        let number = self.operations.len();
        for (_, list) in self.units.range_mut(range.clone()) {
            list.push(number);
        }
        let (answered, durable) = (None, false);
        self.operations.push(Operation { range, deed, fua, sent, answered, durable });
        number
    }

    /// A flush or a read is about to be sent. Returns when.
    pub(super) fn ask(&mut self) -> u64 {
        self.tick()
    }

    /// An operation was answered.
    pub(super) fn answer(&mut self, number: usize) {
        let now = self.tick();
        let operation = &mut self.operations[number];
        operation.answered = Some(now);
        operation.durable |= operation.fua;
    }

    /// A flush was answered that was sent then.
    pub(super) fn flushed(&mut self, sent: u64) {
        self.tick();
        for operation in &mut self.operations {
            operation.durable |= operation.answered.is_some_and(|answered| answered < sent);
        }
    }

    /// Operations that are durable.
    pub(super) fn durable(&self) -> u64 {
        self.operations.iter().filter(|operation| operation.durable).count() as u64
    }

    /// Operations that were answered, durable or not.
    pub(super) fn answered(&self) -> u64 {
        self.operations.iter().filter(|operation| operation.answered.is_some()).count() as u64
    }

    /// What the sectors of a unit may hold, if operations for which `binding` holds cannot be undone.
    fn versions(&self, unit: u64, binding: impl Fn(&Operation) -> bool) -> BTreeMap<u64, Vec<u64>> {
        let here = || self.units[&unit].iter().map(|number| &self.operations[*number]);
        let put = |operation: &Operation| matches!(operation.deed, Deed::Put(_));
        let bound: Vec<_> = here().filter(|o| binding(o) && put(o)).collect();
        let kept = |answered: Option<u64>| {
            answered.is_none_or(|answered| bound.iter().all(|later| later.sent <= answered))
        };
        let mut versions: Vec<u64> = here()
            .filter(|operation| kept(operation.answered))
            .map(|operation| match operation.deed {
                Deed::Put(version) => version,
                Deed::MayZero => 0,
            })
            .collect();
        versions.dedup();
        let sectors = self.before.range(unit..unit + UNIT);
        let with_before = |(at, before): (&u64, &u64)| {
            let before = kept(Some(0)).then_some(*before);
            (*at, before.into_iter().chain(versions.iter().copied()).collect())
        };
        sectors.map(with_before).collect()
    }

    /// What every sector may hold now that the server is dead.
    pub(super) fn allowed(&self) -> Allowed {
        let units = self.units.keys();
        units.flat_map(|unit| self.versions(*unit, |operation| operation.durable)).collect()
    }

    /// What a read of a unit may have shown that was sent then, and was answered now: what was answered
    /// before it was sent is there.
    pub(super) fn readable(&self, unit: u64, sent: u64) -> Vec<Vec<u64>> {
        let there = |o: &Operation| o.answered.is_some_and(|answered| answered < sent);
        let sectors = self.versions(unit, there);
        debug_assert_eq!(sectors.len() as u64, UNIT / SECTOR);
        sectors.into_values().collect()
    }

    /// What an operation was, for a complaint.
    pub(super) fn describe(&self, number: usize) -> String {
        let operation = &self.operations[number];
        let (block, rest) = (operation.range.start / BLOCK, operation.range.start % BLOCK);
        format!("{:?} at block {block} + {rest:#x}, fua {}", operation.deed, operation.fua)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill::verdict::all_zeros;

    fn first(ledger: &Ledger) -> Vec<u64> {
        ledger.allowed()[&0].clone()
    }

    /// The story of promise 2: only an answered flush that was sent after the answer binds.
    #[test]
    fn a_flush_binds_what_was_answered_before_it_was_sent() {
        let mut ledger = Ledger::new(&all_zeros());
        let early = ledger.send(0..UNIT, Deed::Put(7), false);
        let flush = ledger.ask();
        ledger.answer(early);
        ledger.flushed(flush);
        assert_eq!(first(&ledger), [0, 7], "the flush was sent before the answer");
        let flush = ledger.ask();
        assert_eq!(first(&ledger), [0, 7], "the flush is not answered");
        ledger.flushed(flush);
        assert_eq!(first(&ledger), [7]);
        let rewrite = ledger.send(0..UNIT, Deed::Put(8), true);
        assert_eq!(first(&ledger), [7, 8]);
        ledger.answer(rewrite);
        assert_eq!(first(&ledger), [8], "it had FUA");
    }

    /// Two writes to one place at the same time: the server chooses, whichever is durable.
    #[test]
    fn what_was_under_way_together_may_come_in_either_order() {
        let mut ledger = Ledger::new(&all_zeros());
        let one = ledger.send(0..UNIT, Deed::Put(1), false);
        let two = ledger.send(0..UNIT, Deed::Put(2), true);
        ledger.answer(two);
        ledger.answer(one);
        assert_eq!(first(&ledger), [1, 2]);
        let flush = ledger.ask();
        let three = ledger.send(0..BLOCK, Deed::Put(0), false);
        ledger.flushed(flush);
        ledger.answer(three);
        assert_eq!(first(&ledger), [1, 2, 0]);
        assert_eq!(ledger.readable(0, ledger.now() + 1)[0], [0]);
    }

    #[test]
    fn a_trim_of_a_part_binds_nothing() {
        let mut ledger = Ledger::new(&all_zeros());
        let write = ledger.send(0..UNIT, Deed::Put(1), true);
        ledger.answer(write);
        let trim = ledger.send(0..UNIT, Deed::MayZero, true);
        ledger.answer(trim);
        assert_eq!(first(&ledger), [1, 0]);
        let write = ledger.send(0..UNIT, Deed::Put(2), true);
        ledger.answer(write);
        assert_eq!(first(&ledger), [2]);
    }
}
