//! `vhdxkit-bench`: times vhdxkit against QEMU, nbdkit and the raw file, side by side, and prints a
//! table.
//!
//! Every figure is a ratio of two sides that took turns in one run: on a shared machine nothing else
//! means anything. Counts of system calls are exact, and are what `gate` and the tests hold on to.
//!
//! `harness` lets sides take turns, `table` shows what came of it; `setup`, `process` and `servers`
//! are the place and the programs; each other file is a group of rows. Linux only.

mod chain;
mod copies;
mod harness;
mod huge;
mod plans;
mod process;
mod replays;
mod servers;
mod serving;
mod setup;
mod syncs;
mod table;
mod worker;
mod writes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};

use setup::Setup;
use table::Table;

/// Time vhdxkit against QEMU and the raw file, side by side.
#[derive(Debug, Parser)]
#[command(before_help = "\
Examples:
  cargo run --release -p vhdxkit-bench                        the whole table, into docs/performance.md
  cargo run --release -p vhdxkit-bench -- --rows 1,2,4        some rows, printed only
  cargo run --release -p vhdxkit-bench -- --quick             less work: to see whether it runs
  cargo run --release -p vhdxkit-bench -- gate                only count syncs; fails when there are too many")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only these rows: 1 to 14, 16 to 18.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<u32>,
    /// Less work, fewer rounds. Figures are printed only.
    #[arg(long)]
    quick: bool,
    /// Where to work, on a real disk. Without it $VHDXKIT_BENCH_DIR, or the folder of this program.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Write the table into this file, between its two marks. The whole table goes into
    /// docs/performance.md without this.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count the syncs of allocating writes; exit status 1 when there are too many.
    Gate,
    /// Write, and print the seconds between open and close.
    #[command(hide = true)]
    Work(worker::Work),
    /// Run a program, and print the most memory that it had.
    #[command(hide = true)]
    Memory {
        /// The program.
        program: String,
        /// What it is told.
        arguments: Vec<String>,
    },
}

const ROWS: [u32; 17] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18];
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/performance.md");

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhdxkit-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let folder = arguments.folder.or_else(|| std::env::var_os("VHDXKIT_BENCH_DIR").map(Into::into));
    match arguments.command {
        Some(Command::Work(work)) => {
            println!("{}", work.run()?);
            return Ok(());
        }
        Some(Command::Memory { program, arguments }) => {
            return process::print_peak_memory(&program, &arguments);
        }
        Some(Command::Gate) => return syncs::gate(tempfile::tempdir()?.path()),
        None => {}
    }
    if cfg!(debug_assertions) {
        bail!("times of an unoptimised build mean nothing; build with --release");
    }
    let unknown = arguments.rows.iter().find(|row| !ROWS.contains(row));
    ensure!(unknown.is_none(), "there is no row {} here: 1 to 14, 16 to 18", unknown.unwrap_or(&0));
    process::stop_gently()?;
    let all = arguments.rows.is_empty();
    let rows = if all { ROWS.to_vec() } else { arguments.rows };
    let setup = Setup::new(folder, arguments.quick)?;
    let begun = Instant::now();
    let mut table = Table::default();
    measure(&setup, &rows, &mut table)?;
    let seconds = begun.elapsed().as_secs();
    let text =
        format!("{} The run took {seconds} s.\n\n{}", setup.story().trim_end(), table.markdown());
    println!("{text}");
    let output = arguments.output.or_else(|| (all && !setup.quick).then(|| DOCUMENT.into()));
    output.map_or(Ok(()), |path| write_into(&path, &text))
}

fn measure(setup: &Setup, rows: &[u32], table: &mut Table) -> anyhow::Result<()> {
    for row in ROWS.into_iter().filter(|row| rows.contains(row)) {
        let begun = Instant::now();
        match row {
            4 => syncs::row(setup, table)?,
            5..=7 => serving::row(row, setup, table)?,
            9 => copies::sparse(setup, table)?,
            11 => copies::empty(setup, table)?,
            12 => copies::shared(setup, table)?,
            13 => replays::rows(setup, table)?,
            14 => huge::rows(setup, table)?,
            16 => plans::rows(setup, table)?,
            17 => chain::rows(setup, table)?,
            18 => serving::mounted(setup, table)?,
            // These two share their files.
            10 if rows.contains(&8) => {}
            8 | 10 => copies::full(setup, rows, table)?,
            row => writes::row(row, setup, table)?,
        }
        eprintln!("row {row}: {:.0} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Puts the table between the two marks of a document; what stands around them stays.
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
