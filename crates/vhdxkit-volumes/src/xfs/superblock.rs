//! The superblock of XFS: shape and features.
//!
//! Each size is there twice, as a number and as its logarithm; the two have to agree. A feature is either
//! known here, or refused.

use crc32c::crc32c;

use crate::bytes::{be16_at, be32_at, be64_at, label, u8_at, u32_at};
use crate::{Trouble, Window};

/// The fewest bytes of an allocation group but the last, and the fewest blocks of that one. It bounds how
/// many groups a disk can have.
const LEAST_GROUP: u64 = 16 << 20;
const LEAST_BLOCKS: u64 = 64;

/// What the superblock says; only shapes that hold together get here.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) label: String,
    /// Version 5: blocks tell what they are, and carry checksums.
    pub(super) v5: bool,
    /// Bytes.
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) group_blocks: u64,
    group_blocks_log: u32,
    inodes_per_block_log: u32,
    root_inode: u64,
    pub(super) free_blocks: u64,
    /// It has trees of who owns which blocks (`rmapbt`).
    pub(super) owners: bool,
    /// The log's first block; `None` when it lies on another device.
    log_start: Option<u64>,
    pub(super) log_blocks: u64,
    pub(super) log_v2: bool,
    pub(super) uuid: [u8; 16],
    /// The UUID in the metadata, which stays when the file system's own is changed.
    pub(super) metadata_uuid: [u8; 16],
    pub(super) log_incompat: u32,
}

impl Superblock {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Trouble> {
        let raw = window.read("the superblock", 0, 512)?;
        if be32_at(&raw, 0) != 0x5846_5342 {
            return Err(Trouble::damaged("the superblock has no magic number"));
        }
        let version = be16_at(&raw, 100);
        let v5 = match version & 0xF {
            5 => true,
            4 => false,
            other => {
                return Err(Trouble::not_known(format!("version {other} of XFS is not known")));
            }
        };
        let sector_size = power_of_two(&raw, "sector", u64::from(be16_at(&raw, 102)), 121, 9..=15)?;
        if v5 {
            let sector = window.read("the superblock", 0, sector_size)?;
            if !checksum_holds(&sector, 224) {
                return Err(Trouble::damaged("the superblock's checksum is wrong"));
            }
        }
        features(&raw, v5)?;
        if u8_at(&raw, 126) != 0 {
            return Err(Trouble::damaged("it was not made completely"));
        }
        let found = parse(&raw, v5, sector_size)?;
        found.check(window)?;
        Ok(found)
    }

