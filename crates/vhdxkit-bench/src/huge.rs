//! Row 14: the largest disk there is, with the smallest blocks: a table of 513 MiB.

use std::path::Path;
use std::process::Command;

use crate::harness::{Case, Outcome, Side, Unit, Want};
use crate::process::{seconds, text, timed};
use crate::setup::{Setup, remove};
use crate::table::Table;

/// Row 14.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let (ours, theirs, plain) = (setup.file("huge"), setup.file("huge.qemu"), setup.file("plain"));
    let vhdx = text(&setup.vhdx);
    let create = || {
        remove(&ours)?;
        timed(vhdx, &["create", text(&ours), "64T", "--block-size", "1M"])
    };
    let qemu_create = || {
        remove(&theirs)?;
        let o = "block_size=1M";
        timed("qemu-img", &["create", "-q", "-f", "vhdx", "-o", o, text(&theirs), "64T"])
    };
    let write = || {
        remove(&plain)?;
        let to = format!("of={}", text(&plain));
        timed("dd", &["if=/dev/zero", &to, "bs=256K", "count=16", "conv=fdatasync", "status=none"])
    };
    let side = Side::new("vhdxkit", create).want(Want::Most(0.010));
    let outcome = Case::new(14, "create a disk of 64 TiB, blocks of 1 MiB", Unit::Seconds, side)
        .against(Side::new("dd of 4 MiB of zeros, synced", write))
        .against(Side::new("qemu-img create", qemu_create).needs("qemu-img"))
        .run(setup.rounds)?;
    table.add(outcome);
    table.add(info(setup, &ours, &theirs)?);
    table.add(memory(setup, &ours, &theirs)?);
    for path in [ours, theirs, plain] {
        remove(&path)?;
    }
    Ok(())
}

fn info(setup: &Setup, ours: &Path, theirs: &Path) -> anyhow::Result<Outcome> {
    let from = format!("if={}", text(ours));
    let read = ["of=/dev/null", &from, "bs=4K", "count=8", "status=none"];
    let tell = || timed(text(&setup.vhdx), &["info", text(ours)]);
    let side = Side::new("vhdxkit", tell).want(Want::Most(0.005));
    Case::new(14, "open it and tell what it is", Unit::Seconds, side)
        .against(Side::new("dd, 8 reads of 4 KiB", || timed("dd", &read)))
        .against(
            Side::new("qemu-img info", || timed("qemu-img", &["info", text(theirs)]))
                .needs("qemu-img"),
        )
        .run(setup.rounds)
}

fn memory(setup: &Setup, ours: &Path, theirs: &Path) -> anyhow::Result<Outcome> {
    let ours = || peak(&[text(&setup.vhdx), "info", text(ours)]);
    let side = Side::new("vhdxkit", ours).want(Want::Most(f64::from(16 << 20)));
    Case::new(14, "memory that this takes at most", Unit::Bytes, side)
        .against(
            Side::new("qemu-img info", || peak(&["qemu-img", "info", text(theirs)]))
                .needs("qemu-img"),
        )
        .run(setup.rounds)
}

/// The most memory that a command has, in bytes.
fn peak(command: &[&str]) -> anyhow::Result<f64> {
    let mut launcher = Command::new(std::env::current_exe()?);
    let (_, printed) = seconds(launcher.arg("memory").arg("--").args(command))?;
    Ok(printed.trim().parse()?)
}
