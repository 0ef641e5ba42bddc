//! The smallest size that a disk can be given without losing anything.

use crate::format::MIB;
use crate::{Error, Image, Result};

use super::buffer::{Buffer, CHUNK};
use super::partitions::{end_of_last, whole_disk_file_system};
use super::progress::{Progress, advance};
use super::zeros::length;

/// The smallest size, a multiple of the logical sector size, that keeps every byte that is not zero, every
/// partition, and a file system over the whole disk. A GPT has its second copy at the end of the disk: such a
/// disk has its smallest size already. Where that copy is gone, room for a new one stays: behind everything else,
/// in whole mebibytes. Progress counts bytes of the disk that need not stay.
///
/// # Errors
/// The disk cannot be read; the work was stopped.
pub fn smallest_size(image: &Image, progress: &mut dyn Progress) -> Result<u64> {
    let size = image.virtual_size();
    let file_system = whole_disk_file_system(image)?.map_or(0, |found| found.end);
    let named = end_of_last(image)?.unwrap_or(0).max(file_system);
    let sector = u64::from(image.geometry().logical_sector_size());
    let kept = named.max(end_of_data(image, named, progress)?).max(1);
    let whole = match has_gpt(image, sector)? {
        // More than a second copy takes: 128 entries are 16 KiB.
        true => kept.checked_next_multiple_of(MIB).and_then(|whole| whole.checked_add(MIB)),
        false => kept.checked_next_multiple_of(sector),
    };
    whole.map(|whole| whole.min(size)).ok_or_else(|| Error::limit("the disk has no such size"))
}

/// Whether the disk's second sector begins a GPT.
fn has_gpt(image: &Image, sector: u64) -> Result<bool> {
    let mut signature = [0; 512];
    if image.virtual_size() < sector.saturating_mul(2) {
        return Ok(false);
    }
    image.read_at(sector, &mut signature)?;
    Ok(signature.starts_with(b"EFI PART"))
}

/// The byte behind the last one at or after `from` that is not zero; `from` when there is none.
fn end_of_data(image: &Image, from: u64, progress: &mut dyn Progress) -> Result<u64> {
    let geometry = image.geometry();
    let mut buffer = Buffer::new();
    let mut end = image.virtual_size();
    while end > from {
        let block = geometry.block_of(end.saturating_sub(1));
        let start = geometry.block_start(block).max(from);
        let extents: Vec<_> = image.extents(start..end).collect::<Result<_>>()?;
        for extent in extents.iter().rev().filter(|extent| !extent.state.is_zero()) {
            let mut behind = extent.end();
            while behind > extent.start {
                let piece = u64::try_from(CHUNK).unwrap_or(u64::MAX);
                let at = behind.saturating_sub(piece).max(extent.start);
                let bytes = buffer.first(behind.saturating_sub(at));
                image.read_at(at, bytes)?;
                if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                    let rest = length(bytes.get(last..).unwrap_or_default()).saturating_sub(1);
                    return Ok(behind.saturating_sub(rest));
                }
                behind = at;
            }
        }
        advance(progress, end.saturating_sub(start))?;
        end = start;
    }
    Ok(from)
}
