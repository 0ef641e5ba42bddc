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
//! 5. The child, and the images between, are deleted.
//!
//! A merge that finds the identity of step 1 in the target already is one that was stopped. It goes on
//! under that identity, so that grandchildren which were re-pointed before stay linked.
//!
//! # Who would be harmed
//! Other children of the target, and other children of the images between, would show a disk that was
//! changed under them. They are looked for in the folders of the images, and in those that the caller
//! names; when there are any nothing is done, unless forced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use same_file::is_same_file;

use crate::chain::{FoundImage, OpenOptions, images_in, judge};
use crate::format::metadata::Item;
use crate::format::{Guid, GuidSource};
use crate::image::{ExtentState, Shrink, open_layer_for_writing, parent_paths};
use crate::storage::{FileStorage, OpenMode, Storage, StorageExt};
use crate::view::locator::ParentLocator;
use crate::{Error, Image, Result};

use super::buffer::Buffer;
use super::progress::{Progress, advance};
use super::zeros::length;

/// Data is copied in pieces that end at multiples of this.
const STEP: u64 = 256 << 10;

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

    /// Deletes nothing, and leaves grandchildren where they are.
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

/// Who is who, found before anything is changed.
struct Family {
    /// The images to be merged, the child first.
    merged: Vec<PathBuf>,
    target: PathBuf,
    /// Identities of the merged images, in the same order.
    identities: Vec<Guid>,
    /// Children of the child.
    grandchildren: Vec<PathBuf>,
    /// Images that lose their parent, and the number of the merged image that is it; none for the target.
    others: Vec<(PathBuf, Option<usize>)>,
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
    for (path, mut image) in grandchildren {
        let paths = parent_paths(path, &family.target).map_err(|e| e.in_file(path))?;
        let child = family.identities.first().copied();
        let locator = ParentLocator::new(identity, child, &paths);
        image
            .set_parent_locator(&locator)
            .and_then(|()| image.close())
            .map_err(|e| e.in_file(path))?;
        report.repointed.push(path.clone());
    }
    report.orphaned = family.others.iter().map(|(path, _)| path.clone()).collect();
    if !options.keep {
        family.delete(&mut report)?;
    }
    Ok(report)
}

impl Family {
    fn of(path: &Path, options: &MergeOptions) -> Result<Self> {
        let chain = options.open.clone().write(false).open(path)?;
        if !chain.geometry().is_differencing() {
            return Err(Error::invalid("it has no parent to be merged into").in_file(path));
        }
        let layers: Vec<&Image> = chain.layers().collect();
        let paths: Vec<PathBuf> =
            layers.iter().filter_map(|layer| layer.path().map(Path::to_path_buf)).collect();
        let number = match &options.into {
            None => 1,
            Some(into) => (1..paths.len())
                .find(|&n| paths.get(n).is_some_and(|p| is_same_file(p, into).unwrap_or(false)))
                .ok_or_else(|| Error::invalid("it is none of the child's parents").in_file(into))?,
        };
        let target = paths.get(number).cloned();
        let target = target.ok_or_else(|| chain.parent_needed("merging"))?;
        let identity = |layer: &&Image| layer.headers().current().data_write_guid;
        let mut family = Self {
            merged: paths.iter().take(number).cloned().collect(),
            identities: layers.iter().take(number).map(identity).collect(),
            target,
            grandchildren: Vec::new(),
            others: Vec::new(),
        };
        let target_identity = layers.get(number).map(identity).unwrap_or_default();
        for image in family.relatives(&options.search, &paths)? {
            family.sort(image, target_identity);
        }
        Ok(family)
    }

    /// Every image in the folders of the family that is not part of the chain.
    fn relatives(&self, search: &[PathBuf], chain: &[PathBuf]) -> Result<Vec<FoundImage>> {
        let folder = |path: &PathBuf| path.parent().map(Path::to_path_buf).unwrap_or_default();
        let own = self.merged.iter().chain([&self.target]).map(folder);
        let mut folders: Vec<PathBuf> = Vec::new();
        for folder in own.chain(search.iter().cloned()) {
            let here = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
            if !folders.iter().any(|other| is_same_file(other, &here).unwrap_or(false)) {
                folders.push(here);
            }
        }
        let mut found = Vec::new();
        for folder in folders {
            let images = images_in(&folder)?.into_iter();
            found.extend(images.filter(|image| {
                !chain.iter().any(|path| is_same_file(path, &image.path).unwrap_or(false))
            }));
        }
        Ok(found)
    }

    fn sort(&mut self, image: FoundImage, target: Guid) {
        let parent = self.identities.iter().position(|identity| image.is_child_of(*identity));
        match parent {
            // Also one that an earlier merge has re-pointed: it knows both identities.
            Some(0) => self.grandchildren.push(image.path),
            Some(number) => self.others.push((image.path, Some(number))),
            None if image.is_child_of(target) => self.others.push((image.path, None)),
            None => {}
        }
    }

    fn require_no_others(&self, force: bool) -> Result<()> {
        if force || self.others.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            self.others.iter().map(|(path, _)| format!("\n  {}", path.display())).collect();
        let text = format!(
            "merging would change the parent of other images, which could not be used any more:{}",
            names.concat()
        );
        Err(Error::invalid(text))
    }

