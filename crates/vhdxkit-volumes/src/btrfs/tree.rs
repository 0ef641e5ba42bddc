//! Trees: nodes that are judged, and walks that meet none of them twice.

use std::cmp::Ordering;
use std::ops::RangeInclusive;

use super::chunks::Chunks;
use super::names::{Key, Root, uuid_at};
use super::superblock::Superblock;
use crate::bytes::{u8_at, u32_at, u64_at};
use crate::{FreeMap, Trouble, Window};

/// Levels of a tree, at most; leaves are level 0.
const LEVELS: u8 = 8;
/// Bytes of a node's header, of an item's header in a leaf, and of a pointer in another node.
const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;

/// What is called for each item that was asked for.
pub(super) type Each<'e> = &'e mut dyn FnMut(Key, &[u8]) -> Result<(), Trouble>;

/// What the parent says of a node.
struct Expected {
    at: u64,
    generation: u64,
    level: u8,
    /// `None` for a root.
    first: Option<Key>,
    /// All its keys are below this one; `None` where nothing follows.
    behind: Option<Key>,
}

/// Reads trees.
pub(super) struct Reader<'a> {
    window: &'a Window<'a>,
    superblock: &'a Superblock,
    chunks: Chunks,
    /// The nodes that were read, by their logical addresses.
    nodes: Vec<u64>,
    /// More nodes than this the device cannot hold.
    most_nodes: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(window: &'a Window<'a>, superblock: &'a Superblock, chunks: Chunks) -> Self {
        let most = superblock.device.total_bytes.checked_div(superblock.node_size);
        let most_nodes = usize::try_from(most.unwrap_or_default()).unwrap_or(usize::MAX);
        Self { window, superblock, chunks, nodes: Vec::new(), most_nodes }
    }

    pub(super) fn superblock(&self) -> &'a Superblock {
        self.superblock
    }

    pub(super) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Finds nodes by these chunks from now on; returns those it had.
    pub(super) fn learn(&mut self, chunks: Chunks) -> Chunks {
        std::mem::replace(&mut self.chunks, chunks)
    }

    /// Calls `each` for the items of a tree in a range of keys, in their order.
    pub(super) fn walk(
        &mut self,
        root: &Root,
        keys: RangeInclusive<Key>,
        each: Each<'_>,
    ) -> Result<(), Trouble> {
        if root.level >= LEVELS {
            return Err(damaged(root, root.at, format!("is of level {}", root.level)));
        }
        let (at, generation, level) = (root.at, root.generation, root.level);
        let expected = Expected { at, generation, level, first: None, behind: None };
        self.descend(root, &expected, &keys, each)
    }

    /// Not deeper than the levels: each is one lower than the one above it.
    fn descend(
        &mut self,
        root: &Root,
        expected: &Expected,
        keys: &RangeInclusive<Key>,
        each: Each<'_>,
    ) -> Result<(), Trouble> {
        let node = self.node(root, expected)?;
        let Some(below) = expected.level.checked_sub(1) else {
            return leaf(root, expected, &node, keys, each);
        };
        let mut pointers = entries(&node, POINTER).peekable();
        while let Some((key, pointer)) = pointers.next() {
            let behind = pointers.peek().map(|(next, _)| *next).or(expected.behind);
            if behind.is_some_and(|behind| behind <= *keys.start()) {
                continue;
            }
            if key > *keys.end() {
                break;
            }
            let (at, generation) = (u64_at(pointer, 17), u64_at(pointer, 25));
            let child = Expected { at, generation, level: below, first: Some(key), behind };
            self.descend(root, &child, keys, each)?;
        }
        Ok(())
    }

    /// A node that is what it should be: the first of its copies whose checksum holds.
    fn node(&mut self, root: &Root, expected: &Expected) -> Result<Vec<u8>, Trouble> {
        if self.nodes.len() >= self.most_nodes {
            return Err(Trouble::damaged("its trees have more nodes than the device has room for"));
        }
        self.nodes.push(expected.at);
        let size = self.superblock.node_size;
        let places = self.chunks.places_of(expected.at, size);
        let places = places.ok_or_else(|| damaged(root, expected.at, "lies in no chunk".into()))?;
        for place in places {
            let node = self.window.read("a node", place, size)?;
            if crc32c::crc32c(node.get(32..).unwrap_or_default()) == u32_at(&node, 0) {
                self.judge(root, expected, &node)?;
                return Ok(node);
            }
        }
        Err(damaged(root, expected.at, "has a wrong checksum".into()))
    }

    fn judge(&self, root: &Root, expected: &Expected, node: &[u8]) -> Result<(), Trouble> {
        let wrong = |what: &str| Err(damaged(root, expected.at, what.to_owned()));
        if uuid_at(node, 0x20) != self.superblock.node_fsid {
            return wrong("is of another file system");
        }
        if u64_at(node, 0x30) != expected.at {
            return wrong("belongs elsewhere");
        }
        if u64_at(node, 0x58) != root.tree {
            return wrong("is of another tree");
        }
        if u8_at(node, 0x64) != expected.level {
            return wrong("is of another level");
        }
        let generation = u64_at(node, 0x50);
        if generation != expected.generation || generation > self.superblock.generation {
            return wrong("is of another generation");
        }
        let length = if expected.level == 0 { ITEM } else { POINTER };
        let count = usize::try_from(u32_at(node, 0x60)).unwrap_or(usize::MAX);
        let fits = count.checked_mul(length).and_then(|length| length.checked_add(HEADER));
        if count == 0 || fits.is_none_or(|end| end > node.len()) {
            return wrong(&format!("has {count} entries"));
        }
        let mut keys = entries(node, length).map(|(key, _)| key);
        let mut last = keys.next().unwrap_or(Key::LEAST);
        if expected.first.is_some_and(|first| first != last) {
            return wrong("begins with another key than its parent says");
        }
        for key in keys.chain(expected.behind) {
            if last.cmp(&key) != Ordering::Less {
                return wrong("is not in order");
            }
            last = key;
        }
        Ok(())
    }

    /// A tree that reaches a node in free space is not the one that the extents are of.
    pub(super) fn nodes_must_be_in_use(&self, free: &FreeMap) -> Result<(), Trouble> {
        for at in &self.nodes {
            let first = free.ranges().partition_point(|range| range.end <= *at);
            let end = at.saturating_add(self.superblock.node_size);
            if free.ranges().get(first).is_some_and(|range| range.start < end) {
                return Err(Trouble::damaged(format!("the node at {at} is said to be free")));
            }
        }
        Ok(())
    }
}

