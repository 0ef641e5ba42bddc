//! Row 4: how often the medium is synced. Counts are exact, whatever else the machine does, so they are
//! what decides whether a change is good; times only inform.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use vhdxkit::CreateOptions;

use crate::harness::{Case, Side, Unit, Want};
use crate::process::{seconds, text};
use crate::setup::{Setup, remove};
use crate::table::Table;
use crate::worker::{DISK, Medium, Syncs, Work};
use crate::writes::{qemu_image, qemu_script, worker};

/// How often there is a flush, and how many syncs 100 allocating writes may take at most between open
/// and close.
const ROWS: [(u64, f64, &str); 3] =
    [(0, 2.0, "no flush"), (32, 6.0, "a flush after 32"), (1, 106.0, "a flush after each")];

/// Enough for the log to be filled several times.
const MANY: u64 = 1000;

/// Writes to a new image and counts.
fn count(folder: &Path, writes: u64, every: u64) -> anyhow::Result<Syncs> {
    let path = folder.join("counted");
    remove(&path)?;
    CreateOptions::new(DISK).block_size(1 << 20).create(&path)?;
    let work = Work { medium: Medium::Image, path: path.clone(), writes, every };
    let syncs = work.count_syncs()?;
    remove(&path)?;
    Ok(syncs)
}

/// Counts, and fails where there are more syncs than there may be.
pub(crate) fn gate(folder: &Path) -> anyhow::Result<()> {
    for (every, most, name) in ROWS {
        // The first hundred pay for the session's start, many of them for checkpoints.
        for writes in [100, MANY] {
            let syncs = count(folder, writes, every)?;
            let found = syncs.between as f64 * 100.0 / writes as f64;
            println!("{writes} writes, {name}: {found:.1} syncs per 100, {most} are allowed");
            ensure!(found <= most, "{name}: {found:.1} syncs for 100 of {writes} writes");
        }
    }
    Ok(())
}

/// Row 4.
pub(crate) fn row(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let folder = setup.file("");
    for (every, most, name) in ROWS {
        let work = format!("syncs for 100 allocating writes, {name}");
        let ours = || count(&folder, 100, every).map(|syncs| syncs.between as f64);
        let many = || count(&folder, MANY, every).map(|syncs| syncs.between as f64 / 10.0);
        let case = Case::new(
            4,
            work,
            Unit::Count,
            Side::new("vhdxkit, between open and close", ours).want(Want::Most(most)),
        );
        let whole = || {
            let path = setup.file("counted.image");
            CreateOptions::new(DISK).block_size(1 << 20).create(&path)?;
            let traced = traced(setup, &mut worker(Medium::Image, &path, 100, every)?)?;
            let counted = count(&folder, 100, every)?.all;
            ensure!(traced == counted, "strace sees {traced} syncs, the storage {counted}");
            remove(&path)?;
            Ok(traced as f64)
        };
        let raw = || {
            let path = setup.file("counted.raw");
            File::create(&path)?;
            let traced = traced(setup, &mut worker(Medium::File, &path, 100, every)?)?;
            remove(&path)?;
            Ok(traced as f64)
        };
        let outcome = case
            .against(
                Side::new(format!("vhdxkit, the same, per 100 of {MANY}"), many)
                    .want(Want::Most(most)),
            )
            .against(Side::new("vhdxkit, whole process (strace)", whole).needs("strace"))
            .against(Side::new("raw file, whole process (strace)", raw).needs("strace"))
            .against(
                Side::new("QEMU VHDX, whole process (strace)", || qemu(setup, every))
                    .needs("strace")
                    .needs("qemu-io"),
            )
            .run(1)?;
        table.add(outcome);
    }
    Ok(())
}

fn qemu(setup: &Setup, every: u64) -> anyhow::Result<f64> {
    let (path, script) = (qemu_image(setup)?, qemu_script(setup, 100, every)?);
    // A shell gives it the script as input.
    let mut command = Command::new("sh");
    command.args(["-c", "exec qemu-io -f vhdx \"$1\" < \"$2\"", "sh", text(&path), text(&script)]);
    let counted = traced(setup, &mut command)?;
    remove(&path)?;
    Ok(counted as f64)
}

/// Runs a command, and counts the syncs of it and its threads.
fn traced(setup: &Setup, command: &mut Command) -> anyhow::Result<u64> {
    let report = setup.file("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=fdatasync,fsync", "-o"]).arg(&report);
    strace.arg(command.get_program()).args(command.get_args());
    seconds(&mut strace)?;
    let calls = std::fs::read_to_string(&report).context("strace has written nothing")?;
    // A call that another thread interrupted has a second line, without its opening bracket.
    Ok(calls.lines().filter(|line| line.contains("sync(")).count() as u64)
}

#[cfg(test)]
mod tests {
    /// A flush is one sync, and writing without one next to none: growth and checkpoints included.
    #[test]
    fn syncs_are_as_few_as_promised() {
        let folder = tempfile::tempdir().unwrap();
        super::gate(folder.path()).unwrap();
    }
}
