//! What stands in an undo file.
//!
//! ```text
//! magic "vhdxundo" | version | CRC-32C of the whole file, this field zero | length of the whole file
//! length of the image before | after | FileWriteGuid of the repair | its last SequenceNumber
//! length of the name | number of records | number of landmarks | 0
//! the image's name
//! landmarks: file offset | bytes | CRC-32C of what stands there before, during and after the repair
//! records: file offset | bytes | CRC-32C of the new contents | 1: the old contents follow, 0: they were zeros
//! the old contents, one record's after another's
//! ```

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::Guid;
use crate::format::header::Header;
use crate::format::limits::MAX_UNDO_RECORDS;
use crate::storage::{Storage, StorageExt};
use crate::{Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"vhdxundo";
pub(super) const VERSION: u32 = 2;
/// Longest record: memory that is needed to restore one.
pub(super) const MOST: u64 = 1 << 20;
pub(super) const MOST_NAME: usize = 4096;
/// Landmarks are cut at every change; so many are enough.
pub(super) const MOST_LANDMARKS: usize = 1024;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) checksum: U32,
    pub(super) length: U64,
    pub(super) length_before: U64,
    pub(super) length_after: U64,
    pub(super) session: Guid,
    pub(super) last_sequence: U64,
    pub(super) name_length: U32,
    pub(super) records: U32,
    pub(super) landmarks: U32,
    pub(super) reserved: U32,
}

pub(super) const HEAD_LENGTH: u64 = 80;
const _: () = assert!(size_of::<Head>() == 80);

/// A place that the repair leaves alone.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Landmark {
    pub(super) offset: U64,
    pub(super) length: U32,
    pub(super) checksum: U32,
}

pub(super) const LANDMARK_LENGTH: u64 = 16;
const _: () = assert!(size_of::<Landmark>() == 16);

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Record {
    pub(super) offset: U64,
    pub(super) length: U32,
    pub(super) new_checksum: U32,
    pub(super) stored: U32,
    pub(super) reserved: U32,
}

pub(super) const RECORD_LENGTH: u64 = 24;
const _: () = assert!(size_of::<Record>() == 24);

/// An undo file that has been read and is whole.
pub struct Undo<'a> {
    pub(super) file: &'a dyn Storage,
    pub(super) head: Head,
    pub(super) name: String,
    pub(super) landmarks: Vec<Landmark>,
    pub(super) records: Vec<(Record, u64)>,
}

