//! VHDX, VHD, qcow2 and raw, any way round, as a person converts them; QEMU is the judge.

mod common;

use std::process::Command;

use common::{Workdir, json, vhdx};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn have_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

fn qemu(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{errors}");
    text
}

/// Format to ask for, whether fixed, the file's extension, QEMU's name of it.
const FORMATS: [(&str, bool, &str, &str); 5] = [
    ("vhdx", false, "vhdx", "vhdx"),
    ("vhd", true, "fixed.vhd", "vpc"),
    ("vhd", false, "dynamic.vhd", "vpc"),
    ("qcow2", false, "qcow2", "qcow2"),
    ("raw", false, "raw", "raw"),
];

/// Data, zeros that are stored, holes, and a last sector that is used.
fn disk(size: u64, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let mut put = |at: u64, length: u64| {
        for at in at.min(size)..(at + length).min(size) {
            bytes[at as usize] = (at % 251) as u8 ^ seed | 1;
        }
    };
    put(0, 5000);
    put(2 * MIB - 700, 1400);
    put(4 * MIB, 3 * MIB);
    put(size.saturating_sub(600), 600);
    bytes
}

fn convert(from: &str, to: &str, fixed: bool) -> Value {
    let mut arguments = vec!["convert", "--json", "--quiet", from, to];
    if fixed {
        arguments.push("--fixed");
    }
    json(&vhdx(&arguments).succeeds())
}

/// Every format into every other one: QEMU finds nothing that differs, and neither do we.
#[test]
fn every_format_becomes_every_other() {
    if !have_qemu() {
        return;
    }
    // Whole mebibytes; whole sectors that no geometry makes; less than a block.
    for (number, size) in [20 * MIB, 9 * MIB + 1536, 300 * 1024].into_iter().enumerate() {
        let dir = Workdir::new();
        let original = dir.path("original.raw");
        std::fs::write(&original, disk(size, number as u8)).unwrap();
        let first = FORMATS.map(|(_, fixed, extension, _)| {
            let path = dir.path(&format!("first.{extension}"));
            convert(&original, &path, fixed);
            path
        });
        for ((from_name, from_fixed, _, from_qemu), source) in FORMATS.iter().zip(&first) {
            let sources_size = if *from_fixed { size.next_multiple_of(MIB) } else { size };
            for (to_name, fixed, extension, to_qemu) in FORMATS {
                let case = format!("{size}: {from_name} {from_fixed} to {to_name} {fixed}");
                let target = dir.path(&format!("second.{extension}"));
                let done = convert(source, &target, fixed);
                // A fixed VHD stays one, in whole mebibytes.
                let is_fixed = fixed || (*from_fixed && to_name == "vhd");
                let unit = if is_fixed { MIB } else { 512 };
                assert_eq!(done["virtual_size"], sources_size.next_multiple_of(unit), "{case}");
                assert_eq!(
                    done["bytes_after"],
                    std::fs::metadata(&target).unwrap().len(),
                    "{case}"
                );
                // Bytes that were added are zeros, which QEMU accepts.
                qemu(&["compare", "-q", "-f", from_qemu, "-F", to_qemu, source, &target]);
                qemu(&["compare", "-q", "-f", "raw", "-F", to_qemu, &original, &target]);
                if done["virtual_size"] == sources_size {
                    vhdx(&["compare", source, &target]).succeeds();
                } else {
                    let text = vhdx(&["compare", source, &target]).exits_with(3);
                    assert!(text.contains("different sizes"), "{case}: {text}");
                }
                if to_name == "qcow2" || to_name == "vhdx" {
                    qemu(&["check", "-q", "-f", to_qemu, &target]);
                }
                if to_qemu == "vpc" {
                    let info = qemu(&["info", "--output=json", "-f", "vpc", &target]);
                    assert!(
                        info.contains(&format!("\"virtual-size\": {}", done["virtual_size"])),
                        "{info}"
                    );
                }
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}

/// What Azure asks for: fixed, whole mebibytes, a footer of 512 bytes behind them, and no header in front.
#[test]
fn a_fixed_vhd_is_what_azure_takes() {
    let dir = Workdir::new();
    let (raw, image) = (dir.path("a.raw"), dir.path("a.vhd"));
    let bytes = disk(5 * MIB + 4096, 0);
    std::fs::write(&raw, &bytes).unwrap();
    let text = vhdx(&["convert", &raw, &image, "--fixed"]).succeeds();
    assert!(text.contains("Azure") && text.contains(&(MIB - 4096).to_string()), "{text}");
    let file = std::fs::read(&image).unwrap();
    assert_eq!(file.len() as u64, 6 * MIB + 512);
    assert!(file[..bytes.len()] == bytes);
    let footer = &file[6 << 20..];
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(footer[16..24], [0xFF; 8], "a fixed disk has no header");
    for field in [40, 48] {
        assert_eq!(footer[field..field + 8], (6 * MIB).to_be_bytes());
    }
    assert_eq!(footer[60..64], [0, 0, 0, 2]);
    let sum = footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at));
    let sum = sum.fold(0u32, |sum, (_, byte)| sum + u32::from(*byte));
    assert_eq!(footer[64..68], (!sum).to_be_bytes());
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!((&info["format"], &info["type"]), (&"vhd".into(), &"fixed".into()));
    assert_eq!(info["virtual_size"], 6 * MIB);
    // Space that is all there.
    let full = dir.path("full.vhd");
    vhdx(&["convert", &raw, &full, "--fixed", "--preallocate"]).succeeds();
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::fs::MetadataExt;
        let meta = std::fs::metadata(&full).unwrap();
        assert!(meta.st_blocks() * 512 >= meta.len(), "the file is sparse");
    }
}

