//! How a new file is laid out, and the order in which it comes into being.
//!
//! Header section, log, metadata, BAT, then blocks in the order in which they are placed: what
//! Windows does, so that the file looks familiar to every reader.
//!
//! # A half-made file is never taken for a good one
//! A reader knows a VHDX by the eight bytes of its identifier, at offset 0. They are written last,
//! after a sync that has made everything else durable: region tables, metadata, BAT, both headers,
//! and whatever payload the maker has put there. A crash before that sync leaves a file that starts
//! with zeros; a crash after it leaves zeros or the whole image. The identifier fits one 512-byte
//! sector but for the creator's name, which nobody relies upon.

use zerocopy::FromZeros;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::format::bat::{ENTRIES_PER_PAGE, ENTRY_LENGTH, RawEntry};
use crate::format::header::{Header, LOG_VERSION, VERSION};
use crate::format::identifier::FileIdentifier;
use crate::format::limits::{MAX_FILE_OFFSET, MAX_LOG_LENGTH};
use crate::format::metadata::{
    FileParameters, HAS_PARENT, Item, LEAVE_BLOCK_ALLOCATED, encode_region,
};
use crate::format::region::{BAT_REGION, METADATA_REGION, RegionTableEntry, encode_table};
use crate::format::{
    Guid, GuidSource, HEADER_OFFSETS, HEADER_SECTION_LENGTH, LOG_SECTOR_LEN, MIB,
    REGION_TABLE_OFFSETS, mib_ceil,
};
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::{DiskType, Geometry};
use crate::view::headers::LogPlace;
use crate::{Error, Result};

/// Who made the file, as its identifier says.
const CREATOR: &str = concat!("vhdxkit ", env!("CARGO_PKG_VERSION"));
/// Bytes of the metadata region: what Windows takes.
const METADATA_LENGTH: u32 = 1 << 20;

/// Who a new file is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) disk_id: Guid,
    pub(crate) file_write: Guid,
    pub(crate) data_write: Guid,
}

/// Where everything of a new file lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    log: LogPlace,
    metadata: u64,
    bat: u64,
    bat_length: u32,
}

impl Layout {
    /// Lays out a file for a disk, with a log of `log_length` bytes.
    pub(crate) fn new(geometry: Geometry, log_length: u32) -> Result<Self> {
        if log_length == 0
            || !u64::from(log_length).is_multiple_of(MIB)
            || log_length > MAX_LOG_LENGTH
        {
            return Err(Error::invalid(format!(
                "log size {log_length}: must be a multiple of 1 MiB, up to 1 GiB"
            )));
        }
        let log = LogPlace { offset: HEADER_SECTION_LENGTH, length: log_length };
        let metadata = log.end();
        let bat = metadata.saturating_add(u64::from(METADATA_LENGTH));
        let bat_length = region_length(geometry.bat_bytes())?;
        Ok(Self { geometry, log, metadata, bat, bat_length })
    }

    /// Lays out the tables alone, from the MiB `base` on, without a log: for a file whose blocks lie where they
    /// are.
    pub(crate) fn tables_at(geometry: Geometry, base: u64) -> Result<Self> {
        let bat_length = region_length(geometry.bat_bytes())?;
        let log = LogPlace { offset: base, length: 0 };
        let bat = base.saturating_add(u64::from(METADATA_LENGTH));
        if bat.saturating_add(u64::from(bat_length)) > MAX_FILE_OFFSET {
            return Err(Error::limit("the file would be longer than 256 TiB"));
        }
        Ok(Self { geometry, log, metadata: base, bat, bat_length })
    }

    /// File offset of the `number`-th block that is placed, counted from zero.
    pub(crate) fn place(&self, number: u64) -> u64 {
        let block = u64::from(self.geometry.block_size());
        self.data().saturating_add(number.saturating_mul(block))
    }

    fn data(&self) -> u64 {
        self.bat.saturating_add(u64::from(self.bat_length))
    }

    /// Makes the file long enough for `blocks` placed blocks.
    pub(crate) fn set_length(&self, target: &dyn Storage, blocks: u64) -> Result<()> {
        let length = self.place(blocks);
        if length > MAX_FILE_OFFSET {
            return Err(Error::limit("the file would be longer than 256 TiB"));
        }
        target.set_len(length).map_err(|e| Error::io("cannot extend the new image", length, e))
    }

    /// Refuses to make an image over something else.
    pub(crate) fn require_empty(target: &dyn Storage) -> Result<()> {
        match target.length()? {
            0 => Ok(()),
            _ => Err(Error::invalid("the target of a new image must be empty")),
        }
    }

    /// Everything but the BAT, the payload and the identifier.
    pub(crate) fn write_tables(
        &self,
        target: &dyn Storage,
        guids: &GuidSource,
        disk_id: Guid,
        more_items: &[Item],
    ) -> Result<()> {
        let file_write = guids.guid();
        let identity = Identity { disk_id, file_write, data_write: guids.guid() };
        self.write_tables_as(target, identity, more_items)
    }

