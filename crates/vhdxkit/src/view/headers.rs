//! File identifier and header pair (MS-VHDX 2.2.1, 2.2.2): which copy is current, and where the log
//! lies. Rules V1 to V7.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros};

use crate::Result;
use crate::defect::{CopyFault, Defect};
use crate::findings::Findings;
use crate::format::header::{Header, LOG_VERSION, SIGNATURE, VERSION};
use crate::format::identifier::{self, FileIdentifier};
use crate::format::limits::MAX_LOG_LENGTH;
use crate::format::{Guid, HEADER_OFFSETS, HEADER_SECTION_LENGTH, MIB};
use crate::storage::{Storage, StorageExt};

/// Where the log lies in the file: judged to be aligned, inside the file and not too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// File offset, a multiple of 1 MiB and at least 1 MiB.
    pub offset: u64,
    /// Bytes, a non-zero multiple of 1 MiB.
    pub length: u32,
}

impl LogPlace {
    /// The file offset just behind the log.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// One of the two copies as it was found.
pub type HeaderCopy = Result<Header, CopyFault>;

/// The two header copies, one of them current.
#[derive(Debug, Clone)]
pub struct HeaderPair {
    copies: [HeaderCopy; 2],
    current: Header,
    current_copy: usize,
    log_place: Option<LogPlace>,
    creator: String,
}

impl HeaderPair {
    /// Reads identifier and headers and decides which copy is current.
    pub(crate) fn read(storage: &dyn Storage, findings: &mut Findings) -> Result<Self> {
        let length = storage.length()?;
        let creator = read_identifier(storage, length)?;
        let copies = [read_bytes(storage, 0)?, read_bytes(storage, 1)?];
        for (bytes, at) in copies.iter().zip(HEADER_OFFSETS) {
            if matches!(parse_copy(bytes), Ok((_, Reserved::Damaged))) {
                findings.report(Defect::HeaderReservedDamaged { at })?;
            }
        }
        let copies = copies.map(|bytes| parse_copy(&bytes).map(|(header, _)| header));
        let current_copy = choose(&copies, findings)?;
        let current = copies.get(current_copy).and_then(|copy| copy.as_ref().ok());
        let current = current.cloned().ok_or_else(|| no_header(&copies))?;
        let mut pair = Self { copies, current, current_copy, log_place: None, creator };
        pair.judge_versions(findings)?;
        pair.log_place = pair.judge_log_place(length, findings)?;
        Ok(pair)
    }

    /// Reads the headers of a file to be looked at: versions and log geometry are not judged.
    ///
    /// # Errors
    /// Not a VHDX file, no valid header, or reading fails.
    pub fn inspect(storage: &dyn Storage) -> Result<Self> {
        Self::read(storage, &mut Findings::tolerant())
    }

    /// The header that counts.
    #[must_use]
    pub fn current(&self) -> &Header {
        &self.current
    }

    /// Which copy that is: 0 or 1.
    #[must_use]
    pub fn current_copy(&self) -> usize {
        self.current_copy
    }

    /// Both copies, at 64 KiB and 128 KiB.
    pub fn copies(&self) -> &[HeaderCopy; 2] {
        &self.copies
    }

    /// Whether the header names a log: then nothing else may be read before it is replayed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.current.log_guid.is_zero()
    }

    /// Where the log lies; `None` when there is none that could be used.
    #[must_use]
    pub fn log_place(&self) -> Option<LogPlace> {
        self.log_place
    }

    /// Who made the file, as its identifier says.
    #[must_use]
    pub fn creator(&self) -> &str {
        &self.creator
    }

