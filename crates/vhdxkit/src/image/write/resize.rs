//! Changing the size of a disk.
//!
//! # One entry decides
//! Old size or new size: which of them a crash leaves is decided by a single log entry, the one that
//! carries the sector with the Virtual Disk Size. Everything before it changes only what the old size
//! does not show; everything after it, what the new size does not show.
//!
//! **Growing.** First, outside of what the guest can see: the rest of the last block is zeroed (an
//! earlier shrink, or another program, may have left bytes there), a fixed disk's new blocks get their
//! places. When the table does not fit its region any more a new one is written to fresh space, whole,
//! directly. A sync makes all this durable. Then the one entry: the size, and when the table moved
//! both region tables. The old table's space is given to nobody before the next epoch of the log, since
//! entries of the present one write to it when they are replayed.
//!
//! A child's new blocks read as zeros, too: where its parent is larger than the child was, they are given
//! the state ZERO, and the end of the last block zeros of its own.
//!
//! **Shrinking.** The one entry carries the size, and zeroes the table behind the new end. The space of
//! the blocks behind it is free once the entry is stable.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::error::Repr;
use crate::findings::Findings;
use crate::format::bat::{ENTRY_LENGTH, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::format::metadata::VIRTUAL_DISK_SIZE;
use crate::format::region::{RegionTableEntry, encode_table};
use crate::format::{LOG_SECTOR, LOG_SECTOR_LEN, REGION_TABLE_OFFSETS};
use crate::image::Image;
use crate::image::layout::region_length;
use crate::image::open::{Recovered, read_image_parts};
use crate::map::{Bat, Bitmaps, Block, Place, walk};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::geometry::{BatSlot, DiskType, Geometry};
use crate::view::regions::Region;
use crate::{Error, Result};

use super::Writer;
use super::payload::{Payload, zero};
use super::session::Identity;

/// What a change of size did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeReport {
    /// Bytes of the disk before.
    pub size_before: u64,
    /// Bytes of the disk after.
    pub size_after: u64,
    /// The block allocation table had to be written anew elsewhere in the file.
    pub table_moved: bool,
}

/// Whether a smaller disk may lose data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shrink {
    /// Only zeros may be cut off; anything else is refused.
    ZerosOnly,
    /// Whatever lies behind the new end is given up.
    Anything,
}

const COPY_STEP: usize = 1 << 20;

impl Image {
    /// Gives the disk another size, a multiple of its logical sector size. A crash at any moment leaves
    /// the old size or the new one. What a larger disk adds reads as zeros. Everything written before is
    /// durable afterwards.
    ///
    /// # Errors
    /// A size that the format does not allow; `shrink` does not allow what is to be cut off (then the
    /// text names the first byte in question); and as [`flush`](Self::flush).
    pub fn resize(&mut self, new_size: u64, shrink: Shrink) -> Result<ResizeReport> {
        let (old, new) = (self.geometry, self.geometry.resized(new_size)?);
        let mut report = ResizeReport {
            size_before: old.virtual_size(),
            size_after: new_size,
            table_moved: false,
        };
        // Whoever has resized a disk finds everything written before durable, in this case, too.
        self.flush()?;
        if new_size == old.virtual_size() {
            return Ok(report);
        }
        if new_size < old.virtual_size() && shrink == Shrink::ZerosOnly {
            self.require_zeros(new_size..old.virtual_size())?;
        }
        let writer = self.writer()?;
        self.begin_session(writer, Identity::New)?;
        if new_size > old.virtual_size() {
            report.table_moved = self.grow_disk(writer, &new)?;
        } else {
            self.shrink_disk(writer, &new)?;
        }
        // The file has the new size: a handle that could not follow must not write any more.
        if let Err(error) = self.reassemble() {
            return Err(self.writer()?.poison(error));
        }
        Ok(report)
    }

    /// The part of a change that decides. When it fails nobody knows which size the file has.
    pub(super) fn decide(
        &self,
        writer: &Writer,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        change().and_then(|()| self.commit_now(writer)).map_err(|error| writer.poison(error))
    }

    /// Refuses to cut off anything but zeros.
    fn require_zeros(&self, range: Range<u64>) -> Result<()> {
        let mut buf = vec![0; COPY_STEP];
        for extent in self.extents(range) {
            let extent = extent?;
            let Some(layer) = self.layer(extent.depth) else {
                return Err(self.parent_needed("cutting the disk off"));
            };
            let Some(place) = extent.file_offset else { continue };
            let end = place.saturating_add(extent.length);
            for_each_data(&*layer.storage, place..end, &mut buf, &mut |at, bytes| {
                let Some(first) = bytes.iter().position(|byte| *byte != 0) else { return Ok(()) };
                let first = at.saturating_add(u64::try_from(first).unwrap_or_default());
                let first = extent.start.saturating_add(first.saturating_sub(place));
                Err(Error::new(Repr::CutsData { at: first }))
            })?;
        }
        Ok(())
    }

