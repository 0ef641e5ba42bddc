//! An allocation group: its header (AGF), its free list (AGFL), its two free-space trees.

use std::ops::Range;

use super::btree::{Tree, TreeKind};
use super::superblock::{Superblock, checksum_holds};
use crate::bytes::be32_at;
use crate::{Trouble, Window};

const NONE: u64 = 0xFFFF_FFFF;

/// What a group's header says.
pub(super) struct Group<'a> {
    window: &'a Window<'a>,
    sb: &'a Superblock,
    number: u64,
    blocks: u64,
    /// Root and levels.
    by_place: (u64, u32),
    by_size: (u64, u32),
    free: u64,
    longest: u64,
    /// Blocks of the tree of owners (rmapbt) besides its root: they come from the free list too.
    owner_blocks: u64,
    /// Blocks on the free list.
    listed: Vec<u64>,
    /// Blocks that are surely in use: where trees have their roots, the log, the first inodes.
    used: Vec<Range<u64>>,
}

impl<'a> Group<'a> {
    pub(super) fn read(
        window: &'a Window<'a>,
        sb: &'a Superblock,
        number: u64,
    ) -> Result<Self, Trouble> {
        let at = sb.byte(number, 0).saturating_add(sb.sector_size);
        let raw = window.read("a group's header", at, sb.sector_size)?;
        let field = |at: usize| u64::from(be32_at(&raw, at));
        let damaged = |what: &str| Trouble::damaged(format!("group {number}'s header {what}"));
        let blocks = sb.blocks_of(number);
        if be32_at(&raw, 0) != 0x5841_4746 || field(4) != 1 {
            return Err(damaged("has no magic number"));
        }
        if sb.v5 && !(checksum_holds(&raw, 216) && raw.get(64..80) == Some(&sb.metadata_uuid)) {
            return Err(damaged("has a wrong checksum or UUID"));
        }
        if field(8) != number || field(12) != blocks {
            return Err(damaged("belongs to another group, or to one of another size"));
        }
        let mut group = Self {
            window,
            sb,
            number,
            blocks,
            by_place: (field(16), be32_at(&raw, 28)),
            by_size: (field(20), be32_at(&raw, 32)),
            free: field(52),
            longest: field(56),
            owner_blocks: if sb.owners { field(80).saturating_sub(1) } else { 0 },
            listed: Vec::new(),
            used: Vec::new(),
        };
        if group.free > blocks || group.longest > group.free || group.owner_blocks > blocks {
            return Err(damaged("counts more blocks than there are"));
        }
        group.read_list(&raw)?;
        group.collect_used();
        Ok(group)
    }

