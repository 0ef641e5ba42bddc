//! A chain made flat is the disk that the chain showed: to us, to QEMU, and by its published sum.

mod common;

use std::process::Command;

use common::{Workdir, json, vhdx};
use vhdxkit::{CreateOptions, OpenOptions, ParentPolicy};

const MIB: u64 = 1 << 20;

fn open(path: &str, write: bool) -> vhdxkit::Image {
    OpenOptions::new().write(write).parents(ParentPolicy::Follow).open(path).unwrap()
}

/// So many images over each other with blocks of several sizes, whole and partial blocks, zeros over data,
/// trims. Gives the last and what it shows.
fn chain(dir: &Workdir, images: u64, sector: u64) -> (String, Vec<u8>) {
    let size = 20 * MIB + 0x10000;
    let mut guest = vec![0; size as usize];
    let mut last: Option<String> = None;
    for number in 0..images {
        let path = dir.path(&format!("{number}.vhdx"));
        let options = match &last {
            None => CreateOptions::new(size).logical_sector_size(sector as u32),
            Some(parent) => CreateOptions::child_of(&open(parent, false)).unwrap(),
        };
        options.block_size(1 << 20 << (number % 3)).create(&path).unwrap();
        let image = open(&path, true);
        let start = (number * 3 * MIB) % (12 * MIB);
        let mut write = |at: u64, length: u64| {
            let bytes = vec![number as u8 + 1; length as usize];
            image.write_at(at, &bytes).unwrap();
            guest[at as usize..(at + length) as usize].copy_from_slice(&bytes);
        };
        write(start, 4 * MIB);
        write(start + 5 * MIB - sector, 3 * sector);
        write(size - sector, sector);
        for hole in 0..20 {
            write(15 * MIB + hole * 40 * sector + number * sector, sector);
        }
        let zeros = start + MIB + 8 * sector..start + 2 * MIB;
        image.write_zeroes(zeros.clone()).unwrap();
        guest[zeros.start as usize..zeros.end as usize].fill(0);
        let trimmed = start + 2 * MIB..start + 4 * MIB;
        image.discard(trimmed.clone()).unwrap();
        let bytes = &mut guest[trimmed.start as usize..trimmed.end as usize];
        image.read_at(trimmed.start, bytes).unwrap();
        image.close().unwrap();
        last = Some(path);
    }
    (last.unwrap(), guest)
}

#[test]
fn a_flat_copy_shows_what_the_chain_showed_to_us_and_to_qemu() {
    for (images, sector) in [(2, 512), (3, 4096), (5, 512)] {
        let dir = Workdir::new();
        let (leaf, guest) = chain(&dir, images, sector);
        let before: Vec<_> =
            (0..images).map(|n| dir.fingerprint(&dir.path(&format!("{n}.vhdx")))).collect();
        let (raw, flat) = (dir.path("flat.raw"), dir.path("flat.vhdx"));
        vhdx(&["convert", &leaf, &raw]).succeeds();
        vhdx(&["convert", &leaf, &flat, "--block-size", "2M"]).succeeds();
        assert!(std::fs::read(&raw).unwrap() == guest, "{images} images, sectors of {sector}");
        let info = json(&vhdx(&["info", "--json", &flat]).succeeds());
        assert_eq!((&info["type"], &info["parent"]), (&"dynamic".into(), &serde_json::Value::Null));
        assert_eq!(info["logical_sector_size"], sector);
        for other in [&raw, &flat] {
            vhdx(&["compare", &leaf, other]).succeeds();
        }
        vhdx(&["check", &flat]).succeeds();
        for (number, before) in before.iter().enumerate() {
            let path = dir.path(&format!("{number}.vhdx"));
            assert!(&dir.fingerprint(&path) == before, "image {number} was changed");
        }
        if sector == 512 {
            qemu_compares(&flat, &raw);
        }
    }
}

/// Whether QEMU sees the same; it knows sectors of 512 bytes only, and no children.
fn qemu_compares(vhdx: &str, raw: &str) {
    let arguments = ["compare", "-f", "vhdx", "-F", "raw", vhdx, raw];
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("identical"), "{text}");
        }
        Err(_) => eprintln!("skipped: qemu-img is not installed"),
    }
}

/// The sum stands in the folder that the images come from, and two other readers have confirmed it.
#[test]
fn a_real_child_is_converted_to_what_its_author_published() {
    let dir = Workdir::new();
    let (base, child) = (dir.path("base512.vhdx"), dir.path("child.vhdx"));
    let unpacked = common::unpack("fattools-base512.vhdx.gz", "gzip", &base)
        .and_then(|()| common::unpack("fattools-child512p.vhdx.gz", "gzip", &child));
    if unpacked.is_none() {
        return;
    }
    let (raw, flat, again) = (dir.path("disk.raw"), dir.path("flat.vhdx"), dir.path("again.raw"));
    vhdx(&["convert", &child, &raw]).succeeds();
    let expected = "4e517be0f15fb03bec9c4422eef5a69da09fdbe0e9ce7a2e1d3bd018d05ef936";
    assert_eq!(common::sha256(&raw), expected);
    vhdx(&["convert", &child, &flat]).succeeds();
    vhdx(&["convert", &flat, &again]).succeeds();
    assert_eq!(common::sha256(&again), expected);
    qemu_compares(&flat, &raw);
    // Without its parent it is no disk, and no copy is begun.
    std::fs::rename(&base, dir.path("elsewhere")).unwrap();
    let error = vhdx(&["convert", "--force", &child, &raw]).fails_with(5);
    assert!(error.contains(&base), "{error}");
    assert_eq!(common::sha256(&raw), expected, "the old copy is gone");
}
