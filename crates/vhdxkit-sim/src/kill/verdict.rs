//! What must hold of an image whose writer was killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use vhdxkit::Image;
use vhdxkit::log::{LogState, replay_in_place};
use vhdxkit::ops::check::check_file;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::storage::{FileStorage, OpenMode};

use super::trace::Phase;
use super::{BLOCK, DISK, UNIT, UNITS};
use crate::model::{Expectation, SECTOR, judge};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Kills by what the worker was doing.
    pub phases: BTreeMap<Phase, u64>,
    /// Files that were left dirty.
    pub dirty: u64,
    /// Files that QEMU repaired, and then showed the same disk as we.
    pub qemu_agreed: u64,
    /// Whether QEMU is there to be asked.
    pub have_qemu: bool,
    /// Writes that were answered by a flush, and found.
    pub acknowledged: u64,
    /// What did not hold.
    pub failures: Vec<String>,
}

/// Whether QEMU can be asked.
pub(crate) fn have_qemu() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

/// What every sector may hold, kept over the rounds on one file.
pub(crate) type Allowed = BTreeMap<u64, Vec<u64>>;

/// What a new image holds.
pub(crate) fn all_zeros() -> Allowed {
    let units = (0..DISK / BLOCK).flat_map(|block| UNITS.map(|unit| block * BLOCK + unit * UNIT));
    let sectors = units.flat_map(|unit| (unit..unit + UNIT).step_by(SECTOR as usize));
    sectors.map(|sector| (sector, vec![0])).collect()
}

/// Promises 1, 2, 3 and 6: the image opens and shows what is allowed; a check finds nothing; our replay and
/// QEMU's show the same disk. What it shows is all that is allowed from now on.
///
/// # Errors
/// What does not hold.
pub(crate) fn verify(
    image: &Path,
    allowed: &mut Allowed,
    report: &mut Report,
) -> Result<(), String> {
    let expected = Expectation {
        sizes: vec![DISK],
        cells: allowed.iter().map(|(at, versions)| (*at, versions.clone())).collect(),
        properties: Vec::new(),
    };
    let opened = Image::open(image).map_err(|e| e.to_string())?;
    let seen = judge(&opened, &expected).map_err(|e| e.to_string())?;
    let dirty = opened.log().state() == LogState::Dirty;
    drop(opened);
    let findings = check_file(image, false, &mut ()).map_err(|e| e.to_string())?;
    let headers = |code: &str| code == "V3" || code == "V4";
    let bad = findings
        .list()
        .iter()
        .find(|f| f.severity() > vhdxkit::defect::Severity::Info && !headers(f.code()));
    if let Some(defect) = bad {
        return Err(format!("check finds {}: {defect}", defect.code()));
    }
    let copy = image.with_extension("copy.vhdx");
    if dirty {
        report.dirty += 1;
        std::fs::copy(image, &copy).map_err(|e| e.to_string())?;
        let file = FileStorage::open(&copy, OpenMode::ReadWrite).map_err(|e| e.to_string())?;
        replay_in_place(&file).map_err(|e| format!("replay: {e}"))?;
        drop(file);
        require_same(image, &copy, DiskFormat::Vhdx).map_err(|e| format!("our replay: {e}"))?;
        if report.have_qemu {
            ask_qemu(image, &copy)?;
            report.qemu_agreed += 1;
        }
    }
    // What it shows now is what it will show, as long as the machine lives.
    for ((_, versions), version) in allowed.iter_mut().zip(seen.into_iter().skip(1)) {
        *versions = vec![version];
    }
    Ok(())
}

/// QEMU replays a copy, and reads it: it must find the same disk.
fn ask_qemu(image: &Path, copy: &Path) -> Result<(), String> {
    std::fs::copy(image, copy).map_err(|e| e.to_string())?;
    let raw = image.with_extension("raw");
    let qemu = |arguments: &[&str]| {
        let output =
            Command::new("qemu-img").args(arguments).output().map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr))),
        }
    };
    let (from, to) = (copy.to_string_lossy(), raw.to_string_lossy());
    qemu(&["check", "-q", "-r", "all", "-f", "vhdx", &from])?;
    qemu(&["convert", "-f", "vhdx", "-O", "raw", &from, &to])?;
    require_same(image, &raw, DiskFormat::Raw).map_err(|e| format!("QEMU's replay: {e}"))
}

fn require_same(image: &Path, other: &Path, format: DiskFormat) -> Result<(), String> {
    let open = |path, format| Disk::open(path, Some(format), false).map_err(|e| e.to_string());
    let (ours, other) = (open(image, DiskFormat::Vhdx)?, open(other, format)?);
    let result = compare(&ours, &other, &mut ()).map_err(|e| e.to_string())?;
    if result.identical() { Ok(()) } else { Err(format!("shows another disk: {result:?}")) }
}

impl Report {
    /// Kills within a flush, a checkpoint or a header update, in percent.
    #[must_use]
    pub fn share_inside(&self) -> u64 {
        let inside = [Phase::Sync, Phase::Log, Phase::Checkpoint, Phase::Header];
        let count = |phase: &Phase| self.phases.get(phase).copied().unwrap_or(0);
        let all: u64 = self.phases.values().sum();
        inside.iter().map(count).sum::<u64>() * 100 / all.max(1)
    }

    /// The figures, as Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::from("| killed while | times |\n|---|---:|\n");
        for phase in Phase::ALL {
            let count = self.phases.get(&phase).copied().unwrap_or(0);
            let _ = writeln!(text, "| {phase:?} | {count} |");
        }
        let _ = writeln!(text, "| **all** | {} |", self.phases.values().sum::<u64>());
        let _ = writeln!(
            text,
            "\n{} % inside a flush, checkpoint or header update; {} files dirty; {} changes answered by a flush, all there; QEMU {}; {} failures",
            self.share_inside(),
            self.dirty,
            self.acknowledged,
            match self.have_qemu {
                true => format!("replayed and agreed {} times", self.qemu_agreed),
                false => "is not installed".to_owned(),
            },
            self.failures.len()
        );
        text
    }
}
