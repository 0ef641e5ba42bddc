//! Replay: carrying out what the active sequence says (MS-VHDX 2.3.3).
//!
//! [`apply`] does the carrying out, into any storage: the file itself, or an overlay in memory when
//! the file must not be touched. [`replay_in_place`] wraps it in the order of writes that a crash at
//! any point cannot break:
//!
//! 1. One sync. What we have read may be in the operating system's cache only; were it lost after
//!    we build on it, the file would hold our half without the other.
//! 2. Header with a new FileWriteGuid, the log GUID unchanged, into the copy that is not current;
//!    sync. The format demands it before anything else changes. A crash leaves the old header or
//!    the new one, and both name the same log.
//! 3. Extend the file to the head's LastFileOffset, write every update in order, sync once. A
//!    crash in here is healed by replaying again: updates are whole sectors of final content.
//! 4. Header with log GUID zero into the other copy; sync. From here the log is history.
//! 5. The same header into the remaining copy; sync. Never both copies in one sync: a torn write
//!    could then take both.
//!
//! Whether the file is long enough (FlushedFileOffset of the head, and only of the head), and whether
//! the sequence number has room for three more headers, is asked before the first write. The DataWriteGuid stays: replay completes changes that it already
//! stands for, and children are linked by it.

use crate::defect::Defect;
use crate::format::log::{DATA_SECTOR_SIGNATURE, DataSector, ENTRY_HEADER_LENGTH};
use crate::format::{Guid, GuidSource, LOG_SECTOR, LOG_SECTOR_LEN};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::HeaderPair;
use crate::{Error, Result};
use zerocopy::FromBytes;

use super::entry::{Descriptor, EntryInfo};
use super::headers::{HeaderWriter, sync};
use super::ring::Ring;
use super::scan::ActiveSequence;

/// One change that a log entry makes to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update<'a> {
    /// These 4096 bytes are written.
    Data {
        /// File offset, a multiple of 4 KiB.
        file_offset: u64,
        /// The sector.
        sector: &'a [u8; LOG_SECTOR_LEN],
    },
    /// A range becomes zeros.
    Zero {
        /// File offset, a multiple of 4 KiB.
        file_offset: u64,
        /// Bytes, a multiple of 4 KiB.
        length: u64,
    },
}

/// What a replay did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayReport {
    /// Entries replayed.
    pub entries: u64,
    /// 4 KiB sectors written.
    pub sectors: u64,
    /// Bytes zeroed.
    pub zeroed: u64,
    /// The file's length before.
    pub bytes_before: u64,
    /// The file's length after.
    pub bytes_after: u64,
}

/// Calls `visit` with every update of one valid entry, in order. Memory: one batch of sectors.
pub(crate) fn for_each_update(
    ring: Ring<'_>,
    entry: &EntryInfo,
    visit: &mut dyn FnMut(Update<'_>) -> Result<()>,
) -> Result<()> {
    let head = crate::format::log::descriptor_sectors(entry.descriptors);
    let mut data_sector = ring.step(entry.sector(), head);
    let mut left = entry.descriptors;
    let mut table = [0; LOG_SECTOR_LEN];
    let mut batch = Vec::new();
    for number in 0..head {
        ring.read(ring.step(entry.sector(), number), &mut table)?;
        let skip = if number == 0 { ENTRY_HEADER_LENGTH } else { 0 };
        let mut descriptors = Vec::new();
        for raw in table.get(skip..).unwrap_or_default().chunks_exact(32) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(1);
            let (descriptor, _) = Descriptor::parse(raw, 0).map_err(|_| changed_under_us())?;
            descriptors.push(descriptor);
        }
        let data = descriptors.iter().filter(|d| matches!(d, Descriptor::Data { .. })).count();
        batch.resize(data.saturating_mul(LOG_SECTOR_LEN), 0);
        ring.read(data_sector, &mut batch)?;
        data_sector = ring.step(data_sector, u32::try_from(data).unwrap_or_default());
        visit_batch(&descriptors, &batch, entry.sequence, visit)?;
    }
    Ok(())
}

