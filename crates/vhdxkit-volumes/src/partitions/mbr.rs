//! The partition table in the first sector, and the chain of tables in an extended partition.
//!
//! Every table in that chain names the next one, and a damaged or hostile one may name itself: the walk
//! ends at a table that was seen before, and after [`MOST_LOGICAL`] in any case.

use std::collections::HashSet;
use std::io::Result;
use std::ops::Range;

use super::{Entry, PartitionType, bytes};
use crate::Disk;
use crate::bytes::u32_at;

/// No known system makes more logical partitions than 60.
const MOST_LOGICAL: usize = 128;

/// Whether a type says that the partition holds others.
pub(super) fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0F | 0x85)
}

/// Where a table's four entries stand in its sector.
const SLOTS: Range<usize> = 446..510;

/// Four entries.
pub(super) struct Table([Slot; 4]);

#[derive(Clone, Copy, Default)]
struct Slot {
    kind: u8,
    /// Sectors; from what, depends on the table.
    start: u64,
    sectors: u64,
}

impl Table {
    /// The table of the sector at this byte; `None` when there is none. The first sector of a file system
    /// ends with the same signature, but has a program where the entries would be.
    pub(super) fn read(disk: &dyn Disk, at: u64) -> Result<Option<Self>> {
        let Some(sector) = bytes::<512>(disk, at)? else { return Ok(None) };
        if sector.get(510..) != Some(&[0x55, 0xAA]) {
            return Ok(None);
        }
        let mut slots = [Slot::default(); 4];
        let raw = sector.get(SLOTS).unwrap_or_default().chunks_exact(16);
        for (slot, entry) in slots.iter_mut().zip(raw) {
            let active = entry.first().copied().unwrap_or_default();
            if !matches!(active, 0 | 0x80) {
                return Ok(None);
            }
            *slot = Slot {
                kind: entry.get(4).copied().unwrap_or_default(),
                start: u64::from(u32_at(entry, 8)),
                sectors: u64::from(u32_at(entry, 12)),
            };
        }
        Ok(Some(Self(slots)))
    }

    /// Whether it only keeps others off a disk that has a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.0.iter().any(|slot| slot.kind == 0xEE)
    }

    /// The first sector of the extended partition, which is the first of the kind, as Linux has it.
    fn extended(&self) -> Option<u64> {
        let found = self.0.iter().find(|slot| is_extended(slot.kind) && slot.sectors != 0);
        found.map(|slot| slot.start)
    }
}

impl Slot {
    /// Its entry when it is in use; `base` is the sector that it counts from.
    fn entry(self, number: u32, base: u64, sector: u64) -> Option<Entry> {
        let start = base.saturating_add(self.start);
        (self.kind != 0 && self.sectors != 0).then(|| Entry {
            number,
            start: start.saturating_mul(sector),
            end: start.saturating_add(self.sectors).saturating_mul(sector),
            kind: PartitionType::Mbr(self.kind),
            name: String::new(),
        })
    }
}

/// Whether anything stands where the first sector has a table's entries, be it a table that can be read or not: a flag or
/// the signature may be what was damaged.
pub(super) fn has_entries(disk: &dyn Disk) -> Result<bool> {
    let sector = bytes::<512>(disk, 0)?;
    let slots = sector.as_ref().and_then(|sector| sector.get(SLOTS)).unwrap_or_default();
    Ok(slots.iter().any(|byte| *byte != 0))
}

pub(super) fn entries(disk: &dyn Disk, sector: u64, table: &Table) -> Result<Vec<Entry>> {
    let slots = (1..).zip(&table.0);
    let mut found: Vec<Entry> =
        slots.filter_map(|(number, slot)| slot.entry(number, 0, sector)).collect();
    if let Some(first) = table.extended() {
        logical(disk, sector, first, &mut found)?;
    }
    Ok(found)
}

/// The sectors of the tables in the extended partition's chain: each holds the only word of where the next one is.
pub(super) fn places(disk: &dyn Disk, sector: u64, table: &Table) -> Result<Vec<Range<u64>>> {
    let Some(first) = table.extended() else { return Ok(Vec::new()) };
    let starts = chain(disk, sector, first)?.into_iter().map(|(at, _)| at.saturating_mul(sector));
    Ok(starts.map(|start| start..start.saturating_add(sector)).collect())
}

/// The partitions of the chain of an extended partition that begins at sector `first`, each counted from its table's
/// own place.
fn logical(disk: &dyn Disk, sector: u64, first: u64, found: &mut Vec<Entry>) -> Result<()> {
    let mut number = 5;
    for (at, table) in chain(disk, sector, first)? {
        let [one, two, ..] = table.0;
        for slot in [one, two] {
            if is_extended(slot.kind) {
                continue;
            }
            if let Some(entry) = slot.entry(number, at, sector) {
                found.push(entry);
                number = number.saturating_add(1);
            }
        }
    }
    Ok(())
}

/// The tables of such a chain, and the sectors where they stand: each has a partition and a link, which counts from
/// `first`, and may point anywhere.
fn chain(disk: &dyn Disk, sector: u64, first: u64) -> Result<Vec<(u64, Table)>> {
    let mut seen = HashSet::new();
    let mut tables = Vec::new();
    let mut at = first;
    while tables.len() < MOST_LOGICAL && seen.insert(at) {
        let Some(table) = Table::read(disk, at.saturating_mul(sector))? else { break };
        let [one, two, ..] = table.0;
        tables.push((at, table));
        match [one, two].into_iter().find(|slot| is_extended(slot.kind) && slot.sectors != 0) {
            Some(link) => at = first.saturating_add(link.start),
            None => break,
        }
    }
    Ok(tables)
}
