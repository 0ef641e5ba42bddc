//! `vhdxkit-sim`: crash the write path, print the figures.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use vhdxkit_sim::campaign::{Plan, run};
use vhdxkit_sim::class::Class;
use vhdxkit_sim::device::Device;

/// Crash the write path of vhdxkit in every way, and check what is left.
#[derive(Debug, Parser)]
#[command(before_help = "\
Examples:
  vhdxkit-sim crash                                  a small run of every class
  vhdxkit-sim crash --states 150000                  the long run: over a million distinct images
  vhdxkit-sim crash --device LyingSync               what a disk makes of it whose syncs do nothing
  vhdxkit-sim crash --class Long --only 17 --seed 5  one workload again
  vhdxkit-sim kill --runs 200                        a real process, killed 200 times
  vhdxkit-sim serve-kill --runs 200                  a server, killed 200 times under its clients
  vhdxkit-sim machine --rounds 20                    a whole guest and its disk's server, killed 20 times")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Crash a simulated disk in every way that a sync window allows.
    Crash(Arguments),
    /// Kill a process that writes to a real file.
    #[cfg(unix)]
    Kill {
        /// How often.
        #[arg(long, default_value_t = 20)]
        runs: u64,
        /// Seed of everything that is chosen.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Kill a whole guest, and the server that its disk comes from.
    #[cfg(unix)]
    Machine {
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: u64,
        /// Seed of everything that is chosen.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The command vhdx; the one beside this program without it.
        #[arg(long)]
        vhdx: Option<std::path::PathBuf>,
        /// What scripts/install-guest has fetched; guest/ in cargo's target folder without it.
        #[arg(long)]
        parts: Option<std::path::PathBuf>,
    },
    /// Kill a server under clients that remember what was acknowledged.
    #[cfg(all(target_os = "linux", feature = "serve"))]
    ServeKill {
        /// How often.
        #[arg(long, default_value_t = 20)]
        runs: u64,
        /// Seed of everything that is chosen.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Another server than ours, to see what it makes of it: a program that is given the folder.
        #[arg(long)]
        server: Option<std::path::PathBuf>,
    },
    /// The server that is killed.
    #[cfg(all(target_os = "linux", feature = "serve"))]
    #[command(hide = true)]
    Server {
        /// Where the image lies.
        folder: std::path::PathBuf,
    },
    /// The process that is killed.
    #[cfg(unix)]
    #[command(hide = true)]
    Worker {
        /// Where the image lies.
        folder: std::path::PathBuf,
        /// Makes its writes differ from those of others.
        round: u64,
    },
}

#[derive(Debug, Args)]
struct Arguments {
    /// Distinct durable images wanted of each class.
    #[arg(long, default_value_t = 20_000)]
    states: usize,
    /// Only this class; may be repeated.
    #[arg(long)]
    class: Vec<Class>,
    /// The kind of disk.
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Only this workload of a class.
    #[arg(long)]
    only: Option<usize>,
    /// Seed of everything that is chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; all cores without this.
    #[arg(long)]
    threads: Option<usize>,
    /// Every so many states the recovery is crashed, too.
    #[arg(long, default_value_t = 12)]
    depth_two: usize,
    /// Every so many states QEMU replays one, too; 0 for never.
    #[arg(long, default_value_t = 1000)]
    qemu: usize,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Seconds after which no new workload is begun.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crash(arguments) => return crash(arguments),
        #[cfg(unix)]
        Command::Kill { runs, seed } => kill(runs, seed),
        #[cfg(all(target_os = "linux", feature = "serve"))]
        Command::ServeKill { runs, seed, server } => serve_kill(runs, seed, server),
        #[cfg(all(target_os = "linux", feature = "serve"))]
        Command::Server { folder } => vhdxkit_sim::served::server::work(&folder),
        #[cfg(unix)]
        Command::Machine { rounds, seed, vhdx, parts } => machine(rounds, seed, vhdx, parts),
        #[cfg(unix)]
        Command::Worker { folder, round } => vhdxkit_sim::kill::worker::work(&folder, round),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhdxkit-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
fn kill(runs: u64, seed: u64) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let worker = (program, vec!["worker".to_owned()]);
    let plan = vhdxkit_sim::kill::Plan { runs, seed, worker, folder: folder.path().to_path_buf() };
    let report = vhdxkit_sim::kill::run(&plan)?;
    print!("{}", report.table());
    conclude(&report, runs, folder)
}

