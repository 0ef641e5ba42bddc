//! The parent: starts a worker, kills it, judges the file.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use vhdxkit::CreateOptions;

use super::journal::{Note, read};
use super::trace::phase_of;
use super::verdict::{Allowed, Report, all_zeros, have_qemu, verify};
use super::{BLOCK, DISK, THREADS, UNIT};
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

/// Kills and judges. Stops at the first failure, and leaves its evidence in the folder.
///
/// # Errors
/// The work itself cannot be done: no room, no worker.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let mut random = Random::new(plan.seed);
    let mut report = Report { have_qemu: have_qemu(), ..Report::default() };
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
