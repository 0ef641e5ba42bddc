//! Rows 1 to 4: writes that each need a new block.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{CreateOptions, OpenOptions};

use crate::Setup;
use crate::harness::{Side, Table, Target, Unit, have, interleave, remove, text, timed};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = MIB;

/// The disk's offset of write number `number`: one 4 KiB write in each block.
fn place(number: u64) -> u64 {
    number * BLOCK + (number % 200) * 4096
}

/// Rows 1, 2 and 3.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let image = setup.file("w.vhdx");
    let (raw, theirs) = (setup.file("w.raw"), setup.file("q.vhdx"));
    for (row, every, raw_target, qemu_target, name) in [
        ("1", None, 0.85, 20.0, "no flush"),
        ("2", Some(1), 0.8, 6.0, "a flush after each"),
        ("3", Some(16), 0.75, 20.0, "a flush after 16"),
        ("3", Some(32), 0.75, 20.0, "a flush after 32"),
    ] {
        if !setup.wants(row) {
            continue;
        }
        let count = if every == Some(1) { setup.count(600) } else { setup.count(2000) };
        let mut sides = vec![
            Side::new("vhdxkit", || ours(&image, count, every, false)),
            Side::new("raw file", || plain(&raw, count, every)),
        ];
        let mut targets = vec![Target { against: 1, ratio: raw_target }];
        let few = setup.count(if every.is_none() { 400 } else { 192 });
        if have("qemu-io") {
            sides.push(Side::new("QEMU VHDX", || qemu(&theirs, few, every)));
            targets.push(Target { against: 2, ratio: qemu_target });
        } else {
            table.line(&[row, name, "", "qemu-io is not installed", "", ""]);
        }
        let figures = interleave(setup.rounds, sides)?;
        let work = format!("4 KiB writes, each to a new block, {name}");
        table.row(row, &work, Unit::Rate, &figures, &targets);
    }
    if setup.wants("2") {
        let count = setup.count(600);
        let figures = interleave(
            setup.rounds,
            vec![
                Side::new("vhdxkit", || ours(&image, count, Some(1), true)),
                Side::new("raw file", || plain(&raw, count, Some(1))),
            ],
        )?;
        let work = "4 KiB writes, each to a new block in recycled space, a flush after each";
        table.row("2", work, Unit::Rate, &figures, &[Target { against: 1, ratio: 0.6 }]);
    }
    for path in [image, raw, theirs] {
        remove(&path);
    }
    Ok(())
}

fn ours(path: &Path, count: u64, every: Option<u64>, recycled: bool) -> anyhow::Result<f64> {
    remove(path);
    CreateOptions::new(64 << 30).block_size(1 << 20).create(path)?;
    if recycled {
        // Free space that holds something, so that it cannot be taken for zeros.
        let file = File::options().write(true).open(path)?;
        let end = file.metadata()?.len();
        for gap in 0..count {
            file.write_all_at(&[0xAA; 4096], end + gap * BLOCK)?;
        }
        file.sync_all()?;
    }
    let image = OpenOptions::new().write(true).open(path)?;
    let bytes = [7; 4096];
    let begun = Instant::now();
    for number in 0..count {
        image.write_at(place(number), &bytes)?;
        if every.is_some_and(|every| (number + 1) % every == 0) {
            image.flush()?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    image.close()?;
    Ok(count as f64 / seconds)
}

fn plain(path: &Path, count: u64, every: Option<u64>) -> anyhow::Result<f64> {
    remove(path);
    let file = File::create(path)?;
    let bytes = [7; 4096];
    let begun = Instant::now();
    for number in 0..count {
        file.write_all_at(&bytes, place(number))?;
        if every.is_some_and(|every| (number + 1) % every == 0) {
            file.sync_data()?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    file.sync_data()?;
    Ok(count as f64 / seconds)
}

fn qemu(path: &Path, count: u64, every: Option<u64>) -> anyhow::Result<f64> {
    let run = |script: &str| -> anyhow::Result<f64> {
        remove(path);
        let options = ["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(path), "64G"];
        timed("qemu-img", &options)?;
        let begun = Instant::now();
        let mut child = Command::new("qemu-io")
            .args(["-f", "vhdx", "-t", "writeback", text(path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(script.as_bytes())?;
        if !child.wait()?.success() {
            bail!("qemu-io failed");
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    let mut script = String::new();
    for number in 0..count {
        script += &format!("write -q -P 7 {} 4096\n", place(number));
        if every.is_some_and(|every| (number + 1) % every == 0) {
            script += "flush\n";
        }
    }
    let nothing = run("")?;
    Ok(count as f64 / (run(&script)? - nothing).max(0.001))
}

/// A file that counts its syncs.
struct Counting {
    file: FileStorage,
    syncs: AtomicU64,
}

impl Storage for Counting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.file.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }
}

/// Writes 100 blocks; gives the syncs between the opened image and its close. This is also what the
/// process does whose system calls are counted.
pub(crate) fn hundred(path: &Path, every: Option<u64>) -> anyhow::Result<u64> {
    remove(path);
    CreateOptions::new(64 << 30).block_size(1 << 20).create(path)?;
    let file = FileStorage::open(path, OpenMode::ReadWrite)?;
    let file = Arc::new(Counting { file, syncs: AtomicU64::new(0) });
    let image = OpenOptions::new().write(true).open_storage(file.clone())?;
    let before = file.syncs.load(Ordering::Relaxed);
    for number in 0..100 {
        image.write_at(place(number), &[7; 4096])?;
        if every.is_some_and(|every| (number + 1) % every == 0) {
            image.flush()?;
        }
    }
    if every.is_some_and(|every| 100 % every != 0) {
        image.flush()?;
    }
    let counted = file.syncs.load(Ordering::Relaxed) - before;
    image.close()?;
    remove(path);
    Ok(counted)
}

/// Row 4.
pub(crate) fn syncs(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    for (every, most, name) in [
        (None, 2.0, "no flush"),
        (Some(32), 6.0, "a flush after 32"),
        (Some(1), 106.0, "a flush after each"),
    ] {
        let counted = hundred(&setup.file("s.vhdx"), every)?;
        let work = format!("syncs of 100 allocating writes, {name}, between open and close");
        table.bound("4", &work, counted as f64, most, "");
        let whole = match have("strace") {
            true => traced(setup, every)?,
            false => "strace is not installed".to_owned(),
        };
        let work = format!(
            "fdatasync calls of the whole process, create, open and close included, {name}"
        );
        table.line(&["4", &work, &whole, "–", "–", "–"]);
    }
    Ok(())
}

fn traced(setup: &Setup, every: Option<u64>) -> anyhow::Result<String> {
    let (program, report) = (std::env::current_exe()?, setup.file("strace"));
    let every = every.unwrap_or(0).to_string();
    let image = setup.file("t.vhdx");
    timed(
        "strace",
        &[
            "-f",
            "-e",
            "trace=fdatasync,fsync",
            "-o",
            text(&report),
            text(&program),
            "hundred",
            text(&image),
            &every,
        ],
    )?;
    let calls = std::fs::read_to_string(&report)?;
    remove(&report);
    Ok(calls.lines().filter(|line| line.contains("sync(")).count().to_string())
}
