//! Building log entries: the writer's side of the format, used by tests today.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::format::log::{
    DATA_DESCRIPTOR_SIGNATURE, DATA_SECTOR_SIGNATURE, DataDescriptor, DataSector, ENTRY_SIGNATURE,
    EntryHeader, ZERO_SIGNATURE, ZeroDescriptor, descriptor_sectors, sequence_halves,
};
use crate::format::{Guid, LOG_SECTOR, LOG_SECTOR_LEN, checksum};
use crate::{Error, Result};

/// Collects the updates of one log entry and lays them out (MS-VHDX 2.3.1).
///
/// ```
/// use vhdxkit::format::Guid;
/// use vhdxkit::log::EntryBuilder;
///
/// let mut entry = EntryBuilder::new(Guid::random(), 7).tail(0).file_sizes(4 << 20, 5 << 20);
/// entry.data(0x30_0000, &[0xA5; 4096])?;
/// entry.zero(0x20_0000, 0x1_0000)?;
/// assert_eq!(entry.encode()?.len(), 8192);
/// # Ok::<(), vhdxkit::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EntryBuilder {
    log_guid: Guid,
    sequence: u64,
    tail: u32,
    flushed_file_offset: u64,
    last_file_offset: u64,
    descriptors: Vec<u8>,
    data_sectors: Vec<u8>,
}

impl EntryBuilder {
    /// An empty entry of the session `log_guid` with this sequence number (greater than zero).
    #[must_use]
    pub fn new(log_guid: Guid, sequence: u64) -> Self {
        Self {
            log_guid,
            sequence,
            tail: 0,
            flushed_file_offset: 0,
            last_file_offset: 0,
            descriptors: Vec::new(),
            data_sectors: Vec::new(),
        }
    }

    /// Sets the log offset of the oldest entry still needed, in bytes; a multiple of 4 KiB.
    #[must_use]
    pub fn tail(mut self, log_offset: u32) -> Self {
        self.tail = log_offset;
        self
    }

    /// Sets `FlushedFileOffset` and `LastFileOffset`, in bytes; multiples of 1 MiB.
    #[must_use]
    pub fn file_sizes(mut self, flushed: u64, last: u64) -> Self {
        self.flushed_file_offset = flushed;
        self.last_file_offset = last;
        self
    }

    /// Adds a 4 KiB sector to be written at `file_offset`.
    ///
    /// # Errors
    /// `file_offset` is not a multiple of 4 KiB.
    pub fn data(&mut self, file_offset: u64, sector: &[u8; LOG_SECTOR_LEN]) -> Result<()> {
        require_aligned(file_offset)?;
        let (leading, rest) = sector.split_first_chunk::<8>().ok_or_else(short_sector)?;
        let (middle, trailing) = rest.split_first_chunk::<4084>().ok_or_else(short_sector)?;
        let descriptor = DataDescriptor {
            signature: DATA_DESCRIPTOR_SIGNATURE,
            trailing_bytes: trailing.try_into().map_err(|_| short_sector())?,
            leading_bytes: *leading,
            file_offset: U64::new(file_offset),
            sequence_number: U64::new(self.sequence),
        };
        let (high, low) = sequence_halves(self.sequence);
        let framed = DataSector {
            signature: DATA_SECTOR_SIGNATURE,
            sequence_high: U32::from_bytes(high),
            data: *middle,
            sequence_low: U32::from_bytes(low),
        };
        self.descriptors.extend_from_slice(descriptor.as_bytes());
        self.data_sectors.extend_from_slice(framed.as_bytes());
        Ok(())
    }

    /// Adds a range to be filled with zeros.
    ///
    /// # Errors
    /// Offset or length is not a multiple of 4 KiB.
    pub fn zero(&mut self, file_offset: u64, length: u64) -> Result<()> {
        require_aligned(file_offset)?;
        require_aligned(length)?;
        let descriptor = ZeroDescriptor {
            signature: ZERO_SIGNATURE,
            reserved: U32::ZERO,
            zero_length: U64::new(length),
            file_offset: U64::new(file_offset),
            sequence_number: U64::new(self.sequence),
        };
        self.descriptors.extend_from_slice(descriptor.as_bytes());
        Ok(())
    }

