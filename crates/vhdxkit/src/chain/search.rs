//! Looking for images by identity: a lost parent, the children of a disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::Guid;
use crate::format::limits::MAX_SEARCHED_FILES;
use crate::image::{DirtyLog, open_layer};
use crate::storage::{FileStorage, OpenMode};
use crate::vhd;
use crate::{Error, Image, Result};

use super::place::{Names, VHD_NAMES, VHDX_NAMES, is_named, open_image};

/// An image that a search came across.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundImage {
    /// Where it lies.
    pub path: PathBuf,
    /// Its identity, which its children name.
    pub data_write_guid: Guid,
    /// The identities that it accepts as its parent's; none when it has no parent.
    pub parents: Vec<Guid>,
}

impl FoundImage {
    /// Whether this is a child of the image with that identity.
    #[must_use]
    pub fn is_child_of(&self, data_write_guid: Guid) -> bool {
        self.parents.contains(&data_write_guid)
    }
}

/// A VHD (version 1) that a search came across.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundVhd {
    /// Where it lies.
    pub path: PathBuf,
    /// Its identity, which its children name.
    pub unique_id: Guid,
    /// The identity of its parent; none when it has no parent.
    pub parent: Option<Guid>,
}

impl FoundVhd {
    /// Whether this is a child of the disk with that identity.
    #[must_use]
    pub fn is_child_of(&self, unique_id: Guid) -> bool {
        self.parent == Some(unique_id)
    }
}

/// A file that is named like an image and could not be read as one.
#[derive(Debug)]
#[non_exhaustive]
pub struct UnreadFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Why it could not be read. It may be no image at all.
    pub why: Error,
}

/// What a search of a folder came across, sorted by name.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Searched {
    /// The images.
    pub images: Vec<FoundImage>,
    /// What may be images, too: whose children they are, nobody can tell.
    pub unread: Vec<UnreadFile>,
}

/// Looks at all files in a folder, not in folders below it, that are named `.vhdx` or `.avhdx`. Files in use are
/// looked at all the same.
///
/// # Errors
/// The folder cannot be read, or holds too many images
/// ([`MAX_SEARCHED_FILES`]).
pub fn search_folder(folder: &Path) -> Result<Searched> {
    let mut searched = Searched::default();
    for path in files_named(folder, &VHDX_NAMES)? {
        let looked = look_at(&path);
        let path = path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path);
        match looked {
            Ok(image) => searched.images.push(FoundImage {
                path,
                data_write_guid: identity(&image),
                parents: image.wanted_parents(),
            }),
            // Gone since it was listed.
            Err(why) if is_missing(&why) => {}
            Err(why) => searched.unread.push(UnreadFile { path, why }),
        }
    }
    Ok(searched)
}

/// The VHDs in a folder, likewise: files named `.vhd` or `.avhd` that can be read as such.
///
/// # Errors
/// As [`search_folder`].
pub fn vhds_in(folder: &Path) -> Result<Vec<FoundVhd>> {
    Ok(files_named(folder, &VHD_NAMES)?.into_iter().filter_map(look_at_vhd).collect())
}

/// The files of a folder that have such names, sorted.
fn files_named(folder: &Path, names: &Names) -> Result<Vec<PathBuf>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |e: io::Error| Error::io_whole("cannot search the folder", e).in_file(folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // A link to an image is found where the image itself lies.
        let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        if is_file && is_named(&path, names) {
            paths.push(path);
        }
        if paths.len() > MAX_SEARCHED_FILES {
            return Err(Error::limit("the folder holds too many images to search").in_file(folder));
        }
    }
    paths.sort();
    Ok(paths)
}

/// The images in a folder, as [`search_folder`] finds them, without what cannot be read.
///
/// # Errors
/// As there.
pub fn images_in(folder: &Path) -> Result<Vec<FoundImage>> {
    search_folder(folder).map(|searched| searched.images)
}

fn look_at(path: &Path) -> Result<Image> {
    let file =
        open_image(path, &VHDX_NAMES).map_err(|e| Error::io_whole("cannot open the file", e))?;
    let file = FileStorage::take(file, OpenMode::ReadOnly { force_share: true })?;
    open_layer(Arc::new(file), DirtyLog::MayBeInvalid)
}

fn is_missing(error: &Error) -> bool {
    error.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// Likewise of a VHD.
fn look_at_vhd(path: PathBuf) -> Option<FoundVhd> {
    let file = open_image(&path, &VHD_NAMES).ok()?;
    let file = FileStorage::take(file, OpenMode::ReadOnly { force_share: true }).ok()?;
    let disk = vhd::open_layer(Arc::new(file), false).ok()?;
    let path = path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path);
    let parent = disk.parent_link().map(|link| link.unique_id);
    Some(FoundVhd { path, unique_id: disk.unique_id(), parent })
}

/// What children of an image name it by.
pub(super) fn identity(image: &Image) -> Guid {
    image.headers().current().data_write_guid
}
