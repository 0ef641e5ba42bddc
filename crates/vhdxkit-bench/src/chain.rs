//! Row 17, "chain": reading through a chain of ten images, against the same disk in one image. QEMU has no
//! children of VHDX to compare with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use vhdxkit::{CreateOptions, Image, OpenOptions, ParentPolicy};

use crate::harness::{Case, Side, Unit, Want};
use crate::setup::{Noise, Setup, fresh_copy, remove};
use crate::table::Table;

const MIB: u64 = 1 << 20;
const DISK: u64 = 96 * MIB;
/// Bytes of each third of the disk: what the last image holds in whole blocks, what it holds every second
/// 4 KiB of, and what only the base has.
const PART: u64 = DISK / 3;
const IMAGES: usize = 10;
const READ: u64 = 4096;

/// Row 17.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (files, flat) = (chain(setup)?, setup.file("flat.vhdx"));
    let last = files.last().map(PathBuf::as_path).unwrap_or(&flat);
    flatten(setup, last, &flat)?;
    let reads = setup.count(100_000);
    for (part, work) in [
        (0, "whole blocks of the last image"),
        (1, "blocks that the last image has in part"),
        (2, "blocks of the base alone"),
    ] {
        let work = format!("chain: {reads} reads of 4 KiB through {IMAGES} images, {work}");
        let side = Side::new("vhdxkit, chain", || read(last, part, reads));
        let disk = Side::new("vhdxkit, flat disk", || read(&flat, part, reads));
        let disk = if part == 0 { disk.want(Want::Time(1.3)) } else { disk };
        let mut case = Case::new(17, work, Unit::Seconds, side).against(disk);
        if part == 1 {
            // With holes between them the kernel reads the same bytes more slowly, whoever asks.
            let file =
                Side::new("the last image's file, the same places", || raw(last, part, reads));
            case = case.against(file.want(Want::Time(1.3)));
        }
        table.add(case.run(setup.rounds)?);
    }
    files.iter().chain([&flat]).try_for_each(|path| remove(path))
}

/// The base is full of noise; each image above it changes a little, and the last one two thirds.
fn chain(setup: &Setup) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let (mut noise, mut bytes) = (Noise::new(17), vec![0; 1 << 20]);
    for number in 0..IMAGES {
        let path = setup.file(&format!("chain{number}.vhdx"));
        remove(&path)?;
        let options = match files.last() {
            None => CreateOptions::new(DISK),
            Some(parent) => CreateOptions::child_of(&open(parent, false)?)?,
        };
        options.block_size(1 << 20).create(&path)?;
        let image = open(&path, true)?;
        let whole = match number {
            0 => 0..DISK / MIB,
            last if last + 1 == IMAGES => 0..PART / MIB,
            middle => middle as u64..middle as u64 + 1,
        };
        for block in whole {
            noise.fill(&mut bytes);
            image.write_at(block * MIB, &bytes)?;
        }
        if number + 1 == IMAGES {
            for at in (PART..2 * PART).step_by(2 * READ as usize) {
                image.write_at(at, &bytes[..READ as usize])?;
            }
        }
        image.close()?;
        drop(image);
        settle(setup, &path)?;
        files.push(path);
    }
    Ok(files)
}

/// Puts a copy in a file's place, written in one go: what was written in pieces of 4 KiB stays in such pieces
/// in the page cache, and is read more slowly for as long.
fn settle(setup: &Setup, path: &Path) -> anyhow::Result<()> {
    let copy = setup.file("settled.vhdx");
    fresh_copy(path, &copy)?;
    Ok(std::fs::rename(copy, path)?)
}

/// Writes what the chain shows into one image.
fn flatten(setup: &Setup, last: &Path, flat: &Path) -> anyhow::Result<()> {
    remove(flat)?;
    CreateOptions::new(DISK).block_size(1 << 20).create(flat)?;
    let (from, to) = (open(last, false)?, OpenOptions::new().write(true).open(flat)?);
    let mut bytes = vec![0; 1 << 20];
    for at in (0..DISK).step_by(bytes.len()) {
        from.read_at(at, &mut bytes)?;
        to.write_at(at, &bytes)?;
    }
    to.close()?;
    drop(to);
    settle(setup, flat)
}

fn open(path: &Path, write: bool) -> anyhow::Result<Image> {
    Ok(OpenOptions::new().write(write).parents(ParentPolicy::Follow).open(path)?)
}

/// Where on the disk a read is: every second 4 KiB of a part; of blocks that are there in part, those that
/// the last image holds.
fn place(part: u64, number: u64) -> u64 {
    part * PART + number * 7919 % (PART / READ / 2) * 2 * READ
}

/// [`read`] without us: the file alone, at the places where those bytes lie.
fn raw(path: &Path, part: u64, reads: u64) -> anyhow::Result<f64> {
    let image = open(path, false)?;
    let mut places = Vec::new();
    for number in 0..PART / READ / 2 {
        let at = place(part, number);
        let extent = image.extents(at..at + READ).next().context("a disk has extents")??;
        places.push(extent.file_offset.context("the image holds it")?);
    }
    drop(image);
    let file = File::open(path)?;
    let mut bytes = [0; READ as usize];
    for place in &places {
        file.read_exact_at(&mut bytes, *place)?;
    }
    let begun = Instant::now();
    for place in places.iter().cycle().take(usize::try_from(reads)?) {
        file.read_exact_at(&mut bytes, *place)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds for so many reads of a part, scattered, after one read of all of it: the files are in the page
/// cache then, and what is left is our own work.
fn read(path: &Path, part: u64, reads: u64) -> anyhow::Result<f64> {
    let image = open(path, false)?;
    let mut all = vec![0; 1 << 20];
    for at in (part * PART..(part + 1) * PART).step_by(all.len()) {
        image.read_at(at, &mut all)?;
    }
    let mut bytes = [0; READ as usize];
    let begun = Instant::now();
    for number in 0..reads {
        image.read_at(place(part, number), &mut bytes)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}
