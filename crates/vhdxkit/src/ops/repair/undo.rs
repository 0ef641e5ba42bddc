//! The undo file: the old contents of everything that a repair changes.
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
//!
//! # Whose image is it, and what has happened to it since?
//! A writer of VHDX must first of all write a header with a FileWriteGuid of its own. So the headers tell:
//!
//! * A valid header copy that is neither one of the old ones nor of the repair: another image, or this one after
//!   somebody wrote it. Restoring would destroy what was written: refused.
//! * Both copies are the repair's last ones: it was completed. Everything it wrote must still be there; otherwise somebody
//!   wrote the image by other means: refused.
//! * One copy that is valid and known: a repair or an undo that was interrupted. Torn sectors may hold anything, and
//!   are restored.
//! * None that is valid tells nothing. A repair always leaves one, and an undo loses both only at its very end. So all
//!   that was recorded, but the headers, must hold its old or its new bytes; otherwise it is another image.
//!
//! Headers alone do not make it the same disk, nor does their want. So there are landmarks: places that the repair
//! leaves alone, above all the metadata with the virtual disk's id, and samples from the whole file. Each must hold
//! what it held.
//!
//! # The order of writes
//! First the header copy that is current, torn or not, gets its old contents, and a sync: from here on the
//! headers are no longer those of a completed repair. Then everything else, and the length; sync; then the
//! other header copy; sync. Interrupted anywhere, it begins again and comes to the same end.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::findings::Findings;
use crate::format::header::Header;
use crate::format::limits::MAX_UNDO_RECORDS;
use crate::format::{Guid, HEADER_OFFSETS, HEADER_SECTION_LENGTH, REGION_TABLE_OFFSETS};
use crate::log::sync;
use crate::storage::{FileStorage, OpenMode, Storage, StorageExt};
use crate::view::headers::read_copy;
use crate::view::regions::RegionMap;
use crate::{Error, Result};

use super::Changes;
use super::draft::PAGE;

const MAGIC: [u8; 8] = *b"vhdxundo";
const VERSION: u32 = 2;
/// Longest record: memory that is needed to restore one.
const MOST: u64 = 1 << 20;
const MOST_NAME: usize = 4096;
/// Landmarks are cut at every change; so many are enough.
const MOST_LANDMARKS: usize = 1024;
/// Samples that are taken from the whole file.
const SAMPLES: u64 = 16;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    checksum: U32,
    length: U64,
    length_before: U64,
    length_after: U64,
    session: Guid,
    last_sequence: U64,
    name_length: U32,
    records: U32,
    landmarks: U32,
    reserved: U32,
}

const HEAD_LENGTH: u64 = 80;
const _: () = assert!(size_of::<Head>() == 80);

/// A place that the repair leaves alone.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Landmark {
    offset: U64,
    length: U32,
    checksum: U32,
}

const LANDMARK_LENGTH: u64 = 16;
const _: () = assert!(size_of::<Landmark>() == 16);

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    offset: U64,
    length: U32,
    new_checksum: U32,
    stored: U32,
    reserved: U32,
}

const RECORD_LENGTH: u64 = 24;
const _: () = assert!(size_of::<Record>() == 24);

/// What undoing a repair did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UndoReport {
    /// The image was not as it was before the repair.
    pub changed: bool,
    /// Bytes of the file now, which it had before the repair.
    pub bytes_after: u64,
    /// Restored although it was not certain that nobody had written the image since.
    pub forced: bool,
}

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
pub(super) fn write(
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

fn record_range(record: &Record) -> Range<u64> {
    let offset = record.offset.get();
    offset..offset.saturating_add(u64::from(record.length.get()))
}

/// The ranges in pieces of at most [`MOST`] bytes.
fn pieces(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> + '_ {
    let step = usize::try_from(MOST).unwrap_or(usize::MAX);
    ranges.iter().flat_map(move |range| {
        let end = range.end;
        (range.start..end).step_by(step).map(move |at| at..at.saturating_add(MOST).min(end))
    })
}

fn contents(storage: &dyn Storage, range: &Range<u64>) -> Result<Vec<u8>> {
    let length = range.end.saturating_sub(range.start);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    storage.read_zero_filled(range.start, &mut bytes)?;
    Ok(bytes)
}

/// An undo file that has been read and is whole.
pub struct Undo<'a> {
    file: &'a dyn Storage,
    head: Head,
    name: String,
    landmarks: Vec<Landmark>,
    records: Vec<(Record, u64)>,
}