    /// The next header to be written, and the file offset of the copy it goes to: the one that is
    /// not current (MS-VHDX 2.2.2.1). All fields come from the current header, `change` edits them;
    /// the sequence number is one higher. `None` when the sequence number cannot grow.
    pub(crate) fn next(&self, change: impl FnOnce(&mut Header)) -> Option<(Self, u64)> {
        let mut header = self.current.clone();
        change(&mut header);
        header.sequence_number = U64::new(self.current.sequence_number.get().checked_add(1)?);
        header.reserved = [0; 4016];
        let header = header.sealed();
        let copy = 1usize.saturating_sub(self.current_copy);
        let offset = *HEADER_OFFSETS.get(copy)?;
        let mut pair = Self { current: header.clone(), current_copy: copy, ..self.clone() };
        *pair.copies.get_mut(copy)? = Ok(header);
        Some((pair, offset))
    }

    /// The same pair, as if the current header named another log.
    pub(crate) fn naming(&self, log_guid: Guid) -> Self {
        let mut pair = self.clone();
        pair.current.log_guid = log_guid;
        pair
    }

    fn judge_versions(&self, findings: &mut Findings) -> Result<()> {
        let at = self.at();
        let version = self.current.version.get();
        if version != VERSION {
            findings.report(Defect::Version { at: at.saturating_add(0x42), found: version })?;
        }
        let found = self.current.log_version.get();
        if found != LOG_VERSION {
            let dirty = self.is_dirty();
            findings.report(Defect::LogVersion { at: at.saturating_add(0x40), found, dirty })?;
        }
        Ok(())
    }

    fn judge_log_place(&self, file: u64, findings: &mut Findings) -> Result<Option<LogPlace>> {
        let (offset, length) = (self.current.log_offset.get(), self.current.log_length.get());
        let why = if length == 0 {
            if !self.is_dirty() {
                return Ok(None);
            }
            "it has no room for the entries the header speaks of"
        } else if offset % MIB != 0 || u64::from(length) % MIB != 0 {
            "offset and length must be multiples of 1 MiB"
        } else if offset < HEADER_SECTION_LENGTH {
            "it overlaps the header section"
        } else if offset.checked_add(u64::from(length)).is_none_or(|end| end > file) {
            "it does not lie inside the file"
        } else if length > MAX_LOG_LENGTH {
            "it is longer than 1 GiB, the longest this version reads"
        } else {
            return Ok(Some(LogPlace { offset, length }));
        };
        findings.report(Defect::LogGeometry {
            at: self.at().saturating_add(0x44),
            log_offset: offset,
            log_length: length,
            why,
            dirty: self.is_dirty(),
        })?;
        Ok(None)
    }

    fn at(&self) -> u64 {
        HEADER_OFFSETS.get(self.current_copy).copied().unwrap_or_default()
    }
}

fn read_identifier(storage: &dyn Storage, length: u64) -> Result<String> {
    // It has no bytes that could be called wrong.
    if length == 0 {
        return Err(Defect::FileTooShort { length }.into());
    }
    let mut identifier = FileIdentifier::new_zeroed();
    storage.read_zero_filled(0, zerocopy::IntoBytes::as_mut_bytes(&mut identifier))?;
    if identifier.signature != identifier::SIGNATURE {
        return Err(Defect::NotVhdx { found: identifier.signature }.into());
    }
    if length < HEADER_SECTION_LENGTH {
        return Err(Defect::FileTooShort { length }.into());
    }
    Ok(identifier.creator())
}

/// One copy, 0 or 1, as it is found.
pub(crate) fn read_copy(storage: &dyn Storage, copy: usize) -> Result<HeaderCopy> {
    Ok(parse_copy(&read_bytes(storage, copy)?).map(|(header, _)| header))
}

/// One copy, where every byte of it is as it was written.
pub(crate) fn read_intact_copy(storage: &dyn Storage, copy: usize) -> Result<Option<Header>> {
    Ok(match parse_copy(&read_bytes(storage, copy)?) {
        Ok((header, Reserved::Whole)) => Some(header),
        _ => None,
    })
}

type Bytes = [u8; size_of::<Header>()];

