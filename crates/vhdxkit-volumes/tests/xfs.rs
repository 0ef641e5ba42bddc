//! XFS against xfsprogs: what we call free is, extent for extent, what `xfs_db`'s `freesp -d` lists, less the
//! blocks on the groups' free lists (AGFL), which we keep.
//!
//! Every image is made by `mkfs.xfs`, filled and emptied again, and unmounted; this kernel may not mount
//! version 4, which is filled by `mkfs.xfs` and `xfs_repair` then.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use common::xfs::{compare, field, made, tools, version_4};
use common::{Changed, FileDisk, Mounted, can_mount, sh, survey_of};

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

/// Grown while mounted, into a last group that is short; and with another UUID than its metadata has.
#[test]
fn a_file_system_that_was_grown_or_renamed_is_read_too() {
    if !tools() || !can_mount() {
        return;
    }
    for options in ["-b size=1024", "-b size=4096 -m rmapbt=1,reflink=1"] {
        let dir = tempfile::tempdir().unwrap();
        let image = made(&dir, "330M", options);
        {
            let mounted = Mounted::new(&image);
            fill(mounted.path(), 1024, 100);
            sh(&format!(
                "truncate -s 777M {}; losetup -c $(findmnt -no SOURCE {1}); xfs_growfs {1}",
                image.display(),
                mounted.path().display()
            ));
        }
        compare(&image, &format!("{options}, grown"));
        sh(&format!("xfs_admin -U generate -L renamed {} 2>&1", image.display()));
        compare(&image, &format!("{options}, renamed"));
        assert_eq!(survey_of(&image).unwrap().label, "renamed");
        // That wrote a new log. The first that the kernel writes into it is a change like any other.
        let copy = dir.path().join("copy.img");
        {
            let mounted = Mounted::new(&image);
            let (at, image) = (mounted.path().display(), image.display());
            sh(&format!(
                "touch {at}/more; sync -f {at}; cp --sparse=always {image} {}",
                copy.display()
            ));
        }
        assert!(survey_of(&copy).unwrap().unclean.is_some());
        compare(&image, &format!("{options}, renamed and mounted"));
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
    for round in 0..40 {
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
    assert!(dirty == 7 && rounds.len() > 2, "{dirty} dirty copies, cycles {rounds:?}");
    // What a crash left is clean again once it was replayed, or its log written anew in a later cycle.
    sh(&format!("cp --sparse=always {} {}", copy.display(), image.display()));
    drop(Mounted::new(&copy));
    compare(&copy, "replayed");
    sh(&format!("xfs_repair -L {} 2>&1", image.display()));
    compare(&image, "repaired");
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
        assert!(bytes < 6 << 20, "{options}: {bytes} bytes");
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
