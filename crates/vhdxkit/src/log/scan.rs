//! Finding every entry of the ring, and the active sequence among them (MS-VHDX 2.3.2).
//!
//! # One linear pass
//! The specification's search starts anew at every sector and may read the whole ring each time.
//! We read it once, because of one fact: **no valid entry contains a sector that starts with an
//! entry's signature.** Its further descriptor sectors start with a descriptor's signature, its
//! data sectors with theirs, and both are checked. So while an entry is being judged, a sector
//! that starts another one settles that the first is torn, and judging never has to go back.
//! Every sector is judged once; only an entry that wraps reads sectors of the ring's start a second
//! time. Valid entries therefore never overlap, and the search of the specification becomes
//! following "ends where the next begins, one number higher" from entry to entry.
//!
//! # Which sequence is active
//! Runs of entries with consecutive numbers are followed as far as they go. A run is complete when
//! the Tail of its last entry is the start of one of its entries; entries before that one were in
//! place when the last was written and are *not* replayed: their space may have been reused since.
//! Among complete runs the one with the highest last number is active. Torn, stale and foreign
//! entries end a run and never end the search.

use std::collections::BTreeMap;

use crate::Result;
use crate::defect::EntryFault;
use crate::format::{Guid, LOG_SECTOR, LOG_SECTOR_LEN};

use super::entry::{EntryInfo, Judge, Verdict};
use super::ring::Ring;

/// An entry found in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) info: EntryInfo,
    /// Why it does not count; `None`: it is valid.
    pub(crate) fault: Option<EntryFault>,
    /// The highest file offset it writes to.
    pub(crate) highest_end: u64,
}

/// Everything the ring holds that starts like an entry, in the order of the ring.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) found: Vec<Found>,
    /// Sectors that were judged, counted each time: at most twice the ring's.
    pub(crate) sectors_judged: u64,
}

const SECTORS_PER_READ: u32 = 64;

/// Reads the whole ring once.
pub(crate) fn scan(ring: Ring<'_>) -> Result<Scan> {
    let mut scanner = Scanner { ring, scan: Scan::default(), open: None };
    let sectors = ring.sectors();
    scanner.run(0, sectors, false)?;
    // An entry that reached the end of the ring goes on at its start.
    scanner.run(0, sectors, true)?;
    if let Some(judge) = scanner.open.take() {
        let fault = judge.cut();
        scanner.settle(&judge, Err(fault));
    }
    let mut scan = scanner.scan;
    scan.found.sort_by_key(|found| found.info.log_offset);
    Ok(scan)
}

struct Scanner<'a> {
    ring: Ring<'a>,
    scan: Scan,
    open: Option<Judge>,
}

impl Scanner<'_> {
    /// Judges `count` sectors from `first`. While `wrapped`, only to finish the open entry.
    fn run(&mut self, first: u32, count: u32, wrapped: bool) -> Result<()> {
        let mut buf = vec![0; LOG_SECTOR_LEN.saturating_mul(64)];
        let mut done = 0u32;
        while done < count && !(wrapped && self.open.is_none()) {
            let now = SECTORS_PER_READ.min(count.saturating_sub(done));
            let bytes = usize::try_from(now).unwrap_or(0).saturating_mul(LOG_SECTOR_LEN);
            let piece = buf.get_mut(..bytes).unwrap_or_default();
            self.ring.read(first.saturating_add(done), piece)?;
            for sector in piece.chunks_exact(LOG_SECTOR_LEN) {
                if wrapped && self.open.is_none() {
                    break;
                }
                self.take(first.saturating_add(done), sector, wrapped);
                done = done.saturating_add(1);
            }
        }
        Ok(())
    }

    fn take(&mut self, number: u32, sector: &[u8], wrapped: bool) {
        self.scan.sectors_judged = self.scan.sectors_judged.saturating_add(1);
        let offset = number.saturating_mul(LOG_SECTOR);
        let started = Judge::start(offset, sector, self.ring.place());
        let (judge, verdict) = match (self.open.take(), started) {
            (Some(torn), started) if started.is_some() => {
                let fault = torn.cut();
                self.settle(&torn, Err(fault));
                match started {
                    // On the way round the start of the ring was already judged.
                    Some(started) if !wrapped => started,
                    _ => return,
                }
            }
            (None, Some(started)) => started,
            (Some(mut judge), _) => {
                let verdict = judge.feed(sector);
                (judge, verdict)
            }
            (None, None) => return,
        };
        match verdict {
            Verdict::More => self.open = Some(judge),
            Verdict::Valid(end) => self.settle(&judge, Ok(end)),
            Verdict::Invalid(fault) => self.settle(&judge, Err(fault)),
        }
    }

    fn settle(&mut self, judge: &Judge, outcome: Result<u64, EntryFault>) {
        let (fault, highest_end) = match outcome {
            Ok(end) => (None, end),
            Err(fault) => (Some(fault), 0),
        };
        self.scan.found.push(Found { info: judge.info, fault, highest_end });
    }
}

