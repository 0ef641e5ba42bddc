//! File systems, recognised by their first bytes.

use std::io::Result;
use std::ops::Range;

use crate::Disk;
use crate::bytes::{be32_at, be64_at, u8_at, u16_at, u32_at, u64_at};
use crate::swap::is_swap;

/// So far from its start a file system is recognised.
const FIRST_BYTES: usize = 72 << 10;

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
/// exFAT; or LVM, LUKS, BitLocker, swap, the journal of an ext3 or ext4 elsewhere. `None` when none of them is recognised.
///
/// # Errors
/// The disk cannot be read.
pub fn recognise(disk: &dyn Disk, range: Range<u64>) -> Result<Option<FileSystem>> {
    let start = first_bytes(disk, &range)?;
    let found = SIGNATURES.iter().find(|signature| (signature.is_there)(&start));
    Ok(found.map(|signature| FileSystem {
        name: signature.name,
        end: (signature.end)(&start).unwrap_or_else(|| room(disk, &range)),
        needs_recovery: signature.name == "ext4" && u32_at(&start, 0x460) & 4 != 0,
    }))
}

/// The names of all file systems whose signatures lie where `range` of the disk begins. More than one means
/// that something has survived there from earlier days, or was put there: nobody can tell which of them to
/// believe, and whoever writes by the wrong one destroys the other.
///
/// # Errors
/// The disk cannot be read.
pub(crate) fn signatures(disk: &dyn Disk, range: Range<u64>) -> Result<Vec<&'static str>> {
    let start = first_bytes(disk, &range)?;
    let found = SIGNATURES.iter().filter(|signature| (signature.is_there)(&start));
    Ok(found.map(|signature| signature.name).collect())
}

/// Whether a file system of this name begins with a sector that has a loader where an MBR has its entries.
pub(crate) fn has_boot_sector(name: &str) -> bool {
    ["NTFS", "exFAT", "FAT"].contains(&name)
}

/// What recognises a file system.
struct Signature {
    name: &'static str,
    is_there: fn(&[u8]) -> bool,
    /// The byte behind it, counted from its start; `None` when it does not say.
    end: fn(&[u8]) -> Option<u64>,
}

/// The first that is there gives the name.
const SIGNATURES: [Signature; 12] = [
    Signature { name: "ext4", is_there: is_ext, end: end_of_ext },
    Signature { name: "ext journal", is_there: is_ext_journal, end: end_of_ext },
    Signature { name: "XFS", is_there: |start| start.starts_with(b"XFSB"), end: end_of_xfs },
    Signature {
        name: "btrfs",
        is_there: |start| at(start, 0x10040).starts_with(b"_BHRfS_M"),
        end: |start| Some(u64_at(start, 0x10070)),
    },
    Signature {
        name: "NTFS",
        is_there: |start| at(start, 3).starts_with(b"NTFS    "),
        end: |start| sectors(u64_at(start, 0x28).saturating_add(1), u16_at(start, 0xB).into()),
    },
    Signature {
        name: "exFAT",
        is_there: |start| at(start, 3).starts_with(b"EXFAT   "),
        end: |start| {
            let sector = 1u64.checked_shl(u8_at(start, 0x6C).into()).unwrap_or(512);
            sectors(u64_at(start, 0x48), sector)
        },
    },
    Signature { name: "FAT", is_there: is_fat, end: end_of_fat },
    Signature { name: "LVM", is_there: is_lvm, end: |_| None },
    Signature {
        name: "BitLocker",
        is_there: |start| at(start, 3).starts_with(b"-FVE-FS-"),
        end: |_| None,
    },
    Signature { name: "LUKS", is_there: |start| start.starts_with(b"LUKS\xBA\xBE"), end: |_| None },
    Signature {
        name: "ReFS",
        is_there: |start| at(start, 3).starts_with(b"ReFS\0"),
        end: |_| None,
    },
    Signature { name: "swap", is_there: is_swap, end: |_| None },
];

fn first_bytes(disk: &dyn Disk, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut start = vec![0; FIRST_BYTES];
    let length = usize::try_from(room(disk, range)).unwrap_or(usize::MAX).min(start.len());
    if length > 0 {
        disk.read_at(range.start, start.get_mut(..length).unwrap_or_default())?;
    }
    Ok(start)
}

fn room(disk: &dyn Disk, range: &Range<u64>) -> u64 {
    range.end.min(disk.size()).saturating_sub(range.start)
}

fn at(start: &[u8], offset: usize) -> &[u8] {
    start.get(offset..).unwrap_or_default()
}

fn sectors(count: u64, size: u64) -> Option<u64> {
    Some(count.saturating_mul(size))
}

/// Its magic number has two bytes only, which may stand in anything that boots: some other numbers must be
/// such as can be.
fn is_ext(start: &[u8]) -> bool {
    let inodes = u32_at(start, 0x400);
    is_ext_superblock(start) && !is_journal_device(start) && inodes != 0
}

/// A place that holds nothing but the journal of a file system elsewhere: a superblock as ext4 has it, but for the
/// inodes, and behind it what the other one has not written in its place yet.
fn is_ext_journal(start: &[u8]) -> bool {
    is_ext_superblock(start) && is_journal_device(start)
}

fn is_ext_superblock(start: &[u8]) -> bool {
    let (blocks, log_block) = (end_of_ext(start), u32_at(start, 0x418));
    at(start, 0x438).starts_with(&[0x53, 0xEF]) && blocks != Some(0) && log_block <= 6
}

/// The feature `journal_dev`.
fn is_journal_device(start: &[u8]) -> bool {
    u32_at(start, 0x460) & 0x8 != 0
}

fn end_of_ext(start: &[u8]) -> Option<u64> {
    // The upper half counts where the feature 64bit is on.
    let high = if u32_at(start, 0x460) & 0x80 == 0 { 0 } else { u32_at(start, 0x550) };
    let blocks = u64::from(u32_at(start, 0x404)) | u64::from(high) << 32;
    Some(blocks.saturating_mul(1024u64.checked_shl(u32_at(start, 0x418))?))
}

fn end_of_xfs(start: &[u8]) -> Option<u64> {
    sectors(be64_at(start, 8), be32_at(start, 4).into())
}

fn is_fat(start: &[u8]) -> bool {
    at(start, 510).starts_with(&[0x55, 0xAA])
        && (at(start, 0x36).starts_with(b"FAT") || at(start, 0x52).starts_with(b"FAT32"))
}

fn end_of_fat(start: &[u8]) -> Option<u64> {
    let count = match u16_at(start, 0x13) {
        0 => u32_at(start, 0x20).into(),
        few => few.into(),
    };
    sectors(count, u16_at(start, 0xB).into())
}

/// Its label may be in any of the first four sectors.
fn is_lvm(start: &[u8]) -> bool {
    [0x018, 0x218, 0x418, 0x618].into_iter().any(|label| at(start, label).starts_with(b"LVM2 001"))
}
