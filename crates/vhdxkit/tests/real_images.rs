//! Images that Windows, QEMU, Disk2vhd and FATtools wrote, with the SHA-256 of what their guests saw.
//!
//! They belong to their authors and lie in the team's folder, not in this repository. A dirty one is
//! read in both ways: in memory, where not a byte, nor the size, nor the modification time of the
//! file may change; and replayed in place, where a second replay must find nothing to do.

mod common;

use std::path::Path;

use sha2::{Digest, Sha256};
use vhdxkit::format::header::Header;
use vhdxkit::log::{LogState, replay_in_place};
use vhdxkit::ops::check::check_file;
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{ErrorKind, ExtentState, Image};
use zerocopy::IntoBytes;

const DIRTY: &str = "iotest-dirtylog-10G-4M.vhdx";

const IMAGES: [(&str, &str); 9] = [
    (
        "iotest-dirtylog-10G-4M.vhdx.bz2",
        "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
    ),
    (
        "iotest-dynamic-1G.vhdx.bz2",
        "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478",
    ),
    ("test-disk2vhd.vhdx.bz2", "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a"),
    ("swap.vhdx.gz", "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49"),
    ("btrfs.vhdx.gz", "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864"),
    ("fixed.vhdx.gz", "bc0be4623b15aa84216fb31ba24e3b621ec7f1c72d198c990ac0eced222d9f62"),
    ("dynamic.vhdx.gz", "8e2b5e9265d694b42b81819e3bff29770eff4ed0f4f9f311693ff3dbdc93efac"),
    (
        "fattools-base512.vhdx.gz",
        "f08bbf229558488872fd090c491d05b53125ffbf0c4e4775e4de0fe647f3f406",
    ),
    ("fattools-base4k.vhdx.gz", "f08bbf229558488872fd090c491d05b53125ffbf0c4e4775e4de0fe647f3f406"),
];

/// The sums above are those of the folder's own table, and no image of the table is left out.
#[test]
fn the_sums_are_those_of_the_folders_table() {
    let Some(table) = common::shared("data/README.md") else { return };
    let mut listed: Vec<(String, String)> = Vec::new();
    for row in std::fs::read_to_string(table).unwrap().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, files, _, _, _, sums, _] = cells[..] else { continue };
        // Two files in one row have the same contents; the child's sum is over its parent.
        for file in files.split(" · ").filter(|f| f.contains(".vhdx.") && !f.contains("child")) {
            listed.push((file.to_owned(), sums.to_owned()));
        }
    }
    let mut ours = IMAGES.map(|(file, sum)| (file.to_owned(), sum.to_owned())).to_vec();
    ours.sort();
    listed.sort();
    assert_eq!(ours, listed);
}

fn guest_sha256(image: &Image) -> String {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent.unwrap();
        if extent.state != ExtentState::Data {
            buf.fill(0);
        }
        let mut at = extent.start;
        while at < extent.end() {
            let now = buf.len().min((extent.end() - at) as usize);
            if extent.state == ExtentState::Data {
                image.read_at(at, &mut buf[..now]).unwrap();
            }
            hash.update(&buf[..now]);
            at += now as u64;
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_image_gives_its_guests_bytes_and_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let mut right = 0;
    for (packed, sha256) in IMAGES {
        let Some(path) = common::unpack(packed, dir.path()) else { continue };
        let before = std::fs::read(&path).unwrap();
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!(guest_sha256(&image), sha256, "{packed}");
        drop(image);
        let findings = check_file(&path, false, &mut ()).unwrap();
        assert!(!findings.has_problems(), "{packed}: {:?}", findings.list());
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), modified, "{packed}");
        assert!(std::fs::read(&path).unwrap() == before, "{packed} was changed by reading");
        std::fs::remove_file(path).unwrap();
        right += 1;
    }
    println!("{right} of {} images", IMAGES.len());
}

fn headers(path: &Path) -> HeaderPair {
    let file = FileStorage::open(path, OpenMode::ReadOnly { force_share: false }).unwrap();
    HeaderPair::inspect(&file).unwrap()
}

/// Trap 8 (QEMU): replay must not change the DataWriteGuid, or it orphans every child. Trap 11
/// (DiscUtils): the log GUID must be cleared, or the next open replays again.
#[test]
fn a_crashed_image_is_replayed_in_place_once_and_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = common::unpack(&format!("{DIRTY}.bz2"), dir.path()) else { return };
    let before = headers(&path).current().clone();
    let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    let report = replay_in_place(&file).unwrap().expect("there was something to do");
    assert_eq!((report.entries, report.sectors), (1, 1));
    drop(file);

    let after = headers(&path);
    let (header, mut copies) = (after.current(), after.copies().iter());
    let good = |copy: Option<&Result<Header, _>>| copy.unwrap().as_ref().unwrap().clone();
    let (first, second) = (good(copies.next()), good(copies.next()));
    for copy in [&first, &second] {
        assert!(copy.log_guid.is_zero(), "a copy still names the log");
        assert_eq!(copy.data_write_guid, before.data_write_guid);
        assert_eq!(copy.file_write_guid, header.file_write_guid);
        assert_ne!(copy.file_write_guid, before.file_write_guid);
        assert_eq!((copy.log_offset, copy.log_length), (before.log_offset, before.log_length));
    }
    assert_eq!(first.sequence_number.get().abs_diff(second.sequence_number.get()), 1);
    let mut twin = second;
    twin.sequence_number = first.sequence_number;
    assert_eq!(twin.sealed().as_bytes(), first.as_bytes(), "the copies differ in more");

    let clean = std::fs::read(&path).unwrap();
    let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(replay_in_place(&file).unwrap(), None);
    drop(file);
    assert!(std::fs::read(&path).unwrap() == clean, "a second replay changed the file");
    let image = Image::open(&path).unwrap();
    assert_eq!(image.log().state(), LogState::Clean);
    assert_eq!(guest_sha256(&image), IMAGES[0].1);
    drop(image);
    if common::have("qemu-img") {
        let text = common::run("qemu-img", &["check", "-f", "vhdx", path.to_str().unwrap()]);
        assert!(text.contains("No errors"), "{text}");
    }
}

#[test]
fn a_child_opens_for_looking_and_reading_it_asks_for_the_parent() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = common::unpack("fattools-child512p.vhdx.gz", dir.path()) else { return };
    let image = Image::open(&path).unwrap();
    let locator = image.parent_locator().unwrap();
    assert_eq!(locator.get("relative_path"), Some(r".\base512.vhdx"));
    assert!(locator.linkage().is_some());
    let states: Vec<(u64, u64, ExtentState)> = image
        .extents(0..image.virtual_size())
        .map(|extent| extent.map(|e| (e.start, e.length, e.state)).unwrap())
        .collect();
    use ExtentState::{Data, ParentMissing};
    assert_eq!(
        states,
        [
            (0, 0x20_3000, ParentMissing),
            (0x20_3000, 0x1000, Data),
            (0x20_4000, 0xFF_C000, ParentMissing),
            (0x120_0000, 0x20_0000, Data),
            (0x140_0000, 0x2C0_0000, ParentMissing),
        ]
    );
    let error = image.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNeeded);
    image.read_at(0x120_0000, &mut [0; 512]).unwrap();
}
