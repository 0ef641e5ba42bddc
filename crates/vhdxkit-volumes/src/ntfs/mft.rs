//! The MFT, and the streams of bytes that its records describe.

use std::ops::Range;

use super::boot::Geometry;
use super::record::{ATTRIBUTE_LIST, Attribute, DATA, Place, Record, Reference, is_utf16};
use super::runs::Runs;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::{Trouble, Window};

/// No attribute list is longer on any NTFS.
const LONGEST_LIST: u64 = 256 << 10;
/// The records whose copies are in the mirror.
const MIRRORED: u64 = 4;

/// The bytes of an attribute, wherever they are.
#[derive(Debug)]
pub(super) struct Stream {
    kept: Kept,
    pub(super) length: u64,
    /// Bytes from here on were never written: they read as zeros.
    written: u64,
    /// Compressed, encrypted or sparse.
    transformed: bool,
}

#[derive(Debug)]
enum Kept {
    Resident(Vec<u8>),
    NonResident(Runs),
}

impl Stream {
    /// The first extent, or the only one.
    fn begin(attribute: &Attribute<'_>, geometry: Geometry) -> Result<Self, Trouble> {
        let (kept, length, written) = match attribute.place() {
            Place::Resident { value } => {
                let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
                (Kept::Resident(value.to_vec()), length, length)
            }
            Place::NonResident { lowest, behind, pairs } => {
                let mut runs = Runs::default();
                runs.add(pairs, lowest..behind, geometry)?;
                let (length, written) = attribute.sizes();
                (Kept::NonResident(runs), length, written)
            }
        };
        Ok(Self { kept, length, written, transformed: attribute.is_transformed() })
    }

    fn go_on(&mut self, attribute: &Attribute<'_>, geometry: Geometry) -> Result<(), Trouble> {
        match (&mut self.kept, attribute.place()) {
            (Kept::NonResident(runs), Place::NonResident { lowest, behind, pairs }) => {
                runs.add(pairs, lowest..behind, geometry)
            }
            _ => Err(Trouble::damaged("an attribute in its record that has extents")),
        }
    }

    /// A file of the file system itself: whole, in clusters of its own, all of it written.
    pub(super) fn solid(self, what: &str, geometry: Geometry) -> Result<Self, Trouble> {
        let whole = match &self.kept {
            Kept::Resident(_) => false,
            Kept::NonResident(runs) => {
                !runs.has_holes() && geometry.clusters_of(self.length) <= runs.end()
            }
        };
        match whole && !self.transformed && self.written >= self.length {
            true => Ok(self),
            false => Err(Trouble::damaged(format!("{what} is not whole"))),
        }
    }

    pub(super) fn is_transformed(&self) -> bool {
        self.transformed
    }

    /// The bytes of the volume that it takes.
    pub(super) fn places(&self, geometry: Geometry) -> impl Iterator<Item = Range<u64>> + '_ {
        let runs = match &self.kept {
            Kept::Resident(_) => None,
            Kept::NonResident(runs) => Some(runs),
        };
        runs.into_iter().flat_map(move |runs| runs.places(geometry))
    }
}

/// The table of all files.
pub(super) struct Mft<'a> {
    window: &'a Window<'a>,
    pub(super) geometry: Geometry,
    pub(super) data: Stream,
}

impl<'a> Mft<'a> {
    /// Its first record, which lies where the boot sector says, tells where all the others are.
    pub(super) fn open(window: &'a Window<'a>, geometry: Geometry) -> Result<Self, Trouble> {
        let bytes = window.read("the MFT", geometry.byte(geometry.mft), geometry.record)?;
        let first = Record::judge(bytes, 0)?;
        let begin =
            first.attribute(DATA, "", 0)?.ok_or_else(|| Trouble::damaged("$MFT has no data"))?;
        let data = Stream::begin(&begin, geometry)?;
        let mut mft = Self { window, geometry, data };
        mft.data = mft.file("$MFT", &first)?;
        let start = mft.data.places(geometry).next().unwrap_or_default().start;
        if start != geometry.byte(geometry.mft) {
            return Err(Trouble::damaged("$MFT does not begin where the boot sector says"));
        }
        Ok(mft)
    }

