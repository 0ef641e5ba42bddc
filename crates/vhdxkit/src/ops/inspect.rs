//! `info`: what a file is, without reading more of it than that takes.

use std::path::Path;
use std::sync::Arc;

use crate::format::bat::PayloadState;
use crate::image::{DirtyLog, Image, Swept};
use crate::map::{Stretch, walk};
use crate::storage::{FileStorage, OpenMode, Storage};
use crate::view::geometry::BatSlot;
use crate::{Error, Result};

/// Payload blocks of a disk by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    /// Stored in this file.
    pub fully_present: u64,
    /// Stored in part, the rest is the parent's.
    pub partially_present: u64,
    /// Never written.
    pub not_present: u64,
    /// Zeros.
    pub zero: u64,
    /// Given back by the guest.
    pub unmapped: u64,
    /// Contents do not matter.
    pub undefined: u64,
    /// In a state the format reserves.
    pub reserved: u64,
}

impl BlockCounts {
    fn slot(&mut self, raw_state: u8) -> &mut u64 {
        match PayloadState::from_raw(raw_state) {
            Some(PayloadState::FullyPresent) => &mut self.fully_present,
            Some(PayloadState::PartiallyPresent) => &mut self.partially_present,
            Some(PayloadState::NotPresent) => &mut self.not_present,
            Some(PayloadState::Zero) => &mut self.zero,
            Some(PayloadState::Unmapped) => &mut self.unmapped,
            Some(PayloadState::Undefined) => &mut self.undefined,
            None => &mut self.reserved,
        }
    }
}

/// Tables up to this size are always counted: 32 MiB of BAT map 4 TiB in blocks of 1 MiB.
const ALWAYS_COUNTED: u64 = 32 << 20;
/// Of a larger table this much is read; `info` of any disk stays below a mebibyte of reading.
const COUNTED_OF_LARGE: u64 = 512 << 10;

/// Opens a file to be looked at. Unlike [`Image::open`] this accepts a log that cannot be replayed,
/// so that one can see what the file says; its contents must not be relied upon then.
///
/// # Errors
/// As [`Image::open`], but for [`ErrorKind::LogInvalid`](crate::ErrorKind::LogInvalid) and
/// [`ErrorKind::Truncated`](crate::ErrorKind::Truncated).
pub fn open_to_inspect(path: impl AsRef<Path>, force_share: bool) -> Result<Image> {
    let path = path.as_ref();
    FileStorage::open(path, OpenMode::ReadOnly { force_share })
        .and_then(|file| inspect_storage(Arc::new(file)))
        .map_err(|e| e.in_file(path))
}

/// [`open_to_inspect`] for any storage.
///
/// # Errors
/// As [`open_to_inspect`].
pub fn inspect_storage(file: Arc<dyn Storage>) -> Result<Image> {
    crate::image::open_layer(file, DirtyLog::MayBeInvalid)
}

/// Counts the blocks of a disk by state. `None` when that would mean reading much: a BAT of more
/// than 32 MiB of which more than 512 KiB are in use. `always` counts nevertheless.
///
/// # Errors
/// Reading the BAT fails.
pub fn count_blocks(image: &Image, always: bool) -> Result<Option<BlockCounts>> {
    let geometry = *image.geometry();
    let storage = &**image.storage();
    let offset = image.regions().bat().offset;
    if !always && geometry.bat_bytes() > ALWAYS_COUNTED {
        let range = offset..offset.saturating_add(geometry.bat_bytes());
        if used_bytes(storage, range)? > COUNTED_OF_LARGE {
            return Ok(None);
        }
    }
    let mut counts = BlockCounts::default();
    let mut seen = 0u64;
    walk(storage, offset, geometry.bat_entries(), &mut |stretch| {
        if matches!(stretch, Stretch::Zero(..)) {
            return Ok(());
        }
        for (index, raw) in stretch.entries() {
            if let BatSlot::Payload(_) = geometry.slot(index) {
                let slot = counts.slot(raw.state());
                *slot = slot.saturating_add(1);
                seen = seen.saturating_add(1);
            }
        }
        Ok(())
    })?;
    // What lies in holes of the table is all NOT_PRESENT.
    let holes = geometry.blocks().saturating_sub(seen);
    counts.not_present = counts.not_present.saturating_add(holes);
    Ok(Some(counts))
}

/// Bytes of the disk that cannot be read, whatever the medium does: the table's entries for them are damaged, or lead
/// behind the end of the file. Parents are looked at, too. The disk itself is not read.
///
/// # Errors
/// The table cannot be read.
pub fn unreadable_bytes(image: &Image) -> Result<u64> {
    let mut bytes = 0u64;
    for piece in image.sweep() {
        if let Swept::Damaged(range) = piece? {
            bytes = bytes.saturating_add(range.end.saturating_sub(range.start));
        }
    }
    Ok(bytes)
}

/// Bytes of a range that the file stores, as far as it matters for the limit.
fn used_bytes(storage: &dyn Storage, range: std::ops::Range<u64>) -> Result<u64> {
    let mut used = 0u64;
    for run in crate::storage::DataRuns::new(storage, range.clone()) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", range.start, e))?;
        if run.data {
            used = used.saturating_add(run.range.end.saturating_sub(run.range.start));
        }
        if used > COUNTED_OF_LARGE {
            break;
        }
    }
    Ok(used)
}
