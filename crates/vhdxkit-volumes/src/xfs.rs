//! XFS: the free-space B-trees of every allocation group.
//!
//! A group has two trees over the same free extents, by place and by size. Both are walked and have to hold
//! the same: that is a check even where version 4 has no checksums. The group's header counts their blocks
//! and knows the longest, the superblock of a clean file system has the sum.
//!
//! The blocks on a group's free list (AGFL) are kept, as are those of the trees: `sb_fdblocks` counts all of
//! them as free, but they are set aside for the trees' own growth, and no `fstrim` gives them away either.
//! So what is free here is `sb_fdblocks` less those. What lies on a realtime device is not here at all.

mod btree;
mod group;
mod log;
mod superblock;

use crate::space::with_free;
use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};

use group::Group;
use superblock::Superblock;

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let sb = Superblock::read(window)?;
    let unclean = log::unclean(window, &sb)?;
    let survey = Survey {
        asleep: false,
        name: "XFS",
        label: sb.label.clone(),
        length: sb.length(),
        unit: sb.block_size,
        free: FreeMap::default(),
        unclean,
    };
    let clean = survey.unclean.is_none();
    with_free(survey, free(window, &sb, clean))
}

fn free(window: &Window<'_>, sb: &Superblock, clean: bool) -> Result<FreeMap, Trouble> {
    let mut builder = FreeMapBuilder::new(sb.length());
    let mut counted = 0u64;
    for number in 0..sb.groups {
        let group = Group::read(window, sb, number)?;
        let free = group.walk(|blocks| {
            builder.add(sb.byte(number, blocks.start)..sb.byte(number, blocks.end))
        })?;
        counted = counted.saturating_add(free);
    }
    if clean && counted != sb.free_blocks {
        return Err(Trouble::damaged(format!(
            "{counted} blocks are free in all groups, the superblock says {}",
            sb.free_blocks
        )));
    }
    Ok(builder.finish())
}
