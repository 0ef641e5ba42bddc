//! Every bound we put on a file, in one place, with its reason.
//!
//! A value above its limit is an error that says so; it never costs memory, time or disk first.

use super::MIB;

/// Virtual disks end here (MS-VHDX 2.6.2.2): 64 TiB.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Smallest payload block (MS-VHDX 2.6.2.1).
pub const MIN_BLOCK_SIZE: u32 = 1 << 20;
/// Largest payload block (MS-VHDX 2.6.2.1).
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Entries of a region table (MS-VHDX 2.2.3): what fits into its 64 KiB.
pub const MAX_REGIONS: u32 = 2047;
/// Entries of a metadata table (MS-VHDX 2.6.1).
pub const MAX_METADATA_ITEMS: u16 = 2047;
/// Entries with `IsUser` set in a metadata table (MS-VHDX 2.6.1).
pub const MAX_USER_METADATA_ITEMS: usize = 1024;
/// Bytes of one metadata item (MS-VHDX 2.6.1.2).
pub const MAX_METADATA_ITEM: u32 = 1 << 20;

/// Longest log we scan. The format allows 4 GiB and says nothing more; writers use 1 MiB to 64 MiB.
/// The scan reads the whole ring, so a crafted length must not cost minutes.
pub const MAX_LOG_LENGTH: u32 = 1 << 30;
/// No structure of a file may lie beyond this offset: a full 64 TiB disk with its tables needs
/// little more than a quarter of it. Bounds what a crafted log entry can make replay extend a file to.
pub const MAX_FILE_OFFSET: u64 = 256 << 40;
/// Guest bytes that an in-memory replay keeps. Metadata of a crashed file is a few MiB.
pub const MAX_OVERLAY_BYTES: u64 = 256 * MIB;
/// Separate ranges that an in-memory replay keeps (about 100 bytes each).
pub const MAX_OVERLAY_RANGES: usize = 1 << 20;
/// Key-value pairs of a parent locator; Windows writes five.
pub const MAX_LOCATOR_PAIRS: u16 = 256;
/// BAT bytes kept in memory per open image, 8 MiB: maps 1 TiB of 1 MiB blocks, or 32 TiB of 32 MiB blocks.
pub const MAX_CACHED_BAT_BYTES: usize = 8 << 20;
/// Sector bitmap bytes kept in memory per open image of a child, 2 MiB: those of 8 GiB of 512-byte sectors.
pub const MAX_CACHED_BITMAP_BYTES: usize = 2 << 20;
/// Images from a child to the disk without a parent, the child included. The format names no bound;
/// Hyper-V's own chains are far shorter.
pub const MAX_CHAIN_LENGTH: usize = 256;
/// Files of a folder whose headers are looked at when a parent or children are searched for.
pub const MAX_SEARCHED_FILES: usize = 10_000;
/// BAT changes told per log entry; further ones are counted.
pub const MAX_TOLD_CHANGES: usize = 1 << 16;
/// Findings kept per code by `check`; further ones are counted.
pub const MAX_FINDINGS_PER_CODE: usize = 20;
/// Pages of 4 KiB of a file's tables that a repair changes (256 MiB, which it keeps in memory).
pub const MAX_REPAIR_PAGES: usize = 1 << 16;
/// Blocks that a repair gives a place of their own because two claim the same.
pub const MAX_REPAIR_COPIES: usize = 1 << 16;
/// Blocks behind the end of a file that a repair gives up.
pub const MAX_REPAIR_LOST: usize = 1 << 22;
/// Bytes of free space at the end of a file that a repair cuts off: its undo file has to keep them.
pub const MAX_CUT_KEPT: u64 = 64 * MIB;
/// Ranges in an undo file, each of at most 1 MiB.
pub const MAX_UNDO_RECORDS: u32 = 1 << 20;
/// 4 KiB sectors of a log that a salvage keeps (64 MiB): what a ring of 1 MiB holds, 64 times.
pub const MAX_SALVAGED_SECTORS: usize = 1 << 14;
/// Runs of blocks with the same fate that a salvage lists; further ones are counted.
pub const MAX_LISTED_FATES: usize = 1 << 18;
/// BAT entries that are looked at to infer a block size nobody has recorded.
pub const MAX_INFERRED_FROM: usize = 1 << 20;
