//! The parent: starts a worker, kills it, judges the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vhdxkit::log::{LogState, replay_in_place};
use vhdxkit::ops::check::check_file;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::{CreateOptions, Image};

use super::journal::{Note, read};
use super::trace::{Phase, phase_of};
use super::{BLOCK, DISK, THREADS, UNIT, UNITS};
use crate::model::{Expectation, SECTOR, judge};
use vhdxkit_testkit::random::Random;

/// How much to do, and with what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kills.
    pub runs: u64,
    /// Seed of the delays and of the writes.
    pub seed: u64,
    /// The program that becomes the worker when it is given these arguments, the folder and a number.
    pub worker: (PathBuf, Vec<String>),
    /// Where to work; emptied and used.
    pub folder: PathBuf,
}

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

/// What every sector may hold, kept over the rounds on one file.
type Allowed = BTreeMap<u64, Vec<u64>>;

/// Kills and judges. Stops at the first failure, and leaves its evidence in the folder.
///
/// # Errors
/// The work itself cannot be done: no room, no worker.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let mut random = Random::new(plan.seed);
    let have_qemu = Command::new("qemu-img").arg("--version").output().is_ok();
    let mut report = Report { have_qemu, ..Report::default() };
    let mut allowed = Allowed::new();
    let image = plan.folder.join("disk.vhdx");
    for round in 0..plan.runs {
        if round % 10 == 0 {
            let _ = std::fs::remove_file(&image);
            let options = CreateOptions::new(DISK).block_size(1 << 20);
            options.create(&image).map_err(|e| e.to_string())?;
            allowed = all_zeros();
        }
        for thread in 0..THREADS {
            let _ = std::fs::remove_file(plan.folder.join(format!("journal{thread}")));
        }
        // One in ten dies while it opens, if there is anything to be replayed.
        let early = round % 10 == 9;
        let delay = if early { random.below(9_000) } else { 8_000 + random.below(60_000) };
        kill_after(plan, round, Duration::from_micros(delay), early)?;
        *report.phases.entry(phase_of(&plan.folder.join("phases"))).or_default() += 1;
        for thread in 0..THREADS {
            let notes = read(&plan.folder.join(format!("journal{thread}")));
            report.acknowledged += follow(&mut allowed, &notes);
        }
        if let Err(error) = verify(&image, &mut allowed, &mut report) {
            report.failures.push(format!("round {round}, seed {}: {error}", plan.seed));
            break;
        }
    }
    Ok(report)
}

fn kill_after(plan: &Plan, round: u64, delay: Duration, early: bool) -> Result<(), String> {
    let _ = std::fs::remove_file(plan.folder.join("phases"));
    let (program, arguments) = &plan.worker;
    let mut worker = Command::new(program)
        .args(arguments)
        .arg(&plan.folder)
        .arg((plan.seed * 100_000 + round).to_string())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start the worker: {e}"))?;
    // The clock starts when it has begun to open the image, or has opened it.
    let journal = plan.folder.join("journal0");
    let begun = if early { plan.folder.join("phases") } else { journal };
    for _ in 0..2000 {
        if begun.exists() {
            break;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(delay);
    worker.kill().map_err(|e| e.to_string())?;
    let output = worker.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.code().is_some() {
        return Err(format!(
            "the worker ended by itself: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(())
}

fn all_zeros() -> Allowed {
    let units = (0..DISK / BLOCK).flat_map(|block| UNITS.map(|unit| block * BLOCK + unit * UNIT));
    let sectors = units.flat_map(|unit| (unit..unit + UNIT).step_by(SECTOR as usize));
    sectors.map(|sector| (sector, vec![0])).collect()
}

/// Brings what is allowed up to date with one thread's journal; returns how many changes a flush has
/// answered.
fn follow(allowed: &mut Allowed, notes: &[Note]) -> u64 {
    let (mut open, mut answered) = (Vec::new(), 0);
    for note in notes {
        let (range, version) = match note {
            Note::Put { offset, version } => (*offset..offset + UNIT, *version),
            Note::Drop { block } => (block * BLOCK..(block + 1) * BLOCK, 0),
            Note::Flushed => {
                answered += open.len() as u64;
                for range in open.drain(..) {
                    for (_, versions) in allowed.range_mut::<u64, std::ops::Range<u64>>(range) {
                        versions.drain(..versions.len() - 1);
                    }
                }
                continue;
            }
        };
        for (_, versions) in allowed.range_mut(range.clone()) {
            versions.push(version);
        }
        open.push(range);
    }
    answered
}

fn verify(image: &Path, allowed: &mut Allowed, report: &mut Report) -> Result<(), String> {
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
