//! A sector of zeros in the block table: as good a table as any, but for what the file holds besides.

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::{Workdir, vhdx};
use vhdxkit::format::MIB;
use vhdxkit::{CreateOptions, OpenOptions, Shrink};

/// A disk with 100 blocks of 1 MiB, all of them different.
fn disk(dir: &Workdir) -> String {
    let (raw, image) = (dir.path("disk.raw"), dir.path("disk.vhdx"));
    let mut file = File::create(&raw).unwrap();
    for block in 0..100u32 {
        let bytes: Vec<u8> =
            (0..MIB as u32 / 4).flat_map(|n| (n ^ block << 20).to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
    }
    file.set_len(160 * MIB).unwrap();
    vhdx(&["convert", &raw, &image, "--block-size", "1M"]).succeeds();
    image
}

/// Where the table of a disk made by us lies: behind header section, log and metadata.
const BAT: u64 = 3 * MIB;

fn forget(image: &str, entries: std::ops::Range<u64>) {
    let mut file = File::options().write(true).open(image).unwrap();
    file.seek(SeekFrom::Start(BAT + entries.start * 8)).unwrap();
    file.write_all(&vec![0; (entries.end - entries.start) as usize * 8]).unwrap();
}

/// "no problem found" was said of a disk all of whose entries were zeros, and `compact` was advised: it cut off
/// everything that the disk had held.
#[test]
fn what_a_table_has_lost_is_told_and_not_given_back() {
    for lost in [0..100, 10..90] {
        let dir = Workdir::new();
        let image = disk(&dir);
        vhdx(&["check", &image]).succeeds();
        let bytes = (lost.end - lost.start) * MIB;
        forget(&image, lost);
        let told = vhdx(&["check", &image]).exits_with(3);
        assert!(told.contains("W-NAMELESS") && told.contains(&bytes.to_string()), "{told}");
        assert!(told.contains(&format!("vhdx recover {image} --orphans DIR")), "{told}");
        // Not compacting was said, and a guest that went on took the space all the same.
        let words = told.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains("Do not compact before, nor write to the disk, nor start"),
            "{words}"
        );
        let before = std::fs::read(&image).unwrap();
        for arguments in [&["compact", "--dry-run", &image][..], &["compact", &image]] {
            let told = vhdx(arguments).fails_with(1);
            assert!(told.contains("--orphans DIR") && told.contains("--allow-data-loss"), "{told}");
        }
        assert!(std::fs::read(&image).unwrap() == before);
        let orphans = dir.path("orphans");
        vhdx(&["recover", &image, "--orphans", &orphans]).exits_with(3);
        let found: u64 = std::fs::read_dir(Path::new(&orphans))
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(found, bytes);
        vhdx(&["compact", "--allow-data-loss", &image]).succeeds();
        assert_eq!(before.len() as u64 - std::fs::metadata(&image).unwrap().len(), bytes);
        vhdx(&["check", &image]).succeeds();
    }
}

/// Two blocks are less than a crash leaves, and so "no problem" was said of them. But the log still holds what the
/// table said, however cleanly the disk was closed since.
#[test]
fn two_blocks_are_missed_when_the_log_remembers_them() {
    let dir = Workdir::new();
    let (image, raw) = (dir.path("disk.vhdx"), dir.path("disk.raw"));
    CreateOptions::new(64 * MIB).block_size(1 << 20).create(&image).unwrap();
    let disk = OpenOptions::new().write(true).open(&image).unwrap();
    for block in [3, 40] {
        disk.write_at(block * MIB, &[7; 4096]).unwrap();
        disk.flush().unwrap();
    }
    disk.close().unwrap();
    drop(disk);
    vhdx(&["convert", &image, &raw]).succeeds();
    vhdx(&["check", &image]).succeeds();
    // A sector of the drive, and a page of the table.
    for entries in [0..64, 0..512] {
        forget(&image, entries);
        let told = vhdx(&["check", &image]).exits_with(3);
        assert!(told.contains("W-NAMELESS") && told.contains(&(2 * MIB).to_string()), "{told}");
        let told = vhdx(&["compact", &image]).fails_with(1);
        assert!(told.contains("--allow-data-loss"), "{told}");
    }
    let new = dir.path("new.vhdx");
    vhdx(&["recover", &image, "--to", &new]).succeeds();
    vhdx(&["compare", &new, &raw]).succeeds();
}

/// All that a disk held is trimmed or becomes zeros, and its table is as empty as a damaged one: the log says that it
/// was cleared.
#[test]
fn what_was_given_up_is_not_missed() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    CreateOptions::new(64 * MIB).block_size(1 << 20).create(&image).unwrap();
    let mut disk = OpenOptions::new().write(true).open(&image).unwrap();
    for block in [3, 40, 41] {
        disk.write_at(block * MIB, &[7; 4096]).unwrap();
        disk.flush().unwrap();
    }
    disk.discard(0..4 * MIB).unwrap();
    // What comes back after a cut is empty, and nothing is logged of that.
    disk.resize(8 * MIB, Shrink::Anything).unwrap();
    disk.resize(64 * MIB, Shrink::ZerosOnly).unwrap();
    disk.flush().unwrap();
    disk.close().unwrap();
    drop(disk);
    vhdx(&["check", &image]).succeeds();
    vhdx(&["resize", &image, "2M"]).succeeds();
    vhdx(&["resize", &image, "64M"]).succeeds();
    vhdx(&["check", &image]).succeeds();
    vhdx(&["compact", &image]).succeeds();
    vhdx(&["check", &image]).succeeds();
}

/// The session that cut the disk off is overwritten by the one that made it larger again: what older ones have placed
/// is not missed.
#[test]
fn what_was_cut_off_in_an_earlier_session_is_not_missed() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    CreateOptions::new(2048 * MIB).block_size(1 << 20).create(&image).unwrap();
    let disk = OpenOptions::new().write(true).open(&image).unwrap();
    for block in 0..600 {
        disk.write_at(block * MIB, &[7; 4096]).unwrap();
        if block % 8 == 7 {
            disk.flush().unwrap();
        }
    }
    disk.close().unwrap();
    drop(disk);
    vhdx(&["resize", &image, "512M", "--force"]).succeeds();
    vhdx(&["resize", &image, "2G"]).succeeds();
    vhdx(&["check", &image]).succeeds();
}

/// One bit makes the state of a block with contents one without; its offset is the last that is left of it. A repair
/// asks before it gives that up, and so does what gives space back.
#[test]
fn the_last_trace_of_a_block_is_not_given_back() {
    let dir = Workdir::new();
    let image = disk(&dir);
    let mut bytes = std::fs::read(&image).unwrap();
    let entry = BAT as usize + 5 * 8;
    assert_eq!(bytes[entry] & 7, 6);
    bytes[entry] ^= 4;
    std::fs::write(&image, &bytes).unwrap();
    let told = vhdx(&["check", &image]).exits_with(3);
    assert!(told.contains("V32"), "{told}");
    let told = vhdx(&["compact", &image]).fails_with(1);
    assert!(told.contains(&MIB.to_string()) && told.contains("--allow-data-loss"), "{told}");
    assert!(std::fs::read(&image).unwrap() == bytes);
    vhdx(&["compact", "--allow-data-loss", &image]).succeeds();
}
