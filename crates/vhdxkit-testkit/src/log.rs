//! Log entries as described, and their bytes.

use vhdxkit::format::log::{
    DATA_DESCRIPTOR_SIGNATURE, DATA_SECTOR_SIGNATURE, ENTRY_SIGNATURE, ZERO_SIGNATURE,
};
use vhdxkit::format::{Guid, checksum};

use crate::image::Contents;

/// Something to be put into the ring.
#[derive(Debug, Clone)]
pub(crate) enum LogItem {
    Entry(Box<LogEntry>),
    Raw { sector: u64, bytes: Vec<u8> },
}

/// One change a log entry makes, as described.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Data { file_offset: u64, sector: Box<[u8; 4096]> },
    Zero { file_offset: u64, length: u64 },
    Allocate { block: u64, place_mib: Option<u64>, contents: Contents, written: bool },
}

/// Where the Tail of an entry comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tail {
    Raw(u32),
    Entry(usize),
    Itself,
}

/// A log entry to be built.
///
/// Unless it says otherwise it lies behind the entry added before it (the first one at sector 0),
/// carries the header's `LogGuid` (the image's first session if that is zero), the sequence number
/// after the last one with its GUID (else 1), a Tail at the first entry with its GUID, the file's
/// length before the log allocated anything as `FlushedFileOffset`, and the end of all space
/// allocated so far as `LastFileOffset`.
///
/// ```
/// use vhdxkit_testkit::{Contents, Image, LogEntry};
///
/// let image = Image::dynamic(4 << 20);
/// let session = image.session(1);
/// let image = image
///     .dirty(session)
///     .log_entry(LogEntry::new())
///     .log_entry(LogEntry::new().allocate(3, Contents::Pattern(b'x')));
/// assert_eq!(image.expected_guest()[3 << 20], b'x');
/// ```
#[derive(Debug, Clone, Default)]
pub struct LogEntry {
    pub(crate) sector: Option<u64>,
    pub(crate) guid: Option<Guid>,
    pub(crate) sequence: Option<u64>,
    pub(crate) tail: Option<Tail>,
    pub(crate) flushed: Option<u64>,
    pub(crate) last: Option<u64>,
    pub(crate) changes: Vec<Change>,
    pub(crate) applied: bool,
    pub(crate) torn: Option<u64>,
    pub(crate) patches: Vec<(usize, Vec<u8>)>,
    pub(crate) corrupt: Vec<(usize, u8)>,
}

impl LogEntry {
    /// An entry without changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Places it at a sector of the ring.
    #[must_use]
    pub fn at(mut self, sector: u64) -> Self {
        self.sector = Some(sector);
        self
    }

    /// Sets its `LogGuid`.
    #[must_use]
    pub fn guid(mut self, guid: Guid) -> Self {
        self.guid = Some(guid);
        self
    }

    /// Sets its sequence number.
    #[must_use]
    pub fn sequence(mut self, number: u64) -> Self {
        self.sequence = Some(number);
        self
    }

    /// Sets its Tail to a log offset in bytes, taken as it is.
    #[must_use]
    pub fn tail(mut self, log_offset: u32) -> Self {
        self.tail = Some(Tail::Raw(log_offset));
        self
    }

    /// Sets its Tail to the `index`th entry added to the image.
    #[must_use]
    pub fn tail_entry(mut self, index: usize) -> Self {
        self.tail = Some(Tail::Entry(index));
        self
    }

    /// Sets its Tail to itself: everything before it is in place.
    #[must_use]
    pub fn tail_self(mut self) -> Self {
        self.tail = Some(Tail::Itself);
        self
    }

    /// Sets `FlushedFileOffset`.
    #[must_use]
    pub fn flushed(mut self, bytes: u64) -> Self {
        self.flushed = Some(bytes);
        self
    }

    /// Sets `LastFileOffset`.
    #[must_use]
    pub fn last(mut self, bytes: u64) -> Self {
        self.last = Some(bytes);
        self
    }

    /// Logs a sector (at most 4096 bytes, then zeros) for a file offset, which is not checked.
    #[must_use]
    pub fn data(mut self, file_offset: u64, sector: &[u8]) -> Self {
        let mut whole = Box::new([0; 4096]);
        whole[..sector.len()].copy_from_slice(sector);
        self.changes.push(Change::Data { file_offset, sector: whole });
        self
    }

    /// Logs a range to be zeroed; nothing is checked.
    #[must_use]
    pub fn zero(mut self, file_offset: u64, length: u64) -> Self {
        self.changes.push(Change::Zero { file_offset, length });
        self
    }

    /// Allocates a block at the end of the file, or with [`Contents::State`] only changes its
    /// state: logs the BAT page as all whole entries so far leave it plus this change. The
    /// payload is written in place, extending the file, as it would be before the entry is.
    ///
    /// Several of these in one entry that touch the same page share a descriptor.
    #[must_use]
    pub fn allocate(self, block: u64, contents: Contents) -> Self {
        self.push_allocation(block, None, contents, true)
    }

    /// [`allocate`](Self::allocate) at a forced place: space that another block had before.
    #[must_use]
    pub fn allocate_at(self, block: u64, file_offset_mib: u64, contents: Contents) -> Self {
        self.push_allocation(block, Some(file_offset_mib), contents, true)
    }

    /// [`allocate`](Self::allocate) of a block whose payload never reached the medium: the file
    /// is not extended either, replay has to do it.
    #[must_use]
    pub fn allocate_unwritten(self, block: u64) -> Self {
        self.push_allocation(block, None, Contents::Pattern(0), false)
    }

