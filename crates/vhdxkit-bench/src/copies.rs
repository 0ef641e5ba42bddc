//! Rows 8 to 12: conversions. Both sides end with their copy on the disk; chunks of 256 KiB, and of QEMU's
//! options the best, so that no chunk size is taken for a victory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{Case, Outcome, Side, Unit, Want};
use crate::process::{seconds, text, timed};
use crate::setup::{Noise, Setup, Xfs, incompressible, remove};
use crate::table::Table;

const MIB: u64 = 1 << 20;

/// Rows 8 and 10.
pub(crate) fn full(setup: &Setup, rows: &[u32], table: &mut Table) -> anyhow::Result<()> {
    let (raw, image) = (setup.file("source.raw"), setup.file("source.vhdx"));
    let (ours, theirs) = (setup.file("ours"), setup.file("theirs"));
    let size = setup.mebibytes();
    incompressible(&raw, size)?;
    if rows.contains(&8) {
        for block in ["1M", "32M"] {
            let work = format!("raw to VHDX, {size} MiB incompressible, blocks of {block}");
            let options = ["--block-size", block];
            let case = Case::new(
                8,
                work,
                Unit::Seconds,
                Side::new("vhdxkit", || convert(setup, &raw, &ours, "vhdx", &options)),
            );
            let best = format!("-W -m 16 -o block_size={block}");
            let outcome = case
                .against(Side::new("dd, synced", || dd(&raw, &theirs)).want(Want::Time(1.05)))
                .against(
                    Side::new("qemu-img -W -m16, synced", || qemu(&raw, &theirs, "vhdx", &best))
                        .needs("qemu-img"),
                )
                .run(setup.rounds)?;
            table.add(outcome);
        }
        convert_and_compare(setup, &raw, &ours, "vhdx")?;
    }
    if rows.contains(&10) {
        convert(setup, &raw, &image, "vhdx", &["--block-size", "1M"])?;
        let work = format!("VHDX to raw, {size} MiB");
        let ours_side = Side::new("vhdxkit", || convert(setup, &image, &ours, "raw", &[]));
        let outcome = Case::new(10, work, Unit::Seconds, ours_side)
            .against(
                Side::new("dd of the raw bytes, synced", || dd(&raw, &theirs))
                    .want(Want::Time(1.0)),
            )
            .against(
                Side::new("qemu-img -W -m16, synced", || qemu(&image, &theirs, "raw", "-W -m 16"))
                    .needs("qemu-img"),
            )
            .run(setup.rounds)?;
        table.add(outcome);
        convert_and_compare(setup, &image, &ours, "raw")?;
    }
    for path in [raw, image, ours, theirs] {
        remove(&path)?;
    }
    Ok(())
}

/// Row 9.
pub(crate) fn sparse(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (raw, ours, theirs) = (setup.file("source.raw"), setup.file("ours"), setup.file("theirs"));
    let size = 2 * setup.mebibytes();
    for nothing in [Nothing::Holes, Nothing::Zeros] {
        mostly_nothing(&raw, size, nothing)?;
        let what = if nothing == Nothing::Holes { "holes" } else { "zeros that are stored" };
        let work = format!("raw to VHDX, {size} MiB, 90 % {what}");
        let options = ["--block-size", "1M"];
        let side = Side::new("vhdxkit", || convert(setup, &raw, &ours, "vhdx", &options));
        let cp = || shell("cp --sparse=always \"$1\" \"$2\" && sync -d \"$2\"", &raw, &theirs);
        let best = "-W -m 16 -o block_size=1M";
        let outcome = Case::new(9, work, Unit::Seconds, side)
            .against(Side::new("cp --sparse=always, synced", cp).want(Want::Time(1.0)))
            .against(
                Side::new("qemu-img -W -m16, synced", || qemu(&raw, &theirs, "vhdx", best))
                    .needs("qemu-img"),
            )
            .run(setup.rounds)?;
        table.add(outcome);
        convert_and_compare(setup, &raw, &ours, "vhdx")?;
    }
    for path in [raw, ours, theirs] {
        remove(&path)?;
    }
    Ok(())
}

/// Row 11.
pub(crate) fn empty(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (image, qcow2) = (setup.file("empty.vhdx"), setup.file("empty.qcow2"));
    let (ours, theirs) = (setup.file("ours"), setup.file("theirs"));
    let size = if setup.quick { "10G" } else { "100G" };
    timed(text(&setup.vhdx), &["create", text(&image), size, "--block-size", "1M"])?;
    let call = || {
        remove(&theirs)?;
        timed("truncate", &["-s", size, text(&theirs)])
    };
    let qemu_qcow2 = || {
        remove(&qcow2)?;
        timed("qemu-img", &["create", "-q", "-f", "qcow2", text(&qcow2), size])?;
        qemu(&qcow2, &theirs, "raw", "-W -m 16")
    };
    let side = Side::new("vhdxkit", || convert(setup, &image, &ours, "raw", &[]));
    let outcome = Case::new(
        11,
        format!("empty VHDX of {size} to raw"),
        Unit::Seconds,
        side.want(Want::Most(0.05)),
    )
    .against(Side::new("truncate: one system call", call))
    .against(Side::new("qemu-img, an empty qcow2", qemu_qcow2).needs("qemu-img"))
    .against(
        Side::new("qemu-img, the same VHDX", || qemu(&image, &theirs, "raw", "-W -m 16"))
            .needs("qemu-img"),
    )
    .run(setup.rounds)?;
    table.add(outcome);
    for path in [image, qcow2, ours, theirs] {
        remove(&path)?;
    }
    Ok(())
}

