//! XFS against xfsprogs: what we call free is, extent for extent, what `xfs_db`'s `freesp -d` lists, less the
//! blocks on the groups' free lists (AGFL), which we keep.
//!
//! Every image is made by `mkfs.xfs`, filled and emptied again, and unmounted; this kernel may not mount
//! version 4, which is filled by `mkfs.xfs` and `xfs_repair` then.

mod common;

use std::fs;
use std::io::Write;
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
    let counted = field(image, "sb 0", "fdblocks");
    if db(image, &["version"]).contains("LAZYSBCOUNT") {
        assert_eq!(counted, blocks + sum("btreeblks"), "{story}");
    } else {
        assert!(counted >= blocks, "{story}: without lazy counts nobody keeps btreeblks");
    }
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

/// What `xfs_logprint` says of the log.
fn log_is_clean(image: &Path) -> bool {
    let line = "d=$(losetup -r -f --show IMAGE); trap \"losetup -d $d\" EXIT; { xfs_logprint -t $d || true; } | grep state: ";
    let text = sh(&line.replace("IMAGE", &image.display().to_string()));
    assert!(text.contains("state: <CLEAN>") || text.contains("state: <DIRTY>"), "{text}");
    text.contains("state: <CLEAN>")
}

/// The log's end is found wherever it is: a small log is driven around more than twice, with headers of one
/// block and of eight, and each time its state is what `xfs_logprint` says; while mounted it is not clean.
#[test]
fn a_log_that_goes_round_is_clean_exactly_when_it_was_unmounted() {
    if !tools() || !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "120M", "-b size=1024 -l size=6m");
    let copy = dir.path().join("copy.img");
    let (mut dirty, mut rounds) = (0, std::collections::BTreeSet::new());
    for round in 0..60 {
        let size = if round % 2 == 0 { "logbsize=256k" } else { "logbsize=32k" };
        {
            let mounted = Mounted::with(&image, size);
            for n in 0..20 + round % 7 * 40 {
                let mut file =
                    fs::File::create(mounted.path().join(format!("{}-{n}", round % 5))).unwrap();
                file.write_all(&[1; 3000]).unwrap();
                file.sync_all().unwrap(); // each time a log record
            }
            sh(&format!("sync -f {}", mounted.path().display()));
            if round % 6 == 0 {
                sh(&format!("cp --sparse=always {} {}", image.display(), copy.display()));
                let found = survey_of(&copy).unwrap();
                assert_eq!(found.unclean.is_none(), log_is_clean(&copy), "round {round}");
                dirty += u32::from(found.unclean.is_some());
            }
        }
        assert!(log_is_clean(&image), "round {round}");
        let found = survey_of(&image).unwrap();
        assert_eq!(found.unclean, None, "round {round}");
        rounds.insert(field(&image, "sb 0", "lsn") >> 32);
    }
    assert!(dirty == 10 && rounds.len() > 2, "{dirty} dirty copies, cycles {rounds:?}");
    // What a crash left is clean again once it was replayed.
    drop(Mounted::new(&copy));
    compare(&copy, "replayed");
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
        let wipe: String =
            (2..600).step_by(2).map(|n| format!("path /f{n}\nwrite -d core.mode 0\n")).collect();
        let commands = dir.path().join("commands");
        fs::write(&commands, wipe).unwrap();
        sh(&format!(
            "xfs_db -x {0} <{1} >{0}.log 2>&1; xfs_repair {0} >>{0}.log 2>&1",
            image.display(),
            commands.display()
        ));
        compare(&image, &format!("{options}, repaired"));
        let holes = survey_of(&image).unwrap().free.ranges().len();
        assert!(holes > 250, "{options}: {holes} holes");
    }
    // The first of them has blocks so small that this makes a tree of two levels.
}
