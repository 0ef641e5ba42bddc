//! `relink`: makes another file a child's parent, or the same one in another place.

use std::path::Path;
use std::sync::Arc;

use same_file::is_same_file;

use crate::chain::{OpenOptions, ParentPolicy, judge};
use crate::format::GuidSource;
use crate::image::{open_layer_for_writing, parent_paths};
use crate::storage::{FileStorage, OpenMode, Storage};
use crate::view::locator::{ParentLocator, ParentPaths};
use crate::{Error, Image, Result};

/// What a change of parent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelinkReport {
    /// The child said something else before.
    pub changed: bool,
    /// The parent has another identity than the child knew: what it shows may be another disk now.
    pub other_identity: bool,
}

/// Makes the image at `parent` the parent of the child at `child`. Only the child is changed, through its
/// log; its own identity stays, so that its children go on knowing it.
///
/// A parent with another identity than the child's locator names is refused unless `ignore_id`, which takes
/// the caller's word that its contents are the right ones.
///
/// # Errors
/// The parent is not the one the child was made from, has other sectors, or is a child of the child
/// ([`ErrorKind::Parent`](crate::ErrorKind::Parent)); one of them cannot be opened; writing fails.
pub fn relink(child: &Path, parent: &Path, ignore_id: bool) -> Result<RelinkReport> {
    let named = |e: Error| e.in_file(child);
    let alone = OpenOptions::new().open(child)?;
    if !alone.geometry().is_differencing() {
        return Err(named(Error::invalid("it is no child of another disk")));
    }
    require_no_circle(child, parent)?;
    let below = OpenOptions::new().open(parent)?;
    let paths = || parent_paths(child, parent);
    let (locator, report) = link(&alone, &below, paths, ignore_id).map_err(named)?;
    drop(alone);
    if report.changed {
        let file = FileStorage::open(child, OpenMode::ReadWrite)?;
        write(Arc::new(file), &locator, None).map_err(named)?;
    }
    Ok(report)
}

/// [`relink`] for a child on any medium. `relative` is the way to its parent, as `relative_path` has it,
/// with `\\` between the names. With a seed the same child becomes the same bytes.
///
/// # Errors
/// As `relink`, but that nobody asks whether the parent is one of the child's children.
pub fn relink_storage(
    child: Arc<dyn Storage>,
    parent: &Image,
    relative: Option<String>,
    ignore_id: bool,
    seed: Option<u64>,
) -> Result<RelinkReport> {
    let alone = OpenOptions::new().open_storage(child.clone())?;
    let paths = || Ok(ParentPaths { relative, ..ParentPaths::default() });
    let (locator, report) = link(&alone, parent, paths, ignore_id)?;
    drop(alone);
    if report.changed {
        write(child, &locator, seed)?;
    }
    Ok(report)
}

/// The locator that a child of that parent should have.
fn link(
    child: &Image,
    parent: &Image,
    paths: impl FnOnce() -> Result<ParentPaths>,
    ignore_id: bool,
) -> Result<(ParentLocator, RelinkReport)> {
    judge(child, parent, ignore_id).map_err(Error::parent_unfit)?;
    let other_identity = judge(child, parent, false).is_err();
    let identity = parent.headers().current().data_write_guid;
    let locator = ParentLocator::new(identity, None, &paths()?);
    let changed = child.parent_locator() != Some(&locator);
    Ok((locator, RelinkReport { changed, other_identity }))
}

fn write(child: Arc<dyn Storage>, locator: &ParentLocator, seed: Option<u64>) -> Result<()> {
    let mut image = open_layer_for_writing(child, GuidSource::from_seed(seed))?;
    image.set_parent_locator(locator)?;
    image.close()
}

/// The child must not be found among the parents of its parent.
fn require_no_circle(child: &Path, parent: &Path) -> Result<()> {
    // What cannot be followed cannot lead back.
    let chain = OpenOptions::new().parents(ParentPolicy::Follow).force_share(true).open(parent);
    let chain = chain.ok();
    let paths = chain.iter().flat_map(Image::layers).filter_map(Image::path);
    for path in std::iter::once(parent).chain(paths) {
        if is_same_file(path, child).unwrap_or(false) {
            let what = "the parent is the child itself, or one of its children".to_owned();
            return Err(Error::parent_unfit(what).in_file(child));
        }
    }
    Ok(())
}