/// Row 12, on a file system made for it.
pub(crate) fn shared(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let xfs = match Xfs::mount(setup) {
        Ok(xfs) => xfs,
        Err(why) => {
            table.missing(12, why);
            return Ok(());
        }
    };
    let (raw, image) = (xfs.file("source.raw"), xfs.file("source.vhdx"));
    let (ours, theirs) = (xfs.file("ours"), xfs.file("theirs"));
    let size = setup.mebibytes();
    for (what, holes) in [("in one piece", false), ("in pieces of 1 MiB, 90 % holes", true)] {
        if holes {
            mostly_nothing(&raw, size, Nothing::Holes)?;
        } else {
            incompressible(&raw, size)?;
        }
        convert(setup, &raw, &image, "vhdx", &["--block-size", "1M"])?;
        for (from, format, way) in [(&raw, "vhdx", "raw to VHDX"), (&image, "raw", "VHDX to raw")] {
            let work = format!("{way}, {size} MiB {what}, XFS that shares blocks");
            table.add(sharing(setup, from, &ours, &theirs, format, work)?);
            convert_and_compare(setup, from, &ours, format)?;
        }
    }
    Ok(())
}

fn sharing(
    setup: &Setup,
    from: &Path,
    ours: &Path,
    theirs: &Path,
    format: &str,
    work: String,
) -> anyhow::Result<Outcome> {
    let options: &[&str] = if format == "vhdx" { &["--block-size", "1M"] } else { &[] };
    let cp = || shell("cp --reflink=always \"$1\" \"$2\" && sync -d \"$2\"", from, theirs);
    let qemu = || qemu(from, theirs, format, "-W -m 16");
    let side = Side::new("vhdxkit", || convert(setup, from, ours, format, options));
    Case::new(12, work, Unit::Seconds, side)
        .against(Side::new("cp --reflink, synced", cp).want(Want::Time(2.0)))
        .against(Side::new("qemu-img -W -m16, synced: it copies", qemu).needs("qemu-img"))
        .run(setup.rounds)
}

/// Ours; it syncs by itself.
fn convert(
    setup: &Setup,
    from: &Path,
    to: &Path,
    format: &str,
    options: &[&str],
) -> anyhow::Result<f64> {
    remove(to)?;
    let mut arguments = vec!["convert", "--quiet", "--to", format, text(from), text(to)];
    arguments.extend(options);
    timed(text(&setup.vhdx), &arguments)
}

/// A fast copy that is wrong is no victory.
fn convert_and_compare(setup: &Setup, from: &Path, to: &Path, format: &str) -> anyhow::Result<()> {
    convert(setup, from, to, format, &[])?;
    timed(text(&setup.vhdx), &["compare", "--quiet", text(from), text(to)])?;
    Ok(())
}

fn dd(from: &Path, to: &Path) -> anyhow::Result<f64> {
    remove(to)?;
    let (from, to) = (format!("if={}", text(from)), format!("of={}", text(to)));
    timed("dd", &[&from, &to, "bs=256K", "conv=fdatasync", "status=none"])
}

/// QEMU converts without caring for durability, which is its fastest, and is synced in the end.
fn qemu(from: &Path, to: &Path, format: &str, options: &str) -> anyhow::Result<f64> {
    let script = format!("qemu-img convert {options} -O {format} \"$1\" \"$2\" && sync -d \"$2\"");
    shell(&script, from, to)
}

/// A shell's script that makes the second of two files.
fn shell(script: &str, from: &Path, to: &Path) -> anyhow::Result<f64> {
    remove(to)?;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(from).arg(to);
    seconds(&mut command).map(|(seconds, _)| seconds)
}

/// What there is where no data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nothing {
    Holes,
    Zeros,
}

/// One mebibyte in ten holds data.
fn mostly_nothing(path: &Path, mebibytes: u64, nothing: Nothing) -> anyhow::Result<()> {
    remove(path)?;
    let file = File::create(path)?;
    file.set_len(mebibytes * MIB)?;
    let zeros = vec![0; 1 << 20];
    let (mut bytes, mut noise) = (vec![0; 1 << 20], Noise::new(2));
    for number in 0..mebibytes {
        if number % 10 == 3 {
            noise.fill(&mut bytes);
            file.write_all_at(&bytes, number * MIB)?;
        } else if nothing == Nothing::Zeros {
            file.write_all_at(&zeros, number * MIB)?;
        }
    }
    file.sync_all()?;
    Ok(())
}