    /// Whether the table had to move.
    fn grow_disk(&self, writer: &Writer, new: &Geometry) -> Result<bool> {
        self.clear_end_of_last_block(writer)?;
        let bat = self.regions.bat();
        let moves = new.bat_bytes() > u64::from(bat.length);
        self.clear_new_entries(writer, if moves { &self.geometry } else { new })?;
        let added = self.added_entries(writer, new)?;
        writer.flush()?;
        let mut region = None;
        if moves {
            region = Some(self.write_new_table(writer, new, &added)?);
        } else {
            // Behind the old end of the table nobody looks: as many commits as it takes.
            for (block, raw) in added.iter() {
                self.bat.set(new.payload_index(block), raw)?;
                if writer.sectors.unlogged() >= super::guest::COMMIT_AT {
                    writer.flush()?;
                }
            }
            writer.flush()?;
        }
        self.decide(writer, || {
            if let Some(region) = region {
                self.stage_region(writer, region)?;
            }
            self.stage_size(writer, new)
        })?;
        if moves {
            // Entries of this epoch write to the old table: its space waits for the next one.
            writer.state().held.push(bat.offset..bat.end());
        }
        Ok(moves)
    }

    /// What the entries of new blocks say.
    fn added_entries(&self, writer: &Writer, new: &Geometry) -> Result<Added> {
        let blocks = self.geometry.blocks()..new.blocks();
        let block_size = u64::from(new.block_size());
        match new.disk_type() {
            DiskType::Fixed if !blocks.is_empty() => {
                let count = blocks.end.saturating_sub(blocks.start);
                let place = self.room_for(writer, count.saturating_mul(block_size))?;
                Ok(Added::Placed { blocks, first: place.offset, block_size })
            }
            // A parent that is larger must not show.
            DiskType::Differencing => {
                let parent = self.parent().map_or(0, Self::virtual_size).div_ceil(block_size);
                Ok(Added::Zero { blocks: blocks.start..blocks.end.min(parent) })
            }
            _ => Ok(Added::Zero { blocks: 0..0 }),
        }
    }

    fn shrink_disk(&self, writer: &Writer, new: &Geometry) -> Result<()> {
        let page = u64::from(LOG_SECTOR) / ENTRY_LENGTH;
        // The zeroed range goes in place at once, and no older image may follow it there.
        writer.sectors.apply()?;
        let (first, end) = (new.bat_entries(), self.geometry.bat_entries());
        let whole = first.next_multiple_of(page);
        let bitmaps = self.bitmaps_behind(new)?;
        self.decide(writer, || {
            self.cut_last_chunk(new)?;
            for index in first..whole.min(end) {
                self.bat.set(index, RawEntry::default())?;
            }
            if whole < end {
                let at = |index: u64| self.rules.at(index);
                let range = at(whole)..at(end.next_multiple_of(page));
                writer.state().zeroes.push(range);
            }
            self.stage_size(writer, new)
        })?;
        // Entries of this epoch may write to them.
        writer.state().held.extend(bitmaps);
        Ok(())
    }

    /// A child's table has entries up to the end of the last chunk: those of blocks that go are
    /// cleared. So are the bits behind the end in the block that stays in part.
    fn cut_last_chunk(&self, new: &Geometry) -> Result<()> {
        if !new.is_differencing() {
            return Ok(());
        }
        let chunk_end = new.chunks().saturating_mul(new.chunk_ratio());
        for block in new.blocks()..self.geometry.blocks().min(chunk_end) {
            let index = new.payload_index(block);
            if self.bat.entry(index)? != RawEntry::default() {
                self.bat.set(index, RawEntry::default())?;
            }
        }
        let last = new.blocks().saturating_sub(1);
        if let Block::Partial { .. } = self.block(last)? {
            let behind = new.used_bytes(last)..u64::from(new.block_size());
            self.bitmaps.set(self.bitmap_of(last)?, self.bits_of(last, &behind), false)?;
        }
        Ok(())
    }

