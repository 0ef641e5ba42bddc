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
use std::time::{Duration, Instant};

use common::{
    Changed, FileDisk, Mounted, can_mount, have, joined, no_flipped_bit_frees_anything, sh,
    survey_of,
};
use vhdxkit_volumes::{Disk, Survey, Trouble};

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

/// The kernel's own count, by `xfs_spaceman`: it leaves free lists out, as we do.
fn spaceman_agrees(image: &Path, story: &str) {
    let mounted = Mounted::with(image, "ro");
    let text = sh(&format!("xfs_spaceman -c 'freesp -s' {}", mounted.path().display()));
    let total = text.lines().find_map(|line| line.strip_prefix("total free blocks ")).unwrap();
    let found = survey_of(image).unwrap();
    assert_eq!(found.free.bytes(), total.parse::<u64>().unwrap() * found.unit, "{story}");
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
        spaceman_agrees(&image, options);
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
fn version_4(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
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

#[test]
fn version_4_is_read_too() {
    if !tools() {
        return;
    }
    for options in [
        "-b size=512",
        "-b size=1024 -l version=1",
        "-b size=1024 -l lazy-count=0",
        "-b size=4096 -n ftype=0 -l version=2,su=65536 -d agcount=5",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = version_4(&dir, "330M", options);
        compare(&image, &format!("{options}, repaired"));
        let holes = survey_of(&image).unwrap().free.ranges().len();
        assert!(holes > 250, "{options}: {holes} holes");
    }
}

/// A disk of 64 GiB is planned in seconds, by its metadata alone: what the trees take, and the log's end.
#[test]
fn a_huge_sparse_disk_is_surveyed_by_few_bytes() {
    if !tools() || !can_mount() {
        return;
    }
    for options in ["-b size=4096", "-b size=4096 -d agcount=64", "-b size=1024 -m rmapbt=1"] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "64G", options);
        fill(Mounted::new(&image).path(), 4096, 3000);
        let base = FileDisk::open(&image);
        let disk = Changed::new(&base, Vec::new());
        let start = Instant::now();
        let found = disk.survey().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{options}: {:?}", start.elapsed());
        let bytes = disk.bytes_read();
        assert!(bytes < 5 << 20, "{options}: {bytes} bytes");
        eprintln!("{options}: {bytes} bytes read in {:?}", start.elapsed());
        assert!(found.free.bytes() > 62 << 30, "{options}");
        compare(&image, options);
    }
}

/// What a running guest leaves behind when its disk is copied, when it is frozen, or when it is killed.
#[test]
fn a_file_system_in_use_is_unclean_until_its_log_was_replayed() {
    if !tools() || !can_mount() {
        return;
    }
    for options in ["-b size=1024", "-b size=4096 -l su=65536"] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "330M", options);
        let copy = dir.path().join("copy.img");
        let is_unclean = |story: &str| {
            sh(&format!("cp --sparse=always {} {}", image.display(), copy.display()));
            let found = survey_of(&copy).unwrap().unclean;
            let why = found.unwrap_or_else(|| panic!("{options}: clean, and yet {story}"));
            assert!(why.contains("replayed"), "{why}");
            assert!(!log_is_clean(&copy), "{story}");
        };
        {
            let mounted = Mounted::new(&image);
            let at = mounted.path().display();
            sh(&format!("touch {at}/one; sync -f {at}"));
            is_unclean("written");
            fill(mounted.path(), 4096, 100);
            sh(&format!("sync -f {at}; touch {at}/two; rm {at}/1*"));
            is_unclean("written, not all of it synced");
            sh(&format!("xfs_freeze -f {at}"));
            is_unclean("frozen");
            sh(&format!("xfs_freeze -u {at}; touch {at}/three; xfs_io -x -c 'shutdown -f' {at}"));
        }
        is_unclean("killed");
        drop(Mounted::new(&image));
        compare(&image, &format!("{options}, replayed"));
    }
}

/// `xfs_repair -L` throws a dirty log away and writes a new one, in a later cycle.
#[test]
fn a_log_that_was_thrown_away_is_clean() {
    if !tools() || !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096");
    {
        let mounted = Mounted::new(&image);
        fill(mounted.path(), 4096, 100);
        sh(&format!("xfs_io -x -c 'shutdown -f' {}", mounted.path().display()));
    }
    assert!(survey_of(&image).unwrap().unclean.is_some());
    sh(&format!("xfs_repair -L {} >/dev/null 2>&1", image.display()));
    compare(&image, "repaired");
}

