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

/// Three commands replaced a VHD on which a checkpoint builds, and the checkpoint was lost; of a VHDX it was refused.
#[test]
fn a_vhd_on_which_others_build_is_not_replaced() {
    let dir = Workdir::new();
    let (raw, base, child) = (dir.path("x.raw"), dir.path("base.vhd"), dir.path("child.avhd"));
    fs::write(&raw, vec![7; 6 << 20]).unwrap();
    vhdx(&["convert", &raw, &base]).succeeds();
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    let before = fs::read(&base).unwrap();
    for words in [
        &["convert", &child, &base, "--force"][..],
        &["create", &base, "10M", "--force"],
        &["convert", &raw, &base, "--force"],
        &["convert", &raw, &base, "--force", "--to", "raw"],
    ] {
        let told = vhdx(words).fails_with(1);
        assert!(told.contains("child.avhd builds on"), "{words:?}: {told}");
        assert!(fs::read(&base).unwrap() == before, "{words:?}");
    }
    // A child elsewhere knows its parent, too.
    let elsewhere = dir.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let away = format!("{elsewhere}/child.avhd");
    fs::rename(&child, &away).unwrap();
    let told = vhdx(&["convert", &away, &base, "--force", "--parent", &base]).fails_with(1);
    assert!(told.contains("is a parent of the source"), "{told}");
    assert!(fs::read(&base).unwrap() == before);
    // Whose children are all gone may be replaced.
    vhdx(&["create", &base, "10M", "--force"]).succeeds();
}

