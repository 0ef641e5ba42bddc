//! FAT12, FAT16 and FAT32 as mkfs.vfat makes them and mtools fills them: the free clusters are exactly
//! those that fsck.fat counts, and a volume that is not at rest, or contradicts itself, gives none away.

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clusters::{MemoryDisk, clean, empty, free_units, ranges, refusal};
use common::{have, sh};
use proptest::prelude::*;
use vhdxkit_volumes::{Survey, Trouble};

fn tools() -> bool {
    ["mkfs.vfat", "fsck.fat", "mcopy", "mshowfat"].into_iter().all(have)
}

fn make(path: &Path, options: &str) {
    sh(&format!("mkfs.vfat {options} {}", path.display()));
}

/// Files of many sizes go in, every third one goes, more go in: the free clusters lie in pieces.
fn fill(path: &Path, files: usize, size: usize) {
    let folder = tempfile::tempdir().unwrap();
    sh(&format!(
        "cd {}; mkdir d e; for n in $(seq {files}); do \
            head -c $((n * n % {size} + 1)) /dev/zero > e/f$n; head -c $((n * 7 % {size})) /dev/zero > d/a-long-name-$n; \
         done; \
         i={}; mcopy -s -i $i d e ::; \
         mdel -i $i '::e/f*[147]' '::d/*[258]'; \
         head -c $(({size} * 2)) /dev/zero > LATE; mcopy -i $i LATE ::",
        folder.path().display(),
        path.display()
    ));
}

struct Counted {
    used: u64,
    all: u64,
}

/// What fsck.fat says; it must find nothing to complain about.
fn fsck(path: &Path) -> Counted {
    let text = sh(&format!("fsck.fat -n -v {}", path.display()));
    let counts = text.lines().last().unwrap().split(", ").nth(1).unwrap();
    let (used, rest) = counts.split_once('/').unwrap();
    let all = rest.split(' ').next().unwrap();
    Counted { used: used.parse().unwrap(), all: all.parse().unwrap() }
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Entry by entry, the whole table in memory.
fn free_by_table(bytes: &[u8], name: &str, count: u64) -> (u64, Vec<std::ops::Range<u64>>) {
    let sector = u16_at(bytes, 11);
    let start = u16_at(bytes, 14) * sector;
    let table = &bytes[start..];
    let is_free = |cluster: usize| match name {
        "FAT12" if cluster.is_multiple_of(2) => u16_at(table, cluster / 2 * 3) & 0xFFF == 0,
        "FAT12" => u16_at(table, cluster / 2 * 3 + 1) >> 4 == 0,
        "FAT16" => u16_at(table, cluster * 2) == 0,
        _ => u32_at(table, cluster * 4) & 0x0FFF_FFFF == 0,
    };
    let fat = if name == "FAT32" { u32_at(bytes, 36) } else { u16_at(bytes, 22) };
    let root = (u16_at(bytes, 17) * 32).div_ceil(sector);
    let data = (u16_at(bytes, 14) + usize::from(bytes[16]) * fat + root) * sector;
    let unit = usize::from(bytes[13]) * sector;
    let ranges = ranges(count, data as u64, unit as u64, |n| is_free(n as usize + 2));
    (data as u64, ranges)
}

fn compare(path: &Path) -> Survey {
    let ours = clean(path);
    let theirs = fsck(path);
    assert_eq!(free_units(&ours), theirs.all - theirs.used);
    let bytes = fs::read(path).unwrap();
    let (data, ranges) = free_by_table(&bytes, ours.name, theirs.all);
    assert_eq!(ours.free.ranges(), ranges);
    for cluster in clusters_of_files(path) {
        let start = data + (cluster - 2) * ours.unit;
        let in_free = ours.free.ranges().iter().any(|free| free.contains(&start));
        assert!(!in_free, "cluster {cluster} of a file is free");
    }
    ours
}

/// By mshowfat, which says `::/name <2-5> <9>`.
fn clusters_of_files(path: &Path) -> BTreeSet<u64> {
    let text = sh(&format!(
        "mdir -i {0} -/ -b | tr '\\n' '\\0' | xargs -0 -r mshowfat -i {0}",
        path.display()
    ));
    let pieces = text.split('<').skip(1).filter_map(|piece| piece.split_once('>'));
    let mut found = BTreeSet::new();
    for (piece, _) in pieces {
        let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
        found.extend(first.parse::<u64>().unwrap()..=last.parse().unwrap());
    }
    found
}

#[test]
fn free_clusters_are_those_of_fsck_in_every_shape() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, kib, options, files, size) in [
        ("FAT12", 1440, "-n FLOPPY", 60, 9000),
        ("FAT12", 360, "", 20, 4000),
        ("FAT12", 2000, "-F 12 -s 1 -f 1", 100, 9000),
        ("FAT12", 8000, "-F 12 -s 4 -r 1024 -n 'A LABEL'", 150, 9000),
        ("FAT12", 16000, "-F 12 -S 4096 -s 1", 150, 9000),
        ("FAT16", 16000, "-F 16 -s 2", 200, 20000),
        ("FAT16", 128 << 10, "-F 16 -n DATA", 200, 30000),
        ("FAT16", 300 << 10, "-F 16 -s 128 -R 64", 200, 30000),
        ("FAT16", 128 << 10, "-F 16 -S 2048 -f 1", 200, 30000),
        ("FAT32", 40 << 10, "-F 32 -s 1 -n 'BIG ONE'", 250, 20000),
        ("FAT32", 300 << 10, "-F 32", 250, 20000),
        ("FAT32", 300 << 10, "-F 32 -S 4096 -s 1 -f 1", 250, 20000),
        ("FAT32", 300 << 10, "-F 32 -R 500 -s 8 -a", 250, 20000),
    ] {
        let path = empty(folder.path(), "fat.img", kib << 10);
        make(&path, options);
        let fresh = compare(&path);
        assert_eq!(fresh.name, name, "{options}");
        // mkfs.vfat leaves out the rest of a track.
        assert!(fresh.length <= kib << 10 && fresh.length > (kib << 10) - (64 << 10));
        let label = options.split("-n ").nth(1).unwrap_or_default().trim_matches('\'');
        assert_eq!(fresh.label, label);
        fill(&path, files, size);
        let filled = compare(&path);
        assert!(filled.free.ranges().len() > 2, "{:?}", filled.free);
        assert_eq!(filled.label, label);
        fs::remove_file(&path).unwrap();
    }
}

