//! What must hold of every crash state.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Severity};
use vhdxkit::ops::check::check;
use vhdxkit::storage::{FileStorage, Storage};

use crate::complaint::Complaint;
use crate::disk::{SimDisk, Window};
use crate::medium::Medium;
use crate::model::{Expectation, judge};
use crate::start::Below;

/// The seed of those who recover.
const RECOVERY: u64 = 0x7265_636F;

/// Promises 1 to 3 and 6: the state opens, read-only without a write and writable with a replay; both
/// show the guest the same allowed contents; the recovered file is sound; a second recovery changes
/// nothing.
///
/// # Errors
/// What does not hold.
pub fn check_state(state: &Medium, below: &Below, expected: &Expectation) -> Result<(), Complaint> {
    let disk = Arc::new(SimDisk::new(state.clone()));
    let image = below.open(&OpenOptions::new(), disk.clone());
    let image = image.map_err(Complaint::told("cannot be opened for reading"))?;
    let read_only = judge(&image, expected).map_err(|e| e.during("read-only"))?;
    drop(image);
    if disk.view().hash() != state.hash() {
        return Err(Complaint::Wrong("opening for reading has changed the file".to_owned()));
    }
    let writable = open(&disk, below).map_err(Complaint::told("cannot be opened for writing"))?;
    let replayed = judge(&writable, expected).map_err(|e| e.during("replayed"))?;
    drop(writable);
    if replayed != read_only {
        let text = format!("read-only shows {read_only:?}, replayed {replayed:?}");
        return Err(Complaint::Wrong(text));
    }
    require_sound(&disk)?;
    let once = disk.view().hash();
    drop(open(&disk, below).map_err(Complaint::told("cannot be opened again"))?);
    if disk.view().hash() != once {
        return Err(Complaint::Wrong("a second recovery changes the file".to_owned()));
    }
    Ok(())
}

fn open(disk: &Arc<SimDisk>, below: &Below) -> vhdxkit::Result<vhdxkit::Image> {
    let options = OpenOptions::new().write(true).reproducible(RECOVERY);
    below.open(&options, disk.clone())
}

/// Nothing worse than space to reclaim, and one header copy that a crash has torn or left behind.
///
/// # Errors
/// What else a check finds.
pub fn require_sound(disk: &Arc<SimDisk>) -> Result<(), Complaint> {
    let storage: Arc<dyn Storage> = disk.clone();
    let findings = check(storage, &mut ()).map_err(Complaint::told("cannot be checked"))?;
    let bad = findings.list().iter().find(|finding| {
        let header_copy = matches!(
            finding,
            Defect::HeaderCopyInvalid { .. }
                | Defect::HeaderReservedDamaged { .. }
                | Defect::HeaderPairDiffers { .. }
        );
        finding.severity() > Severity::Info && !header_copy
    });
    match bad {
        Some(defect) => Err(Complaint::Told(format!("check finds {}: {defect}", defect.code()))),
        None => Ok(()),
    }
}

/// Recovers a state and uses it, recorded: the windows in which recovery itself can crash.
///
/// # Errors
/// The recovery fails.
pub fn record_recovery(
    state: &Medium,
    below: &Below,
    expected: &Arc<Expectation>,
) -> Result<Vec<Window>, String> {
    let disk = Arc::new(SimDisk::new(state.clone()));
    disk.record(0, expected);
    drop(open(&disk, below).map_err(|e| format!("cannot be opened for writing: {e}"))?);
    Ok(disk.windows())
}

/// Whether behind the fields of either header copy lies what a torn write has left. The fields are proven by their
/// checksum and count for us; QEMU counts the whole 4 KiB, and sees no header.
fn both_headers_torn(path: &std::path::Path) -> bool {
    let torn = |finding: &&Defect| matches!(finding, Defect::HeaderReservedDamaged { .. });
    vhdxkit::Image::open(path)
        .is_ok_and(|image| image.findings().list().iter().filter(torn).count() == 2)
}

/// Promise 6: QEMU replays the state, too, and what it leaves shows the guest the same.
///
/// # Errors
/// What does not hold, or QEMU cannot be asked.
pub fn ask_qemu(state: &Medium, expected: &Expectation) -> Result<(), String> {
    let told = |e: std::io::Error| e.to_string();
    // QEMU syncs after each 4 KiB that it replays: in memory, where there is such a folder.
    let in_memory = std::path::Path::new("/dev/shm");
    let file = match in_memory.is_dir() {
        true => tempfile::NamedTempFile::new_in(in_memory),
        false => tempfile::NamedTempFile::new(),
    };
    let file = file.map_err(told)?;
    let storage = FileStorage::from_file(file.reopen().map_err(told)?);
    storage.set_len(state.len()).map_err(told)?;
    let mut at = 0;
    while let Some(run) = state.next_data(at) {
        let mut page = vec![0; (run.end - run.start) as usize];
        state.read(run.start, &mut page);
        storage.write_at(run.start, &page).map_err(told)?;
        at = run.end;
    }
    let path = file.path().to_string_lossy().into_owned();
    let output = std::process::Command::new("qemu-img")
        .args(["check", "-q", "-T", "unsafe", "-r", "all", "-f", "vhdx", &path])
        .output()
        .map_err(told)?;
    if !output.status.success() && both_headers_torn(file.path()) {
        return Ok(());
    }
    if !output.status.success() {
        return Err(format!("QEMU refuses it: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let image = vhdxkit::Image::open(file.path()).map_err(|e| format!("after QEMU: {e}"))?;
    // Where the header that named the log was torn QEMU sees none, and the file as it was before.
    let torn = image.findings().list().iter().any(|finding| {
        matches!(finding, Defect::HeaderReservedDamaged { .. } | Defect::LostLogFound { .. })
    });
    if image.headers().is_dirty() && !torn {
        return Err("QEMU has not replayed it".to_owned());
    }
    judge(&image, expected).map(|_| ()).map_err(|e| format!("after QEMU's replay: {e}"))
}
