//! Judging one log entry, sector by sector as it streams by (MS-VHDX 2.3.1).
//!
//! An entry counts only when *everything* about it is right: header fields, every descriptor and
//! its target, the frame of every data sector, and the checksum over all of it.

use zerocopy::FromBytes;

use crate::defect::EntryFault;
use crate::format::checksum::StructureSum;
use crate::format::limits::MAX_FILE_OFFSET;
use crate::format::log::{
    DATA_DESCRIPTOR_SIGNATURE, DATA_SECTOR_SIGNATURE, DESCRIPTOR_LENGTH, DataDescriptor,
    DataSector, ENTRY_HEADER_LENGTH, ENTRY_SIGNATURE, EntryHeader, ZERO_SIGNATURE, ZeroDescriptor,
    descriptor_sectors, sequence_halves,
};
use crate::format::{Guid, LOG_SECTOR, LOG_SECTOR_LEN, REGION_TABLE_OFFSETS};
use crate::view::headers::LogPlace;

/// The header of an entry, in plain numbers. Says nothing about whether the entry counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// Bytes from the start of the log, a multiple of 4 KiB.
    pub log_offset: u32,
    /// Bytes of the entry.
    pub length: u32,
    /// Log offset of the oldest entry still needed when this one is the newest.
    pub tail: u32,
    /// Sequence number.
    pub sequence: u64,
    /// The session it belongs to.
    pub log_guid: Guid,
    /// How many descriptors it has.
    pub descriptors: u32,
    /// A file size that was stable when it was written.
    pub flushed_file_offset: u64,
    /// A file size into which everything fits once it is applied.
    pub last_file_offset: u64,
}

impl EntryInfo {
    /// Sectors of the entry.
    #[must_use]
    pub fn sectors(&self) -> u32 {
        self.length / LOG_SECTOR
    }

    /// The sector of the ring it starts at.
    #[must_use]
    pub fn sector(&self) -> u32 {
        self.log_offset / LOG_SECTOR
    }
}

/// One descriptor, with its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Descriptor {
    Data { file_offset: u64, leading: [u8; 8], trailing: [u8; 4] },
    Zero { file_offset: u64, length: u64 },
}

impl Descriptor {
    /// Reads a descriptor and the sequence number it carries.
    pub(crate) fn parse(raw: &[u8], index: u32) -> Result<(Self, u64), EntryFault> {
        let found = raw.first_chunk::<4>().copied().unwrap_or_default();
        let bad = || EntryFault::DescriptorSignature { index, found };
        match found {
            DATA_DESCRIPTOR_SIGNATURE => {
                let raw = DataDescriptor::read_from_bytes(raw).map_err(|_| bad())?;
                let descriptor = Self::Data {
                    file_offset: raw.file_offset.get(),
                    leading: raw.leading_bytes,
                    trailing: raw.trailing_bytes,
                };
                Ok((descriptor, raw.sequence_number.get()))
            }
            ZERO_SIGNATURE => {
                let raw = ZeroDescriptor::read_from_bytes(raw).map_err(|_| bad())?;
                let (file_offset, length) = (raw.file_offset.get(), raw.zero_length.get());
                Ok((Self::Zero { file_offset, length }, raw.sequence_number.get()))
            }
            _ => Err(bad()),
        }
    }

    fn target(&self) -> (u64, u64) {
        match *self {
            Self::Data { file_offset, .. } => (file_offset, u64::from(LOG_SECTOR)),
            Self::Zero { file_offset, length } => (file_offset, length),
        }
    }

    /// V10: replay must never write where the log has no business.
    fn judge_target(&self, index: u32, log: LogPlace) -> Result<u64, EntryFault> {
        let (offset, length) = self.target();
        let fault = |why| Err(EntryFault::Target { index, offset, length, why });
        let sector = u64::from(LOG_SECTOR);
        if !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return fault("not a multiple of 4 KiB");
        }
        let Some(end) = offset.checked_add(length).filter(|&end| end <= MAX_FILE_OFFSET) else {
            return fault("beyond the largest file that is accepted");
        };
        let [first_loggable, _] = REGION_TABLE_OFFSETS;
        if offset < first_loggable {
            return fault("the file identifier and the headers are never logged");
        }
        if offset < log.end() && log.offset < end {
            return fault("inside the log itself");
        }
        Ok(end)
    }
}

/// What a sector did to the entry being judged.
pub(crate) enum Verdict {
    /// More sectors are needed.
    More,
    /// The entry is whole and right; the value is the highest file offset it writes to.
    Valid(u64),
    /// The entry does not count.
    Invalid(EntryFault),
}

/// An entry under judgement: fed its sectors in order, it never looks back.
pub(crate) struct Judge {
    pub(crate) info: EntryInfo,
    stored_checksum: u32,
    log: LogPlace,
    sum: StructureSum,
    fed: u32,
    descriptors_seen: u32,
    data_sectors: u32,
    highest_end: u64,
}

