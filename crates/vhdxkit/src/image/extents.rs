//! Where the bytes of a disk lie, without reading them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::bat::{ENTRY_LENGTH, PayloadState};
use crate::map::{Block, Pin};
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
    /// Which file of the chain decides: 0 is this one, 1 its parent. [`Image::layer`] gives it.
    pub depth: u32,
    /// Where its bytes lie in that file, for [`ExtentState::Data`].
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
    pieces: Pieces<'a>,
    /// The last piece, which may still grow.
    last: Option<Extent>,
    failed: bool,
}

/// [`Extents`] for those who want to see all of a damaged disk: see [`Image::sweep`].
pub(crate) struct Sweep<'a>(Pieces<'a>);

/// A piece of the disk, neighbours not joined.
pub(crate) enum Swept {
    Known(Extent),
    /// What a damaged entry of a BAT stands for.
    Damaged(Range<u64>),
}

/// What one image of the chain says, before neighbours are joined.
struct Pieces<'a> {
    image: &'a Image,
    depth: u32,
    next_block: u64,
    range: Range<u64>,
    ready: VecDeque<Piece>,
    /// The parent's pieces of a range that this image leaves to it.
    below: Option<Box<Pieces<'a>>>,
    /// File range of the BAT that is known to hold data, so that its holes are looked for once.
    bat_data: Range<u64>,
    /// What was given out stays where it is.
    _pin: Option<Pin<'a>>,
}

enum Piece {
    Known(Extent),
    /// A range that the parent decides.
    Below(Range<u64>),
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
        Extents { pieces: Pieces::new(self, 0, range), last: None, failed: false }
    }

    /// Every piece of the disk, damaged ones too, in order and without gaps.
    pub(crate) fn sweep(&self) -> Sweep<'_> {
        Sweep(Pieces::new(self, 0, 0..self.virtual_size()))
    }
}

impl<'a> Pieces<'a> {
    fn new(image: &'a Image, depth: u32, range: Range<u64>) -> Self {
        let end = range.end.min(image.virtual_size());
        let start = range.start.min(end);
        Self {
            image,
            depth,
            next_block: image.geometry.block_of(start),
            range: start..end,
            ready: VecDeque::new(),
            below: None,
            bat_data: 0..0,
            _pin: image.pin(),
        }
    }

    /// The next piece, of this image or of one below it.
    fn next(&mut self) -> Result<Option<Extent>> {
        loop {
            if let Some(below) = &mut self.below {
                if let Some(extent) = below.next()? {
                    return Ok(Some(extent));
                }
                self.below = None;
            }
            match self.ready.pop_front() {
                Some(Piece::Known(extent)) => return Ok(Some(extent)),
                Some(Piece::Below(range)) => self.descend(range),
                None if self.is_at_end() => return Ok(None),
                None => self.advance()?,
            }
        }
    }

    /// Leaves a range to the parent.
    fn descend(&mut self, range: Range<u64>) {
        let depth = self.depth.saturating_add(1);
        let known = |range: Range<u64>, state| {
            let length = range.end.saturating_sub(range.start);
            Piece::Known(Extent { start: range.start, length, state, depth, file_offset: None })
        };
        let Some(parent) = self.image.parent() else {
            return self.ready.push_front(known(range, ExtentState::ParentMissing));
        };
        let there = range.end.min(parent.virtual_size()).max(range.start);
        if there < range.end {
            // A child that is larger than its parent.
            self.ready.push_front(known(there..range.end, ExtentState::NotPresent));
        }
        if range.start < there {
            self.below = Some(Box::new(Pieces::new(parent, depth, range.start..there)));
        }
    }

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

    /// What the call of [`next`](Self::next) that failed stands for, if all the rest can still be had: a
    /// block whose entry is damaged is left behind.
    fn damaged(&mut self) -> Option<Range<u64>> {
        if let Some(below) = &mut self.below {
            return below.damaged();
        }
        let geometry = self.image.geometry();
        let block = self.next_block;
        let start = geometry.block_start(block);
        let end = start.saturating_add(geometry.used_bytes(block)).min(self.range.end);
        self.ready.clear();
        self.next_block = block.saturating_add(1);
        let start = start.max(self.range.start);
        (start < end).then_some(start..end)
    }

