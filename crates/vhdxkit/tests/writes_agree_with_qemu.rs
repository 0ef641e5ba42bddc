//! The same writes through us and through QEMU: the guest's bytes must be the same, and each must
//! accept the other's file, clean and dirty.
//!
//! Both start from copies of one image, made by either of us: all block sizes, fixed and dynamic, from
//! 3 MiB to 64 TiB. `VHDXKIT_LONG=1` runs many more seeds. QEMU does not open disks with 4096-byte
//! sectors; `peers_4k.rs` has other witnesses for those.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::{CreateOptions, Image, OpenOptions};
use vhdxkit_testkit::random::Random;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, Copy)]
enum Operation {
    Write {
        offset: u64,
        length: u64,
        value: u8,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    /// Aligned so that we always zero what is discarded; QEMU does not discard, and is told to zero.
    Discard {
        offset: u64,
        length: u64,
    },
    Flush,
}

fn operations(
    random: &mut Random,
    size: u64,
    block: u64,
    fixed: bool,
    count: u64,
) -> Vec<Operation> {
    (0..count)
        .map(|_| {
            let near = match random.below(5) {
                0 => random.below(size.div_ceil(4 * GIB)) * (4 * GIB),
                1 => random.below(size.div_ceil(block).min(8)) * block,
                2 => size,
                _ => random.below(size.div_ceil(block).min(40)) * block + random.below(block),
            };
            let length = (512 * (1 + random.below(500))).min(size);
            let offset = near.saturating_sub(random.below(length)) / 512 * 512;
            let offset = offset.min(size - length);
            match random.below(12) {
                0 => Operation::Zero { offset, length },
                1 if !fixed && block <= 8 * MIB => {
                    let start = offset / block * block;
                    Operation::Zero { offset: start, length: block.min(size - start) }
                }
                2 if !fixed => {
                    let start = offset.next_multiple_of(4096);
                    let end = (offset + length) / 4096 * 4096;
                    Operation::Discard { offset: start, length: end.saturating_sub(start) }
                }
                3 | 4 => Operation::Flush,
                _ => Operation::Write { offset, length, value: 1 + random.below(255) as u8 },
            }
        })
        .collect()
}

fn ours(image: &Image, operations: &[Operation]) {
    for operation in operations {
        match *operation {
            Operation::Write { offset, length, value } => {
                image.write_at(offset, &vec![value; length as usize]).unwrap();
            }
            Operation::Zero { offset, length } => {
                image.write_zeroes(offset..offset + length).unwrap();
            }
            Operation::Discard { offset, length } => {
                image.discard(offset..offset + length).unwrap();
            }
            Operation::Flush => image.flush().unwrap(),
        }
    }
}

fn theirs(image: &Path, operations: &[Operation]) {
    let mut script = String::new();
    for operation in operations {
        script += &match *operation {
            Operation::Write { offset, length, value } => {
                format!("write -q -P {value} {offset} {length}\n")
            }
            Operation::Zero { offset, length } => format!("write -q -z {offset} {length}\n"),
            Operation::Discard { length: 0, .. } => continue,
            Operation::Discard { offset, length } => format!("write -q -z {offset} {length}\n"),
            Operation::Flush => "flush\n".to_owned(),
        };
    }
    let mut child = Command::new("qemu-io")
        .args(["-f", "vhdx", "-t", "unsafe", text(image)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("fail"), "{said}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn lint(image: &Path, dirty: bool) {
    let Some(linter) = common::shared("tools/vhdxlint.py") else { return };
    let mut command = Command::new("python3");
    command.arg(linter);
    if dirty {
        command.arg("--replay");
    }
    let output = command.arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

fn require_same(a: &Path, b: &Path) {
    let open = |path| Disk::open(path, Some(DiskFormat::Vhdx), false).unwrap();
    let result = compare(&open(a), &open(b), &mut ()).unwrap();
    assert!(result.identical(), "{result:?}");
}

/// QEMU's own reading of a file.
fn require_qemu_reads(image: &Path, size: u64, dir: &Path) {
    common::run("qemu-img", &["check", "-q", "-f", "vhdx", text(image)]);
    if size > 20 * GIB {
        return;
    }
    let raw = dir.join("read.raw");
    common::run("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", text(image), text(&raw)]);
    let open = |path, format| Disk::open(path, Some(format), false).unwrap();
    let (image, copy) = (open(image, DiskFormat::Vhdx), open(&raw, DiskFormat::Raw));
    let result = compare(&image, &copy, &mut ()).unwrap();
    assert!(result.identical(), "{result:?}");
    std::fs::remove_file(raw).unwrap();
}

#[test]
fn the_same_writes_through_both_make_the_same_disk() {
    if !common::have("qemu-io") || !common::have("qemu-img") {
        return;
    }
    let long = std::env::var_os("VHDXKIT_LONG").is_some();
    let (seeds, count) = if long { (200, 400) } else { (9, 120) };
    let mut done = 0;
    for seed in 1..=seeds {
        let mut random = Random::new((seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("ours.vhdx"), dir.path().join("theirs.vhdx"));
        let block = MIB << (seed % 9);
        let fixed = random.below(4) == 0;
        let size = match fixed {
            true => (16 + random.below(300)) * MIB + 512 * random.below(3),
            false => random.one_of(&[3 * MIB, 200 * MIB + 512, 5 * GIB, 13 * GIB, 64 << 40]),
        };
        let by_us = random.below(3) > 0;
        let _named = common::NamedOnFailure(format!(
            "seed {seed}: block {block}, size {size}, fixed {fixed}, made by us {by_us}"
        ));
        if by_us {
            let options = CreateOptions::new(size).block_size(block as u32).fixed(fixed);
            options.log_size(1 << (20 + random.below(3))).create(&first).unwrap();
        } else {
            let kind = if fixed { "fixed" } else { "dynamic" };
            let options = format!("subformat={kind},block_size={block}");
            let size = (size.next_multiple_of(MIB)).to_string();
            common::run(
                "qemu-img",
                &["create", "-q", "-f", "vhdx", "-o", &options, text(&first), &size],
            );
        }
        std::fs::copy(&first, &second).unwrap();
        let operations = operations(&mut random, size, block, fixed, count);
        let image = OpenOptions::new().write(true).open(&first).unwrap();
        ours(&image, &operations);
        image.flush().unwrap();
        // A copy of what a crash right now would leave.
        let crashed = dir.path().join("crashed.vhdx");
        std::fs::copy(&first, &crashed).unwrap();
        image.close().unwrap();
        drop(image);
        theirs(&second, &operations);
        require_same(&first, &second);
        require_qemu_reads(&first, size, dir.path());
        lint(&first, false);
        if Image::open(&crashed).unwrap().headers().is_dirty() {
            require_same(&first, &crashed);
            lint(&crashed, true);
            common::run("qemu-img", &["check", "-q", "-r", "all", "-f", "vhdx", text(&crashed)]);
            require_same(&first, &crashed);
            require_qemu_reads(&crashed, size, dir.path());
        }
        // And on with QEMU's file, and QEMU with ours.
        let more = self::operations(&mut random, size, block, fixed, count / 4);
        let image = OpenOptions::new().write(true).open(&second).unwrap();
        ours(&image, &more);
        image.close().unwrap();
        drop(image);
        theirs(&first, &more);
        require_same(&first, &second);
        require_qemu_reads(&second, size, dir.path());
        done += operations.len() + more.len();
    }
    println!("{seeds} images, {done} operations through both");
}

/// The simulator found this one: with a single free sector at the end of the log QEMU 10.0.2 never comes
/// back from its search for the active sequence. Every fill of the log that we leave must be replayed.
#[test]
fn qemu_replays_however_full_the_log_is() {
    if !common::have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    CreateOptions::new(4 * GIB).block_size(1 << 20).create(&path).unwrap();
    let image = OpenOptions::new().write(true).open(&path).unwrap();
    let copy = dir.path().join("copy.vhdx");
    for commit in 0..131u64 {
        image.write_at(commit * MIB, &[1; 512]).unwrap();
        if commit % 25 == 24 {
            // An entry of three sectors, so that the log ends at odd places, too.
            image.write_at((600 + commit) * MIB, &[2; 512]).unwrap();
        }
        image.flush().unwrap();
        if commit < 115 {
            continue;
        }
        std::fs::copy(&path, &copy).unwrap();
        let untouched = dir.path().join("untouched.vhdx");
        std::fs::copy(&path, &untouched).unwrap();
        let mut qemu = Command::new("qemu-img")
            .args(["check", "-q", "-r", "all", "-f", "vhdx", text(&copy)])
            .spawn()
            .unwrap();
        let begun = std::time::Instant::now();
        let status = loop {
            if let Some(status) = qemu.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed().as_secs() > 240 {
                qemu.kill().unwrap();
                qemu.wait().unwrap();
                panic!("QEMU hangs on the log after commit {commit}");
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        assert!(status.success(), "commit {commit}");
        require_same(&untouched, &copy);
    }
}
