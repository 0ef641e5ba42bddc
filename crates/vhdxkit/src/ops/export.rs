//! VHDX to raw: the disk's bytes, nothing else.
//!
//! A copy goes by extents: blocks that hold nothing, and holes of the file, are never read. What is
//! read is searched for zeros, which a sparse target need not store.

use std::io::Write;

use crate::storage::{Cloners, Storage};
use crate::{Error, Result};

use super::buffer::{Buffer, CHUNK};
use super::disk::{DiskRun, Source};
use super::progress::{Progress, advance};
use super::writeback::Writeback;
use super::zeros::{length, split_zeros};

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportReport {
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that were read from the image.
    pub read: u64,
    /// Bytes that were written to the target.
    pub written: u64,
}

/// What is known of a target before anything is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It is empty: what is not written reads as zeros.
    Empty,
    /// It holds something, and its length is given (a block device): zeros have to be written.
    InUse,
}

/// Zeros and shared bytes go in steps of this, so that a stop is heard.
const STEP: u64 = 1 << 30;

/// Copies the disk into `target`, leaving out zeros where it may, and makes it durable.
///
/// ```
/// use vhdxkit::ops::export::{Target, to_storage};
/// use vhdxkit::storage::MemoryStorage;
///
/// let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
/// let raw = MemoryStorage::default();
/// let report = to_storage(&image, &raw, Target::Empty, &mut ())?;
/// assert_eq!(report.virtual_size, image.virtual_size());
/// # Ok::<(), vhdxkit::Error>(())
/// ```
///
/// # Errors
/// The image cannot be read (a damaged block, a missing parent), the target cannot be written, or
/// the work was stopped. The target is then incomplete.
pub fn to_storage(
    source: &dyn Source,
    target: &dyn Storage,
    state: Target,
    progress: &mut dyn Progress,
) -> Result<ExportReport> {
    let size = source.size();
    let mut report = ExportReport { virtual_size: size, ..ExportReport::default() };
    let failed = |at: u64| move |e| Error::io("cannot write the copy", at, e);
    match state {
        Target::Empty => target.set_len(size).map_err(failed(size))?,
        Target::InUse => {
            let room = target.len().map_err(failed(0))?;
            if room < size {
                let text = format!("the target has {room} bytes, the disk has {size}");
                return Err(Error::invalid(text));
            }
        }
    }
    fill(source, target, state, progress, &mut report)?;
    target.sync().map_err(|e| Error::io_whole("cannot make the copy durable", e))?;
    Ok(report)
}

/// Copies the disk into a target that has room for it.
pub(super) fn fill(
    source: &dyn Source,
    target: &dyn Storage,
    state: Target,
    progress: &mut dyn Progress,
    report: &mut ExportReport,
) -> Result<()> {
    let failed = |at: u64| move |e| Error::io("cannot write the copy", at, e);
    let zeros = |range: std::ops::Range<u64>| match state {
        Target::Empty => Ok(()),
        Target::InUse => target.punch(range.clone()).map_err(failed(range.start)),
    };
    let mut cloners = Cloners::between(source.storages(), target);
    Writeback::during(target, |writeback| {
        copy(source, Some(&mut cloners), progress, report, &mut |piece| match piece {
            Piece::Zero(range) => zeros(range).map(|()| 0),
            Piece::Data(at, bytes) => {
                let mut written = 0u64;
                for (offset, bytes) in split_zeros(at, bytes) {
                    match bytes {
                        Ok(bytes) => {
                            target.write_at(offset, bytes).map_err(failed(offset))?;
                            written = written.saturating_add(length(bytes));
                        }
                        Err(count) => zeros(offset..offset.saturating_add(count))?,
                    }
                }
                writeback.wrote(written);
                Ok(written)
            }
        })
    })
}

/// Writes the whole disk to a stream, zeros included.
///
/// # Errors
/// As [`to_storage`].
pub fn to_stream(
    source: &dyn Source,
    target: &mut dyn Write,
    progress: &mut dyn Progress,
) -> Result<ExportReport> {
    let mut report = ExportReport { virtual_size: source.size(), ..ExportReport::default() };
    let nothing = vec![0; CHUNK];
    let failed = |at: u64| move |e| Error::io("cannot write the copy", at, e);
    copy(source, None, progress, &mut report, &mut |piece| match piece {
        Piece::Zero(range) => {
            let mut left = range.end.saturating_sub(range.start);
            while left > 0 {
                let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                target
                    .write_all(nothing.get(..now).unwrap_or_default())
                    .map_err(failed(range.end.saturating_sub(left)))?;
                left = left.saturating_sub(u64::try_from(now).unwrap_or_default());
            }
            Ok(range.end.saturating_sub(range.start))
        }
        Piece::Data(at, bytes) => {
            target.write_all(bytes).map_err(failed(at)).map(|()| length(bytes))
        }
    })?;
    target.flush().map_err(|e| Error::io_whole("cannot write the copy", e))?;
    Ok(report)
}

/// A piece of a disk.
pub(super) enum Piece<'a> {
    /// Zeros that were not read.
    Zero(std::ops::Range<u64>),
    /// Bytes, and where they start.
    Data(u64, &'a [u8]),
}

/// Hands the disk to `put` piece by piece, in order. `put` says how much it wrote.
pub(super) fn copy(
    source: &dyn Source,
    mut cloners: Option<&mut Cloners<'_>>,
    progress: &mut dyn Progress,
    report: &mut ExportReport,
    put: &mut dyn FnMut(Piece<'_>) -> Result<u64>,
) -> Result<()> {
    let mut buffer = Buffer::new();
    for run in source.runs() {
        let run = run?;
        if !run.data {
            let mut at = run.range.start;
            while at < run.range.end {
                let end = run.range.end.min(at.saturating_add(STEP));
                report.written = report.written.saturating_add(put(Piece::Zero(at..end))?);
                advance(progress, end.saturating_sub(at))?;
                at = end;
            }
            continue;
        }
        let mut at = run.range.start;
        if let (Some(cloners), Some(place)) = (&mut cloners, run.place) {
            at = share(cloners, &run, place, progress, report)?;
        }
        while at < run.range.end {
            let piece = buffer.first(run.range.end.saturating_sub(at));
            let now = length(piece);
            source.read_at(at, piece)?;
            report.read = report.read.saturating_add(now);
            report.written = report.written.saturating_add(put(Piece::Data(at, piece))?);
            advance(progress, now)?;
            at = at.saturating_add(now);
        }
    }
    Ok(())
}

/// Lets the copy share a run of the image's bytes. Returns where the system would not go on.
fn share(
    cloners: &mut Cloners<'_>,
    run: &DiskRun,
    (depth, place): (u32, u64),
    progress: &mut dyn Progress,
    report: &mut ExportReport,
) -> Result<u64> {
    let mut at = run.range.start;
    while at < run.range.end {
        let now = run.range.end.saturating_sub(at).min(STEP);
        let from = place.saturating_add(at.saturating_sub(run.range.start));
        let shared = cloners.share((depth, from), at, now);
        if !shared.map_err(|e| Error::io("cannot share the data with the copy", at, e))? {
            break;
        }
        report.written = report.written.saturating_add(now);
        advance(progress, now)?;
        at = at.saturating_add(now);
    }
    Ok(at)
}