fn visit_batch(
    descriptors: &[Descriptor],
    batch: &[u8],
    sequence: u64,
    visit: &mut dyn FnMut(Update<'_>) -> Result<()>,
) -> Result<()> {
    let mut framed = batch.chunks_exact(LOG_SECTOR_LEN);
    let mut sector = [0; LOG_SECTOR_LEN];
    for descriptor in descriptors {
        match *descriptor {
            Descriptor::Zero { file_offset, length } => {
                visit(Update::Zero { file_offset, length })?;
            }
            Descriptor::Data { file_offset, leading, trailing } => {
                let raw = framed.next().ok_or_else(changed_under_us)?;
                let raw = DataSector::ref_from_bytes(raw).map_err(|_| changed_under_us())?;
                let (_, low) = crate::format::log::sequence_halves(sequence);
                if raw.signature != DATA_SECTOR_SIGNATURE || raw.sequence_low.to_bytes() != low {
                    return Err(changed_under_us());
                }
                let (first, rest) = sector.split_at_mut(leading.len());
                let (middle, last) = rest.split_at_mut(raw.data.len());
                first.copy_from_slice(&leading);
                middle.copy_from_slice(&raw.data);
                last.copy_from_slice(&trailing);
                visit(Update::Data { file_offset, sector: &sector })?;
            }
        }
    }
    Ok(())
}

/// The scan has judged every byte of these entries; something else now stands there.
fn changed_under_us() -> Error {
    Error::io_whole(
        "cannot read the log",
        std::io::Error::other(
            "it changed while it was being read: another program writes the file",
        ),
    )
}

/// V9: a file shorter than the head says was stable has lost its end. To be asked before anything
/// is applied.
pub(crate) fn judge_length(ring: Ring<'_>, active: &ActiveSequence, file_size: u64) -> Result<()> {
    match active.head() {
        Some(head) if file_size < head.flushed_file_offset => Err(Defect::Truncated {
            at: ring.file_offset(head.sector()).saturating_add(0x30),
            flushed: head.flushed_file_offset,
            file_size,
        }
        .into()),
        _ => Ok(()),
    }
}

/// Carries out the active sequence in `target`. The log is read from `ring`, which may be the same
/// storage: no update targets the log.
pub(crate) fn apply(
    ring: Ring<'_>,
    active: &ActiveSequence,
    target: &dyn Storage,
) -> Result<ReplayReport> {
    let bytes_before = target.length()?;
    let mut report = ReplayReport { bytes_before, ..ReplayReport::default() };
    let last = active.head().map_or(0, |head| head.last_file_offset);
    let mut length = bytes_before;
    if last > length {
        set_len(target, last)?;
        length = last;
    }
    for entry in active.entries() {
        for_each_update(ring, entry, &mut |update| {
            match update {
                Update::Data { file_offset, sector } => {
                    target
                        .write_at(file_offset, sector)
                        .map_err(failed("cannot replay the log: cannot write", file_offset))?;
                    length = length.max(file_offset.saturating_add(u64::from(LOG_SECTOR)));
                    report.sectors = report.sectors.saturating_add(1);
                }
                Update::Zero { file_offset, length: zeros } => {
                    let end = file_offset.saturating_add(zeros);
                    if end > length {
                        set_len(target, end)?;
                        length = end;
                    }
                    target
                        .punch(file_offset..end)
                        .map_err(failed("cannot replay the log: cannot zero", file_offset))?;
                    report.zeroed = report.zeroed.saturating_add(zeros);
                }
            }
            Ok(())
        })?;
        report.entries = report.entries.saturating_add(1);
    }
    report.bytes_after = length;
    Ok(report)
}

/// What a target reports; an overlay that would outgrow its bounds names them.
fn failed(action: &'static str, offset: u64) -> impl FnOnce(std::io::Error) -> Error {
    move |e| match e.kind() {
        std::io::ErrorKind::OutOfMemory => Error::limit(format!("{action}: {e}")),
        _ => Error::io(action, offset, e),
    }
}

fn set_len(target: &dyn Storage, length: u64) -> Result<()> {
    target.set_len(length).map_err(failed("cannot replay the log: cannot extend the file", length))
}

/// Replays the log into the file itself. Afterwards both headers are clean and complete.
pub(crate) fn replay_in_place(
    storage: &dyn Storage,
    headers: HeaderPair,
    ring: Ring<'_>,
    active: &ActiveSequence,
    guids: &GuidSource,
) -> Result<(HeaderPair, ReplayReport)> {
    judge_length(ring, active, storage.length()?)?;
    let mut headers = HeaderWriter::new(headers);
    // Three headers will be written. To find that out at the last one would be too late.
    headers.require_room(3)?;
    sync(storage)?;
    headers.put(storage, |h| h.file_write_guid = guids.guid())?;
    sync(storage)?;
    headers.synced();
    let report = apply(ring, active, storage)?;
    sync(storage)?;
    headers.put(storage, |h| h.log_guid = Guid::ZERO)?;
    sync(storage)?;
    headers.synced();
    headers.put_second(storage)?;
    sync(storage)?;
    Ok((headers.pair().clone(), report))
}
