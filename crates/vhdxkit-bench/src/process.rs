//! Other programs: whether they are there, how long they take, how much memory.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nix::sys::resource::{UsageWho, getrusage};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on an interruption ends the work between two runs, so that everything is cleaned up.
pub(crate) fn stop_gently() -> anyhow::Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    Ok(())
}

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether a program can be started.
pub(crate) fn have(program: &str) -> bool {
    first_line(program).is_some()
}

/// What a program says of its version, first line.
pub(crate) fn first_line(program: &str) -> Option<String> {
    let option = if program == "mkfs.xfs" { "-V" } else { "--version" };
    let output = Command::new(program).arg(option).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next().unwrap_or(program).to_owned())
}

/// Seconds that a program takes; it must succeed.
pub(crate) fn timed(program: &str, arguments: &[&str]) -> anyhow::Result<f64> {
    seconds(Command::new(program).args(arguments)).map(|(seconds, _)| seconds)
}

/// [`timed`] with a file as its input.
pub(crate) fn timed_with_input(
    program: &str,
    arguments: &[&str],
    input: &Path,
) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(File::open(input)?)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{program} {arguments:?} failed");
    }
    Ok(seconds)
}

/// Seconds that a command takes, and what it prints.
pub(crate) fn seconds(command: &mut Command) -> anyhow::Result<(f64, String)> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let seconds = begun.elapsed().as_secs_f64();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((seconds, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Runs a program and prints the most memory that it had, in bytes. The system keeps the most of all
/// children together, so each is asked for in a process of its own.
pub(crate) fn print_peak_memory(program: &str, arguments: &[String]) -> anyhow::Result<()> {
    seconds(Command::new(program).args(arguments))?;
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * 1024);
    Ok(())
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the folder's name is text")
}
