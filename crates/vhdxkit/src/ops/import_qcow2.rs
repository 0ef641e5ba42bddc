//! Any disk to qcow2, through the crate `imago`. What is zero is not stored.

use crate::qcow2::NewQcow2;
use crate::storage::{FileStorage, Storage, StorageExt};
use crate::{Error, Result};

use super::disk::Source;
use super::export::{ExportReport, Piece, copy};
use super::import::ImportReport;
use super::progress::Progress;
use super::zeros::{length, split_zeros};

/// Clusters of a new image.
pub const DEFAULT_CLUSTER_SIZE: u32 = 64 << 10;

/// Copies a disk into an empty file as a qcow2 image, and makes it durable. The new disk is as large as the
/// source, rounded up to whole sectors of 512 bytes. A cluster has a power of two from 512 bytes to 2 MiB.
///
/// # Errors
/// A cluster size that the format does not have; the source cannot be read; the target is not empty or
/// cannot be written; the work was stopped. The target is then incomplete, though it may open.
pub fn to_qcow2(
    source: &dyn Source,
    target: &FileStorage,
    cluster_size: u32,
    progress: &mut dyn Progress,
) -> Result<ImportReport> {
    let size = source.size().checked_next_multiple_of(512);
    let size = size.ok_or_else(|| Error::invalid("the disk is too large for a qcow2 image"))?;
    let image = NewQcow2::create(target, size, cluster_size)?;
    let mut done = ExportReport::default();
    copy(source, None, progress, &mut done, &mut |piece| {
        let Piece::Data(at, bytes) = piece else { return Ok(0) };
        let mut written = 0u64;
        for (at, part) in split_zeros(at, bytes) {
            if let Ok(bytes) = part {
                image.write_at(at, bytes)?;
                written = written.saturating_add(length(bytes));
            }
        }
        Ok(written)
    })?;
    image.finish()?;
    target.sync().map_err(|e| Error::io_whole("cannot make the copy durable", e))?;
    let file_size = target.length()?;
    Ok(ImportReport {
        virtual_size: size,
        read: done.read,
        written: done.written,
        blocks: 0,
        file_size,
    })
}
