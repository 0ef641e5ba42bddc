//! What is free of a btrfs is exactly what its own tools say, and may be overwritten without being missed.
//! mkfs.btrfs, the kernel and `btrfs` are the judges; without them the tests say so.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vhdxkit_volumes::{Disk, Survey, Trouble};

#[path = "common/clusters.rs"]
mod clusters;
mod common;
#[path = "common/overwrite.rs"]
#[allow(dead_code, unreachable_pub)]
mod overwrite;

use clusters::shared;
use common::{
    FileDisk, Mounted, can_mount, have, joined, no_flipped_bit_frees_anything, sh, survey_of,
};

const MIB: u64 = 1 << 20;
const CHECK: &str = "btrfs check --readonly --check-data-csum $img";

fn can_test() -> bool {
    have("mkfs.btrfs") && have("btrfs") && can_mount()
}

/// An image in a folder that goes with it.
struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    fn new(size: &str, options: &str) -> Self {
        let image = Self { folder: tempfile::tempdir().unwrap() };
        let path = image.path();
        sh(&format!("truncate -s {size} {0}; mkfs.btrfs -q {options} {0}", path.display()));
        image
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Runs a shell script with the file system mounted at `$m`.
    fn mounted(&self, options: &str, script: &str) {
        let mounted = Mounted::with(&self.path(), options);
        sh(&format!("m={}\n{script}", mounted.path().display()));
    }

    fn survey(&self) -> Result<Survey, Trouble> {
        survey_of(&self.path())
    }

    fn clean(&self) -> Survey {
        let found = self.survey().unwrap();
        assert_eq!(found.unclean, None);
        found
    }
}

