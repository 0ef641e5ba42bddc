//! Blocks of a child that hold only some of their sectors; the others are the parent's.
//!
//! # The order
//! A sector's bit says that the file has it, so the bit must never become stable before the bytes: what
//! the guest read there until now was its parent's, and whatever the space under the bit holds is neither
//! that nor what was written. So every commit that carries such bits has its payload made durable first
//! (rule F3). Three things change together, under the lock of the mapping, and go into the log together:
//! the bits, the block's entry, and, for the first such block of a chunk, the entry of a new sector bitmap
//! block. Where one log entry does not hold all that has changed, bits go before the BAT
//! (`map/sectors.rs`).
//!
//! A block that becomes partially present may have had bits in an earlier life. All its bits are set anew.
//! When the last sector of the disk that it covers has come, it becomes fully present, and its bits mean
//! nothing any more.

use std::ops::Range;

use crate::Result;
use crate::format::bat::{BITMAP_PRESENT, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::image::Image;
use crate::map::{Bitmap, Block, Place};

use super::blocks::Gate;
use super::payload::{Payload, put, zero};
use super::{State, Writer};

impl Image {
    /// Whether a block in this state shows the parent.
    pub(super) fn shows_parent(&self, state: PayloadState) -> bool {
        state == PayloadState::NotPresent && self.geometry.is_differencing()
    }

    /// Whether a part of a block is all that the disk has of it.
    pub(super) fn is_whole(&self, block: u64, part: &Range<u64>) -> bool {
        part.start == 0 && part.end >= self.geometry.used_bytes(block)
    }

    /// Whether the parent reads as zeros under a part of a block, as far as that shows without reading.
    pub(super) fn parent_shows_zeros(&self, block: u64, part: &Range<u64>) -> Result<bool> {
        let Some(parent) = self.parent() else { return Ok(false) };
        let start = self.geometry.block_start(block);
        let range = start.saturating_add(part.start)..start.saturating_add(part.end);
        for extent in parent.extents(range) {
            if !extent?.state.is_zero() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The sectors of a part of a block, by their numbers within the chunk.
    pub(super) fn bits_of(&self, block: u64, part: &Range<u64>) -> Range<u64> {
        let sector = u64::from(self.geometry.logical_sector_size()).max(1);
        let first = self.geometry.first_sector_in_chunk(block);
        let start = part.start.checked_div(sector).unwrap_or_default();
        first.saturating_add(start)..first.saturating_add(part.end.div_ceil(sector))
    }

    /// Whether all sectors of a part of a partially present block lie in this file.
    pub(super) fn holds(&self, block: u64, part: Range<u64>) -> Result<bool> {
        self.bitmaps.all_set(self.bitmap_of(block)?, self.bits_of(block, &part))
    }

    /// Gives sectors of a block contents of their own: one that shows its parent, or that is partially
    /// present.
    pub(super) fn put_sectors(
        &self,
        writer: &Writer,
        gate: &Gate<'_>,
        part: Range<u64>,
        payload: Payload<'_>,
    ) -> Result<()> {
        let block = gate.block();
        if let Block::Partial { file_offset } = self.block(block)? {
            // The gate keeps the block from being dropped: its place needs no pin.
            put(writer, file_offset, &part, payload)?;
            return self.publish_sectors(writer, block, file_offset, None, &part);
        }
        let place = writer.allocate(u64::from(self.geometry.block_size()))?;
        let done = self
            .fill_first(writer, block, place, &part, payload)
            .and_then(|()| self.publish_sectors(writer, block, place.offset, Some(place), &part));
        if done.is_err() {
            writer.give_back(place);
        }
        done
    }

    /// The first sectors of a block. Those that the disk has not (the last block may be used in part) must
    /// be zeros when it grows; the others nobody sees before they are written.
    fn fill_first(
        &self,
        writer: &Writer,
        block: u64,
        place: Place,
        part: &Range<u64>,
        payload: Payload<'_>,
    ) -> Result<()> {
        let used = self.geometry.used_bytes(block);
        if !place.zero && used < place.length {
            zero(writer, place.offset.saturating_add(used)..place.end(), true)?;
        }
        match payload {
            Payload::Zeros if place.zero => Ok(()),
            payload => put(writer, place.offset, part, payload),
        }
    }

    /// Makes it known that the file has these sectors. Their bytes have been written.
    pub(super) fn publish_sectors(
        &self,
        writer: &Writer,
        block: u64,
        file_offset: u64,
        first: Option<Place>,
        part: &Range<u64>,
    ) -> Result<()> {
        let chunk = self.geometry.chunk_of(block);
        let mut spare = match self.sector_bitmap(chunk)? {
            Some(_) => None,
            None => Some(writer.room(SECTOR_BITMAP_BLOCK)?),
        };
        let published = {
            let mut state = writer.state();
            writer.require_usable().and_then(|()| {
                let bitmap = self.bitmap_for(&mut state, chunk, &mut spare)?;
                self.set_bits(&mut state, bitmap, block, file_offset, first, part)
            })
        };
        if let Some(place) = spare {
            // Somebody else was quicker.
            writer.give_back(place);
        }
        published
    }

    /// The chunk's bitmap; the spare place is taken for it when there is none.
    fn bitmap_for(
        &self,
        state: &mut State,
        chunk: u64,
        spare: &mut Option<Place>,
    ) -> Result<Bitmap> {
        if let Some(file_offset) = self.sector_bitmap(chunk)? {
            return Ok(Bitmap { chunk, file_offset });
        }
        let Some(place) = spare.take() else {
            return Err(crate::Error::invalid("a sector bitmap has gone"));
        };
        let raw = RawEntry::new(BITMAP_PRESENT, place.offset);
        self.bat.set(self.geometry.bitmap_index(chunk), raw)?;
        state.expose(place);
        Ok(Bitmap { chunk, file_offset: place.offset })
    }

    fn set_bits(
        &self,
        state: &mut State,
        bitmap: Bitmap,
        block: u64,
        file_offset: u64,
        first: Option<Place>,
        part: &Range<u64>,
    ) -> Result<()> {
        let all = 0..u64::from(self.geometry.block_size());
        if first.is_some() {
            self.bitmaps.set(bitmap, self.bits_of(block, &all), false)?;
        }
        let whole = self.is_whole(block, part);
        if !whole {
            self.bitmaps.set(bitmap, self.bits_of(block, part), true)?;
        }
        state.payload_first = true;
        let used = 0..self.geometry.used_bytes(block);
        let entry = if whole || self.bitmaps.all_set(bitmap, self.bits_of(block, &used))? {
            Some(PayloadState::FullyPresent)
        } else {
            first.map(|_| PayloadState::PartiallyPresent)
        };
        if let Some(entry) = entry {
            let raw = RawEntry::new(entry.to_raw(), file_offset);
            self.bat.set(self.geometry.payload_index(block), raw)?;
        }
        if let Some(place) = first {
            state.placed = state.placed.saturating_add(1);
            state.unplaced = state.unplaced.saturating_sub(1);
            state.expose(place);
        }
        Ok(())
    }
}
