//! How large an image would be, without making it.

use crate::Result;
use crate::image::CreateOptions;
use crate::view::geometry::DiskType;

use super::disk::Disk;

/// Sizes of an image that is still to be made, in bytes of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// When it has just been made.
    pub required: u64,
    /// When every block of it has been written.
    pub fully_allocated: u64,
}

/// Measures an empty image with these options, or a copy of `source` with them.
///
/// A copy is judged by where its source says that it holds data; data that is zeros will take less.
///
/// # Errors
/// Options that the format does not allow, or the source's extents cannot be read.
pub fn measure(options: &CreateOptions, source: Option<&Disk>) -> Result<Measure> {
    let layout = options.layout()?;
    let blocks = layout.geometry.blocks();
    let stored = match source {
        _ if layout.geometry.disk_type() == DiskType::Fixed => blocks,
        None => 0,
        Some(disk) => {
            let (mut stored, mut behind) = (0u64, 0u64);
            for run in disk.runs() {
                let run = run?;
                if run.data && !run.range.is_empty() {
                    let first = layout.geometry.block_of(run.range.start).max(behind);
                    let last = layout.geometry.block_of(run.range.end.saturating_sub(1));
                    let next = last.saturating_add(1);
                    stored = stored.saturating_add(next.saturating_sub(first));
                    behind = behind.max(next);
                }
            }
            stored
        }
    };
    Ok(Measure { required: layout.place(stored), fully_allocated: layout.place(blocks) })
}