/// mkfs.vfat makes FAT32 of fewer clusters than it should have; fsck.fat takes it for FAT32, and so do we.
#[test]
fn a_fat32_that_is_too_small_is_fat32() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "fat.img", 33 << 20);
    make(&path, "-F 32 -s 8");
    let ours = clean(&path);
    let theirs = fsck(&path);
    assert_eq!((ours.name, free_units(&ours)), ("FAT32", theirs.all - theirs.used));
    assert!(theirs.all < 65525);
}

/// Clusters that mkfs.vfat is told are bad are in nobody's file, and not free.
#[test]
fn bad_clusters_are_in_use() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("bad");
    fs::write(&list, "3000\n3001\n3002\n3003\n5000\n").unwrap();
    for options in ["-F 16 -s 2", "-F 32 -s 1"] {
        let path = empty(folder.path(), "fat.img", 64 << 20);
        make(&path, options);
        let before = free_units(&compare(&path));
        make(&path, &format!("{options} -l {}", list.display()));
        let with_bad = clean(&path);
        assert!(free_units(&with_bad) < before);
        for kib in [3000u64, 3003, 5000] {
            assert!(!with_bad.free.ranges().iter().any(|range| range.contains(&(kib << 10))));
        }
    }
}

/// A table of 8 MiB is read in pieces; a volume of 64 GiB costs that table twice.
#[test]
fn a_large_volume_costs_its_tables() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "fat.img", 64 << 30);
    make(&path, "-F 32");
    fill(&path, 100, 3_000_000);
    let disk = common::FileDisk::open(&path);
    let start = std::time::Instant::now();
    let found = vhdxkit_volumes::survey(&disk, 0..64 << 30).unwrap();
    let read = disk.bytes_read.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{read} bytes read in {:?}", start.elapsed());
    let tables = (64u64 << 30) / found.unit * 4 * 2;
    assert!(read < tables + (768 << 10), "{read}");
    assert!(start.elapsed().as_secs() < 5);
    let theirs = fsck(&path);
    assert_eq!((free_units(&found), found.unclean), (theirs.all - theirs.used, None));
}

