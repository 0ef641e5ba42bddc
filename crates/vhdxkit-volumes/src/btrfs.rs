//! btrfs on a single device.
//!
//! Space is given out twice: the device to chunks, each a range of logical addresses that lies in one or,
//! with the profile DUP, in two places; and the logical addresses of a chunk to extents. The chunk tree
//! tells the first, the extent tree the second. Free is what no chunk takes, and in each chunk what no extent
//! takes, at all of its places; never the first mebibyte, which btrfs leaves to boot loaders, and never the
//! copies of the superblock.
//!
//! Neither tree is believed alone. Chunks must be what the device tree has given out, in the same places;
//! each must have its block group, whose count of used bytes must be that of its extents; their sum must be
//! the superblock's; and every node that was read on the way must lie in an extent itself. A node must have its
//! checksum, be where, what and as old as its parent says, begin with the key by which it was found, and end
//! before the next one. So no walk meets a node twice, and none goes deeper than eight levels.
//!
//! **When it is clean.** btrfs has no mark of being mounted and needs none to be whole: it writes nothing
//! over what the superblock reaches, and only the next superblock, written after all that it reaches, gives
//! the old space up. What the extent tree of this superblock calls free is therefore reached by nothing that a
//! mount would read, with one exception: the log tree. An fsync writes it, with nodes and data that the extent
//! tree knows nothing of, and the next mount replays it. So `log_root` must be zero, as every commit and
//! every unmount leave it. Beyond that we want that the file system has met no error, and that no other copy
//! of the superblock is newer: such a one would be preferred by whoever repairs.
//!
//! The superblock also remembers up to four earlier roots. Their nodes may be free by now: btrfs itself writes
//! over them, or trims them, whenever it likes, so nobody can count on them, and they are not kept.
//!
//! What cannot be seen is a guest that sleeps with this file system mounted: it may have given space out in its
//! memory only. Whoever frees space must know that no such memory is kept.
//!
//! **What stands on what.** [`names`], [`superblock`], [`chunks`] (where an address lies, as far as the superblock
//! tells), [`tree`] (reads nodes by chunks); above them [`chunk_tree`] (all chunks) and [`extents`].

mod chunk_tree;
mod chunks;
mod extents;
mod names;
mod superblock;
mod tree;

use std::ops::Range;

use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};
use chunks::{Chunk, Chunks};
use names::{BLOCK_GROUP_TREE, DEVICE_TREE, EXTENT_TREE, Key, Root};
use superblock::{COPIES, Superblock};
use tree::Reader;

/// Bytes at the start of the device that btrfs gives to nobody.
const RESERVED: u64 = 1 << 20;

/// Type of the item that says where a tree's root is.
const ROOT_ITEM: u8 = 132;

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let superblock = Superblock::read(window)?;
    let mut reader = Reader::new(window, &superblock, Chunks::of_system(&superblock)?);
    let chunks = chunk_tree::read(&mut reader)?;
    let of_system = reader.learn(chunks);
    reader.chunks().must_include(&of_system)?;
    let roots = Roots::read(&mut reader)?;
    chunk_tree::must_be_given_out(&mut reader, &roots.device)?;
    let free = extents::free(&mut reader, &roots.extent, roots.block_group.as_ref())?;
    reader.nodes_must_be_in_use(&free)?;
    Ok(Survey {
        asleep: false,
        name: "btrfs",
        label: superblock.label.clone(),
        length: superblock.device.total_bytes,
        unit: superblock.sector_size,
        free: on_the_device(&superblock, reader.chunks(), &free)?,
        unclean: superblock.unclean(window)?,
    })
}

/// The trees whose roots stand in the root tree.
struct Roots {
    extent: Root,
    device: Root,
    /// When block groups have a tree of their own.
    block_group: Option<Root>,
}

impl Roots {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Trouble> {
        let superblock = reader.superblock();
        Ok(Self {
            extent: root(reader, EXTENT_TREE, "extent tree")?,
            device: root(reader, DEVICE_TREE, "device tree")?,
            block_group: match superblock.has_block_group_tree {
                true => Some(root(reader, BLOCK_GROUP_TREE, "block group tree")?),
                false => None,
            },
        })
    }
}

fn root(reader: &mut Reader<'_>, tree: u64, name: &'static str) -> Result<Root, Trouble> {
    let mut found = None;
    let keys = Key(tree, ROOT_ITEM, 0)..=Key(tree, ROOT_ITEM, u64::MAX);
    let root = reader.superblock().root.clone();
    reader.walk(&root, keys, &mut |_, item| {
        found = Some(Root::of_item(tree, name, item));
        Ok(())
    })?;
    found.ok_or_else(|| Trouble::damaged(format!("there is no {name}")))
}

/// What is free of the logical addresses, and of the device no chunk, by the device's own bytes.
fn on_the_device(
    superblock: &Superblock,
    chunks: &Chunks,
    free: &FreeMap,
) -> Result<FreeMap, Trouble> {
    // btrfs uses whole sectors only.
    let rest = superblock.device.total_bytes.checked_rem(superblock.sector_size).unwrap_or(0);
    let end = superblock.device.total_bytes.saturating_sub(rest);
    let mut device = Device { free: FreeMapBuilder::new(end) };
    let mut at = 0;
    for (place, chunk) in chunks.places() {
        device.add(at..place)?;
        for range in within(free, chunk) {
            let moved = |at: u64| at.saturating_sub(chunk.logical).saturating_add(place);
            device.add(moved(range.start)..moved(range.end))?;
        }
        at = place.saturating_add(chunk.length);
    }
    device.add(at..end)?;
    Ok(device.free.finish())
}

/// The free ranges of a chunk.
fn within<'a>(free: &'a FreeMap, chunk: &Chunk) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let (start, end) = (chunk.logical, chunk.end());
    let first = free.ranges().partition_point(|range| range.end <= start);
    let from = free.ranges().get(first..).unwrap_or_default().iter();
    let found = from.take_while(move |range| range.start < end);
    found.map(move |range| range.start.max(start)..range.end.min(end))
}

/// Collects free bytes of the device, without those that no one may have.
struct Device {
    free: FreeMapBuilder,
}

impl Device {
    fn add(&mut self, range: Range<u64>) -> Result<(), Trouble> {
        let mut start = range.start.max(RESERVED);
        for copy in COPIES {
            let behind = copy.saturating_add(superblock::LENGTH);
            if start < behind && copy < range.end {
                self.free.add(start..copy.max(start))?;
                start = behind;
            }
        }
        self.free.add(start..range.end.max(start))
    }
}