/// Files of many sizes, small ones inline; snapshots of them, and gaps that deleted ones leave.
const FILL: &str = r"
    btrfs -q subvolume create $m/sub
    for n in $(seq 1 150); do head -c $((n * n * 37)) /dev/urandom >$m/sub/$n; done
    head -c 20000000 /dev/urandom >$m/large
    ln -s large $m/link
    btrfs -q filesystem sync $m
    btrfs -q subvolume snapshot $m/sub $m/then
    rm $m/sub/*[13579] $m/then/2*
    for n in $(seq 1 40); do head -c 3000 /dev/urandom | dd of=$m/large bs=3000 seek=$((n * 100)) conv=notrunc status=none; done
    cp --reflink=always $m/large $m/again
    truncate -s 5000000 $m/large
    fallocate -p -o 1000000 -l 500000 $m/large
    fallocate -l 3M $m/promised
    btrfs -q filesystem sync $m
";
/// Chunks that are given back and moved, and a snapshot that is deleted. A balance that finds no room for its
/// last chunk leaves a file system like any other.
const SHUFFLE: &str = r"
    btrfs -q balance start --full-balance $m || true
    btrfs -q subvolume delete -c $m/then
    btrfs -q subvolume sync $m
    rm $m/again
    for n in $(seq 1 400); do echo $n >$m/sub/small$n; done
    btrfs -q filesystem sync $m
";

/// What `btrfs inspect-internal dump-tree` prints of a tree.
fn dump(image: &Path, tree: &str) -> String {
    sh(&format!("btrfs inspect-internal dump-tree -t {tree} {}", image.display()))
}

fn number_behind(text: &str, word: &str) -> u64 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no {word} in {text}")).1;
    rest.split_whitespace().next().unwrap().trim_end_matches(')').parse().unwrap()
}

/// Free bytes by the printed trees alone, sector by sector: slow and simple.
fn free_by_the_tool(image: &Path) -> Vec<Range<u64>> {
    let sb = sh(&format!("btrfs inspect-internal dump-super {}", image.display()));
    let sector = number_behind(&sb, "sectorsize\t");
    let total = number_behind(&sb, "dev_item.total_bytes\t");
    let mut free = vec![true; (total / sector) as usize];
    let mut mark = |range: Range<u64>, is_free: bool| {
        for number in range.start / sector..range.end.div_ceil(sector) {
            if let Some(place) = free.get_mut(number as usize) {
                *place = is_free;
            }
        }
    };
    let mut logical = Vec::new();
    let mut item = String::new();
    for line in dump(image, "extent").lines().chain(["\titem end"]) {
        if line.trim_start().starts_with("item ") {
            item = line.to_owned();
            for (kind, is_node) in [(" EXTENT_ITEM ", false), (" METADATA_ITEM ", true)] {
                if let Some((before, after)) = item.split_once(kind) {
                    let start: u64 = before.split_once("key (").unwrap().1.parse().unwrap();
                    let length = after.split(')').next().unwrap().parse().unwrap();
                    let length = if is_node { number_behind(&sb, "nodesize\t") } else { length };
                    logical.push(start..start + length);
                }
            }
        }
    }
    assert!(!item.is_empty() && !logical.is_empty());
    for chunk in dump(image, "chunk").split("CHUNK_ITEM ").skip(1) {
        let start: u64 = chunk.split(')').next().unwrap().parse().unwrap();
        let length = number_behind(chunk, "length ");
        for stripe in chunk.split("stripe ").skip(1).filter(|stripe| stripe.contains("devid")) {
            let place = number_behind(stripe.split('\n').next().unwrap(), "offset ");
            for extent in &logical {
                if (start..start + length).contains(&extent.start) {
                    mark(extent.start - start + place..extent.end - start + place, false);
                }
            }
        }
    }
    mark(0..MIB, false);
    for copy in [64 << 20, 256 << 30] {
        mark(copy..copy + 4096, false);
    }
    let ranges = (0u64..).zip(&free).filter(|(_, free)| **free);
    joined(ranges.map(|(number, _)| number * sector..(number + 1) * sector).collect())
}

/// Free bytes by `btrfs filesystem usage`: what no chunk has, and what extents leave of each.
fn free_by_usage(image: &Path) -> u64 {
    let mounted = Mounted::with(image, "ro");
    let text = sh(&format!("btrfs filesystem usage -b {}", mounted.path().display()));
    let mut free = number_behind(&text, "Device unallocated:");
    for line in text.lines().filter(|line| line.contains("Size:") && line.contains("Used:")) {
        let copies = if line.contains("DUP") { 2 } else { 1 };
        let number = |word| number_behind(&line.replace([',', ':'], " "), word);
        free += (number("Size ") - number("Used ")) * copies;
    }
    free
}

/// Bytes that its tools count as free, and nobody may have: the first mebibyte and the copies of the
/// superblock on a device of this size.
fn reserved(size: u64) -> u64 {
    let copies =
        [64 << 20, 256 << 30].into_iter().filter(|copy| copy + 4096 <= size).count() as u64;
    MIB + copies * 4096
}

/// All judges at once.
fn judge(image: &Image) -> Survey {
    let (path, found) = (image.path(), image.clean());
    assert_eq!(found.free.ranges(), free_by_the_tool(&path));
    assert_eq!(found.free.bytes() + reserved(found.length), free_by_usage(&path));
    overwrite::nothing_is_missed(&path, &found, CHECK);
    found
}

/// Every way in which one device is used: profiles, nodes and sectors of all sizes, and what becomes of them.
#[test]
fn what_is_free_is_what_its_own_tools_say_and_is_not_missed() {
    if !can_test() {
        return;
    }
    for (size, make, mount) in [
        ("400M", "", "rw"),
        ("300M", "-m single -d single -n 4096", "rw,compress=zstd"),
        ("700M", "-m dup -d dup -n 65536", "rw"),
        ("400M", "-M -n 4096 -m dup -d dup", "rw"),
        ("300M", "-M -m single -d single -O ^no-holes,^skinny-metadata", "rw"),
        ("300M", "-R ^free-space-tree -n 8192", "rw,space_cache=v1,compress=lzo"),
        ("300M", "-R quota -n 32768", "rw"),
        ("300001K", "-L words", "rw"),
    ] {
        let image = Image::new(size, make);
        let empty = image.clean();
        image.mounted(mount, FILL);
        let filled = judge(&image);
        assert!(filled.free.bytes() + (15 << 20) < empty.free.bytes(), "{make}");
        image.mounted(mount, SHUFFLE);
        let shuffled = judge(&image);
        assert!(shuffled.free.ranges().len() > 20, "{make}: {}", shuffled.free.ranges().len());
        assert_eq!(shuffled.label, if make.contains("words") { "words" } else { "" });
        println!(
            "{size} {make}: {} ranges, {} bytes free",
            shuffled.free.ranges().len(),
            shuffled.free.bytes()
        );
    }
}

/// Only trees are read: a file system of terabytes takes no longer than one of mebibytes.
#[test]
fn a_survey_reads_trees_only() {
    if !can_test() {
        return;
    }
    let image = Image::new("3T", "");
    image.mounted("rw", "head -c 90000000 /dev/urandom >$m/large");
    let disk = FileDisk::open(&image.path());
    let found = vhdxkit_volumes::survey(&disk, 0..disk.size()).unwrap();
    let read = disk.bytes_read.into_inner();
    assert!(read < MIB, "{read} bytes were read");
    assert_eq!(found.free.bytes() + reserved(3 << 40), free_by_usage(&image.path()));
    for copy in [64 << 20, 256 << 30] {
        let hit = found.free.ranges().iter().find(|r| r.start < copy + 4096 && copy < r.end);
        assert_eq!(hit, None, "the copy of the superblock at {copy}");
    }
}

/// Trees of three levels, and leaves by the hundred: nothing is lost between them.
#[test]
fn deep_trees_are_walked_to_their_ends() {
    if !can_test() {
        return;
    }
    let image = Image::new("500M", "-n 4096 -m single");
    image.mounted(
        "rw,max_inline=0",
        "for n in $(seq 1 40); do mkdir $m/$n; done
        python3 - $m <<'END'
import os, sys
for n in range(12000):
    with open(f'{sys.argv[1]}/{n % 40 + 1}/{n}', 'wb') as file: file.write(os.urandom(5000))
END
        sync; rm $m/*/*[024]; sync",
    );
    let level = number_behind(&dump(&image.path(), "extent").replace("level ", "level"), "level");
    let found = judge(&image);
    assert!(level >= 2, "the extent tree has level {level}");
    println!("level {level}, {} ranges", found.free.ranges().len());
    assert!(found.free.ranges().len() > 2000);
}

