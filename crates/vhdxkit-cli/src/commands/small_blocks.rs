//! What a compaction would give back besides, had the disk smaller blocks: a block of 32 MiB stays for one byte.

use std::ops::Range;

use vhdxkit::format::MIB;
use vhdxkit::ops::compact::Plan;
use vhdxkit::{Image, Result};

/// Blocks up to this many bytes are small enough.
const SMALL: u64 = 4 * MIB;

/// Where a disk with large blocks stores something.
#[derive(Debug)]
pub(super) struct LargeBlocks {
    /// Bytes of a block.
    pub(super) size: u64,
    stored: Vec<Range<u64>>,
}

impl LargeBlocks {
    /// Of a disk that can be copied to one with smaller blocks; `None` when its own are small, and for a child: a
    /// copy of that is another thing.
    pub(super) fn of(image: &Image) -> Result<Option<Self>> {
        let size = u64::from(image.geometry().block_size());
        if size <= SMALL || image.geometry().is_differencing() {
            return Ok(None);
        }
        let mut stored: Vec<Range<u64>> = Vec::new();
        for extent in image.extents(0..image.virtual_size()) {
            let extent = extent?;
            match stored.last_mut() {
                _ if extent.state.is_zero() => {}
                Some(last) if last.end == extent.start => last.end = extent.end(),
                _ => stored.push(extent.start..extent.end()),
            }
        }
        Ok(Some(Self { size, stored }))
    }

    /// Bytes, at least, of whole mebibytes that are free and stay for what else their blocks hold; `None` when they
    /// are fewer than one block has.
    pub(super) fn kept(&self, plan: &Plan, assume_clean: bool) -> Option<u64> {
        let mut free = 0u64;
        for volume in &plan.volumes {
            let Some(map) = volume.free_to_give(assume_clean) else { continue };
            // Both are in order: what ends before one range ends before all that follow.
            let mut stored = &self.stored[..];
            for range in map.ranges() {
                let [start, end] =
                    [range.start, range.end].map(|at| volume.range.start.saturating_add(at));
                let before = stored.partition_point(|run| run.end <= start);
                stored = &stored[before..];
                for run in stored.iter().take_while(|run| run.start < end) {
                    let first = run.start.max(start).next_multiple_of(MIB);
                    let last = run.end.min(end) / MIB * MIB;
                    free += last.saturating_sub(first);
                }
            }
        }
        let kept = free.saturating_sub(plan.free.bytes);
        (kept >= self.size).then_some(kept)
    }
}
