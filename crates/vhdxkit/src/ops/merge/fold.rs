//! The merge itself: the link, and what goes from the child into the target.

use std::sync::Arc;

use crate::chain::judge;
use crate::format::metadata::Item;
use crate::format::{Guid, GuidSource};
use crate::image::{ExtentState, Shrink, open_layer_for_writing};
use crate::ops::buffer::Buffer;
use crate::ops::progress::{Progress, advance};
use crate::ops::zeros::length;
use crate::storage::Storage;
use crate::{Error, Image, Result};

use super::MergeReport;

/// Data is copied in pieces that end at multiples of this.
const STEP: u64 = 256 << 10;

/// [`merge`](super::merge) for a child and its parent on any media: steps 1 to 3 of [the order](super). The child stays,
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
    let (identity, child) = link(child, &target, Identity::New)?;
    target.set_data_write_guid(identity)?;
    fold_in(&child, &mut target, &mut MergeReport::default(), &mut ())?;
    target.close()?;
    child.close()
}

/// Whether a target gets a new identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    New,
    /// That of a merge that was stopped.
    Kept,
}

/// Step 1: the child of the target is told the identity that the target is going to have.
pub(super) fn link(mut child: Image, target: &Image, identity: Identity) -> Result<(Guid, Image)> {
    let now = target.headers().current().data_write_guid;
    let locator = child.parent_locator().cloned();
    let locator = locator.ok_or_else(|| Error::invalid("the child has no parent locator"))?;
    if identity == Identity::Kept && child.wanted_parents().contains(&now) {
        return Ok((now, child));
    }
    let identity = child.new_guid()?;
    child.set_parent_locator(&locator.with_linkage(now, Some(identity)))?;
    Ok((identity, child))
}

/// Step 2: what `source` holds above the target goes into it, and is made durable.
pub(super) fn fold_in(
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
