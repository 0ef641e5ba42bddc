//! Row 17, "chain": reading through a chain of ten images, against the same disk in one image. QEMU has no
//! children of VHDX to compare with.

use std::path::{Path, PathBuf};
use std::time::Instant;

use vhdxkit::{CreateOptions, Image, OpenOptions, ParentPolicy};

use crate::harness::{Case, Side, Unit, Want};
use crate::setup::{Noise, Setup, remove};
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
    flatten(last, &flat)?;
    let reads = setup.count(100_000);
    for (part, work, want) in [
        (0, "whole blocks of the last image", Some(1.3)),
        (1, "blocks that the last image has in part", Some(1.3)),
        (2, "blocks of the base alone", None),
    ] {
        let work = format!("chain: {reads} reads of 4 KiB through {IMAGES} images, {work}");
        let side = Side::new("vhdxkit, chain", || read(last, part, reads));
        let flat = Side::new("vhdxkit, flat disk", || read(&flat, part, reads));
        let flat = match want {
            Some(most) => flat.want(Want::Time(most)),
            None => flat,
        };
        table.add(Case::new(17, work, Unit::Seconds, side).against(flat).run(setup.rounds)?);
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
        files.push(path);
    }
    Ok(files)
}

/// Writes what the chain shows into one image.
fn flatten(last: &Path, flat: &Path) -> anyhow::Result<()> {
    remove(flat)?;
    CreateOptions::new(DISK).block_size(1 << 20).create(flat)?;
    let (from, to) = (open(last, false)?, OpenOptions::new().write(true).open(flat)?);
    let mut bytes = vec![0; 1 << 20];
    for at in (0..DISK).step_by(bytes.len()) {
        from.read_at(at, &mut bytes)?;
        to.write_at(at, &bytes)?;
    }
    to.close()?;
    Ok(())
}

fn open(path: &Path, write: bool) -> anyhow::Result<Image> {
    Ok(OpenOptions::new().write(write).parents(ParentPolicy::Follow).open(path)?)
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
        // Every second 4 KiB: where blocks are there in part, those that the last image holds.
        let at = part * PART + number * 7919 % (PART / READ / 2) * 2 * READ;
        image.read_at(at, &mut bytes)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}
