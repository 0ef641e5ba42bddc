//! Places that belong to something larger: an array, a pool, an encrypted volume.
//!
//! Such a thing writes its own label, and leaves the rest of the place to its data. What a file system wrote
//! there in earlier days can survive for long, and looks whole. So the labels are looked for wherever they may
//! stand, those at the end of the place included, and where one stands nothing else is believed.

use crate::bytes::{be32_at, u32_at};
use crate::{Trouble, Window};

const SECTOR: u64 = 512;
/// Of Linux' md arrays.
const MD_MAGIC: u32 = 0xA92B_4EFC;
/// A label of a ZFS pool, of which there are two at each end.
const ZFS_LABEL: u64 = 256 << 10;
const ZFS_UBERBLOCKS: u64 = 128 << 10;
const ZFS_MAGIC: u32 = 0x00BA_B10C;
/// Of bcache, and of bcachefs since it has a number of its own.
const BCACHE: [[u8; 16]; 2] = [
    [
        0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D,
        0x81,
    ],
    [
        0xC6, 0x85, 0x73, 0xF6, 0x66, 0xCE, 0x90, 0xA9, 0xD9, 0x6A, 0x60, 0xCF, 0x80, 0x3D, 0xF7,
        0xEF,
    ],
];
/// BitLocker on a removable disk, behind a file system that only holds a reader for it.
const BITLOCKER_TO_GO: [u8; 16] = [
    0x3B, 0xD6, 0x67, 0x49, 0x29, 0x2E, 0xD8, 0x4A, 0x83, 0x99, 0xF6, 0xA3, 0x39, 0xE3, 0xD0, 0x01,
];

/// What the place belongs to; `None` when no such label stands in it.
pub(crate) fn owner(place: &Window<'_>) -> Result<Option<&'static str>, Trouble> {
    let start = read(place, 0, 8192)?;
    let at = |offset: usize| start.get(offset..).unwrap_or_default();
    if BCACHE.iter().any(|magic| at(4096 + 24).starts_with(magic)) {
        return Ok(Some("bcache"));
    }
    if at(0x1A8).starts_with(&BITLOCKER_TO_GO) {
        return Ok(Some("BitLocker"));
    }
    if is_array(place, &start)? {
        return Ok(Some("a RAID array"));
    }
    Ok(is_pool(place)?.then_some("a ZFS pool"))
}

/// Linux' arrays have their superblock at the start, 4 KiB behind it, or near the end; those of Intel's
/// firmware in the last sectors.
fn is_array(place: &Window<'_>, start: &[u8]) -> Result<bool, Trouble> {
    let is_md = |bytes: &[u8], at| u32_at(bytes, at) == MD_MAGIC || be32_at(bytes, at) == MD_MAGIC;
    if is_md(start, 0) || is_md(start, 4096) {
        return Ok(true);
    }
    let size = place.size();
    let sectors = size / SECTOR;
    let version_1_0 = (sectors.saturating_sub(16) & !7).saturating_mul(SECTOR);
    let version_0_9 = (size & !0xFFFF).saturating_sub(0x1_0000);
    for at in [version_1_0, version_0_9] {
        if at > 0 && is_md(&read(place, at, SECTOR)?, 0) {
            return Ok(true);
        }
    }
    let intel = sectors.saturating_sub(2).saturating_mul(SECTOR);
    Ok(read(place, intel, SECTOR)?.starts_with(b"Intel Raid ISM Cfg Sig."))
}

fn is_pool(place: &Window<'_>) -> Result<bool, Trouble> {
    let whole = place.size() & !ZFS_LABEL.saturating_sub(1);
    for label in [0, ZFS_LABEL, whole.saturating_sub(ZFS_LABEL)] {
        let ring = read(place, label.saturating_add(ZFS_UBERBLOCKS), ZFS_UBERBLOCKS)?;
        let is_uberblock = |block: &[u8]| {
            // Eight bytes, in the order of the machine that wrote them.
            (u32_at(block, 0) == ZFS_MAGIC && u32_at(block, 4) == 0)
                || (be32_at(block, 0) == 0 && be32_at(block, 4) == ZFS_MAGIC)
        };
        if ring.chunks_exact(1024).any(is_uberblock) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As much of this as the place has.
fn read(place: &Window<'_>, offset: u64, length: u64) -> Result<Vec<u8>, Trouble> {
    let length = place.size().saturating_sub(offset).min(length);
    if length == 0 { Ok(Vec::new()) } else { place.read("a label", offset, length) }
}
