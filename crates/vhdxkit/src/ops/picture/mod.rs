//! What a picture of an image needs: its disk and its file, cut into a few thousand cells.
//!
//! A disk of 64 TiB has 64 million blocks, and nobody looks at those. Here every byte of the disk and of
//! the file is counted exactly once, in the cell that it lies in, so that the sums are those of
//! [`Image::extents`] and of `check`, whatever the number of cells. Memory: the cells, and a bit for each mebibyte of
//! the file. Nothing stops at a damaged entry: what cannot be read is a colour like the others.

mod disk;
mod file;

use std::ops::Range;

use crate::{Error, Image, Result};

use super::partitions::Volume;
use super::progress::Progress;

pub use disk::{DiskCell, DiskPicture, DiskState};
pub use file::{FileCell, FileOwner, FilePicture, Order, Scatter};

/// Into how many pieces a picture is cut, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// Cells of the virtual disk. Each is a power of two of bytes, so there may be half as many.
    pub disk_cells: u64,
    /// Cells of the file, each a whole number of mebibytes.
    pub file_cells: u64,
    /// Columns (of the disk) and rows (of the file) of the picture that sets one against the other.
    pub scatter: (u32, u32),
}

/// The cells of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The virtual disk, as its guest sees it.
    pub disk: DiskPicture,
    /// The file at the end of the chain; none of its parents.
    pub file: FilePicture,
}

/// Looks at all of an image that is open for reading. `volumes` are those of
/// [`partitions::volumes`](super::partitions::volumes), whose free bytes are counted in the cells; none
/// where they could not be had. Progress counts bytes of the disk.
///
/// ```
/// use vhdxkit::ops::picture::{Detail, DiskState, picture};
///
/// let image = vhdxkit::Image::open("../../testdata/clean.vhdx")?;
/// let detail = Detail { disk_cells: 64, file_cells: 64, scatter: (32, 32) };
/// let picture = picture(&image, &[], detail, &mut ())?;
/// assert_eq!(picture.disk.totals.sum(), image.virtual_size());
/// println!("{} bytes are stored here", picture.disk.totals.of(DiskState::Data));
/// # Ok::<(), vhdxkit::Error>(())
/// ```
///
/// # Errors
/// The image is open for writing, the file or a parent cannot be read, or `progress` stops it. Damage
/// is no error.
pub fn picture(
    image: &Image,
    volumes: &[Volume],
    detail: Detail,
    progress: &mut dyn Progress,
) -> Result<Picture> {
    if image.is_writable() {
        return Err(Error::invalid(
            "only an image that is open for reading holds still for a picture",
        ));
    }
    let disk = disk::sweep(image, volumes, detail.disk_cells, progress)?;
    let file = file::sweep(image, detail)?;
    Ok(Picture { disk, file })
}

/// Calls `add` with each cell that a range lies in, and the range's bytes there.
fn spread(range: Range<u64>, cell_bytes: u64, mut add: impl FnMut(usize, u64)) {
    let mut at = range.start;
    while at < range.end {
        let Some(cell) = at.checked_div(cell_bytes) else { return };
        let end = cell.saturating_add(1).saturating_mul(cell_bytes).min(range.end);
        if end <= at {
            return;
        }
        if let Ok(index) = usize::try_from(cell) {
            add(index, end.saturating_sub(at));
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_spread_over_its_cells_to_the_byte() {
        let of = |range, cell_bytes| {
            let mut parts = Vec::new();
            spread(range, cell_bytes, |cell, bytes| parts.push((cell, bytes)));
            parts
        };
        assert_eq!(of(5..25, 10), [(0, 5), (1, 10), (2, 5)]);
        assert_eq!(of(10..20, 10), [(1, 10)]);
        assert_eq!(of(7..7, 10), []);
        assert_eq!(of(0..5, 0), []);
        assert_eq!(of(u64::MAX - 1..u64::MAX, 1 << 62), [(3, 1)]);
    }
}
