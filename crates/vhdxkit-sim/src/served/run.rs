//! Starts a server and its clients, kills the server, judges the image; and again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vhdxkit::CreateOptions;
use vhdxkit_testkit::random::Random;

use super::CLIENTS;
use super::client::{Common, talk};
use super::ledger::Ledger;
use crate::kill::trace::{Phase, phase_of};
use crate::kill::verdict::{Allowed, all_zeros, have_qemu, verify};
use crate::kill::{self, DISK};

/// How much to do, and with what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kills.
    pub runs: u64,
    /// Seed of the delays and of the requests.
    pub seed: u64,
    /// The program that becomes the server when it is given these arguments and the folder: it serves
    /// `disk.vhdx` at `socket`, and tells in `phases` what it is doing.
    pub server: (PathBuf, Vec<String>),
    /// Where to work.
    pub folder: PathBuf,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// The kills, and how the image was judged.
    pub kills: kill::Report,
    /// Writes, zeros and trims that were answered.
    pub answered: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Reads among them that were judged.
    pub reads: u64,
    /// Of everything.
    pub time: Duration,
}

/// Kills and judges. Stops at the first failure, and leaves its evidence in the folder.
///
/// # Errors
/// The work itself cannot be done: no room, no server.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let since = Instant::now();
    let mut random = Random::new(plan.seed);
    let mut report = Report::default();
    report.kills.have_qemu = have_qemu();
    let mut allowed = Allowed::new();
    let image = plan.folder.join("disk.vhdx");
    for round in 0..plan.runs {
        if round % 10 == 0 {
            let _ = std::fs::remove_file(&image);
            let options = CreateOptions::new(DISK).block_size(1 << 20);
            options.create(&image).map_err(|e| e.to_string())?;
            allowed = all_zeros();
        }
        let number = plan.seed * 100_000 + round;
        let aim = Aim::of(round, &mut random);
        let result = one(plan, number, aim, &allowed, &mut report).and_then(|now_allowed| {
            allowed = now_allowed;
            verify(&image, &mut allowed, &mut report.kills)
        });
        if let Err(error) = result {
            report.kills.failures.push(format!("round {round}, seed {}: {error}", plan.seed));
            break;
        }
    }
    report.time = since.elapsed();
    Ok(report)
}

/// One server's life. Returns what the disk may hold after it.
fn one(
    plan: &Plan,
    round: u64,
    aim: Aim,
    before: &Allowed,
    report: &mut Report,
) -> Result<Allowed, String> {
    let (phases, socket) = (plan.folder.join("phases"), plan.folder.join("socket"));
    let _ = std::fs::remove_file(&phases);
    let _ = std::fs::remove_file(&socket);
    let common = Common {
        ledger: Mutex::new(Ledger::new(before)),
        killed: AtomicBool::new(false),
        socket,
        round,
        reads: AtomicU64::new(0),
        flushes: AtomicU64::new(0),
    };
    let mut server = start(plan)?;
    let talked: Result<(), String> = std::thread::scope(|scope| {
        let common = &common;
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || talk(common, number))).collect();
        aim.wait(common, &phases);
        common.killed.store(true, Ordering::Release);
        let _ = server.kill();
        let mut ends = clients.into_iter().map(|client| client.join());
        ends.try_for_each(|end| end.map_err(|_| "a client panicked".to_owned())?)
    });
    require_killed(server)?;
    *report.kills.phases.entry(phase_of(&phases)).or_default() += 1;
    talked?;
    let ledger = common.ledger();
    report.kills.acknowledged += ledger.durable();
    report.answered += ledger.answered();
    report.flushes += common.flushes.load(Ordering::Relaxed);
    report.reads += common.reads.load(Ordering::Relaxed);
    Ok(ledger.allowed())
}

fn start(plan: &Plan) -> Result<Child, String> {
    let (program, arguments) = &plan.server;
    let mut command = Command::new(program);
    command.args(arguments).arg(&plan.folder).stdin(Stdio::null()).stdout(Stdio::null());
    let server = command.stderr(Stdio::piped()).spawn();
    server.map_err(|e| format!("cannot start the server: {e}"))
}

/// When a server is killed.
#[derive(Debug, Clone, Copy)]
enum Aim {
    /// So long after it has begun to open the image.
    Opening(Duration),
    /// So long after the first request.
    Working(Duration),
    /// When it has been open for so long, and then is seen doing this.
    Doing(Duration, Phase),
}

impl Aim {
    /// One in ten dies while it opens, if there is anything to be replayed. What takes a short time or comes
    /// seldom is waited for, or hardly a kill would fall into it.
    fn of(round: u64, random: &mut Random) -> Self {
        let mut micros =
            |least: u64, most: u64| Duration::from_micros(least + random.below(most - least));
        match round % 10 {
            9 => Self::Opening(micros(0, 4_000)),
            2 | 7 => Self::Doing(micros(5_000, 60_000), Phase::Checkpoint),
            // Each server writes headers when it begins to write; then only with checkpoints.
            4 => Self::Doing(Duration::ZERO, Phase::Header),
            5 => Self::Doing(micros(5_000, 60_000), Phase::Log),
            3 => Self::Doing(micros(5_000, 60_000), Phase::Sync),
            _ => Self::Working(micros(5_000, 65_000)),
        }
    }

    fn wait(self, common: &Common, phases: &Path) {
        // A log holds a few hundred flushes, then comes a checkpoint.
        let until = Instant::now() + Duration::from_secs(3);
        let wait_for = |begun: &dyn Fn() -> bool| {
            while Instant::now() < until && !begun() {
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        match self {
            Self::Opening(delay) => {
                wait_for(&|| phases.exists());
                std::thread::sleep(delay);
            }
            Self::Working(delay) => {
                wait_for(&|| common.ledger().now() > 0);
                std::thread::sleep(delay);
            }
            Self::Doing(delay, phase) => {
                wait_for(&|| phases.exists() && phase_of(phases) != Phase::Open);
                std::thread::sleep(delay);
                // No sleep here: it may be over in a few microseconds.
                while Instant::now() < until && phase_of(phases) != phase {
                    std::thread::yield_now();
                }
            }
        }
    }
}

fn require_killed(server: Child) -> Result<(), String> {
    let output = server.wait_with_output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(code) => Err(format!("the server ended by itself with {code}: {said}")),
        None if said.is_empty() => Ok(()),
        None => Err(format!("the server said: {said}")),
    }
}

impl Report {
    /// The figures, as Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let connections = CLIENTS;
        format!(
            "{}\n{} writes, zeros and trims and {} flushes answered on {connections} connections; {} reads among them, all right; {:.0} s\n",
            self.kills.table(),
            self.answered,
            self.flushes,
            self.reads,
            self.time.as_secs_f64()
        )
    }
}
