//! Crashing a merge: two files, each with syncs of its own, so that a crash leaves any of the changes of
//! either.
//!
//! Whatever it leaves, the child over its parent shows what it showed before, and merging again completes
//! what was begun: then the parent alone shows it.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::ops::merge::merge_storages;

use crate::check::require_sound;
use crate::complaint::Complaint;
use crate::disk::{SimDisk, Window};
use crate::guest;
use crate::medium::Medium;
use crate::model::{Expectation, judge};
use crate::start::{Below, Scene};
use crate::workload::Workload;

/// The seed of the merge that is crashed, and of the one that completes it.
const SEEDS: [u64; 2] = [0x6D65_7267, 0x6167_6169];

/// Carries a workload out on a child, and gives what a crash of its merge could interrupt.
///
/// # Errors
/// An operation fails, or the merge.
pub fn run(workload: &Workload, scene: &Scene) -> Result<Vec<Window>, String> {
    let (child, expected) = guest::finish(workload, scene)?;
    let parent = SimDisk::new(scene.below.medium());
    let child = parent.beside(child);
    parent.record(workload.operations.len(), &expected);
    let (parent, child) = (Arc::new(parent), Arc::new(child));
    let merged = merge_storages(child, parent.clone(), None, Some(SEEDS[0]));
    merged.map_err(|e| format!("cannot be merged: {e}"))?;
    Ok(parent.windows())
}

/// What must hold of every state that a crashed merge leaves.
///
/// # Errors
/// What does not hold.
pub fn check(parent: &Medium, child: &Medium, expected: &Expectation) -> Result<(), Complaint> {
    let [parent, child] = [parent, child].map(|medium| Arc::new(SimDisk::new(medium.clone())));
    let over = || Below::of(parent.clone()).open(&OpenOptions::new(), child.clone());
    let image = over().map_err(Complaint::told("the child cannot be opened"))?;
    judge(&image, expected).map_err(|e| e.during("the child"))?;
    drop(image);
    let again = merge_storages(child.clone(), parent.clone(), None, Some(SEEDS[1]));
    again.map_err(Complaint::told("cannot be merged again"))?;
    let image = over().map_err(Complaint::told("the child, merged again"))?;
    judge(&image, expected).map_err(|e| e.during("the child, merged again"))?;
    let alone = OpenOptions::new().open_storage(parent.clone());
    let alone = alone.map_err(Complaint::told("the parent cannot be opened"))?;
    let mut alone_expected = expected.clone();
    alone_expected.properties.iter_mut().for_each(|says| says.relative_path = None);
    judge(&alone, &alone_expected).map_err(|e| e.during("the parent, merged again"))?;
    require_sound(&parent).and_then(|()| require_sound(&child))
}
