//! The whole disk at once: what lies where, and which of it may be given away.
//!
//! # Who is believed
//! A file system's free bytes are only as good as the word that it is the one in that place. So nothing is
//! believed where two claim the same bytes: partitions that overlap others, or the tables that name them; a disk
//! that has both a partition table with entries and a file system of its own, or two partition tables that
//! disagree; nor on a disk with a partition table, or a trace of one, by which no partition is found; in a
//! partition of a type that may hold a piece of something larger; and on a disk one of whose volumes is not at
//! rest: its system may sleep, and have all of them in use. Bytes that belong to no partition are never free: boot
//! loaders live there.

use std::io;
use std::ops::Range;

use crate::free::MOST_RANGES;
use crate::partitions::{remains, tables, tables_disagree};
use crate::recognise::has_boot_sector;
use crate::{Disk, FreeMap, Partition, Survey, Trouble, Window};
use crate::{members, partitions, recognise, survey};

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
/// volume; one whose partition table is lost is one of which nothing is known.
///
/// # Errors
/// The disk cannot be read. What cannot be read *within* a volume is that volume's trouble.
pub fn volumes(disk: &dyn Disk) -> io::Result<Vec<Volume>> {
    let whole = 0..disk.size();
    let parts = partitions(disk)?;
    let bare = recognise(disk, whole.clone())?.map(|found| found.name);
    if parts.is_empty() {
        let space = match remains(disk, bare.is_some_and(has_boot_sector))? {
            Some(trace) => Err(Trouble::NotKnown(lost(trace, bare))),
            None => survey(disk, whole.clone()),
        };
        return Ok(vec![Volume { partition: None, range: whole, recognised: bare, space }]);
    }
    let owner = members::owner(&Window::new(disk, whole)).map_err(io::Error::other)?.or(bare);
    let doubt = match owner {
        Some(owner) => Some(format!(
            "the disk has a partition table, and the signs of {owner} over all of it: nobody can tell which one is in use"
        )),
        None if tables_disagree(disk)? => {
            Some("the disk has two partition tables (MBR and GPT), which disagree".to_owned())
        }
        None => None,
    };
    let layout = Layout { parts: &parts, tables: tables(disk)? };
    let mut room = MOST_RANGES;
    let mut found = Vec::new();
    for part in parts.iter().filter(|part| !part.kind.is_container()) {
        let recognised = recognise(disk, part.range.clone())?.map(|found| found.name);
        let space = match &doubt {
            Some(doubt) => Err(Trouble::NotKnown(doubt.clone())),
            None => survey_of(disk, part, &layout, &mut room),
        };
        let range = part.range.clone();
        found.push(Volume { partition: Some(part.clone()), range, recognised, space });
    }
    keep_sleepers(&mut found);
    Ok(found)
}

/// Why the whole disk is not believed where a partition table stands by which no partition is found.
fn lost(trace: &str, bare: Option<&str>) -> String {
    let older = bare.map_or_else(String::new, |bare| format!("; the signs of {bare} may be older"));
    format!("{trace}, but no partition can be found by it{older}")
}

/// What partitions there are, and where the tables stand that name them.
struct Layout<'a> {
    parts: &'a [Partition],
    tables: Vec<Range<u64>>,
}

impl Layout<'_> {
    /// Who else claims bytes of this partition: another one, or a table. An extended partition counts too: its tables
    /// stand between the logical ones.
    fn also_claimed(&self, part: &Partition) -> Option<String> {
        // Logical partitions are those of the first extended one, and lie in it.
        let around = self.parts.iter().find(|other| part.number > 4 && other.kind.is_container());
        let may_share = |other: &Partition| {
            other.number == part.number || around.is_some_and(|own| own.number == other.number)
        };
        let mut others = self.parts.iter().filter(|other| !may_share(other));
        if let Some(other) = others.find(|other| overlap(&other.range, &part.range)) {
            return Some(format!("partitions {} and {} overlap", part.number, other.number));
        }
        let table = self.tables.iter().find(|table| overlap(table, &part.range))?;
        let (number, start) = (part.number, table.start);
        Some(format!("partition {number} reaches over the partition table at {start}"))
    }
}

/// Surveys a partition, if nothing speaks against it.
fn survey_of(
    disk: &dyn Disk,
    part: &Partition,
    layout: &Layout<'_>,
    room: &mut usize,
) -> Result<Survey, Trouble> {
    if let Some(claim) = layout.also_claimed(part) {
        return Err(Trouble::Damaged(claim));
    }
    if !part.kind.holds_a_file_system() {
        let kind = part.kind;
        return Err(Trouble::NotKnown(format!(
            "a partition of {kind} may hold a piece of something larger"
        )));
    }
    let survey = survey(disk, part.range.clone())?;
    // A disk may name very many partitions.
    let ranges = survey.free.ranges().len();
    *room = room.checked_sub(ranges).ok_or_else(|| {
        Trouble::NotKnown("the disk has too many free ranges to remember".to_owned())
    })?;
    Ok(survey)
}

/// Those that mark themselves while they are mounted.
const MARKED: [&str; 9] =
    ["ext2", "ext3", "ext4", "XFS", "NTFS", "FAT12", "FAT16", "FAT32", "exFAT"];

/// A system that sleeps (suspended, or in a saved state of its machine) has all of its volumes in use. One of
/// them may show that, and others cannot: btrfs looks the same whether it is mounted or not, and swap space
/// has no state at all. So one that is not at rest speaks for all, and swap space needs another that is.
fn keep_sleepers(volumes: &mut [Volume]) {
    let survey = |volume: &Volume| volume.space.as_ref().ok().cloned();
    let restless = |volume: &&Volume| survey(volume).is_some_and(|s| s.unclean.is_some());
    let asleep = |volume: &&Volume| survey(volume).is_some_and(|survey| survey.asleep);
    let told = volumes.iter().find(asleep).or_else(|| volumes.iter().find(restless));
    let why = told.map(|told| {
        let number = told.partition.as_ref().map_or(0, |partition| partition.number);
        match asleep(&told) {
            true => format!("a system is suspended on partition {number}, and may have this in use"),
            false => format!("partition {number} was not left in good order: its system may be asleep, with this in use"),
        }
    });
    let at_rest = |volume: &Volume| {
        survey(volume).is_some_and(|s| s.unclean.is_none() && MARKED.contains(&s.name))
    };
    let somebody_rests = volumes.iter().any(at_rest) || volumes.len() < 2;
    for survey in volumes.iter_mut().filter_map(|volume| volume.space.as_mut().ok()) {
        if let Some(why) = &why {
            survey.unclean.get_or_insert_with(|| why.clone());
        }
        if survey.name == "swap" && !somebody_rests {
            let why = "nothing on the disk tells whether its system was shut down";
            survey.unclean.get_or_insert_with(|| why.to_owned());
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
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
        let why = awake[0].kept_because().unwrap();
        assert!(why.contains("shut down"), "two swap spaces tell nothing: {why}");
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
