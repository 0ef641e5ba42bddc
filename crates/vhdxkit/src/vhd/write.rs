//! Writing to a VHD in place.
//!
//! The format has no log. What is promised, whatever stops us: the file opens; every sector is what it was or
//! what was written; and what [`Vhd::flush`] has returned for is there. The order that gives this:
//!
//! * **A new block.** It goes where the footer lies, and the footer behind it. The new footer is written first,
//!   then bitmap and data; then all of it is synced, and only then the BAT gets its entry: an entry never leads
//!   to what is not there yet. An entry has four bytes that lie in one sector: it is old or new. While the
//!   end of the file is being moved there may be no footer at it; the copy at the head, which never changes,
//!   opens the file (as QEMU opens every one).
//! * **A sector that its bitmap did not claim.** Data first, a sync, then the bits: until then it is the
//!   parent's.
//! * **Anything else** is overwritten where it lies.
//!
//! Syncs are many, then: one for each new block, and in a differencing disk one for each write to new sectors.
//! A file that is written a lot is better a VHDX.
//!
//! A child does not notice that its parent was written to: the format has no identity that changes with the
//! contents. Who writes to a disk that has children loses them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use zerocopy::IntoBytes;

use crate::storage::{Storage, StorageExt};
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::format::{FOOTER_BYTES, HEADER_BYTES, SECTOR, UNUSED};
use super::read::entry_at;
use super::{Table, Vhd};

/// Blocks of a disk that can be written: those of 2040 GiB at 512 KiB, the smallest that are made.
const MAX_BLOCKS: u64 = 1 << 22;

/// What a writer has to know.
pub(super) struct Writer {
    /// Where the next block goes.
    tail: u64,
    /// Why no more is written.
    failed: Option<String>,
}

impl Writer {
    /// Finds the end of what is used, and makes sure that no two blocks lie on each other: writing to one of
    /// them would destroy the other.
    pub(super) fn survey(vhd: &Vhd, length: u64) -> Result<Self> {
        let Some(table) = &vhd.table else { return Ok(Self { tail: length, failed: None }) };
        if table.blocks > MAX_BLOCKS {
            return Err(Error::unsupported(format!("writing to a VHD of {} blocks", table.blocks)));
        }
        let mut places = Vec::new();
        let mut block = 0;
        while block < table.blocks {
            let (next, place) = vhd.present_from(table, block)?;
            places.extend(place);
            block = if place.is_some() { next.saturating_add(1) } else { next };
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [one, other] = pair
                && one.saturating_add(table.stride()) > *other
            {
                let text = format!("two blocks lie on each other, at {one:#x} and {other:#x}");
                return Err(Error::malformed("VHD BAT", table.offset, text));
            }
        }
        let mut tail = table.offset.saturating_add(table.bytes());
        tail = tail.max(table.header.saturating_add(HEADER_BYTES));
        tail = tail.max(places.last().map_or(0, |last| last.saturating_add(table.stride())));
        tail = tail.max(vhd.link.as_ref().map_or(0, |link| link.end));
        // An empty disk may keep something else behind its BAT.
        if places.is_empty() {
            tail = tail.max(length.saturating_sub(FOOTER_BYTES));
        }
        Ok(Self { tail: tail.next_multiple_of(SECTOR), failed: None })
    }
}

