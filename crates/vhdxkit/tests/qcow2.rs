//! qcow2 images come from anybody, and another crate reads them: damaged ones give errors, never a panic,
//! and cost what their bytes cost.
#![cfg(feature = "qcow2")]

mod common;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vhdxkit::ErrorKind;
use vhdxkit::ops::disk::{Disk, DiskFormat, Raw};
use vhdxkit::ops::import_qcow2::to_qcow2;
use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode};

const SIZE: usize = (3 << 20) + 1536;

fn guest() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    bytes[700..90_000].fill(7);
    bytes[2 << 20..(2 << 20) + 4096].fill(9);
    bytes[SIZE - 100..].fill(3);
    bytes
}

fn source() -> Disk {
    Disk::Raw(Raw { size: SIZE as u64, storage: Arc::new(MemoryStorage::new(guest())) })
}

fn make(path: &Path, cluster: u32) -> vhdxkit::Result<()> {
    std::fs::File::create(path).unwrap();
    let file = FileStorage::open(path, OpenMode::ReadWrite)?;
    to_qcow2(&source(), &file, cluster, &mut ()).map(|_| ())
}

fn read(path: &Path) -> vhdxkit::Result<Vec<u8>> {
    let disk = Disk::open(path, Some(DiskFormat::Qcow2), false)?;
    let mut bytes = vec![0; disk.size().min(64 << 20) as usize];
    for run in disk.runs().take(5000) {
        let run = run?;
        assert!(run.range.start < run.range.end && run.range.end <= disk.size());
        let end = run.range.end.min(bytes.len() as u64);
        if run.data && run.range.start < end {
            disk.read_at(run.range.start, &mut bytes[run.range.start as usize..end as usize])?;
        }
    }
    Ok(bytes)
}

#[test]
fn copies_are_read_back_with_every_cluster_size() {
    let dir = tempfile::tempdir().unwrap();
    for shift in 9..=21 {
        let path = dir.path().join(format!("{shift}.qcow2"));
        make(&path, 1 << shift).unwrap();
        assert!(read(&path).unwrap() == guest(), "clusters of 2^{shift}");
        if common::have("qemu-img") {
            common::run("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
        }
    }
    for bad in [0, 256, 4 << 20, 70_000] {
        let error = make(&dir.path().join("bad.qcow2"), bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn hostile_headers_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    make(&path, 1 << 16).unwrap();
    let sound = std::fs::read(&path).unwrap();
    for (at, bytes, word) in [
        (0, &b"QFI\0"[..], "no qcow2"),
        (4, &[0, 0, 0, 9], "version 9"),
        (8, &[0, 0, 0, 0, 0, 0, 1, 0], "backing file"),
        (20, &[0, 0, 0, 63], "2^63"),
        (24, &[0xFF; 8], "more than this version reads"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (36, &[0xFF; 4], "L1 table"),
        (36, &[0; 4], "L1 table"),
        (40, &[0xFF; 8], "outside of the file"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "external data file"),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "features"),
    ] {
        let mut file = sound.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, &file).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains(word), "{at}: {error}");
    }
}

/// A download that broke off, a full disk under a copy. What is behind the end of the file is not zeros, it is
/// lost: such an image is refused before a byte of it is handed out. What QEMU itself leaves short is not lost.
#[test]
fn an_image_that_was_cut_off_is_refused_and_not_read_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut images = vec![at("own"), at("own-512")];
    make(images[0].as_ref(), 1 << 16).unwrap();
    make(images[1].as_ref(), 512).unwrap();
    let mut raw = guest();
    // Nothing that deflates to a few bytes.
    let mut seed = 1u32;
    for byte in raw.iter_mut().skip(1 << 20).step_by(3).take(60_000) {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (seed >> 24) as u8;
    }
    raw[SIZE - 3000..].copy_from_slice(&[0x5A; 3000]);
    std::fs::write(at("raw"), &raw).unwrap();
    if common::have("qemu-img") {
        for (name, options) in [
            ("plain", &["-o", "compat=1.1"][..]),
            ("old", &["-o", "compat=0.10"]),
            ("small", &["-o", "cluster_size=512"]),
            ("large", &["-o", "cluster_size=2M"]),
            ("compressed", &["-c"]),
            ("metadata", &["-o", "preallocation=metadata"]),
        ] {
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
            arguments.extend_from_slice(options);
            let (from, to) = (at("raw"), at(name));
            arguments.extend([from.as_str(), to.as_str()]);
            common::run("qemu-img", &arguments);
            assert!(read(to.as_ref()).unwrap() == raw, "{name}");
            images.push(to);
        }
    }
    for image in images {
        let sound = std::fs::read(&image).unwrap();
        let (whole, end) = (read(image.as_ref()).unwrap(), sound.len());
        let few = [1, 100, 511, 512, 513, 4096, 1 << 16, (1 << 16) + 1, 1 << 20];
        let cuts = few.iter().filter_map(|less| end.checked_sub(*less));
        for cut in cuts.chain((1..16).map(|part| end / 16 * part)) {
            std::fs::write(&image, &sound[..cut]).unwrap();
            match read(image.as_ref()) {
                Ok(bytes) => assert!(bytes == whole && cut > end / 4 * 3, "{image} cut at {cut}"),
                Err(error) => {
                    let text = error.to_string();
                    let told =
                        text.contains("cut off") || (cut < end && cut / 512 == (end - 1) / 512);
                    assert!(told, "{image} cut at {cut}: {text}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_images_do_not_panic(
        small in any::<bool>(),
        changes in prop::collection::vec((0usize..104, 0usize..12, any::<u8>(), any::<bool>()), 1..6),
        cut in prop::option::of(0.0f64..1.0),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let cluster = if small { 512 } else { 1 << 16 };
        make(&path, cluster).unwrap();
        let mut file = std::fs::read(&path).unwrap();
        for (at, number, byte, extreme) in changes {
            // The header, or the start of any of the first clusters: tables, most of them.
            let at = number * cluster as usize + at;
            if let Some(place) = file.get_mut(at) {
                *place = if extreme { [0, 0x7F, 0x80, 0xFF][usize::from(byte % 4)] } else { byte };
            }
        }
        if let Some(cut) = cut {
            file.truncate((file.len() as f64 * cut) as usize);
        }
        std::fs::write(&path, &file).unwrap();
        let _ = read(&path);
    }
}