    /// Bytes.
    pub(super) fn length(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// Blocks of a group; the last one may be shorter.
    pub(super) fn blocks_of(&self, group: u64) -> u64 {
        let before = group.saturating_mul(self.group_blocks);
        self.blocks.saturating_sub(before).min(self.group_blocks)
    }

    /// The byte where a group's block lies.
    pub(super) fn byte(&self, group: u64, block: u64) -> u64 {
        let number = group.saturating_mul(self.group_blocks).saturating_add(block);
        number.saturating_mul(self.block_size)
    }

    /// Group, and block in it, of a file system block number.
    fn place(&self, number: u64) -> (u64, u64) {
        let group = number.checked_shr(self.group_blocks_log).unwrap_or_default();
        let mask = 1u64.checked_shl(self.group_blocks_log).unwrap_or_default().wrapping_sub(1);
        (group, number & mask)
    }

    /// Where the internal log begins: its group, and the block there.
    pub(super) fn log(&self) -> Option<(u64, u64)> {
        self.log_start.map(|start| self.place(start))
    }

    /// Where the chunk of 64 inodes lies whose first is the root directory's.
    pub(super) fn root(&self) -> (u64, u64) {
        self.place(self.root_inode.checked_shr(self.inodes_per_block_log).unwrap_or_default())
    }

    /// Blocks of such a chunk.
    pub(super) fn chunk(&self) -> u64 {
        64u64.checked_shr(self.inodes_per_block_log).unwrap_or_default().max(1)
    }

    fn check(&self, window: &Window<'_>) -> Result<(), Trouble> {
        let damaged = |what: String| Err(Trouble::damaged(what));
        let bytes = self.blocks.checked_mul(self.block_size);
        if bytes.is_none_or(|bytes| bytes > window.size()) {
            return damaged(format!(
                "it has {} blocks of {} bytes, more than the {} bytes where it lies",
                self.blocks,
                self.block_size,
                window.size()
            ));
        }
        let logarithm = self.group_blocks.checked_next_power_of_two().map(u64::trailing_zeros);
        if logarithm != Some(self.group_blocks_log) || self.group_blocks > 1 << 31 {
            return damaged("the superblock's number of blocks in a group cannot be".to_owned());
        }
        let last = self.groups.checked_sub(1).map(|last| self.blocks_of(last));
        let least = if self.groups == 1 { 1 } else { LEAST_GROUP };
        if self.blocks.div_ceil(self.group_blocks) != self.groups
            || last.is_none_or(|last| last < LEAST_BLOCKS)
            || self.group_blocks.saturating_mul(self.block_size) < least
        {
            return damaged(format!(
                "{} groups of {} blocks cannot be, where {} blocks are",
                self.groups, self.group_blocks, self.blocks
            ));
        }
        if self.free_blocks > self.blocks {
            return damaged(
                "the superblock says that more blocks are free than there are".to_owned(),
            );
        }
        let fits = |(group, start): (u64, u64), length: u64| {
            group < self.groups
                && start.checked_add(length).is_some_and(|end| end <= self.blocks_of(group))
        };
        if !fits(self.root(), self.chunk()) {
            return damaged("the root directory is said to lie outside".to_owned());
        }
        if self.log().is_some_and(|log| self.log_blocks == 0 || !fits(log, self.log_blocks)) {
            return damaged("the log is said to lie outside".to_owned());
        }
        Ok(())
    }
}

fn parse(raw: &[u8], v5: bool, sector_size: u64) -> Result<Superblock, Trouble> {
    let uuid = |at: usize| raw.get(at..).and_then(|rest| rest.first_chunk()).copied();
    let block_size = power_of_two(raw, "block", u64::from(be32_at(raw, 4)), 120, 9..=16)?;
    let inode_size = power_of_two(raw, "inode", u64::from(be16_at(raw, 104)), 122, 8..=11)?;
    let inodes = u64::from(be16_at(raw, 106));
    let inodes_per_block_log = u32::from(u8_at(raw, 123));
    if sector_size > block_size
        || inodes.saturating_mul(inode_size) != block_size
        || 1u64.checked_shl(inodes_per_block_log) != Some(inodes)
    {
        return Err(Trouble::damaged("its sectors or inodes do not fit into its blocks"));
    }
    let version = be16_at(raw, 100);
    let own = uuid(32).unwrap_or_default();
    let has_metadata_uuid = v5 && be32_at(raw, 216) & META_UUID != 0;
    let log_start = be64_at(raw, 48);
    Ok(Superblock {
        label: label(raw.get(108..120).unwrap_or_default()),
        v5,
        block_size,
        sector_size,
        blocks: be64_at(raw, 8),
        groups: u64::from(be32_at(raw, 88)),
        group_blocks: u64::from(be32_at(raw, 84)),
        group_blocks_log: u32::from(u8_at(raw, 124)),
        inodes_per_block_log,
        root_inode: be64_at(raw, 56),
        free_blocks: be64_at(raw, 144),
        owners: v5 && be32_at(raw, 212) & RMAPBT != 0,
        log_start: (log_start != 0).then_some(log_start),
        log_blocks: u64::from(be32_at(raw, 96)),
        log_v2: v5 || version & LOG_V2 != 0,
        uuid: own,
        metadata_uuid: if has_metadata_uuid { uuid(248).unwrap_or_default() } else { own },
        log_incompat: if v5 { be32_at(raw, 220) } else { 0 },
    })
}

fn power_of_two(
    raw: &[u8],
    what: &str,
    size: u64,
    logarithm_at: usize,
    allowed: std::ops::RangeInclusive<u8>,
) -> Result<u64, Trouble> {
    let logarithm = u8_at(raw, logarithm_at);
    if allowed.contains(&logarithm) && 1u64.checked_shl(u32::from(logarithm)) == Some(size) {
        Ok(size)
    } else {
        Err(Trouble::damaged(format!("its {what} size is said to be {size}, and 1 << {logarithm}")))
    }
}

// Of sb_versionnum.
const LOG_V2: u16 = 0x400;
const MOREBITS: u16 = 0x8000;
/// attr, nlink, quota, align, dalign, logv2, sector, extflg, dirv2, borg, morebits.
const VERSION: u16 =
    0x10 | 0x20 | 0x40 | 0x80 | 0x100 | LOG_V2 | 0x800 | 0x1000 | 0x2000 | 0x4000 | MOREBITS;
// Of sb_features2.
/// lazysbcount, attr2, projid32bit, crc, ftype.
const FEATURES2: u32 = 0x2 | 0x8 | 0x80 | 0x100 | 0x200;
/// finobt, rmapbt, reflink, inobtcount: trees of their own, whose blocks are no free ones.
const RO_COMPAT: u32 = 0x1 | RMAPBT | 0x4 | 0x8;
const RMAPBT: u32 = 0x2;
const META_UUID: u32 = 0x4;
const NEEDS_REPAIR: u32 = 0x10;
/// ftype, spinodes, meta_uuid, bigtime, nrext64, exchange-range, parent.
const INCOMPAT: u32 = 0x1 | 0x2 | META_UUID | 0x8 | 0x20 | 0x40 | 0x80;

fn features(raw: &[u8], v5: bool) -> Result<(), Trouble> {
    let refuse = |kind: &str, flags: u32| match flags {
        0 => Ok(()),
        _ => Err(Trouble::not_known(format!("its {kind} features {flags:#x} are not understood"))),
    };
    let version = be16_at(raw, 100);
    refuse("version", u32::from(version & !0xF & !VERSION))?;
    if version & MOREBITS != 0 {
        // There are two places of it: once compilers disagreed about the padding before it.
        refuse("version 2", (be32_at(raw, 200) | be32_at(raw, 204)) & !FEATURES2)?;
    }
    if !v5 {
        return Ok(());
    }
    let incompat = be32_at(raw, 216);
    if incompat & NEEDS_REPAIR != 0 {
        return Err(Trouble::damaged("it is marked to need xfs_repair"));
    }
    for (flag, name) in [(0x100, "metadir"), (0x200, "zoned"), (0x400, "zone_gaps")] {
        if incompat & flag != 0 {
            return Err(Trouble::not_known(format!("its feature {name} is not understood")));
        }
    }
    refuse("incompatible", incompat & !INCOMPAT)?;
    refuse("read-only compatible", be32_at(raw, 212) & !RO_COMPAT)
}

/// Whether a block's CRC-32C, which lies at `at` and counts as zero itself, is right.
pub(super) fn checksum_holds(raw: &[u8], at: usize) -> bool {
    let behind = at.saturating_add(4);
    let (Some(before), Some(rest)) = (raw.get(..at), raw.get(behind..)) else { return false };
    let crc = [&[0; 4], rest].into_iter().fold(crc32c(before), crc32c::crc32c_append);
    crc == u32_at(raw, at)
}