/// A file system that is smaller than where it lies, and one that was grown and shrunk.
#[test]
fn what_lies_behind_it_is_not_its_own() {
    if !can_test() {
        return;
    }
    let image = Image::new("300M", "-b 200M");
    assert_eq!(judge(&image).length, 200 * MIB);
    image.mounted("rw", &format!("{FILL}\nbtrfs -q filesystem resize max $m"));
    assert_eq!(judge(&image).length, 300 * MIB);
    image.mounted("rw", "btrfs -q filesystem resize 280M $m");
    assert_eq!(judge(&image).length, 280 * MIB);
    // Cut off, it is no longer whole.
    let file = fs::OpenOptions::new().write(true).open(image.path()).unwrap();
    file.set_len(279 * MIB).unwrap();
    assert!(matches!(image.survey(), Err(Trouble::Damaged(_))), "{:?}", image.survey());
}

/// An fsync writes a log that the trees know nothing of. What it holds looks free.
#[test]
fn a_log_that_waits_for_replay_is_unclean() {
    if !can_test() {
        return;
    }
    let image = Image::new("300M", "");
    let copy = image.path().with_extension("copy");
    {
        let mounted = Mounted::with(&image.path(), "rw,commit=300");
        let at = mounted.path().display();
        // The first fsync may find that a new chunk wants a commit; those after it write the log.
        sh(&format!(
            "head -c 3000000 /dev/urandom >{at}/f; sync
            for n in 1 2 3; do head -c 70000 /dev/urandom >{at}/g$n; sync {at}/g$n; done"
        ));
        sh(&format!("cp --sparse=always {} {}", image.path().display(), copy.display()));
    }
    let found = survey_of(&copy).unwrap();
    assert_eq!(found.unclean.as_deref(), Some("its log of fsyncs was not replayed"));
    assert!(image.clean().free.bytes() > 0);
    // The log is replayed by the next mount; then it is clean, and all is there.
    drop(Mounted::new(&copy));
    assert_eq!(survey_of(&copy).unwrap().unclean, None);
    assert_eq!(overwrite::contents_of(&copy), overwrite::contents_of(&image.path()));
}