impl Vhd {
    /// Writes bytes of the disk, whole sectors of 512 bytes. They are durable after a [`flush`](Self::flush).
    ///
    /// # Errors
    /// The disk was not opened for writing; the range is not made of whole sectors or ends beyond the disk;
    /// the file is full or cannot be written: then it takes no more.
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_range(offset, buf.len())?;
        let length = u64::try_from(buf.len()).unwrap_or_default();
        if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
            return Err(Error::invalid("offset and length must be multiples of 512"));
        }
        let mut writer = self.writer()?;
        let done = self.write_blocks(&mut writer, offset, buf);
        self.remember(&mut writer, done)
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// The disk was not opened for writing; the medium reports an error: then nothing more is written.
    pub fn flush(&self) -> Result<()> {
        let mut writer = self.writer()?;
        let done = self.sync();
        self.remember(&mut writer, done)
    }

    fn writer(&self) -> Result<MutexGuard<'_, Writer>> {
        let writer = self.writer.as_ref();
        let writer =
            writer.ok_or_else(|| Error::invalid("the disk was opened for reading only"))?;
        let writer: &Mutex<Writer> = writer;
        let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &writer.failed {
            Some(why) => Err(Error::poisoned(why.clone())),
            None => Ok(writer),
        }
    }

    /// After a failure nobody knows what is on the medium.
    fn remember(&self, writer: &mut Writer, done: Result<()>) -> Result<()> {
        if let Err(error) = &done {
            writer.failed = Some(error.to_string());
        }
        done
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io_whole("cannot make the changes durable", e))
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(at, bytes).map_err(|e| Error::io("cannot write", at, e))
    }

    fn write_blocks(&self, writer: &mut Writer, offset: u64, buf: &[u8]) -> Result<()> {
        let Some(table) = &self.table else { return self.put(offset, buf) };
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = table.block_of(at);
            let start = table.block_start(block);
            let room = table.block_size.saturating_sub(at.saturating_sub(start));
            let now = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (piece, later) = rest.split_at_checked(now).unwrap_or((rest, &[]));
            let within = at.saturating_sub(start);
            match self.entry(table, block)? {
                Some(bitmap) => self.write_present(table, bitmap, within, piece)?,
                None => self.write_new(writer, table, block, within, piece)?,
            }
            (at, rest) = (start.saturating_add(table.block_size), later);
        }
        Ok(())
    }

    fn write_present(&self, table: &Table, bitmap: u64, within: u64, bytes: &[u8]) -> Result<()> {
        let data = bitmap.saturating_add(table.bitmap_bytes).saturating_add(within);
        let first = within / SECTOR;
        let count = u64::try_from(bytes.len()).unwrap_or_default() / SECTOR;
        let bits = self.bits(bitmap, first, count)?;
        self.put(data, bytes)?;
        if bits.iter().all(|bit| *bit) {
            return Ok(());
        }
        self.sync()?;
        let start = bitmap.saturating_add(first / 8);
        let end = bitmap.saturating_add(first.saturating_add(count).div_ceil(8));
        let mut map = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or_default()];
        self.file.read_exact_at(start, &mut map)?;
        set_bits(&mut map, first % 8, count);
        self.put(start, &map)
    }

    fn write_new(
        &self,
        writer: &mut Writer,
        table: &Table,
        block: u64,
        within: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let place = writer.tail;
        let end = place.saturating_add(table.stride());
        let entry = u32::try_from(place / SECTOR).ok().filter(|entry| *entry != UNUSED);
        let Some(entry) = entry else {
            return Err(Error::limit("the file is as large as a BAT can address"));
        };
        let length = self.file.length()?;
        self.put(end, self.footer.as_bytes())?;
        let failed = |e| Error::io("cannot write", place, e);
        // The old footer, and whatever a crash may have left behind it.
        self.file.punch(place..end.min(length)).map_err(failed)?;
        let whole = end.saturating_add(FOOTER_BYTES);
        if length > whole {
            self.file.set_len(whole).map_err(failed)?;
        }
        let mut map = vec![0; usize::try_from(table.bitmap_bytes).unwrap_or_default()];
        match self.disk_type {
            DiskType::Differencing => {
                let count = u64::try_from(bytes.len()).unwrap_or_default() / SECTOR;
                set_bits(&mut map, within / SECTOR, count);
            }
            _ => set_bits(&mut map, 0, table.block_size / SECTOR),
        }
        self.put(place, &map)?;
        let data = place.saturating_add(table.bitmap_bytes).saturating_add(within);
        self.put(data, bytes)?;
        self.sync()?;
        writer.tail = end;
        self.put(entry_at(table, block), &entry.to_be_bytes())
    }
}

/// Sets `count` bits from `first` on, the most significant of a byte first.
pub(super) fn set_bits(map: &mut [u8], first: u64, count: u64) {
    for bit in first..first.saturating_add(count) {
        let byte = usize::try_from(bit / 8).ok().and_then(|at| map.get_mut(at));
        if let Some(byte) = byte {
            *byte |=
                0x80u8.checked_shr(u32::try_from(bit % 8).unwrap_or_default()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_from_the_top_of_each_byte() {
        let mut map = [0; 3];
        set_bits(&mut map, 6, 5);
        assert_eq!(map, [0b0000_0011, 0b1110_0000, 0]);
        set_bits(&mut map, 20, 100);
        assert_eq!(map, [0b0000_0011, 0b1110_0000, 0b0000_1111]);
    }
}