    /// Where the sector bitmaps of chunks behind the new end lie.
    fn bitmaps_behind(&self, new: &Geometry) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        if new.is_differencing() {
            for chunk in new.chunks()..self.geometry.chunks() {
                let place = self.sector_bitmap(chunk)?;
                found.extend(place.map(|at| at..at.saturating_add(SECTOR_BITMAP_BLOCK)));
            }
        }
        Ok(found)
    }

    /// Zeroes what the last block has behind the end of the disk.
    fn clear_end_of_last_block(&self, writer: &Writer) -> Result<()> {
        let last = self.geometry.blocks().saturating_sub(1);
        let used = self.geometry.used_bytes(last);
        let block_size = u64::from(self.geometry.block_size());
        let file_offset = match self.block(last)? {
            Block::Present { file_offset } => file_offset,
            _ if used == block_size => return Ok(()),
            Block::Partial { .. } => return self.own_end_of_block(writer, last),
            Block::Absent(state) if self.shows_parent(state) => {
                return match self.parent().is_some_and(|p| p.virtual_size() > self.virtual_size()) {
                    true => self.own_end_of_block(writer, last),
                    false => Ok(()),
                };
            }
            Block::Absent(_) => return Ok(()),
        };
        let end = file_offset.saturating_add(u64::from(self.geometry.block_size()));
        let rest = file_offset.saturating_add(used)..end;
        if rest.is_empty() {
            return Ok(());
        }
        if end > writer.length() {
            // Another program's file, which ends with the disk.
            let mut state = writer.state();
            writer.file.set_len(end).map_err(|e| Error::io("cannot extend the file", end, e))?;
            writer.grown(&mut state, end);
        }
        zero(writer, rest, self.geometry.disk_type() != DiskType::Fixed)?;
        writer.make_payload_first();
        Ok(())
    }

    /// Gives a child's last block zeros of its own behind the end of the disk, where a larger parent
    /// would show when the disk grows.
    fn own_end_of_block(&self, writer: &Writer, last: u64) -> Result<()> {
        let behind = self.geometry.used_bytes(last)..u64::from(self.geometry.block_size());
        let gate = writer.gate(last)?;
        self.put_sectors(writer, &gate, behind, Payload::Zeros)
    }

    /// Clears entries behind the last block's, up to the end of a geometry's table, that hold something,
    /// in as many commits as it takes: nobody looks at them yet.
    fn clear_new_entries(&self, writer: &Writer, new: &Geometry) -> Result<()> {
        let (first, end) = (self.geometry.payload_index(self.geometry.blocks()), new.bat_entries());
        let bitmaps = self.geometry.bat_entries();
        let mut junk = Vec::new();
        let entries = end.saturating_sub(first);
        walk(&*self.storage, self.rules.at(first), entries, &mut |stretch| {
            let found = stretch.entries().filter(|(_, raw)| raw.0 != 0);
            let found = found.map(|(index, _)| index.saturating_add(first));
            // The entry of a child's last sector bitmap lies among them, and stays.
            junk.extend(found.filter(|&index| {
                index >= bitmaps || !matches!(self.geometry.slot(index), BatSlot::Bitmap(_))
            }));
            Ok(())
        })?;
        for index in junk {
            self.bat.set(index, RawEntry::default())?;
            if writer.sectors.unlogged() >= super::guest::COMMIT_AT {
                writer.flush()?;
            }
        }
        Ok(())
    }

    /// Room that reads as zeros, in one piece, for what is written without the log: durable before the
    /// next entry.
    fn room_for(&self, writer: &Writer, length: u64) -> Result<Place> {
        let place = writer.room(length)?;
        let mut state = writer.state();
        state.expose(place);
        state.payload_first = true;
        Ok(place)
    }

    /// Writes the table for the new size to fresh space. It counts when the region table says so.
    fn write_new_table(&self, writer: &Writer, new: &Geometry, added: &Added) -> Result<Region> {
        let length = region_length(new.bat_bytes())?;
        // What is copied below is the file's own bytes: they have to be the newest.
        writer.sectors.apply()?;
        let place = self.room_for(writer, u64::from(length))?;
        let failed = |at| move |e| Error::io("cannot write the new table", at, e);
        let old = self.rules.bat_offset;
        let used = old..old.saturating_add(self.geometry.bat_bytes());
        for_each_data(&*self.storage, used, &mut vec![0; COPY_STEP], &mut |at, bytes| {
            let to = place.offset.saturating_add(at.saturating_sub(old));
            writer.file.write_at(to, bytes).map_err(failed(to))
        })?;
        for (block, raw) in added.iter() {
            let within = new.payload_index(block).saturating_mul(ENTRY_LENGTH);
            let to = place.offset.saturating_add(within);
            writer.file.write_at(to, &raw.0.to_le_bytes()).map_err(failed(to))?;
        }
        Ok(Region { offset: place.offset, length, ..self.regions.bat() })
    }

    /// Changes a region in both region tables, in memory.
    pub(super) fn stage_region(&self, writer: &Writer, changed: Region) -> Result<()> {
        let entries: Vec<RegionTableEntry> = self
            .regions
            .all()
            .iter()
            .map(|region| if region.guid == changed.guid { changed } else { *region })
            .map(|region| RegionTableEntry {
                guid: region.guid,
                file_offset: U64::new(region.offset),
                length: region.length.into(),
                required: u32::from(region.required).into(),
            })
            .collect();
        let table = encode_table(&entries).ok_or_else(|| Error::limit("too many regions"))?;
        for start in REGION_TABLE_OFFSETS {
            for (offset, bytes) in
                (start..).step_by(LOG_SECTOR_LEN).zip(table.chunks(LOG_SECTOR_LEN))
            {
                writer.change_to(offset, bytes)?;
            }
        }
        Ok(())
    }

    /// Changes the disk's size in memory.
    fn stage_size(&self, writer: &Writer, new: &Geometry) -> Result<()> {
        let item = self.metadata.system_item(VIRTUAL_DISK_SIZE);
        let item = item.ok_or_else(|| Error::invalid("the image has no Virtual Disk Size"))?;
        writer.put_bytes(item.offset, U64::new(new.virtual_size()).as_bytes())
    }

    /// Commits what is staged, which is little enough for one entry, and puts it in place.
    fn commit_now(&self, writer: &Writer) -> Result<()> {
        writer.flush()?;
        writer.sectors.apply()
    }

    /// Reads everything again that a new size changes.
    fn reassemble(&mut self) -> Result<()> {
        self.reload()?;
        self.survey_again()
    }

    /// Reads regions and metadata again.
    pub(super) fn reload(&mut self) -> Result<()> {
        let writer = self.writer()?;
        let recovered = Recovered {
            storage: Arc::clone(&self.storage),
            file_size: self.file_size,
            headers: self.headers.clone(),
            log: self.log.clone(),
        };
        let parts = read_image_parts(&recovered, &mut Findings::strict())?;
        let geometry = parts.geometry.ok_or_else(|| Error::invalid("the image has no sizes"))?;
        let sectors = Arc::clone(writer.sectors());
        let offset = parts.regions.bat().offset;
        let bitmaps = Bitmaps::new(Arc::clone(&recovered.storage), &geometry);
        self.bitmaps = bitmaps.over(Arc::clone(&sectors));
        self.bat = Bat::new(recovered.storage, offset, geometry.bat_entries()).over(sectors);
        self.rules.geometry = geometry;
        self.rules.bat_offset = offset;
        self.geometry = geometry;
        self.regions = parts.regions;
        self.metadata = parts.metadata;
        self.locator = parts.locator;
        Ok(())
    }
}

