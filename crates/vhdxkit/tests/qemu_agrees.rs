//! QEMU writes, we read: random images must read the same through both.
//!
//! Block sizes from 1 to 64 MiB, dynamic and fixed, block states zero and not present, disks beyond
//! 4 GiB with blocks in several chunks (trap 10: forgetting the interleaved sector bitmap entries
//! goes wrong there), and images whose writer was killed.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::{ErrorKind, Image};
use vhdxkit_testkit::random::Random;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Commands that write patterns at random places, many of them at the borders of blocks and chunks.
fn random_writes(random: &mut Random, size: u64, block: u64) -> Vec<String> {
    let count = 5 + random.below(25);
    (0..count)
        .map(|_| {
            let border = match random.below(4) {
                0 => random.below(size.div_ceil(4 << 30)) * (4 << 30),
                1 => random.below(size.div_ceil(block)) * block,
                _ => random.below(size),
            };
            let length = 512 * (1 + random.below(600));
            let start = border.saturating_sub(random.below(length)) / 512 * 512;
            let start = start.min(size - length);
            match random.below(8) {
                0 => format!("write -z {start} {length}"),
                1 => format!("discard {start} {length}"),
                _ => format!("write -P {} {start} {length}", 1 + random.below(255)),
            }
        })
        .collect()
}

#[test]
fn random_images_by_qemu_read_the_same() {
    if !common::have("qemu-io") || !common::have("qemu-img") {
        return;
    }
    for seed in 1..=24u64 {
        let _named = common::NamedOnFailure(format!("seed {seed}"));
        let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let dir = tempfile::tempdir().unwrap();
        let (image, raw) = (dir.path().join("d.vhdx"), dir.path().join("d.raw"));
        let block = random.one_of(&[1u64, 2, 8, 32, 64]) << 20;
        let fixed = random.below(4) == 0;
        let size = match fixed {
            true => (16 + random.below(64)) << 20,
            false => random.one_of(&[3 << 20, 200 << 20, 5 << 30, 9 << 30, 13 << 30]),
        };
        let options = format!(
            "subformat={},block_size={block},log_size={}M,block_state_zero={}",
            if fixed { "fixed" } else { "dynamic" },
            random.one_of(&[1, 2]),
            random.one_of(&["on", "off"]),
        );
        let create =
            ["create", "-q", "-f", "vhdx", "-o", &options, text(&image), &size.to_string()];
        common::run("qemu-img", &create);
        let mut arguments = vec!["-f", "vhdx"];
        let writes = random_writes(&mut random, size, block);
        for write in &writes {
            arguments.extend(["-c", write]);
        }
        arguments.push(text(&image));
        common::run("qemu-io", &arguments);
        common::run("qemu-img", &["convert", "-O", "raw", text(&image), text(&raw)]);
        let ours = Disk::open(&image, Some(DiskFormat::Vhdx), false).unwrap();
        let theirs = Disk::open(&raw, Some(DiskFormat::Raw), false).unwrap();
        let result = compare(&ours, &theirs, &mut ()).unwrap();
        assert!(result.identical(), "seed {seed}, {options}, {size}: {result:?}\n{writes:#?}");
    }
}

/// Whether QEMU can open and repair an image.
fn repair(image: &Path) -> bool {
    let arguments = ["check", "-q", "-r", "all", "-f", "vhdx", text(image)];
    Command::new("qemu-img").args(arguments).output().unwrap().status.success()
}

/// Kills of the test below.
const ROUNDS: u64 = 24;

/// A writer killed without warning leaves a log to replay. QEMU's replay is asked for its opinion on
/// a copy; where it can open the file at all, it must show the same disk.
#[test]
fn what_a_killed_qemu_leaves_is_read_as_its_own_replay_reads_it() {
    if !common::have("qemu-io") || !common::have("qemu-img") {
        return;
    }
    let (mut dirty, mut agreed, mut invalid, mut theirs_opened) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        let (image, copy) = (dir.path().join("d.vhdx"), dir.path().join("copy.vhdx"));
        common::run(
            "qemu-img",
            &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(&image), "9G"],
        );
        let mut writer = Command::new("qemu-io")
            .args(["-f", "vhdx", text(&image)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut commands = writer.stdin.take().unwrap();
        let mut answers = BufReader::new(writer.stdout.take().unwrap()).lines();
        // All at once, so that the kill comes in the middle of one.
        for block in 0..800u64 {
            writeln!(commands, "write -P {} {} 64k", 1 + block % 255, block * (11 << 20)).unwrap();
        }
        for _ in 0..2 * (5 + round * 3) {
            answers.next();
        }
        // An answer comes when nothing is pending: let the next write get somewhere.
        std::thread::sleep(std::time::Duration::from_micros(150 + round * 131));
        writer.kill().unwrap();
        writer.wait().unwrap();

        std::fs::copy(&image, &copy).unwrap();
        let ours = match Image::open(&image) {
            Ok(image) => image,
            // QEMU names a log before it writes an entry (trap 6): then it must be called that.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::LogInvalid, "round {round}: {error}");
                invalid += 1;
                theirs_opened += u32::from(repair(&copy));
                continue;
            }
        };
        dirty += u32::from(ours.headers().is_dirty());
        if repair(&copy) {
            // Read by QEMU as well: our own reading of its file would prove the replay alone.
            let raw = dir.path().join("copy.raw");
            common::run("qemu-img", &["convert", "-O", "raw", text(&copy), text(&raw)]);
            let theirs = Disk::open(&raw, Some(DiskFormat::Raw), false).unwrap();
            let result = compare(&Disk::Vhdx(Box::new(ours)), &theirs, &mut ()).unwrap();
            assert!(result.identical(), "round {round}: {result:?}");
            agreed += 1;
        }
    }
    println!(
        "{ROUNDS} kills: {dirty} dirty, {agreed} agreed with, {invalid} without a valid sequence \
         (QEMU opens {theirs_opened} of these)"
    );
    assert!(dirty + invalid > 0, "no kill left a log to replay");
    assert!(agreed > 0, "QEMU opened none of them, so nothing was compared");
}
