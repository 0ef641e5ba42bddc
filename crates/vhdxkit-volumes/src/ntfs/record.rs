//! MFT records and their attributes.

use crate::Trouble;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

/// Whatever the size of a sector: every 512 bytes are protected by themselves.
const STRIDE: usize = 512;

/// Types of attributes.
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xA0;
pub(super) const BITMAP: u32 = 0xB0;
const END: u32 = 0xFFFF_FFFF;

/// Takes the update sequence out of a structure that is written in several sectors: each of them ends with
/// the same number, in the place of two bytes that are kept in front. A structure that was torn has
/// different ones.
pub(super) fn take_out_update_sequence(
    bytes: &mut [u8],
    signature: &[u8; 4],
    what: &str,
) -> Result<(), Trouble> {
    if !bytes.starts_with(signature) {
        return Err(Trouble::damaged(format!("{what} does not begin as such")));
    }
    let (start, count) = (usize::from(u16_at(bytes, 4)), usize::from(u16_at(bytes, 6)));
    let strides = bytes.len().checked_div(STRIDE).unwrap_or_default();
    let end = count.checked_mul(2).and_then(|size| size.checked_add(start));
    let fits = bytes.len() >= STRIDE && count == strides.saturating_add(1);
    // It lies in front of the two bytes that it protects first.
    let sequence = end.filter(|end| fits && *end <= STRIDE.saturating_sub(2) && start >= 8);
    let sequence = sequence.and_then(|end| bytes.get(start..end)).map(<[u8]>::to_vec);
    let sequence = sequence.ok_or_else(|| {
        Trouble::damaged(format!("{what} has an update sequence that does not fit"))
    })?;
    let (number, kept) = sequence.split_at_checked(2).unwrap_or_default();
    for (stride, kept) in bytes.chunks_exact_mut(STRIDE).zip(kept.chunks_exact(2)) {
        let last = stride.last_chunk_mut::<2>().filter(|last| last.as_slice() == number);
        let last = last.ok_or_else(|| Trouble::damaged(format!("{what} was torn")))?;
        last.copy_from_slice(kept);
    }
    // Every copy of a structure has a number of its own; the rest can be compared.
    if let Some(number) = bytes.get_mut(start..start.saturating_add(2)) {
        number.fill(0);
    }
    Ok(())
}

/// A record that is in use.
#[derive(Debug)]
pub(super) struct Record {
    bytes: Vec<u8>,
    pub(super) number: u64,
}

/// A number of a record, and how often that had been used: a reference to one that has been given to
/// another file since is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) number: u64,
    pub(super) sequence: u16,
}

impl Reference {
    pub(super) fn at(bytes: &[u8], at: usize) -> Self {
        let sequence = u16_at(bytes, at.saturating_add(6));
        Self { number: u64_at(bytes, at) & 0xFFFF_FFFF_FFFF, sequence }
    }
}

impl Record {
    pub(super) fn judge(mut bytes: Vec<u8>, number: u64) -> Result<Self, Trouble> {
        take_out_update_sequence(&mut bytes, b"FILE", &format!("MFT record {number}"))?;
        let in_use = usize::try_from(u32_at(&bytes, 0x18)).unwrap_or(usize::MAX);
        if in_use > bytes.len() || in_use < 0x38 {
            return Err(Trouble::damaged(format!(
                "MFT record {number} is filled with {in_use} bytes"
            )));
        }
        bytes.truncate(in_use);
        let record = Self { bytes, number };
        if record.flags() & 1 == 0 {
            return Err(Trouble::damaged(format!("MFT record {number} is not in use")));
        }
        // Since version 3.1 of NTFS there is room for its own number.
        let own = u64::from(u32_at(&record.bytes, 0x2C));
        if u16_at(&record.bytes, 4) >= 0x30 && own != number & 0xFFFF_FFFF {
            return Err(Trouble::damaged(format!("MFT record {number} says it is {own}")));
        }
        Ok(record)
    }

    fn flags(&self) -> u16 {
        u16_at(&self.bytes, 0x16)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags() & 2 != 0
    }

    pub(super) fn sequence(&self) -> u16 {
        u16_at(&self.bytes, 0x10)
    }

    /// What is in use of it, its update sequence number zero.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record that this one goes on with; none when it is a file's first.
    pub(super) fn base(&self) -> Option<Reference> {
        (u64_at(&self.bytes, 0x20) != 0).then(|| Reference::at(&self.bytes, 0x20))
    }

