//! The superblock of ext2, ext3 and ext4: shape, features, state.
//!
//! What can be computed twice is: the number of groups from blocks and from inodes, the sizes from their
//! logarithms and from each other. A feature is either known here, with what it does to free space, or it
//! is refused by its name; there is no third way.

use crc32c::crc32c_append;

use crate::bytes::{label, u8_at, u16_at, u32_at, u64_at};
use crate::{Trouble, Window};

/// Bytes from the start of the file system to its first superblock, whatever the block size.
const AT: u64 = 1024;
/// More groups are not surveyed: so many take some 100 MiB of memory, and are 128 TiB of usual size.
const MOST_GROUPS: u64 = 1 << 20;

mod compat {
    pub(super) const HAS_JOURNAL: u32 = 0x4;
    pub(super) const LAZY_BG: u32 = 0x40;
    pub(super) const EXCLUDE_BITMAP: u32 = 0x100;
    pub(super) const SPARSE_SUPER2: u32 = 0x200;
}

mod incompat {
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BIT64: u32 = 0x80;
    pub(super) const MMP: u32 = 0x100;
    pub(super) const FLEX_BG: u32 = 0x200;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    /// Besides those above: extents, ea_inode, dirdata, largedir, inline_data, encrypt, casefold. They
    /// change what files and directories look like, not how space is given out.
    pub(super) const HARMLESS: u32 = 0x40 | 0x400 | 0x1000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
    pub(super) const NAMES: [(u32, &str); 2] = [(0x1, "compression"), (0x8, "journal_dev")];
}

mod ro_compat {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const LARGE_FILE: u32 = 0x2;
    pub(super) const BTREE_DIR: u32 = 0x4;
    pub(super) const GDT_CSUM: u32 = 0x10;
    pub(super) const BIGALLOC: u32 = 0x200;
    pub(super) const METADATA_CSUM: u32 = 0x400;
    pub(super) const ORPHAN_PRESENT: u32 = 0x1_0000;
    /// Besides those above: huge_file, dir_nlink, extra_isize, quota, read-only, project, shared_blocks,
    /// verity.
    pub(super) const HARMLESS: u32 = 0x8 | 0x20 | 0x40 | 0x100 | 0x1000 | 0x2000 | 0x4000 | 0x8000;
    pub(super) const NAMES: [(u32, &str); 2] = [(0x80, "snapshot"), (0x800, "replica")];
}

/// What the superblock says; only shapes that hold together get here.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) name: &'static str,
    pub(super) label: String,
    /// Bytes.
    pub(super) block_size: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) groups: u64,
    pub(super) blocks_per_group: u64,
    /// Blocks of a cluster: 1 without `bigalloc`.
    pub(super) cluster: u64,
    /// Blocks that a group's inode table takes.
    pub(super) inode_table: u64,
    /// Bytes of a group descriptor.
    pub(super) descriptor: u64,
    pub(super) free_blocks: u64,
    pub(super) reserved_gdt: u64,
    /// From this descriptor block on, descriptors lie in their own meta block groups.
    pub(super) first_meta_bg: u64,
    pub(super) flex_bg: bool,
    pub(super) checksum: Checksum,
    backups: Backups,
    state: State,
}

/// How descriptors and bitmaps are protected.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checksum {
    None,
    /// `gdt_csum`, also called `uninit_bg`: CRC-16 of descriptors, begun with the UUID.
    Crc16([u8; 16]),
    /// `metadata_csum`: CRC-32C of descriptors and bitmaps, begun with this seed.
    Crc32c(u32),
}

/// Which groups begin with a copy of the superblock.
#[derive(Debug, Clone, Copy)]
enum Backups {
    All,
    /// 0, 1, and powers of 3, 5, and 7.
    Sparse,
    /// 0 and these; 0 where there is none.
    Two(u64, u64),
}

/// What tells whether it was unmounted cleanly.
#[derive(Debug, Clone, Copy)]
struct State {
    flags: u16,
    needs_recovery: bool,
    orphans: bool,
    mmp_block: Option<u64>,
}

impl Superblock {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Trouble> {
        let raw = window.read("the superblock", AT, 1024)?;
        if u16_at(&raw, 56) != 0xEF53 {
            return Err(Trouble::damaged("the superblock has no magic number"));
        }
        let features = Features::read(&raw)?;
        if features.ro_compat & ro_compat::METADATA_CSUM != 0 {
            check(&raw)?;
        }
        let found = parse(&raw, features)?;
        let length = found.blocks.checked_mul(found.block_size);
        if length.is_none_or(|length| length > window.size()) {
            return Err(Trouble::damaged(format!(
                "it has {} blocks of {} bytes, more than the {} bytes where it lies",
                found.blocks,
                found.block_size,
                window.size()
            )));
        }
        Ok(found)
    }