impl std::fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Undo")
            .field("head", &self.head)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What the headers of an image say about it.
enum Found {
    Completed,
    Interrupted,
    Foreign,
    Nothing,
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

    /// Restores the image: afterwards it is, byte for byte, what it was before the repair (holes may have become
    /// zeros). Unless `force`, only an image of which it is certain that nobody but the repair has written it.
    ///
    /// # Errors
    /// The undo file is another image's, or the image was written since; reading or writing fails: then this can
    /// be done again.
    pub fn restore(&self, image: &dyn Storage, force: bool) -> Result<UndoReport> {
        let length = self.length_before();
        if image.length()? == length && self.is_as_before(image)? {
            return Ok(UndoReport { changed: false, bytes_after: length, forced: false });
        }
        let forced = match self.judge(image)? {
            None => false,
            Some(_) if force => true,
            Some(why) => return Err(Error::invalid(why)),
        };
        sync(image)?;
        let last = self.last_header(image)?;
        let first = 1usize.saturating_sub(last);
        self.restore_where(image, |offset| header_copy(offset) == Some(first))?;
        sync(image)?;
        if image.length()? != length {
            image
                .set_len(length)
                .map_err(|e| Error::io("cannot set the file's length", length, e))?;
        }
        self.restore_where(image, |offset| header_copy(offset).is_none())?;
        sync(image)?;
        self.restore_where(image, |offset| header_copy(offset) == Some(last))?;
        sync(image)?;
        Ok(UndoReport { changed: true, bytes_after: length, forced })
    }

    /// Why it must not be restored, if that is so.
    fn judge(&self, image: &dyn Storage) -> Result<Option<String>> {
        let written = "somebody has written the image since the repair: what was written then would be lost, \
                       and what this undo file holds does not fit the rest any more";
        let foreign = || {
            let name = &self.name;
            format!("this undo file is not for this image (it was made for {name}), or {written}")
        };
        if !self.has_landmarks(image)? {
            return Ok(Some(foreign()));
        }
        match self.found(image)? {
            Found::Interrupted => Ok(None),
            Found::Nothing => Ok((!self.is_old_or_new(image)?).then(foreign)),
            Found::Foreign => Ok(Some(foreign())),
            Found::Completed => {
                let same = image.length()? == self.head.length_after.get();
                for (record, _) in &self.records {
                    let now = contents(image, &record_range(record))?;
                    if crc32c::crc32c(&now) != record.new_checksum.get() {
                        return Ok(Some(written.to_owned()));
                    }
                }
                Ok((!same).then(|| written.to_owned()))
            }
        }
    }

    fn found(&self, image: &dyn Storage) -> Result<Found> {
        let (mut last, mut valid) = (0u64, 0u64);
        let final_pair =
            [self.head.last_sequence.get(), self.head.last_sequence.get().saturating_sub(1)];
        for (copy, offset) in HEADER_OFFSETS.iter().enumerate() {
            let Ok(header) = read_copy(image, copy)? else { continue };
            valid = valid.saturating_add(1);
            let old = self.old_header(*offset)?;
            if header.file_write_guid == self.head.session {
                last = last
                    .saturating_add(u64::from(final_pair.contains(&header.sequence_number.get())));
            } else if old.as_deref() != Some(header.as_bytes()) {
                return Ok(Found::Foreign);
            }
        }
        Ok(match (valid, last) {
            (0, _) => Found::Nothing,
            (_, 2) => Found::Completed,
            _ => Found::Interrupted,
        })
    }

