//! Disks that are no VHDX, where something is wrong with them or with what was asked: what is refused, what is
//! warned of, and whether the advice can be followed.

mod common;

use std::fs;

use common::{Workdir, json, vhdx};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Changes the footer at the end of a VHD, and makes its checksum right again.
fn edit_footer(path: &str, edit: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 512;
    let footer = &mut bytes[at..];
    edit(footer);
    footer[64..68].fill(0);
    let sum = !footer.iter().fold(0u32, |sum, byte| sum + u32::from(*byte));
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    fs::write(path, bytes).unwrap();
}

fn zero(path: &str, at: u64, length: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize..][..length as usize].fill(0);
    fs::write(path, bytes).unwrap();
}

/// Only `info` told that a machine was suspended on a VHD, that its footer is gone, or that bytes are left out.
#[test]
fn what_is_wrong_with_a_vhd_is_told_by_all_that_read_it() {
    let dir = Workdir::new();
    let make = |name: &str, more: &[&str]| {
        let path = dir.path(name);
        vhdx(&[&["create", &path, "6M"][..], more].concat()).succeeds();
        path
    };
    let saved = make("saved.vhd", &[]);
    edit_footer(&saved, |footer| footer[84] = 1);
    let endless = make("endless.vhd", &[]);
    let length = fs::metadata(&endless).unwrap().len();
    zero(&endless, length - 512, 512);
    let odd = make("odd.vhd", &["--fixed"]);
    edit_footer(&odd, |footer| {
        footer[48..56].copy_from_slice(&(6 * MIB - 256).to_be_bytes());
    });
    let small = make("small.vhd", &[]);
    edit_footer(&small, |footer| {
        footer[28..32].copy_from_slice(b"vpc ");
        footer[56..60].copy_from_slice(&[0, 100, 4, 17]);
    });
    let good = make("good.vhd", &[]);
    let copy = dir.path("copy.vhdx");
    for (image, told) in [
        (&saved, "suspended"),
        (&endless, "its copy at the head was used"),
        (&odd, "the rest is left out"),
        (&small, "means the geometry"),
        (&good, ""),
    ] {
        for words in [
            &["convert", image, &copy, "--force"][..],
            &["measure", image],
            &["compare", image, image],
        ] {
            let (_, errors) = vhdx(words).succeeds_with_errors();
            let warned = errors.lines().any(|line| {
                line.starts_with("warning: ")
                    && line.contains(told)
                    && line.contains(image.as_str())
            });
            assert_eq!(warned, !told.is_empty(), "{words:?}: {errors}");
        }
    }
}

/// A disk with sectors of 4096 bytes was copied into formats that have none, and its guest found no partition.
#[test]
fn a_format_without_large_sectors_is_warned_of() {
    let dir = Workdir::new();
    let image = dir.path("a.vhdx");
    vhdx(&["create", &image, "10M", "--logical-sector-size", "4096"]).succeeds();
    for (name, warned) in [("b.vhd", true), ("b.qcow2", true), ("b.raw", false), ("b.vhdx", false)]
    {
        let (_, errors) = vhdx(&["convert", &image, &dir.path(name)]).succeeds_with_errors();
        assert_eq!(errors.matches("sectors of 512").count(), usize::from(warned), "{errors}");
    }
    let (_, errors) = vhdx(&["measure", &image, "--to", "qcow2"]).succeeds_with_errors();
    assert!(errors.contains("sectors of 4096"), "{errors}");
}

/// The largest number there is made `measure` panic.
#[test]
fn sizes_that_no_disk_has_are_refused_in_words() {
    for size in ["0xffffffffffffffff", "0xfffffffffffffe00", "65T"] {
        let told = vhdx(&["measure", size, "--to", "qcow2"]).fails_with(1);
        assert!(told.contains("64 TiB") && !told.contains("panicked"), "{told}");
        for format in ["vhdx", "vhd"] {
            let told = vhdx(&["measure", size, "--to", format]).fails_with(1);
            assert!(!told.contains("panicked"), "{told}");
        }
    }
    vhdx(&["measure", "64T", "--to", "qcow2"]).succeeds();
}

/// The same wrong option was wrong usage in `create` and a failure in `convert` and `measure`.
#[test]
fn a_shape_that_no_disk_has_is_wrong_usage_everywhere() {
    let dir = Workdir::new();
    for (name, format, wrong) in [
        ("x.vhdx", "vhdx", ["--block-size", "3M"]),
        ("x.vhdx", "vhdx", ["--logical-sector-size", "1000"]),
        ("x.vhdx", "vhdx", ["--log-size", "1000"]),
        ("x.vhd", "vhd", ["--block-size", "3M"]),
        ("x.qcow2", "qcow2", ["--block-size", "3M"]),
    ] {
        let target = dir.path(name);
        if format != "qcow2" {
            vhdx(&[&["create", &target, "10M"][..], &wrong].concat()).fails_with(2);
        }
        // Before the source is looked at: there is none.
        let missing = dir.path("missing.raw");
        vhdx(&[&["convert", &missing, &target][..], &wrong].concat()).fails_with(2);
        vhdx(&[&["measure", "10M", "--to", format][..], &wrong].concat()).fails_with(2);
    }
    assert!(dir.names().is_empty(), "{:?}", dir.names());
}

/// A dynamic VHD was said to be made as Azure wants it, and that a fixed disk became a dynamic one was not.
#[test]
fn what_became_of_a_disk_is_told() {
    let dir = Workdir::new();
    let (raw, image) = (dir.path("a.raw"), dir.path("a.vhdx"));
    fs::write(&raw, vec![7; (4 << 20) - 100]).unwrap();
    let told = vhdx(&["convert", &raw, &dir.path("a.vhd")]).succeeds();
    assert!(told.contains("100 bytes longer") && !told.contains("Azure"), "{told}");
    let told = vhdx(&["convert", &raw, &dir.path("b.vhd"), "--fixed"]).succeeds();
    assert!(told.contains("Azure"), "{told}");
    let done = json(&vhdx(&["convert", "--json", &raw, &dir.path("c.vhd")]).succeeds());
    assert_eq!(
        (&done["source_size"], &done["virtual_size"]),
        (&4_194_204.into(), &(4 * MIB).into())
    );
    vhdx(&["create", &image, "4M", "--fixed"]).succeeds();
    let told = vhdx(&["convert", &image, &dir.path("d.vhd")]).succeeds();
    assert!(told.contains("--fixed"), "{told}");
    let told = vhdx(&["convert", &image, &dir.path("e.vhd"), "--fixed"]).succeeds();
    assert!(!told.contains("--fixed"), "{told}");
}