    /// The mirror has to hold the same first records. Drivers refuse a volume where it does not: one of
    /// both is old.
    pub(super) fn compare_with_mirror(&self, mirror: &Stream) -> Result<(), Trouble> {
        let start = mirror.places(self.geometry).next().unwrap_or_default().start;
        if start != self.geometry.byte(self.geometry.mirror) {
            return Err(Trouble::damaged("$MFTMirr does not begin where the boot sector says"));
        }
        for number in 0..MIRRORED {
            let copy = Record::judge(self.record_bytes(mirror, number)?, number)?;
            if copy.bytes() != self.record(number)?.bytes() {
                return Err(Trouble::damaged(format!(
                    "MFT record {number} differs from its mirror"
                )));
            }
        }
        Ok(())
    }

    /// A record that is the first of its file.
    pub(super) fn record(&self, number: u64) -> Result<Record, Trouble> {
        let record = self.any_record(&self.data, number)?;
        match record.base() {
            None => Ok(record),
            Some(_) => {
                Err(Trouble::damaged(format!("MFT record {number} belongs to another file")))
            }
        }
    }

    /// The record that something refers to.
    pub(super) fn referred(&self, reference: Reference) -> Result<Record, Trouble> {
        let record = self.record(reference.number)?;
        match record.sequence() == reference.sequence {
            true => Ok(record),
            false => Err(Trouble::damaged(format!(
                "MFT record {} has been given to another file",
                reference.number
            ))),
        }
    }

    fn any_record(&self, table: &Stream, number: u64) -> Result<Record, Trouble> {
        Record::judge(self.record_bytes(table, number)?, number)
    }

    fn record_bytes(&self, table: &Stream, number: u64) -> Result<Vec<u8>, Trouble> {
        let size = self.geometry.record;
        let offset =
            number.checked_mul(size).ok_or_else(|| Trouble::damaged("a record behind all"))?;
        self.read(&format!("MFT record {number}"), table, offset..offset.saturating_add(size))
    }

    /// The unnamed data of a file of the file system itself.
    pub(super) fn file(&self, what: &str, record: &Record) -> Result<Stream, Trouble> {
        let data = self.stream(record, DATA, "")?;
        let data = data.ok_or_else(|| Trouble::damaged(format!("{what} has no data")))?;
        data.solid(what, self.geometry)
    }

    /// An attribute of a file, all its extents in whatever records they stand.
    pub(super) fn stream(
        &self,
        base: &Record,
        kind: u32,
        name: &str,
    ) -> Result<Option<Stream>, Trouble> {
        let Some(list) = base.attribute(ATTRIBUTE_LIST, "", 0)? else {
            let attribute = base.attribute(kind, name, 0)?;
            return attribute.map(|found| Stream::begin(&found, self.geometry)).transpose();
        };
        let list = Stream::begin(&list, self.geometry)?;
        let mut found: Option<Stream> = None;
        for entry in self.list_entries(&list, kind, name)? {
            let other;
            let record = if entry.record.number == base.number {
                base
            } else {
                // More of the MFT itself is found with what is known of it so far.
                let table = found.as_ref().filter(|_| base.number == 0 && kind == DATA);
                other = self.any_record(table.unwrap_or(&self.data), entry.record.number)?;
                let own = Reference { number: base.number, sequence: base.sequence() };
                if other.base() != Some(own) || other.sequence() != entry.record.sequence {
                    return Err(Trouble::damaged(format!(
                        "the attribute list of MFT record {} names record {}, which is another file's",
                        base.number, entry.record.number
                    )));
                }
                &other
            };
            let attribute = record.attribute(kind, name, entry.lowest)?.ok_or_else(|| {
                Trouble::damaged(format!(
                    "MFT record {} lacks an attribute that a list names",
                    entry.record.number
                ))
            })?;
            match &mut found {
                None => found = Some(Stream::begin(&attribute, self.geometry)?),
                Some(stream) => stream.go_on(&attribute, self.geometry)?,
            }
        }
        Ok(found)
    }