    /// [`write_tables`](Self::write_tables) of a file that has its identities already.
    pub(crate) fn write_tables_as(
        &self,
        target: &dyn Storage,
        identity: Identity,
        more_items: &[Item],
    ) -> Result<()> {
        let failed = |at| move |e| Error::io("cannot write the new image", at, e);
        // Written, not left as a hole: the log is to take entries when the disk is full, and an
        // entry's sync is to find its space allocated.
        let zeros = vec![0; 1 << 20];
        let mut at = self.log.offset;
        while at < self.log.end() {
            target.write_at(at, &zeros).map_err(failed(at))?;
            at = at.saturating_add(MIB);
        }
        for offset in REGION_TABLE_OFFSETS {
            target.write_at(offset, &self.region_table()?).map_err(failed(offset))?;
        }
        let mut items = self.items(identity.disk_id);
        items.extend_from_slice(more_items);
        let metadata = encode_region(&items);
        let metadata = metadata.ok_or_else(|| Error::limit("too many metadata items"))?;
        if u32::try_from(metadata.len()).is_ok_and(|length| length > METADATA_LENGTH) {
            return Err(Error::limit("the metadata does not fit its region"));
        }
        target.write_at(self.metadata, &metadata).map_err(failed(self.metadata))?;
        let (file, data) = (identity.file_write, identity.data_write);
        for (sequence, offset) in (1u64..).zip(HEADER_OFFSETS) {
            let header = self.header(sequence, file, data);
            target.write_at(offset, header.as_bytes()).map_err(failed(offset))?;
        }
        Ok(())
    }

    /// Writes BAT entries, given in the order of their blocks. Pages without any stay holes.
    pub(crate) fn write_bat(
        &self,
        target: &dyn Storage,
        entries: impl Iterator<Item = (u64, RawEntry)>,
    ) -> Result<()> {
        let mut bat = self.bat_writer(target);
        for (block, raw) in entries {
            bat.put(self.geometry.payload_index(block), raw)?;
        }
        bat.write()
    }

    /// Writes entries of any kind, given in the order of the table.
    pub(crate) fn bat_writer<'a>(&self, target: &'a dyn Storage) -> BatWriter<'a> {
        BatWriter { target, bat: self.bat, number: 0, bytes: None }
    }

    /// Makes the file an image: everything durable first, then the identifier.
    pub(crate) fn finish(&self, target: &dyn Storage) -> Result<()> {
        let sync =
            || target.sync().map_err(|e| Error::io_whole("cannot make the new image durable", e));
        sync()?;
        let identifier = FileIdentifier::new(CREATOR);
        target
            .write_at(0, identifier.as_bytes())
            .map_err(|e| Error::io("cannot write the new image", 0, e))?;
        sync()
    }

    fn header(&self, sequence: u64, file: Guid, data: Guid) -> Header {
        let mut header = Header::new_zeroed();
        header.sequence_number = U64::new(sequence);
        header.file_write_guid = file;
        header.data_write_guid = data;
        header.log_version = U16::new(LOG_VERSION);
        header.version = U16::new(VERSION);
        header.log_length = U32::new(self.log.length);
        header.log_offset = U64::new(self.log.offset);
        header.sealed()
    }

    fn region_table(&self) -> Result<Vec<u8>> {
        let region = |guid, offset, length| RegionTableEntry {
            guid,
            file_offset: U64::new(offset),
            length: U32::new(length),
            required: U32::new(1),
        };
        let table = encode_table(&[
            region(BAT_REGION, self.bat, self.bat_length),
            region(METADATA_REGION, self.metadata, METADATA_LENGTH),
        ]);
        table.ok_or_else(|| Error::invalid("too many regions"))
    }

    fn items(&self, disk_id: Guid) -> Vec<Item> {
        let geometry = &self.geometry;
        let flags = match geometry.disk_type() {
            DiskType::Fixed => LEAVE_BLOCK_ALLOCATED,
            DiskType::Dynamic => 0,
            DiskType::Differencing => HAS_PARENT,
        };
        let parameters =
            FileParameters { block_size: U32::new(geometry.block_size()), flags: U32::new(flags) };
        Item::mandatory(
            parameters,
            geometry.virtual_size(),
            geometry.logical_sector_size(),
            geometry.physical_sector_size(),
            disk_id,
        )
    }
}

/// The length of a BAT region that holds so many bytes.
pub(crate) fn region_length(bytes: u64) -> Result<u32> {
    let length = mib_ceil(bytes).and_then(|length| u32::try_from(length).ok());
    length.ok_or_else(|| Error::limit("the table would not fit a region"))
}

/// Gathers entries of one page, and writes it when another one follows.
pub(crate) struct BatWriter<'a> {
    target: &'a dyn Storage,
    bat: u64,
    number: u64,
    bytes: Option<Vec<u8>>,
}

impl BatWriter<'_> {
    pub(crate) fn put(&mut self, index: u64, raw: RawEntry) -> Result<()> {
        let (page, slot) = (index / ENTRIES_PER_PAGE, index % ENTRIES_PER_PAGE);
        if page != self.number {
            self.write()?;
            self.number = page;
        }
        let bytes = self.bytes.get_or_insert_with(|| vec![0; LOG_SECTOR_LEN]);
        let slot = usize::try_from(slot).unwrap_or_default();
        if let Some(place) = bytes.chunks_exact_mut(8).nth(slot) {
            place.copy_from_slice(&raw.0.to_le_bytes());
        }
        Ok(())
    }

    /// Writes the last page.
    pub(crate) fn write(&mut self) -> Result<()> {
        let Some(bytes) = self.bytes.take() else { return Ok(()) };
        let page = ENTRIES_PER_PAGE.saturating_mul(ENTRY_LENGTH);
        let at = self.bat.saturating_add(self.number.saturating_mul(page));
        self.target.write_at(at, &bytes).map_err(|e| Error::io("cannot write the BAT", at, e))
    }
}
