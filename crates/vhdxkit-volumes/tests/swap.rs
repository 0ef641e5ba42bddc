//! Swap space is free but for its header and its bad pages, unless a system sleeps in it.
#![allow(clippy::single_range_in_vec_init)] // maps of one range are what is expected

use vhdxkit_volumes::{Survey, Trouble, recognise};

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use clusters::shared;
use common::{FileDisk, have, sh, survey_of};

const MIB: u64 = 1 << 20;

/// Swap of so many mebibytes, as `mkswap` makes it.
fn swap(mebibytes: u64, options: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    sh(&format!("truncate -s {mebibytes}M {0}; mkswap -q {options} {0}", path.display()));
    std::fs::read(path).unwrap()
}

fn survey(disk: &Vec<u8>) -> Result<Survey, Trouble> {
    vhdxkit_volumes::survey(disk, 0..disk.len() as u64)
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn all_but_the_header_is_free() {
    if !have("mkswap") {
        return;
    }
    for page in [4096, 16384, 65536] {
        let disk = swap(8, &format!("-p {page} -L spare"));
        let found = survey(&disk).unwrap();
        assert_eq!((found.name, found.label.as_str(), found.unit), ("swap", "spare", page));
        assert_eq!(found.free.ranges(), [page..8 * MIB]);
        assert_eq!((found.length, found.unclean), (8 * MIB, None));
    }
}

/// Label and identifier live in the header; whoever overwrites all the rest loses neither.
#[test]
fn what_is_free_is_not_missed() {
    if !have("mkswap") || !have("blkid") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let at = path.display();
    sh(&format!("truncate -s 5000001 {at}; mkswap -q -L words {at}"));
    let before = sh(&format!("blkid -p {at}"));
    let found = survey_of(&path).unwrap();
    assert_eq!(found.length, 5_000_001 / 4096 * 4096);
    let mut disk = std::fs::read(&path).unwrap();
    for range in found.free.ranges() {
        disk[range.start as usize..range.end as usize].fill(0xEE);
    }
    std::fs::write(&path, &disk).unwrap();
    assert_eq!(sh(&format!("blkid -p {at}")), before);
    assert_eq!(survey_of(&path).unwrap(), found);
}

#[test]
fn bad_pages_are_kept() {
    if !have("mkswap") {
        return;
    }
    let mut disk = swap(1, "");
    put(&mut disk, 1032, &4u32.to_le_bytes());
    for (number, bad) in [9u32, 255, 8, 20].into_iter().enumerate() {
        put(&mut disk, 1536 + number * 4, &bad.to_le_bytes());
    }
    let page = |number: u64| number * 4096;
    let expected = [page(1)..page(8), page(10)..page(20), page(21)..page(255)];
    assert_eq!(survey(&disk).unwrap().free.ranges(), expected);
    for (what, at, number) in [
        ("more bad pages than fit", 1032, 638),
        ("more than there are numbers", 1032, u32::MAX),
        ("a bad page behind the last", 1536, 256),
        ("a bad header", 1536, 0),
        ("a last page behind the end", 1028, 256),
        ("a last page far away", 1028, u32::MAX),
        ("no page", 1028, 0),
        ("another version", 1024, 2),
        ("numbers of another architecture", 1024, 1 << 24),
    ] {
        let mut disk = disk.clone();
        put(&mut disk, at, &number.to_le_bytes());
        assert!(survey(&disk).is_err(), "{what}");
    }
}

/// A suspended system takes the place of the signature.
#[test]
fn a_suspended_system_is_found_and_kept() {
    if !have("mkswap") {
        return;
    }
    for page in [4096, 65536] {
        let disk = swap(2, &format!("-p {page}"));
        let tuxonice = [0xED, 0xC3, 0x02, 0xE9, 0x98, 0x56, 0xE5, 0x0C];
        let signatures: [&[u8]; 5] =
            [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001", &tuxonice];
        for signature in signatures {
            let mut disk = disk.clone();
            put(&mut disk, page - 10, signature);
            let name = recognise(&disk, 0..disk.len() as u64).unwrap().unwrap().name;
            assert_eq!(name, "swap");
            let found = survey(&disk).unwrap();
            assert_eq!(found.unclean.as_deref(), Some("it holds a suspended system"));
        }
        let mut old = disk.clone();
        put(&mut old, page - 10, b"SWAP-SPACE");
        assert!(matches!(survey(&old), Err(Trouble::NotKnown(_))));
    }
}

/// A disk that Windows wrote, bare swap.
#[test]
fn a_disk_of_windows_is_surveyed() {
    let Some(packed) = shared("swap.vhdx.gz") else { return };
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    sh(&format!(
        "zcat {} >{at}/vhdx; qemu-img convert -f vhdx -O raw {at}/vhdx {at}/disk",
        packed.display()
    ));
    let path = folder.path().join("disk");
    let disk = FileDisk::open(&path);
    assert_eq!(vhdxkit_volumes::partitions(&disk).unwrap(), []);
    let found = survey_of(&path).unwrap();
    assert_eq!((found.name, found.unclean), ("swap", None));
    assert_eq!(found.free.ranges(), [4096..found.length]);
}