/// The items of a leaf. Their contents fill its end, the first item's last, without a gap.
fn leaf(
    root: &Root,
    expected: &Expected,
    node: &[u8],
    keys: &RangeInclusive<Key>,
    each: Each<'_>,
) -> Result<(), Trouble> {
    let contents = node.get(HEADER..).unwrap_or_default();
    let count = usize::try_from(u32_at(node, 0x60)).unwrap_or(usize::MAX);
    let first_byte = count.saturating_mul(ITEM);
    let mut behind = contents.len();
    for (key, header) in entries(node, ITEM) {
        let field = |at| usize::try_from(u32_at(header, at)).unwrap_or(usize::MAX);
        let (start, length) = (field(17), field(21));
        if start < first_byte || start.checked_add(length) != Some(behind) {
            return Err(damaged(root, expected.at, "has items that do not fit".into()));
        }
        if keys.contains(&key) {
            each(key, contents.get(start..behind).unwrap_or_default())?;
        }
        behind = start;
    }
    Ok(())
}

/// A node's entries with their keys; `length` is that of an entry.
fn entries(node: &[u8], length: usize) -> impl Iterator<Item = (Key, &[u8])> {
    let count = usize::try_from(u32_at(node, 0x60)).unwrap_or(usize::MAX);
    let all = node.get(HEADER..).unwrap_or_default().chunks_exact(length).take(count);
    all.map(|entry| (Key::at(entry, 0), entry))
}

fn damaged(root: &Root, at: u64, what: String) -> Trouble {
    Trouble::damaged(format!("the node of its {} at {at} {what}", root.name))
}