/// What an external log says is not known here.
#[test]
fn an_external_log_is_never_clean() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log.img");
    sh(&format!("truncate -s 64M {}", log.display()));
    let image = made(&dir, "330M", &format!("-l logdev={},size=64m", log.display()));
    let why = survey_of(&image).unwrap().unclean.unwrap();
    assert!(why.contains("another device"), "{why}");
}

/// A log without any record, and one whose only record is not what it should be.
#[test]
fn a_doubtful_log_is_not_clean() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096 -d agcount=1");
    compare(&image, "as made");
    let base = FileDisk::open(&image);
    let log = field(&image, "sb 0", "logstart") * 4096;
    let last = log + field(&image, "sb 0", "logblocks") * 4096 - 512;
    for (story, at, bytes) in [
        ("no cycle at the start", log, vec![0; 512]),
        ("another cycle", log + 4, vec![0, 0, 0, 9]),
        ("another cycle at the end", last, vec![0, 0, 0, 7]),
        ("a block behind the head was written", log + 2000 * 512, vec![0, 0, 0, 1]),
        ("a version that is not known", log + 8, vec![0, 0, 0, 3]),
        ("too long", log + 12, vec![0, 0, 4, 0]),
        ("length of all bits", log + 12, vec![0xFF; 4]),
        ("another place", log + 20, vec![0, 0, 0, 1]),
        ("two operations", log + 40, vec![0, 0, 0, 2]),
        ("another file system's", log + 304, vec![1; 16]),
        ("a checksum, and a wrong one", log + 32, vec![1, 2, 3, 4]),
        ("headers of all bits", log + 320, vec![0xFF; 4]),
        ("no unmount flag", log + 512 + 9, vec![0]),
        ("no unmount type", log + 512 + 12, vec![0x56]),
    ] {
        let changed = Changed::new(&base, vec![(at, bytes)]);
        assert!(changed.survey().unwrap().unclean.is_some(), "{story}");
    }
}

/// A disk whose superblock, changed like this, has a right checksum again.
fn with_superblock<'a>(base: &'a dyn Disk, at: usize, bytes: &[u8]) -> Changed<'a> {
    with_sector(base, 0, 224, at, bytes)
}

/// The same for any sector, with its checksum at `checksum`.
fn with_sector<'a>(
    base: &'a dyn Disk,
    sector: u64,
    checksum: usize,
    at: usize,
    bytes: &[u8],
) -> Changed<'a> {
    let mut raw = vec![0; 512];
    base.read_at(sector * 512, &mut raw).unwrap();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    raw[checksum..checksum + 4].fill(0);
    let crc = crc32c::crc32c(&raw);
    raw[checksum..checksum + 4].copy_from_slice(&crc.to_le_bytes());
    Changed::new(base, vec![(sector * 512, raw)])
}

