//! Makes an undo file.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::findings::Findings;
use crate::format::limits::MAX_UNDO_RECORDS;
use crate::format::{HEADER_OFFSETS, HEADER_SECTION_LENGTH, REGION_TABLE_OFFSETS};
use crate::storage::Storage;
use crate::view::regions::RegionMap;
use crate::{Error, Result};

use super::super::Changes;
use super::super::draft::PAGE;
use super::format::{
    HEAD_LENGTH, Head, LANDMARK_LENGTH, Landmark, MAGIC, MOST, MOST_LANDMARKS, MOST_NAME,
    RECORD_LENGTH, Record, VERSION, contents, pieces, record_range,
};

/// Samples that are taken from the whole file.
const SAMPLES: u64 = 16;

/// The bytes of a file, and their sum on the way.
struct Summed<'a> {
    to: &'a dyn Storage,
    at: u64,
    crc: u32,
}

impl Summed<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |e| Error::io_whole("cannot write the undo file", e);
        self.to.write_at(self.at, bytes).map_err(failed)?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.at = self.at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

/// Writes an undo file to `to`, which must be empty, and makes it durable. `new` shows the image as it will be.
pub(in super::super) fn write(
    changes: &Changes,
    image: &dyn Storage,
    new: &dyn Storage,
    name: &str,
    to: &dyn Storage,
) -> Result<()> {
    let mut records = Vec::new();
    let mut stored = 0u64;
    for range in pieces(&changes.ranges) {
        let (old, after) = (contents(image, &range)?, contents(new, &range)?);
        let keeps = old.iter().any(|byte| *byte != 0);
        let length = range.end.saturating_sub(range.start);
        stored = stored.saturating_add(if keeps { length } else { 0 });
        records.push(Record {
            offset: U64::new(range.start),
            length: U32::new(u32::try_from(length).unwrap_or(u32::MAX)),
            new_checksum: U32::new(crc32c::crc32c(&after)),
            stored: U32::new(u32::from(keeps)),
            reserved: U32::ZERO,
        });
    }
    let landmarks = landmarks(changes, image, new)?;
    let places = u32::try_from(landmarks.len()).unwrap_or_default();
    let count = u32::try_from(records.len()).ok().filter(|count| *count <= MAX_UNDO_RECORDS);
    let count = count.ok_or_else(|| Error::limit("an undo file would have too many records"))?;
    let mut end = name.len().min(MOST_NAME);
    while !name.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let name = name.get(..end).unwrap_or_default().as_bytes();
    let name_length = u32::try_from(name.len()).unwrap_or_default();
    let length = HEAD_LENGTH
        .saturating_add(u64::from(name_length))
        .saturating_add(u64::from(places).saturating_mul(LANDMARK_LENGTH))
        .saturating_add(u64::from(count).saturating_mul(RECORD_LENGTH))
        .saturating_add(stored);
    let mut head = Head {
        magic: MAGIC,
        version: U32::new(VERSION),
        checksum: U32::ZERO,
        length: U64::new(length),
        length_before: U64::new(changes.length_before),
        length_after: U64::new(changes.length_after),
        session: changes.session,
        last_sequence: U64::new(changes.last_sequence),
        name_length: U32::new(name_length),
        records: U32::new(count),
        landmarks: U32::new(places),
        reserved: U32::ZERO,
    };
    let mut out = Summed { to, at: 0, crc: 0 };
    out.put(head.as_bytes())?;
    out.put(name)?;
    out.put(landmarks.as_bytes())?;
    out.put(records.as_bytes())?;
    for record in records.iter().filter(|record| record.stored.get() != 0) {
        out.put(&contents(image, &record_range(record))?)?;
    }
    head.checksum = U32::new(out.crc);
    let failed = |e| Error::io_whole("cannot write the undo file", e);
    to.write_at(0, head.as_bytes()).map_err(failed)?;
    to.sync().map_err(failed)
}

/// The places by which the image is known again: of header section, metadata and block table what does not change,
/// and of the whole file samples.
fn landmarks(changes: &Changes, image: &dyn Storage, new: &dyn Storage) -> Result<Vec<Landmark>> {
    let regions = RegionMap::read(new, None, &mut Findings::tolerant());
    let regions = regions.map(|regions| [regions.metadata(), regions.bat()]).ok();
    let tables = regions.into_iter().flatten().map(|region| region.offset);
    let tables = tables.map(|start| start..start.saturating_add(MOST));
    let length = changes.length_before.min(changes.length_after);
    let step = (length / SAMPLES).next_multiple_of(PAGE).max(PAGE);
    let samples = (1..SAMPLES).map(|number| number.saturating_mul(step));
    let samples = samples.map(|start| start..start.saturating_add(PAGE));
    let ([first_header, _], [region_tables, _]) = (HEADER_OFFSETS, REGION_TABLE_OFFSETS);
    // Metadata first: if there are too many, the last ones are left out.
    let wanted =
        tables.chain([0..first_header, region_tables..HEADER_SECTION_LENGTH]).chain(samples);
    let unchanged =
        wanted.flat_map(|range| without(range.start..range.end.min(length), &changes.ranges));
    let pieces: Vec<Range<u64>> = unchanged.take(MOST_LANDMARKS).collect();
    let known = pieces.iter().map(|range| {
        let length = range.end.saturating_sub(range.start);
        Ok(Landmark {
            offset: U64::new(range.start),
            length: U32::new(u32::try_from(length).unwrap_or(u32::MAX)),
            checksum: U32::new(crc32c::crc32c(&contents(image, range)?)),
        })
    });
    known.collect()
}

/// The parts of a range that none of the others, which are in order, touches.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut at = range.start;
    for other in others.iter().filter(|other| other.end > range.start && other.start < range.end) {
        if other.start > at {
            parts.push(at..other.start);
        }
        at = at.max(other.end);
    }
    if at < range.end {
        parts.push(at..range.end);
    }
    parts
}
