//! XFS as xfsprogs make and read it.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{have, joined, sh, survey_of};

pub fn tools() -> bool {
    have("mkfs.xfs")
        && have("xfs_db")
        && have("xfs_io")
        && have("xfs_logprint")
        && have("xfs_repair")
}

/// An image made by `mkfs.xfs` with these options.
pub fn made(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
    let image = dir.path().join("xfs.img");
    let path = image.display();
    sh(&format!("truncate -s {size} {path}; mkfs.xfs -q --unsupported {options} {path} 2>&1"));
    image
}

pub fn db(image: &Path, commands: &[&str]) -> String {
    let commands: String = commands.iter().map(|command| format!(" -c '{command}'")).collect();
    sh(&format!("xfs_db -r{commands} {}", image.display()))
}

/// The value of a field as `xfs_db` prints it.
pub fn field(image: &Path, place: &str, name: &str) -> u64 {
    let text = db(image, &[place, &format!("p {name}")]);
    let value = text.trim().split(" = ").nth(1).unwrap();
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

/// The blocks on a group's free list.
pub fn free_list(image: &Path, group: u64) -> Vec<u64> {
    let agf = format!("agf {group}");
    let (first, count) = (field(image, &agf, "flfirst"), field(image, &agf, "flcount"));
    let text = db(image, &[&format!("agfl {group}"), "p bno"]);
    let mut all = Vec::new();
    for entry in text.split(" = ").nth(1).unwrap().split_whitespace() {
        let (place, block) = entry.split_once(':').unwrap();
        let (from, to) = place.split_once('-').unwrap_or((place, place));
        for _ in from.parse::<u64>().unwrap()..=to.parse().unwrap() {
            all.push(block.parse().ok());
        }
    }
    all.iter().cycle().skip(first as usize).take(count as usize).map(|at| at.unwrap()).collect()
}

/// The free bytes as `xfs_db` lists them, less the free lists; and all blocks that it lists.
pub fn listed(image: &Path) -> (Vec<Range<u64>>, u64) {
    let size = |name| field(image, "sb 0", name);
    let (block, group_blocks) = (size("blocksize"), size("agblocks"));
    let lists: Vec<_> = (0..size("agcount")).map(|group| free_list(image, group)).collect();
    let (mut ranges, mut blocks) = (Vec::new(), 0);
    for line in db(image, &["freesp -d"]).lines() {
        let numbers: Vec<u64> =
            line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let &[group, start, length] = &numbers[..] else { continue };
        blocks += length;
        if length == 1 && lists[group as usize].contains(&start) {
            continue;
        }
        let start = group * group_blocks + start;
        ranges.push(start * block..(start + length) * block);
    }
    (joined(ranges), blocks)
}

/// What a shape promises: equal extents, equal counts, clean.
pub fn compare(image: &Path, story: &str) {
    let found = survey_of(image).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(found.unclean, None, "{story}");
    let (ranges, blocks) = listed(image);
    assert!(!ranges.is_empty(), "{story}: nothing is free");
    assert_eq!(found.free.ranges(), ranges, "{story}");
    let groups = field(image, "sb 0", "agcount");
    let sum = |name| (0..groups).map(|n| field(image, &format!("agf {n}"), name)).sum::<u64>();
    let kept = sum("flcount");
    assert_eq!(found.free.bytes(), (blocks - kept) * found.unit, "{story}");
    let counted = field(image, "sb 0", "fdblocks");
    if db(image, &["version"]).contains("LAZYSBCOUNT") {
        assert_eq!(counted, blocks + sum("btreeblks"), "{story}");
    } else {
        assert!(counted >= blocks, "{story}: without lazy counts nobody keeps btreeblks");
    }
}

/// Version 4 has no checksums. `mkfs.xfs` fills it from a list of files, `xfs_repair` frees those whose inodes
/// were wiped and builds the trees anew.
pub fn version_4(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
    let source = dir.path().join("file");
    fs::write(&source, vec![7; 5000]).unwrap();
    let mut list = String::from("/none\n0 0\nd--755 0 0\n");
    for n in 0..600 {
        list += &format!("f{n} ---644 0 0 {}\n", source.display());
    }
    let prototype = dir.path().join("prototype");
    fs::write(&prototype, list + "$\n").unwrap();
    let image = made(dir, size, &format!("-m crc=0 {options} -p {}", prototype.display()));
    compare(&image, &format!("{options}, as made"));
    let wipe: String =
        (2..600).step_by(2).map(|n| format!("path /f{n}\nwrite -d core.mode 0\n")).collect();
    let commands = dir.path().join("commands");
    fs::write(&commands, wipe).unwrap();
    sh(&format!(
        "xfs_db -x {0} <{1} >{0}.log 2>&1; xfs_repair {0} >>{0}.log 2>&1",
        image.display(),
        commands.display()
    ));
    image
}