/// Cut off in the middle of much work, without a log: the last superblock reaches a whole file system, and
/// what it calls free is not missed. A disk does not show that it is mounted; this is why it need not.
#[test]
fn whatever_a_superblock_calls_free_it_does_not_need() {
    if !can_test() {
        return;
    }
    let image = Image::new("400M", "");
    let path = image.path();
    let mut clean = 0;
    {
        let mounted = Mounted::with(&path, "rw,commit=1,notreelog");
        let at = mounted.path().display();
        for round in 0..12 {
            sh(&format!(
                "for n in $(seq 1 30); do head -c $((RANDOM * 20)) /dev/urandom >{at}/$((RANDOM % 60)); done
                rm -f {at}/$((RANDOM % 60)); sleep 0.{round:02}
                fsfreeze -f {at}; cp --sparse=always {0} {0}.{round}; fsfreeze -u {at}",
                path.display(),
            ));
        }
    }
    for round in 0..12 {
        let copy = PathBuf::from(format!("{}.{round}", path.display()));
        let found = survey_of(&copy).unwrap();
        clean += u32::from(found.unclean.is_none());
        overwrite::nothing_is_missed(&copy, &found, CHECK);
        fs::remove_file(copy).unwrap();
    }
    assert_eq!(clean, 12);
}

/// Whatever is not understood is named, and nothing of it is free.
#[test]
fn what_is_not_understood_is_named() {
    if !can_test() {
        return;
    }
    for (checksum, name) in [("xxhash", "xxHash"), ("sha256", "SHA-256"), ("blake2", "BLAKE2")] {
        let image = Image::new("120M", &format!("--csum {checksum}"));
        let found = image.survey();
        let told = matches!(&found, Err(Trouble::NotKnown(what)) if what.contains(name));
        assert!(told, "{checksum}: {found:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    sh(&format!("truncate -s 200M {at}/a {at}/b; mkfs.btrfs -q -m raid1 -d raid1 {at}/a {at}/b"));
    for name in ["a", "b"] {
        let found = survey_of(&folder.path().join(name));
        let told = matches!(&found, Err(Trouble::NotKnown(what)) if what == "it has 2 devices");
        assert!(told, "{found:?}");
    }
}

/// Checksums stand behind every bit that is believed; where a node has two copies, one may be bad.
#[test]
fn no_flipped_bit_frees_a_byte() {
    if !can_test() {
        return;
    }
    for make in ["-m dup", "-m single -n 4096"] {
        let image = Image::new("150M", make);
        image.mounted("rw", "for n in $(seq 1 60); do head -c 9000 /dev/urandom >$m/$n; done");
        let noticed = no_flipped_bit_frees_anything(&image.path(), 6000);
        println!("{make}: {noticed} flips of about 6000 were noticed");
        assert!(noticed > 200);
        assert!(make.contains("dup") || noticed > 5000);
    }
}

/// ext4 turned into btrfs: old blocks of the former lie in a file of the latter.
#[test]
fn a_converted_ext4_keeps_its_blocks() {
    if !can_test() || !have("btrfs-convert") || !have("mkfs.ext4") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    sh(&format!("truncate -s 300M {0}; mkfs.ext4 -q -b 4096 {0}", path.display()));
    {
        let mounted = Mounted::new(&path);
        sh(&format!("cp -r /usr/share/doc/b* {0}; rm -r {0}/b[ai]*", mounted.path().display()));
    }
    sh(&format!("btrfs-convert {}", path.display()));
    let found = survey_of(&path).unwrap();
    assert_eq!(found.free.ranges(), free_by_the_tool(&path));
    overwrite::nothing_is_missed(&path, &found, CHECK);
    // It can even be turned back.
    let copy = overwrite::overwritten(&path, &found);
    sh(&format!("btrfs-convert -r {0}; e2fsck -fn {0}", copy.display()));
}

/// A partition of a disk that Windows wrote, in the layout of years ago: its first chunk begins at byte 0.
#[test]
fn a_disk_of_windows_is_surveyed() {
    let Some(packed) = shared("btrfs.vhdx.gz") else { return };
    if !can_test() || !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    sh(&format!(
        "zcat {} >{at}/vhdx; qemu-img convert -f vhdx -O raw {at}/vhdx {at}/raw
        dd if={at}/raw of={at}/disk bs=1M skip=1 conv=sparse status=none",
        packed.display()
    ));
    let whole = FileDisk::open(&folder.path().join("raw"));
    let partitions = vhdxkit_volumes::partitions(&whole).unwrap();
    let found = vhdxkit_volumes::survey(&whole, partitions[0].range.clone()).unwrap();
    assert_eq!(found.free.ranges(), free_by_the_tool(&folder.path().join("disk")));
    // Its tools of today call it whole before and after, but for what they said before.
    overwrite::nothing_is_missed(&folder.path().join("disk"), &found, "true");
}
