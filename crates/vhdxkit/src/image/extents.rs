//! Where the bytes of a disk lie, without reading them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::bat::{ENTRY_LENGTH, PayloadState};
use crate::map::{Block, Pin, block_bits, runs};
use crate::view::geometry::BatSlot;
use crate::{Error, Result};

use super::Image;

/// What an [`Extent`] reads as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentState {
    /// Bytes of the file, at [`Extent::file_offset`].
    Data,
    /// Zeros, by the guest's word.
    Zero,
    /// Never written: zeros.
    NotPresent,
    /// Given back by the guest: zeros.
    Unmapped,
    /// Contents that do not matter: zeros.
    Undefined,
    /// Bytes of the parent, which is not at hand.
    ParentMissing,
}

impl ExtentState {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zero => "zero",
            Self::NotPresent => "not_present",
            Self::Unmapped => "unmapped",
            Self::Undefined => "undefined",
            Self::ParentMissing => "parent_missing",
        }
    }

    /// Whether it reads as zeros without reading anything.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        !matches!(self, Self::Data | Self::ParentMissing)
    }
}

/// A run of the virtual disk that lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, on the virtual disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it reads as.
    pub state: ExtentState,
    /// Which file of the chain decides: 0 is this one, 1 its parent.
    pub depth: u32,
    /// Where its bytes lie in the file, for [`ExtentState::Data`].
    pub file_offset: Option<u64>,
}

impl Extent {
    /// The byte behind the extent.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    fn continues_in(&self, next: &Self) -> bool {
        let places_join = match (self.file_offset, next.file_offset) {
            (None, None) => true,
            (Some(here), Some(there)) => here.checked_add(self.length) == Some(there),
            _ => false,
        };
        self.state == next.state && self.depth == next.depth && places_join
    }
}

/// The extents of a range, in order and without gaps; neighbours that belong together are one.
pub struct Extents<'a> {
    image: &'a Image,
    next_block: u64,
    range: Range<u64>,
    ready: VecDeque<Extent>,
    failed: bool,
    /// File range of the BAT that is known to hold data, so that its holes are looked for once.
    bat_data: Range<u64>,
    /// What was given out stays where it is.
    _pin: Option<Pin<'a>>,
}

impl Image {
    /// The extents that cover `range` of the virtual disk (cut off at its end). While an image is
    /// written the iterator keeps their places from being reused.
    ///
    /// ```
    /// let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
    /// for extent in image.extents(0..image.virtual_size()) {
    ///     let extent = extent?;
    ///     println!("{:#x} {:#x} {}", extent.start, extent.length, extent.state.name());
    /// }
    /// # Ok::<(), vhdxkit::Error>(())
    /// ```
    #[must_use]
    pub fn extents(&self, range: Range<u64>) -> Extents<'_> {
        let end = range.end.min(self.virtual_size());
        let start = range.start.min(end);
        Extents {
            image: self,
            next_block: self.geometry.block_of(start),
            range: start..end,
            ready: VecDeque::new(),
            failed: false,
            bat_data: 0..0,
            _pin: self.pin(),
        }
    }
}