    /// Whether what the repair has left alone is what it was.
    fn has_landmarks(&self, image: &dyn Storage) -> Result<bool> {
        for landmark in &self.landmarks {
            let start = landmark.offset.get();
            let range = start..start.saturating_add(u64::from(landmark.length.get()));
            if crc32c::crc32c(&contents(image, &range)?) != landmark.checksum.get() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether everything but the headers holds its old bytes or its new ones, in a file of one of the two lengths.
    fn is_old_or_new(&self, image: &dyn Storage) -> Result<bool> {
        let length = image.length()?;
        if length != self.length_before() && length != self.head.length_after.get() {
            return Ok(false);
        }
        for (record, at) in &self.records {
            if header_copy(record.offset.get()).is_some() {
                continue;
            }
            let now = contents(image, &record_range(record))?;
            let new = crc32c::crc32c(&now) == record.new_checksum.get();
            if !new && now != self.old(record, *at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a header copy was.
    fn old_header(&self, offset: u64) -> Result<Option<Vec<u8>>> {
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

    /// The header copy that is restored last: the one that is still the repair's, the older one of two.
    fn last_header(&self, image: &dyn Storage) -> Result<usize> {
        let ours = |copy: usize| -> Result<Option<u64>> {
            let header = read_copy(image, copy)?.ok();
            let header = header.filter(|header| header.file_write_guid == self.head.session);
            Ok(header.map(|header| header.sequence_number.get()))
        };
        Ok(match (ours(0)?, ours(1)?) {
            (Some(first), Some(second)) if first > second => 1,
            (None, Some(_)) => 1,
            _ => 0,
        })
    }

    fn is_as_before(&self, image: &dyn Storage) -> Result<bool> {
        for (record, at) in &self.records {
            if contents(image, &record_range(record))? != self.old(record, *at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn old(&self, record: &Record, at: u64) -> Result<Vec<u8>> {
        let length = u64::from(record.length.get());
        match record.stored.get() {
            0 => Ok(vec![0; usize::try_from(length).unwrap_or_default()]),
            _ => contents(self.file, &(at..at.saturating_add(length))),
        }
    }

    fn restore_where(&self, image: &dyn Storage, which: impl Fn(u64) -> bool) -> Result<()> {
        for (record, at) in &self.records {
            let offset = record.offset.get();
            if which(offset) {
                let old = self.old(record, *at)?;
                image.write_at(offset, &old).map_err(|e| Error::io("cannot restore", offset, e))?;
            }
        }
        Ok(())
    }
}

/// Which header copy begins at an offset.
fn header_copy(offset: u64) -> Option<usize> {
    HEADER_OFFSETS.iter().position(|at| *at == offset)
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

/// Writes an undo file beside an image: under a temporary name first, and never over another file.
pub(super) fn save(
    image: &Path,
    fill: impl FnOnce(&str, &dyn Storage) -> Result<()>,
) -> Result<PathBuf> {
    // Behind a link the image itself lies elsewhere, and so does what belongs to it.
    let image = image.canonicalize().map_err(|e| Error::io_whole("cannot find the image", e))?;
    let name =
        image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let failed = |e| Error::io_whole("cannot write the undo file", e);
    let mut number = 1u32;
    let path = loop {
        let mut path = image.clone().into_os_string();
        path.push(format!(".undo-{}", utc(SystemTime::now())));
        if number > 1 {
            path.push(format!("-{number}"));
        }
        let path = PathBuf::from(path);
        // The name is taken first, so that nothing is ever replaced.
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => break path,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < 1000 => {
                number = number.saturating_add(1);
            }
            Err(e) => return Err(failed(e).in_file(path)),
        }
    };
    let mut temporary = path.clone().into_os_string();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let written = make(&temporary, &path, |to| fill(&name, to));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
        let _ = std::fs::remove_file(&path);
    }
    written.map_err(|error| error.in_file(&path))?;
    Ok(path)
}

fn make(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&dyn Storage) -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::io_whole("cannot write the undo file", e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(temporary)
        .map_err(failed)?;
    fill(&FileStorage::from_file(file.try_clone().map_err(failed)?))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(temporary, path).map_err(failed)?;
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        // Not every file system can; then the name becomes durable when it does.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Restores the image at `path` from an undo file.
///
/// # Errors
/// As [`Undo::read`] and [`Undo::restore`]; the image is in use.
pub fn undo_file(path: &Path, undo: &Path, force: bool) -> Result<UndoReport> {
    let image = FileStorage::open(path, OpenMode::ReadWrite).map_err(|e| e.in_file(path))?;
    let file = FileStorage::open(undo, OpenMode::ReadOnly { force_share: false });
    let file = file.map_err(|e| e.in_file(undo))?;
    let read = Undo::read(&file).map_err(|e| e.in_file(undo))?;
    read.restore(&image, force).map_err(|e| e.in_file(path))
}

/// A moment as `20260131T235959Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01.
fn date_of(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970u64;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length || year > 9999 {
            break;
        }
        days = days.saturating_sub(length);
        year = year.saturating_add(1);
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1u64;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days = days.saturating_sub(length);
        month = month.saturating_add(1);
    }
    (year, month, days.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(date_of(0), (1970, 1, 1));
        assert_eq!(date_of(59), (1970, 3, 1));
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(date_of(20_783), (2026, 11, 26));
        assert_eq!(
            utc(UNIX_EPOCH + std::time::Duration::from_secs(951_868_799)),
            "20000229T235959Z"
        );
    }
}