/// The entries of blocks that a larger disk adds, those that are not NOT_PRESENT.
enum Added {
    /// One after another from a file offset on.
    Placed { blocks: Range<u64>, first: u64, block_size: u64 },
    /// Zeros.
    Zero { blocks: Range<u64> },
}

impl Added {
    fn iter(&self) -> impl Iterator<Item = (u64, RawEntry)> {
        let (blocks, place) = match self {
            Self::Placed { blocks, first, block_size } => (blocks, Some((*first, *block_size))),
            Self::Zero { blocks } => (blocks, None),
        };
        let start = blocks.start;
        blocks.clone().map(move |block| {
            let raw = match place {
                Some((first, block_size)) => {
                    let within = block.saturating_sub(start).saturating_mul(block_size);
                    let state = PayloadState::FullyPresent.to_raw();
                    RawEntry::new(state, first.saturating_add(within))
                }
                None => RawEntry::new(PayloadState::Zero.to_raw(), 0),
            };
            (block, raw)
        })
    }
}

/// Calls `visit` with everything in a range of the file that is no hole, in pieces of `buf`.
pub(super) fn for_each_data(
    file: &dyn Storage,
    range: Range<u64>,
    buf: &mut [u8],
    visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    for run in DataRuns::new(file, range.clone()) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", range.start, e))?;
        let mut at = run.range.start;
        while run.data && at < run.range.end {
            let left = usize::try_from(run.range.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let length = left.min(buf.len());
            let Some(part) = buf.get_mut(..length) else { break };
            file.read_zero_filled(at, part)?;
            visit(at, part)?;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
    }
    Ok(())
}