    /// Bytes.
    pub(super) fn length(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    pub(super) fn group_start(&self, group: u64) -> u64 {
        group.saturating_mul(self.blocks_per_group).saturating_add(self.first_block)
    }

    /// The block behind a group; the last one may be shorter.
    pub(super) fn group_end(&self, group: u64) -> u64 {
        self.group_start(group.saturating_add(1)).min(self.blocks)
    }

    /// Descriptors in a block; never 0.
    pub(super) fn per_block(&self) -> u64 {
        self.block_size.checked_div(self.descriptor).unwrap_or(1).max(1)
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        self.groups.div_ceil(self.per_block())
    }

    /// Blocks at a group's start that a copy of the superblock takes, with what lies before it: 0 where there
    /// is none. With blocks of 1 KiB that count from 0, the first superblock is block 1.
    pub(super) fn superblock_copy(&self, group: u64) -> u64 {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        let has = match self.backups {
            Backups::All => true,
            Backups::Sparse => group <= 1 || [3, 5, 7].into_iter().any(power_of),
            Backups::Two(one, other) => group == 0 || group == one || group == other,
        };
        let behind_boot_block = group == 0 && self.block_size == 1024 && self.first_block == 0;
        u64::from(has).saturating_add(u64::from(behind_boot_block))
    }

    /// Why it was not left in good order, as far as that is known without its journal.
    ///
    /// Orphans are files deleted or cut while they were open: their blocks are still in use in the bitmaps, so
    /// those hold; but it was not the end of a clean unmount that left them, and the next mount will change
    /// the bitmaps before anything else.
    pub(super) fn unclean(&self, window: &Window<'_>) -> Result<Option<String>, Trouble> {
        const VALID: u16 = 1;
        const ERROR: u16 = 2;
        const ORPHANS: u16 = 4;
        let why = if self.state.needs_recovery {
            "its journal has to be replayed: it was not unmounted cleanly, or is mounted"
        } else if self.state.flags & ERROR != 0 {
            "it has recorded errors, and wants to be checked"
        } else if self.state.flags & VALID == 0 {
            "it was not unmounted cleanly, or is mounted"
        } else if self.state.flags & !VALID & !ORPHANS != 0 {
            "its state has flags that are not known"
        } else if self.state.flags & ORPHANS != 0 || self.state.orphans {
            "files that were deleted while open wait to be removed: it was not unmounted cleanly"
        } else {
            return self.multiple_mount_protection(window);
        };
        Ok(Some(why.to_owned()))
    }

    fn multiple_mount_protection(&self, window: &Window<'_>) -> Result<Option<String>, Trouble> {
        const MAGIC: u32 = 0x004D_4D50;
        const CLEAN: u32 = 0xFF4D_4D50;
        let Some(block) = self.state.mmp_block else { return Ok(None) };
        let what = "the block of multiple mount protection";
        if block <= self.first_block || block >= self.blocks {
            return Err(Trouble::damaged(format!("{what} is said to be {block}")));
        }
        let raw = window.read(what, block.saturating_mul(self.block_size), 1024)?;
        if u32_at(&raw, 0) != MAGIC {
            return Err(Trouble::damaged(format!("{what} has no magic number")));
        }
        let why = "its multiple mount protection says that it is in use";
        Ok((u32_at(&raw, 4) != CLEAN).then(|| why.to_owned()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Features {
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

impl Features {
    fn read(raw: &[u8]) -> Result<Self, Trouble> {
        let features = Self {
            compat: u32_at(raw, 92),
            incompat: u32_at(raw, 96),
            ro_compat: u32_at(raw, 100),
        };
        match u32_at(raw, 76) {
            0 if features.compat | features.incompat | features.ro_compat != 0 => {
                Err(Trouble::damaged("revision 0 has no features, and yet some are set"))
            }
            0 | 1 => features.known().map(|()| features),
            revision => Err(Trouble::not_known(format!("revision {revision} is not known"))),
        }
    }

    /// Unknown compatible features are fine: who does not know them may even write.
    fn known(self) -> Result<(), Trouble> {
        let incompat = {
            use incompat::{BIT64, CSUM_SEED, FILETYPE, FLEX_BG, HARMLESS, META_BG, MMP, RECOVER};
            FILETYPE | RECOVER | META_BG | BIT64 | MMP | FLEX_BG | CSUM_SEED | HARMLESS
        };
        let ro_compat = {
            use ro_compat::{BIGALLOC, BTREE_DIR, GDT_CSUM, HARMLESS, LARGE_FILE};
            use ro_compat::{METADATA_CSUM, ORPHAN_PRESENT, SPARSE_SUPER};
            let checksums = GDT_CSUM | METADATA_CSUM;
            let others = SPARSE_SUPER | LARGE_FILE | BTREE_DIR | BIGALLOC | ORPHAN_PRESENT;
            checksums | others | HARMLESS
        };
        refuse("incompatible", self.incompat & !incompat, &incompat::NAMES)?;
        refuse("read-only compatible", self.ro_compat & !ro_compat, &ro_compat::NAMES)?;
        let moving = self.compat & (compat::LAZY_BG | compat::EXCLUDE_BITMAP);
        let names = [(compat::LAZY_BG, "lazy_bg"), (compat::EXCLUDE_BITMAP, "exclude_bitmap")];
        refuse("compatible", moving, &names)
    }

    /// The name that `blkid` gives: the oldest of the three drivers that could have mounted it.
    fn name(self) -> &'static str {
        use incompat::{FILETYPE, META_BG, RECOVER};
        use ro_compat::{BTREE_DIR, LARGE_FILE, SPARSE_SUPER};
        let old = self.incompat & !(FILETYPE | META_BG | RECOVER) == 0
            && self.ro_compat & !(SPARSE_SUPER | LARGE_FILE | BTREE_DIR) == 0;
        match (old, self.compat & compat::HAS_JOURNAL != 0) {
            (true, false) => "ext2",
            (true, true) => "ext3",
            (false, _) => "ext4",
        }
    }
}

/// `flags` should be 0.
fn refuse(kind: &str, flags: u32, names: &[(u32, &str)]) -> Result<(), Trouble> {
    if flags == 0 {
        return Ok(());
    }
    let named = names.iter().find(|(flag, _)| flags & flag != 0).map(|(_, name)| *name);
    Err(Trouble::not_known(match named {
        Some(name) => format!("its feature {name} is not understood"),
        None => format!("its {kind} features {flags:#x} are not understood"),
    }))
}

/// CRC-32C as the kernel chains it: nothing is inverted, neither at the start nor at the end.
pub(super) fn crc32c_raw(crc: u32, bytes: &[u8]) -> u32 {
    !crc32c_append(!crc, bytes)
}

fn check(raw: &[u8]) -> Result<(), Trouble> {
    if u8_at(raw, 373) != 1 {
        return Err(Trouble::not_known("the kind of its checksums is not known"));
    }
    let found = crc32c_raw(u32::MAX, raw.get(..1020).unwrap_or_default());
    if found == u32_at(raw, 1020) {
        Ok(())
    } else {
        Err(Trouble::damaged("the superblock's checksum is wrong"))
    }
}

fn parse(raw: &[u8], features: Features) -> Result<Superblock, Trouble> {
    let has = |flag| features.incompat & flag != 0;
    let bigalloc = features.ro_compat & ro_compat::BIGALLOC != 0;
    let wide = |low: usize, high: usize| {
        let high = if has(incompat::BIT64) { u64::from(u32_at(raw, high)) << 32 } else { 0 };
        u64::from(u32_at(raw, low)) | high
    };
    let (block_size, cluster) = sizes(raw, bigalloc)?;
    let inode_size = inode_size(raw, block_size)?;
    let inodes_per_group = u64::from(u32_at(raw, 40));
    let inode_table = inodes_per_group.saturating_mul(inode_size).div_ceil(block_size);
    let state = State {
        flags: u16_at(raw, 58),
        needs_recovery: has(incompat::RECOVER),
        orphans: u32_at(raw, 232) != 0 || features.ro_compat & ro_compat::ORPHAN_PRESENT != 0,
        mmp_block: has(incompat::MMP).then(|| u64_at(raw, 360)),
    };
    let superblock = Superblock {
        name: features.name(),
        label: label(raw.get(120..136).unwrap_or_default()),
        block_size,
        blocks: wide(4, 336),
        first_block: u64::from(u32_at(raw, 20)),
        groups: 0,
        blocks_per_group: u64::from(u32_at(raw, 32)),
        cluster,
        inode_table,
        descriptor: descriptor_size(raw, has(incompat::BIT64))?,
        free_blocks: wide(12, 344),
        reserved_gdt: u64::from(u16_at(raw, 206)),
        first_meta_bg: if has(incompat::META_BG) { u64::from(u32_at(raw, 260)) } else { u64::MAX },
        flex_bg: has(incompat::FLEX_BG),
        checksum: checksum(raw, features),
        backups: backups(raw, features),
        state,
    };
    let groups = groups(raw, &superblock)?;
    Ok(Superblock { groups, ..superblock })
}

/// Bytes of a block, blocks of a cluster.
fn sizes(raw: &[u8], bigalloc: bool) -> Result<(u64, u64), Trouble> {
    let (block, cluster) = (u32_at(raw, 24), u32_at(raw, 28));
    if block > 6 {
        return Err(Trouble::damaged(format!("its block size is said to be 1024 << {block}")));
    }
    let ratio = match cluster.checked_sub(block) {
        Some(ratio) if bigalloc && cluster <= 19 => ratio,
        Some(0) => 0,
        // Long ago this field was the size of fragments, which nobody ever had.
        _ if !bigalloc => 0,
        _ => {
            return Err(Trouble::damaged(format!("its clusters are said to be 1024 << {cluster}")));
        }
    };
    Ok((1024 << block, 1 << ratio))
}

fn inode_size(raw: &[u8], block_size: u64) -> Result<u64, Trouble> {
    let size = if u32_at(raw, 76) == 0 { 128 } else { u64::from(u16_at(raw, 88)) };
    if size.is_power_of_two() && (128..=block_size).contains(&size) {
        Ok(size)
    } else {
        Err(Trouble::damaged(format!("its inodes are said to take {size} bytes")))
    }
}

fn descriptor_size(raw: &[u8], bit64: bool) -> Result<u64, Trouble> {
    let size = u64::from(u16_at(raw, 254));
    match size {
        _ if !bit64 => Ok(32),
        64..=1024 if size.is_power_of_two() => Ok(size),
        _ => Err(Trouble::damaged(format!("its group descriptors are said to take {size} bytes"))),
    }
}

fn checksum(raw: &[u8], features: Features) -> Checksum {
    let uuid = raw.get(104..120).and_then(|uuid| uuid.first_chunk()).copied().unwrap_or_default();
    if features.ro_compat & ro_compat::METADATA_CSUM != 0 {
        let own = features.incompat & incompat::CSUM_SEED != 0;
        Checksum::Crc32c(if own { u32_at(raw, 624) } else { crc32c_raw(u32::MAX, &uuid) })
    } else if features.ro_compat & ro_compat::GDT_CSUM != 0 {
        Checksum::Crc16(uuid)
    } else {
        Checksum::None
    }
}

fn backups(raw: &[u8], features: Features) -> Backups {
    if features.compat & compat::SPARSE_SUPER2 != 0 {
        Backups::Two(u64::from(u32_at(raw, 588)), u64::from(u32_at(raw, 592)))
    } else if features.ro_compat & ro_compat::SPARSE_SUPER != 0 {
        Backups::Sparse
    } else {
        Backups::All
    }
}

/// How many groups there are, once everything that is counted in them agrees.
fn groups(raw: &[u8], sb: &Superblock) -> Result<u64, Trouble> {
    let damaged = |what: &str| Err(Trouble::damaged(what));
    let bits = sb.block_size.saturating_mul(8);
    let clusters = sb.blocks_per_group.checked_div(sb.cluster).unwrap_or_default();
    let first = u64::from(sb.block_size == 1024 && sb.cluster == 1);
    if sb.first_block != first || sb.blocks <= first {
        return damaged("the superblock's number of blocks, or that of the first, cannot be");
    }
    // Whole bytes of a bitmap, which fits into one block.
    let shape = clusters.saturating_mul(sb.cluster) == sb.blocks_per_group
        && (sb.cluster == 1 || u64::from(u32_at(raw, 36)) == clusters);
    if !shape || !clusters.is_multiple_of(8) || clusters > bits || sb.blocks_per_group < 256 {
        return damaged("the superblock's number of blocks in a group cannot be");
    }
    let inodes_per_group = u64::from(u32_at(raw, 40));
    if inodes_per_group == 0 || inodes_per_group > bits {
        return damaged("the superblock's number of inodes in a group cannot be");
    }
    let groups = sb.blocks.saturating_sub(first).div_ceil(sb.blocks_per_group);
    if groups.saturating_mul(inodes_per_group) != u64::from(u32_at(raw, 0)) {
        return damaged(
            "the superblock's numbers of blocks and of inodes belong to different numbers of groups",
        );
    }
    if sb.free_blocks > sb.blocks {
        return damaged("the superblock says that more blocks are free than there are");
    }
    if groups > MOST_GROUPS {
        return Err(Trouble::not_known(format!("it has {groups} groups, more than {MOST_GROUPS}")));
    }
    Ok(groups)
}