    /// Appends the pieces of the next block, or of all blocks of a hole. When that fails, `next_block` is
    /// still the block that it failed at.
    fn advance(&mut self) -> Result<()> {
        let geometry = self.image.geometry();
        let after_hole = self.end_of_hole()?;
        if after_hole > self.next_block {
            let start = geometry.block_start(self.next_block).max(self.range.start);
            let end = geometry.block_start(after_hole).min(self.range.end);
            self.push(start..end, PayloadState::NotPresent);
            self.next_block = after_hole;
            return Ok(());
        }
        let block = self.next_block;
        let start = geometry.block_start(block);
        let whole = start..start.saturating_add(geometry.used_bytes(block));
        let wanted = whole.start.max(self.range.start)..whole.end.min(self.range.end);
        match self.image.block(block)? {
            Block::Present { file_offset } => {
                let within = wanted.start.saturating_sub(start);
                self.push_data(wanted, file_offset.saturating_add(within));
            }
            Block::Partial { file_offset } => self.push_partial(block, file_offset, &wanted)?,
            Block::Absent(state) => self.push(wanted, state),
        }
        self.next_block = block.saturating_add(1);
        Ok(())
    }

    fn push_partial(&mut self, block: u64, file_offset: u64, wanted: &Range<u64>) -> Result<()> {
        let image = self.image;
        let geometry = image.geometry();
        let sector = u64::from(geometry.logical_sector_size());
        let (block_start, first) =
            (geometry.block_start(block), geometry.first_sector_in_chunk(block));
        let sectors =
            |at: u64| at.saturating_sub(block_start).checked_div(sector).unwrap_or_default();
        let last = wanted.end.saturating_sub(1);
        let bits = first.saturating_add(sectors(wanted.start))
            ..first.saturating_add(sectors(last)).saturating_add(1);
        for run in image.bitmaps.runs(image.bitmap_of(block)?, bits) {
            let run = run?;
            let at = |bit: u64| {
                block_start.saturating_add(bit.saturating_sub(first).saturating_mul(sector))
            };
            let range =
                at(run.sectors.start).max(wanted.start)..at(run.sectors.end).min(wanted.end);
            match run.present {
                true => {
                    let within = range.start.saturating_sub(block_start);
                    self.push_data(range, file_offset.saturating_add(within));
                }
                false => self.ready.push_back(Piece::Below(range)),
            }
        }
        Ok(())
    }

    fn push_data(&mut self, range: Range<u64>, file_offset: u64) {
        self.ready.push_back(Piece::Known(Extent {
            start: range.start,
            length: range.end.saturating_sub(range.start),
            state: ExtentState::Data,
            depth: self.depth,
            file_offset: Some(file_offset),
        }));
    }

    /// What a block without contents in this file reads as.
    fn push(&mut self, range: Range<u64>, state: PayloadState) {
        let state = match state {
            PayloadState::NotPresent if self.image.geometry().is_differencing() => {
                return self.ready.push_back(Piece::Below(range));
            }
            PayloadState::Zero => ExtentState::Zero,
            PayloadState::Unmapped => ExtentState::Unmapped,
            PayloadState::Undefined => ExtentState::Undefined,
            _ => ExtentState::NotPresent,
        };
        let (start, length) = (range.start, range.end.saturating_sub(range.start));
        let depth = self.depth;
        self.ready.push_back(Piece::Known(Extent {
            start,
            length,
            state,
            depth,
            file_offset: None,
        }));
    }

    fn is_at_end(&self) -> bool {
        self.image.geometry().block_start(self.next_block) >= self.range.end
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match self.pieces.next() {
                Ok(Some(extent)) if extent.length == 0 => {}
                Ok(Some(extent)) => match &mut self.last {
                    Some(last) if last.continues_in(&extent) => {
                        last.length = last.length.saturating_add(extent.length);
                    }
                    last => {
                        if let Some(done) = last.replace(extent) {
                            return Some(Ok(done));
                        }
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    self.failed = true;
                    self.last = None;
                    return Some(Err(error));
                }
            }
        }
        self.last.take().map(Ok)
    }
}

impl Iterator for Sweep<'_> {
    type Item = Result<Swept>;

    /// Whoever sees an error must stop: then the medium failed, not the format.
    fn next(&mut self) -> Option<Self::Item> {
        match self.0.next() {
            Ok(piece) => piece.map(|extent| Ok(Swept::Known(extent))),
            Err(error) if error.defect().is_some() => match self.0.damaged() {
                Some(range) => Some(Ok(Swept::Damaged(range))),
                None => Some(Err(error)),
            },
            Err(error) => Some(Err(error)),
        }
    }
}