/// The newest complete sequence: what has to be replayed, oldest entry first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSequence {
    entries: Vec<EntryInfo>,
    retired: usize,
}

impl ActiveSequence {
    /// The entries to replay, in order: from the one the head's Tail names to the head. Never empty.
    #[must_use]
    pub fn entries(&self) -> &[EntryInfo] {
        &self.entries
    }

    /// The newest entry.
    #[must_use]
    pub fn head(&self) -> Option<&EntryInfo> {
        self.entries.last()
    }

    /// How many entries of the same run lie before the Tail: already in place, not replayed.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired
    }
}

/// Finds the active sequence of the session `log_guid`.
pub(crate) fn active_sequence(
    scan: &Scan,
    ring: Ring<'_>,
    log_guid: Guid,
) -> Option<ActiveSequence> {
    let valid: BTreeMap<u32, &EntryInfo> = scan
        .found
        .iter()
        .filter(|found| found.fault.is_none() && found.info.log_guid == log_guid)
        .map(|found| (found.info.sector(), &found.info))
        .collect();
    let next = |entry: &EntryInfo| -> Option<&EntryInfo> {
        let follower = valid.get(&ring.step(entry.sector(), entry.sectors()))?;
        (Some(follower.sequence) == entry.sequence.checked_add(1)).then_some(*follower)
    };
    let followers: Vec<u32> = valid.values().filter_map(|e| next(e)).map(|e| e.sector()).collect();
    let followers: std::collections::BTreeSet<u32> = followers.into_iter().collect();

    let mut best: Option<ActiveSequence> = None;
    for (_, start) in valid.iter().filter(|(sector, _)| !followers.contains(sector)) {
        let run: Vec<EntryInfo> =
            std::iter::successors(Some(*start), |entry| next(entry)).copied().collect();
        let Some(head) = run.last() else { continue };
        let Some(tail) = run.iter().position(|entry| entry.log_offset == head.tail) else {
            continue;
        };
        let newest = best.as_ref().and_then(ActiveSequence::head).map_or(0, |head| head.sequence);
        if head.sequence > newest {
            let entries = run.get(tail..).unwrap_or_default().to_vec();
            best = Some(ActiveSequence { entries, retired: tail });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::EntryBuilder;
    use crate::storage::MemoryStorage;
    use crate::view::headers::LogPlace;

    const MIB: usize = 1 << 20;
    const GUID: Guid = Guid::from_u128(0x1234);
    const PLACE: LogPlace = LogPlace { offset: 1 << 20, length: 1 << 20 };

    fn entry(sequence: u64, tail_sector: u32, data: u8) -> Vec<u8> {
        let mut entry =
            EntryBuilder::new(GUID, sequence).tail(tail_sector * 4096).file_sizes(4 << 20, 4 << 20);
        for sector in 0..u64::from(data) {
            entry.data((3 << 20) + sector * 4096, &[data; 4096]).unwrap();
        }
        entry.encode().unwrap()
    }

    /// A log with these entries at these sectors, wrapping.
    fn log(entries: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut file = vec![0; 4 * MIB];
        for (sector, bytes) in entries {
            for (index, piece) in bytes.chunks(4096).enumerate() {
                let at = MIB + (*sector as usize + index) % 256 * 4096;
                file[at..at + 4096].copy_from_slice(piece);
            }
        }
        file
    }

    fn sequences(file: Vec<u8>) -> Option<(Vec<u64>, usize)> {
        let storage = MemoryStorage::new(file);
        let ring = Ring::new(&storage, PLACE);
        let active = active_sequence(&scan(ring).unwrap(), ring, GUID)?;
        Some((active.entries().iter().map(|e| e.sequence).collect(), active.retired()))
    }

    #[test]
    fn the_worked_example_wraps_between_descriptor_and_data_sector() {
        let file = log(&[(253, entry(41, 253, 1)), (255, entry(42, 253, 1))]);
        assert_eq!(sequences(file), Some((vec![41, 42], 0)));
    }

    #[test]
    fn a_sequence_that_fills_the_ring_exactly_is_found_and_the_search_ends() {
        // 127 entries of two sectors and one of two: 256 sectors, starting in the middle.
        let entries: Vec<_> =
            (0..128).map(|i| ((100 + 2 * i) % 256, entry(u64::from(i) + 1, 100, 1))).collect();
        let (found, retired) = sequences(log(&entries)).unwrap();
        assert_eq!((found.len(), retired), (128, 0));
        assert_eq!(found, (1..=128).collect::<Vec<u64>>());
    }

    /// Trap 1: the first entry found is not where replay starts, the head's Tail is.
    #[test]
    fn replay_starts_at_the_heads_tail() {
        let file = log(&[(0, entry(1, 0, 1)), (2, entry(2, 0, 1)), (4, entry(3, 2, 1))]);
        assert_eq!(sequences(file), Some((vec![2, 3], 1)));
    }

    /// Trap 1: the second entry of a run must carry the next number, too.
    #[test]
    fn a_run_ends_where_the_number_does_not_grow_by_one() {
        let file = log(&[(0, entry(5, 0, 1)), (2, entry(7, 2, 1)), (4, entry(8, 2, 1))]);
        assert_eq!(sequences(file), Some((vec![7, 8], 0)));
    }

    /// Trap 1: runs are compared by their last number, not by their first.
    #[test]
    fn the_run_with_the_highest_last_number_wins() {
        let file = log(&[
            (0, entry(10, 0, 1)),
            (2, entry(11, 0, 1)),
            (4, entry(12, 0, 1)),
            (100, entry(11, 100, 1)),
        ]);
        assert_eq!(sequences(file), Some((vec![10, 11, 12], 0)));
    }

    /// Trap 2: QEMU stops at the first thing it cannot read.
    #[test]
    fn torn_and_stale_entries_do_not_end_the_search() {
        let mut torn = entry(50, 0, 3);
        torn.truncate(2 * 4096);
        let file = log(&[(0, entry(3, 0, 1)), (9, torn), (40, entry(20, 40, 2))]);
        assert_eq!(sequences(file), Some((vec![20], 0)));
    }

    /// Trap 7: an entry whose Tail was overwritten leaves no complete sequence.
    #[test]
    fn a_head_whose_tail_is_gone_is_not_active() {
        assert_eq!(sequences(log(&[(10, entry(3, 0, 1)), (12, entry(4, 0, 1))])), None);
        assert_eq!(sequences(log(&[])), None);
    }

    #[test]
    fn a_tail_in_the_middle_of_an_entry_is_not_its_start() {
        assert_eq!(sequences(log(&[(0, entry(3, 0, 2)), (3, entry(4, 1, 1))])), None);
    }

    /// The checksum is right in all of these: each field has to be judged for itself.
    #[test]
    fn every_field_of_an_entry_counts_even_under_a_right_checksum() {
        let patched = |offset: usize, bytes: &[u8]| {
            let mut entry = entry(9, 20, 2);
            entry[offset..offset + bytes.len()].copy_from_slice(bytes);
            let sum = crate::format::checksum::of_structure(&entry);
            entry[4..8].copy_from_slice(&sum.to_le_bytes());
            sequences(log(&[(20, entry)]))
        };
        assert_eq!(patched(56, &[0; 8]), Some((vec![9], 0)), "an innocent change");
        for (what, offset, bytes) in [
            ("entry length", 8, &[0, 0x40, 0, 0][..]),
            ("entry length of no whole sector", 8, &[0, 0x31, 0, 0]),
            ("tail of no whole sector", 12, &[1]),
            ("tail beyond the log", 12, &[0, 0, 0x10]),
            ("sequence number zero", 16, &[0]),
            ("descriptor count", 24, &[1]),
            ("descriptor count", 24, &[3]),
            ("another session", 32, &[0x99]),
            ("last file offset", 56, &[0xFF; 8]),
            ("descriptor signature", 64, b"desk"),
            ("descriptor offset of no whole sector", 64 + 16, &[1]),
            ("descriptor sequence", 64 + 24, &[8]),
            ("second descriptor's sequence", 96 + 24, &[8]),
            ("data signature", 4096, b"Data"),
            ("sequence high", 4096 + 4, &[1]),
            ("sequence low", 8192 - 4, &[8]),
            ("sequence low of the last sector", 3 * 4096 - 4, &[8]),
        ] {
            assert_eq!(patched(offset, bytes), None, "{what}");
        }
    }

    /// Trap 2: descriptors beyond the first 126 stand in sectors without a header.
    #[test]
    fn descriptors_fill_further_sectors() {
        for count in [126, 127, 200] {
            let file = log(&[(200, entry(9, 200, count))]);
            assert_eq!(sequences(file), Some((vec![9], 0)), "{count}");
        }
    }

    /// A ring full of entries that each claim the whole ring must not be read again for each.
    #[test]
    fn a_hostile_ring_is_judged_in_linear_time() {
        let mut file = vec![0; 4 * MIB];
        let mut header = entry(1, 0, 0);
        header[8..12].copy_from_slice(&(1u32 << 20).to_le_bytes());
        header[24..28].copy_from_slice(&200u32.to_le_bytes());
        for sector in 0..256 {
            file[MIB + sector * 4096..][..4096].copy_from_slice(&header);
        }
        let storage = MemoryStorage::new(file);
        let scan = scan(Ring::new(&storage, PLACE)).unwrap();
        assert_eq!(scan.found.len(), 256);
        assert!(scan.sectors_judged <= 2 * 256, "{}", scan.sectors_judged);
    }

    #[test]
    fn sequence_numbers_may_reach_the_end_of_64_bits() {
        let file = log(&[(0, entry(u64::MAX - 1, 0, 1)), (2, entry(u64::MAX, 0, 1))]);
        assert_eq!(sequences(file), Some((vec![u64::MAX - 1, u64::MAX], 0)));
    }
}
