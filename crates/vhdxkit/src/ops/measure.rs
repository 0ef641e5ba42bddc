//! How large an image would be, without making it.

use crate::format::limits::MAX_VIRTUAL_SIZE;
use crate::image::CreateOptions;
use crate::vhd::VhdOptions;
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::disk::Source;

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
pub fn measure(options: &CreateOptions, source: Option<&dyn Source>) -> Result<Measure> {
    let layout = options.layout()?;
    let blocks = layout.geometry.blocks();
    let stored = match source {
        _ if layout.geometry.disk_type() == DiskType::Fixed => blocks,
        None => 0,
        Some(disk) => stored(disk, u64::from(layout.geometry.block_size()))?,
    };
    Ok(Measure { required: layout.place(stored), fully_allocated: layout.place(blocks) })
}

/// The same for a VHD.
///
/// # Errors
/// As [`measure`].
pub fn measure_vhd(options: &VhdOptions, source: Option<&dyn Source>) -> Result<Measure> {
    let plan = options.plan()?;
    let (blocks, block_size) =
        plan.table().map_or((0, 1), |table| (table.blocks, table.block_size));
    let stored = match source {
        Some(disk) if blocks > 0 => stored(disk, block_size)?,
        _ => 0,
    };
    Ok(Measure { required: plan.file_size(stored), fully_allocated: plan.file_size(blocks) })
}

/// The same for a qcow2 image of a disk of so many bytes: an estimate from above, since who writes it chooses
/// where its tables lie.
///
/// # Errors
/// As [`measure`].
pub fn measure_qcow2(size: u64, cluster_size: u32, source: Option<&dyn Source>) -> Result<Measure> {
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return Err(Error::invalid("a cluster has a power of two from 512 bytes to 2M"));
    }
    if size > MAX_VIRTUAL_SIZE {
        return Err(Error::limit("a disk of more than 64 TiB"));
    }
    let cluster = u64::from(cluster_size);
    // What one L2 table maps: a cluster full of entries of 8 bytes.
    let mapped = cluster.saturating_mul(cluster / 8);
    let file = |data: u64, tables: u64| {
        let l1 = size.div_ceil(mapped).saturating_mul(8).div_ceil(cluster);
        let mut clusters = data.saturating_add(tables).saturating_add(l1).saturating_add(1);
        // Refcounts of 2 bytes count their own clusters too.
        let (mut blocks, mut table) = (1u64, 1u64);
        for _ in 0..8 {
            let all = clusters.saturating_add(blocks).saturating_add(table);
            blocks = all.saturating_mul(2).div_ceil(cluster).max(1);
            table = blocks.saturating_mul(8).div_ceil(cluster).max(1);
        }
        // A table that had to grow was left behind by a larger one.
        clusters = clusters.saturating_add(blocks).saturating_add(table.saturating_mul(2));
        clusters.saturating_mul(cluster)
    };
    let (data, tables) = match source {
        Some(disk) => (stored(disk, cluster)?, stored(disk, mapped)?),
        None => (0, 0),
    };
    let fully_allocated = file(size.div_ceil(cluster), size.div_ceil(mapped));
    Ok(Measure { required: file(data, tables), fully_allocated })
}

/// How many units of a disk hold data, as far as its source tells.
fn stored(disk: &dyn Source, unit: u64) -> Result<u64> {
    let (mut stored, mut behind) = (0u64, 0u64);
    let unit_of = |at: u64| at.checked_div(unit).unwrap_or_default();
    for run in disk.runs() {
        let run = run?;
        if run.data && !run.range.is_empty() {
            let first = unit_of(run.range.start).max(behind);
            let next = unit_of(run.range.end.saturating_sub(1)).saturating_add(1);
            stored = stored.saturating_add(next.saturating_sub(first));
            behind = behind.max(next);
        }
    }
    Ok(stored)
}