/// A copy takes what `measure` said, or less where something was zero.
#[test]
fn measure_tells_what_a_copy_takes() {
    let dir = Workdir::new();
    let raw = dir.path("a.raw");
    {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(&raw).unwrap();
        file.set_len(300 * MIB).unwrap();
        for at in [0, 5 * MIB, 200 * MIB] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&vec![7; 3 << 20]).unwrap();
        }
    }
    for (target, more) in [
        ("a.vhd", vec![]),
        ("f.vhd", vec!["--fixed"]),
        ("a.qcow2", vec![]),
        ("b.qcow2", vec!["--block-size", "4K"]),
        ("a.img", vec![]),
    ] {
        let to = match target {
            "a.img" => "raw",
            other => other.rsplit('.').next().unwrap(),
        };
        let measured =
            json(&vhdx(&[&["measure", "--json", &raw, "--to", to][..], &more].concat()).succeeds());
        let path = dir.path(target);
        let done =
            json(&vhdx(&[&["convert", "--json", &raw, &path][..], &more].concat()).succeeds());
        let (said, took) =
            (measured["required"].as_u64().unwrap(), done["bytes_after"].as_u64().unwrap());
        assert!(took <= said && said - took <= 1 << 20, "{target}: said {said}, took {took}");
        assert!(measured["fully_allocated"].as_u64().unwrap() >= said);
    }
}

/// A format that the user names is not looked for in the bytes; one that he does not name is, except where
/// that contradicts the name.
#[test]
fn a_raw_disk_whose_guest_wrote_a_header_is_not_misread() {
    let dir = Workdir::new();
    let mut bytes = disk(4 * MIB, 1);
    let inner = dir.path("inner.vhd");
    vhdx(&["create", &inner, "1M", "--fixed"]).succeeds();
    let footer = std::fs::read(&inner).unwrap()[MIB as usize..].to_vec();
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer);
    let mut qcow = disk(4 * MIB, 2);
    qcow[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    for (name, bytes, told) in [("a", &bytes, "vhd"), ("b", &qcow, "qcow2")] {
        let (raw, plain) = (dir.path(&format!("{name}.raw")), dir.path(name));
        std::fs::write(&raw, bytes).unwrap();
        std::fs::write(&plain, bytes).unwrap();
        let copy = dir.path(&format!("{name}.vhdx"));
        // The name says raw, the contents something else.
        for command in [&["convert", &raw, &copy][..], &["info", &raw], &["compare", &raw, &plain]]
        {
            let refused = vhdx(command).fails_with(1);
            assert!(refused.contains(told) && refused.contains("raw"), "{refused}");
        }
        vhdx(&["convert", "--from", "raw", &raw, &copy]).succeeds();
        vhdx(&["compare", "--format-a", "raw", "--format-b", "vhdx", &raw, &copy]).succeeds();
        assert_eq!(
            json(&vhdx(&["info", "--json", "--from", "raw", &raw]).succeeds())["virtual_size"],
            4 * MIB
        );
    }
    // Without any name the contents count.
    let info = json(&vhdx(&["info", "--json", &dir.path("a")]).succeeds());
    assert_eq!((&info["format"], &info["virtual_size"]), (&"vhd".into(), &MIB.into()));
}

