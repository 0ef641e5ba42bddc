//! qcow2 images come from anybody, and another crate reads them: damaged ones give errors, never a panic,
//! and cost what their bytes cost.
#![cfg(feature = "qcow2")]

mod common;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vhdxkit::ErrorKind;
use vhdxkit::ops::disk::{Disk, DiskFormat};
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
    Disk::Raw { size: SIZE as u64, storage: Arc::new(MemoryStorage::new(guest())) }
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
