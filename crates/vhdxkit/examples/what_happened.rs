//! Tells from the log what the last writer of an image was doing when it stopped.
//!
//! `cargo run --example what_happened -- disk.vhdx`

use std::sync::Arc;

use vhdxkit::log::{EntryStatus, Log};
use vhdxkit::ops::inspect::inspect_storage;
use vhdxkit::ops::timeline::for_each_entry;
use vhdxkit::storage::{FileStorage, OpenMode, Storage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or("testdata/crashed.vhdx".into());
    let mode = OpenMode::ReadOnly { force_share: false };
    let file: Arc<dyn Storage> = Arc::new(FileStorage::open(path.as_ref(), mode)?);
    let log = Log::read(&*file)?;
    let image = inspect_storage(Arc::clone(&file))?;
    for_each_entry(&*file, &log, Some(&image), |told| {
        if told.entry.status == EntryStatus::Active {
            println!("entry {}", told.entry.info.sequence);
            for change in told.changes.iter().flat_map(|change| &change.bat_changes) {
                println!("  {:?}: {:?} -> {:?}", change.slot, change.before, change.after);
            }
        }
        Ok(())
    })?;
    Ok(())
}
