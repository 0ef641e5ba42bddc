//! What a guest asks for: write, write zeros, discard.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::format::bat::{PayloadState, RawEntry};
use crate::image::Image;
use crate::map::Block;
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::Writer;
use super::blocks::Publication;
use super::payload::{Payload, fill, punch_inside, write, zero};
use super::session::Identity;

/// So many sectors changed and not logged yet are committed without waiting for the guest's flush.
pub(super) const COMMIT_AT: usize = 64;
/// Likewise so many spaces given up: before a commit none of them can be used again, and a guest that
/// writes and trims without ever flushing would make the file grow.
const COMMIT_AT_DROPPED: usize = 64;

/// How a range is made to read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    /// It must read as zeros.
    Zero,
    /// The guest does not need it any more.
    Discard,
}

impl Image {
    /// Writes to the virtual disk. What was written is durable after the next [`flush`](Self::flush);
    /// a crash before may leave each sector old or new.
    ///
    /// Offset and length are multiples of the logical sector size. From many threads at once; where
    /// two writes overlap, each sector ends with one of them.
    ///
    /// # Errors
    /// The image is open for reading, closed, or poisoned
    /// ([`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned)); the range is unaligned or beyond the
    /// end; a block of it is damaged; the medium fails or is full. Then an unknown part was written,
    /// and everything else is as before.
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let length = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let writer = self.writer_for(offset, length)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (block, within, room) = self.place_in_block(at);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.write_in_block(writer, block, within, now)?;
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            rest = later;
        }
        self.wrote(writer)
    }

    /// [`write_at`](Self::write_at) whose data is durable when it returns (FUA).
    ///
    /// # Errors
    /// As `write_at` and [`flush`](Self::flush).
    pub fn write_durably_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_at(offset, buf)?;
        self.flush()
    }

    /// Makes a range of the virtual disk read as zeros. Whole blocks of a dynamic disk give their
    /// space back; in a fixed disk zeros are written.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        self.zero_range(range, Zeroing::Zero)
    }

    /// Tells that the guest does not need the contents of a range any more (TRIM). Whole blocks of a
    /// dynamic disk give their space back and then read as zeros; parts of blocks read as zeros or as
    /// before. A fixed disk stays as it is.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        if self.geometry.disk_type() == DiskType::Fixed {
            return self.require_writable(range.start, length_of(&range)?).map(|_| ());
        }
        self.zero_range(range, Zeroing::Discard)
    }

    /// The writer of an image that may be changed at this range, its session begun.
    fn writer_for(&self, offset: u64, length: u64) -> Result<&Writer> {
        let writer = self.require_writable(offset, length)?;
        if length > 0 {
            self.begin_session(writer, Identity::New)?;
        }
        Ok(writer)
    }

    fn require_writable(&self, offset: u64, length: u64) -> Result<&Writer> {
        let writer = self.writer()?;
        writer.require_usable()?;
        let sector = u64::from(self.geometry.logical_sector_size());
        if !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return Err(Error::invalid(format!(
                "offset {offset} and length {length} must be multiples of the disk's sector size, {sector}"
            )));
        }
        self.require_inside(offset, length)?;
        Ok(writer)
    }

    /// A byte's block, the offset in it, and how many bytes of the block follow.
    fn place_in_block(&self, at: u64) -> (u64, u64, usize) {
        let block = self.geometry.block_of(at);
        let within = at.saturating_sub(self.geometry.block_start(block));
        let room = u64::from(self.geometry.block_size()).saturating_sub(within);
        (block, within, usize::try_from(room).unwrap_or(usize::MAX))
    }

    fn write_in_block(&self, writer: &Writer, block: u64, within: u64, bytes: &[u8]) -> Result<()> {
        loop {
            if self.write_in_place(writer, block, within, bytes)? {
                return Ok(());
            }
            let gate = writer.gate(block)?;
            let part =
                within..within.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            match self.block(block)? {
                // Somebody else's first write was quicker.
                Block::Present { .. } => drop(gate),
                Block::Absent(state)
                    if !self.shows_parent(state) || self.is_whole(block, &part) =>
                {
                    return self.write_first(writer, block, within, bytes);
                }
                _ => return self.put_sectors(writer, &gate, part, Payload::Bytes(bytes)),
            }
        }
    }

    /// Writes to a block that has a place; `false` when it has none.
    fn write_in_place(
        &self,
        writer: &Writer,
        block: u64,
        within: u64,
        bytes: &[u8],
    ) -> Result<bool> {
        let _pin = writer.pins.pin();
        let file_offset = match self.block(block)? {
            Block::Present { file_offset } => file_offset,
            Block::Partial { file_offset } => {
                let end = within.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                if !self.holds(block, within..end)? {
                    return Ok(false);
                }
                file_offset
            }
            Block::Absent(_) => return Ok(false),
        };
        write(writer, file_offset.saturating_add(within), bytes)?;
        Ok(true)
    }

    /// The first write to a block: gives it a place whose other bytes read as zeros. The caller holds
    /// the block's gate.
    fn write_first(&self, writer: &Writer, block: u64, within: u64, bytes: &[u8]) -> Result<()> {
        let block_size = u64::from(self.geometry.block_size());
        // A trimmed block may have kept its old place. That is not used again: it still holds what the
        // guest has given up.
        let dropped = self.kept_place(block)?;
        let place = writer.allocate(block_size)?;
        let whole = u64::try_from(bytes.len()).is_ok_and(|length| length == block_size);
        let filled = fill(writer, place, whole, within, bytes);
        let raw = RawEntry::new(PayloadState::FullyPresent.to_raw(), place.offset);
        let covers_parent =
            matches!(self.block(block)?, Block::Absent(state) if self.shows_parent(state));
        let change = Publication { place: Some(place), dropped, covers_parent };
        let published = filled.and_then(|()| self.publish(writer, block, raw, change));
        if published.is_err() {
            writer.give_back(place);
        }
        published
    }

    /// The place that a block without contents has kept.
    pub(super) fn kept_place(&self, block: u64) -> Result<Option<Range<u64>>> {
        let raw = self.bat.entry(self.geometry.payload_index(block))?;
        let length = u64::from(self.geometry.block_size());
        Ok(self.rules.owned(raw).map(|offset| offset..offset.saturating_add(length)))
    }

    /// After guest data was written: it is not durable, and the changes of the mapping are kept few.
    fn wrote(&self, writer: &Writer) -> Result<()> {
        if !writer.unsynced.load(Ordering::Relaxed) {
            writer.unsynced.store(true, Ordering::Release);
        }
        let dropped = writer.dropped.load(Ordering::Relaxed);
        if writer.sectors.unlogged() >= COMMIT_AT || dropped >= COMMIT_AT_DROPPED {
            return self.flush();
        }
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let writer = self.writer_for(range.start, length_of(&range)?)?;
        let mut at = range.start;
        while at < range.end {
            let (block, within, _) = self.place_in_block(at);
            let used = self.geometry.used_bytes(block);
            let start = self.geometry.block_start(block);
            let end = start.saturating_add(used).min(range.end);
            let part = within..end.saturating_sub(start);
            self.zero_in_block(writer, block, part, how)?;
            // Not only at the end: a range may be the whole disk.
            self.wrote(writer)?;
            at = end;
        }
        Ok(())
    }

    /// Zeroes part of a block, or all of it.
    fn zero_in_block(
        &self,
        writer: &Writer,
        block: u64,
        part: Range<u64>,
        how: Zeroing,
    ) -> Result<()> {
        let dynamic = self.geometry.disk_type() != DiskType::Fixed;
        let whole = self.is_whole(block, &part);
        // Of a block that was given up other programs may show what it held before.
        let given_up = how == Zeroing::Zero && self.is_given_up(block)?;
        if dynamic && (whole || given_up) && self.drop_block(writer, block, whole, how)? {
            return Ok(());
        }
        if self.zero_in_place(writer, block, &part, how)? {
            return Ok(());
        }
        let gate = writer.gate(block)?;
        match self.block(block)? {
            // Somebody else's first write was quicker.
            Block::Present { .. } => self.zero_in_place(writer, block, &part, how).map(|_| ()),
            Block::Absent(state) if !self.shows_parent(state) => Ok(()),
            Block::Absent(_) if self.parent_shows_zeros(block, &part)? => Ok(()),
            _ => self.put_sectors(writer, &gate, part, Payload::Zeros),
        }
    }

    /// Zeroes part of a block where that takes no change of the mapping; `false` when it does.
    fn zero_in_place(
        &self,
        writer: &Writer,
        block: u64,
        part: &Range<u64>,
        how: Zeroing,
    ) -> Result<bool> {
        let _pin = writer.pins.pin();
        let file_offset = match self.block(block)? {
            Block::Present { file_offset } => file_offset,
            Block::Partial { file_offset } if self.holds(block, part.clone())? => file_offset,
            // Only a hint: what the parent shows may stay.
            Block::Partial { .. } => return Ok(how == Zeroing::Discard),
            Block::Absent(state) => {
                // A block without a place reads as zeros already, unless it is the parent's.
                return Ok(how == Zeroing::Discard || !self.shows_parent(state));
            }
        };
        let range = part.start.saturating_add(file_offset)..part.end.saturating_add(file_offset);
        match how {
            Zeroing::Zero => {
                zero(writer, range, self.geometry.disk_type() != DiskType::Fixed)?;
            }
            Zeroing::Discard => {
                punch_inside(writer, range)?;
            }
        }
        Ok(true)
    }

    /// Whether a block's contents were given up: what it reads as is left open.
    fn is_given_up(&self, block: u64) -> Result<bool> {
        let state = self.block(block)?;
        Ok(matches!(state, Block::Absent(PayloadState::Unmapped | PayloadState::Undefined)))
    }

    /// Takes a block's place away. `false` when only part of it was meant (not `whole`), and somebody has
    /// just written to it. In a child the block must not show its parent afterwards.
    fn drop_block(&self, writer: &Writer, block: u64, whole: bool, how: Zeroing) -> Result<bool> {
        let _gate = writer.gate(block)?;
        let length = u64::from(self.geometry.block_size());
        let dropped = match self.block(block)? {
            Block::Present { .. } | Block::Partial { .. } if !whole => return Ok(false),
            Block::Present { file_offset } | Block::Partial { file_offset } => {
                Some(file_offset..file_offset.saturating_add(length))
            }
            Block::Absent(state) if self.shows_parent(state) => {
                let all = 0..self.geometry.used_bytes(block);
                if !whole || self.parent_shows_zeros(block, &all)? {
                    return Ok(whole);
                }
                None
            }
            _ if how == Zeroing::Zero && self.is_given_up(block)? => self.kept_place(block)?,
            _ => return Ok(true),
        };
        let state = match how {
            Zeroing::Zero => PayloadState::Zero,
            Zeroing::Discard => PayloadState::Unmapped,
        };
        let change = Publication { dropped, ..Publication::default() };
        self.publish(writer, block, RawEntry::new(state.to_raw(), 0), change)?;
        Ok(true)
    }
}

fn length_of(range: &Range<u64>) -> Result<u64> {
    let length = range.end.checked_sub(range.start);
    length.ok_or_else(|| Error::invalid("the range ends before it starts"))
}