#[test]
fn what_is_no_image_is_named_plainly() {
    let dir = Workdir::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let vmdk = [b"KDMV".as_slice(), &[0; 4096]].concat();
    let vdi = [&[0; 64][..], &[0x7F, 0x10, 0xDA, 0xBE], &[0; 4096]].concat();
    for (path, told) in [
        (write("empty.vhd", b""), "no VHD"),
        (write("zeros.vhd", &[0; 4096]), "no VHD"),
        (write("empty.qcow2", b""), "no qcow2"),
        (write("cut.qcow2", b"QFI\xfb\0\0\0\x03\0\0"), "qcow2"),
        (write("x.vmdk", &vmdk), "VMDK"),
        (write("x.vdi", &vdi), "VDI"),
        (write("empty.vhdx", b""), "vhdx"),
    ] {
        let target = dir.path("out.vhdx");
        for command in [
            &["info", &path][..],
            &["convert", &path, &target],
            &["compare", &path, &path],
            &["measure", &path],
        ] {
            let text = vhdx(command).fails_with(1);
            assert!(text.contains(told), "{command:?}: {text}");
        }
    }
    // A target whose name says nothing, or something that is not written.
    let raw = write("a.raw", &[1; 4096]);
    for (name, told) in [("out.vhxd", "--to"), ("out.vmdk", "vmdk"), ("out.avhd", "checkpoint")] {
        let text = vhdx(&["convert", &raw, &dir.path(name)]).fails_with(2);
        assert!(text.contains(told), "{text}");
    }
    // What a format does not have.
    for more in [["--logical-sector-size", "4096"], ["--log-size", "1M"], ["--block-size", "3M"]] {
        vhdx(&[&["convert", &raw, &dir.path("out.vhd")][..], &more].concat()).fails();
        vhdx(&[&["create", &dir.path("out.vhd"), "10M"][..], &more].concat()).fails_with(2);
    }
    vhdx(&["convert", &raw, &dir.path("out.qcow2"), "--fixed"]).fails_with(2);
    vhdx(&["create", &dir.path("out.vhd"), "2041G"]).fails();
    assert!(!dir.names().iter().any(|name| name.starts_with("out")), "{:?}", dir.names());
}

/// Nothing is opened because a qcow2 image names it.
#[test]
fn a_backing_file_is_not_opened() {
    if !have_qemu() {
        return;
    }
    let dir = Workdir::new();
    let (base, child, data) = (dir.path("secret.raw"), dir.path("c.qcow2"), dir.path("d.qcow2"));
    std::fs::write(&base, vec![0x5E; 1 << 20]).unwrap();
    qemu(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &child]);
    let option = format!("data_file={},data_file_raw=on", dir.path("data.raw"));
    qemu(&["create", "-q", "-f", "qcow2", "-o", &option, &data, "1M"]);
    for (image, told) in [(&child, "backing file"), (&data, "external data file")] {
        let text = vhdx(&["convert", image, &dir.path("out.raw")]).fails_with(1);
        assert!(text.contains(told), "{text}");
    }
    assert!(!dir.names().contains(&"out.raw".to_owned()));
}

