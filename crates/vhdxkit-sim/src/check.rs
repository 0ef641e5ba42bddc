//! What must hold of every crash state.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Severity};
use vhdxkit::ops::check::check;
use vhdxkit::storage::Storage;

use crate::disk::{SimDisk, Window};
use crate::medium::Medium;
use crate::model::{Expectation, judge};

/// The seed of those who recover.
const RECOVERY: u64 = 0x7265_636F;

/// Promises 1 to 3 and 6: the state opens, read-only without a write and writable with a replay; both
/// show the guest the same allowed contents; the recovered file is sound; a second recovery changes
/// nothing.
///
/// # Errors
/// What does not hold.
pub fn check_state(state: &Medium, expected: &Expectation) -> Result<(), String> {
    let disk = Arc::new(SimDisk::new(state.clone()));
    let image = OpenOptions::new().open_storage(disk.clone());
    let image = image.map_err(|e| format!("cannot be opened for reading: {e}"))?;
    let read_only = judge(&image, expected).map_err(|e| format!("read-only: {e}"))?;
    drop(image);
    if disk.view().hash() != state.hash() {
        return Err("opening for reading has changed the file".to_owned());
    }
    let replayed = judge(&open(&disk)?, expected).map_err(|e| format!("replayed: {e}"))?;
    if replayed != read_only {
        return Err(format!("read-only shows {read_only:?}, replayed {replayed:?}"));
    }
    require_sound(&disk)?;
    let once = disk.view().hash();
    drop(open(&disk)?);
    if disk.view().hash() != once {
        return Err("a second recovery changes the file".to_owned());
    }
    Ok(())
}

fn open(disk: &Arc<SimDisk>) -> Result<vhdxkit::Image, String> {
    let options = OpenOptions::new().write(true).reproducible(RECOVERY);
    options.open_storage(disk.clone()).map_err(|e| format!("cannot be opened for writing: {e}"))
}

/// Nothing worse than space to reclaim, and one header copy that a crash has torn or left behind.
fn require_sound(disk: &Arc<SimDisk>) -> Result<(), String> {
    let storage: Arc<dyn Storage> = disk.clone();
    let findings = check(storage, &mut ()).map_err(|e| format!("cannot be checked: {e}"))?;
    let bad = findings.list().iter().find(|finding| {
        let header_copy =
            matches!(finding, Defect::HeaderCopyInvalid { .. } | Defect::HeaderPairDiffers { .. });
        finding.severity() > Severity::Info && !header_copy
    });
    match bad {
        Some(defect) => Err(format!("check finds {}: {defect}", defect.code())),
        None => Ok(()),
    }
}

/// Recovers a state and uses it, recorded: the windows in which recovery itself can crash.
///
/// # Errors
/// The recovery fails.
pub fn record_recovery(state: &Medium, expected: &Arc<Expectation>) -> Result<Vec<Window>, String> {
    let disk = Arc::new(SimDisk::new(state.clone()));
    disk.record(0, expected);
    drop(open(&disk)?);
    Ok(disk.windows())
}
