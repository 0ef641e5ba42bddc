//! Row 16: what a disk of 64 GiB could give back, told without reading what is free.
//!
//! Against the file system's own tool that tells of its free space: that reads the same map, and looks into no
//! block.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use crate::harness::{Case, Side, Unit, Want};
use crate::process::text;
use crate::process::{have, seconds, timed};
use crate::setup::incompressible;
use crate::setup::{Setup, remove};
use crate::table::Table;

const SIZE: u64 = 64 << 30;

/// A kind of file system, and who else tells of its free space.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    tell: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind { name: "ext4", make: &["mkfs.ext4", "-q", "-F"], tell: &["dumpe2fs"] },
    Kind { name: "NTFS", make: &["mkfs.ntfs", "-F", "-q", "-f"], tell: &["ntfsinfo", "-m"] },
];

/// Row 16.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    for kind in &KINDS {
        let (raw, disk) = (setup.file("plan.raw"), setup.file("plan.vhdx"));
        if have(kind.make[0]) {
            make(setup, kind, &raw, &disk)?;
        }
        let tell = || {
            let mut command: Vec<&str> = kind.tell[1..].to_vec();
            command.push(text(&raw));
            timed(kind.tell[0], &command)
        };
        let plan = || timed(text(&setup.vhdx), &["compact", "-q", "--dry-run", text(&disk)]);
        let what = format!("plan what {} of 64 GiB gives back", kind.name);
        let side = Side::new("vhdxkit", plan).needs(kind.make[0]).want(Want::Most(5.0));
        let case = Case::new(16, what, Unit::Seconds, side)
            .against(Side::new(kind.tell[0], tell).needs(kind.tell[0]));
        table.add(case.run(setup.rounds)?);
        let read = || {
            let mut command = Command::new(&setup.vhdx);
            let (_, printed) = seconds(command.args(["compact", "--json", "-n", text(&disk)]))?;
            let report: serde_json::Value = serde_json::from_str(&printed)?;
            report["bytes_read"].as_f64().context("no bytes_read")
        };
        let stored = || Ok(disk.metadata()?.len() as f64);
        let what = format!("bytes of the disk that this reads, {}", kind.name);
        let side = Side::new("vhdxkit", read).needs(kind.make[0]).want(Want::Most(64e6));
        let case = Case::new(16, what, Unit::Bytes, side);
        table.add(case.against(Side::new("all that is stored", stored)).run(setup.rounds)?);
        remove(&raw)?;
        remove(&disk)?;
    }
    Ok(())
}

/// A file system with a file that is still there, and three that are gone.
fn make(setup: &Setup, kind: &Kind, raw: &Path, disk: &Path) -> anyhow::Result<()> {
    remove(raw)?;
    remove(disk)?;
    File::create(raw)?.set_len(SIZE)?;
    let mut command = kind.make[1..].to_vec();
    command.push(text(raw));
    timed(kind.make[0], &command)?;
    let (folder, noise) = (setup.file("plan.mount"), setup.file("plan.noise"));
    std::fs::create_dir_all(&folder)?;
    let mount = match kind.name {
        "NTFS" => timed("ntfs-3g", &[text(raw), text(&folder)]),
        _ => timed("mount", &["-o", "loop", text(raw), text(&folder)]),
    };
    // Without a mount the disk is empty, which is quicker still; the table tells what is stored.
    if mount.is_ok() {
        incompressible(&noise, if setup.quick { 16 } else { 256 })?;
        for name in ["a", "b", "c", "d"] {
            timed("cp", &[text(&noise), text(&folder.join(name))])?;
        }
        timed("sync", &["-f", text(&folder)])?;
        for name in ["a", "b", "d"] {
            remove(&folder.join(name))?;
        }
        timed("umount", &[text(&folder)])?;
        remove(&noise)?;
    }
    let block = ["convert", "-q", text(raw), text(disk), "--block-size", "1M"];
    timed(text(&setup.vhdx), &block)?;
    Ok(())
}
