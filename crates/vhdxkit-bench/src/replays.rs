//! Rows 13 and 14: replay, and very large disks.

use std::path::Path;
use std::sync::Arc;

use nix::sys::resource::{UsageWho, getrusage};
use vhdxkit::format::Guid;
use vhdxkit::log::{EntryBuilder, Log};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{CreateOptions, OpenOptions};

use crate::Setup;
use crate::harness::{Side, Table, Target, Unit, have, interleave, remove, text, timed};

/// An image whose log is full of allocations.
fn full_log(path: &Path, log: u32) -> anyhow::Result<()> {
    remove(path);
    let options = CreateOptions::new(8 << 40).block_size(1 << 20).log_size(log);
    options.create(path)?;
    let image = OpenOptions::new().write(true).open(path)?;
    // As many sectors in each entry as the library commits at once: 64 of the table's pages.
    let entries = u64::from(log) / 4096 / 65 - 1;
    for entry in 0..entries {
        for page in 0..64 {
            image
                .write_at(((page * 512 + entry % 512) << 20) + (entry / 512) * 4096, &[1; 4096])?;
        }
        image.flush()?;
    }
    // Dropped without a close: the log stays.
    Ok(())
}

/// An image whose log zeroes 20 MiB of the table.
fn zero_descriptors(path: &Path) -> anyhow::Result<()> {
    remove(path);
    CreateOptions::new(8 << 40).block_size(1 << 20).create(path)?;
    let image = OpenOptions::new().write(true).open(path)?;
    image.write_at(0, &[1; 4096])?;
    image.flush()?;
    let bat = image.regions().bat().offset;
    drop(image);
    let file = Arc::new(FileStorage::open(path, OpenMode::ReadWrite)?);
    let log = Log::read(&*file)?;
    let last = log.entries().iter().map(|entry| entry.info).max_by_key(|info| info.sequence);
    let (Some(last), Some(place)) = (last, log.place()) else { anyhow::bail!("no log") };
    let guid: Guid = log.guid();
    let length = file.len()?;
    let mut entry = EntryBuilder::new(guid, last.sequence + 1)
        .tail(last.log_offset)
        .file_sizes(length >> 20 << 20, length.next_multiple_of(1 << 20));
    for piece in 0..5 {
        entry.zero(bat + (8 << 20) + piece * (4 << 20), 4 << 20)?;
    }
    let offset = place.offset + u64::from(last.log_offset) + u64::from(last.length);
    file.write_at(offset, &entry.encode()?)?;
    // Something to be zeroed.
    for at in (0..20 << 20).step_by(1 << 20) {
        file.write_at(bat + (8 << 20) + at, &vec![0x10; 1 << 20])?;
    }
    file.sync()?;
    Ok(())
}

/// Row 13.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (dirty, copy) = (setup.file("dirty.vhdx"), setup.file("copy.vhdx"));
    for (name, ratio) in
        [("1 MiB log", 15.0), ("64 MiB log", 30.0), ("20 MiB of zero descriptors", 80.0)]
    {
        match name {
            "1 MiB log" => full_log(&dirty, 1 << 20)?,
            "64 MiB log" => full_log(&dirty, 64 << 20)?,
            _ => zero_descriptors(&dirty)?,
        }
        let fresh = || timed("cp", &["--sparse=always", text(&dirty), text(&copy)]);
        let vhdx = text(&setup.vhdx);
        let mut sides = vec![Side::new("vhdxkit", || {
            fresh()?;
            timed(vhdx, &["log", "replay", text(&copy)])
        })];
        if have("qemu-img") {
            sides.push(Side::new("qemu-img check -r all", || {
                fresh()?;
                timed("qemu-img", &["check", "-q", "-r", "all", "-f", "vhdx", text(&copy)])
            }));
        }
        let figures = interleave(setup.rounds.min(3), sides)?;
        let targets = [Target { against: 1, ratio: 1.0 / ratio }];
        let work = format!("replay of a {name}");
        table.row("13", &work, Unit::Seconds, &figures, &targets);
    }
    remove(&dirty);
    remove(&copy);
    Ok(())
}

/// Row 14.
pub(crate) fn huge(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (image, theirs) = (setup.file("huge.vhdx"), setup.file("huge-q.vhdx"));
    let vhdx = text(&setup.vhdx);
    let arguments = ["create", text(&image), "64T", "--block-size", "1M"];
    let mut sides = vec![Side::new("vhdxkit", || {
        remove(&image);
        timed(vhdx, &arguments)
    })];
    if have("qemu-img") {
        sides.push(Side::new("qemu-img", || {
            remove(&theirs);
            let o = "block_size=1M";
            timed("qemu-img", &["create", "-q", "-f", "vhdx", "-o", o, text(&theirs), "64T"])
        }));
    }
    let figures = interleave(setup.rounds, sides)?;
    table.row("14", "create a disk of 64 TiB, blocks of 1 MiB", Unit::Seconds, &figures, &[]);
    table.bound("14", "the same", figures[0].median() * 1000.0, 10.0, " ms");
    let mut sides = vec![Side::new("vhdxkit", || timed(vhdx, &["info", text(&image)]))];
    if have("qemu-img") {
        sides.push(Side::new("qemu-img", || timed("qemu-img", &["info", text(&theirs)])));
    }
    let figures = interleave(setup.rounds, sides)?;
    table.row("14", "open it and tell what it is", Unit::Seconds, &figures, &[]);
    table.bound("14", "the same", figures[0].median() * 1000.0, 5.0, " ms");
    remove(&image);
    remove(&theirs);
    Ok(())
}

/// The most memory that `vhdx info` of the largest disk takes, in MiB. The system keeps the maximum over
/// all children, so this comes before any other child.
pub(crate) fn memory_of_info(setup: &Setup) -> anyhow::Result<f64> {
    let image = setup.file("memory.vhdx");
    CreateOptions::new(64 << 40).block_size(1 << 20).create(&image)?;
    timed(text(&setup.vhdx), &["info", text(&image)])?;
    remove(&image);
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.max_rss() as f64 / 1024.0)
}