#[test]
fn what_is_not_understood_is_refused() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096");
    let base = FileDisk::open(&image);
    assert_eq!(with_superblock(&base, 0, b"XFSB").survey().unwrap().unclean, None);
    let incompat = field(&image, "sb 0", "features_incompat") as u32;
    for (at, value, why) in [
        (216, incompat | 0x100, "metadir"),
        (216, incompat | 0x200, "zoned"),
        (216, incompat | 0x8000, "0x8000"),
        (212, 0x80, "0x80"),
        (200, 0x18A | 0x4000, "0x4000"),
        (100, 0xB4A6_0200, "version 6"),
    ] {
        match with_superblock(&base, at, &u32::to_be_bytes(value)).survey() {
            Err(Trouble::NotKnown(found)) => assert!(found.contains(why), "{found}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    let repair = with_superblock(&base, 216, &(incompat | 0x10).to_be_bytes()).survey();
    assert!(matches!(repair, Err(Trouble::Damaged(why)) if why.contains("xfs_repair")));
    let replay = with_superblock(&base, 220, &[0, 0, 0, 1]).survey().unwrap().unclean;
    assert!(replay.is_some(), "a feature of the log");
    assert!(Changed::new(&base, vec![(145, vec![9])]).survey().is_err(), "a wrong checksum");
}

fn hostile(story: &str, changed: &Changed<'_>) {
    match changed.survey() {
        Err(Trouble::Damaged(_) | Trouble::NotKnown(_)) => {}
        other => panic!("{story}: {other:?}"),
    }
    assert!(changed.bytes_read() < 6 << 20, "{story}: {}", changed.bytes_read());
}

/// Numbers that contradict each other, in the superblock and in the header of a group, checksums right.
#[test]
fn hostile_numbers_are_errors() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "330M", "-b size=4096 -d agcount=4");
    let base = FileDisk::open(&image);
    let all = [0xFF; 8];
    for (story, at, bytes) in [
        ("block size", 4, &[0, 0, 0, 0][..]),
        ("block size", 4, &[0, 0, 4, 0]),
        ("blocks", 8, &all),
        ("blocks", 8, &[0; 8]),
        ("blocks", 8, &[0, 0, 0, 0, 0, 2, 0, 0]),
        ("log start", 48, &all),
        ("log start", 48, &[0, 0, 0, 0, 0, 0, 0xFF, 0xFF]),
        ("root", 56, &all),
        ("blocks in a group", 84, &[0; 4]),
        ("blocks in a group", 84, &[0xFF; 4]),
        ("blocks in a group", 84, &[0, 0, 0, 1]),
        ("groups", 88, &[0; 4]),
        ("groups", 88, &[0xFF; 4]),
        ("groups", 88, &[0, 0, 0, 5]),
        ("log blocks", 96, &[0xFF; 4]),
        ("sector size", 102, &[0, 0]),
        ("inode size", 104, &[0, 0]),
        ("inodes in a block", 106, &[0, 1]),
        ("block log", 120, &[64]),
        ("sector log", 121, &[255]),
        ("inode log", 122, &[255]),
        ("inodes log", 123, &[255]),
        ("group log", 124, &[255]),
        ("group log", 124, &[0]),
        ("in progress", 126, &[1]),
        ("free blocks", 144, &[0; 8]),
        ("free blocks", 144, &all),
    ] {
        hostile(story, &with_superblock(&base, at, bytes));
    }
    for group in [0, 2] {
        let sector = group * field(&image, "sb 0", "agblocks") * 8 + 1;
        for (story, at, bytes) in [
            ("number", 8, &[0, 0, 0, 1][..]),
            ("length", 12, &[0xFF; 4]),
            ("length", 12, &[0; 4]),
            ("root", 16, &[0xFF; 4]),
            ("root", 16, &[0; 4]),
            ("root by size as that by place", 16, &[0, 0, 0, 2]),
            ("levels", 28, &[0; 4]),
            ("levels", 28, &[0, 0, 0, 2]),
            ("levels", 28, &[0, 0, 0, 255]),
            ("levels", 28, &[0xFF; 4]),
            ("levels by size", 32, &[0, 0, 0, 255]),
            ("free list's first", 40, &[0xFF; 4]),
            ("free list's last", 44, &[0, 0, 0, 119]),
            ("free list's count", 48, &[0xFF; 4]),
            ("free list's count", 48, &[0; 4]),
            ("free blocks", 52, &[0xFF; 4]),
            ("free blocks", 52, &[0; 4]),
            ("longest", 56, &[0, 0, 0, 1]),
            ("UUID", 64, &[1; 16]),
        ] {
            hostile(story, &with_sector(&base, sector, 216, at, bytes));
        }
    }
    let half = made(&dir, "330M", "-f -b size=4096");
    sh(&format!("truncate -s 100M {}", half.display()));
    let half = FileDisk::open(&half);
    hostile("half of it", &Changed::new(&half, Vec::new()));
}

/// Trees of version 4, where no checksum stands in the way: they name themselves, each other, what is in use.
#[test]
fn hostile_trees_end() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = version_4(&dir, "64M", "-b size=512 -d agcount=2");
    compare(&image, "64 MiB");
    let base = FileDisk::open(&image);
    for (tree, level, at) in [("bnoroot", "bnolevel", 28), ("cntroot", "cntlevel", 32)] {
        assert_eq!(field(&image, "agf 0", level), 2, "{level}");
        let root = field(&image, "agf 0", tree) as u32;
        let place = u64::from(root) * 512;
        let word = |at: u64| {
            let mut raw = [0; 4];
            base.read_at(at, &mut raw).unwrap();
            u32::from_be_bytes(raw)
        };
        // Keys from byte 16 on, room for (512 - 16) / 12 of them, then the pointers.
        let pointers = place + 16 + 41 * 8;
        let leaf = u64::from(word(pointers)) * 512;
        let (first, second) = (word(pointers), word(pointers + 4));
        let other = field(&image, "agf 0", if tree == "bnoroot" { "cntroot" } else { "bnoroot" });
        for (story, place, value) in [
            ("the root names itself", pointers, root),
            ("a leaf twice", pointers, second),
            ("a leaf twice", pointers + 4, first),
            ("the other tree", pointers, other as u32),
            ("a block outside", pointers + 4, u32::MAX),
            ("the first block", pointers, 0),
            ("another key", place + 16 + 8, 7),
            ("level 255, no records", place + 4, 0x00FF_0000),
            ("level 65535", place + 4, 0xFFFF_0002),
            ("too many records", place + 4, 0x0001_FFFF),
            ("no records", place + 4, 0x0001_0000),
            ("a neighbour of the root", place + 8, first),
            ("the root's right neighbour is the root", place + 12, root),
            ("a leaf's left neighbour", leaf + 8, second),
            ("a leaf's right neighbour", leaf + 12, first),
            ("a leaf with records of length 0", leaf + 20, 0),
            ("a leaf with records of all blocks", leaf + 20, u32::MAX),
            ("a leaf that frees the header", leaf + 16, 0),
            ("levels", 512 + at, 1),
            ("levels", 512 + at, 3),
            ("levels", 512 + at, 255),
        ] {
            let changed = Changed::new(&base, vec![(place, value.to_be_bytes().to_vec())]);
            hostile(&format!("{tree}: {story}"), &changed);
        }
        // A root that names itself and claims to be a level higher, in the header too.
        let changes = vec![
            (512 + at, vec![0, 0, 0, 3]),
            (place + 4, vec![0, 2]),
            (pointers, root.to_be_bytes().to_vec()),
        ];
        hostile(&format!("{tree}: a loop"), &Changed::new(&base, changes));
    }
}

