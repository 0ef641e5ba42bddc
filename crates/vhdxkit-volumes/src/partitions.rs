//! What is on a disk: its partitions as Linux numbers them, or the file system of a disk without any.
//!
//! Both partition tables that disks carry are understood: MBR with the logical partitions of an extended
//! one, and GPT, whose second copy is read where the first is damaged. A table is a guest's word: none of
//! its numbers is believed before it was compared with the disk, and none makes a walk longer than a bound
//! that stands in `mbr.rs` and `gpt.rs`.

mod gpt;
mod mbr;

use std::fmt;
use std::io::Result;
use std::ops::Range;

use uuid::Uuid;

use crate::Disk;

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// Its number as Linux counts: the entry's place in the table, from 1; logical partitions from 5.
    pub number: u32,
    /// Its bytes on the disk. Never empty, and cut off at the end of the disk.
    pub range: Range<u64>,
    /// What its table says that it is for.
    pub kind: PartitionType,
    /// Its name in a GPT; what cannot be printed is replaced. Empty in an MBR.
    pub name: String,
}

/// What a partition table says a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// The type byte of an MBR.
    Mbr(u8),
    /// The type GUID of a GPT.
    Gpt(Uuid),
}

/// What people call a type, where it has one name.
const MBR_NAMES: [(u8, &str); 12] = [
    (0x05, "extended"),
    (0x06, "FAT16"),
    (0x07, "NTFS or exFAT"),
    (0x0B, "FAT32"),
    (0x0C, "FAT32"),
    (0x0E, "FAT16"),
    (0x0F, "extended"),
    (0x27, "Windows recovery"),
    (0x82, "Linux swap"),
    (0x83, "Linux"),
    (0x8E, "Linux LVM"),
    (0xEF, "EFI system"),
];

/// Likewise.
const GPT_NAMES: [(u128, &str); 9] = [
    (0xC12A7328_F81F_11D2_BA4B_00A0C93EC93B, "EFI system"),
    (0xEBD0A0A2_B9E5_4433_87C0_68B6B72699C7, "Windows data"),
    (0xE3C9E316_0B5C_4DB8_817D_F92DF00215AE, "Microsoft reserved"),
    (0xDE94BBA4_06D1_4D40_A16A_BFD50179D6AC, "Windows recovery"),
    (0x0FC63DAF_8483_4772_8E79_3D69D8477DE4, "Linux"),
    (0x4F68BCE3_E8CD_4DB1_96E7_FBCAF984B709, "Linux root"),
    (0x0657FD6D_A4AB_43C4_84E5_0933C84B4F4F, "Linux swap"),
    (0xE6D6D379_F507_44C2_A23C_238F2A3DF928, "Linux LVM"),
    (0x21686148_6449_6E6F_744E_656564454649, "BIOS boot"),
];

impl PartitionType {
    /// What people call it; `None` when it has no common name.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Mbr(byte) => MBR_NAMES.iter().find(|(known, _)| *known == byte).map(|(_, n)| *n),
            Self::Gpt(guid) => GPT_NAMES
                .iter()
                .find(|(known, _)| Uuid::from_u128(*known) == guid)
                .map(|(_, name)| *name),
        }
    }

    /// Whether it only holds other partitions.
    #[must_use]
    pub fn is_container(self) -> bool {
        matches!(self, Self::Mbr(byte) if mbr::is_extended(byte))
    }

    /// The table that it stands in: `mbr` or `gpt`.
    #[must_use]
    pub fn table(self) -> &'static str {
        match self {
            Self::Mbr(_) => "mbr",
            Self::Gpt(_) => "gpt",
        }
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Mbr(byte)) => write!(f, "type {byte:#04x}"),
            (None, Self::Gpt(guid)) => write!(f, "type {guid}"),
        }
    }
}

/// An entry that is in use, its numbers as they stand in the table.
struct Entry {
    number: u32,
    start: u64,
    end: u64,
    kind: PartitionType,
    name: String,
}

/// The partitions of a disk, in the order of their numbers; none when it has no partition table. Those
/// that are empty or lie behind the end of the disk are left out. They may overlap: an extended partition
/// ([`PartitionType::is_container`]) holds others, and a damaged table may say anything.
///
/// # Errors
/// The disk cannot be read.
pub fn partitions(disk: &dyn Disk) -> Result<Vec<Partition>> {
    let end = disk.size();
    let in_use = entries(disk)?.into_iter().map(|entry| Partition {
        number: entry.number,
        range: entry.start..entry.end.min(end),
        kind: entry.kind,
        name: entry.name,
    });
    Ok(in_use.filter(|partition| !partition.range.is_empty()).collect())
}

/// The byte behind the last partition, which may lie behind the end of the disk; `None` when no partition
/// is found. A disk must not be cut shorter than that by accident.
///
/// # Errors
/// The disk cannot be read.
pub fn end_of_last(disk: &dyn Disk) -> Result<Option<u64>> {
    Ok(entries(disk)?.iter().map(|entry| entry.end).max())
}

fn entries(disk: &dyn Disk) -> Result<Vec<Entry>> {
    let sector = u64::from(disk.sector_size());
    let Some(table) = mbr::Table::read(disk, 0)? else { return Ok(Vec::new()) };
    match table.is_protective() {
        true => gpt::entries(disk, sector),
        false => mbr::entries(disk, sector, &table),
    }
}

/// Reads bytes of the disk; `None` when some of them lie behind its end.
fn bytes<const LENGTH: usize>(disk: &dyn Disk, at: u64) -> Result<Option<[u8; LENGTH]>> {
    let mut buf = [0; LENGTH];
    let length = u64::try_from(LENGTH).unwrap_or(u64::MAX);
    if at.saturating_add(length) > disk.size() {
        return Ok(None);
    }
    disk.read_at(at, &mut buf)?;
    Ok(Some(buf))
}
