//! The whole disk at once: what lies where, and which of it may be given away.
//!
//! # Who is believed
//! A file system's free bytes are only as good as the word that it is the one in that place. So nothing is
//! believed where two claim the same bytes: partitions that overlap others, or a disk that has both a
//! partition table with entries and a file system of its own; and nobody's on a disk on which a system is
//! suspended. Bytes that belong to no partition are never
//! free: boot loaders live there.

use std::io;
use std::ops::Range;

use crate::{Disk, FreeMap, Partition, Survey, Trouble, partitions, recognise, survey};

/// A partition, or the whole of a disk that has none, and what is in it.
#[derive(Debug)]
pub struct Volume {
    /// The partition; `None` for a disk without partitions.
    pub partition: Option<Partition>,
    /// Its bytes on the disk.
    pub range: Range<u64>,
    /// What its first bytes say it holds: `ext4`, `LVM`… `None` when they say nothing that is known.
    pub recognised: Option<&'static str>,
    /// Its space; or why nothing is known of that, and all of it counts as in use.
    pub space: Result<Survey, Trouble>,
}

impl Volume {
    /// What people call its contents, as exactly as is known.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        self.space.as_ref().map_or(self.recognised, |survey| Some(survey.name))
    }

    /// Its free bytes (counted from its start), if they may be given away: it says that it was left in good
    /// order, or the caller says so for it.
    #[must_use]
    pub fn free_to_give(&self, assume_clean: bool) -> Option<&FreeMap> {
        let survey = self.space.as_ref().ok()?;
        (survey.unclean.is_none() || assume_clean).then_some(&survey.free)
    }

    /// Why its free bytes are not given away, in a few words; `None` when they may be.
    #[must_use]
    pub fn kept_because(&self) -> Option<String> {
        match &self.space {
            Ok(survey) => survey.unclean.clone(),
            Err(trouble) => Some(trouble.to_string()),
        }
    }
}

/// Everything on a disk. Partitions that only hold others are left out. A disk without partitions is one
/// volume.
///
/// # Errors
/// The disk cannot be read. What cannot be read *within* a volume is that volume's trouble.
pub fn volumes(disk: &dyn Disk) -> io::Result<Vec<Volume>> {
    let whole = 0..disk.size();
    let parts = partitions(disk)?;
    let bare = recognise(disk, whole.clone())?;
    if parts.is_empty() {
        let space = survey(disk, whole.clone());
        let recognised = bare.map(|found| found.name);
        return Ok(vec![Volume { partition: None, range: whole, recognised, space }]);
    }
    let inner = || parts.iter().filter(|part| !part.kind.is_container());
    let mut found = Vec::new();
    for part in inner() {
        let recognised = recognise(disk, part.range.clone())?.map(|found| found.name);
        let other = inner().find(|other| other.number != part.number && overlap(other, part));
        let space = match (bare, other) {
            (Some(bare), _) => Err(Trouble::NotKnown(format!(
                "the disk has a partition table, and a {} file system over all of it: nobody can tell which one is in use",
                bare.name
            ))),
            (None, Some(other)) => Err(Trouble::Damaged(format!(
                "partitions {} and {} overlap",
                part.number, other.number
            ))),
            (None, None) => survey(disk, part.range.clone()),
        };
        let range = part.range.clone();
        found.push(Volume { partition: Some(part.clone()), range, recognised, space });
    }
    wake_nobody(&mut found);
    Ok(found)
}

/// A system that is suspended on one volume has others mounted, as they were. Some file systems do not show
/// that (btrfs never does), so none is believed.
fn wake_nobody(volumes: &mut [Volume]) {
    let asleep = |volume: &&Volume| volume.space.as_ref().is_ok_and(|survey| survey.asleep);
    let Some(bed) = volumes.iter().find(asleep) else { return };
    let number = bed.partition.as_ref().map_or(0, |partition| partition.number);
    let why = format!("a system is suspended on partition {number}, which may have this in use");
    for survey in volumes.iter_mut().filter_map(|volume| volume.space.as_mut().ok()) {
        survey.unclean.get_or_insert_with(|| why.clone());
    }
}

fn overlap(one: &Partition, other: &Partition) -> bool {
    one.range.start < other.range.end && other.range.start < one.range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        for (number, (kind, start, count)) in entries.iter().enumerate() {
            let entry = &mut disk[446 + number * 16..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&count.to_le_bytes());
        }
        disk
    }

    #[test]
    fn a_disk_without_partitions_is_one_volume() {
        let found = volumes(&vec![0; 1 << 20]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].range.clone(), found[0].name()), (0..1 << 20, None));
        assert!(found[0].free_to_give(true).is_none());
    }

    /// Each of two overlapping partitions may call free what the other one uses.
    #[test]
    fn partitions_that_overlap_give_nothing_away() {
        let disk = disk_with(&[(0x83, 2048, 2048), (0x83, 4095, 100), (0x83, 5000, 10)]);
        let found = volumes(&disk).unwrap();
        assert!(matches!(&found[0].space, Err(Trouble::Damaged(_))));
        assert!(matches!(&found[1].space, Err(Trouble::Damaged(_))));
        assert!(matches!(&found[2].space, Err(Trouble::NotKnown(_))));
    }

    /// A laptop that was closed: its btrfs looks the same as one that was unmounted.
    #[test]
    fn beside_a_suspended_system_nobody_is_believed() {
        let mut disk = disk_with(&[(0x82, 2048, 1024), (0x82, 4096, 1024)]);
        for start in [1 << 20, 2 << 20] {
            disk[start + 0x400..][..4].copy_from_slice(&1u32.to_le_bytes());
            disk[start + 0x404..][..4].copy_from_slice(&127u32.to_le_bytes());
            disk[start + 4086..][..10].copy_from_slice(b"SWAPSPACE2");
        }
        let awake = volumes(&disk).unwrap();
        assert!(awake.iter().all(|volume| volume.free_to_give(false).is_some()), "{awake:?}");
        disk[(2 << 20) + 4086..][..10].copy_from_slice(b"S1SUSPEND\0");
        let asleep = volumes(&disk).unwrap();
        assert!(asleep.iter().all(|volume| volume.free_to_give(false).is_none()), "{asleep:?}");
        assert!(asleep[0].kept_because().unwrap().contains("partition 2"));
    }

    /// A disk that was formatted whole and partitioned later, or the other way round.
    #[test]
    fn a_partition_table_beside_a_file_system_over_everything_gives_nothing_away() {
        let mut disk = disk_with(&[(0x83, 2048, 2048)]);
        // Inodes, blocks, magic.
        for (at, bytes) in [(0x400, [16, 0]), (0x404, [0, 4]), (0x438, [0x53, 0xEF])] {
            disk[at..at + 2].copy_from_slice(&bytes);
        }
        let found = volumes(&disk).unwrap();
        let why = found[0].kept_because().unwrap();
        assert!(why.contains("partition table"), "{why}");
    }
}
