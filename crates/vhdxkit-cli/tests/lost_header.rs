//! The header that named the log is damaged: what was flushed is in the log all the same.

mod common;

use std::process::Command;

use common::{Workdir, json, vhdx};
use vhdxkit::format::MIB;
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{CreateOptions, OpenOptions};
use vhdxkit_testkit::reseal_header;

/// A disk of 64 blocks whose writer was killed after it had flushed all of them, one by one; power failed before the
/// second header copy had named the log, and the first one is damaged since.
fn disk(path: &str) {
    CreateOptions::new(64 * MIB).block_size(1 << 20).create(path).unwrap();
    let image = OpenOptions::new().write(true).open(path).unwrap();
    for block in 0..64 {
        image.write_at(block * MIB, &[7; 512]).unwrap();
        image.flush().unwrap();
    }
    drop(image);
    let mut bytes = std::fs::read(path).unwrap();
    let storage = vhdxkit::storage::MemoryStorage::new(bytes.clone());
    let lost = HeaderPair::inspect(&storage).unwrap().current_copy();
    let at = |copy: usize| 0x1_0000 + copy * 0x1_0000;
    bytes[at(1 - lost) + 0x30..][..16].fill(0);
    reseal_header(&mut bytes, 1 - lost);
    bytes[at(lost)..][..4096].fill(0xEE);
    std::fs::write(path, bytes).unwrap();
}

/// `log replay` was told to make the file whole for other programs, found "nothing to replay", and they showed zeros.
#[test]
fn a_replay_for_other_programs_finds_the_log_that_no_header_names() {
    let dir = Workdir::new();
    let (image, raw) = (dir.path("disk.vhdx"), dir.path("disk.raw"));
    disk(&image);
    vhdx(&["convert", &image, &raw]).succeeds();
    let done = json(&vhdx(&["log", "replay", "--json", &image]).succeeds());
    assert_eq!((&done["changed"], &done["log_found"]), (&true.into(), &true.into()), "{done}");
    let again = vhdx(&["log", "replay", &image]).succeeds();
    assert!(again.contains("nothing to replay"), "{again}");
    vhdx(&["check", &image]).succeeds();
    vhdx(&["compare", &image, &raw]).succeeds();
    let qemu = Command::new("qemu-img")
        .args(["compare", "-f", "vhdx", "-F", "raw", &image, &raw])
        .status()
        .unwrap();
    assert!(qemu.success());
}
