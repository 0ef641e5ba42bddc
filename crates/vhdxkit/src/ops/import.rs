//! Any disk to VHDX: a copy, not a replay of guest writes.
//!
//! Blocks are laid out in the disk's order, the table is written once, the identifier last, so that a
//! copy that was cut short is no image. What is a hole in the source
//! is never read, blocks of zeros are not stored, and neither are zeros inside of a block: a new file
//! has them already. Where the file system lets two files share their bytes nothing is copied at all.
//!
//! Two threads: one reads, looks for zeros and writes; the other has what was written so far brought to
//! the medium, so that the sync at the end finds little left to do.

use std::ops::Range;

use crate::format::bat::{PayloadState, RawEntry};
use crate::image::{CreateOptions, Layout};
use crate::storage::{Cloners, Storage};
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::buffer::Buffer;
use super::disk::{Disk, DiskRun, Source};
use super::progress::{Progress, advance};
use super::writeback::Writeback;
use super::zeros::{is_zero, length, split_zeros};

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that were read from the source.
    pub read: u64,
    /// Bytes of the disk that were written or shared.
    pub written: u64,
    /// Blocks that are stored.
    pub blocks: u64,
    /// Bytes of the new file.
    pub file_size: u64,
}

/// So much is shared at once where the file system can, so that a stop is heard.
const SHARED_STEP: u64 = 1 << 30;

/// Copies a disk into an empty storage, as an image with these options, and makes it durable. The new
/// disk is as large as the options say, which must hold the source.
///
/// ```
/// use vhdxkit::CreateOptions;
/// use vhdxkit::ops::disk::Disk;
/// use vhdxkit::ops::import::{options_for, to_vhdx};
/// use vhdxkit::storage::MemoryStorage;
///
/// let source = Disk::open("../../testdata/crashed.vhdx".as_ref(), None, false)?;
/// let copy = MemoryStorage::empty();
/// let report = to_vhdx(&source, &copy, &options_for(&source).fixed(true), &mut ())?;
/// assert_eq!(report.virtual_size, source.size());
/// # Ok::<(), vhdxkit::Error>(())
/// ```
///
/// # Errors
/// Options that the format does not allow; the source cannot be read; the target is not empty or
/// cannot be written; the work was stopped. The target is then incomplete, and no image.
pub fn to_vhdx(
    source: &dyn Source,
    target: &dyn Storage,
    options: &CreateOptions,
    progress: &mut dyn Progress,
) -> Result<ImportReport> {
    let layout = options.layout()?;
    let size = layout.geometry.virtual_size();
    if source.size() > size {
        let text = format!("the source has {} bytes, the new disk only {size}", source.size());
        return Err(Error::invalid(text));
    }
    Layout::require_empty(target)?;
    let fixed = layout.geometry.disk_type() == DiskType::Fixed;
    let all = if fixed { layout.geometry.blocks() } else { 0 };
    layout.set_length(target, all)?;
    if options.is_preallocated() {
        CreateOptions::reserve(target, layout.place(all))?;
    }
    let mut copy = Copy {
        source,
        target,
        layout: &layout,
        cloners: Cloners::between(source.storages(), target),
        places: Places::new(layout.geometry.blocks(), fixed),
        report: ImportReport { virtual_size: size, ..ImportReport::default() },
    };
    Writeback::during(target, |writeback| copy.run(writeback, progress))?;
    let Copy { places, mut report, .. } = copy;
    report.blocks = places.count;
    layout.set_length(target, places.count)?;
    if options.is_preallocated() {
        CreateOptions::reserve(target, layout.place(places.count))?;
    }
    options.write_tables(&layout, target)?;
    let raw = |number| RawEntry::new(PayloadState::FullyPresent.to_raw(), layout.place(number));
    layout.write_bat(target, places.iter().map(|(block, number)| (block, raw(number))))?;
    layout.finish(target)?;
    report.file_size = layout.place(places.count);
    Ok(report)
}

/// The options that keep a disk as it is: its size (rounded up to whole sectors) and, of an image, its
/// block size, sector sizes and type. A differencing disk becomes a dynamic one.
#[must_use]
pub fn options_for(source: &Disk) -> CreateOptions {
    match source {
        Disk::Vhdx(image) => {
            let geometry = image.geometry();
            CreateOptions::new(geometry.virtual_size())
                .fixed(geometry.disk_type() == DiskType::Fixed)
                .block_size(geometry.block_size())
                .logical_sector_size(geometry.logical_sector_size())
                .physical_sector_size(geometry.physical_sector_size())
        }
        Disk::Vhd(disk) => {
            CreateOptions::new(disk.virtual_size()).fixed(disk.disk_type() == DiskType::Fixed)
        }
        other => CreateOptions::new(other.size().next_multiple_of(512)),
    }
}

/// Which blocks are stored: one bit each, since places follow the order of the blocks.
pub(super) struct Places {
    stored: Vec<u64>,
    blocks: u64,
    pub(super) count: u64,
}