    /// The entries for one attribute, in the order in which they stand. Each is followed once, and to a
    /// record whose own list is never looked at: there is nothing to go round in.
    fn list_entries(&self, list: &Stream, kind: u32, name: &str) -> Result<Vec<Entry>, Trouble> {
        if list.length > LONGEST_LIST {
            let length = list.length;
            return Err(Trouble::damaged(format!("an attribute list of {length} bytes")));
        }
        let bytes = self.read("an attribute list", list, 0..list.length)?;
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(u16_at(rest, 4));
            let entry = rest.get(..length).filter(|entry| entry.len() >= 26);
            let entry = entry.filter(|entry| u32_at(entry, 0) != ATTRIBUTE_LIST);
            let entry = entry.ok_or_else(|| Trouble::damaged("a damaged attribute list"))?;
            let start = usize::from(u8_at(entry, 7));
            let size = usize::from(u8_at(entry, 6)).saturating_mul(2);
            let own = if size == 0 {
                Some(&[][..])
            } else {
                entry.get(start..start.saturating_add(size))
            };
            let own = own.ok_or_else(|| Trouble::damaged("a damaged attribute list"))?;
            if u32_at(entry, 0) == kind && is_utf16(own, name) {
                found.push(Entry { lowest: u64_at(entry, 8), record: Reference::at(entry, 0x10) });
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(found)
    }

    /// Bytes of a stream, at most 16 MiB at once.
    pub(super) fn read(
        &self,
        what: &str,
        stream: &Stream,
        range: Range<u64>,
    ) -> Result<Vec<u8>, Trouble> {
        let length = range.end.saturating_sub(range.start);
        if range.end > stream.length || length > crate::disk::MOST_AT_ONCE {
            return Err(Trouble::damaged(format!(
                "{what} at {} ({length} bytes) lies behind {}",
                range.start, stream.length
            )));
        }
        let mut buf = vec![0; usize::try_from(length).unwrap_or_default()];
        let runs = match &stream.kept {
            Kept::NonResident(runs) => runs,
            Kept::Resident(value) => {
                let start = usize::try_from(range.start).unwrap_or(usize::MAX);
                let found = value.get(start..start.saturating_add(buf.len())).unwrap_or_default();
                return Ok(found.to_vec());
            }
        };
        let written = stream.written.saturating_sub(range.start).min(length);
        let mut left =
            buf.get_mut(..usize::try_from(written).unwrap_or_default()).unwrap_or_default();
        let mut at = range.start;
        while !left.is_empty() {
            let cluster = self.geometry.cluster.max(1);
            let (vcn, into) =
                (at.checked_div(cluster), at.checked_rem(cluster).unwrap_or_default());
            let (lcn, clusters) = vcn.and_then(|vcn| runs.find(vcn)).ok_or_else(|| {
                Trouble::damaged(format!("{what} has no cluster for its byte {at}"))
            })?;
            let here = self.geometry.byte(clusters).saturating_sub(into);
            let here = usize::try_from(here).unwrap_or(usize::MAX).min(left.len());
            let (now, later) = left.split_at_mut_checked(here).unwrap_or_default();
            // A hole stays zero.
            if let Some(lcn) = lcn {
                self.window.fill(what, self.geometry.byte(lcn).saturating_add(into), now)?;
            }
            at = at.saturating_add(u64::try_from(here).unwrap_or(u64::MAX));
            left = later;
        }
        Ok(buf)
    }
}

/// Where an extent of an attribute stands.
struct Entry {
    lowest: u64,
    record: Reference,
}
