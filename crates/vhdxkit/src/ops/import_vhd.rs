//! Any disk to VHD: as [`import`](super::import) does it for VHDX.
//!
//! Blocks are laid out in the disk's order, those that are zeros are left out, the BAT is written once. The
//! footers come last, when everything else is durable: a copy that was cut short is no VHD.

use crate::storage::Storage;
use crate::vhd::VhdOptions;
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::disk::Source;
use super::export::{ExportReport, Piece, Target, copy, fill};
use super::import::{ImportReport, Places};
use super::progress::Progress;
use super::writeback::Writeback;
use super::zeros::{length, split_zeros};

/// Copies a disk into an empty storage, as a VHD with these options, and makes it durable. The new disk is
/// as large as the options say ([`VhdOptions::for_copy`] has the size for a source), which must hold the source.
///
/// ```
/// use vhdxkit::ops::import_vhd::to_vhd;
/// use vhdxkit::storage::MemoryStorage;
/// use vhdxkit::vhd::VhdOptions;
///
/// let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
/// let copy = MemoryStorage::empty();
/// let report = to_vhd(&image, &copy, &VhdOptions::for_copy(image.virtual_size(), true), &mut ())?;
/// assert_eq!(report.file_size, (64 << 20) + 512);
/// # Ok::<(), vhdxkit::Error>(())
/// ```
///
/// # Errors
/// Options that the format does not allow; the source cannot be read; the target is not empty or cannot be
/// written; the work was stopped. The target is then incomplete, and no VHD.
pub fn to_vhd(
    source: &dyn Source,
    target: &dyn Storage,
    options: &VhdOptions,
    progress: &mut dyn Progress,
) -> Result<ImportReport> {
    let plan = options.plan()?;
    let size = plan.size();
    if source.size() > size {
        let text = format!("the source has {} bytes, the new disk only {size}", source.size());
        return Err(Error::invalid(text));
    }
    if plan.disk_type() == DiskType::Differencing {
        return Err(Error::invalid("a copy is no child"));
    }
    plan.begin(target, 0)?;
    if options.is_preallocated() {
        plan.reserve(target, plan.table().map_or(0, |table| table.blocks))?;
    }
    let mut done = ExportReport::default();
    let Some(table) = plan.table() else {
        fill(source, target, Target::Empty, progress, &mut done)?;
        plan.finish(target, 0)?;
        return Ok(report(size, &done, 0, plan.file_size(0)));
    };
    let (map, mut places) = (plan.full_bitmap(), Places::new(table.blocks, false));
    let failed = |at: u64| move |e| Error::io("cannot write the copy", at, e);
    Writeback::during(target, |writeback| {
        copy(source, None, progress, &mut done, &mut |piece| {
            let Piece::Data(at, bytes) = piece else { return Ok(0) };
            let mut written = 0u64;
            for (mut at, part) in split_zeros(at, bytes) {
                let mut rest = part.unwrap_or_default();
                while !rest.is_empty() {
                    let block = table.block_of(at);
                    let new = !places.holds(block);
                    let place = plan.place(places.place(block, false));
                    if new {
                        target.write_at(place, &map).map_err(failed(place))?;
                    }
                    let within = at.saturating_sub(table.block_start(block));
                    let room = table.block_size.saturating_sub(within);
                    let now = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
                    let (piece, later) = rest.split_at_checked(now).unwrap_or((rest, &[]));
                    let to = place.saturating_add(table.bitmap_bytes).saturating_add(within);
                    target.write_at(to, piece).map_err(failed(to))?;
                    written = written.saturating_add(length(piece));
                    at = at.saturating_add(length(piece));
                    rest = later;
                }
            }
            writeback.wrote(written);
            Ok(written)
        })
    })?;
    plan.resize(target, places.count)?;
    if options.is_preallocated() {
        plan.reserve(target, places.count)?;
    }
    plan.write_tables(target, places.iter().map(|(block, _)| block))?;
    plan.finish(target, places.count)?;
    Ok(report(size, &done, places.count, plan.file_size(places.count)))
}

fn report(virtual_size: u64, done: &ExportReport, blocks: u64, file_size: u64) -> ImportReport {
    ImportReport { virtual_size, read: done.read, written: done.written, blocks, file_size }
}