impl Places {
    pub(super) fn new(blocks: u64, all: bool) -> Self {
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or_default();
        let (fill, count) = if all { (u64::MAX, blocks) } else { (0, 0) };
        Self { stored: vec![fill; words], blocks, count }
    }

    pub(super) fn holds(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|word| self.stored.get(word));
        word.is_some_and(|word| word & bit(block) != 0)
    }

    /// The number of the place that a block gets, which must be no earlier than those before.
    pub(super) fn place(&mut self, block: u64, fixed: bool) -> u64 {
        if fixed {
            return block;
        }
        if !self.holds(block) {
            let word = usize::try_from(block / 64).ok().and_then(|word| self.stored.get_mut(word));
            if let Some(word) = word {
                *word |= bit(block);
            }
            self.count = self.count.saturating_add(1);
        }
        self.count.saturating_sub(1)
    }

    /// Blocks with the numbers of their places, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..self.blocks).filter(|block| self.holds(*block)).zip(0u64..)
    }
}

fn bit(block: u64) -> u64 {
    u32::try_from(block % 64).ok().and_then(|bit| 1u64.checked_shl(bit)).unwrap_or_default()
}

struct Copy<'a> {
    source: &'a dyn Source,
    target: &'a dyn Storage,
    layout: &'a Layout,
    cloners: Cloners<'a>,
    places: Places,
    report: ImportReport,
}

impl Copy<'_> {
    fn run(&mut self, writeback: &mut Writeback, progress: &mut dyn Progress) -> Result<()> {
        let mut buffer = Buffer::new();
        for run in self.source.runs() {
            let run = run?;
            if !run.data {
                advance(progress, run.range.end.saturating_sub(run.range.start))?;
                continue;
            }
            let mut at = run.range.start;
            while at < run.range.end {
                let rest = at..run.range.end;
                let end = match self.share(&run, rest.clone())? {
                    Some(end) => end,
                    None => self.copy(rest, &mut buffer, writeback)?,
                };
                advance(progress, end.saturating_sub(at))?;
                at = end;
            }
        }
        Ok(())
    }

    /// Shares the start of a run with the copy, over as many blocks as it covers: they lie one after
    /// another there as well. Returns where it stopped; `None` where nothing can be shared.
    fn share(&mut self, run: &DiskRun, rest: Range<u64>) -> Result<Option<u64>> {
        let Some((depth, place)) = run.place.filter(|(depth, _)| self.cloners.can(*depth)) else {
            return Ok(None);
        };
        let end = rest.end.min(rest.start.saturating_add(SHARED_STEP));
        let size = end.saturating_sub(rest.start);
        let from = place.saturating_add(rest.start.saturating_sub(run.range.start));
        let to = target_of(self.layout, &mut self.places, rest.start);
        let shared = self.cloners.share((depth, from), to, size);
        if !shared.map_err(|e| Error::io("cannot share the data with the copy", to, e))? {
            return Ok(None);
        }
        let geometry = &self.layout.geometry;
        for block in geometry.block_of(rest.start)..=geometry.block_of(end.saturating_sub(1)) {
            target_of(self.layout, &mut self.places, geometry.block_start(block));
        }
        self.report.written = self.report.written.saturating_add(size);
        Ok(Some(end))
    }

    /// Copies the start of a run, at most up to the end of its block, without its zeros. Returns where
    /// it stopped.
    fn copy(
        &mut self,
        rest: Range<u64>,
        buffer: &mut Buffer,
        writeback: &mut Writeback,
    ) -> Result<u64> {
        let geometry = &self.layout.geometry;
        let block = geometry.block_start(geometry.block_of(rest.start));
        let block_end = block.saturating_add(u64::from(geometry.block_size()));
        let buf = buffer.first(rest.end.min(block_end).saturating_sub(rest.start));
        let size = length(buf);
        let end = rest.start.saturating_add(size);
        self.source.read_at(rest.start, buf)?;
        self.report.read = self.report.read.saturating_add(size);
        if is_zero(buf) {
            return Ok(end);
        }
        let to = target_of(self.layout, &mut self.places, rest.start);
        for (at, part) in split_zeros(to, buf) {
            if let Ok(bytes) = part {
                self.target
                    .write_at(at, bytes)
                    .map_err(|e| Error::io("cannot write the copy", at, e))?;
                self.report.written = self.report.written.saturating_add(length(bytes));
                writeback.wrote(length(bytes));
            }
        }
        Ok(end)
    }
}

/// Where a byte of the disk goes in the new file; its block gets a place when it has none.
fn target_of(layout: &Layout, places: &mut Places, at: u64) -> u64 {
    let block = layout.geometry.block_of(at);
    let fixed = layout.geometry.disk_type() == DiskType::Fixed;
    let number = places.place(block, fixed);
    let within = at.saturating_sub(layout.geometry.block_start(block));
    layout.place(number).saturating_add(within)
}
