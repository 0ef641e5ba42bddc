//! What is on a disk: its partitions as Linux numbers them, or the file system of a disk without any.
//!
//! Both partition tables that disks carry are understood: MBR with the logical partitions of an extended
//! one, and GPT, whose second copy is read where the first is damaged. A table is a guest's word: none of
//! its numbers is believed before it was compared with the disk, and none makes a walk longer than a bound
//! that stands in `mbr.rs` and `gpt.rs`.

mod gpt;
mod mbr;
mod remains;

use std::fmt;
use std::io::Result;
use std::ops::Range;

use uuid::Uuid;

pub(crate) use remains::remains;

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

/// FAT, NTFS and exFAT, hidden ones too; recovery; Linux; its swap; EFI.
const PLAIN_MBR: [u8; 20] = [
    0x01, 0x04, 0x06, 0x07, 0x0B, 0x0C, 0x0E, 0x11, 0x14, 0x16, 0x17, 0x1B, 0x1C, 0x1E, 0x27, 0x82,
    0x83, 0x93, 0xEA, 0xEF,
];

/// EFI, Windows' data and recovery; Linux: data, swap, /home, /srv, /boot, /var, and roots and /usr of the
/// common machines.
const PLAIN_GPT: [u128; 15] = [
    0xC12A7328_F81F_11D2_BA4B_00A0C93EC93B,
    0xEBD0A0A2_B9E5_4433_87C0_68B6B72699C7,
    0xDE94BBA4_06D1_4D40_A16A_BFD50179D6AC,
    0x0FC63DAF_8483_4772_8E79_3D69D8477DE4,
    0x0657FD6D_A4AB_43C4_84E5_0933C84B4F4F,
    0x933AC7E1_2EB4_4F13_B844_0E14E2AEF915,
    0x3B8F8425_20E0_4F3B_907F_1A25A76F98E8,
    0xBC13C2FF_59E6_4262_A352_B275FD6F7172,
    0x4D21B016_B534_45C2_A9FB_5C16E091FD2D,
    0x4F68BCE3_E8CD_4DB1_96E7_FBCAF984B709,
    0x44479540_F297_41B2_9AF7_D131D5F0458A,
    0xB921B045_1DF0_41C3_AF44_4C6F280D3FAE,
    0x69DAD710_2CE4_4E3C_B16C_21A1D49ABED3,
    0x8484680C_9521_48C6_9C11_B0720656F69E,
    0xB0E01050_EE5F_4390_949A_9101B17104E9,
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

    /// Whether such a partition holds one file system, or swap space, and all of it. Those of arrays, pools,
    /// volume managers and dynamic disks hold pieces of something else, which may look like one.
    #[must_use]
    pub fn holds_a_file_system(self) -> bool {
        match self {
            Self::Mbr(byte) => PLAIN_MBR.contains(&byte),
            Self::Gpt(guid) => PLAIN_GPT.iter().any(|known| Uuid::from_u128(*known) == guid),
        }
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

/// Whether the first copy of a GPT is there, with both of its checksums: only then can the second one be spared, and
/// be made anew from it.
///
/// # Errors
/// The disk cannot be read.
pub fn first_gpt_is_intact(disk: &dyn Disk) -> Result<bool> {
    gpt::first_is_intact(disk, u64::from(disk.sector_size()))
}

fn entries(disk: &dyn Disk) -> Result<Vec<Entry>> {
    let sector = u64::from(disk.sector_size());
    let Some(table) = mbr::Table::read(disk, 0)? else { return Ok(Vec::new()) };
    match table.is_protective() {
        true => gpt::entries(disk, sector),
        false => mbr::entries(disk, sector, &table),
    }
}

/// Whether the table that only keeps others off a GPT's disk has partitions of its own, which some systems go
/// by, at other places than the GPT.
pub(crate) fn tables_disagree(disk: &dyn Disk) -> Result<bool> {
    let sector = u64::from(disk.sector_size());
    let Some(table) = mbr::Table::read(disk, 0)?.filter(mbr::Table::is_protective) else {
        return Ok(false);
    };
    let known = gpt::entries(disk, sector)?;
    let own = mbr::entries(disk, sector, &table)?.into_iter();
    let mut own = own.filter(|entry| entry.kind != PartitionType::Mbr(0xEE));
    Ok(own.any(|own| !known.iter().any(|gpt| (gpt.start, gpt.end) == (own.start, own.end))))
}

/// Where the tables themselves stand. A partition that reaches over one may call it free.
pub(crate) fn tables(disk: &dyn Disk) -> Result<Vec<Range<u64>>> {
    let sector = u64::from(disk.sector_size());
    let Some(table) = mbr::Table::read(disk, 0)? else { return Ok(Vec::new()) };
    let mut places = match table.is_protective() {
        true => gpt::places(disk, sector)?,
        false => mbr::places(disk, sector, &table)?,
    };
    places.push(0..sector);
    Ok(places)
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
