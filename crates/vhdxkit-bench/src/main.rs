//! `vhdxkit-bench`: times vhdxkit against QEMU and the raw file, side by side, and prints a table.
//!
//! Every figure is a ratio of two sides that took turns in one run: on a shared machine nothing else
//! means anything. Counts of system calls are exact, and are what the tests hold on to.

mod copies;
mod harness;
mod replays;
mod writes;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use harness::Table;

/// Time vhdxkit against QEMU and the raw file, side by side.
#[derive(Debug, Parser)]
#[command(before_help = "\
Examples:
  cargo build --release && target/release/vhdxkit-bench       the whole table, into docs/performance.md
  target/release/vhdxkit-bench --rows 1,2,4 --quick           some rows, smaller")]
struct Arguments {
    #[command(subcommand)]
    worker: Option<Worker>,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Smaller work, fewer rounds: to see whether it runs.
    #[arg(long)]
    quick: bool,
    /// Where to work; it should lie on a real disk. The folder of this program without it.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Write the table to this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Worker {
    /// Writes a hundred blocks, for its system calls to be counted.
    #[command(hide = true)]
    Hundred {
        /// The image to make.
        image: PathBuf,
        /// Flush after so many; 0 for never.
        every: u64,
    },
}

/// What every row is told.
pub(crate) struct Setup {
    folder: tempfile::TempDir,
    /// The command to be timed.
    pub(crate) vhdx: PathBuf,
    rows: Vec<String>,
    quick: bool,
    pub(crate) rounds: usize,
}

impl Setup {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }

    pub(crate) fn count(&self, usual: u64) -> u64 {
        if self.quick { usual / 4 } else { usual }
    }

    /// The size of a large copy.
    pub(crate) fn mebibytes(&self) -> u64 {
        if self.quick { 128 } else { 1024 }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhdxkit-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Worker::Hundred { image, every }) = arguments.worker {
        writes::hundred(&image, Some(every).filter(|every| *every > 0))?;
        return Ok(());
    }
    if cfg!(debug_assertions) {
        bail!("times of an unoptimised build mean nothing; build with --release");
    }
    let program = std::env::current_exe()?;
    let beside = program.parent().context("this program lies nowhere")?;
    let vhdx = beside.join("vhdx");
    if !vhdx.exists() {
        bail!("the command is not there: cargo build --release makes it");
    }
    let folder = arguments.folder.unwrap_or_else(|| beside.to_path_buf());
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(folder)?;
    let rounds = if arguments.quick { 3 } else { 5 };
    let setup = Setup { folder, vhdx, rows: arguments.rows, quick: arguments.quick, rounds };
    let mut table = Table::default();
    measure(&setup, &mut table)?;
    let text = format!("{}\n{}", versions(), table.markdown());
    println!("{text}");
    println!("{} targets missed", table.missed);
    if let Some(path) = &arguments.output {
        write_into(path, &text)?;
    }
    Ok(())
}

fn measure(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    if setup.wants("14") {
        let memory = replays::memory_of_info(setup)?;
        table.bound("14", "memory of `info`, disk of 64 TiB", memory, 16.0, " MiB");
        replays::huge(setup, table)?;
    }
    writes::rows(setup, table)?;
    if setup.wants("4") {
        writes::syncs(setup, table)?;
    }
    copies::rows(setup, table)?;
    if setup.wants("12") {
        copies::reflink(setup, table)?;
    }
    if setup.wants("13") {
        replays::rows(setup, table)?;
    }
    Ok(())
}

fn versions() -> String {
    let first = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    };
    let told =
        |program: &str| first(program).unwrap_or_else(|| format!("{program}: not installed"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let date = told_date();
    format!(
        "{date}, {cores} cores, vhdxkit {}, {}, {}\n",
        env!("CARGO_PKG_VERSION"),
        told("qemu-img"),
        told("dd")
    )
}

fn told_date() -> String {
    let output = Command::new("date").arg("+%Y-%m-%d").output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// Between the two marks of a document, or the whole of a new one.
fn write_into(path: &Path, table: &str) -> anyhow::Result<()> {
    const BEGIN: &str = "<!-- table -->\n";
    const END: &str = "<!-- end of table -->\n";
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let new = match (old.split_once(BEGIN), old.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{BEGIN}{table}{END}{after}"),
        _ => table.to_owned(),
    };
    std::fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))
}