    fn push_allocation(
        mut self,
        block: u64,
        place_mib: Option<u64>,
        contents: Contents,
        written: bool,
    ) -> Self {
        self.changes.push(Change::Allocate { block, place_mib, contents, written });
        self
    }

    /// Its changes are also in place already, as after step 3 of the update cycle.
    #[must_use]
    pub fn applied(mut self) -> Self {
        self.applied = true;
        self
    }

    /// Only its first so many sectors reached the medium. Its changes are lost.
    #[must_use]
    pub fn torn(mut self, sectors_written: u64) -> Self {
        self.torn = Some(sectors_written);
        self
    }

    /// Overwrites bytes of the entry before its checksum is computed. Its changes count as lost.
    #[must_use]
    pub fn patch(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.patches.push((offset, bytes.to_vec()));
        self
    }

    /// Flips bits of one byte after the checksum is computed. Its changes are lost.
    #[must_use]
    pub fn corrupt(mut self, offset: usize, xor: u8) -> Self {
        self.corrupt.push((offset, xor));
        self
    }

    /// Whether a reader accepts it, going by its own description.
    pub(crate) fn is_whole(&self) -> bool {
        self.torn.is_none() && self.patches.is_empty() && self.corrupt.is_empty()
    }
}

/// One descriptor's worth of change, with its final bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Update {
    Data { file_offset: u64, sector: Box<[u8; 4096]> },
    Zero { file_offset: u64, length: u64 },
}

/// A log entry as it was built.
#[derive(Debug, Clone)]
pub struct PlacedEntry {
    /// Where it starts, in bytes from the start of the log.
    pub log_offset: u64,
    /// Its whole length in bytes, torn or not.
    pub length: u64,
    /// Its `LogGuid`.
    pub guid: Guid,
    /// Its sequence number.
    pub sequence: u64,
    /// Its Tail, in bytes from the start of the log.
    pub tail: u32,
    /// Its `FlushedFileOffset`.
    pub flushed: u64,
    /// Its `LastFileOffset`.
    pub last: u64,
    /// Whether it was written completely and nothing was written over it.
    pub whole: bool,
    pub(crate) updates: Vec<Update>,
}

/// Bytes of an entry with these updates.
pub(crate) fn entry_length(updates: &[Update]) -> u64 {
    let data = updates.iter().filter(|update| matches!(update, Update::Data { .. })).count();
    let head = (64 + 32 * updates.len()).div_ceil(4096);
    4096 * (head + data) as u64
}

/// The bytes of an entry, checksum included.
pub(crate) fn encode(entry: &PlacedEntry, patches: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let sequence = entry.sequence.to_le_bytes();
    let mut head = Vec::new();
    head.extend(ENTRY_SIGNATURE);
    head.extend([0; 4]);
    head.extend((entry.length as u32).to_le_bytes());
    head.extend(entry.tail.to_le_bytes());
    head.extend(sequence);
    head.extend((entry.updates.len() as u32).to_le_bytes());
    head.extend([0; 4]);
    head.extend(entry.guid.to_bytes());
    head.extend(entry.flushed.to_le_bytes());
    head.extend(entry.last.to_le_bytes());
    let mut data = Vec::new();
    for update in &entry.updates {
        match update {
            Update::Data { file_offset, sector } => {
                head.extend(DATA_DESCRIPTOR_SIGNATURE);
                head.extend(&sector[4092..]);
                head.extend(&sector[..8]);
                head.extend(file_offset.to_le_bytes());
                data.extend(DATA_SECTOR_SIGNATURE);
                data.extend(&sequence[4..]);
                data.extend(&sector[8..4092]);
                data.extend(&sequence[..4]);
            }
            Update::Zero { file_offset, length } => {
                head.extend(ZERO_SIGNATURE);
                head.extend([0; 4]);
                head.extend(length.to_le_bytes());
                head.extend(file_offset.to_le_bytes());
            }
        }
        head.extend(sequence);
    }
    head.resize(head.len().next_multiple_of(4096), 0);
    head.append(&mut data);
    assert_eq!(head.len() as u64, entry.length);
    for (offset, bytes) in patches {
        head[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    let sum = checksum::of_structure(&head);
    head[checksum::CHECKSUM_FIELD].copy_from_slice(&sum.to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhdxkit::log::EntryBuilder;

    /// Two encoders written apart from each other agree.
    #[test]
    fn entries_equal_the_librarys() {
        let guid = Guid::from_u128(0x11223344_5566_4788_99AA_BBCCDDEEFF00);
        let sector: Vec<u8> = (0..4096_u32).map(|i| (i % 251) as u8).collect();
        for count in [0, 1, 2, 126, 127, 300] {
            let mut library =
                EntryBuilder::new(guid, 0x5_0000_0007).tail(0x3000).file_sizes(4 << 20, 5 << 20);
            let mut updates = Vec::new();
            for i in 0..count {
                let file_offset = 0x30_0000 + 4096 * i;
                if i % 3 == 1 {
                    library.zero(file_offset, 8192).unwrap();
                    updates.push(Update::Zero { file_offset, length: 8192 });
                } else {
                    let sector: [u8; 4096] = sector.clone().try_into().unwrap();
                    library.data(file_offset, &sector).unwrap();
                    updates.push(Update::Data { file_offset, sector: Box::new(sector) });
                }
            }
            let entry = PlacedEntry {
                log_offset: 0,
                length: entry_length(&updates),
                guid,
                sequence: 0x5_0000_0007,
                tail: 0x3000,
                flushed: 4 << 20,
                last: 5 << 20,
                whole: true,
                updates,
            };
            assert!(encode(&entry, &[]) == library.encode().unwrap(), "{count} descriptors");
        }
    }
}
