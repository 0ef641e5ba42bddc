//! The superblock: what is understood of a file system, and where its trees begin.

use super::names::{CHUNK_TREE, ROOT_TREE, Root, uuid_at};
use crate::bytes::{label, u8_at, u16_at, u32_at, u64_at};
use crate::{Trouble, Window};

/// Where its copies lie, on devices that are large enough.
pub(super) const COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// Bytes of a copy.
pub(super) const LENGTH: u64 = 4096;

const MAGIC: &[u8] = b"_BHRfS_M";
/// Most bytes of its array of system chunks.
const SYSTEM_CHUNKS: usize = 2048;

/// Flags of `incompat_flags`, with their names; whether we can count its free space all the same. What stands
/// here as understood changes how files are stored, or what their items hold, but not whose space is whose.
const INCOMPAT: [(u64, &str, bool); 17] = [
    (1 << 0, "mixed backrefs", true),
    (1 << 1, "default subvolume", true),
    (1 << 2, "mixed groups", true),
    (1 << 3, "LZO", true),
    (1 << 4, "zstd", true),
    (1 << 5, "big metadata", true),
    (1 << 6, "extended irefs", true),
    // These two tell of chunks that are judged one by one.
    (1 << 7, "RAID56", true),
    (1 << 11, "RAID1C34", true),
    (1 << 8, "skinny metadata", true),
    (1 << 9, "no holes", true),
    (1 << 10, "metadata UUID", true),
    (1 << 16, "simple quotas", true),
    // Space is given out by other rules.
    (1 << 12, "zoned", false),
    (1 << 13, "extent tree v2", false),
    (1 << 14, "raid stripe tree", false),
    (1 << 17, "remap tree", false),
];
/// Without it, extents are written as before 2009.
const MIXED_BACKREFS: u64 = 1;
const METADATA_UUID: u64 = 1 << 10;

/// `compat_ro_flags` that are understood: the free space tree and whether it is valid, fs-verity, and …
const COMPAT_RO: u64 = 0b1111;
/// … a tree of its own for block groups.
const BLOCK_GROUP_TREE: u64 = 1 << 3;

/// `flags`: written, and relocated. Others tell of a seed of other devices, a mere image of metadata, a change
/// of identifiers or checksums that is under way.
const FLAGS: u64 = 0b11;
/// `flags`: an error was met.
const ERROR: u64 = 1 << 2;

/// The one device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) id: u64,
    pub(super) total_bytes: u64,
    /// Bytes that chunks take.
    pub(super) bytes_used: u64,
    pub(super) uuid: [u8; 16],
}

impl Device {
    /// A device item.
    pub(super) fn of_item(item: &[u8]) -> Self {
        Self {
            id: u64_at(item, 0),
            total_bytes: u64_at(item, 8),
            bytes_used: u64_at(item, 16),
            uuid: uuid_at(item, 66),
        }
    }
}

pub(super) struct Superblock {
    pub(super) generation: u64,
    pub(super) root: Root,
    pub(super) chunk_root: Root,
    log_root: u64,
    /// Bytes of all extents.
    pub(super) bytes_used: u64,
    /// Bytes of a sector and of a tree's node; powers of two, the first not above the second.
    pub(super) sector_size: u64,
    pub(super) node_size: u64,
    pub(super) device: Device,
    fsid: [u8; 16],
    /// What its nodes have as the file system's identifier.
    pub(super) node_fsid: [u8; 16],
    pub(super) label: String,
    has_errors: bool,
    pub(super) has_block_group_tree: bool,
    /// Chunks that the chunk tree itself lies in.
    pub(super) system_chunks: Vec<u8>,
}

impl Superblock {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Trouble> {
        let [first, ..] = COPIES;
        let bytes = window.read("the superblock", first, LENGTH)?;
        if bytes.get(0x40..0x48) != Some(MAGIC) {
            return Err(Trouble::damaged("the superblock has no magic number"));
        }
        // Others have other checksums: this comes before whatever is told by a checksum.
        match u16_at(&bytes, 0xC4) {
            0 => {}
            kind => {
                return Err(Trouble::not_known(format!("{} is not known", checksum_name(kind))));
            }
        }
        if !is_intact(&bytes, first) {
            return Err(Trouble::damaged("the superblock's checksum or place is wrong"));
        }
        judge_features(&bytes)?;
        let superblock = Self::of(&bytes);
        superblock.judge(&bytes, window)?;
        Ok(superblock)
    }