fn read_bytes(storage: &dyn Storage, copy: usize) -> Result<Bytes> {
    let offset = HEADER_OFFSETS.get(copy).copied().unwrap_or_default();
    let mut bytes = [0; size_of::<Header>()];
    storage.read_zero_filled(offset, &mut bytes)?;
    Ok(bytes)
}

/// How the bytes behind the fields are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reserved {
    Whole,
    Damaged,
}

/// Writers leave the reserved bytes zero, which are all but the first 80. So where the checksum fits as soon as they
/// are, it proves every field, and the copy is the one that was written: what was damaged is nobody's.
fn parse_copy(bytes: &Bytes) -> Result<(Header, Reserved), CopyFault> {
    let mut header = Header::read_from_bytes(bytes).map_err(|_| CopyFault::Missing)?;
    if header.signature != SIGNATURE {
        return Err(CopyFault::Signature(header.signature));
    }
    let (found, computed) = (header.checksum.get(), header.computed_checksum());
    if found == computed {
        return Ok((header, Reserved::Whole));
    }
    header.reserved = [0; 4016];
    match header.computed_checksum() == found {
        true => Ok((header, Reserved::Damaged)),
        false => Err(CopyFault::Checksum { found, computed }),
    }
}

fn no_header(copies: &[HeaderCopy; 2]) -> crate::Error {
    let [first, second] =
        copies.each_ref().map(|copy| *copy.as_ref().err().unwrap_or(&CopyFault::Missing));
    Defect::NoValidHeader { first, second }.into()
}

/// The index of the current copy (MS-VHDX 2.2.2): the only valid one, or the one with the greater
/// sequence number.
fn choose(copies: &[HeaderCopy; 2], findings: &mut Findings) -> Result<usize> {
    let [at_first, at_second] = HEADER_OFFSETS;
    match copies {
        [Err(_), Err(_)] => Err(no_header(copies)),
        [Ok(_), Err(fault)] => {
            findings.report(Defect::HeaderCopyInvalid { at: at_second, fault: *fault })?;
            Ok(0)
        }
        [Err(fault), Ok(_)] => {
            findings.report(Defect::HeaderCopyInvalid { at: at_first, fault: *fault })?;
            Ok(1)
        }
        [Ok(first), Ok(second)] => {
            let (one, two) = (first.sequence_number.get(), second.sequence_number.get());
            let fields = differing_fields(first, second);
            if one != two {
                let (current, older) = if one > two { (0, at_second) } else { (1, at_first) };
                if !fields.is_empty() {
                    findings.report(Defect::HeaderPairDiffers { at: older, fields })?;
                }
                return Ok(current);
            }
            let at = at_second.saturating_add(8);
            findings.report(if fields.is_empty() {
                Defect::HeaderTwins { at, sequence: two }
            } else {
                Defect::HeaderTie { at, sequence: two, fields }
            })?;
            Ok(0)
        }
    }
}

fn differing_fields(a: &Header, b: &Header) -> String {
    let names = [
        ("FileWriteGuid", a.file_write_guid != b.file_write_guid),
        ("DataWriteGuid", a.data_write_guid != b.data_write_guid),
        ("LogGuid", a.log_guid != b.log_guid),
        ("LogVersion", a.log_version != b.log_version),
        ("Version", a.version != b.version),
        ("LogLength", a.log_length != b.log_length),
        ("LogOffset", a.log_offset != b.log_offset),
    ];
    let names: Vec<&str> = names.iter().filter(|(_, differs)| *differs).map(|(n, _)| *n).collect();
    names.join(", ")
}

/// Reads the log GUID that a file's header carries now; used to see whether somebody else wrote it.
pub(crate) fn sequence_on_disk(storage: &dyn Storage, copy: usize) -> Result<Option<(u64, Guid)>> {
    Ok(read_copy(storage, copy)?.ok().map(|h| (h.sequence_number.get(), h.file_write_guid)))
}
