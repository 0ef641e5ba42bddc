//! The built command on disks that other programs wrote, and on the largest disk there can be.

mod common;

use std::process::Command;

use common::{Workdir, vhdx};

const DISKS: [(&str, &str, &str); 4] = [
    (
        "iotest-dirtylog-10G-4M.vhdx.bz2",
        "bzip2",
        "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
    ),
    (
        "iotest-dynamic-1G.vhdx.bz2",
        "bzip2",
        "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478",
    ),
    (
        "test-disk2vhd.vhdx.bz2",
        "bzip2",
        "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a",
    ),
    (
        "fattools-base4k.vhdx.gz",
        "gzip",
        "f08bbf229558488872fd090c491d05b53125ffbf0c4e4775e4de0fe647f3f406",
    ),
];

#[test]
fn convert_gives_the_bytes_that_guests_saw_before_and_after_replay_in_place() {
    let dir = Workdir::new();
    for (packed, program, expected) in DISKS {
        let image = dir.path("disk.vhdx");
        if common::unpack(packed, program, &image).is_none() {
            continue;
        }
        let raw = dir.path("disk.raw");
        let before = dir.fingerprint(&image);
        vhdx(&["convert", &image, &raw]).succeeds();
        assert_eq!(common::sha256(&raw), expected, "{packed}");
        assert!(dir.fingerprint(&image) == before, "{packed} was changed");
        vhdx(&["log", "replay", &image]).succeeds();
        vhdx(&["compare", &image, &raw]).succeeds();
        std::fs::remove_file(&raw).unwrap();
    }
}

/// 64 TiB in blocks of 1 MiB, its table of 513 MiB in full use.
#[test]
fn info_of_a_64_tib_image_stays_below_16_mib_of_memory() {
    let dir = Workdir::new();
    let image = dir.path("large.vhdx");
    let options = "block_size=1M,block_state_zero=on";
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "vhdx", "-o", options, &image, "64T"])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: qemu-img is not installed");
        return;
    }
    let script = "import resource, subprocess, sys\n\
                  subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let measured = Command::new("python3")
        .args(["-c", script, env!("CARGO_BIN_EXE_vhdx"), "info", &image])
        .output();
    let Ok(measured) = measured else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    let kib: u64 = String::from_utf8(measured.stdout).unwrap().trim().parse().unwrap();
    assert!(kib < 16 << 10, "{kib} KiB resident");
}
