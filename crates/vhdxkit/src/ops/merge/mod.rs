//! `merge`: folds a child, and with it everything between, into one of its parents.
//!
//! # At every crash the child still reads the same
//! What a merge writes into the target is what the child shows there anyway, so as long as the child finds
//! its parent its view does not change, however much of the copy is done, and doing it again completes it.
//! What could break is the link: the target's DataWriteGuid has to change before its contents do
//! (MS-VHDX 2.2.2.1), and the child knows the target by it. So, in this order, each step durable before the
//! next:
//!
//! 1. The direct child of the target in the chain is told a new identity as its second linkage, beside the
//!    one that the target has now. It matches the target before and after the next step.
//! 2. The target takes that identity, and with the copy everything else: size, blocks, metadata items that
//!    belong to the virtual disk.
//! 3. The target is closed. From here on it shows what the child shows.
//! 4. Children of the child are re-pointed to the target.
//! 5. The child itself is re-pointed to the target, past the images between. The lowest of those forgets the
//!    identity of step 1: they would show another disk than they did, and refuse from now on.
//! 6. The child, and the images between, are deleted.
//!
//! A merge that was stopped is begun anew, with another identity: who else knows the first one may have come
//! since. But grandchildren that were re-pointed know the target by it, and then it is kept.
//!
//! # Who would be harmed
//! Other children of the target, and other children of the images between, would show a disk that was
//! changed under them. They are looked for in the folders of the images, and in those that the caller
//! names; when there are any nothing is done, unless forced.

mod family;
mod fold;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::OpenOptions;
use crate::format::{Guid, GuidSource};
use crate::image::{open_layer_for_writing, parent_paths};
use crate::storage::{FileStorage, OpenMode, StorageExt};
use crate::view::locator::ParentLocator;
use crate::{Error, Image, Result};

use super::progress::Progress;
use family::Family;
use fold::{Identity, fold_in, link};

pub use fold::merge_storages;

/// What to merge, and what may be lost by it.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    open: OpenOptions,
    into: Option<PathBuf>,
    keep: bool,
    force: bool,
    search: Vec<PathBuf>,
}

impl MergeOptions {
    /// Into the child's parent. `open` says how the parents are found.
    #[must_use]
    pub fn new(open: OpenOptions) -> Self {
        Self { open, ..Self::default() }
    }

    /// Into this one of the child's parents, with everything between.
    #[must_use]
    pub fn into(mut self, target: impl Into<PathBuf>) -> Self {
        self.into = Some(target.into());
        self
    }

    /// Deletes nothing, and leaves grandchildren where they are. The child becomes one of the target; images
    /// between cannot be read any more, since their parent shows another disk.
    #[must_use]
    pub fn keep(mut self, yes: bool) -> Self {
        self.keep = yes;
        self
    }

    /// Merges although other children lose their parent by it.
    #[must_use]
    pub fn force(mut self, yes: bool) -> Self {
        self.force = yes;
        self
    }

    /// Another folder to look for other children in.
    #[must_use]
    pub fn search_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.search.push(folder.into());
        self
    }
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MergeReport {
    /// The image that has everything now.
    pub target: PathBuf,
    /// Bytes of its file before and after.
    pub bytes_before: u64,
    /// See `bytes_before`.
    pub bytes_after: u64,
    /// Bytes of the disk that were copied into it.
    pub copied: u64,
    /// Bytes of the disk that were made zeros in it.
    pub zeroed: u64,
    /// Children of the child that are the target's now.
    pub repointed: Vec<PathBuf>,
    /// Images that were deleted.
    pub deleted: Vec<PathBuf>,
    /// Images whose parent has changed under them: they cannot be used any more.
    pub orphaned: Vec<PathBuf>,
}

/// Merges the child at `path`. Progress counts bytes of the disk that differ from the target.
///
/// # Errors
/// The chain cannot be opened, or one of its images is in use; other images would lose their parent (the
/// text names them); reading or writing fails. Then the child shows what it showed before, and merging
/// again goes on.
pub fn merge(
    path: &Path,
    options: &MergeOptions,
    progress: &mut dyn Progress,
) -> Result<MergeReport> {
    let family = Family::of(path, options)?;
    family.require_no_others(options.force)?;
    let mut grandchildren = Vec::new();
    if !options.keep {
        // Opened before anything is changed: one that is in use stops the merge.
        for path in &family.grandchildren {
            grandchildren.push((path, open_alone(path)?));
        }
    }
    let mut report = MergeReport { target: family.target.clone(), ..MergeReport::default() };
    let identity = family.copy(options, &mut report, progress)?;
    let child = family.identities.first().copied();
    for (path, image) in grandchildren {
        repoint(image, path, &family.target, identity, child)?;
        report.repointed.push(path.clone());
    }
    report.orphaned = family.others.iter().map(|(path, _)| path.clone()).collect();
    family.settle(identity, options.keep, &mut report)?;
    if !options.keep {
        family.delete(&mut report)?;
    }
    Ok(report)
}

