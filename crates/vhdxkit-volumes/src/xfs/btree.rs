//! A free-space B-tree of an allocation group.
//!
//! Blocks are visited from left to right, from the root down, each node's pointers kept on a stack that is as
//! deep as the tree. Every block has to be what its parent says: its level, its first key, its left
//! neighbour. No block can be visited twice: its extents would be out of order, which the caller refuses.
//! So a tree that names itself ends, and no walk is longer than the group.

use std::ops::Range;

use super::superblock::{Superblock, checksum_holds};
use crate::bytes::{be16_at, be32_at, be64_at};
use crate::{Trouble, Window};

/// The most levels that 2^31 blocks need in blocks of 512 bytes, and some.
const MOST_LEVELS: usize = 12;
const NONE: u64 = 0xFFFF_FFFF;

/// Which of the two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TreeKind {
    ByPlace,
    BySize,
}

/// Where a tree is.
pub(super) struct Tree<'a> {
    pub(super) window: &'a Window<'a>,
    pub(super) sb: &'a Superblock,
    pub(super) kind: TreeKind,
    pub(super) group: u64,
    /// Blocks of the group.
    pub(super) blocks: u64,
    pub(super) root: u64,
    pub(super) levels: u32,
}

/// A block that the walk has yet to visit.
#[derive(Debug, Clone, Copy)]
struct Due {
    block: u64,
    level: u32,
    /// The key by which its parent knows it.
    key: Option<[u32; 2]>,
}

/// What is known of a level so far.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// The block visited last.
    last: u64,
    /// What that one says is right of it.
    right: u64,
}

/// A block of the tree.
struct Node {
    records: Vec<[u32; 2]>,
    /// Empty in a leaf.
    children: Vec<u64>,
    left: u64,
    right: u64,
}

impl Tree<'_> {
    /// Tells of each extent in the tree's order. Gives the number of its blocks.
    pub(super) fn walk(
        &self,
        mut found: impl FnMut(Range<u64>) -> Result<(), Trouble>,
    ) -> Result<u64, Trouble> {
        let top = match self.levels.checked_sub(1) {
            Some(top) if usize::try_from(top).is_ok_and(|top| top < MOST_LEVELS) => top,
            _ => return Err(self.damaged(&format!("is said to have {} levels", self.levels))),
        };
        let mut levels = [Level { last: NONE, right: NONE }; MOST_LEVELS];
        let mut stack = vec![Due { block: self.root, level: top, key: None }];
        let mut visited = 0u64;
        while let Some(due) = stack.pop() {
            visited = visited.saturating_add(1);
            if visited > self.blocks {
                return Err(self.damaged("has more blocks than its group"));
            }
            let node = self.read(due)?;
            let index = usize::try_from(due.level).unwrap_or(usize::MAX);
            let level = levels.get_mut(index).ok_or_else(|| self.damaged("is too deep"))?;
            if node.left != level.last || (level.last != NONE && level.right != due.block) {
                return Err(self.damaged(&format!("has wrong neighbours at block {}", due.block)));
            }
            *level = Level { last: due.block, right: node.right };
            for [start, count] in node.records.iter().filter(|_| due.level == 0) {
                let start = u64::from(*start);
                found(start..start.saturating_add(u64::from(*count)))?;
            }
            let below = due.level.saturating_sub(1);
            let children = node.children.iter().zip(&node.records).rev();
            stack.extend(children.map(|(block, key)| Due {
                block: *block,
                level: below,
                key: Some(*key),
            }));
        }
        match levels.iter().all(|level| level.right == NONE) {
            true => Ok(visited),
            false => Err(self.damaged("goes on where it should end")),
        }
    }

    fn read(&self, due: Due) -> Result<Node, Trouble> {
        let Due { block, level, key } = due;
        let wrong = |what: &str| self.damaged(&format!("has {what} at block {block}"));
        if block == 0 || block >= self.blocks {
            return Err(wrong("a pointer outside of its group"));
        }
        let at = self.sb.byte(self.group, block);
        let raw = self.window.read("a block of a free-space tree", at, self.sb.block_size)?;
        self.check_header(&raw, at).map_err(wrong)?;
        if u32::from(be16_at(&raw, 4)) != level {
            return Err(wrong("the wrong level"));
        }
        let header = if self.sb.v5 { 56usize } else { 16 };
        let body = raw.get(header..).unwrap_or_default();
        let count = usize::from(be16_at(&raw, 6));
        let size = if level == 0 { 8 } else { 12 };
        let most = body.len().checked_div(size).unwrap_or_default();
        // Only the tree of a group without free space is empty.
        if count > most || (count == 0 && (key.is_some() || level > 0)) {
            return Err(wrong("a wrong number of records"));
        }
        let pair = |raw: &[u8]| [be32_at(raw, 0), be32_at(raw, 4)];
        let records: Vec<_> = body.chunks_exact(8).take(count).map(pair).collect();
        if key.is_some()
            && key.map(|key| self.order(key)) != records.first().map(|key| self.order(*key))
        {
            return Err(wrong("another first key than its parent says"));
        }
        // Keys come first, as many as fit; then as many pointers.
        let pointers = body.get(most.saturating_mul(8)..).unwrap_or_default().chunks_exact(4);
        let pointers = pointers.take(if level == 0 { 0 } else { count });
        let children = pointers.map(|raw| u64::from(be32_at(raw, 0))).collect();
        let (left, right) = (u64::from(be32_at(&raw, 8)), u64::from(be32_at(&raw, 12)));
        Ok(Node { records, children, left, right })
    }

    /// What a key is ordered by: the tree by place has lengths in its keys, and does not look at them.
    fn order(&self, [start, count]: [u32; 2]) -> (u32, u32) {
        match self.kind {
            TreeKind::ByPlace => (start, 0),
            TreeKind::BySize => (count, start),
        }
    }

    fn check_header(&self, raw: &[u8], at: u64) -> Result<(), &'static str> {
        let magic = match (self.sb.v5, self.kind) {
            (false, TreeKind::ByPlace) => b"ABTB",
            (false, TreeKind::BySize) => b"ABTC",
            (true, TreeKind::ByPlace) => b"AB3B",
            (true, TreeKind::BySize) => b"AB3C",
        };
        if !raw.starts_with(magic) {
            return Err("no magic number");
        }
        if !self.sb.v5 {
            return Ok(());
        }
        if !checksum_holds(raw, 52) {
            return Err("a wrong checksum");
        }
        let own = be64_at(raw, 16) == at >> 9
            && raw.get(32..48) == Some(&self.sb.metadata_uuid)
            && u64::from(be32_at(raw, 48)) == self.group;
        if own { Ok(()) } else { Err("a block of another place") }
    }

    fn damaged(&self, what: &str) -> Trouble {
        let kind = match self.kind {
            TreeKind::ByPlace => "place",
            TreeKind::BySize => "size",
        };
        Trouble::damaged(format!("group {}'s tree by {kind} {what}", self.group))
    }
}
