//! What is advised, typed as it stands: somebody did that word by word, and ended in circles.

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Stdio};

use common::{Workdir, json, vhdx};
use vhdxkit_testkit::faults::repairable;

const MIB: u64 = 1 << 20;

fn write(image: &str, offset: &str, input: &[u8]) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhdx"))
        .args(["write", image, "--offset", offset])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success());
}

fn overwrite(image: &str, offset: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(image).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

fn cut(image: &str, length: u64) {
    File::options().write(true).open(image).unwrap().set_len(length).unwrap();
}

/// A disk of 100 MiB, with 20 blocks of 1 MiB stored from its start on.
fn disk(dir: &Workdir) -> String {
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "100M", "--block-size", "1M"]).succeeds();
    write(&image, "0", &vec![7; 20 << 20]);
    image
}

/// The header of a GPT without entries, for the second sector of a disk; the second copy is nowhere.
fn empty_gpt() -> [u8; 512] {
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    header[24..32].copy_from_slice(&1u64.to_le_bytes());
    header[72..80].copy_from_slice(&2u64.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    let crc = header[..92].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xEDB8_8320 * (crc & 1)))
    });
    header[16..20].copy_from_slice(&(!crc).to_le_bytes());
    header
}

/// `resize min` had cut everything behind the last partition, and `sgdisk -e`, which it advised, had no room.
#[test]
fn the_smallest_disk_has_room_for_the_gpt_that_is_to_be_made() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "100M", "--block-size", "1M"]).succeeds();
    write(&image, "512", &empty_gpt());
    let told = vhdx(&["resize", &image, "min"]).succeeds();
    assert!(told.contains("sgdisk -e DIR/disk.raw"), "{told}");
    let size = json(&vhdx(&["info", "--json", &image]).succeeds())["virtual_size"].clone();
    assert_eq!(size, 2 * MIB);
    let told = vhdx(&["resize", &image, "min"]).succeeds();
    assert!(told.contains("has that size already") && told.contains("sgdisk -e DIR"), "{told}");
}

