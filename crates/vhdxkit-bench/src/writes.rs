//! Rows 1 to 3: writes that each need a new block.
//!
//! Every side is a process that is timed from its start to its end, when everything is durable. Nothing is
//! subtracted. A side does as many writes as it can in a fraction of a second, and rates are compared. Only
//! "the calls alone" leaves out start, open, close and the sync at the end.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vhdxkit::CreateOptions;

use crate::harness::{Case, Outcome, Side, Unit, Want};
use crate::process::{have, seconds, text, timed, timed_with_input};
use crate::setup::{Setup, remove};
use crate::table::Table;
use crate::worker::{BLOCK, DISK, Medium, place};

/// A row: how often there is a flush, and what is demanded against the raw file and QEMU.
struct Row {
    number: u32,
    every: u64,
    raw: f64,
    qemu: f64,
    name: &'static str,
}

const ROWS: [Row; 4] = [
    Row { number: 1, every: 0, raw: 0.85, qemu: 20.0, name: "no flush" },
    Row { number: 2, every: 1, raw: 0.8, qemu: 6.0, name: "a flush after each" },
    Row { number: 3, every: 16, raw: 0.75, qemu: 20.0, name: "a flush after 16" },
    Row { number: 3, every: 32, raw: 0.75, qemu: 20.0, name: "a flush after 32" },
];

/// Writes that tell how fast a side is here.
const TRIED: u64 = 32;

/// One of the rows 1, 2 and 3.
pub(crate) fn row(number: u32, setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    for row in ROWS.iter().filter(|row| row.number == number) {
        if row.every == 0 {
            table.add(calls_alone(row, setup)?);
        }
        table.add(whole_processes(row, setup)?);
    }
    if number == 2 {
        table.add(recycled(setup)?);
    }
    Ok(())
}

/// What a file is before it is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// An empty image.
    Image,
    /// An image with free space that holds other bytes.
    Recycled,
    /// A hole as large as all that will be written.
    Sized,
    /// An empty file, which grows with each write.
    Growing,
}

/// Runs a worker on a new file: the seconds of the process, and those between open and close.
fn work(setup: &Setup, start: Start, writes: u64, every: u64) -> anyhow::Result<(f64, f64)> {
    let path = setup.file("written");
    remove(&path)?;
    let medium = match start {
        Start::Image | Start::Recycled => {
            CreateOptions::new(DISK).block_size(1 << 20).create(&path)?;
            Medium::Image
        }
        Start::Sized | Start::Growing => {
            File::create(&path)?;
            Medium::File
        }
    };
    let file = File::options().write(true).open(&path)?;
    match start {
        Start::Image | Start::Growing => {}
        Start::Sized => file.set_len(writes * BLOCK)?,
        Start::Recycled => {
            let end = file.metadata()?.len();
            for gap in 0..writes {
                file.write_all_at(&[0xAA; 4096], end + gap * BLOCK)?;
            }
        }
    }
    file.sync_all()?;
    let (whole, printed) = seconds(&mut worker(medium, &path, writes, every)?)?;
    remove(&path)?;
    Ok((whole, printed.trim().parse()?))
}

/// The process that does the work.
pub(crate) fn worker(
    medium: Medium,
    path: &Path,
    writes: u64,
    every: u64,
) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("work").arg(if medium == Medium::Image { "image" } else { "file" });
    command.arg(path).args([writes.to_string(), every.to_string()]);
    Ok(command)
}

fn whole_processes(row: &Row, setup: &Setup) -> anyhow::Result<Outcome> {
    let writes = match row.every {
        0 => setup.count(8000),
        every => setup.calibrated(TRIED, work(setup, Start::Image, TRIED, every)?.0),
    };
    let few = match have("qemu-io") {
        true => setup.calibrated(TRIED, qemu_io(setup, TRIED, row.every, "writeback")?),
        false => 0,
    };
    let rate =
        |start| work(setup, start, writes, row.every).map(|(whole, _)| writes as f64 / whole);
    let qemu = |cache| Ok(few as f64 / qemu_io(setup, few, row.every, cache)?);
    let title = format!("4 KiB writes, each to a new block, {}", row.name);
    Case::new(row.number, title, Unit::Rate, Side::new("vhdxkit", || rate(Start::Image)))
        .against(Side::new("raw file, sized", || rate(Start::Sized)).want(Want::Speed(row.raw)))
        .against(Side::new("raw file, growing", || rate(Start::Growing)).want(Want::Speed(row.raw)))
        .against(
            Side::new("QEMU VHDX, writeback", || qemu("writeback"))
                .needs("qemu-io")
                .want(Want::Speed(row.qemu)),
        )
        .against(
            Side::new("QEMU VHDX, no page cache", || qemu("none"))
                .needs("qemu-io")
                .want(Want::Speed(row.qemu)),
        )
        .run(setup.rounds)
}

fn calls_alone(row: &Row, setup: &Setup) -> anyhow::Result<Outcome> {
    let writes = setup.count(8000);
    let rate = |start| work(setup, start, writes, 0).map(|(_, calls)| writes as f64 / calls);
    let want = Want::Speed(row.raw);
    let work = format!("4 KiB writes, each to a new block, {}: the calls alone", row.name);
    Case::new(row.number, work, Unit::Rate, Side::new("vhdxkit", || rate(Start::Image)))
        .against(Side::new("raw file, sized", || rate(Start::Sized)).want(want))
        .against(Side::new("raw file, growing", || rate(Start::Growing)).want(want))
        .run(setup.rounds)
}

/// Blocks go where other bytes lay: payload has to be durable before the entry that points to it.
fn recycled(setup: &Setup) -> anyhow::Result<Outcome> {
    let writes = setup.calibrated(TRIED, work(setup, Start::Recycled, TRIED, 1)?.0);
    let rate = |start| work(setup, start, writes, 1).map(|(whole, _)| writes as f64 / whole);
    let title = "the same in recycled space, which is cleared ahead";
    Case::new(2, title, Unit::Rate, Side::new("vhdxkit", || rate(Start::Recycled)))
        .against(Side::new("raw file, sized", || rate(Start::Sized)).want(Want::Speed(0.6)))
        .run(setup.rounds)
}

/// Lets QEMU do the same to an image of its own; the seconds of the process.
fn qemu_io(setup: &Setup, writes: u64, every: u64, cache: &str) -> anyhow::Result<f64> {
    let path = qemu_image(setup)?;
    let script = qemu_script(setup, writes, every)?;
    let spent = timed_with_input("qemu-io", &["-f", "vhdx", "-t", cache, text(&path)], &script)?;
    remove(&path)?;
    Ok(spent)
}

/// A new image of QEMU's, on the disk.
pub(crate) fn qemu_image(setup: &Setup) -> anyhow::Result<PathBuf> {
    let path = setup.file("written.qemu");
    remove(&path)?;
    let size = DISK.to_string();
    let options = ["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(&path), &size];
    timed("qemu-img", &options)?;
    File::open(&path)?.sync_all()?;
    Ok(path)
}

/// What qemu-io is to do, as a file that it reads.
pub(crate) fn qemu_script(setup: &Setup, writes: u64, every: u64) -> anyhow::Result<PathBuf> {
    let mut script = String::new();
    for number in 0..writes {
        writeln!(script, "write -q -P 7 {} 4096", place(number))?;
        if every > 0 && (number + 1).is_multiple_of(every) {
            script += "flush\n";
        }
    }
    let path = setup.file("script");
    std::fs::write(&path, script)?;
    Ok(path)
}