    /// The free list is a ring of block numbers in the group's fourth sector.
    fn read_list(&mut self, header: &[u8]) -> Result<(), Trouble> {
        let (number, sb) = (self.number, self.sb);
        let damaged = |what: &str| Trouble::damaged(format!("group {number}'s free list {what}"));
        let at = sb.byte(number, 0).saturating_add(sb.sector_size.saturating_mul(3));
        let raw = self.window.read("a group's free list", at, sb.sector_size)?;
        if sb.v5 {
            let told = (be32_at(&raw, 0), be32_at(&raw, 4));
            if told != (0x5841_464C, be32_at(header, 8))
                || raw.get(8..24) != Some(&sb.metadata_uuid)
            {
                return Err(damaged("is none, or belongs to another group"));
            }
            if !checksum_holds(&raw, 32) {
                return Err(damaged("has a wrong checksum"));
            }
        }
        let start = if sb.v5 { 36usize } else { 0 };
        let entries = raw.get(start..).unwrap_or_default().chunks_exact(4);
        let entries: Vec<u64> = entries.map(|entry| u64::from(be32_at(entry, 0))).collect();
        let field = |at: usize| usize::try_from(be32_at(header, at)).unwrap_or(usize::MAX);
        let (first, last, count) = (field(40), field(44), field(48));
        let size = entries.len();
        let distance = |first: usize, last: usize| {
            let behind = last.checked_add(size)?.checked_sub(first)?.checked_rem(size)?;
            behind.checked_add(1)
        };
        // An empty list has its last entry before its first.
        let fits = first < size
            && last < size
            && match count {
                0 => distance(first, last) == Some(size),
                _ => count <= size && distance(first, last) == Some(count),
            };
        if !fits {
            return Err(damaged("does not hold together"));
        }
        self.listed = entries.iter().cycle().skip(first).take(count).copied().collect();
        if self.listed.iter().any(|block| *block == 0 || *block >= self.blocks) {
            return Err(damaged("names a block that there is not"));
        }
        self.listed.sort_unstable();
        if self.listed.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            return Err(damaged("names a block twice"));
        }
        Ok(())
    }

    fn collect_used(&mut self) {
        let one = |block: u64| block..block.saturating_add(1);
        let headers = self.sb.sector_size.saturating_mul(4).div_ceil(self.sb.block_size);
        let mut used = vec![0..headers, one(self.by_place.0), one(self.by_size.0)];
        used.extend(self.listed.iter().copied().map(one));
        let (group, root) = self.sb.root();
        if group == self.number {
            used.push(root..root.saturating_add(self.sb.chunk()));
        }
        if let Some((group, start)) = self.sb.log()
            && group == self.number
        {
            used.push(start..start.saturating_add(self.sb.log_blocks));
        }
        used.sort_unstable_by_key(|range| range.start);
        self.used = used;
    }

    /// Tells of each free extent, in order. Gives what the superblock counts as free of this group: its free
    /// blocks, those on the free list, and those that were taken from that list.
    pub(super) fn walk(
        &self,
        mut found: impl FnMut(Range<u64>) -> Result<(), Trouble>,
    ) -> Result<u64, Trouble> {
        let mut behind = 0;
        let (mut free, mut longest) = (0u64, 0);
        let mut places = Fingerprint::default();
        let mut used = self.used.iter().peekable();
        let by_place = self.tree(TreeKind::ByPlace, self.by_place).walk(|extent| {
            self.check_extent(&extent, behind)?;
            // Both are in order, so each is passed once.
            while used.next_if(|used| used.end <= extent.start).is_some() {}
            if let Some(used) = used.peek().filter(|used| used.start < extent.end) {
                return Err(Trouble::damaged(format!(
                    "group {} says that block {} is free, which is in use",
                    self.number, used.start
                )));
            }
            behind = extent.end;
            let length = extent.end.saturating_sub(extent.start);
            free = free.saturating_add(length);
            longest = length.max(longest);
            places.add(&extent);
            found(extent)
        })?;
        if (free, longest) != (self.free, self.longest) {
            return Err(Trouble::damaged(format!(
                "group {} has {free} free blocks, {longest} together, and counts {}, {} together",
                self.number, self.free, self.longest
            )));
        }
        let mut sizes = Fingerprint::default();
        let mut last = (0, 0);
        let by_size = self.tree(TreeKind::BySize, self.by_size).walk(|extent| {
            let this = (extent.end.saturating_sub(extent.start), extent.start);
            if this <= last {
                return Err(self.out_of_order());
            }
            last = this;
            sizes.add(&extent);
            Ok(())
        })?;
        if places != sizes {
            return Err(Trouble::damaged(format!(
                "group {}'s trees by place and by size hold different extents",
                self.number
            )));
        }
        let trees = by_place.saturating_add(by_size).saturating_sub(2);
        let listed = u64::try_from(self.listed.len()).unwrap_or(u64::MAX);
        let taken = listed.saturating_add(trees).saturating_add(self.owner_blocks);
        Ok(free.saturating_add(taken))
    }

    fn tree(&self, kind: TreeKind, (root, levels): (u64, u32)) -> Tree<'_> {
        Tree {
            window: self.window,
            sb: self.sb,
            kind,
            group: self.number,
            blocks: self.blocks,
            root,
            levels,
        }
    }

    fn out_of_order(&self) -> Trouble {
        Trouble::damaged(format!("group {}'s free extents are out of order", self.number))
    }

    /// Two extents that touch would have been one; that they are two is odd, but harms nobody.
    fn check_extent(&self, extent: &Range<u64>, behind: u64) -> Result<(), Trouble> {
        if extent.is_empty() || extent.start < behind {
            return Err(self.out_of_order());
        }
        if extent.end > self.blocks {
            return Err(Trouble::damaged(format!(
                "group {} has free blocks up to {}, and only {} at all",
                self.number, extent.end, self.blocks
            )));
        }
        Ok(())
    }
}

/// A set of extents in few bytes, however they are ordered: two sets that differ have the same only by an
/// accident of one in 2^64 and more.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fingerprint {
    count: u64,
    sum: u64,
    mixed: u64,
}

impl Fingerprint {
    fn add(&mut self, extent: &Range<u64>) {
        let number = extent.start << 32 | (extent.end.saturating_sub(extent.start) & NONE);
        // The finaliser of SplitMix64: every bit of the number moves every bit of the outcome.
        let mix = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mix = (mix ^ (mix >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(number);
        self.mixed = self.mixed.wrapping_add(mix ^ (mix >> 31));
    }
}
