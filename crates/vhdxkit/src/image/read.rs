//! Guest bytes.

use crate::error::Repr;
use crate::format::bat::PayloadState;
use crate::map::Block;
use crate::storage::StorageExt;
use crate::{Error, Result};

use super::Image;

impl Image {
    /// Reads `buf.len()` bytes of the virtual disk from byte `offset` on. Any alignment; blocks that
    /// hold nothing read as zeros.
    ///
    /// # Errors
    /// The range reaches beyond the end of the disk; a block in it is damaged (the error names it);
    /// the disk is a child and the range shows its parent; reading the file fails. Then the
    /// contents of `buf` are unspecified.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.require_inside(offset, u64::try_from(buf.len()).unwrap_or(u64::MAX))?;
        let block_size = u64::from(self.geometry.block_size());
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = self.geometry.block_of(at);
            let within = at.saturating_sub(self.geometry.block_start(block));
            let room = usize::try_from(block_size.saturating_sub(within)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(room.min(rest.len()));
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            self.read_in_block(block, within, now)?;
            rest = later;
        }
        Ok(())
    }

    fn read_in_block(&self, block: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        let _pin = self.pin();
        match self.block(block)? {
            Block::Present { file_offset } => {
                self.storage.read_exact_at(file_offset.saturating_add(within), buf)
            }
            Block::Partial { .. } => {
                Err(parent_needed("part of this block lies in the disk's parent"))
            }
            Block::Absent(PayloadState::NotPresent) if self.geometry.is_differencing() => {
                Err(parent_needed("this block lies in the disk's parent"))
            }
            Block::Absent(_) => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Where a payload block lies.
    pub(crate) fn block(&self, block: u64) -> Result<Block> {
        let raw = self.bat.entry(self.geometry.payload_index(block))?;
        Ok(self.rules_now().payload(block, raw)?)
    }

    pub(crate) fn require_inside(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.geometry.virtual_size();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            end => {
                let range = offset..end.unwrap_or(u64::MAX);
                Err(Error::new(Repr::OutOfRange { range, size }))
            }
        }
    }
}

fn parent_needed(what: &'static str) -> Error {
    Error::new(Repr::ParentNeeded { what })
}
