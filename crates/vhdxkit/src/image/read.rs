//! Guest bytes.

use crate::format::bat::PayloadState;
use crate::map::Block;
use crate::storage::{Storage, StorageExt};
use crate::{Error, Result};

use super::Image;

/// Whether a read may wait for the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Wait,
    /// Rather gives up.
    NoWait,
}

impl Patience {
    /// Fills `buf`; `false` when that would mean waiting.
    fn fetch(self, storage: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<bool> {
        match self {
            Self::Wait => storage.read_exact_at(offset, buf).map(|()| true),
            Self::NoWait => {
                let ready = storage.read_ready_at(offset, buf);
                ready.map_err(|e| Error::io("cannot read", offset, e))
            }
        }
    }
}

impl Image {
    /// Reads `buf.len()` bytes of the virtual disk from byte `offset` on. Any alignment; blocks that
    /// hold nothing read as zeros, and what a child does not hold as its parent's bytes.
    ///
    /// # Errors
    /// The range reaches beyond the end of the disk; a block in it is damaged (the error names it);
    /// the disk is a child, the range shows its parent, and that is not open; reading the file fails. Then the
    /// contents of `buf` are unspecified.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf, Patience::Wait).map(|_| ())
    }

    /// [`read_at`](Self::read_at) if it can be had without waiting for a device, as from the system's page
    /// cache: `false`, with the contents of `buf` unspecified, when it might not be. The file's own tables
    /// are waited for.
    ///
    /// # Errors
    /// As `read_at`.
    pub fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        self.read(offset, buf, Patience::NoWait)
    }

    fn read(&self, offset: u64, buf: &mut [u8], patience: Patience) -> Result<bool> {
        self.require_inside(offset, u64::try_from(buf.len()).unwrap_or(u64::MAX))?;
        let block_size = u64::from(self.geometry.block_size());
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = self.geometry.block_of(at);
            let within = at.saturating_sub(self.geometry.block_start(block));
            let room = usize::try_from(block_size.saturating_sub(within)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(room.min(rest.len()));
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            if !self.read_in_block(block, within, now, patience)? {
                return Ok(false);
            }
            rest = later;
        }
        Ok(true)
    }

    fn read_in_block(
        &self,
        block: u64,
        within: u64,
        buf: &mut [u8],
        patience: Patience,
    ) -> Result<bool> {
        let _pin = self.pin();
        match self.block(block)? {
            Block::Present { file_offset } => {
                patience.fetch(&*self.storage, file_offset.saturating_add(within), buf)
            }
            Block::Partial { file_offset } => {
                self.read_partial(block, file_offset, within, buf, patience)
            }
            Block::Absent(PayloadState::NotPresent) if self.geometry.is_differencing() => {
                let at = self.geometry.block_start(block).saturating_add(within);
                self.read_below(at, buf, patience)
            }
            Block::Absent(_) => {
                buf.fill(0);
                Ok(true)
            }
        }
    }

    /// Sectors that the bitmap names come from the block, the others from the parent.
    fn read_partial(
        &self,
        block: u64,
        file_offset: u64,
        within: u64,
        buf: &mut [u8],
        patience: Patience,
    ) -> Result<bool> {
        let bitmap = self.bitmap_of(block)?;
        let sector = u64::from(self.geometry.logical_sector_size());
        let first = self.geometry.first_sector_in_chunk(block);
        let end = within.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        let wanted = first.saturating_add(within.checked_div(sector).unwrap_or_default())
            ..first.saturating_add(end.div_ceil(sector));
        let (mut at, mut rest) = (within, buf);
        for run in self.bitmaps.runs(bitmap, wanted) {
            let run = run?;
            let run_end = run.sectors.end.saturating_sub(first).saturating_mul(sector).min(end);
            let length = usize::try_from(run_end.saturating_sub(at)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(length.min(rest.len()));
            let ready = if run.present {
                patience.fetch(&*self.storage, file_offset.saturating_add(at), now)?
            } else {
                let at = self.geometry.block_start(block).saturating_add(at);
                self.read_below(at, now, patience)?
            };
            if !ready {
                return Ok(false);
            }
            (at, rest) = (run_end, later);
        }
        Ok(true)
    }

    /// Reads from the parent. Where a child is larger than that there are zeros (MS-VHDX leaves it open).
    fn read_below(&self, at: u64, buf: &mut [u8], patience: Patience) -> Result<bool> {
        let Some(parent) = &self.parent else {
            return Err(self.parent_needed("what is read here"));
        };
        let there = parent.virtual_size().saturating_sub(at);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (now, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        if now.is_empty() { Ok(true) } else { parent.read(at, now, patience) }
    }

    /// Where a payload block lies.
    pub(crate) fn block(&self, block: u64) -> Result<Block> {
        let raw = self.bat.entry(self.geometry.payload_index(block))?;
        Ok(self.entry_rules().payload(block, raw)?)
    }

    pub(crate) fn require_inside(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.geometry.virtual_size();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            end => {
                let range = offset..end.unwrap_or(u64::MAX);
                Err(Error::out_of_range(range, size))
            }
        }
    }
}