/// Behind the bytes that the samples use is nothing but free space.
const SIZE: u64 = 34 << 20;
const USED: usize = 3 << 19;

/// A small filled volume of each kind, as bytes.
fn samples() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let sample = |(kib, options): (u64, &str)| {
        let path = empty(folder.path(), "fat.img", kib << 10);
        make(&path, options);
        fill(&path, 30, 5000);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(USED);
        bytes
    };
    [(720, "-F 12"), (4300, "-F 16 -s 1"), (SIZE >> 10, "-F 32 -s 1")].map(sample).to_vec()
}

fn survey_bytes(bytes: &[u8]) -> Result<Survey, Trouble> {
    MemoryDisk::new(bytes, SIZE).survey()
}

struct Layout {
    /// Where the FATs begin.
    fats: Vec<usize>,
    bits: usize,
    state: usize,
}

fn layout(bytes: &[u8]) -> Layout {
    let name = survey_bytes(bytes).unwrap().name;
    let bits = name[3..].parse().unwrap();
    let size = 512 * if bits == 32 { u32_at(bytes, 36) } else { u16_at(bytes, 22) };
    let first = u16_at(bytes, 14) * 512;
    let state = if bits == 32 { 0x41 } else { 0x25 };
    Layout { fats: (0..usize::from(bytes[16])).map(|n| first + n * size).collect(), bits, state }
}

fn get(bytes: &[u8], fat: usize, bits: usize, cluster: usize) -> usize {
    let word = u32_at(bytes, fat + cluster * bits / 8);
    (if bits == 12 && cluster % 2 == 1 { word >> 4 } else { word }) & ((1 << bits.min(28)) - 1)
}

/// Sets an entry in every FAT.
fn set(bytes: &mut [u8], cluster: usize, value: usize) {
    let Layout { fats, bits, .. } = layout(bytes);
    for fat in fats {
        let at = fat + cluster * bits / 8;
        let (shift, mask) = match bits {
            12 if cluster % 2 == 1 => (4, 0xFFF0),
            12 => (0, 0x0FFF),
            16 => (0, 0xFFFF),
            _ => (0, 0x0FFF_FFFF),
        };
        let word = u32_at(bytes, at) & !mask | value << shift & mask;
        bytes[at..at + 4].copy_from_slice(&(word as u32).to_le_bytes());
    }
}

#[test]
fn a_volume_that_is_not_at_rest_says_so() {
    if !tools() {
        return;
    }
    for bytes in samples() {
        let Layout { fats, bits, state } = layout(&bytes);
        assert_eq!(survey_bytes(&bytes).unwrap().unclean, None);
        for (value, why) in [(1, "cleanly"), (2, "failed"), (3, "cleanly")] {
            let mut dirty = bytes.clone();
            dirty[state] |= value;
            assert!(survey_bytes(&dirty).unwrap().unclean.unwrap().contains(why));
        }
        if bits > 12 {
            let top = bits.min(28) - 1;
            for (bit, why) in [(top, "cleanly"), (top - 1, "failed")] {
                let mut dirty = bytes.clone();
                let entry = get(&dirty, fats[0], bits, 1);
                set(&mut dirty, 1, entry & !(1 << bit));
                assert!(survey_bytes(&dirty).unwrap().unclean.unwrap().contains(why));
                // In the second FAT alone: they differ.
                let mut odd = bytes.clone();
                odd[fats[1]..fats[1] + 8].copy_from_slice(&dirty[fats[1]..fats[1] + 8]);
                assert!(matches!(survey_bytes(&odd), Err(Trouble::Damaged(_))));
            }
        }
    }
}

