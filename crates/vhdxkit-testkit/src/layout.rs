//! Where the parts of a built image lie, computed from the format's text alone.

use std::collections::BTreeMap;

use vhdxkit::format::bat::SECTORS_PER_BITMAP;

use crate::log::PlacedEntry;

/// The shape of a disk: what the BAT is laid out by.
///
/// The computation is the testkit's own, so that it checks the library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of a payload block.
    pub block_size: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// Whether the disk has a parent.
    pub differencing: bool,
}

impl Shape {
    /// Payload blocks that share one sector bitmap block.
    #[must_use]
    pub fn chunk_ratio(&self) -> u64 {
        SECTORS_PER_BITMAP * self.sector / self.block_size
    }

    /// Payload blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size)
    }

    /// The BAT is a row of groups: the payload blocks of a chunk, then the chunk's sector bitmap.
    #[must_use]
    pub fn bat_index(&self, block: u64) -> u64 {
        let group = self.chunk_ratio() + 1;
        block / self.chunk_ratio() * group + block % self.chunk_ratio()
    }

    /// BAT index of the sector bitmap of a chunk: the last of its group.
    #[must_use]
    pub fn bitmap_index(&self, chunk: u64) -> u64 {
        let group = self.chunk_ratio() + 1;
        (chunk + 1) * group - 1
    }

    /// Entries of the BAT: whole groups with a parent, else up to the last payload block.
    #[must_use]
    pub fn bat_entries(&self) -> u64 {
        match (self.blocks(), self.differencing) {
            (0, _) => 0,
            (blocks, true) => self.bitmap_index((blocks - 1) / self.chunk_ratio()) + 1,
            (blocks, false) => self.bat_index(blocks - 1) + 1,
        }
    }
}

/// Offsets of everything in a built image, so that tests can predict instead of search.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The disk.
    pub shape: Shape,
    /// File offset of the log.
    pub log_offset: u64,
    /// Bytes of the log.
    pub log_length: u64,
    /// File offset of the metadata region.
    pub metadata_offset: u64,
    /// Bytes of the metadata region.
    pub metadata_length: u64,
    /// File offset of the BAT region.
    pub bat_offset: u64,
    /// Bytes of the BAT region.
    pub bat_length: u64,
    /// File offsets of the extra regions, in the order they were asked for.
    pub extra_regions: Vec<u64>,
    /// Where the first block goes if nothing forces it elsewhere.
    pub payload_start: u64,
    /// Bytes of the file as built, its log not replayed.
    pub file_length: u64,
    /// File offset of every payload block that was given space, by the log or before it.
    pub blocks: BTreeMap<u64, u64>,
    /// File offset of every sector bitmap block, by chunk.
    pub bitmaps: BTreeMap<u64, u64>,
    /// The log entries, in the order they were added.
    pub log_entries: Vec<PlacedEntry>,
}

impl Layout {
    /// BAT index of a payload block.
    #[must_use]
    pub fn bat_index(&self, block: u64) -> u64 {
        self.shape.bat_index(block)
    }

    /// BAT index of a chunk's sector bitmap.
    #[must_use]
    pub fn bitmap_index(&self, chunk: u64) -> u64 {
        self.shape.bitmap_index(chunk)
    }

    /// File offset of a payload block's BAT entry.
    #[must_use]
    pub fn bat_entry_offset(&self, block: u64) -> u64 {
        self.bat_offset + 8 * self.bat_index(block)
    }

    /// File offset of the 4 KiB page that holds a payload block's BAT entry: what a log entry
    /// rewrites.
    #[must_use]
    pub fn bat_page_offset(&self, block: u64) -> u64 {
        self.bat_offset + self.bat_index(block) / 512 * 4096
    }

    /// File offset of a log sector.
    #[must_use]
    pub fn log_sector_offset(&self, sector: u64) -> u64 {
        self.log_offset + sector * 4096
    }

    /// File offset at which the `index`th log entry starts.
    #[must_use]
    pub fn log_entry_offset(&self, index: usize) -> u64 {
        self.log_offset + self.log_entries[index].log_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(virtual_size: u64, mib: u64, sector: u64, differencing: bool) -> Shape {
        Shape { virtual_size, block_size: mib << 20, sector, differencing }
    }

    #[test]
    fn chunk_border() {
        let dynamic = shape(6 << 30, 1, 512, false);
        assert_eq!(dynamic.chunk_ratio(), 4096);
        assert_eq!((dynamic.blocks(), dynamic.bat_entries()), (6144, 6145));
        assert_eq!((dynamic.bat_index(4095), dynamic.bat_index(4096)), (4095, 4097));
        assert_eq!(dynamic.bitmap_index(0), 4096);
        assert_eq!(dynamic.bat_index(4660), 4661);
    }

    #[test]
    fn worked_examples_of_the_format() {
        let child = shape(16 << 30, 2, 512, true);
        assert_eq!((child.bat_index(5120), child.bitmap_index(2)), (5122, 6146));
        let wide = shape(64 << 30, 32, 4096, true);
        assert_eq!((wide.bat_index(1152), wide.bitmap_index(1)), (1153, 2049));
    }

    #[test]
    fn largest_tables() {
        assert_eq!(shape(64 << 40, 1, 512, false).bat_entries() * 8, 537_001_976);
        assert_eq!(shape(64 << 40, 1, 512, true).bat_entries() * 8, 537_001_984);
        assert_eq!(shape(64 << 40, 256, 512, false).bat_entries(), 278_527);
        assert_eq!(shape(0, 1, 512, true).bat_entries(), 0);
    }
}