impl Judge {
    /// Starts with the entry's first sector; `None` when no entry starts there.
    pub(crate) fn start(log_offset: u32, sector: &[u8], log: LogPlace) -> Option<(Self, Verdict)> {
        let (header, _) = EntryHeader::read_from_prefix(sector).ok()?;
        if header.signature != ENTRY_SIGNATURE {
            return None;
        }
        let info = EntryInfo {
            log_offset,
            length: header.entry_length.get(),
            tail: header.tail.get(),
            sequence: header.sequence_number.get(),
            log_guid: header.log_guid,
            descriptors: header.descriptor_count.get(),
            flushed_file_offset: header.flushed_file_offset.get(),
            last_file_offset: header.last_file_offset.get(),
        };
        let mut judge = Self {
            info,
            stored_checksum: header.checksum.get(),
            log,
            sum: StructureSum::new(),
            fed: 0,
            descriptors_seen: 0,
            data_sectors: 0,
            highest_end: 0,
        };
        let verdict = match judge.judge_header() {
            Ok(()) => judge.feed(sector),
            Err(fault) => Verdict::Invalid(fault),
        };
        Some((judge, verdict))
    }

    /// Takes the entry's next sector.
    pub(crate) fn feed(&mut self, sector: &[u8]) -> Verdict {
        match self.judge_sector(sector) {
            Err(fault) => Verdict::Invalid(fault),
            Ok(()) if self.fed < self.info.sectors() => Verdict::More,
            Ok(()) => match self.sum.finish() {
                computed if computed == self.stored_checksum => Verdict::Valid(self.highest_end),
                computed => {
                    let found = self.stored_checksum;
                    Verdict::Invalid(EntryFault::Checksum { found, computed })
                }
            },
        }
    }

    /// The fault of an entry whose next sector belongs to something else.
    pub(crate) fn cut(&self) -> EntryFault {
        EntryFault::Cut(self.fed)
    }

    fn judge_header(&self) -> Result<(), EntryFault> {
        let EntryInfo { length, tail, sequence, descriptors, last_file_offset, .. } = self.info;
        if length == 0 || length % LOG_SECTOR != 0 || length > self.log.length {
            return Err(EntryFault::Length(length));
        }
        if descriptor_sectors(descriptors) > self.info.sectors() {
            let needed = u64::from(descriptor_sectors(descriptors)).saturating_mul(4096);
            return Err(EntryFault::LengthMismatch { found: length, needed });
        }
        if tail % LOG_SECTOR != 0 || tail >= self.log.length {
            return Err(EntryFault::Tail(tail));
        }
        if sequence == 0 {
            return Err(EntryFault::SequenceZero);
        }
        if last_file_offset > MAX_FILE_OFFSET {
            return Err(EntryFault::LastFileOffset(last_file_offset));
        }
        Ok(())
    }

    fn judge_sector(&mut self, sector: &[u8]) -> Result<(), EntryFault> {
        if sector.len() != LOG_SECTOR_LEN {
            return Err(self.cut());
        }
        let head = descriptor_sectors(self.info.descriptors);
        if self.fed < head {
            self.judge_descriptors(sector)?;
            if self.fed.saturating_add(1) == head {
                self.judge_length(head)?;
            }
        } else {
            self.judge_data_sector(sector)?;
        }
        self.sum.update(sector);
        self.fed = self.fed.saturating_add(1);
        Ok(())
    }

    fn judge_descriptors(&mut self, sector: &[u8]) -> Result<(), EntryFault> {
        let skip = if self.fed == 0 { ENTRY_HEADER_LENGTH } else { 0 };
        for raw in sector.get(skip..).unwrap_or_default().chunks_exact(DESCRIPTOR_LENGTH) {
            let index = self.descriptors_seen;
            if index >= self.info.descriptors {
                break;
            }
            let (descriptor, sequence) = Descriptor::parse(raw, index)?;
            if sequence != self.info.sequence {
                return Err(EntryFault::DescriptorSequence { index, found: sequence });
            }
            self.highest_end = self.highest_end.max(descriptor.judge_target(index, self.log)?);
            if matches!(descriptor, Descriptor::Data { .. }) {
                self.data_sectors = self.data_sectors.saturating_add(1);
            }
            self.descriptors_seen = index.saturating_add(1);
        }
        Ok(())
    }

    /// Once all descriptors are known: do they add up to the entry's length?
    fn judge_length(&self, head: u32) -> Result<(), EntryFault> {
        let needed = u64::from(head).saturating_add(u64::from(self.data_sectors));
        if needed == u64::from(self.info.sectors()) {
            return Ok(());
        }
        let needed = needed.saturating_mul(u64::from(LOG_SECTOR));
        Err(EntryFault::LengthMismatch { found: self.info.length, needed })
    }

    fn judge_data_sector(&self, sector: &[u8]) -> Result<(), EntryFault> {
        let (high, low) = sequence_halves(self.info.sequence);
        let framed = DataSector::ref_from_bytes(sector).is_ok_and(|sector| {
            sector.signature == DATA_SECTOR_SIGNATURE
                && sector.sequence_high.to_bytes() == high
                && sector.sequence_low.to_bytes() == low
        });
        if framed { Ok(()) } else { Err(EntryFault::DataSector(self.fed)) }
    }
}
