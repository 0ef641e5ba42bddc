//! Killing a real process that writes, and looking at what it leaves.
//!
//! The worker ([`worker`]) is a process of its own: several threads write, zero, discard and flush on a
//! real file. Before each change it notes in a journal what it is about to do, and after each flush
//! that the flush was answered; the journal lies in the page cache, which survives the process. The
//! parent ([`run`]) kills it at a random moment and judges the file (`verdict`) by the journal. What it is
//! doing then is told by a file that it writes, too (`trace`).

mod journal;
mod run;
pub(crate) mod trace;
pub(crate) mod verdict;
pub mod worker;

pub use run::{Plan, run};
pub use verdict::Report;

/// Bytes of the disk.
pub(crate) const DISK: u64 = 96 << 20;
/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << 20;
/// Threads of the worker; each has the blocks whose number leaves its own as remainder.
pub(crate) const THREADS: u64 = 3;
/// Bytes written at once, aligned to themselves.
pub(crate) const UNIT: u64 = 4096;
/// Units of a block that are used, one at its start, in its middle and at its end.
pub(crate) const UNITS: [u64; 4] = [0, 1, 128, 255];
