//! VHD files as layers of a chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::format::Guid;
use crate::storage::{FileStorage, OpenMode, Storage};
use crate::vhd::{Vhd, open_layer};
use crate::view::geometry::DiskType;
use crate::view::locator::ParentLocator;

use super::OpenOptions;
use super::parents::{Layer, attach};
use super::place::{Names, VHD_NAMES};
use super::policy::Reading;

impl Layer for Vhd {
    const NAMES: Names = VHD_NAMES;
    const IDENTITY: &'static str = "unique id";

    fn open(file: Arc<FileStorage>, _: Reading) -> Result<Self> {
        open_layer(file, false)
    }

    fn has_parent(&self) -> bool {
        self.disk_type() == DiskType::Differencing
    }

    fn file_path(&self) -> Option<&Path> {
        self.path()
    }

    fn places(&self) -> Option<&ParentLocator> {
        self.parent_link().map(|link| &link.locator)
    }

    fn wanted(&self) -> Vec<Guid> {
        self.parent_link().map(|link| link.unique_id).into_iter().collect()
    }

    fn judge(&self, parent: &Self, ignore_id: bool) -> Result<(), String> {
        let found = parent.unique_id();
        match ignore_id || self.wanted().contains(&found) {
            true => Ok(()),
            false => Err(format!(
                "it is not the disk that the child was made from (its unique id is {found})"
            )),
        }
    }

    fn lying_at(self, path: &Path) -> Self {
        self.at(path)
    }

    fn with_parent(self, parent: Self) -> Self {
        self.over(parent)
    }

    fn search(_: &Path, _: &[Guid]) -> Vec<PathBuf> {
        Vec::new()
    }
}

impl OpenOptions {
    /// Opens the VHD (version 1) at `path`. What these options say of a log has no meaning for it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongFormat`](crate::ErrorKind::WrongFormat) when it is no VHD; it is damaged, or locked;
    /// a parent that is allowed cannot be had.
    pub fn open_vhd(&self, path: impl AsRef<Path>) -> Result<Vhd> {
        let path = path.as_ref();
        let mode = match self.write {
            true => OpenMode::ReadWrite,
            false => OpenMode::ReadOnly { force_share: self.force_share },
        };
        FileStorage::open(path, mode)
            .and_then(|file| open_layer(Arc::new(file), self.write))
            .map_err(|e| e.in_file(path))
            .and_then(|disk| attach(&self.parents, self.reading(), disk.at(path)))
    }

    /// Opens a VHD that lies on any storage. Without a path only the parents that were
    /// [named](Self::parent) can be opened with it.
    ///
    /// # Errors
    /// As [`open_vhd`](Self::open_vhd), but for locks, which are the storage's affair.
    pub fn open_vhd_storage(&self, file: Arc<dyn Storage>) -> Result<Vhd> {
        attach(&self.parents, self.reading(), open_layer(file, self.write)?)
    }
}

impl Vhd {
    /// Opens the VHD at `path` for reading, without its parent if it is a child.
    ///
    /// # Errors
    /// As [`OpenOptions::open_vhd`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        OpenOptions::new().open_vhd(path)
    }
}
