//! The kinds of workloads, and which ones each has.

use clap::ValueEnum;
use vhdxkit_testkit::random::mix;

use crate::start::Start;
use crate::workload::{self, Operation, Workload};

/// A kind of workload; figures are kept for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Class {
    /// Up to four operations on an empty disk.
    Fresh,
    /// Up to four operations where free space holds foreign bytes.
    Recycled,
    /// Up to four operations on a fixed disk.
    Fixed,
    /// Up to four operations around the first sector bitmap entry.
    Border,
    /// Up to four operations with changes of size.
    Resize,
    /// Up to four operations when the log is almost full.
    Epoch,
    /// Hundreds of operations, several epochs of the log.
    Long,
    /// Crashes of the recovery of all of the above.
    #[value(skip)]
    Recovery,
    /// Making an image.
    Create,
    /// Up to four operations on a child.
    Child,
    /// Likewise, where free space holds foreign bytes.
    ChildRecycled,
    /// Likewise, around the entry of a sector bitmap.
    ChildBorder,
    /// Likewise, with changes of size.
    ChildResize,
    /// Hundreds of operations on children.
    ChildLong,
    /// Making a child.
    ChildCreate,
    /// Merging a child into its parent, after up to four operations on it.
    Merge,
    /// Repairing each fault that can be mended, and undoing that.
    Repair,
    /// Changes of metadata items, of a child's way to its parent among them.
    Items,
    /// Giving space back, after up to four operations.
    Compact,
    /// Likewise, of a child.
    ChildCompact,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Fresh,
        Self::Recycled,
        Self::Fixed,
        Self::Border,
        Self::Resize,
        Self::Epoch,
        Self::Long,
        Self::Recovery,
        Self::Create,
        Self::Child,
        Self::ChildRecycled,
        Self::ChildBorder,
        Self::ChildResize,
        Self::ChildLong,
        Self::ChildCreate,
        Self::Merge,
        Self::Repair,
        Self::Items,
        Self::Compact,
        Self::ChildCompact,
    ];

    /// For the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh: up to 4 operations",
            Self::Recycled => "recycled: foreign bytes in free space",
            Self::Fixed => "fixed disk",
            Self::Border => "border: blocks around a sector bitmap entry",
            Self::Resize => "resize: grow, shrink, move the table",
            Self::Epoch => "epoch: the log is almost full",
            Self::Long => "long: several epochs of the log",
            Self::Recovery => "recovery crashed again (depth two)",
            Self::Create => "create",
            Self::Child => "child: up to 4 operations",
            Self::ChildRecycled => "child, foreign bytes in free space",
            Self::ChildBorder => "child, blocks of two sector bitmaps",
            Self::ChildResize => "child, grow and shrink",
            Self::ChildLong => "child, several epochs of the log",
            Self::ChildCreate => "create a child",
            Self::Merge => "merge a child, two files",
            Self::Repair => "repair, and undoing it",
            Self::Items => "metadata items: relink, identity",
            Self::Compact => "compact",
            Self::ChildCompact => "compact a child",
        }
    }

    fn start(self) -> Start {
        match self {
            Self::Recycled => Start::Recycled,
            Self::Fixed => Start::Fixed,
            Self::Border => Start::Border,
            Self::Child => Start::Child,
            Self::ChildRecycled => Start::ChildRecycled,
            Self::ChildBorder => Start::ChildBorder,
            Self::ChildResize => Start::ChildResize,
            _ => Start::Fresh,
        }
    }

    /// Workload number `index`; `None` behind the last.
    #[must_use]
    pub fn workload(self, index: usize, seed: u64) -> Option<Workload> {
        match self {
            Self::Fresh | Self::Recycled | Self::Fixed | Self::Border => {
                let start = self.start();
                let operations = sequence(&workload::alphabet(start), index, 4)?;
                Some(Workload { start, commits: 0, operations })
            }
            Self::Resize => {
                // With a commit before, a replay writes to the table that is about to move away.
                let start = self.start();
                let operations = sequence(&workload::resizes(start), index / 2, 4)?;
                Some(Workload { start, commits: index % 2, operations })
            }
            Self::Child | Self::ChildRecycled | Self::ChildBorder => {
                let start = self.start();
                Some(flushed(start, &workload::alphabet(start), index))
            }
            Self::ChildResize => {
                let start = self.start();
                Some(flushed(start, &workload::resizes(start), index))
            }
            Self::Merge => {
                let starts = [Start::Child, Start::ChildResize, Start::ChildRecycled];
                let start = starts[index % 3];
                let mut alphabet = match start {
                    Start::ChildResize => workload::resizes(start),
                    _ => workload::alphabet(start),
                };
                // The parent becomes this disk, items and all.
                alphabet.extend([Operation::DiskId, Operation::PhysicalSectorSize]);
                Some(flushed(start, &alphabet, index / 3))
            }
            Self::Items => {
                let start = [Start::Child, Start::ChildRecycled, Start::Fresh][index % 3];
                Some(flushed(start, &workload::items(start), index / 3))
            }
            Self::Compact => {
                let starts =
                    [Start::Fresh, Start::Recycled, Start::Fresh, Start::Border, Start::Enlarged];
                Some(compacted(starts[index % 5], index / 5))
            }
            Self::ChildCompact => {
                let starts =
                    [Start::Child, Start::ChildRecycled, Start::ChildResize, Start::ChildBorder];
                Some(compacted(starts[index % 4], index / 4))
            }
            Self::Epoch => {
                let start = [Start::Recycled, Start::Fresh][index % 2];
                // 126 entries of two sectors fill a log of 256 sectors. Each operation meets each of them.
                let (commits, index) = (123 + index / 2 % 4, index / 8);
                let operations = sequence(&workload::at_the_end_of_an_epoch(), index, 4)?;
                Some(Workload { start, commits, operations })
            }
            Self::Long => {
                let starts = [Start::Recycled, Start::Fresh, Start::Border, Start::Fixed];
                Some(long(starts[index % 4], index, seed))
            }
            Self::ChildLong => {
                let starts = [Start::ChildRecycled, Start::Child, Start::ChildBorder];
                Some(long(starts[index % 3], index, seed))
            }
            Self::Recovery | Self::Create | Self::ChildCreate | Self::Repair => None,
        }
    }
}