impl Extents<'_> {
    /// The first block whose BAT entry may be anything but zero: a hole of the file in the BAT means
    /// that nothing was ever stored for its blocks. Disks of many tebibytes are mostly that.
    fn end_of_hole(&mut self) -> Result<u64> {
        let (geometry, offset) = (self.image.geometry(), self.image.regions().bat().offset);
        let at = |index: u64| offset.saturating_add(index.saturating_mul(ENTRY_LENGTH));
        let here = at(geometry.payload_index(self.next_block));
        if self.bat_data.contains(&here) {
            return Ok(self.next_block);
        }
        // Pages that were changed and are not in the file yet count as data, too. They are asked for first:
        // one that is written in place in between is then found in the file.
        let changed = self.image.writer.as_ref().and_then(|w| w.sectors().next_from(here & !0xFFF));
        let data = self.image.storage.next_data(here);
        let data = data.map_err(|e| Error::io("cannot map the file's holes", here, e))?;
        let data = data.unwrap_or(u64::MAX..u64::MAX);
        self.bat_data = match changed {
            Some(changed) if changed < data.start => {
                changed.max(here)..changed.saturating_add(4096)
            }
            _ => data,
        };
        let index = self.bat_data.start.saturating_sub(offset) / ENTRY_LENGTH;
        Ok(match geometry.slot(index) {
            _ if self.bat_data.start <= here => self.next_block,
            BatSlot::Payload(block) => block,
            BatSlot::Bitmap(chunk) => {
                chunk.saturating_add(1).saturating_mul(geometry.chunk_ratio())
            }
            BatSlot::Padding => geometry.blocks(),
        })
    }

    /// Appends the pieces of the next block, or of all blocks of a hole.
    fn advance(&mut self) -> Result<()> {
        let geometry = self.image.geometry();
        let after_hole = self.end_of_hole()?;
        if after_hole > self.next_block {
            let start = geometry.block_start(self.next_block).max(self.range.start);
            let end = geometry.block_start(after_hole).min(self.range.end);
            let (state, depth) = match geometry.is_differencing() {
                true => (ExtentState::ParentMissing, 1),
                false => (ExtentState::NotPresent, 0),
            };
            let length = end.saturating_sub(start);
            self.push(Extent { start, length, state, depth, file_offset: None });
            self.next_block = after_hole;
            return Ok(());
        }
        let block = self.next_block;
        let start = geometry.block_start(block);
        let whole = start..start.saturating_add(geometry.used_bytes(block));
        let wanted = whole.start.max(self.range.start)..whole.end.min(self.range.end);
        let piece = |state, depth, file_offset: Option<u64>| Extent {
            start: wanted.start,
            length: wanted.end.saturating_sub(wanted.start),
            state,
            depth,
            file_offset: file_offset
                .map(|at| at.saturating_add(wanted.start.saturating_sub(start))),
        };
        match self.image.block(block)? {
            Block::Present { file_offset } => {
                self.push(piece(ExtentState::Data, 0, Some(file_offset)));
            }
            Block::Partial { file_offset } => self.push_partial(block, file_offset, &wanted)?,
            Block::Absent(PayloadState::NotPresent) if geometry.is_differencing() => {
                self.push(piece(ExtentState::ParentMissing, 1, None));
            }
            Block::Absent(state) => {
                let state = match state {
                    PayloadState::Zero => ExtentState::Zero,
                    PayloadState::Unmapped => ExtentState::Unmapped,
                    PayloadState::Undefined => ExtentState::Undefined,
                    _ => ExtentState::NotPresent,
                };
                self.push(piece(state, 0, None));
            }
        }
        self.next_block = block.saturating_add(1);
        Ok(())
    }

    fn push_partial(&mut self, block: u64, file_offset: u64, wanted: &Range<u64>) -> Result<()> {
        let image = self.image;
        let geometry = image.geometry();
        let chunk = geometry.chunk_of(block);
        let raw = image.bat.entry(geometry.bitmap_index(chunk))?;
        let bitmap = image.rules.bitmap(chunk, raw)?;
        let bitmap = bitmap.ok_or_else(|| image.rules.partial_without_bitmap(block))?;
        let bits = block_bits(&*image.storage, geometry, bitmap, block)?;
        let sector = u64::from(geometry.logical_sector_size());
        let block_start = geometry.block_start(block);
        for run in runs(&bits) {
            let first = block_start.saturating_add(run.first.saturating_mul(sector));
            let start = first.max(wanted.start);
            let end = first.saturating_add(run.count.saturating_mul(sector)).min(wanted.end);
            if start >= end {
                continue;
            }
            let within = start.saturating_sub(block_start);
            self.push(Extent {
                start,
                length: end.saturating_sub(start),
                state: if run.present { ExtentState::Data } else { ExtentState::ParentMissing },
                depth: u32::from(!run.present),
                file_offset: run.present.then(|| file_offset.saturating_add(within)),
            });
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent) {
        match self.ready.back_mut() {
            Some(last) if last.continues_in(&extent) => {
                last.length = last.length.saturating_add(extent.length);
            }
            _ => self.ready.push_back(extent),
        }
    }

    fn is_at_end(&self) -> bool {
        self.failed || self.image.geometry().block_start(self.next_block) >= self.range.end
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        // The last one ready may still grow.
        while self.ready.len() < 2 && !self.is_at_end() {
            if let Err(error) = self.advance() {
                self.failed = true;
                self.ready.clear();
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