impl std::fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Undo")
            .field("head", &self.head)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Undo<'a> {
    /// Reads an undo file, and every byte of it once.
    ///
    /// # Errors
    /// It is no undo file, is damaged, or cannot be read.
    pub fn read(file: &'a dyn Storage) -> Result<Self> {
        let damaged = |why: &str| Error::invalid(format!("this is no whole undo file: {why}"));
        let length = file.length()?;
        let mut head = [0; 80];
        if file.read_zero_filled(0, &mut head)? < head.len() {
            return Err(damaged("it is too short"));
        }
        let head = Head::read_from_bytes(&head).map_err(|_| damaged("it is too short"))?;
        if head.magic != MAGIC {
            return Err(damaged("it does not begin like one"));
        }
        if head.version.get() != VERSION {
            return Err(damaged("a later version wrote it"));
        }
        let (name_length, count) = (head.name_length.get(), head.records.get());
        let most = |number: u32, most| usize::try_from(number).is_ok_and(|number| number <= most);
        let small = most(name_length, MOST_NAME) && most(head.landmarks.get(), MOST_LANDMARKS);
        if length != head.length.get() || !small || count > MAX_UNDO_RECORDS {
            return Err(damaged("its length is not what it says"));
        }
        let sum = sum_of(file, &head)?;
        if sum != head.checksum.get() {
            return Err(damaged("its checksum is wrong"));
        }
        let name =
            contents(file, &(HEAD_LENGTH..HEAD_LENGTH.saturating_add(u64::from(name_length))))?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let first = HEAD_LENGTH.saturating_add(u64::from(name_length));
        let bytes = u64::from(head.landmarks.get()).saturating_mul(LANDMARK_LENGTH);
        let table = contents(file, &(first..first.saturating_add(bytes)))?;
        let mut landmarks = Vec::new();
        for raw in table.chunks_exact(16) {
            let landmark =
                Landmark::read_from_bytes(raw).map_err(|_| damaged("a landmark is cut"))?;
            if u64::from(landmark.length.get()) > MOST {
                return Err(damaged("a landmark is too long"));
            }
            landmarks.push(landmark);
        }
        let first = first.saturating_add(bytes);
        let bytes = u64::from(count).saturating_mul(RECORD_LENGTH);
        let table = contents(file, &(first..first.saturating_add(bytes)))?;
        let mut data_at = first.saturating_add(bytes);
        let mut records = Vec::new();
        for raw in table.chunks_exact(24) {
            let record = Record::read_from_bytes(raw).map_err(|_| damaged("a record is cut"))?;
            if u64::from(record.length.get()) > MOST {
                return Err(damaged("a record is too long"));
            }
            records.push((record, data_at));
            if record.stored.get() != 0 {
                data_at = data_at.saturating_add(u64::from(record.length.get()));
            }
        }
        match data_at == length {
            true => Ok(Self { file, head, name, landmarks, records }),
            false => Err(damaged("its records do not fit")),
        }
    }

    /// The name that the image had.
    #[must_use]
    pub fn image_name(&self) -> &str {
        &self.name
    }

    /// Bytes of the image before the repair.
    #[must_use]
    pub fn length_before(&self) -> u64 {
        self.head.length_before.get()
    }

    /// What a header copy was.
    pub(super) fn old_header(&self, offset: u64) -> Result<Option<Vec<u8>>> {
        let length = u64::try_from(size_of::<Header>()).unwrap_or_default();
        let found = self.records.iter().find(|(record, _)| {
            let range = record_range(record);
            range.start <= offset && offset.saturating_add(length) <= range.end
        });
        let Some((record, at)) = found else { return Ok(None) };
        if record.stored.get() == 0 {
            return Ok(Some(vec![0; usize::try_from(length).unwrap_or_default()]));
        }
        let at = at.saturating_add(offset.saturating_sub(record.offset.get()));
        contents(self.file, &(at..at.saturating_add(length))).map(Some)
    }

    pub(super) fn old(&self, record: &Record, at: u64) -> Result<Vec<u8>> {
        let length = u64::from(record.length.get());
        match record.stored.get() {
            0 => Ok(vec![0; usize::try_from(length).unwrap_or_default()]),
            _ => contents(self.file, &(at..at.saturating_add(length))),
        }
    }
}

pub(super) fn record_range(record: &Record) -> Range<u64> {
    let offset = record.offset.get();
    offset..offset.saturating_add(u64::from(record.length.get()))
}

/// The ranges in pieces of at most [`MOST`] bytes.
pub(super) fn pieces(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> + '_ {
    let step = usize::try_from(MOST).unwrap_or(usize::MAX);
    ranges.iter().flat_map(move |range| {
        let end = range.end;
        (range.start..end).step_by(step).map(move |at| at..at.saturating_add(MOST).min(end))
    })
}

pub(super) fn contents(storage: &dyn Storage, range: &Range<u64>) -> Result<Vec<u8>> {
    let length = range.end.saturating_sub(range.start);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    storage.read_zero_filled(range.start, &mut bytes)?;
    Ok(bytes)
}

fn sum_of(file: &dyn Storage, head: &Head) -> Result<u32> {
    let head = Head { checksum: U32::ZERO, ..*head };
    let mut crc = crc32c::crc32c(head.as_bytes());
    let rest = HEAD_LENGTH..file.length()?;
    for piece in pieces(&[rest]) {
        crc = crc32c::crc32c_append(crc, &contents(file, &piece)?);
    }
    Ok(crc)
}
