//! The shape of the virtual disk (MS-VHDX 2.5, 2.6.2): sizes, and which BAT entry is whose. Rules
//! V20 to V23 and V25.

use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::Guid;
use crate::format::bat::{ENTRY_LENGTH, SECTORS_PER_BITMAP};
use crate::format::limits::{MAX_BLOCK_SIZE, MAX_VIRTUAL_SIZE, MIN_BLOCK_SIZE};
use crate::format::metadata::{FileParameters, HAS_PARENT, LEAVE_BLOCK_ALLOCATED};
use crate::{Error, Result};

use super::metadata::DiskItems;

/// What kind of disk a file is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Space is taken up front.
    Fixed,
    /// Space is taken when it is written.
    Dynamic,
    /// Only what differs from a parent is stored.
    Differencing,
}

impl DiskType {
    /// `fixed`, `dynamic` or `differencing`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// What an entry of the BAT stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatSlot {
    /// A payload block, by its number.
    Payload(u64),
    /// The sector bitmap block of a chunk, by the chunk's number.
    Bitmap(u64),
    /// Behind the last entry that is used.
    Padding,
}

/// Sizes of a virtual disk, all judged: every computation on them stays within 64 bits.
///
/// Payload entries and sector bitmap entries are interleaved in the BAT: after every
/// [`chunk_ratio`](Self::chunk_ratio) payload entries comes one for a sector bitmap, whether the
/// disk has a parent or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    disk_type: DiskType,
    virtual_size: u64,
    block_shift: u32,
    logical_sector: u32,
    physical_sector: u32,
    disk_id: Guid,
}

