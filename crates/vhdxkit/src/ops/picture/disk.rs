//! The virtual disk in cells.

use std::ops::Range;

use crate::image::Swept;
use crate::ops::partitions::Volume;
use crate::ops::progress::{Progress, advance};
use crate::{ExtentState, Image, Result};

use super::spread;

/// What a byte of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskState {
    /// Stored in this file.
    Data,
    /// Stored in the parent.
    Parent,
    /// Stored in the parent's parent.
    Grandparent,
    /// Stored further down in the chain.
    Ancestor,
    /// Zeros, by the guest's word.
    Zero,
    /// Given back by the guest: reads as zeros.
    Unmapped,
    /// Contents do not matter: reads as zeros.
    Undefined,
    /// Never written: reads as zeros.
    NotPresent,
    /// The parent's, which is not at hand.
    ParentMissing,
    /// Cannot be read: the entry of the block is damaged, here or in a parent.
    Damaged,
}

impl DiskState {
    /// All of them, in the order of a legend.
    pub const ALL: [Self; 10] = [
        Self::Data,
        Self::Parent,
        Self::Grandparent,
        Self::Ancestor,
        Self::Zero,
        Self::Unmapped,
        Self::Undefined,
        Self::NotPresent,
        Self::ParentMissing,
        Self::Damaged,
    ];

    /// Whether its bytes are stored in some file.
    #[must_use]
    pub const fn is_stored(self) -> bool {
        matches!(self, Self::Data | Self::Parent | Self::Grandparent | Self::Ancestor)
    }

    fn of(state: ExtentState, depth: u32) -> Self {
        match (state, depth) {
            (ExtentState::Data, 0) => Self::Data,
            (ExtentState::Data, 1) => Self::Parent,
            (ExtentState::Data, 2) => Self::Grandparent,
            (ExtentState::Data, _) => Self::Ancestor,
            (ExtentState::Zero, _) => Self::Zero,
            (ExtentState::Unmapped, _) => Self::Unmapped,
            (ExtentState::Undefined, _) => Self::Undefined,
            (ExtentState::NotPresent, _) => Self::NotPresent,
            (ExtentState::ParentMissing, _) => Self::ParentMissing,
        }
    }
}

/// Bytes by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCell {
    bytes: [u64; DiskState::ALL.len()],
    /// Bytes that a file system on the disk calls free, whatever their state.
    pub free: u64,
    /// Of those, the ones that this file stores nevertheless: what compaction could give back at most.
    pub stored_free: u64,
}

impl DiskCell {
    /// Bytes in a state.
    #[must_use]
    pub fn of(&self, state: DiskState) -> u64 {
        self.bytes.get(state as usize).copied().unwrap_or_default()
    }

    /// Bytes in any state.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Bytes that are stored in this file or in a parent.
    #[must_use]
    pub fn stored(&self) -> u64 {
        let stored = DiskState::ALL.into_iter().filter(|state| state.is_stored());
        stored.fold(0, |sum, state| sum.saturating_add(self.of(state)))
    }

    fn add(&mut self, state: DiskState, bytes: u64) {
        if let Some(slot) = self.bytes.get_mut(state as usize) {
            *slot = slot.saturating_add(bytes);
        }
    }
}

/// The disk, from its first byte to its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPicture {
    /// Bytes of a cell, a power of two; the last cell may be used in part.
    pub cell_bytes: u64,
    /// The cells, in order.
    pub cells: Vec<DiskCell>,
    /// All of them together.
    pub totals: DiskCell,
}

/// Smallest cell: no sector is larger.
const LEAST_CELL: u64 = 4096;

impl DiskPicture {
    fn new(size: u64, most: u64) -> Self {
        let least = size.div_ceil(most.max(1)).max(LEAST_CELL);
        let cell_bytes = least.checked_next_power_of_two().unwrap_or(least);
        let cells = size.checked_div(cell_bytes).unwrap_or_default();
        let rest = size.checked_rem(cell_bytes).unwrap_or_default();
        let cells = cells.saturating_add(u64::from(rest > 0));
        let cells = vec![DiskCell::default(); usize::try_from(cells).unwrap_or_default()];
        Self { cell_bytes, cells, totals: DiskCell::default() }
    }

    fn add(&mut self, range: Range<u64>, state: DiskState) {
        let Self { cell_bytes, cells, totals } = self;
        spread(range, *cell_bytes, |index, bytes| {
            if let Some(cell) = cells.get_mut(index) {
                cell.add(state, bytes);
                totals.add(state, bytes);
            }
        });
    }

    fn add_free(&mut self, range: Range<u64>, stored: bool) {
        let Self { cell_bytes, cells, totals } = self;
        spread(range, *cell_bytes, |index, bytes| {
            for cell in cells.get_mut(index).into_iter().chain([&mut *totals]) {
                let slot = if stored { &mut cell.stored_free } else { &mut cell.free };
                *slot = slot.saturating_add(bytes);
            }
        });
    }
}

/// Sweeps the disk of an image and its parents.
pub(super) fn sweep(
    image: &Image,
    volumes: &[Volume],
    most_cells: u64,
    progress: &mut dyn Progress,
) -> Result<DiskPicture> {
    let mut picture = DiskPicture::new(image.virtual_size(), most_cells);
    for range in free_ranges(volumes) {
        picture.add_free(range, false);
    }
    let mut free = free_ranges(volumes).peekable();
    let mut told = 0u64;
    for piece in image.sweep() {
        let (range, state) = match piece? {
            Swept::Known(extent) => {
                (extent.start..extent.end(), DiskState::of(extent.state, extent.depth))
            }
            Swept::Damaged(range) => (range, DiskState::Damaged),
        };
        picture.add(range.clone(), state);
        if state == DiskState::Data {
            while free.next_if(|free| free.end <= range.start).is_some() {}
            // One free range may go on in the next piece: it is kept until a piece begins behind it.
            while let Some(here) = free.peek().filter(|free| free.start < range.end).cloned() {
                picture.add_free(here.start.max(range.start)..here.end.min(range.end), true);
                if here.end > range.end || free.next().is_none() {
                    break;
                }
            }
        }
        let behind = range.end.saturating_sub(told);
        if behind >= 1 << 30 {
            advance(progress, behind)?;
            told = range.end;
        }
    }
    Ok(picture)
}

/// The free bytes of all file systems, as ranges of the disk, in order. Only volumes that overlap no
/// other have any, so their order is that of the disk.
fn free_ranges(volumes: &[Volume]) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut with_space: Vec<_> = volumes
        .iter()
        .filter_map(|volume| Some((&volume.range, &volume.space.as_ref().ok()?.free)))
        .collect();
    with_space.sort_by_key(|(range, _)| range.start);
    with_space.into_iter().flat_map(|(volume, free)| {
        free.ranges().iter().map(|free| {
            let at = |within: u64| volume.start.saturating_add(within).min(volume.end);
            at(free.start)..at(free.end)
        })
    })
}
