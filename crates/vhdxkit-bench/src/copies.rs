//! Rows 8 to 12: conversions.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Setup;
use crate::harness::{Side, Table, Target, Unit, have, interleave, remove, text, timed};

const MIB: u64 = 1 << 20;

/// Bytes that nothing can compress, the same each time.
fn fill(bytes: &mut [u8], state: &mut u64) {
    for word in bytes.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn incompressible(path: &Path, mebibytes: u64) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let (mut bytes, mut state) = (vec![0; 1 << 20], 0x9E37_79B9_7F4A_7C15);
    for _ in 0..mebibytes {
        fill(&mut bytes, &mut state);
        out.write_all(&bytes)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// One mebibyte in ten holds data: half of the rest are holes, half are zeros that are stored.
fn mostly_nothing(path: &Path, mebibytes: u64) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(mebibytes * MIB)?;
    let (mut bytes, mut state) = (vec![0; 1 << 20], 0x1234_5678_9ABC_DEF1);
    for number in 0..mebibytes {
        if number % 10 == 3 {
            fill(&mut bytes, &mut state);
            file.write_all_at(&bytes, number * MIB)?;
        } else if number % 2 == 0 {
            file.write_all_at(&vec![0; 1 << 20], number * MIB)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

/// A shell command that ends with its target synced.
fn shell(script: &str) -> anyhow::Result<f64> {
    timed("sh", &["-c", script])
}

/// Rows 8 to 11.
pub(crate) fn rows(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let source = setup.file("source.raw");
    let (ours, theirs, image) =
        (setup.file("ours"), setup.file("theirs"), setup.file("source.vhdx"));
    let size = setup.mebibytes();
    let convert = |from: &Path, to: &Path, more: &[&str]| {
        remove(to);
        let mut arguments = vec!["convert", "--quiet", text(from), text(to)];
        arguments.extend(more);
        timed(text(&setup.vhdx), &arguments)
    };
    let dd = |from: &Path, to: &Path| {
        remove(to);
        let (from, to) = (format!("if={}", text(from)), format!("of={}", text(to)));
        timed("dd", &[&from, &to, "bs=256K", "conv=fdatasync", "status=none"])
    };
    let qemu = |from: &Path, format: &str, to: &Path, options: &str| {
        remove(to);
        let (from, to) = (text(from), text(to));
        shell(&format!(
            "qemu-img convert -W -m 16 {options} -O {format} {from} {to} && sync -d {to}"
        ))
    };
    if setup.wants("8") || setup.wants("10") {
        incompressible(&source, size)?;
        convert(&source, &image, &["--to", "vhdx", "--block-size", "1M"])?;
    }
    if setup.wants("8") {
        for block in ["1M", "32M"] {
            let options = format!("-o block_size={block}");
            let mut sides = vec![
                Side::new("vhdxkit", || {
                    convert(&source, &ours, &["--to", "vhdx", "--block-size", block])
                }),
                Side::new("dd bs=256K, synced", || dd(&source, &theirs)),
            ];
            if have("qemu-img") {
                sides.push(Side::new("qemu-img -W -m16, synced", || {
                    qemu(&source, "vhdx", &theirs, &options)
                }));
            }
            let figures = interleave(setup.rounds, sides)?;
            let work = format!("raw to VHDX, {size} MiB incompressible, blocks of {block}");
            table.row("8", &work, Unit::Seconds, &figures, &[Target { against: 1, ratio: 1.05 }]);
        }
    }
    if setup.wants("10") {
        let mut sides = vec![
            Side::new("vhdxkit", || convert(&image, &ours, &["--to", "raw"])),
            Side::new("dd bs=256K, synced", || dd(&source, &theirs)),
        ];
        if have("qemu-img") {
            sides.push(Side::new("qemu-img -W -m16, synced", || qemu(&image, "raw", &theirs, "")));
        }
        let figures = interleave(setup.rounds, sides)?;
        let work = format!("VHDX to raw, {size} MiB");
        table.row("10", &work, Unit::Seconds, &figures, &[Target { against: 1, ratio: 1.0 }]);
    }
    if setup.wants("9") {
        mostly_nothing(&source, 2 * size)?;
        let mut sides = vec![
            Side::new("vhdxkit", || {
                convert(&source, &ours, &["--to", "vhdx", "--block-size", "1M"])
            }),
            Side::new("cp --sparse=always, synced", || {
                remove(&theirs);
                let (from, to) = (text(&source), text(&theirs));
                shell(&format!("cp --sparse=always {from} {to} && sync -d {to}"))
            }),
        ];
        if have("qemu-img") {
            sides.push(Side::new("qemu-img -W -m16, synced", || {
                qemu(&source, "vhdx", &theirs, "-o block_size=1M")
            }));
        }
        let figures = interleave(setup.rounds, sides)?;
        let work = format!("raw to VHDX, {} MiB, 90 % holes and zeros", 2 * size);
        table.row("9", &work, Unit::Seconds, &figures, &[Target { against: 1, ratio: 1.0 }]);
    }
    if setup.wants("11") {
        remove(&image);
        timed(text(&setup.vhdx), &["create", text(&image), "100G"])?;
        let qcow = setup.file("empty.qcow2");
        let mut sides = vec![Side::new("vhdxkit", || convert(&image, &ours, &["--to", "raw"]))];
        if have("qemu-img") {
            timed("qemu-img", &["create", "-q", "-f", "qcow2", text(&qcow), "100G"])?;
            sides.push(Side::new("qemu-img, empty qcow2", || qemu(&qcow, "raw", &theirs, "")));
            sides.push(Side::new("qemu-img, the same VHDX", || qemu(&image, "raw", &theirs, "")));
        }
        let figures = interleave(3, sides)?;
        table.row("11", "empty 100 GiB VHDX to raw", Unit::Seconds, &figures, &[]);
        table.bound("11", "the same", figures[0].median() * 1000.0, 50.0, " ms");
        remove(&qcow);
    }
    for path in [source, ours, theirs, image] {
        remove(&path);
    }
    Ok(())
}

/// Row 12, on a file system made for it.
pub(crate) fn reflink(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    let missing = |table: &mut Table, why: &str| table.line(&["12", "reflinks", "", why, "", ""]);
    if !have("mkfs.xfs") {
        missing(table, "mkfs.xfs is not installed");
        return Ok(());
    }
    let (volume, mount) = (setup.file("xfs.img"), setup.file("xfs"));
    File::create(&volume)?.set_len(4 << 30)?;
    std::fs::create_dir_all(&mount)?;
    let made = timed("mkfs.xfs", &["-q", "-m", "reflink=1", text(&volume)])
        .and_then(|_| timed("mount", &["-o", "loop", text(&volume), text(&mount)]));
    if let Err(error) = made {
        missing(table, &format!("cannot mount XFS: {error}").replace('\n', " "));
        remove(&volume);
        return Ok(());
    }
    let done = on_xfs(setup, table, &mount);
    timed("umount", &[text(&mount)])?;
    remove(&volume);
    done
}

fn on_xfs(setup: &Setup, table: &mut Table, mount: &Path) -> anyhow::Result<()> {
    let at = |name: &str| mount.join(name);
    let (raw, image, ours, theirs) = (at("d.raw"), at("d.vhdx"), at("ours"), at("theirs"));
    let size = setup.mebibytes();
    incompressible(&raw, size)?;
    let vhdx = text(&setup.vhdx);
    let convert = |from: &Path, to: &Path, format: &str| {
        remove(to);
        timed(vhdx, &["convert", "--quiet", text(from), text(to), "--to", format])
    };
    let cp = |from: &Path| {
        remove(&theirs);
        let (from, to) = (text(from), text(&theirs));
        shell(&format!("cp --reflink=always {from} {to} && sync -d {to}"))
    };
    convert(&raw, &image, "vhdx")?;
    for (from, format, work) in [(&raw, "vhdx", "raw to VHDX"), (&image, "raw", "VHDX to raw")] {
        let figures = interleave(
            setup.rounds,
            vec![
                Side::new("vhdxkit", || convert(from, &ours, format)),
                Side::new("cp --reflink, synced", || cp(from)),
            ],
        )?;
        let work = format!("{work}, {size} MiB, on XFS with reflinks");
        table.row("12", &work, Unit::Seconds, &figures, &[Target { against: 1, ratio: 2.0 }]);
    }
    Ok(())
}