impl Family {
    /// Steps 1 to 3. Returns the target's identity.
    fn copy(
        &self,
        options: &MergeOptions,
        report: &mut MergeReport,
        progress: &mut dyn Progress,
    ) -> Result<Guid> {
        let named = |e: Error| e.in_file(&self.target);
        let mut layers = self.open_merged()?;
        let last = layers.pop().ok_or_else(|| Error::invalid("there is nothing to merge"))?;
        let mut target = options.open_target(&self.target, self.merged.len())?;
        self.require_same(layers.iter().chain([&last, &target]))?;
        report.bytes_before = target.file_size();
        let known = if self.keeps_identity() { Identity::Kept } else { Identity::New };
        let (identity, last) = link(last, &target, known).map_err(named)?;
        target.set_data_write_guid(identity).map_err(named)?;
        let source = layers.into_iter().rev().fold(last, |below, layer| layer.over(below));
        let done = fold_in(&source, &mut target, report, progress);
        // What was copied is kept whatever went wrong: it is what the child shows there anyway.
        let closed = target.close();
        done.and(closed).map_err(named)?;
        // All but the last one are open for reading only.
        source.layers().last().map_or(Ok(()), Image::close)?;
        report.bytes_after = target.storage().length()?;
        Ok(identity)
    }

    /// The images to be merged, each alone: the last one for writing, since its link is going to change.
    fn open_merged(&self) -> Result<Vec<Image>> {
        let Some((last, upper)) = self.merged.split_last() else { return Ok(Vec::new()) };
        let alone = OpenOptions::new();
        let mut layers = upper.iter().map(|path| alone.open(path)).collect::<Result<Vec<_>>>()?;
        layers.push(open_alone(last)?);
        Ok(layers)
    }

    /// Step 5. Where the child alone is to be deleted, that says it all.
    fn settle(&self, identity: Guid, keep: bool, report: &mut MergeReport) -> Result<()> {
        let Some((child, between)) = self.merged.split_first() else { return Ok(()) };
        if between.is_empty() && !keep {
            return Ok(());
        }
        repoint(open_alone(child)?, child, &self.target, identity, None)?;
        let Some(lowest) = between.last() else { return Ok(()) };
        let mut image = open_alone(lowest)?;
        if let Some(locator) = image.parent_locator().cloned() {
            let linkage = locator.linkage().filter(|linkage| *linkage != identity);
            let forgetful = locator.with_linkage(linkage.unwrap_or_default(), None);
            image.set_parent_locator(&forgetful).map_err(|e| e.in_file(lowest))?;
        }
        image.close().map_err(|e| e.in_file(lowest))?;
        if keep {
            report.orphaned.extend(between.iter().cloned());
        }
        Ok(())
    }

    /// Step 6. Images that others need stay.
    fn delete(&self, report: &mut MergeReport) -> Result<()> {
        for (number, path) in self.merged.iter().enumerate() {
            if self.others.iter().any(|(_, parent)| *parent == Some(number)) {
                continue;
            }
            delete_image(path)
                .map_err(|e| Error::io_whole("cannot delete the merged image", e).in_file(path))?;
            report.deleted.push(path.clone());
        }
        Ok(())
    }
}

/// Makes an image a child of the target.
fn repoint(
    mut image: Image,
    path: &Path,
    target: &Path,
    identity: Guid,
    second: Option<Guid>,
) -> Result<()> {
    let paths = parent_paths(path, target).map_err(|e| e.in_file(path))?;
    let locator = ParentLocator::new(identity, second, &paths);
    image.set_parent_locator(&locator).and_then(|()| image.close()).map_err(|e| e.in_file(path))
}

impl MergeOptions {
    /// The target with its own parents, which are those that follow it in the chain.
    fn open_target(&self, target: &Path, number: usize) -> Result<Image> {
        self.open.clone().skip_parents(number).write(true).open(target)
    }
}

/// An image of a chain for writing, without its parents.
fn open_alone(path: &Path) -> Result<Image> {
    FileStorage::open(path, OpenMode::ReadWrite)
        .and_then(|file| open_layer_for_writing(Arc::new(file), GuidSource::from_seed(None)))
        .map_err(|e| e.in_file(path))
        .map(|image| image.at(path))
}

/// Deletes the file and, when it was opened by one, the link to it. Durably where the system can: when it
/// cannot, a crash brings the image back, which does no harm, since it shows what the target shows.
fn delete_image(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_symlink() {
        let real = path.canonicalize()?;
        std::fs::remove_file(&real)?;
        sync_folder(&real);
    }
    std::fs::remove_file(path)?;
    sync_folder(path);
    Ok(())
}

fn sync_folder(file: &Path) {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = std::fs::File::open(folder.unwrap_or_else(|| Path::new("."))) {
        let _ = folder.sync_all();
    }
}