    /// Its attributes, up to the first that is damaged.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Result<Attribute<'_>, Trouble>> {
        let mut at = Some(usize::from(u16_at(&self.bytes, 0x14)));
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at.take()?..).unwrap_or_default();
            let damaged =
                || Trouble::damaged(format!("MFT record {} has a damaged attribute", self.number));
            if rest.len() < 4 {
                return Some(Err(damaged()));
            }
            if u32_at(rest, 0) == END {
                return None;
            }
            let length = usize::try_from(u32_at(rest, 4)).unwrap_or(usize::MAX);
            let attribute = rest.get(..length).and_then(Attribute::judge);
            // The length is 24 at the least: the walk ends.
            at = attribute
                .as_ref()
                .map(|_| self.bytes.len().saturating_sub(rest.len()).saturating_add(length));
            Some(attribute.ok_or_else(damaged))
        })
    }

    /// The attribute of this type and name, whose extent begins with this cluster.
    pub(super) fn attribute(
        &self,
        kind: u32,
        name: &str,
        lowest: u64,
    ) -> Result<Option<Attribute<'_>>, Trouble> {
        for attribute in self.attributes() {
            let attribute = attribute?;
            let begins = match attribute.place() {
                Place::Resident { .. } => 0,
                Place::NonResident { lowest, .. } => lowest,
            };
            if attribute.kind() == kind && attribute.has_name(name) && begins == lowest {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

/// An attribute, or one extent of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    bytes: &'a [u8],
}

/// Where an attribute's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// In the record.
    Resident { value: &'a [u8] },
    /// In clusters from `lowest` up to `behind`, which the mapping pairs place on the volume.
    NonResident { lowest: u64, behind: u64, pairs: &'a [u8] },
}

impl<'a> Attribute<'a> {
    fn judge(bytes: &'a [u8]) -> Option<Self> {
        let attribute = Self { bytes };
        let least = if attribute.is_resident() { 24 } else { 64 };
        let fits = bytes.len() >= least && bytes.len().is_multiple_of(8);
        let whole = match attribute.place() {
            Place::Resident { value } => value.len() == attribute.value_length(),
            Place::NonResident { pairs, .. } => !pairs.is_empty(),
        };
        (fits && whole && attribute.name().is_some()).then_some(attribute)
    }

    pub(super) fn kind(&self) -> u32 {
        u32_at(self.bytes, 0)
    }

    fn is_resident(&self) -> bool {
        u8_at(self.bytes, 8) == 0
    }

    /// Compressed, encrypted or sparse.
    pub(super) fn is_transformed(&self) -> bool {
        u16_at(self.bytes, 0x0C) != 0
    }

    fn value_length(&self) -> usize {
        usize::try_from(u32_at(self.bytes, 0x10)).unwrap_or(usize::MAX)
    }

    fn name(&self) -> Option<&'a [u8]> {
        let start = usize::from(u16_at(self.bytes, 0x0A));
        let size = usize::from(u8_at(self.bytes, 9)).checked_mul(2)?;
        if size == 0 { Some(&[]) } else { self.bytes.get(start..start.checked_add(size)?) }
    }

    fn has_name(&self, name: &str) -> bool {
        is_utf16(self.name().unwrap_or_default(), name)
    }

    pub(super) fn place(&self) -> Place<'a> {
        if self.is_resident() {
            let start = usize::from(u16_at(self.bytes, 0x14));
            let end = start.saturating_add(self.value_length());
            return Place::Resident { value: self.bytes.get(start..end).unwrap_or_default() };
        }
        let pairs = self.bytes.get(usize::from(u16_at(self.bytes, 0x20))..).unwrap_or_default();
        // The highest cluster of an attribute that has none is -1.
        let behind = u64_at(self.bytes, 0x18).wrapping_add(1);
        Place::NonResident { lowest: u64_at(self.bytes, 0x10), behind, pairs }
    }

    /// Bytes of data, and how many of them were ever written: those behind read as zeros. Stands only in the
    /// first extent.
    pub(super) fn sizes(&self) -> (u64, u64) {
        (u64_at(self.bytes, 0x30), u64_at(self.bytes, 0x38))
    }
}

/// Whether `bytes` are `text` in UTF-16.
pub(super) fn is_utf16(bytes: &[u8], text: &str) -> bool {
    bytes.len().is_multiple_of(2)
        && bytes.chunks_exact(2).map(|unit| u16_at(unit, 0)).eq(text.encode_utf16())
}