    /// The entry's bytes, a whole number of 4 KiB sectors, checksum included.
    ///
    /// # Errors
    /// The sequence number is zero, the tail is no multiple of 4 KiB, or the entry does not fit
    /// its 32-bit length.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.sequence == 0 {
            return Err(Error::invalid("a log entry's sequence number starts at 1"));
        }
        require_aligned(u64::from(self.tail))?;
        let too_long = || Error::invalid("the log entry does not fit 4 GiB");
        let count = u32::try_from(self.descriptors.len() / 32).map_err(|_| too_long())?;
        let head = usize::try_from(
            u64::from(descriptor_sectors(count)).saturating_mul(u64::from(LOG_SECTOR)),
        )
        .map_err(|_| too_long())?;
        let length = head.checked_add(self.data_sectors.len()).ok_or_else(too_long)?;
        let header = EntryHeader {
            signature: ENTRY_SIGNATURE,
            checksum: U32::ZERO,
            entry_length: U32::new(u32::try_from(length).map_err(|_| too_long())?),
            tail: U32::new(self.tail),
            sequence_number: U64::new(self.sequence),
            descriptor_count: U32::new(count),
            reserved: U32::ZERO,
            log_guid: self.log_guid,
            flushed_file_offset: U64::new(self.flushed_file_offset),
            last_file_offset: U64::new(self.last_file_offset),
        };
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&self.descriptors);
        bytes.resize(head, 0);
        bytes.extend_from_slice(&self.data_sectors);
        let sum = checksum::of_structure(&bytes);
        if let Some(field) = bytes.get_mut(checksum::CHECKSUM_FIELD) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        Ok(bytes)
    }
}

fn require_aligned(value: u64) -> Result<()> {
    match value.is_multiple_of(u64::from(LOG_SECTOR)) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{value:#x} is no multiple of 4 KiB, the log's unit"))),
    }
}

fn short_sector() -> Error {
    Error::invalid("a log sector has 4096 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of an entry with a zero and a data descriptor, byte for byte.
    #[test]
    fn worked_example() {
        let guid = "11223344-5566-4788-99aa-bbccddeeff00".parse().unwrap();
        let mut page = [0; 4096];
        page[..8].copy_from_slice(&[6, 0, 0x80, 0, 0, 0, 0, 0]);
        page[0x1A8..0x1B0].copy_from_slice(&[6, 0, 0x90, 0, 0, 0, 0, 0]);
        let mut entry = EntryBuilder::new(guid, 0x5_0000_0007).file_sizes(9 << 20, 10 << 20);
        entry.zero(0x32_0000, 0x1_0000).unwrap();
        entry.data(0x20_9000, &page).unwrap();
        let bytes = entry.encode().unwrap();

        let mut expected = vec![0u8; 8192];
        let put = |expected: &mut Vec<u8>, at: usize, hex: &str| {
            let bytes = hex.split(' ').map(|h| u8::from_str_radix(h, 16).unwrap());
            expected.splice(at..at + hex.split(' ').count(), bytes);
        };
        put(&mut expected, 0x00, "6c 6f 67 65 10 7a 0e b4 00 20 00 00 00 00 00 00");
        put(&mut expected, 0x10, "07 00 00 00 05 00 00 00 02 00 00 00 00 00 00 00");
        put(&mut expected, 0x20, "44 33 22 11 66 55 88 47 99 aa bb cc dd ee ff 00");
        put(&mut expected, 0x30, "00 00 90 00 00 00 00 00 00 00 a0 00 00 00 00 00");
        put(&mut expected, 0x40, "7a 65 72 6f 00 00 00 00 00 00 01 00 00 00 00 00");
        put(&mut expected, 0x50, "00 00 32 00 00 00 00 00 07 00 00 00 05 00 00 00");
        put(&mut expected, 0x60, "64 65 73 63 00 00 00 00 06 00 80 00 00 00 00 00");
        put(&mut expected, 0x70, "00 90 20 00 00 00 00 00 07 00 00 00 05 00 00 00");
        put(&mut expected, 0x1000, "64 61 74 61 05 00 00 00");
        put(&mut expected, 0x11A8, "06 00 90 00");
        put(&mut expected, 0x1FFC, "07 00 00 00");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn nonsense_is_refused() {
        let guid = Guid::from_u128(1);
        assert!(EntryBuilder::new(guid, 0).encode().is_err());
        assert!(EntryBuilder::new(guid, 1).tail(1).encode().is_err());
        assert!(EntryBuilder::new(guid, 1).data(1, &[0; 4096]).is_err());
        assert!(EntryBuilder::new(guid, 1).zero(4096, 1).is_err());
        assert_eq!(EntryBuilder::new(guid, 1).encode().unwrap().len(), 4096);
    }
}
