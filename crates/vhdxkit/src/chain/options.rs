//! How to open an image, and its chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::GuidSource;
use crate::image::{DirtyLog, open_layer, open_layer_for_writing, parent_paths};
use crate::storage::{FileStorage, OpenMode, Storage};
use crate::view::locator::ParentLocator;
use crate::{Error, Image, Result};

use super::parents::{attach, judge, leads_to};
use super::policy::{ParentPolicy, Parents, Reading};

/// How to open an image.
///
/// ```
/// let image = vhdxkit::OpenOptions::new().force_share(true).open("../../testdata/clean.vhdx")?;
/// # Ok::<(), vhdxkit::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    pub(super) write: bool,
    pub(super) force_share: bool,
    without_log: bool,
    seed: Option<u64>,
    pub(super) parents: Parents,
}

impl OpenOptions {
    /// For reading, refusing an image that somebody writes, and without its parents.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the image for writing as well: nobody else may have it open, and a pending log is
    /// replayed in the file. Nothing else is changed before the first write.
    ///
    /// A child has to be opened together with its parent, which stays as it is.
    #[must_use]
    pub fn write(mut self, yes: bool) -> Self {
        self.write = yes;
        self
    }

    /// Takes GUIDs and log sequence numbers from this seed, so that the same writes make the same
    /// bytes. For tests: two sessions with one seed cannot be told apart by their GUIDs.
    #[must_use]
    pub fn reproducible(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Reads the image although another process may be writing it. What is read may then be
    /// half-changed.
    #[must_use]
    pub fn force_share(mut self, yes: bool) -> Self {
        self.force_share = yes;
        self
    }

    /// Accepts a log that cannot be replayed (no active sequence, or the file was cut off), and reads
    /// the file as it lies on disk. A log that can be replayed is replayed all the same.
    ///
    /// What the last writer changed may then be missing or half done, and nothing says where; the
    /// format forbids it, so it takes the user's word. [`Image::findings`] says what was accepted.
    #[must_use]
    pub fn without_log(mut self, yes: bool) -> Self {
        self.without_log = yes;
        self
    }

    /// Opens the parents of a child as well, those that the policy allows. A parent that is allowed and
    /// cannot be had is an error of the open.
    #[must_use]
    pub fn parents(mut self, policy: ParentPolicy) -> Self {
        self.parents.policy = policy;
        self
    }

    /// Names a parent, whatever the policy and the locator say. Called again it names the parent's parent,
    /// and so on. The identity is asked for all the same.
    #[must_use]
    pub fn parent(mut self, path: impl Into<PathBuf>) -> Self {
        self.parents.named.push(path.into());
        self
    }

    /// Forgets the parents that were named and denies all others.
    #[must_use]
    pub fn without_parents(mut self) -> Self {
        self.parents.named.clear();
        self.parents.policy = ParentPolicy::Deny;
        self
    }

    /// For an image of the same chain, so much further down: parents that were named for those above it
    /// are left out.
    pub(crate) fn skip_parents(mut self, layers: usize) -> Self {
        self.parents.named.drain(..layers.min(self.parents.named.len()));
        self
    }

    /// Takes a parent that is not the disk the child was made from, or was written to since. What the
    /// child shows is then a mixture of two disks, and nobody can say whether it makes sense.
    #[must_use]
    pub fn ignore_parent_id(mut self, yes: bool) -> Self {
        self.parents.ignore_id = yes;
        self
    }

    /// A folder in which a missing parent is looked for, to name it in the error; it is not opened from
    /// there. The child's own folder is searched as well. With [`ParentPolicy::Follow`] only.
    #[must_use]
    pub fn search_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.parents.searched.push(folder.into());
        self
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// As [`Image::open`]; and a parent cannot be had
    /// ([`ErrorKind::ParentNeeded`](crate::ErrorKind::ParentNeeded),
    /// [`ErrorKind::Parent`](crate::ErrorKind::Parent)).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        let path = path.as_ref();
        let mode = match self.write {
            true => OpenMode::ReadWrite,
            false => OpenMode::ReadOnly { force_share: self.force_share },
        };
        FileStorage::open(path, mode)
            .and_then(|file| self.open_layer(Arc::new(file)))
            .map_err(|e| e.in_file(path))
            .and_then(|image| attach(&self.parents, self.reading(), image.at(path)))
            .and_then(|image| self.require_parent(image).map_err(|e| e.in_file(path)))
            .and_then(|image| self.refresh(image).map_err(|e| e.in_file(path)))
    }

    /// Opens an image that lies on any storage. Without a path only the parents that were
    /// [named](Self::parent) can be opened with it.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for locks, which are the storage's affair.
    pub fn open_storage(&self, file: Arc<dyn Storage>) -> Result<Image> {
        let image = self.open_layer(file)?;
        attach(&self.parents, self.reading(), image).and_then(|image| self.require_parent(image))
    }

    /// Opens a child that lies on any storage over its parent.
    ///
    /// # Errors
    /// As [`open_storage`](Self::open_storage); it is no child; or it is one of another disk.
    pub fn open_child(&self, file: Arc<dyn Storage>, parent: Image) -> Result<Image> {
        let child = self.open_layer(file)?;
        if !child.geometry().is_differencing() {
            return Err(Error::invalid("the image has no parent"));
        }
        judge(&child, &parent, self.parents.ignore_id).map_err(Error::parent_unfit)?;
        Ok(child.over(parent))
    }

    fn open_layer(&self, file: Arc<dyn Storage>) -> Result<Image> {
        match self.write {
            true => open_layer_for_writing(file, GuidSource::from_seed(self.seed)),
            false => open_layer(file, self.reading().log),
        }
    }

    /// A child is not written without its parent at hand.
    fn require_parent(&self, image: Image) -> Result<Image> {
        if self.write && image.geometry().is_differencing() && image.parent().is_none() {
            return Err(image.parent_needed("writing to a child"));
        }
        Ok(image)
    }

    /// Corrects the path to the parent in a child that may be changed (MS-VHDX 2.6.2.6.3): the guest's view
    /// and the disk's identity stay.
    fn refresh(&self, mut image: Image) -> Result<Image> {
        let stale = |image: &Image| -> Option<ParentLocator> {
            let (child, parent) = (image.path()?, image.parent()?.path()?);
            let locator = image.parent_locator()?;
            if leads_to(locator, child, parent) {
                return None;
            }
            // A place that a locator cannot name stays unnamed: the parent is found by --parent again.
            let paths = parent_paths(child, parent).ok()?;
            Some(ParentLocator::new(locator.linkage()?, locator.linkage2(), &paths))
        };
        if self.write
            && let Some(locator) = stale(&image)
        {
            image.set_parent_locator(&locator)?;
        }
        Ok(image)
    }

    pub(super) fn reading(&self) -> Reading {
        let log = if self.without_log { DirtyLog::MayBeInvalid } else { DirtyLog::MustReplay };
        Reading { force_share: self.force_share, log }
    }

    pub(crate) fn shares(&self) -> bool {
        self.force_share
    }
}

impl Image {
    /// Opens the VHDX file at `path` for reading, without its parents if it is a child.
    ///
    /// # Errors
    /// [`Error::kind`](crate::Error::kind) tells them apart: not a VHDX file, corrupt, an
    /// unsupported feature, locked by a writer, a log that cannot be replayed, or an I/O error.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        OpenOptions::new().open(path)
    }
}