/// What no whole volume has in its FAT: each of them, and fsck.fat sees it, too.
#[test]
fn a_fat_that_contradicts_itself_is_damaged() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fat.img");
    for bytes in samples() {
        let Layout { fats, bits, .. } = layout(&bytes);
        fs::write(&path, &bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(SIZE).unwrap();
        let all = fsck(&path).all as usize;
        let entry = |cluster| get(&bytes, fats[0], bits, cluster);
        let free = (2..all).find(|cluster| entry(*cluster) == 0).unwrap();
        let chained: Vec<usize> =
            (2..all).filter(|cluster| (2..all).contains(&entry(*cluster))).collect();
        let (one, other) = (chained[3], chained[chained.len() - 3]);
        let last =
            (2..all).find(|c| entry(*c) > all + 2 && chained.iter().any(|p| entry(*p) == *c));
        let last = last.unwrap();
        let before_last = chained.iter().copied().find(|c| entry(*c) == last).unwrap();
        for (what, cluster, value) in [
            ("leads into a free cluster", one, free),
            ("two lead to one", one, entry(other)),
            ("a chain that goes round", last, last),
            ("a chain whose end leads back", last, before_last),
            ("leads behind the end", one, all + 2),
            ("leads nowhere", one, 1),
            ("its next is given away", entry(one), 0),
        ] {
            let mut damaged = bytes.clone();
            set(&mut damaged, cluster, value);
            let found = survey_bytes(&damaged);
            // A chain that closes on its own beginning is in use as a whole: nothing of it is free.
            let Ok(survey) = &found else { continue };
            assert_eq!(what, "a chain whose end leads back", "FAT{bits}");
            assert_eq!(survey.free, survey_bytes(&bytes).unwrap().free);
        }
        let mut odd = bytes.clone();
        odd[fats[1] + 100] ^= 1;
        assert!(refusal(survey_bytes(&odd)).contains("differ"));
        let mut odd = bytes.clone();
        set(&mut odd, 0, 0);
        assert!(refusal(survey_bytes(&odd)).contains("medium"));
    }
}

#[test]
fn a_root_directory_of_fat32_that_leads_astray_is_damaged() {
    if !tools() {
        return;
    }
    let bytes = samples().remove(2);
    let root = u32_at(&bytes, 0x2C);
    for (root, value, why) in
        [(0, None, "goes on at"), (1 << 27, None, "goes on at"), (root, Some(root), "no end")]
    {
        let mut damaged = bytes.clone();
        damaged[0x2C..0x30].copy_from_slice(&(root as u32).to_le_bytes());
        if let Some(value) = value {
            set(&mut damaged, root, value);
        }
        let found = refusal(survey_bytes(&damaged));
        assert!(found.contains(why), "{found}");
    }
    let free =
        (2..).find(|cluster| get(&bytes, layout(&bytes).fats[0], 32, *cluster) == 0).unwrap();
    let mut damaged = bytes;
    damaged[0x2C..0x30].copy_from_slice(&(free as u32).to_le_bytes());
    assert!(refusal(survey_bytes(&damaged)).contains("goes on at cluster 0"));
}

/// Every byte of the boot sector, every value: a survey or an error, never a panic, never much to read.
#[test]
fn no_boot_sector_makes_it_panic_or_read_much() {
    if !tools() {
        return;
    }
    for bytes in samples() {
        for at in 0..96 {
            for value in [0, 1, 2, 0x7F, 0x80, 0xFF, bytes[at] ^ 1, bytes[at] ^ 0x80] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let disk = MemoryDisk::new(&changed, SIZE);
                let _ = disk.survey();
                assert!(disk.read.into_inner() <= 3 * SIZE + (1 << 20));
            }
        }
    }
}

/// Random damage to the tables: whoever finds nothing wrong has no cluster free that a chain leads to.
#[test]
fn random_damage_never_frees_what_a_chain_leads_to() {
    if !tools() {
        return;
    }
    let samples = samples();
    let strategy = (0..3usize, prop::collection::vec((any::<u16>(), any::<u8>()), 1..6));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&strategy, |(which, changes)| {
        let mut bytes = samples[which].clone();
        let Layout { fats, bits, .. } = layout(&bytes);
        let size = fats[1] - fats[0];
        for (at, value) in changes {
            fats.iter().for_each(|fat| bytes[fat + usize::from(at) % size] = value);
        }
        let Ok(found) = survey_bytes(&bytes) else { return Ok(()) };
        let all = free_by_table(&bytes, found.name, 0);
        for cluster in 2..((found.length - all.0) / found.unit) as usize + 2 {
            let next = get(&bytes, fats[0], bits, cluster);
            let start = all.0 + (next as u64).saturating_sub(2) * found.unit;
            let free = found.free.ranges().iter().any(|range| range.contains(&start));
            prop_assert!(next < 2 || !free, "{cluster} leads to {next}");
        }
        Ok(())
    });
    result.unwrap();
}
