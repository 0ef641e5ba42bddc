//! Group descriptors, and where the metadata of all groups lies.
//!
//! With `flex_bg` a group's bitmaps and inode table may lie in any other group. So the metadata of all
//! groups is collected first: only then is a group known that has no bitmap yet, and only then can a bitmap
//! be caught that gives away what it must not.

use std::ops::Range;

use super::superblock::{Checksum, Superblock, crc32c_raw};
use super::zero_runs;
use crate::bytes::{u16_at, u32_at};
use crate::{Trouble, Window};

/// What a descriptor says.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) number: u64,
    pub(super) block_bitmap: u64,
    pub(super) bitmap_checksum: u32,
    /// Clusters.
    pub(super) free: u64,
    /// Its bitmap was never written: all but metadata is free.
    pub(super) uninitialised: bool,
}

/// All groups of a file system.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Blocks that hold metadata of any group, in order, not overlapping.
    metadata: Vec<Range<u64>>,
}

impl Groups {
    pub(super) fn read(window: &Window<'_>, sb: &Superblock) -> Result<Self, Trouble> {
        let blocks = sb.descriptor_blocks();
        if sb.first_meta_bg != u64::MAX && sb.first_meta_bg > blocks {
            return Err(Trouble::damaged("its first meta block group lies behind its last group"));
        }
        let mut found = Self { groups: Vec::new(), metadata: Vec::new() };
        for index in 0..blocks {
            let block = descriptor_block(sb, index);
            let at = block.saturating_mul(sb.block_size);
            let raw = window.read("a block of group descriptors", at, sb.block_size)?;
            let first = index.saturating_mul(sb.per_block());
            let size = usize::try_from(sb.descriptor).unwrap_or(32);
            for (raw, number) in raw.chunks_exact(size).zip(first..sb.groups) {
                found.add(sb, number, raw)?;
            }
        }
        found.in_order()?;
        Ok(found)
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    fn add(&mut self, sb: &Superblock, number: u64, raw: &[u8]) -> Result<(), Trouble> {
        const BLOCK_UNINIT: u16 = 2;
        let wide = |low: usize, high: usize| {
            // What lies behind a short descriptor reads as zero.
            u64::from(u32_at(raw, low)) | u64::from(u32_at(raw, high)) << 32
        };
        let halves = |low: usize, high: usize| {
            u32::from(u16_at(raw, low)) | u32::from(u16_at(raw, high)) << 16
        };
        check(sb.checksum, number, raw)?;
        let uninitialised = u16_at(raw, 18) & BLOCK_UNINIT != 0;
        if uninitialised && matches!(sb.checksum, Checksum::None) {
            return Err(Trouble::damaged(format!(
                "group {number} has no bitmap, which only groups with checksums may lack"
            )));
        }
        let block_bitmap = wide(0, 32);
        let (inode_bitmap, inode_table) = (wide(4, 36), wide(8, 40));
        for (start, length) in [(block_bitmap, 1), (inode_bitmap, 1), (inode_table, sb.inode_table)]
        {
            self.metadata.push(placed(sb, number, start, length)?);
        }
        self.metadata.extend(at_start(sb, number)?);
        let free = u64::from(halves(12, 44));
        let bitmap_checksum = halves(24, 56);
        self.groups.push(Group { number, block_bitmap, bitmap_checksum, free, uninitialised });
        Ok(())
    }

    fn in_order(&mut self) -> Result<(), Trouble> {
        self.metadata.sort_unstable_by_key(|range| range.start);
        let overlap = self.metadata.windows(2).find(|pair| match pair {
            [one, next] => one.end > next.start,
            _ => false,
        });
        match overlap {
            Some([_, next]) => Err(Trouble::damaged(format!(
                "block {} is said to be two pieces of metadata",
                next.start
            ))),
            _ => Ok(()),
        }
    }

    /// The metadata, of whatever group, that lies in these blocks.
    fn metadata_in(&self, blocks: &Range<u64>) -> impl Iterator<Item = &Range<u64>> {
        let from = self.metadata.partition_point(|range| range.end <= blocks.start);
        let end = blocks.end;
        self.metadata.iter().skip(from).take_while(move |range| range.start < end)
    }

    /// The free blocks of a group without a bitmap: whole clusters between metadata.
    pub(super) fn gaps(&self, sb: &Superblock, group: &Group) -> Vec<Range<u64>> {
        let blocks = sb.group_start(group.number)..sb.group_end(group.number);
        let cluster = |block: u64| block.saturating_sub(blocks.start).checked_div(sb.cluster);
        let cluster_start = |block: u64| {
            let number = cluster(block).unwrap_or_default();
            number.saturating_mul(sb.cluster).saturating_add(blocks.start)
        };
        let mut gaps = Vec::new();
        let mut from = blocks.start;
        for used in self.metadata_in(&blocks) {
            let to = cluster_start(used.start.max(blocks.start));
            if from < to {
                gaps.push(from..to);
            }
            let last = used.end.saturating_sub(1);
            from = from.max(cluster_start(last).saturating_add(sb.cluster));
        }
        if from < blocks.end {
            gaps.push(from..blocks.end);
        }
        gaps
    }

    /// The free blocks by a group's bitmap.
    ///
    /// # Errors
    /// Metadata lies in them.
    pub(super) fn without_metadata(
        &self,
        sb: &Superblock,
        group: &Group,
        bitmap: &[u8],
    ) -> Result<Vec<Range<u64>>, Trouble> {
        let blocks = sb.group_start(group.number)..sb.group_end(group.number);
        let length = blocks.end.saturating_sub(blocks.start);
        let block = |cluster: u64| {
            let behind = cluster.saturating_mul(sb.cluster).saturating_add(blocks.start);
            behind.min(blocks.end)
        };
        let mut found = Vec::new();
        for clusters in zero_runs(bitmap, length.div_ceil(sb.cluster)) {
            let free = block(clusters.start)..block(clusters.end);
            if let Some(metadata) = self.metadata_in(&free).next() {
                return Err(Trouble::damaged(format!(
                    "group {}'s bitmap says that block {} is free, where metadata lies",
                    group.number,
                    metadata.start.max(free.start)
                )));
            }
            found.push(free);
        }
        Ok(found)
    }
}

/// Where a block of descriptors lies: behind the first superblock, or in the groups that it describes.
fn descriptor_block(sb: &Superblock, index: u64) -> u64 {
    let (group, behind) = if index < sb.first_meta_bg {
        (0, index)
    } else {
        (index.saturating_mul(sb.per_block()), 0)
    };
    let start = sb.group_start(group).saturating_add(sb.superblock_copy(group));
    start.saturating_add(behind)
}

/// The copies of superblock and descriptors, with the room kept for more of these, at a group's start.
fn at_start(sb: &Superblock, number: u64) -> Result<Option<Range<u64>>, Trouble> {
    let copy = sb.superblock_copy(number);
    let meta_group = number.checked_div(sb.per_block()).unwrap_or_default();
    let descriptors = if meta_group < sb.first_meta_bg {
        let all = sb.descriptor_blocks().min(sb.first_meta_bg).saturating_add(sb.reserved_gdt);
        if copy == 0 { 0 } else { all }
    } else {
        let place = number.checked_rem(sb.per_block()).unwrap_or_default();
        let last = sb.per_block().saturating_sub(1);
        u64::from(place <= 1 || place == last)
    };
    let (start, end) = (sb.group_start(number), sb.group_end(number));
    let length = copy.saturating_add(descriptors);
    if length > end.saturating_sub(start) {
        return Err(Trouble::damaged(format!("group {number} has no room for its descriptors")));
    }
    Ok((length > 0).then(|| start..start.saturating_add(length)))
}

/// A group's own piece of metadata, which has to lie in the file system; without `flex_bg` in its group.
fn placed(sb: &Superblock, number: u64, start: u64, length: u64) -> Result<Range<u64>, Trouble> {
    let room = if sb.flex_bg {
        sb.first_block..sb.blocks
    } else {
        sb.group_start(number)..sb.group_end(number)
    };
    match start.checked_add(length) {
        Some(end) if start >= room.start && end <= room.end => Ok(start..end),
        _ => Err(Trouble::damaged(format!(
            "group {number} has metadata at block {start}, outside of blocks {} to {}",
            room.start, room.end
        ))),
    }
}

/// A descriptor's checksum: the lower half of it lies in the descriptor itself.
fn check(checksum: Checksum, number: u64, raw: &[u8]) -> Result<(), Trouble> {
    const AT: usize = 30;
    let number32 = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let before = raw.get(..AT).unwrap_or_default();
    let behind = raw.get(AT.saturating_add(2)..).unwrap_or_default();
    let found = match checksum {
        Checksum::None => return Ok(()),
        Checksum::Crc32c(seed) => {
            let parts = [&number32[..], before, &[0, 0], behind];
            let crc = parts.into_iter().fold(seed, crc32c_raw);
            let [low, high, ..] = crc.to_le_bytes();
            u16::from_le_bytes([low, high])
        }
        Checksum::Crc16(uuid) => {
            [&uuid[..], &number32, before, behind].into_iter().fold(u16::MAX, crc16)
        }
    };
    if found == u16_at(raw, AT) {
        Ok(())
    } else {
        Err(Trouble::damaged(format!("the checksum of group {number}'s descriptor is wrong")))
    }
}

/// CRC-16 with the reflected polynomial 0x8005.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            let divided = crc >> 1;
            if crc & 1 == 1 { divided ^ 0xA001 } else { divided }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::crc16;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
    }
}
