//! Guest bytes, and zeros, into the file: straight to their places, not through the log.

use std::ops::Range;

use crate::map::Place;
use crate::storage::Storage;
use crate::{Error, Result};

use super::Writer;

/// Zeros to be written where a hole would be wrong or too small to be worth it.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
const ZERO_STEP: u64 = 64 << 10;
/// A file system's unit: holes are made of whole ones.
const HOLE_UNIT: u64 = 4096;

/// What a part of a block is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    Zeros,
}

/// Writes a part of a block that lies at a file offset.
pub(super) fn put(
    writer: &Writer,
    file_offset: u64,
    part: &Range<u64>,
    payload: Payload<'_>,
) -> Result<()> {
    let range = part.start.saturating_add(file_offset)..part.end.saturating_add(file_offset);
    match payload {
        Payload::Bytes(bytes) => write(writer, range.start, bytes),
        Payload::Zeros => zero(writer, range, true),
    }
}

/// Fills a new place: the bytes, and zeros around them.
pub(super) fn fill(
    writer: &Writer,
    place: Place,
    whole: bool,
    within: u64,
    bytes: &[u8],
) -> Result<()> {
    if !whole && !place.zero {
        let range = place.offset..place.end();
        writer.file.punch(range).map_err(failed("cannot clear a new block", place.offset))?;
    }
    write(writer, place.offset.saturating_add(within), bytes)
}

pub(super) fn write(writer: &Writer, at: u64, bytes: &[u8]) -> Result<()> {
    writer.file.write_at(at, bytes).map_err(failed("cannot write the disk's data", at))
}

fn failed(action: &'static str, at: u64) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::io(action, at, e)
}

/// Makes a range of the file zeros, as holes where those are welcome.
pub(super) fn zero(writer: &Writer, range: Range<u64>, holes: bool) -> Result<()> {
    if !holes {
        return write_zeros(writer, range);
    }
    let hole = punch_inside(writer, range.clone())?;
    write_zeros(writer, range.start..hole.start)?;
    write_zeros(writer, hole.end..range.end)
}

/// Makes holes of the whole units inside a range, and tells which part that was.
pub(super) fn punch_inside(writer: &Writer, range: Range<u64>) -> Result<Range<u64>> {
    let start = range.start.next_multiple_of(HOLE_UNIT).min(range.end);
    let end = range.end.saturating_sub(range.end % HOLE_UNIT).max(start);
    if start < end {
        writer.file.punch(start..end).map_err(failed("cannot zero the disk's data", start))?;
    }
    Ok(start..end)
}

fn write_zeros(writer: &Writer, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let step = range.end.saturating_sub(at).min(ZERO_STEP);
        let zeros = usize::try_from(step).ok().and_then(|step| ZEROS.get(..step));
        write(writer, at, zeros.unwrap_or_default())?;
        at = at.saturating_add(step);
    }
    Ok(())
}
