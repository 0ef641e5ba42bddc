//! Row 13: replay of a log, on a copy that is on the disk already.

use std::path::Path;

use vhdxkit::format::Guid;
use vhdxkit::log::EntryBuilder;
use vhdxkit_testkit::{Contents, Image, LogEntry};

use crate::harness::{Case, Side, Unit, Want};
use crate::process::{text, timed};
use crate::setup::{Setup, fresh_copy, remove};
use crate::table::Table;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 4096;
/// Changed sectors of an entry: with its descriptors it takes one more.
const SECTORS: u64 = 14;
/// Sectors of the log that stay free: without a gap QEMU 10.0.2 searches for ever.
const GAP: u64 = 3;

/// A log full of entries that change sectors of the disk's blocks.
fn full_log(log: u32) -> Image {
    let entries = (u64::from(log) / SECTOR - GAP) / (SECTORS + 1);
    let blocks = (entries * SECTORS * SECTOR).div_ceil(MIB);
    let mut image = Image::dynamic(1 << 30).log_length(log);
    for block in 0..blocks {
        image = image.block(block, Contents::Pattern(0xA5));
    }
    let (start, session) = (image.layout().payload_start, image.session(1));
    image = image.dirty(session);
    let mut entry = LogEntry::new();
    for number in 0..entries * SECTORS {
        // Neighbours in the log are not neighbours in the file.
        let at = start + number * 7919 % (blocks * MIB / SECTOR) * SECTOR;
        entry = entry.data(at, &[number as u8 | 1; 4096]);
        if (number + 1).is_multiple_of(SECTORS) {
            image = image.log_entry(std::mem::take(&mut entry));
        }
    }
    image
}

/// A log of one entry that zeroes so many blocks.
fn zeroes(blocks: u64) -> Image {
    let mut image = Image::dynamic(1 << 30);
    for block in 0..blocks {
        image = image.block(block, Contents::Pattern(0xA5));
    }
    let (start, session) = (image.layout().payload_start, image.session(1));
    let all = (0..blocks).fold(LogEntry::new(), |e, block| e.zero(start + block * MIB, MIB));
    image.dirty(session).log_entry(all)
}

/// Every sector of the log claims to start an entry as long as the log, with descriptors for all of it,
/// whose checksum is wrong. Only the last is what replay has to find.
fn hostile_log(log: u32) -> Image {
    let image = Image::dynamic(1 << 30).log_length(log);
    let session = image.session(1);
    let last = u64::from(log) / SECTOR - 1;
    let bytes: Vec<u8> = (0..last).flat_map(|number| claim(session, number + 1, log)).collect();
    image.dirty(session).raw_log(0, &bytes).log_entry(LogEntry::new().at(last).tail_self())
}

fn claim(session: Guid, sequence: u64, log: u32) -> Vec<u8> {
    let mut entry = EntryBuilder::new(session, sequence).encode().expect("an empty entry");
    entry[8..12].copy_from_slice(&log.to_le_bytes());
    entry[24..28].copy_from_slice(&100_000u32.to_le_bytes());
    entry
}

/// Row 13.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let large = if setup.quick { 16 } else { 64 };
    replay(setup, table, "a full log of 1 MiB", &full_log(1 << 20), 1, 15.0)?;
    let work = format!("a full log of {large} MiB");
    replay(setup, table, &work, &full_log(large << 20), u64::from(large), 30.0)?;
    let blocks = setup.count(20);
    replay(
        setup,
        table,
        &format!("{blocks} MiB of zero descriptors"),
        &zeroes(blocks),
        blocks,
        80.0,
    )?;
    hostile(setup, table)
}

/// One dirty image; the same amount of bytes copied and synced once is what nature allows.
fn replay(
    setup: &Setup,
    table: &mut Table,
    work: &str,
    image: &Image,
    mebibytes: u64,
    speed: f64,
) -> anyhow::Result<()> {
    let (dirty, copy) = (setup.file("dirty.vhdx"), setup.file("copy"));
    image.build_file(&dirty);
    let side = Side::new("vhdxkit", || replay_copy(setup, &dirty, &copy));
    let plain = || {
        remove(&copy)?;
        let (from, to) = (format!("if={}", text(&dirty)), format!("of={}", text(&copy)));
        let count = format!("count={}", mebibytes * 4);
        timed("dd", &[&from, &to, "bs=256K", "skip=4", &count, "conv=fdatasync", "status=none"])
    };
    let qemu = || {
        fresh_copy(&dirty, &copy)?;
        timed("qemu-img", &["check", "-q", "-r", "all", "-f", "vhdx", text(&copy)])
    };
    let outcome = Case::new(13, format!("replay of {work}"), Unit::Seconds, side)
        .against(Side::new("dd of as many bytes, one sync", plain))
        .against(
            Side::new("qemu-img check -r all", qemu).needs("qemu-img").want(Want::Speed(speed)),
        )
        .run(setup.rounds)?;
    table.add(outcome);
    remove(&copy)?;
    remove(&dirty)
}

/// Four times the log may take four times as long, and a quarter more for the noise.
fn hostile(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (small, large) = (setup.file("small.vhdx"), setup.file("large.vhdx"));
    let copy = setup.file("copy");
    hostile_log(16 << 20).build_file(&small);
    hostile_log(64 << 20).build_file(&large);
    let side = Side::new("vhdxkit, 64 MiB", || replay_copy(setup, &large, &copy));
    let outcome = Case::new(
        13,
        "a log where every sector claims to be an entry as long as the log",
        Unit::Seconds,
        side,
    )
    .against(
        Side::new("vhdxkit, 16 MiB", || replay_copy(setup, &small, &copy)).want(Want::Time(5.0)),
    )
    .run(setup.rounds)?;
    table.add(outcome);
    for path in [small, large, copy] {
        remove(&path)?;
    }
    Ok(())
}

fn replay_copy(setup: &Setup, dirty: &Path, copy: &Path) -> anyhow::Result<f64> {
    fresh_copy(dirty, copy)?;
    timed(text(&setup.vhdx), &["log", "replay", text(copy)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vhdxkit::storage::MemoryStorage;

    /// What is timed is a replay, of what is said to be replayed.
    #[test]
    fn the_dirty_images_are_replayed_as_described() {
        for (image, entries, data) in
            [(full_log(1 << 20), 16, 16 * SECTORS), (zeroes(5), 1, 0), (hostile_log(1 << 20), 1, 0)]
        {
            let file = Arc::new(MemoryStorage::new(image.build_vec()));
            let report = vhdxkit::log::replay_in_place(&*file).unwrap().unwrap();
            assert_eq!((report.entries, report.sectors), (entries, data));
            vhdxkit::OpenOptions::new().open_storage(file).unwrap();
        }
    }
}
