//! Metadata contexts: what a client can ask about a range of an export without reading it.

use std::ops::ControlFlow;

use vhdxkit::ExtentState;

use crate::{Export, Run};

use super::protocol::allocation;

/// A context, by the number that we give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Context {
    /// `base:allocation`: whether a range has its own place, and whether it reads as zeros.
    Allocation = 1,
    /// `vhdx:state`: what the image says of a range. 0 data, 1 zero, 2 never written, 3 given back by the
    /// guest, 4 contents do not matter. All but 0 read as zeros.
    State = 2,
    /// `vhdx:depth`: which image of the chain decides, 0 for the one that is served.
    Depth = 3,
}

impl Context {
    pub(super) const ALL: [Self; 3] = [Self::Allocation, Self::State, Self::Depth];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::State => "vhdx:state",
            Self::Depth => "vhdx:depth",
        }
    }

    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// Those that a query of a list means: one by its name, or all of a namespace.
    pub(super) fn listed(query: &str) -> impl Iterator<Item = Self> {
        let all_of = query.ends_with(':');
        Self::ALL.into_iter().filter(move |context| match all_of {
            true => context.name().starts_with(query),
            false => context.name() == query,
        })
    }

    fn flags(self, run: &Run) -> u32 {
        match self {
            Self::Allocation => {
                let hole = run.hole || run.state != ExtentState::Data;
                let hole = if hole { allocation::HOLE } else { 0 };
                hole | if run.is_zero() { allocation::ZERO } else { 0 }
            }
            Self::State => match run.state {
                ExtentState::Data | ExtentState::ParentMissing => 0,
                ExtentState::Zero => 1,
                ExtentState::NotPresent => 2,
                ExtentState::Unmapped => 3,
                ExtentState::Undefined => 4,
            },
            Self::Depth => run.depth,
        }
    }
}

/// A run of a range that is all the same to a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) length: u64,
    pub(super) flags: u32,
}

/// So many runs are told at most in one reply; the client asks again for the rest.
pub(super) const MOST_TOLD: usize = 4 << 10;
/// So many are looked at for one reply, however few come of them, and so many blocks.
const MOST_SEEN: usize = 64 << 10;
const MOST_BLOCKS: u64 = 64 << 10;

/// What one context says of a range, from its start on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) context: Context,
    pub(super) list: Vec<Status>,
    /// Something was left out: nothing behind it may be told.
    closed: bool,
}

impl Row {
    fn new(context: Context) -> Self {
        Self { context, list: Vec::new(), closed: false }
    }

    fn append(&mut self, run: &Run, most: usize) {
        let flags = self.context.flags(run);
        let has_room = self.list.len() < most;
        match self.list.last_mut() {
            _ if self.closed => {}
            Some(last) if last.flags == flags => last.length += run.length,
            _ if has_room => self.list.push(Status { length: run.length, flags }),
            _ => self.closed = true,
        }
    }
}

/// What the contexts say of a range that lies inside of the export. A row may end before the range does,
/// but covers some of it.
pub(super) fn statuses(
    export: &Export,
    contexts: &[Context],
    range: std::ops::Range<u64>,
    only_one: bool,
) -> vhdxkit::Result<Vec<Row>> {
    let most = if only_one { 1 } else { MOST_TOLD };
    let mut rows: Vec<Row> = contexts.iter().map(|context| Row::new(*context)).collect();
    let mut seen = 0usize;
    let block = u64::from(export.disk().image().geometry().block_size());
    let end = range.end.min(range.start.saturating_add(MOST_BLOCKS * block));
    export.runs(range.start..end, |run| {
        rows.iter_mut().for_each(|row| row.append(&run, most));
        seen += 1;
        match seen < MOST_SEEN && rows.iter().any(|row| !row.closed) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, state: ExtentState, hole: bool) -> Run {
        Run { start, length: 4096, state, depth: 0, hole }
    }

    /// What lies behind a run that was left out must not be counted to the one before it.
    #[test]
    fn a_row_ends_where_something_is_left_out() {
        let mut row = Row::new(Context::Allocation);
        let states = [ExtentState::Data, ExtentState::Data, ExtentState::Zero, ExtentState::Data];
        for (at, state) in states.into_iter().enumerate() {
            row.append(&run(at as u64 * 4096, state, false), 1);
        }
        assert_eq!(row.list, [Status { length: 8192, flags: 0 }]);
    }

    #[test]
    fn a_hole_of_the_file_reads_as_zeros_and_has_no_place() {
        let flags = |state, hole| Context::Allocation.flags(&run(0, state, hole));
        assert_eq!(flags(ExtentState::Data, false), 0);
        for (state, hole) in [
            (ExtentState::Data, true),
            (ExtentState::Zero, false),
            (ExtentState::NotPresent, false),
        ] {
            assert_eq!(flags(state, hole), allocation::HOLE | allocation::ZERO);
        }
    }

    #[test]
    fn queries_name_one_context_or_a_namespace() {
        let names = |query| Context::listed(query).map(Context::name).collect::<Vec<_>>();
        assert_eq!(names("base:allocation"), ["base:allocation"]);
        assert_eq!(names("vhdx:"), ["vhdx:state", "vhdx:depth"]);
        assert_eq!(names("vhdx:st"), [""; 0]);
        assert_eq!(names("qemu:dirty-bitmap:x"), [""; 0]);
    }
}
