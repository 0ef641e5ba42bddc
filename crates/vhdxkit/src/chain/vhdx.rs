//! VHDX images as layers of a chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DATA_WRITE_GUID;
use crate::format::Guid;
use crate::image::open_layer;
use crate::storage::FileStorage;
use crate::view::locator::ParentLocator;
use crate::{Image, Result};

use super::parents::{Layer, judge};
use super::place::{Names, VHDX_NAMES};
use super::policy::Reading;
use super::search::images_in;

impl Layer for Image {
    const NAMES: Names = VHDX_NAMES;
    const IDENTITY: &'static str = DATA_WRITE_GUID;

    fn open(file: Arc<FileStorage>, reading: Reading) -> Result<Self> {
        open_layer(file, reading.log)
    }

    fn has_parent(&self) -> bool {
        self.geometry().is_differencing()
    }

    fn file_path(&self) -> Option<&Path> {
        self.path()
    }

    fn places(&self) -> Option<&ParentLocator> {
        self.parent_locator()
    }

    fn wanted(&self) -> Vec<Guid> {
        self.wanted_parents()
    }

    fn judge(&self, parent: &Self, ignore_id: bool) -> Result<(), String> {
        judge(self, parent, ignore_id)
    }

    fn lying_at(self, path: &Path) -> Self {
        self.at(path)
    }

    fn with_parent(self, parent: Self) -> Self {
        self.over(parent)
    }

    fn search(folder: &Path, wanted: &[Guid]) -> Vec<PathBuf> {
        let images = images_in(folder).ok().into_iter().flatten();
        images.filter(|image| wanted.contains(&image.data_write_guid)).map(|i| i.path).collect()
    }
}