    fn of(bytes: &[u8]) -> Self {
        let root = |tree, name, at, generation, level| Root {
            tree,
            name,
            at: u64_at(bytes, at),
            generation: u64_at(bytes, generation),
            level: u8_at(bytes, level),
        };
        let incompat = u64_at(bytes, 0xBC);
        let fsid = uuid_at(bytes, 0x20);
        let array = usize::try_from(u32_at(bytes, 0xA0)).unwrap_or(usize::MAX).min(SYSTEM_CHUNKS);
        let system_chunks = bytes.get(0x32B..).and_then(|rest| rest.get(..array));
        Self {
            generation: u64_at(bytes, 0x48),
            root: root(ROOT_TREE, "root tree", 0x50, 0x48, 0xC6),
            chunk_root: root(CHUNK_TREE, "chunk tree", 0x58, 0xA4, 0xC7),
            log_root: u64_at(bytes, 0x60),
            bytes_used: u64_at(bytes, 0x78),
            sector_size: u32_at(bytes, 0x90).into(),
            node_size: u32_at(bytes, 0x94).into(),
            device: Device::of_item(bytes.get(0xC9..0x12B).unwrap_or_default()),
            fsid,
            node_fsid: if incompat & METADATA_UUID == 0 { fsid } else { uuid_at(bytes, 0x23B) },
            label: label(bytes.get(0x12B..0x22B).unwrap_or_default()),
            has_errors: u64_at(bytes, 0x38) & ERROR != 0,
            has_block_group_tree: u64_at(bytes, 0xB4) & BLOCK_GROUP_TREE != 0,
            system_chunks: system_chunks.unwrap_or_default().to_vec(),
        }
    }

    fn judge(&self, bytes: &[u8], window: &Window<'_>) -> Result<(), Trouble> {
        let sizes = self.sector_size..=64 << 10;
        let sound = (512..=64 << 10).contains(&self.sector_size)
            && self.sector_size.is_power_of_two()
            && self.node_size.is_power_of_two()
            && self.node_size >= 4096
            && sizes.contains(&self.node_size);
        if !sound {
            return Err(Trouble::damaged(format!(
                "sectors of {} bytes and nodes of {} cannot be",
                self.sector_size, self.node_size
            )));
        }
        let total = u64_at(bytes, 0x70);
        if total != self.device.total_bytes {
            return Err(Trouble::damaged(format!(
                "it has {total} bytes, and its only device {}",
                self.device.total_bytes
            )));
        }
        if total > window.size() {
            return Err(Trouble::damaged(format!(
                "it has {total} bytes where there are {}",
                window.size()
            )));
        }
        Ok(())
    }

    /// Why it is not in good order; `None` when it is.
    pub(super) fn unclean(&self, window: &Window<'_>) -> Result<Option<String>, Trouble> {
        if self.log_root != 0 {
            return Ok(Some("its log of fsyncs was not replayed".to_owned()));
        }
        if self.has_errors {
            return Ok(Some("it has met an error".to_owned()));
        }
        let [_, mirrors @ ..] = COPIES;
        for at in mirrors {
            if at.saturating_add(LENGTH) > self.device.total_bytes {
                break;
            }
            let bytes = window.read("a copy of the superblock", at, LENGTH)?;
            let is_copy = is_intact(&bytes, at) && uuid_at(&bytes, 0x20) == self.fsid;
            if is_copy && u64_at(&bytes, 0x48) > self.generation {
                return Ok(Some(format!("the copy of its superblock at {at} is newer")));
            }
        }
        Ok(None)
    }
}

/// Whether a superblock has its magic number, its checksum and its own place.
fn is_intact(bytes: &[u8], at: u64) -> bool {
    bytes.get(0x40..0x48) == Some(MAGIC)
        && u64_at(bytes, 0x30) == at
        && crc32c::crc32c(bytes.get(0x20..).unwrap_or_default()) == u32_at(bytes, 0)
}

fn judge_features(bytes: &[u8]) -> Result<(), Trouble> {
    let not_known = |what: String| Err(Trouble::not_known(what));
    let devices = u64_at(bytes, 0x88);
    if devices != 1 {
        return not_known(format!("it has {devices} devices"));
    }
    let incompat = u64_at(bytes, 0xBC);
    for bit in (0..u64::BITS).map(|bit| 1u64 << bit).filter(|bit| incompat & bit != 0) {
        match INCOMPAT.iter().find(|(known, _, _)| *known == bit) {
            Some((_, _, true)) => {}
            Some((_, name, false)) => return not_known(format!("its feature {name} is not known")),
            None => return not_known(format!("its feature {bit:#x} is not known")),
        }
    }
    if incompat & MIXED_BACKREFS == 0 {
        return not_known("its extents are those of before 2009".to_owned());
    }
    let read_only = u64_at(bytes, 0xB4) & !COMPAT_RO;
    if read_only != 0 {
        return not_known(format!("its read-only features {read_only:#x} are not known"));
    }
    let flags = u64_at(bytes, 0x38) & !(FLAGS | ERROR);
    if flags != 0 {
        return not_known(format!("its state {flags:#x} is not known"));
    }
    Ok(())
}

fn checksum_name(kind: u16) -> String {
    match kind {
        1 => "its checksum xxHash".to_owned(),
        2 => "its checksum SHA-256".to_owned(),
        3 => "its checksum BLAKE2".to_owned(),
        other => format!("its checksum {other}"),
    }
}
