//! Which family of file systems is asked for a place's space: none, where two of them seem to lie or the place
//! belongs to something larger.

use std::ops::Range;

use crate::recognise::signatures;
use crate::{Disk, Survey, Trouble, Window};
use crate::{btrfs, exfat, ext, fat, members, ntfs, swap, xfs};

/// Surveys the file system that begins where `range` of the disk does and ends within it.
///
/// # Errors
/// [`Trouble`]: then everything in `range` counts as in use.
pub fn survey(disk: &dyn Disk, range: Range<u64>) -> Result<Survey, Trouble> {
    let window = Window::new(disk, range.clone());
    if let Some(owner) = members::owner(&window)? {
        return Err(Trouble::not_known(format!("it belongs to {owner}")));
    }
    let found = signatures(disk, range).map_err(Trouble::Io)?;
    if found.len() > 1 {
        let all = found.join(" and ");
        return Err(Trouble::not_known(format!("it has the signatures of {all} at once")));
    }
    match found.first().copied() {
        Some("ext4") => ext::survey(&window),
        Some("XFS") => xfs::survey(&window),
        Some("btrfs") => btrfs::survey(&window),
        Some("NTFS") => ntfs::survey(&window),
        Some("FAT") => fat::survey(&window),
        Some("exFAT") => exfat::survey(&window),
        Some("swap") => swap::survey(&window),
        Some("ext journal") => {
            Err(Trouble::not_known("it is the journal of an ext3 or ext4 that lies elsewhere"))
        }
        Some(name) => Err(Trouble::not_known(format!("the free space of {name} is not known"))),
        None => Err(Trouble::not_known("no known file system")),
    }
}
