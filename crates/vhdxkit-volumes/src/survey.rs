//! Which file system, which bytes of it are free, and whether it says so in good order.

use std::io;
use std::ops::Range;

use crate::recognise::signatures;
use crate::{Disk, FreeMap, Window};
use crate::{btrfs, exfat, ext, fat, members, ntfs, swap, xfs};

/// What a file system says about its space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// What people call it: `ext4`, `NTFS`, `FAT32`…
    pub name: &'static str,
    /// Its label; what cannot be printed is replaced. Empty when it has none.
    pub label: String,
    /// Bytes it reaches over, from its start; never more than there is room for it.
    pub length: u64,
    /// Bytes of a cluster or block, in which it gives space out.
    pub unit: u64,
    /// Its free bytes.
    pub free: FreeMap,
    /// Why its free bytes must not be believed as they are: it was not unmounted cleanly, or hibernates.
    /// `None` when it was left in good order.
    pub unclean: Option<String>,
    /// A whole system is suspended in it, with all that it has in use.
    pub asleep: bool,
}

/// Why nothing is known of a file system's space. All of it counts as in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The disk cannot be read.
    #[error("cannot read the disk: {0}")]
    Io(#[source] io::Error),
    /// It contradicts itself, or the place where it lies.
    #[error("{0}")]
    Damaged(String),
    /// It is whole, as far as one can see, but nobody here knows its free space: another kind of contents,
    /// or a feature that is not understood.
    #[error("{0}")]
    NotKnown(String),
}

impl Trouble {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    pub(crate) fn not_known(what: impl Into<String>) -> Self {
        Self::NotKnown(what.into())
    }
}

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

/// Puts the free bytes into a survey. A file system in use, or left in a hurry, contradicts itself as long as
/// its journal was not replayed: that is no damage, but no map of it can be had.
pub(crate) fn with_free(survey: Survey, free: Result<FreeMap, Trouble>) -> Result<Survey, Trouble> {
    match (free, survey.unclean) {
        (Err(Trouble::Damaged(what)), Some(why)) => {
            let unclean = Some(format!("{why}; until then {what}"));
            Ok(Survey { unclean, free: FreeMap::default(), ..survey })
        }
        (free, unclean) => Ok(Survey { free: free?, unclean, ..survey }),
    }
}