/// The same with the tool itself: cut by force, made as small as possible, and mended as it was said.
#[test]
fn a_disk_cut_by_force_and_made_smallest_gets_its_gpt_again() {
    if Command::new("sgdisk").arg("-V").output().is_err() {
        eprintln!("skipped: sgdisk is not installed");
        return;
    }
    let dir = Workdir::new();
    let (raw, image, back) = (dir.path("a.raw"), dir.path("a.vhdx"), dir.path("b.raw"));
    File::create(&raw).unwrap().set_len(100 * MIB).unwrap();
    let sgdisk = |arguments: &[&str]| {
        let output = Command::new("sgdisk").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    sgdisk(&["-n", "1:2048:+20M", "-n", "2:0:+20M", "-c", "2:root", &raw]);
    vhdx(&["convert", &raw, &image, "--block-size", "1M"]).succeeds();
    let torn = dir.path("torn.vhdx");
    std::fs::copy(&image, &torn).unwrap();
    vhdx(&["resize", &image, "60M", "--force"]).succeeds();
    vhdx(&["resize", &image, "min"]).succeeds();
    vhdx(&["convert", &image, &back]).succeeds();
    sgdisk(&["-e", &back]);
    let verdict = sgdisk(&["-v", &back]);
    assert!(verdict.contains("No problems found"), "{verdict}");

    // Through the second partition: that is the worst of it, and `sgdisk -e` does not mend it.
    let told = vhdx(&["resize", &torn, "30M", "--force"]).succeeds();
    let cut = "partition 2 \"root\" was cut: of its 20 MiB, the first ";
    assert!(told.contains(cut) && !told.contains("sgdisk"), "{told}");
}

/// The partition that was cut was not named.
#[test]
fn a_partition_that_force_has_cut_off_is_named() {
    let dir = Workdir::new();
    let image = disk(&dir);
    let mut sector = [0; 512];
    for (number, start) in [2048u32, 50 * 2048].into_iter().enumerate() {
        let entry = &mut sector[446 + 16 * number..];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&(40 * 2048u32).to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    write(&image, "0", &sector);
    let told = vhdx(&["resize", &image, "40M", "--force"]).succeeds();
    for part in [
        "partition 1 was cut: of its 40 MiB, the first 39 MiB are left",
        "partition 2, all 40 MiB of it, was cut off",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

/// `vhdx info` advised `vhdx info`, and commands had FILE where the name was known.
#[test]
fn a_file_that_is_no_vhdx_is_sent_on_and_not_back() {
    let dir = Workdir::new();
    let image = dir.path("z.vhdx");
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    for command in ["info", "ls", "compact"] {
        let told = vhdx(&[command, &image]).fails_with(1);
        assert!(!told.contains("vhdx info") && !told.contains("FILE"), "{command}: {told}");
        for next in ["check", "recover", "convert"] {
            assert!(told.contains(&format!("`vhdx {next} {image}")), "{command}: {told}");
        }
    }
    let told = vhdx(&["check", &image]).exits_with(3);
    assert!(told.contains(&format!("vhdx recover {image} --to NEW.vhdx")), "{told}");
}

/// Of an empty file it was said that it starts with zeros; of one that was cut off after its beginning, that this was
/// overwritten. And `recover` was advised, which can do nothing then.
#[test]
fn a_file_without_anything_of_the_disk_is_called_that() {
    let dir = Workdir::new();
    let image = disk(&dir);
    for (length, what) in [(500_000, "first 488.2 KiB are left"), (0, "the file is empty")] {
        cut(&image, length);
        for command in ["info", "ls", "compact"] {
            let told = vhdx(&[command, &image]).fails_with(1);
            assert!(told.contains(&format!("{length} bytes")), "{told}");
            assert!(told.contains("nothing of the disk's contents is in this file"), "{told}");
            assert!(told.contains("backup") && !told.contains("starts with"), "{told}");
        }
        let told = vhdx(&["recover", &image]).exits_with(3);
        assert!(told.contains("nothing of its contents is in this file"), "{told}");
        for words in [&["check", &image][..], &["check", &image, "--repair"]] {
            let told = vhdx(words).exits_with(3);
            assert!(told.contains(what) && told.contains("look for a backup"), "{told}");
            assert!(!told.contains("vhdx recover") && !told.contains("overwritten"), "{told}");
        }
    }
}

/// A repair was offered on a word on which it does nothing either.
#[test]
fn a_repair_is_offered_only_where_it_has_something_to_do() {
    let dir = Workdir::new();
    let image = disk(&dir);
    overwrite(&image, 0, &vec![0; 1 << 20]);
    let told = vhdx(&["check", &image]).exits_with(3);
    assert!(told.contains(&format!("vhdx recover {image} --to NEW.vhdx")), "{told}");
    assert!(!told.contains("--allow-data-loss"), "{told}");
    let plan = ["check", &image, "--repair", "--dry-run", "--allow-data-loss"];
    assert!(vhdx(&plan).exits_with(3).contains("nothing that a repair can do"));
}

/// The file system was called clean, without a word that a part of the disk is not there. Blocks say nothing to those
/// who think in partitions.
#[test]
fn what_cannot_be_read_is_told_by_ls_and_placed_by_check() {
    let dir = Workdir::new();
    let image = disk(&dir);
    let whole = vhdx(&["ls", &image]).succeeds();
    assert!(!whole.contains("cannot be read"), "{whole}");
    let length = std::fs::metadata(&image).unwrap().len();
    cut(&image, length - 5 * MIB);
    let told = vhdx(&["ls", &image]).succeeds();
    let wish = format!("5 MiB of this disk cannot be read: vhdx check {image}");
    assert!(told.contains(&wish), "{told}");
    let told = vhdx(&["check", &image]).exits_with(3);
    assert!(told.contains("everything but blocks 15-19 (MiB 15-19)"), "{told}");
    // All of its blocks.
    let small = dir.path("small.vhdx");
    vhdx(&["create", &small, "3M", "--block-size", "1M"]).succeeds();
    write(&small, "0", &[7; 3 << 20]);
    let length = std::fs::metadata(&small).unwrap().len();
    cut(&small, length - 3 * MIB);
    let told = vhdx(&["check", &small]).exits_with(3);
    assert!(told.contains("nothing for certain") && !told.contains("everything but"), "{told}");
}

/// On a disk that is full, or in a folder that is not ours, the repair said that it is done now, and then why not; not
/// how to have it all the same.
#[test]
fn a_repair_without_room_for_its_undo_file_tells_the_ways_round() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    let fault = &repairable()[0];
    std::fs::write(&image, &fault.bytes).unwrap();
    let program = env!("CARGO_BIN_EXE_vhdx");
    let script =
        format!("trap '' XFSZ; ulimit -f 0; exec {program} check '{image}' --repair | cat");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let [told, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(!told.contains("is done now"), "{told}");
    for part in ["nothing was repaired", "nothing was changed", "--no-undo", "COPY"] {
        assert!(errors.contains(part), "{part} is missing: {errors}");
    }
    assert!(std::fs::read(&image).unwrap() == fault.bytes);
    assert_eq!(dir.names(), ["disk.vhdx"]);
}

/// What beginners type.
#[test]
fn near_misses_are_told_what_was_meant() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    let told = vhdx(&["create", &image, "64"]).fails_with(2);
    assert!(told.contains("did you mean 64G?"), "{told}");
    vhdx(&["create", &image, "64MB"]).succeeds();
    let told = vhdx(&["dump", &image]).fails_with(2);
    assert!(told.contains("header|regions|metadata|bat|bitmap"), "{told}");
    let told = vhdx(&[&image]).fails_with(2);
    assert!(told.contains(&format!("vhdx info {image}")), "{told}");
}
