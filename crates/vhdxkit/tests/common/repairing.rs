//! What the tests of repairs share.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::ops::repair::RepairOptions;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit_testkit::faults::{Fault, repairable};

pub(crate) const MIB: u64 = 1 << 20;

/// Every word that a user can say.
pub(crate) fn everything() -> RepairOptions {
    RepairOptions { discard_log: true, allow_data_loss: true, header: Some(1), seed: Some(3) }
}

pub(crate) fn some_fault(code: &str) -> Fault {
    repairable().into_iter().find(|fault| fault.code == code).expect("it is there")
}

/// A block of the disk, if it can be read.
pub(crate) fn block(file: &Arc<MemoryStorage>, number: u64) -> Option<Vec<u8>> {
    let storage: Arc<dyn Storage> = file.clone();
    let image = OpenOptions::new().open_storage(storage).ok()?;
    let mut bytes = vec![0; MIB as usize];
    image.read_at(number * MIB, &mut bytes).ok()?;
    Some(bytes)
}
