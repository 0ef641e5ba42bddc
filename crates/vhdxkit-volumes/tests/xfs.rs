//! XFS against xfsprogs: what we call free is, extent for extent, what `xfs_db`'s `freesp -d` lists, less the
//! blocks on the groups' free lists (AGFL), which we keep.
//!
//! Every image is made by `mkfs.xfs`, filled and emptied again, and unmounted; this kernel may not mount
//! version 4, which is filled by `mkfs.xfs` and `xfs_repair` then.

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use common::{FileDisk, Mounted, can_mount, have, joined, sh, survey_of};
use vhdxkit_volumes::{Disk, survey};

fn tools() -> bool {
    have("mkfs.xfs")
        && have("xfs_db")
        && have("xfs_io")
        && have("xfs_logprint")
        && have("xfs_repair")
}

/// An image made by `mkfs.xfs` with these options.
fn made(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
    let image = dir.path().join("xfs.img");
    let path = image.display();
    sh(&format!("truncate -s {size} {path}; mkfs.xfs -q --unsupported {options} {path} 2>&1"));
    image
}

fn db(image: &Path, commands: &[&str]) -> String {
    let commands: String = commands.iter().map(|command| format!(" -c '{command}'")).collect();
    sh(&format!("xfs_db -r{commands} {}", image.display()))
}

/// The value of a field as `xfs_db` prints it.
fn field(image: &Path, place: &str, name: &str) -> u64 {
    let text = db(image, &[place, &format!("p {name}")]);
    let value = text.trim().split(" = ").nth(1).unwrap();
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

/// The blocks on a group's free list.
fn free_list(image: &Path, group: u64) -> Vec<u64> {
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
fn listed(image: &Path) -> (Vec<Range<u64>>, u64) {
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
fn compare(image: &Path, story: &str) {
    let found = survey_of(image).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(found.unclean, None, "{story}");
    let (ranges, blocks) = listed(image);
    assert!(!ranges.is_empty(), "{story}: nothing is free");
    assert_eq!(found.free.ranges(), ranges, "{story}");
    let groups = field(image, "sb 0", "agcount");
    let sum = |name| (0..groups).map(|n| field(image, &format!("agf {n}"), name)).sum::<u64>();
    let kept = sum("flcount");
    assert_eq!(found.free.bytes(), (blocks - kept) * found.unit, "{story}");
    let trees = if db(image, &["version"]).contains("LAZYSBCOUNT") { sum("btreeblks") } else { 0 };
    assert_eq!(field(image, "sb 0", "fdblocks"), blocks + trees, "{story}");
}

/// Files of all sizes of which half go again, and a file with a hole behind each of its first blocks.
fn fill(at: &Path, block: u64, holes: u64) {
    for n in 0..400u64 {
        fs::write(at.join(n.to_string()), vec![7; (n * 977 % 70_000) as usize]).unwrap();
    }
    let mut commands = format!("pwrite -q -b 4m 0 {}\nfsync\n", holes * 2 * block);
    for n in 0..holes {
        commands += &format!("fpunch {} {block}\n", n * 2 * block);
    }
    let script = at.with_extension("commands");
    fs::write(&script, commands).unwrap();
    sh(&format!("sync -f {0}; xfs_io -f {0}/holes <{1}", at.display(), script.display()));
    for n in (0..400).step_by(2) {
        fs::remove_file(at.join(n.to_string())).unwrap();
    }
}

const SHAPES: &[&str] = &[
    "-b size=1024 -L a-label",
    "-b size=1024 -d agcount=13 -m rmapbt=1",
    "-b size=2048 -m rmapbt=0,reflink=0,finobt=0",
    "-b size=4096",
    "-b size=4096 -m rmapbt=1,reflink=1,finobt=1,inobtcount=1,bigtime=1 -i nrext64=1",
    "-b size=4096 -d agcount=1 -s size=4096",
    "-b size=4096 -d agcount=7 -l su=32768",
    "-b size=4096 -d su=64k,sw=4 -l su=262144",
    "-b size=4096 -d agsize=33m",
];

#[test]
fn free_extents_of_every_shape_are_those_that_xfs_db_lists() {
    if !tools() || !can_mount() {
        return;
    }
    for options in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "330M", options);
        compare(&image, &format!("{options}, as made"));
        let block = field(&image, "sb 0", "blocksize");
        fill(Mounted::new(&image).path(), block, 3000);
        compare(&image, &format!("{options}, filled"));
        let groups = field(&image, "sb 0", "agcount");
        let levels = (0..groups).map(|n| field(&image, &format!("agf {n}"), "bnolevel")).max();
        assert!(levels >= Some(2), "{options}: the trees are shallow");
    }
}

/// Three levels: a node above nodes.
#[test]
fn a_tree_of_three_levels_is_walked() {
    if !tools() || !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=1024 -d agcount=1");
    fill(Mounted::new(&image).path(), 1024, 16_000);
    assert_eq!(field(&image, "agf 0", "bnolevel"), 3);
    compare(&image, "three levels");
}

/// Version 4 has no checksums. `mkfs.xfs` fills it from a list of files, `xfs_repair` frees those whose inodes
/// were wiped and builds the trees anew.
#[test]
fn version_4_is_read_too() {
    if !tools() {
        return;
    }
    for options in [
        "-m crc=0 -b size=512",
        "-m crc=0 -b size=1024 -l version=1",
        "-m crc=0 -b size=1024 -l lazy-count=0",
        "-m crc=0 -b size=4096 -n ftype=0 -l version=2,su=65536 -d agcount=5",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("file");
        fs::write(&source, vec![7; 5000]).unwrap();
        let mut list = String::from("/none\n0 0\nd--755 0 0\n");
        for n in 0..600 {
            list += &format!("f{n} ---644 0 0 {}\n", source.display());
        }
        let prototype = dir.path().join("prototype");
        fs::write(&prototype, list + "$\n").unwrap();
        let image = made(&dir, "330M", &format!("{options} -p {}", prototype.display()));
        compare(&image, &format!("{options}, as made"));
        let root = field(&image, "sb 0", "rootino");
        let wipe: String = (1..300)
            .map(|n| format!(" -c 'inode {}' -c 'write -d core.mode 0'", root + 4 + n * 2))
            .collect();
        sh(&format!(
            "xfs_db -x{wipe} {0} >{0}.log; xfs_repair {0} >>{0}.log 2>&1",
            image.display()
        ));
        compare(&image, &format!("{options}, repaired"));
        let levels = field(&image, "agf 0", "bnolevel");
        eprintln!("{options}: {levels} levels");
    }
}