    /// Steps 1 to 3. Returns the target's identity.
    fn copy(
        &self,
        options: &MergeOptions,
        report: &mut MergeReport,
        progress: &mut dyn Progress,
    ) -> Result<Guid> {
        let named = |path: &PathBuf| {
            let path = path.clone();
            move |e: Error| e.in_file(path)
        };
        let mut layers = self.open_merged()?;
        let last = layers.pop().ok_or_else(|| Error::invalid("there is nothing to merge"))?;
        let mut target = options.open_target(&self.target, self.merged.len())?;
        report.bytes_before = target.file_size();
        let (identity, last) = link(last, &target).map_err(named(&self.target))?;
        target.set_data_write_guid(identity).map_err(named(&self.target))?;
        let source = layers.into_iter().rev().fold(last, |below, layer| layer.over(below));
        let done = fold_in(&source, &mut target, report, progress);
        // What was copied is kept whatever went wrong: it is what the child shows there anyway.
        let closed = target.close();
        done.and(closed).map_err(named(&self.target))?;
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

    /// Step 5. Images that others need stay, but those cannot read them any more.
    fn delete(&self, report: &mut MergeReport) -> Result<()> {
        for (number, path) in self.merged.iter().enumerate() {
            let needed = self.others.iter().any(|(_, parent)| *parent == Some(number));
            if needed {
                self.unlink(path)?;
                continue;
            }
            std::fs::remove_file(path)
                .map_err(|e| Error::io_whole("cannot delete the merged image", e).in_file(path))?;
            sync_folder(path);
            report.deleted.push(path.clone());
        }
        Ok(())
    }

    /// An image that stays must not be read over a target that was changed under it.
    fn unlink(&self, path: &Path) -> Result<()> {
        let mut image = open_alone(path)?;
        if let Some(locator) = image.parent_locator().cloned() {
            let linkage = locator.linkage().unwrap_or_default();
            image.set_parent_locator(&locator.with_linkage(linkage, None))?;
        }
        image.close()
    }
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

/// Makes a deletion durable where the system can. When it cannot, a crash brings the image back, which does
/// no harm: it shows what the target shows.
fn sync_folder(file: &Path) {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = std::fs::File::open(folder.unwrap_or_else(|| Path::new("."))) {
        let _ = folder.sync_all();
    }
}

/// [`merge`] for a child and its parent on any media: steps 1 to 3 of [the order](self). The child stays,
/// and is linked to the parent as it is then. `below` is the parent's own parent, when it is a child itself.
/// With a seed the same images make the same bytes.
///
/// # Errors
/// As `merge`; the child is not one of that parent.
pub fn merge_storages(
    child: Arc<dyn Storage>,
    parent: Arc<dyn Storage>,
    below: Option<Image>,
    seed: Option<u64>,
) -> Result<()> {
    let mut target = open_layer_for_writing(parent, GuidSource::from_seed(seed))?;
    if let Some(below) = below {
        judge(&target, &below, false).map_err(Error::parent_unfit)?;
        target = target.over(below);
    }
    let guids = GuidSource::from_seed(seed.map(|seed| seed ^ u64::MAX));
    let child = open_layer_for_writing(child, guids)?;
    judge(&child, &target, false).map_err(Error::parent_unfit)?;
    let (identity, child) = link(child, &target)?;
    target.set_data_write_guid(identity)?;
    fold_in(&child, &mut target, &mut MergeReport::default(), &mut ())?;
    target.close()?;
    child.close()
}

/// Step 1: the child of the target is told the identity that the target is going to have.
fn link(mut child: Image, target: &Image) -> Result<(Guid, Image)> {
    let now = target.headers().current().data_write_guid;
    let locator = child.parent_locator().cloned();
    let locator = locator.ok_or_else(|| Error::invalid("the child has no parent locator"))?;
    if locator.linkage2() == Some(now) {
        // A merge that was stopped.
        return Ok((now, child));
    }
    let identity = child.new_guid()?;
    child.set_parent_locator(&locator.with_linkage(now, Some(identity)))?;
    Ok((identity, child))
}

/// Step 2: what `source` holds above the target goes into it, and is made durable.
fn fold_in(
    source: &Image,
    target: &mut Image,
    report: &mut MergeReport,
    progress: &mut dyn Progress,
) -> Result<()> {
    target.resize(source.virtual_size(), Shrink::Anything)?;
    let mut buffer = Buffer::new();
    for extent in source.extents(0..source.virtual_size()) {
        let extent = extent?;
        let range = extent.start..extent.end();
        match (extent.state, extent.file_offset) {
            (ExtentState::ParentMissing, _) => {}
            (ExtentState::Data, Some(_)) => {
                let mut at = range.start;
                while at < range.end {
                    // Up to a multiple of the step, so that whole blocks are written as such.
                    let end = at.saturating_add(1).next_multiple_of(STEP).min(range.end);
                    let piece = buffer.first(end.saturating_sub(at));
                    source.read_at(at, piece)?;
                    target.write_at(at, piece)?;
                    let now = length(piece);
                    report.copied = report.copied.saturating_add(now);
                    advance(progress, now)?;
                    at = at.saturating_add(now);
                }
            }
            // The target's old data must not show where the child reads zeros.
            _ => {
                target.write_zeroes(range)?;
                report.zeroed = report.zeroed.saturating_add(extent.length);
                advance(progress, extent.length)?;
            }
        }
    }
    let items = disk_items(source)?;
    target.put_disk_items(&items)?;
    target.flush()
}

/// The items that belong to the virtual disk, not to the file (MS-VHDX 2.6.1.2), but for its size, which
/// the target has already.
fn disk_items(image: &Image) -> Result<Vec<Item>> {
    let of_disk = image.metadata().items().iter().filter(|item| item.is_of_disk_but_size());
    of_disk.map(|item| image.item(item)).collect()
}
