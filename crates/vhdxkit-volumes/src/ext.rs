//! ext2, ext3 and ext4: block bitmaps, one for each group.
//!
//! A bitmap alone would be one source for each bit. It is held against others: where the metadata of all
//! groups lies, how many blocks the group's descriptor says are free, the descriptor's and the bitmap's
//! checksums, and the superblock's sum over all groups. On a file system that was unmounted cleanly they
//! agree; when they do not, it is damaged and nothing of it is free.
//!
//! Read are the superblock, the descriptors, the bitmaps that were ever written, and the block of multiple
//! mount protection; from all of these only the first copies.

mod groups;
mod superblock;

use crate::bytes::zero_runs;
use crate::space::with_free;
use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};

use groups::{Group, Groups};
use superblock::{Checksum, Superblock, crc32c_raw};

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let sb = Superblock::read(window)?;
    let unclean = sb.unclean(window)?;
    let survey = Survey {
        asleep: false,
        name: sb.name,
        label: sb.label.clone(),
        length: sb.length(),
        unit: sb.block_size.saturating_mul(sb.cluster),
        free: FreeMap::default(),
        unclean,
    };
    let clean = survey.unclean.is_none();
    with_free(survey, free(window, &sb, clean))
}

fn free(window: &Window<'_>, sb: &Superblock, clean: bool) -> Result<FreeMap, Trouble> {
    let groups = Groups::read(window, sb)?;
    let mut builder = FreeMapBuilder::new(sb.length());
    let mut sum = 0u64;
    for group in groups.each() {
        let free = if group.uninitialised {
            groups.gaps(sb, group)
        } else {
            let bitmap = bitmap(window, sb, group)?;
            groups.without_metadata(sb, group, &bitmap)?
        };
        let mut clusters = 0u64;
        for blocks in free {
            let length = blocks.end.saturating_sub(blocks.start);
            clusters = clusters.saturating_add(length.div_ceil(sb.cluster));
            let byte = |block: u64| block.saturating_mul(sb.block_size);
            builder.add(byte(blocks.start)..byte(blocks.end))?;
        }
        if clusters != group.free {
            return Err(Trouble::damaged(format!(
                "group {}'s bitmap has {clusters} free, its descriptor says {}",
                group.number, group.free
            )));
        }
        sum = sum.saturating_add(clusters);
    }
    let blocks = sum.saturating_mul(sb.cluster);
    if clean && blocks != sb.free_blocks {
        return Err(Trouble::damaged(format!(
            "{blocks} blocks are free in all groups, the superblock says {}",
            sb.free_blocks
        )));
    }
    Ok(builder.finish())
}

fn bitmap(window: &Window<'_>, sb: &Superblock, group: &Group) -> Result<Vec<u8>, Trouble> {
    let at = group.block_bitmap.saturating_mul(sb.block_size);
    let bitmap = window.read("a block bitmap", at, sb.block_size)?;
    if let Checksum::Crc32c(seed) = sb.checksum {
        let clusters = sb.blocks_per_group.div_ceil(sb.cluster);
        let used = usize::try_from(clusters.div_ceil(8)).unwrap_or(usize::MAX);
        let found = crc32c_raw(seed, bitmap.get(..used).unwrap_or(&bitmap));
        let kept = if sb.descriptor > 32 { u32::MAX } else { 0xFFFF };
        if found & kept != group.bitmap_checksum & kept {
            let number = group.number;
            return Err(Trouble::damaged(format!(
                "the checksum of group {number}'s bitmap is wrong"
            )));
        }
    }
    Ok(bitmap)
}
