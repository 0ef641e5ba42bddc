//! Disks with real file systems, made by their own tools, filled, emptied and compacted by the command: the
//! file system's own check is clean afterwards, every file has its contents, and no block is left that
//! could have gone. A file system that was not left in good order gives nothing away.

mod common;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Workdir, json, vhdx};
use vhdxkit_volumes::Disk;

const MIB: u64 = 1 << 20;

/// How people use a kind of file system. `$f` is a raw file, `$m` an empty folder.
struct Kind {
    name: &'static str,
    needs: &'static [&'static str],
    make: &'static str,
    /// Runs `$line` in the file system's root, and leaves it unmounted.
    within: &'static str,
    check: &'static str,
}

const BY_KERNEL: &str =
    "mount -o loop $f $m; trap 'umount $m' EXIT; (cd $m; eval \"$line\"); sync -f $m";
const NTFS_3G: &str = "ntfs-3g -o no_detach $f $m >/dev/null 2>&1 & pid=$!
    trap 'cd /; mountpoint -q $m && umount $m; wait $pid' EXIT
    until mountpoint -q $m; do kill -0 $pid; sleep 0.05; done
    (cd $m; eval \"$line\"); sync -f $m; umount $m; wait $pid";
const EXFAT: &str = "l=$(losetup -f --show $f)
    trap 'cd /; mountpoint -q $m && umount $m; losetup -d $l' EXIT
    mount.exfat-fuse -d $l $m >/dev/null 2>&1 & pid=$!
    until mountpoint -q $m; do kill -0 $pid; sleep 0.05; done
    (cd $m; eval \"$line\"); sync -f $m; umount $m; wait $pid; sync";
/// Without a driver: the tree goes out, and what has changed of it goes back.
const MTOOLS: &str = "export MTOOLS_SKIP_CHECK=1; mcopy -i $f -s -n -m ::/ $m/ 2>/dev/null || true
    (cd $m; find . -type f | sort > ../before; eval \"$line\"; find . -type f | sort > ../after)
    (cd $m; comm -23 ../before ../after | while read n; do mdel -i $f \"::/$n\"; done
     comm -13 ../before ../after | while read n; do mcopy -i $f \"$n\" \"::/$(basename $n)\"; done)";

const KINDS: [Kind; 8] = [
    Kind {
        name: "ext4",
        needs: &["mkfs.ext4", "losetup"],
        make: "mkfs.ext4 -q -F $f",
        within: BY_KERNEL,
        check: "e2fsck -fn $f",
    },
    Kind {
        name: "ext2 of small blocks",
        needs: &["mkfs.ext2", "losetup"],
        make: "mkfs.ext2 -q -F -b 1024 $f",
        within: BY_KERNEL,
        check: "e2fsck -fn $f",
    },
    Kind {
        name: "XFS",
        needs: &["mkfs.xfs", "xfs_repair", "losetup"],
        make: "mkfs.xfs -q -f $f",
        within: BY_KERNEL,
        check: "xfs_repair -n -f $f",
    },
    Kind {
        name: "btrfs",
        needs: &["mkfs.btrfs", "btrfs", "losetup"],
        make: "mkfs.btrfs -q -f $f",
        within: BY_KERNEL,
        check: "btrfs check --readonly --check-data-csum $f",
    },
    Kind {
        name: "NTFS",
        needs: &["mkfs.ntfs", "ntfs-3g", "ntfsfix"],
        make: "mkfs.ntfs -F -q -f $f",
        within: NTFS_3G,
        check: "ntfsfix -n $f && ntfsinfo -m $f",
    },
    Kind {
        name: "FAT32",
        needs: &["mkfs.vfat", "fsck.fat", "mcopy"],
        make: "mkfs.vfat -F 32 $f",
        within: MTOOLS,
        check: "fsck.fat -n $f",
    },
    Kind {
        name: "FAT16",
        needs: &["mkfs.vfat", "fsck.fat", "mcopy"],
        make: "mkfs.vfat -F 16 -s 32 $f",
        within: MTOOLS,
        check: "fsck.fat -n $f",
    },
    Kind {
        name: "exFAT",
        needs: &["mkfs.exfat", "fsck.exfat", "mount.exfat-fuse", "losetup"],
        make: "mkfs.exfat $f",
        within: EXFAT,
        check: "fsck.exfat -n $f",
    },
];

fn have(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: there is no {tool} here");
    }
    found
}

/// Runs a script with these variables, for five minutes at most; it must succeed.
fn sh(script: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("timeout");
    command.args(["300", "bash", "-euc", script]).stdin(Stdio::null());
    let out = command.envs(variables.iter().copied()).output().unwrap();
    let (text, errors) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script}\n{text}\n{errors}");
    text.into_owned()
}

/// Files, of which most go again, and a few more.
const LIFE: [&str; 2] = [
    "mkdir -p d; for n in $(seq 40); do head -c $((n * 100000)) /dev/urandom > f$n; done
     head -c 150000000 /dev/urandom > large",
    "rm -f large f*[1-8]; for n in 1 2 3; do head -c 300000 /dev/urandom > g$n; done",
];

struct FileDisk(File, u64);

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.1
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// Blocks of the disk that hold a byte that is in use and not zero. What is free was compared with the file
/// systems' own tools where the maps are made.
fn needed(raw: &str) -> u64 {
    let file = File::open(raw).unwrap();
    let size = file.metadata().unwrap().len();
    let disk = FileDisk(file, size);
    let mut all = std::fs::read(raw).unwrap();
    for volume in vhdxkit_volumes::volumes(&disk).unwrap() {
        let Some(map) = volume.free_to_give(false) else { continue };
        for range in map.ranges() {
            let start = (volume.range.start + range.start) as usize;
            all[start..start + (range.end - range.start) as usize].fill(0);
        }
    }
    all.chunks(MIB as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64
}

fn stored_blocks(image: &str) -> u64 {
    let info = json(&vhdx(&["info", "--json", image]).succeeds());
    info["blocks"]["fully_present"].as_u64().unwrap()
}

fn hashes(kind: &Kind, raw: &str, folder: &Path) -> String {
    let list = folder.join("sums");
    let line = format!("find . -type f -exec sha256sum {{}} + | sort > {}", list.display());
    in_file_system(kind, raw, folder, &line);
    std::fs::read_to_string(list).unwrap()
}

fn in_file_system(kind: &Kind, raw: &str, folder: &Path, line: &str) {
    let mount = tempfile::tempdir_in(folder).unwrap();
    let inner = mount.path().join("m");
    std::fs::create_dir(&inner).unwrap();
    sh(kind.within, &[("f", raw), ("m", inner.to_str().unwrap()), ("line", line)]);
}

fn compacted_and_judged(kind: &Kind) {
    if !kind.needs.iter().all(|tool| have(tool)) {
        return;
    }
    let dir = Workdir::new();
    let (raw, image, after) = (dir.path("raw"), dir.path("d.vhdx"), dir.path("after"));
    let folder = Path::new(&raw).parent().unwrap();
    File::create(&raw).unwrap().set_len(512 * MIB).unwrap();
    sh(kind.make, &[("f", &raw)]);
    LIFE.iter().for_each(|line| in_file_system(kind, &raw, folder, line));
    let before = hashes(kind, &raw, folder);
    assert!(before.lines().count() >= 7, "{}: {before}", kind.name);
    vhdx(&["convert", &raw, &image, "--block-size", "1M"]).succeeds();
    let (wanted, stored) = (needed(&raw), stored_blocks(&image));

    let plan = json(&vhdx(&["compact", "--dry-run", "--json", &image]).succeeds());
    let report = json(&vhdx(&["compact", "--json", &image]).succeeds());
    assert_eq!(plan["released"], report["released"], "{}", kind.name);
    assert!(
        report["released"]["free"]["blocks"].as_u64().unwrap() > 100,
        "{}: {report}",
        kind.name
    );
    assert_eq!(stored_blocks(&image), wanted, "{}, of {stored}: {report}", kind.name);
    let length = std::fs::metadata(&image).unwrap().len();
    assert!(length <= (wanted + 6) * MIB, "{}: {length} bytes for {wanted} blocks", kind.name);
    vhdx(&["check", &image]).succeeds();
    if let Some(qemu) = common::peer("qemu-img", &["check", &image]) {
        qemu.succeeds();
    }
    vhdx(&["convert", &image, &after]).succeeds();
    println!("{}: {stored} blocks before, {wanted} after", kind.name);
    println!("{}", sh(kind.check, &[("f", &after)]));
    assert_eq!(hashes(kind, &after, folder), before, "{}", kind.name);
    // Nothing is left to do.
    let again = json(&vhdx(&["compact", "--json", &image]).succeeds());
    assert_eq!(again["changed"], false, "{}: {again}", kind.name);
}

#[test]
fn ext_file_systems_keep_their_files_and_no_block_too_many() {
    KINDS.iter().filter(|kind| kind.name.starts_with("ext")).for_each(compacted_and_judged);
}

#[test]
fn xfs_and_btrfs_keep_their_files_and_no_block_too_many() {
    let names = ["XFS", "btrfs"];
    KINDS.iter().filter(|kind| names.contains(&kind.name)).for_each(compacted_and_judged);
}

#[test]
fn ntfs_keeps_its_files_and_no_block_too_many() {
    KINDS.iter().filter(|kind| kind.name == "NTFS").for_each(compacted_and_judged);
}

#[test]
fn fat_and_exfat_keep_their_files_and_no_block_too_many() {
    let names = ["FAT32", "FAT16", "exFAT"];
    KINDS.iter().filter(|kind| names.contains(&kind.name)).for_each(compacted_and_judged);
}

/// The disk of the complaint: 300 MB written, 250 MB deleted, never trimmed, and it did not shrink.
#[test]
fn a_disk_like_wsls_gives_back_what_was_deleted() {
    let kind = &KINDS[0];
    if !kind.needs.iter().all(|tool| have(tool)) {
        return;
    }
    let dir = Workdir::new();
    let (raw, image) = (dir.path("raw"), dir.path("ext4.vhdx"));
    let folder = Path::new(&raw).parent().unwrap();
    File::create(&raw).unwrap().set_len(512 * MIB).unwrap();
    sh(kind.make, &[("f", &raw)]);
    let life =
        "head -c 50M /dev/urandom > kept; head -c 250M /dev/urandom > gone; sync -f .; rm gone";
    in_file_system(kind, &raw, folder, life);
    // Every block is stored, as on a disk that has been full once.
    vhdx(&["create", &image, "512M", "--block-size", "1M"]).succeeds();
    let bytes = std::fs::read(&raw).unwrap();
    let mut filled: Vec<u8> = bytes;
    let disk = FileDisk(File::open(&raw).unwrap(), 512 * MIB);
    let survey = vhdxkit_volumes::survey(&disk, 0..512 * MIB).unwrap();
    for range in survey.free.ranges() {
        filled[range.start as usize..range.end as usize].fill(0xA5);
    }
    std::fs::write(&raw, &filled).unwrap();
    vhdx(&["convert", &raw, &image, "--block-size", "1M", "--force"]).succeeds();
    let stored = stored_blocks(&image);
    vhdx(&["compact", &image]).succeeds();
    let left = stored_blocks(&image);
    println!("{stored} blocks before, {left} after: {} of 512 given back", 512 - left);
    assert!(512 - left >= 455, "{left} blocks are left");
    vhdx(&["convert", &image, &raw, "--force"]).succeeds();
    sh(kind.check, &[("f", &raw)]);
}

/// Windows' blocks of 32 MiB stay for one byte. How much that is, and what to type, is told; typed, it comes true.
/// And the plan says that checkpoints elsewhere, which nobody looks for, would not know the disk any more.
#[test]
fn large_blocks_that_keep_free_space_are_pointed_out() {
    if !have("mkfs.ext4") {
        return;
    }
    let dir = Workdir::new();
    let (raw, image, small) = (dir.path("raw"), dir.path("large.vhdx"), dir.path("NEW.vhdx"));
    File::create(&raw).unwrap().set_len(512 * MIB).unwrap();
    sh("mkfs.ext4 -q $f", &[("f", &raw)]);
    let disk = FileDisk(File::open(&raw).unwrap(), 512 * MIB);
    let survey = vhdxkit_volumes::survey(&disk, 0..512 * MIB).unwrap();
    let mut full = std::fs::read(&raw).unwrap();
    for range in survey.free.ranges() {
        full[range.start as usize..range.end as usize].fill(0xA5);
    }
    std::fs::write(&raw, &full).unwrap();
    vhdx(&["convert", &raw, &image, "--block-size", "32M"]).succeeds();
    let command = format!("vhdx convert --block-size 1M {image} NEW.vhdx && vhdx compact NEW.vhdx");
    let elsewhere = "checkpoints of it in other folders";
    let plan = vhdx(&["compact", "-n", &image]).succeeds();
    assert!(plan.contains(&command) && plan.contains(elsewhere), "{plan}");
    vhdx(&["convert", "--block-size", "1M", &image, &small]).succeeds();
    let (_, told) = vhdx(&["compact", &image]).succeeds_with_errors();
    assert!(told.contains(&command) && told.contains(elsewhere), "{told}");
    let told = vhdx(&["compact", "-n", &small]).succeeds();
    assert!(!told.contains("--block-size"), "{told}");
    vhdx(&["compact", &small]).succeeds();
    let [kept, after] = [&image, &small].map(|path| std::fs::metadata(path).unwrap().len());
    let (_, figure) = plan.split_once("at least ").expect(&plan);
    let (figure, _) = figure.split_once(" MiB more").expect(&plan);
    let figure: f64 = figure.parse().unwrap();
    let truth = (kept - after) as f64 / MIB as f64;
    println!("told {figure} MiB, it was {truth} MiB");
    assert!(figure <= truth && figure > truth * 0.8, "told {figure} MiB, it was {truth} MiB");
    // Nothing to gain: nothing is said.
    let zeros_only = vhdx(&["compact", "-n", "--free-space", "none", &image]).succeeds();
    assert!(!zeros_only.contains("--block-size"), "{zeros_only}");
    assert!(!zeros_only.contains(elsewhere), "{zeros_only}");
}

/// The one checkpoint of a disk was damaged, and so the disk had none: compacted, it was another disk, which the
/// checkpoint, recovered, did not know.
#[test]
fn a_checkpoint_that_cannot_be_read_keeps_its_parent_from_being_compacted() {
    if !have("mkfs.ext4") {
        return;
    }
    let dir = Workdir::new();
    let (raw, image, child) = (dir.path("raw"), dir.path("d.vhdx"), dir.path("c.avhdx"));
    std::fs::write(&raw, vec![0xA5; 64 << 20]).unwrap();
    sh("mkfs.ext4 -q -F -E nodiscard $f", &[("f", &raw)]);
    vhdx(&["convert", &raw, &image, "--block-size", "1M"]).succeeds();
    vhdx(&["create", &child, "--parent", &image]).succeeds();
    let before = std::fs::read(&image).unwrap();
    for what in ["would not know it any more", "cannot tell whether"] {
        for arguments in [&["compact", &image][..], &["compact", "-n", &image]] {
            let said = vhdx(arguments).fails_with(1);
            assert!(said.contains(what) && said.contains("c.avhdx"), "{said}");
        }
        assert!(std::fs::read(&image).unwrap() == before);
        // Both region tables.
        let file = File::options().write(true).open(&child).unwrap();
        file.write_all_at(&[0; 0x2_0000], 0x3_0000).unwrap();
    }
    // Zeros alone change nothing that the checkpoint shows.
    vhdx(&["compact", "--free-space", "none", &image]).succeeds();
    vhdx(&["compact", "--force", &image]).succeeds();
    assert!((std::fs::metadata(&image).unwrap().len() as usize) < before.len());
}

/// What a journal has not written yet is nobody's but the file system's.
#[test]
fn a_file_system_that_was_not_unmounted_gives_nothing_away() {
    let kind = &KINDS[0];
    if !kind.needs.iter().all(|tool| have(tool)) {
        return;
    }
    let dir = Workdir::new();
    let (raw, crashed, image) = (dir.path("raw"), dir.path("crashed"), dir.path("d.vhdx"));
    let folder = Path::new(&raw).parent().unwrap();
    File::create(&raw).unwrap().set_len(128 * MIB).unwrap();
    sh(kind.make, &[("f", &raw)]);
    let life = format!(
        "head -c 40M /dev/urandom > gone; sync -f .; rm gone; sync -f .; cp --sparse=always {raw} {crashed}"
    );
    in_file_system(kind, &raw, folder, &life);
    vhdx(&["convert", &crashed, &image, "--block-size", "1M"]).succeeds();
    let stored = stored_blocks(&image);
    let plan = vhdx(&["compact", "-n", &image]).succeeds();
    assert!(plan.contains("--assume-clean"), "{plan}");
    let report = json(&vhdx(&["compact", "--json", &image]).succeeds());
    assert_eq!(report["released"]["free"]["blocks"], 0);
    assert_eq!(report["volumes"][0]["clean"], false);
    assert!(stored_blocks(&image) >= 40 && stored_blocks(&image) <= stored);
    let listed = vhdx(&["ls", &image]).succeeds();
    assert!(listed.contains("not clean"), "{listed}");
    // The user's word.
    let report = json(&vhdx(&["compact", "--json", "--assume-clean", &image]).succeeds());
    assert!(report["released"]["free"]["blocks"].as_u64().unwrap() >= 35, "{report}");
}