/// What QEMU makes of qcow2: compressed, with small clusters, of version 2, with subclusters.
#[test]
fn qcow2_images_of_qemu_are_read() {
    if !have_qemu() {
        return;
    }
    let dir = Workdir::new();
    let raw = dir.path("a.raw");
    std::fs::write(&raw, disk(9 * MIB + 512, 3)).unwrap();
    for (number, options) in [
        &["-c"][..],
        &["-o", "cluster_size=512"],
        &["-o", "compat=0.10"],
        &["-o", "extended_l2=on,cluster_size=128k"],
        &["-o", "preallocation=metadata"],
        &["-o", "refcount_bits=1"],
    ]
    .into_iter()
    .enumerate()
    {
        let image = dir.path(&format!("{number}.qcow2"));
        let result = Command::new("qemu-img")
            .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
            .args(options)
            .args([&raw, &image])
            .status();
        assert!(result.unwrap().success(), "{options:?}");
        let output = common::Run::command(&["compare", &raw, &image]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match options[1..].first() {
            // imago does not know subclusters: that is said.
            Some(option) if option.contains("extended_l2") && !output.status.success() => {
                assert!(output.status.code() == Some(1), "{text}");
            }
            _ => assert!(output.status.success(), "{options:?}: {text}"),
        }
    }
}

/// A chain of VHDs, made, told, flattened; its parent found by what the child says, and by nothing else.
#[test]
fn a_child_of_a_vhd_finds_its_parent_only_where_it_may() {
    let dir = Workdir::new();
    let (raw, base, child) = (dir.path("a.raw"), dir.path("base.vhd"), dir.path("child.vhd"));
    std::fs::write(&raw, disk(6 * MIB, 4)).unwrap();
    vhdx(&["convert", &raw, &base]).succeeds();
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    vhdx(&["compare", &raw, &child]).succeeds();
    let info = json(&vhdx(&["info", "--json", "--chain", &child]).succeeds());
    assert_eq!(
        (&info["type"], &info["parent"]["name"]),
        (&"differencing".into(), &"base.vhd".into())
    );
    assert_eq!(info["parent"]["linkage"], info["chain"][1]["virtual_disk_id"]);
    assert_eq!(info["parent"]["relative_path"], r".\base.vhd");
    for deny in [&["--parents", "deny"][..], &["--parents", "beneath=/nowhere"]] {
        vhdx(&[&["compare", &raw, &child][..], deny].concat()).fails_with(5);
    }
    let beneath = format!("beneath={}", dir.path("."));
    vhdx(&["compare", &raw, &child, "--parents", &beneath]).succeeds();
    let flat = dir.path("flat.vhdx");
    vhdx(&["convert", &child, &flat]).succeeds();
    vhdx(&["compare", &raw, &flat]).succeeds();

    // Another disk under the parent's name; a name that is no image's; a raw file with the right contents.
    let away = dir.path("away.vhd");
    std::fs::rename(&base, &away).unwrap();
    let text = vhdx(&["compare", &raw, &child]).fails_with(5);
    assert!(text.contains("base.vhd") && text.contains("unique id"), "{text}");
    vhdx(&["compare", &raw, &child, "--parent", &away]).succeeds();
    vhdx(&["convert", &raw, &base]).succeeds();
    let text = vhdx(&["compare", &raw, &child]).fails_with(5);
    assert!(text.contains("not the disk"), "{text}");
    vhdx(&["compare", &raw, &child, "--ignore-parent-id"]).succeeds();
    vhdx(&["convert", "--force", "--to", "raw", &raw, &base]).succeeds();
    let text = vhdx(&["compare", &raw, &child]).fails_with(5);
    assert!(text.contains("no VHD"), "a parent was probed: {text}");
    // Its own parent: a circle.
    std::fs::remove_file(&base).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&child, &base).unwrap();
        let text = vhdx(&["compare", &raw, &child]).fails_with(5);
        assert!(text.contains("circle"), "{text}");
    }
    // Even alone it is told what it is.
    let info = json(&vhdx(&["info", "--json", &child]).succeeds());
    assert_eq!(info["parent"]["resolved"], Value::Null);
}