/// Two to four operations, and space given back. What was cut short is used again by those that come after
/// an earlier compaction.
fn compacted(start: Start, index: usize) -> Workload {
    let alphabet = workload::compactions(start);
    let mut operations = numbered(&alphabet, index / 3, 2 + index % 3);
    operations.push(Operation::Compact);
    Workload { start, commits: index % 2, operations }
}

fn long(start: Start, index: usize, seed: u64) -> Workload {
    let seed = mix(seed ^ index as u64);
    workload::long(start, seed, 25 + (seed % 376) as usize)
}

/// One operation, then sequences of two and three in turn, each with a flush, which is where a child's bits
/// and bytes have to be in order. Every other one follows a commit: the first entry of a session counts
/// only after a sync of its own, which makes payload durable whether it had to be or not.
fn flushed(start: Start, alphabet: &[Operation], index: usize) -> Workload {
    let (commits, index) = (index % 2, index / 2);
    let mut operations = match index.checked_sub(alphabet.len()) {
        None => numbered(alphabet, index, 1),
        Some(index) => numbered(alphabet, index / 2, 2 + index % 2),
    };
    operations.push(Operation::Flush);
    Workload { start, commits, operations }
}

/// Sequence number `index` over an alphabet: all of one operation, then all of two, and so on to
/// `longest`. A step through them that visits similar ones far apart.
fn sequence(alphabet: &[Operation], index: usize, longest: usize) -> Option<Vec<Operation>> {
    let n = alphabet.len();
    let (mut index, mut length, mut count) = (index, 1, n);
    while index >= count {
        index -= count;
        length += 1;
        count *= n;
        if length > longest {
            return None;
        }
    }
    Some(numbered(alphabet, index, length))
}

/// Sequence number `index` of those of one length, the first one again behind the last.
fn numbered(alphabet: &[Operation], index: usize, length: usize) -> Vec<Operation> {
    let n = alphabet.len();
    // A number that shares no factor with any power of n below 20 visits each once.
    let mut index = index * 7919 % n.pow(length as u32);
    let mut operations = Vec::new();
    for _ in 0..length {
        operations.push(alphabet[index % n]);
        index /= n;
    }
    operations
}
