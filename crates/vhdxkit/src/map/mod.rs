//! From a byte of the virtual disk to a byte of the file: BAT entries, sector bitmaps, block states
//! (MS-VHDX 2.5).
//!
//! `entry` holds the rules about a single BAT entry, `bat` the table with its bounded cache, `walk`
//! the whole table in one sweep, `bitmap` the presence bits of a partially present block.

mod bat;
mod bitmap;
mod entry;
mod walk;

pub(crate) use bat::Bat;
pub(crate) use bitmap::{block_bits, runs};
pub(crate) use entry::{Block, EntryRules};
pub(crate) use walk::{Stretch, walk};
