//! Reading, and where what is read lies.

use crate::storage::StorageExt;
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::format::{FOOTER_BYTES, HEADER_BYTES, SECTOR, UNUSED};
use super::open::overlap;
use super::{Table, Vhd};

/// The bits of a byte, in the order of the sectors that they stand for.
const BITS: [u8; 8] = [0x80, 0x40, 0x20, 0x10, 8, 4, 2, 1];
/// BAT entries that are looked at at once, to pass by what is not there.
const ENTRIES: u64 = 1024;

/// What a piece of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Zeros, in no file.
    Zero,
    /// It has to be read.
    Data {
        /// How deep in the chain.
        depth: u32,
        /// Where it lies, if all of the piece lies there: not so where sectors of a parent may be
        /// between. Holes of the file are zeros of the disk.
        file_offset: Option<u64>,
    },
    /// Only a parent knows, which is not open.
    ParentMissing,
}

/// How many blocks of a disk are in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VhdBlocks {
    /// All of it.
    pub fully_present: u64,
    /// Some of its sectors, the others are the parent's.
    pub partially_present: u64,
    /// None of it.
    pub not_present: u64,
}

impl Vhd {
    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// The range ends beyond the disk; a file cannot be read, or its BAT leads nowhere; a parent is needed
    /// that is not open.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(offset, buf.len())?;
        self.read_layer(offset, buf).map_err(|e| self.named(e))
    }

    /// Counts the blocks; none in a fixed disk. Costs a read of the BAT, and of all bitmaps of a
    /// differencing disk.
    ///
    /// # Errors
    /// The file cannot be read, or its BAT leads nowhere.
    pub fn count_blocks(&self) -> Result<Option<VhdBlocks>> {
        let Some(table) = &self.table else { return Ok(None) };
        let mut counts = VhdBlocks::default();
        let mut block = 0;
        while block < table.blocks {
            let (next, entry) = self.present_from(table, block)?;
            counts.not_present = counts.not_present.saturating_add(next.saturating_sub(block));
            let Some(at) = entry else {
                block = next;
                continue;
            };
            let whole = self.disk_type == DiskType::Dynamic || self.is_whole(table, next, at)?;
            let counter =
                if whole { &mut counts.fully_present } else { &mut counts.partially_present };
            *counter = counter.saturating_add(1);
            block = next.saturating_add(1);
        }
        Ok(Some(counts))
    }

    /// Whether all sectors of a block are its own.
    fn is_whole(&self, table: &Table, block: u64, at: u64) -> Result<bool> {
        let bytes = self.size.saturating_sub(table.block_start(block)).min(table.block_size);
        let bits = self.bits(at, 0, bytes.div_ceil(SECTOR))?;
        Ok(bits.iter().all(|bit| *bit))
    }

    /// What the disk is at a byte of it, and where that ends.
    pub(crate) fn place(&self, at: u64) -> Result<(u64, Place)> {
        let (mut layer, mut depth, mut end) = (self, 0u32, self.size);
        loop {
            if at >= layer.size {
                return Ok((end, Place::Zero));
            }
            end = end.min(layer.size);
            let Some(table) = &layer.table else {
                return Ok((end, Place::Data { depth, file_offset: Some(at) }));
            };
            let block = table.block_of(at);
            let (next, entry) = layer.present_from(table, block).map_err(|e| layer.named(e))?;
            if let (true, Some(bitmap)) = (next == block, entry) {
                let start = table.block_start(block);
                end = end.min(start.saturating_add(table.block_size));
                let data = bitmap.saturating_add(table.bitmap_bytes);
                let whole = layer.disk_type == DiskType::Dynamic;
                let file_offset = whole.then(|| data.saturating_add(at.saturating_sub(start)));
                return Ok((end, Place::Data { depth, file_offset }));
            }
            end = end.min(table.block_start(next));
            match (&layer.parent, layer.disk_type) {
                (Some(parent), _) => (layer, depth) = (&**parent, depth.saturating_add(1)),
                (None, DiskType::Differencing) => return Ok((end, Place::ParentMissing)),
                (None, _) => return Ok((end, Place::Zero)),
            }
        }
    }

    /// Reads bytes of this disk and those below it; the range ends within this disk.
    fn read_layer(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(table) = &self.table else { return self.file.read_exact_at(offset, buf) };
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = table.block_of(at);
            let end = table.block_start(block.saturating_add(1));
            let (piece, later) = split(std::mem::take(&mut rest), end.saturating_sub(at));
            match self.entry(table, block)? {
                Some(bitmap) => self.read_block(table, block, bitmap, at, piece)?,
                None => self.read_below(at, piece)?,
            }
            (at, rest) = (end, later);
        }
        Ok(())
    }

    /// Reads a piece of one block, by its bitmap.
    fn read_block(
        &self,
        table: &Table,
        block: u64,
        bitmap: u64,
        at: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let within = at.saturating_sub(table.block_start(block));
        let data = bitmap.saturating_add(table.bitmap_bytes);
        let length = u64::try_from(buf.len()).unwrap_or_default();
        let first = within / SECTOR;
        let last = within.saturating_add(length).div_ceil(SECTOR);
        let bits = self.bits(bitmap, first, last.saturating_sub(first))?;
        let (mut sector, mut at, mut rest) = (first, at, buf);
        for run in bits.chunk_by(|a, b| a == b) {
            let own = run.first().copied().unwrap_or_default();
            sector = sector.saturating_add(u64::try_from(run.len()).unwrap_or_default());
            let end = table.block_start(block).saturating_add(sector.saturating_mul(SECTOR));
            let (piece, later) = split(std::mem::take(&mut rest), end.saturating_sub(at));
            let inside = at.saturating_sub(table.block_start(block));
            match own {
                true => self.file.read_exact_at(data.saturating_add(inside), piece)?,
                false => self.read_below(at, piece)?,
            }
            (at, rest) = (end, later);
        }
        Ok(())
    }

    /// Reads what this file does not hold.
    fn read_below(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            return match self.disk_type {
                DiskType::Differencing => Err(self.parent_needed("reading this part of it")),
                _ => {
                    buf.fill(0);
                    Ok(())
                }
            };
        };
        // A parent may be shorter than its child.
        let (there, beyond) = split(buf, parent.size.saturating_sub(at));
        beyond.fill(0);
        if there.is_empty() {
            Ok(())
        } else {
            parent.read_layer(at, there).map_err(|e| parent.named(e))
        }
    }

    /// Bits of a block's bitmap, the most significant of a byte first.
    pub(super) fn bits(&self, bitmap: u64, first: u64, count: u64) -> Result<Vec<bool>> {
        let start = first / 8;
        let end = first.saturating_add(count).div_ceil(8);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or_default()];
        self.file.read_exact_at(bitmap.saturating_add(start), &mut bytes)?;
        let all = bytes.iter().flat_map(|byte| BITS.map(|bit| byte & bit != 0));
        let skip = usize::try_from(first % 8).unwrap_or_default();
        Ok(all.skip(skip).take(usize::try_from(count).unwrap_or_default()).collect())
    }

    /// Where a block's bitmap lies, with its data behind it.
    pub(super) fn entry(&self, table: &Table, block: u64) -> Result<Option<u64>> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(entry_at(table, block), &mut bytes)?;
        self.judge_entry(table, block, u32::from_be_bytes(bytes))
    }

    /// The first block from `block` on that is in the file, and where. Looks at so many entries only: with
    /// `None`, the block that it got to. Else the walk through a chain would look at the same entries of a
    /// child for each block of its parent.
    pub(super) fn present_from(&self, table: &Table, block: u64) -> Result<(u64, Option<u64>)> {
        let count = table.blocks.saturating_sub(block).min(ENTRIES);
        let mut bytes = [0; 4096];
        let wanted = usize::try_from(count.saturating_mul(4)).unwrap_or_default();
        let bytes = bytes.get_mut(..wanted).unwrap_or_default();
        self.file.read_exact_at(entry_at(table, block), bytes)?;
        let mut at = block;
        for entry in bytes.as_chunks::<4>().0 {
            let entry = u32::from_be_bytes(*entry);
            if entry != UNUSED {
                return Ok((at, self.judge_entry(table, at, entry)?));
            }
            at = at.saturating_add(1);
        }
        Ok((at, None))
    }

    fn judge_entry(&self, table: &Table, block: u64, entry: u32) -> Result<Option<u64>> {
        if entry == UNUSED {
            return Ok(None);
        }
        let at = u64::from(entry).saturating_mul(SECTOR);
        // The last block need not be there beyond the end of the disk.
        let used = self.size.saturating_sub(table.block_start(block)).min(table.block_size);
        let range = (at, table.bitmap_bytes.saturating_add(used));
        let wrong = |why: &str| {
            let text = format!("block {block} lies at {at:#x}, {why}");
            Err(Error::malformed("VHD BAT", entry_at(table, block), text))
        };
        if range.0.saturating_add(range.1) > self.file.length()? {
            return wrong("outside of the file");
        }
        let bat = (table.offset, table.bytes());
        if [(0, FOOTER_BYTES), (table.header, HEADER_BYTES), bat].iter().any(|t| overlap(*t, range))
        {
            return wrong("on the file's own tables");
        }
        Ok(Some(at))
    }

    /// An error with the name of the file it is about, when that is one of several.
    fn named(&self, error: Error) -> Error {
        match &self.path {
            Some(path) if !error.names_a_file() => error.in_file(path),
            _ => error,
        }
    }
}

pub(super) fn entry_at(table: &Table, block: u64) -> u64 {
    table.offset.saturating_add(block.saturating_mul(4))
}

fn split(buf: &mut [u8], at: u64) -> (&mut [u8], &mut [u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(buf.len());
    buf.split_at_mut(at)
}