/// A child that was made with its parent's name took the parent's place.
#[test]
fn a_child_is_not_made_in_its_parents_place() {
    for name in ["base.vhd", "base.vhdx"] {
        let dir = Workdir::new();
        let base = dir.path(name);
        vhdx(&["create", &base, "10M"]).succeeds();
        let before = fs::read(&base).unwrap();
        let told = vhdx(&["create", &base, "--parent", &base, "--force"]).fails_with(1);
        assert!(told.contains("its own parent"), "{told}");
        assert!(fs::read(&base).unwrap() == before, "{name}");
    }
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

/// Of images that QEMU left dirty, or made with what is not read here, it was said that the file is damaged.
#[test]
fn a_qcow2_image_that_is_not_read_is_sent_to_qemu_img() {
    let dir = Workdir::new();
    let (raw, image, copy) = (dir.path("a.raw"), dir.path("a.qcow2"), dir.path("c.vhdx"));
    fs::write(&raw, vec![7; 1 << 20]).unwrap();
    vhdx(&["convert", &raw, &image]).succeeds();
    let good = fs::read(&image).unwrap();
    assert_eq!(good[7], 3, "the version");
    for (bits, what, next) in [
        (1, "dirty", "qemu-img check -r all"),
        (2, "corrupt", "qemu-img check -r all"),
        (4, "external data file", ""),
        (8, "zlib", "qemu-img convert -O qcow2"),
        (16, "extended L2", "qemu-img convert -O qcow2"),
        (32, "0x20", "qemu-img convert -O qcow2"),
    ] {
        let mut bytes = good.clone();
        bytes[79] = bits;
        fs::write(&image, bytes).unwrap();
        for words in [&["convert", &image, &copy][..], &["info", &image], &["measure", &image]] {
            let told = vhdx(words).fails_with(1);
            assert!(told.contains(what) && told.contains(next), "{told}");
            assert!(!told.contains("--from raw") && !told.contains("another copy"), "{told}");
        }
    }
    fs::write(&image, good).unwrap();
    vhdx(&["compare", &raw, &image]).succeeds();
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

/// `create x.qcow2 10M` made a VHDX of that name and said nothing.
#[test]
fn a_new_disk_is_not_named_like_another_format() {
    let dir = Workdir::new();
    for (name, next) in [
        ("x.qcow2", "qemu-img create -f qcow2"),
        ("x.vmdk", "qemu-img create -f vmdk"),
        ("x.VDI", "qemu-img create -f vdi"),
        ("x.raw", "truncate -s 10485760"),
        ("x.img", "truncate -s 10485760"),
    ] {
        let told = vhdx(&["create", &dir.path(name), "10M"]).fails_with(2);
        assert!(told.contains(next) && told.contains("x.vhdx"), "{told}");
    }
    assert!(dir.names().is_empty(), "{:?}", dir.names());
    for name in ["plain", "disk.2024-01", "a.vhdx", "a.avhdx", "a.vhd"] {
        vhdx(&["create", &dir.path(name), "10M"]).succeeds();
    }
    let help = vhdx(&["create", "--help"]).succeeds();
    assert!(!help.contains("of qcow2") && help.contains("512K, 1M or 2M"), "{help}");
    let help = vhdx(&["convert", "--help"]).succeeds();
    assert!(help.contains("of qcow2"), "{help}");
}

/// `check` of a broken VHD printed a command that could not work, or one that was not the way.
#[test]
fn what_check_says_to_type_for_a_vhd_works() {
    let dir = Workdir::new();
    let (raw, copy) = (dir.path("a.raw"), dir.path("NEW.vhdx"));
    fs::write(&raw, vec![7; 4 << 20]).unwrap();
    let [good, bad, fixed, gone] =
        ["good.vhd", "bad.vhd", "fixed.vhd", "gone.vhd"].map(|name| dir.path(name));
    vhdx(&["convert", &raw, &good]).succeeds();
    vhdx(&["convert", &raw, &bad]).succeeds();
    vhdx(&["convert", &raw, &fixed, "--fixed"]).succeeds();
    // Both footers of a dynamic disk.
    let length = fs::metadata(&bad).unwrap().len();
    zero(&bad, length - 448, 4);
    zero(&bad, 64, 4);
    fs::copy(&fixed, &gone).unwrap();
    zero(&gone, 4 * MIB, 512);
    zero(&fixed, 4 * MIB + 64, 4);
    let told = vhdx(&["check", &good]).exits_with(3);
    assert!(told.contains("--from vhd"), "{told}");
    let told = vhdx(&["check", &bad]).exits_with(3);
    assert!(told.contains("does not open") && !told.contains("--from"), "{told}");
    for image in [&fixed, &gone] {
        let told = vhdx(&["check", image]).exits_with(3);
        let next = format!("vhdx convert {image} NEW.vhdx --from raw");
        assert!(told.contains(&next) && !told.contains("recover"), "{told}");
        vhdx(&["convert", image, &copy, "--from", "raw", "--force"]).succeeds();
    }
}

/// Of an intact VHD or qcow2 a page said that its signature has to be written anew.
#[test]
fn no_page_is_made_of_another_format() {
    let dir = Workdir::new();
    let (raw, page) = (dir.path("a.raw"), dir.path("page.html"));
    fs::write(&raw, vec![7; 4 << 20]).unwrap();
    for (name, what) in [("a.vhd", "VHD image"), ("a.qcow2", "qcow2 image")] {
        let image = dir.path(name);
        vhdx(&["convert", &raw, &image]).succeeds();
        let told = vhdx(&["map", "--html", &page, &image]).fails_with(1);
        assert!(told.contains(what) && told.contains("vhdx convert"), "{told}");
    }
    assert!(!dir.names().contains(&"page.html".to_owned()));
}

/// Programs learned that the parent is missing, and not why.
#[test]
fn programs_are_told_why_a_parent_is_missing() {
    let dir = Workdir::new();
    for (base, child) in [("base.vhd", "child.avhd"), ("base.vhdx", "child.avhdx")] {
        let (base, child) = (dir.path(base), dir.path(child));
        vhdx(&["create", &base, "10M"]).succeeds();
        vhdx(&["create", &child, "--parent", &base]).succeeds();
        let parent = &json(&vhdx(&["info", "--json", &child]).succeeds())["parent"];
        assert!(parent["resolved"].is_string() && parent["unresolved"] == Value::Null, "{parent}");
        fs::remove_file(&base).unwrap();
        let parent = &json(&vhdx(&["info", "--json", &child]).succeeds())["parent"];
        assert_eq!(parent["resolved"], Value::Null);
        assert!(parent["unresolved"].as_str().unwrap().contains("parent"), "{parent}");
    }
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
