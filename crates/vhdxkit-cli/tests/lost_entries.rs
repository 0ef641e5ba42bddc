//! A sector of zeros in the block table: as good a table as any, but for what the file holds besides.

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::{Workdir, vhdx};

const MIB: u64 = 1 << 20;

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