/// Whether the promise was kept, and put to the test.
#[cfg(unix)]
fn conclude(
    report: &vhdxkit_sim::kill::Report,
    runs: u64,
    folder: tempfile::TempDir,
) -> Result<(), String> {
    if let Some(failure) = report.failures.first() {
        let kept = folder.keep();
        return Err(format!("{failure}; the evidence is in {}", kept.display()));
    }
    if runs >= 20 && report.share_inside() < 50 {
        return Err("fewer than half of the kills were inside a flush".to_owned());
    }
    Ok(())
}

#[cfg(all(target_os = "linux", feature = "serve"))]
fn serve_kill(runs: u64, seed: u64, server: Option<std::path::PathBuf>) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let ours = (std::env::current_exe().map_err(|e| e.to_string())?, vec!["server".to_owned()]);
    let server = server.map_or(ours, |program| (program, Vec::new()));
    let plan =
        vhdxkit_sim::served::Plan { runs, seed, server, folder: folder.path().to_path_buf() };
    let report = vhdxkit_sim::served::run(&plan)?;
    print!("{}", report.table());
    conclude(&report.kills, runs, folder)
}

#[cfg(unix)]
fn machine(
    rounds: u64,
    seed: u64,
    vhdx: Option<std::path::PathBuf>,
    parts: Option<std::path::PathBuf>,
) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let beside = |path: &str| program.parent().unwrap_or(&program).join(path);
    let plan = vhdxkit_sim::machine::Plan {
        rounds,
        seed,
        vhdx: vhdx.unwrap_or_else(|| beside("vhdx")),
        parts: parts.unwrap_or_else(|| beside("../guest")),
        folder: folder.path().to_path_buf(),
    };
    if let Some(what) = plan.missing() {
        return Err(format!("MISSING: {what}"));
    }
    let report = vhdxkit_sim::machine::run(&plan)?;
    print!("{}", report.table());
    match report.failure {
        None => Ok(()),
        Some(failure) => Err(format!("{failure}; the evidence is in {}", folder.keep().display())),
    }
}

fn crash(arguments: Arguments) -> ExitCode {
    let mut classes = arguments.class;
    if classes.is_empty() {
        classes = Class::ALL.to_vec();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // A panic of the code under test is a finding, and is told with its workload.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    let have_qemu = std::process::Command::new("qemu-img").arg("--version").output().is_ok();
    if !have_qemu {
        eprintln!("qemu-img is not installed: nothing is replayed by QEMU");
    }
    let outcome = run(&Plan {
        qemu: if have_qemu { arguments.qemu } else { 0 },
        states: arguments.states,
        classes,
        device: arguments.device,
        seed: arguments.seed,
        threads: arguments.threads.unwrap_or(cores),
        depth_two: arguments.depth_two.max(1),
        fail_fast: !arguments.keep_going,
        limit: Duration::from_secs(arguments.seconds),
        only: arguments.only,
    });
    print!("{}", outcome.table());
    let rate = outcome.distinct() as f64 / outcome.time.as_secs_f64().max(0.001);
    println!(
        "\n{:.0} s, {rate:.0} distinct images a second, seed {}",
        outcome.time.as_secs_f64(),
        arguments.seed
    );
    let mut failed = false;
    for failure in outcome.failures() {
        failed = true;
        println!("\nFAILED: {failure}");
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