impl Geometry {
    /// Judges the metadata items. Without usable sizes there is no geometry: `None`, when a check
    /// wants to go on.
    pub(crate) fn judge(items: &DiskItems, findings: &mut Findings) -> Result<Option<Self>> {
        let block = items.parameters.map(|(value, at)| (value.block_size.get(), at));
        let block_size = judged(
            block,
            findings,
            |size| size.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size),
            |at, found| Defect::BlockSize { at, found },
        )?;
        let sector = |which| move |at, found| Defect::SectorSize { at, which, found };
        let legal = Self::is_sector_size;
        let logical = judged(items.logical_sector, findings, legal, sector("logical"))?;
        let physical = judged(items.physical_sector, findings, legal, sector("physical"))?;
        let mut flags = 0;
        if let Some((parameters, at)) = items.parameters {
            flags = parameters.flags.get();
            if flags & !(LEAVE_BLOCK_ALLOCATED | HAS_PARENT) != 0 {
                let at = at.saturating_add(4);
                findings.report(Defect::FileParameterBits { at, found: flags })?;
            }
        }
        let virtual_size = judge_size(items.virtual_size, logical, findings)?;
        let (Some(block_size), Some(logical_sector), Some(virtual_size)) =
            (block_size, logical, virtual_size)
        else {
            return Ok(None);
        };
        let disk_type = match (flags & HAS_PARENT != 0, flags & LEAVE_BLOCK_ALLOCATED != 0) {
            (true, _) => DiskType::Differencing,
            (false, true) => DiskType::Fixed,
            (false, false) => DiskType::Dynamic,
        };
        Ok(Some(Self {
            disk_type,
            virtual_size,
            block_shift: block_size.trailing_zeros(),
            logical_sector,
            physical_sector: physical.unwrap_or(logical_sector),
            disk_id: items.disk_id.unwrap_or_default(),
        }))
    }

    /// Whether sectors may have so many bytes.
    pub(crate) fn is_sector_size(bytes: u32) -> bool {
        bytes == 512 || bytes == 4096
    }

    /// The geometry of a disk to be made, under the same rules as one that is read.
    ///
    /// # Errors
    /// A value that the format does not allow; the text names it.
    pub(crate) fn for_new(
        parameters: FileParameters,
        virtual_size: u64,
        logical_sector: u32,
        physical_sector: u32,
        disk_id: Guid,
    ) -> Result<Self> {
        let items = DiskItems {
            parameters: Some((parameters, 0)),
            virtual_size: Some((virtual_size, 0)),
            logical_sector: Some((logical_sector, 0)),
            physical_sector: Some((physical_sector, 0)),
            disk_id: Some(disk_id),
        };
        let judged = Self::judge(&items, &mut Findings::strict());
        let judged = judged.map_err(|error| match error.defect() {
            Some(defect) => Error::invalid(defect.to_string()),
            None => error,
        })?;
        judged.ok_or_else(|| Error::invalid("a disk needs sizes"))
    }

    /// The same disk with another size.
    ///
    /// # Errors
    /// As [`for_new`](Self::for_new).
    pub(crate) fn resized(&self, virtual_size: u64) -> Result<Self> {
        let judged =
            judge_size(Some((virtual_size, 0)), Some(self.logical_sector), &mut Findings::strict());
        match judged {
            Ok(Some(virtual_size)) => Ok(Self { virtual_size, ..*self }),
            Ok(None) => Err(Error::invalid("a disk needs a size")),
            Err(error) => Err(Error::invalid(
                error.defect().map_or_else(|| error.to_string(), ToString::to_string),
            )),
        }
    }

    /// Fixed, dynamic or differencing.
    #[must_use]
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// Whether the disk has a parent.
    #[must_use]
    pub fn is_differencing(&self) -> bool {
        self.disk_type == DiskType::Differencing
    }

    /// Bytes of the virtual disk, a multiple of the logical sector size, at most 64 TiB.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Bytes of a payload block, a power of two from 1 MiB to 256 MiB.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1u32.checked_shl(self.block_shift).unwrap_or(MAX_BLOCK_SIZE)
    }

    /// The guest's sector size in bytes, 512 or 4096.
    #[must_use]
    pub fn logical_sector_size(&self) -> u32 {
        self.logical_sector
    }

    /// The sector size in bytes that the guest is told the medium has.
    #[must_use]
    pub fn physical_sector_size(&self) -> u32 {
        self.physical_sector
    }

    /// The identity the guest sees (SCSI page 0x83).
    #[must_use]
    pub fn disk_id(&self) -> Guid {
        self.disk_id
    }

    /// Payload blocks of the disk; the last may be used in part.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(u64::from(self.block_size()).max(1))
    }

    /// Payload blocks per sector bitmap block.
    #[must_use]
    pub fn chunk_ratio(&self) -> u64 {
        let chunk = SECTORS_PER_BITMAP.saturating_mul(u64::from(self.logical_sector));
        chunk >> self.block_shift
    }

    /// The chunk a payload block belongs to.
    #[must_use]
    pub fn chunk_of(&self, block: u64) -> u64 {
        block.checked_div(self.chunk_ratio()).unwrap_or_default()
    }

    /// Sectors of a payload block.
    #[must_use]
    pub fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_size()).checked_div(u64::from(self.logical_sector)).unwrap_or_default()
    }

    /// The number, within its chunk, of a payload block's first sector.
    #[must_use]
    pub fn first_sector_in_chunk(&self, block: u64) -> u64 {
        let within = block.checked_rem(self.chunk_ratio()).unwrap_or_default();
        within.saturating_mul(self.sectors_per_block())
    }

    /// Chunks of the disk.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.blocks().div_ceil(self.chunk_ratio().max(1))
    }

    /// BAT entries this disk needs, payload and bitmap together.
    #[must_use]
    pub fn bat_entries(&self) -> u64 {
        if self.is_differencing() {
            return self.chunks().saturating_mul(self.chunk_ratio().saturating_add(1));
        }
        let blocks = self.blocks();
        blocks.saturating_add(self.chunk_of(blocks.saturating_sub(1)))
    }

    /// Bytes of those entries.
    #[must_use]
    pub fn bat_bytes(&self) -> u64 {
        self.bat_entries().saturating_mul(ENTRY_LENGTH)
    }

    /// The BAT index of a payload block.
    #[must_use]
    pub fn payload_index(&self, block: u64) -> u64 {
        block.saturating_add(self.chunk_of(block))
    }

    /// The BAT index of a chunk's sector bitmap block.
    #[must_use]
    pub fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk.saturating_add(1).saturating_mul(self.chunk_ratio()).saturating_add(chunk)
    }

    /// What the BAT entry at `index` stands for.
    #[must_use]
    pub fn slot(&self, index: u64) -> BatSlot {
        if index >= self.bat_entries() {
            return BatSlot::Padding;
        }
        let ratio = self.chunk_ratio();
        let period = ratio.saturating_add(1);
        let chunk = index.checked_div(period).unwrap_or_default();
        let within = index.checked_rem(period).unwrap_or_default();
        if within == ratio {
            return BatSlot::Bitmap(chunk);
        }
        let block = chunk.saturating_mul(ratio).saturating_add(within);
        if block < self.blocks() { BatSlot::Payload(block) } else { BatSlot::Padding }
    }

    /// The block that a byte of the disk lies in.
    #[must_use]
    pub fn block_of(&self, disk_offset: u64) -> u64 {
        disk_offset.checked_shr(self.block_shift).unwrap_or_default()
    }

    /// The first byte of a block on the disk.
    #[must_use]
    pub fn block_start(&self, block: u64) -> u64 {
        block.saturating_mul(u64::from(self.block_size()))
    }

    /// How many bytes of a block the disk uses: all but for the last one.
    #[must_use]
    pub fn used_bytes(&self, block: u64) -> u64 {
        let rest = self.virtual_size.saturating_sub(self.block_start(block));
        rest.min(u64::from(self.block_size()))
    }
}

