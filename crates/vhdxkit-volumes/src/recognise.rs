//! File systems, recognised by their first bytes.

use std::io::Result;
use std::ops::Range;

use crate::Disk;
use crate::bytes::{be32_at, be64_at, u16_at, u32_at, u64_at};

/// A file system on a disk or a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// What people call it.
    pub name: &'static str,
    /// The byte behind it, counted from its own start, as it says itself; the end of the place where it lies
    /// when it does not say.
    pub end: u64,
    /// Its journal has to be replayed before it can be used, as far as its first bytes tell.
    pub needs_recovery: bool,
}

/// The file system that begins where `range` of the disk does: ext2 to ext4, XFS, btrfs, NTFS, ReFS, FAT,
/// exFAT; or LVM, LUKS, BitLocker, swap. `None` when none of them is recognised.
///
/// # Errors
/// The disk cannot be read.
pub fn recognise(disk: &dyn Disk, range: Range<u64>) -> Result<Option<FileSystem>> {
    let room = range.end.min(disk.size()).saturating_sub(range.start);
    let mut start = vec![0; 72 << 10];
    let length = usize::try_from(room).unwrap_or(usize::MAX).min(start.len());
    if length > 0 {
        disk.read_at(range.start, start.get_mut(..length).unwrap_or_default())?;
    }
    Ok(by_first_bytes(&start, room))
}

fn by_first_bytes(start: &[u8], room: u64) -> Option<FileSystem> {
    let at = |offset: usize| start.get(offset..).unwrap_or_default();
    let found = |name, end: u64| Some(FileSystem { name, end, needs_recovery: false });
    if at(0x438).starts_with(&[0x53, 0xEF]) {
        let blocks = u64::from(u32_at(at(0x404), 0)) | u64::from(u32_at(at(0x550), 0)) << 32;
        let size = 1024u64.checked_shl(u32_at(at(0x418), 0)).unwrap_or(room);
        let needs_recovery = u32_at(at(0x460), 0) & 4 != 0;
        Some(FileSystem { name: "ext4", end: blocks.saturating_mul(size), needs_recovery })
    } else if at(0).starts_with(b"XFSB") {
        let block = u64::from(be32_at(start, 4));
        found("XFS", be64_at(start, 8).saturating_mul(block))
    } else if at(0x10040).starts_with(b"_BHRfS_M") {
        found("btrfs", u64_at(at(0x10070), 0))
    } else if at(3).starts_with(b"NTFS    ") {
        let sector = u64::from(u16_at(at(0xB), 0));
        found("NTFS", u64_at(at(0x28), 0).saturating_add(1).saturating_mul(sector))
    } else if at(3).starts_with(b"EXFAT   ") {
        let sector = 1u64.checked_shl(u32::from(at(0x6C).first().copied().unwrap_or(9)));
        found("exFAT", u64_at(at(0x48), 0).saturating_mul(sector.unwrap_or(512)))
    } else if is_fat(start) {
        let sectors = match u16_at(at(0x13), 0) {
            0 => u64::from(u32_at(at(0x20), 0)),
            few => u64::from(few),
        };
        found("FAT", sectors.saturating_mul(u64::from(u16_at(at(0xB), 0))))
    } else if at(0x218).starts_with(b"LVM2 001") {
        found("LVM", room)
    } else if at(3).starts_with(b"-FVE-FS-") {
        found("BitLocker", room)
    } else if at(0).starts_with(b"LUKS\xBA\xBE") {
        found("LUKS", room)
    } else if at(3).starts_with(b"ReFS\0") {
        found("ReFS", room)
    } else if at(0xFF6).starts_with(b"SWAPSPACE2") {
        found("swap", room)
    } else {
        None
    }
}

fn is_fat(start: &[u8]) -> bool {
    let at = |offset: usize| start.get(offset..).unwrap_or_default();
    at(510).starts_with(&[0x55, 0xAA])
        && (at(0x36).starts_with(b"FAT") || at(0x52).starts_with(b"FAT32"))
}