/// Both trees agree that a block is free which is in use, and so do all counts: the log's, the root
/// directory's, one on the free list.
#[test]
fn what_is_surely_in_use_is_not_believed_to_be_free() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = made(&dir, "64M", "-m crc=0 -b size=4096 -d agcount=1");
    compare(&image, "as made");
    let base = FileDisk::open(&image);
    let (bno, cnt) = (field(&image, "agf 0", "bnoroot"), field(&image, "agf 0", "cntroot"));
    let longest = field(&image, "agf 0", "longest");
    let (ranges, _) = listed(&image);
    let place = |range: &&Range<u64>| (range.end - range.start) / 4096 == longest;
    let start = ranges.iter().find(place).unwrap().start / 4096;
    // The longest extent moves to where it takes one of these in: same length, same counts.
    let log = field(&image, "sb 0", "logstart");
    let wanted = [(start as u32).to_be_bytes(), (longest as u32).to_be_bytes()].concat();
    let record = |block: u64| {
        let mut raw = [0; 4080];
        base.read_at(block * 4096 + 16, &mut raw).unwrap();
        let index = raw.chunks(8).position(|record| record == wanted).unwrap();
        block * 4096 + 16 + index as u64 * 8
    };
    let last = field(&image, "sb 0", "dblocks");
    for (story, to) in [
        ("the root's inodes", start - 1),
        ("the free list", start - 5),
        ("the log", log - 1),
        ("behind", last - longest + 1),
    ] {
        let bytes = (to as u32).to_be_bytes().to_vec();
        let changes = vec![(record(bno), bytes.clone()), (record(cnt), bytes)];
        let found = Changed::new(&base, changes).survey();
        assert!(matches!(found, Err(Trouble::Damaged(_))), "{story}: {found:?}");
    }
}

/// No single bit of what is read frees a block: in version 4 because everything is there twice.
#[test]
fn no_flipped_bit_frees_a_block() {
    if !tools() {
        return;
    }
    for options in ["-b size=512 -d agcount=2", "-b size=4096 -d agcount=2"] {
        let dir = tempfile::tempdir().unwrap();
        let image = version_4(&dir, "64M", options);
        let noticed = no_flipped_bit_frees_anything(&image, 2000);
        eprintln!("version 4, {options}: {noticed} flips noticed");
        assert!(noticed > 1000);
    }
    let dir = tempfile::tempdir().unwrap();
    let noticed = no_flipped_bit_frees_anything(&made(&dir, "64M", "-b size=1024"), 2000);
    eprintln!("version 5: {noticed} flips noticed");
    assert!(noticed > 1000);
}

/// However its metadata is changed: no panic, and no more is read than metadata can be.
#[test]
fn random_changes_end_in_a_survey_or_an_error() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = FileDisk::open(&version_4(&dir, "64M", "-b size=512 -d agcount=2"));
    let whole = Changed::new(&base, Vec::new());
    whole.survey().unwrap();
    common::random_changes(&base, &whole.places_read(), |changed, found: Result<Survey, _>| {
        assert!(changed.bytes_read() < 8 << 20);
        if let Ok(found) = found {
            assert!(found.length <= base.size() && found.free.bytes() <= found.length);
        }
    });
}