/// A value with its place, when it is there and passes `legal`; otherwise reported.
fn judged(
    item: Option<(u32, u64)>,
    findings: &mut Findings,
    legal: impl Fn(u32) -> bool,
    defect: impl Fn(u64, u32) -> Defect,
) -> Result<Option<u32>> {
    let Some((value, at)) = item else { return Ok(None) };
    if legal(value) {
        return Ok(Some(value));
    }
    findings.report(defect(at, value))?;
    Ok(None)
}

fn judge_size(
    item: Option<(u64, u64)>,
    logical_sector: Option<u32>,
    findings: &mut Findings,
) -> Result<Option<u64>> {
    let Some((found, at)) = item else { return Ok(None) };
    let sector = logical_sector.map_or(512, u64::from);
    let why = if found > MAX_VIRTUAL_SIZE {
        "more than 64 TiB"
    } else if found == 0 {
        "a disk without sectors"
    } else if found.checked_rem(sector) != Some(0) {
        "no multiple of the logical sector size"
    } else {
        return Ok(Some(found));
    };
    findings.report(Defect::VirtualSize { at, found, why })?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn disk(disk_type: DiskType, size: u64, block_mib: u32, sector: u32) -> Geometry {
        Geometry {
            disk_type,
            virtual_size: size,
            block_shift: 20 + block_mib.trailing_zeros(),
            logical_sector: sector,
            physical_sector: 4096,
            disk_id: Guid::ZERO,
        }
    }

    /// Trap 10: forgetting the interleaved bitmap entries goes wrong beyond 4 GiB.
    #[test]
    fn payload_entries_skip_the_interleaved_bitmap_entries() {
        let six_gib = disk(DiskType::Dynamic, 6 << 30, 1, 512);
        assert_eq!((six_gib.chunk_ratio(), six_gib.blocks()), (4096, 6144));
        assert_eq!(six_gib.bat_entries(), 6145);
        assert_eq!(six_gib.block_of(0x1_2345_6000), 4660);
        assert_eq!(six_gib.payload_index(4660), 4661);
        assert_eq!(six_gib.slot(4096), BatSlot::Bitmap(0));
        assert_eq!(six_gib.slot(4661), BatSlot::Payload(4660));
        assert_eq!(six_gib.slot(6145), BatSlot::Padding);
    }

    #[test]
    fn worked_examples_of_differencing_disks() {
        let child = disk(DiskType::Differencing, 16 << 30, 2, 512);
        assert_eq!(child.chunk_ratio(), 2048);
        assert_eq!((child.payload_index(5120), child.chunk_of(5120)), (5122, 2));
        assert_eq!(child.bitmap_index(2), 6146);
        let child = disk(DiskType::Differencing, 64 << 30, 32, 4096);
        assert_eq!((child.chunk_ratio(), child.payload_index(1152)), (1024, 1153));
        assert_eq!(child.bitmap_index(1), 2049);
    }

    #[test]
    fn the_largest_disks_fit() {
        let size = 64 << 40;
        assert_eq!(disk(DiskType::Dynamic, size, 1, 512).bat_bytes(), 537_001_976);
        assert_eq!(disk(DiskType::Differencing, size, 1, 512).bat_bytes(), 537_001_984);
        assert_eq!(disk(DiskType::Dynamic, size, 256, 512).bat_entries(), 278_527);
    }

    #[test]
    fn every_slot_and_its_index_agree() {
        for (sector, block) in [(512, 128), (512, 256), (4096, 256)] {
            let disk = disk(DiskType::Differencing, (300 << 30) + 512 * 8, block, sector);
            for block in 0..disk.blocks() {
                assert_eq!(disk.slot(disk.payload_index(block)), BatSlot::Payload(block));
            }
            for chunk in 0..disk.chunks() {
                assert_eq!(disk.slot(disk.bitmap_index(chunk)), BatSlot::Bitmap(chunk));
            }
        }
    }

    #[test]
    fn the_last_block_may_be_used_in_part() {
        let disk = disk(DiskType::Dynamic, (3 << 20) + 512, 2, 512);
        assert_eq!((disk.blocks(), disk.used_bytes(0)), (2, 2 << 20));
        assert_eq!(disk.used_bytes(1), (1 << 20) + 512);
    }
}
