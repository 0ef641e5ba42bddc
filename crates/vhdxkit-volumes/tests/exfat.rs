//! exFAT as mkfs.exfat makes it and the FUSE driver fills it: the free clusters are exactly those that
//! dump.exfat counts, and a volume that is mounted or damaged gives none away.

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use std::fs;
use std::path::Path;

use clusters::{
    MemoryDisk, clean, empty, free_units, number_behind, ranges, refusal, survey_bytes,
};
use common::{have, sh};
use proptest::prelude::*;
use vhdxkit_volumes::Survey;

fn tools() -> bool {
    ["mkfs.exfat", "dump.exfat", "fsck.exfat"].into_iter().all(have)
}

fn driver() -> bool {
    have("mount.exfat-fuse") && have("losetup")
}

fn make(path: &Path, options: &str) {
    sh(&format!("mkfs.exfat {options} {}", path.display()));
}

/// Mounts the volume, runs a shell line in its root, and waits until it is unmounted.
fn mounted(path: &Path, line: &str) {
    let folder = tempfile::tempdir().unwrap();
    sh(&format!(
        "m={}; l=$(losetup -f --show {})
         trap 'cd /; mountpoint -q $m && umount $m; losetup -d $l; true' EXIT
         mount.exfat-fuse -d $l $m >/dev/null 2>&1 & pid=$!
         until mountpoint -q $m; do kill -0 $pid; sleep 0.05; done
         (cd $m; {line}); sync -f $m; umount $m; wait $pid; sync",
        folder.path().display(),
        path.display(),
    ));
}

const FILL: &str = "mkdir d; for n in $(seq 200); do \
    head -c $((n * n % 40000 + 1)) /dev/zero > f$n; head -c $((n * 7)) /dev/zero > d/some-longer-name-$n; \
    done; rm f*[147] d/*[258]; head -c 200000 /dev/zero > late";

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where things are, by the boot sector and the three entries that mkfs.exfat writes first.
struct Layout {
    sector: usize,
    cluster: usize,
    fat: usize,
    heap: usize,
    count: usize,
    root: usize,
    bitmap: usize,
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let sector = 1 << bytes[0x6C];
        let cluster = sector << bytes[0x6D];
        let (fat, heap) = (u32_at(bytes, 0x50) * sector, u32_at(bytes, 0x58) * sector);
        let (count, root) = (u32_at(bytes, 0x5C), u32_at(bytes, 0x60));
        let root_at = heap + (root - 2) * cluster;
        let entry = (root_at..root_at + cluster).step_by(32).find(|at| bytes[*at] == 0x81).unwrap();
        Self { sector, cluster, fat, heap, count, root: root_at, bitmap: entry }
    }

    fn place(&self, cluster: usize) -> usize {
        self.heap + (cluster - 2) * self.cluster
    }

    fn bitmap_start(&self, bytes: &[u8]) -> usize {
        u32_at(bytes, self.bitmap + 20)
    }
}

/// By dump.exfat's count, and range by range by the bitmap where mkfs.exfat puts it: in one piece.
fn compare(path: &Path) -> Survey {
    let ours = clean(path);
    let text = sh(&format!("fsck.exfat -n {0} && dump.exfat {0}", path.display()));
    assert_eq!(free_units(&ours), number_behind(&text, "Free Clusters:"), "{text}");
    assert_eq!(ours.unit, number_behind(&text, "Cluster size:"));
    let bytes = fs::read(path).unwrap();
    let layout = Layout::of(&bytes);
    let bitmap = &bytes[layout.place(layout.bitmap_start(&bytes))..];
    let is_free = |n: u64| bitmap[(n / 8) as usize] >> (n % 8) & 1 == 0;
    assert_eq!(
        ours.free.ranges(),
        ranges(layout.count as u64, layout.heap as u64, layout.cluster as u64, is_free)
    );
    ours
}

#[test]
fn free_clusters_are_those_of_dump_exfat_in_every_shape() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (mib, options, label) in [
        (20, "-c 512", ""),
        (40, "-c 4096 -L Größe", "Größe"),
        (64, "-c 1024 -b 32768", ""),
        (100, "-c 32768 -L ELEVENCHARS", "ELEVENCHARS"),
        (300, "-c 1048576", ""),
        (400, "-c 33554432", ""),
    ] {
        let path = empty(folder.path(), "exfat.img", mib << 20);
        make(&path, options);
        let fresh = compare(&path);
        assert_eq!((fresh.name, fresh.label.as_str(), fresh.length), ("exFAT", label, mib << 20));
        if driver() && mib < 300 {
            mounted(&path, FILL);
            let filled = compare(&path);
            assert!(free_units(&filled) < free_units(&fresh));
            assert!(filled.free.ranges().len() > 3, "{:?}", filled.free);
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_large_sparse_volume_costs_its_bitmap() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "exfat.img", 64 << 30);
    make(&path, "-c 4096");
    let disk = common::FileDisk::open(&path);
    let start = std::time::Instant::now();
    let found = vhdxkit_volumes::survey(&disk, 0..64 << 30).unwrap();
    let read = disk.bytes_read.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{read} bytes read in {:?}", start.elapsed());
    assert!(read < (64u64 << 30) / 4096 / 8 + (768 << 10), "{read}");
    let text = sh(&format!("dump.exfat {}", path.display()));
    assert_eq!(free_units(&found), number_behind(&text, "Free Clusters:"));
}

/// The driver marks a volume while it is mounted, and takes the mark away.
#[test]
fn a_volume_that_is_mounted_is_not_at_rest() {
    if !tools() || !driver() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "exfat.img", 40 << 20);
    make(&path, "");
    let copy = folder.path().join("copy.img");
    mounted(&path, &format!("{FILL}; sync -f .; cp {} {}", path.display(), copy.display()));
    let found = refusal(clusters::survey_file(&copy));
    assert!(found.contains("dirty"), "{found}");
    compare(&path);
}

/// A volume of 20 MiB with clusters of 512 bytes: its bitmap takes some ten clusters.
fn sample() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "exfat.img", 20 << 20);
    make(&path, "-c 512 -L small");
    if driver() {
        mounted(&path, "for n in $(seq 50); do head -c $((n * 100)) /dev/zero > f$n; done; rm f*3");
    }
    fs::read(&path).unwrap()
}

fn set_fat(bytes: &mut [u8], cluster: usize, value: usize) {
    let at = Layout::of(bytes).fat + cluster * 4;
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

fn set_bit(bytes: &mut [u8], cluster: usize, value: bool) {
    let layout = Layout::of(bytes);
    let mut chain = layout.bitmap_start(bytes);
    for _ in 0..(cluster - 2) / 8 / layout.cluster {
        chain = u32_at(bytes, layout.fat + chain * 4);
    }
    let at = layout.place(chain) + (cluster - 2) / 8 % layout.cluster;
    let bit = 1 << ((cluster - 2) % 8);
    bytes[at] = if value { bytes[at] | bit } else { bytes[at] & !bit };
}

/// Writes the boot region's checksum anew.
fn seal(bytes: &mut [u8], sector: usize) {
    let mut sum = 0u32;
    for (at, byte) in bytes[..11 * sector].iter().enumerate() {
        if ![106, 107, 112].contains(&at) {
            sum = sum.rotate_right(1).wrapping_add(u32::from(*byte));
        }
    }
    for place in bytes[11 * sector..12 * sector].chunks_mut(4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

/// The second half of the bitmap moves to the end of the volume, its clusters in reverse order.
#[test]
fn a_bitmap_in_pieces_is_read_in_order() {
    if !tools() {
        return;
    }
    let before = sample();
    let layout = Layout::of(&before);
    let first = layout.bitmap_start(&before);
    let clusters = layout.count.div_ceil(8).div_ceil(layout.cluster);
    assert!(clusters > 5);
    let mut bytes = before.clone();
    let moved: Vec<(usize, usize)> =
        (clusters / 2..clusters).map(|n| (first + n, layout.count + 1 - n)).collect();
    for (from, to) in &moved {
        set_bit(&mut bytes, *from, false);
        set_bit(&mut bytes, *to, true);
    }
    let mut previous = first + clusters / 2 - 1;
    for (from, to) in &moved {
        let part = layout.place(*from)..layout.place(*from) + layout.cluster;
        bytes.copy_within(part, layout.place(*to));
        set_fat(&mut bytes, previous, *to);
        set_fat(&mut bytes, *from, 0);
        previous = *to;
    }
    set_fat(&mut bytes, previous, 0xFFFF_FFFF);

    let (old, new) = (survey_bytes(&before).unwrap(), survey_bytes(&bytes).unwrap());
    assert_eq!(new.unclean, None);
    assert_eq!(free_units(&old), free_units(&new));
    let is_free = |survey: &Survey, cluster| {
        let place = layout.place(cluster) as u64;
        survey.free.ranges().iter().any(|range| range.contains(&place))
    };
    for cluster in 2..layout.count + 2 {
        let expected = match moved.iter().find(|(from, to)| *from == cluster || *to == cluster) {
            Some((from, _)) => *from == cluster,
            None => is_free(&old, cluster),
        };
        assert_eq!(is_free(&new, cluster), expected, "cluster {cluster}");
    }
}

#[test]
fn a_volume_that_is_not_at_rest_or_not_whole_gives_nothing_away() {
    if !tools() {
        return;
    }
    let bytes = sample();
    let layout = Layout::of(&bytes);
    let first = layout.bitmap_start(&bytes);
    assert_eq!(survey_bytes(&bytes).unwrap().unclean, None);
    let table = u32_at(&bytes, layout.bitmap + 32 + 20);
    let root = u32_at(&bytes, 0x60);
    let refused = |why: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = bytes.clone();
        change(&mut changed);
        let found = refusal(survey_bytes(&changed));
        assert!(found.contains(why), "{why}: {found}");
    };
    refused("dirty", &|b| b[0x6A] |= 2);
    refused("failed", &|b| b[0x6A] |= 4);
    refused("number of FATs", &|b| b[0x6A] |= 1); // there is no second FAT
    refused("checksum", &|b| b[0x64] ^= 1);
    refused("checksum", &|b| b[3 * layout.sector + 7] ^= 1);
    refused("checksum", &|b| b[11 * layout.sector + 9] ^= 1);
    refused("version", &|b| {
        b[0x69] = 2;
        seal(b, layout.sector);
    });
    for (at, value, why) in [
        (0x0B, 1, "field of FAT"),
        (0x6E, 3, "number of FATs"),
        (0x6D, 20, "cluster size"),
        (0x57, 1, "cluster heap"), // a FAT that long
        (0x5F, 1, "FAT"),
        (0x53, 1, "cluster heap"),
        (0x4F, 1, "sectors"),
        (0x63, 1, "goes on at"),
    ] {
        refused(why, &|b| {
            b[at] = value;
            seal(b, layout.sector);
        });
    }
    // The chain of the bitmap.
    refused("goes on behind its end", &|b| set_fat(b, first + 3, first + 1));
    refused("goes on at cluster 0", &|b| set_fat(b, first + 3, 0));
    refused("goes on at cluster 4294967287", &|b| set_fat(b, first + 3, 0xFFFF_FFF7));
    refused("has 4 clusters", &|b| set_fat(b, first + 3, 0xFFFF_FFFF));
    refused("in a circle", &|b| set_fat(b, root, root));
    // What has to be in use.
    for own in [first, first + 4, table, root] {
        refused("said to be free", &|b| set_bit(b, own, false));
    }
    // The entries of the root directory.
    refused("no allocation bitmap", &|b| b[layout.bitmap] = 0x01);
    refused("no up-case table", &|b| b[layout.bitmap + 32] = 0x02);
    refused("two allocation bitmaps", &|b| {
        b.copy_within(layout.bitmap..layout.bitmap + 32, layout.bitmap + 64);
    });
    refused("needs", &|b| {
        let short = (layout.count.div_ceil(8) - 1) as u64;
        b[layout.bitmap + 24..layout.bitmap + 32].copy_from_slice(&short.to_le_bytes());
    });
    refused("has", &|b| b[layout.bitmap + 31] = 0x7F);
    refused("begin", &|b| set_fat(b, 0, 0));
}

/// Random damage behind the checksum: a survey or an error, never a panic, never much to read; and its own
/// clusters are never free.
#[test]
fn random_damage_gives_an_error_or_a_sound_survey() {
    if !tools() {
        return;
    }
    let bytes = sample();
    let layout = Layout::of(&bytes);
    let places = [
        0x40..0x71,
        layout.fat..layout.fat + 0x400,
        layout.root..layout.root + 96,
        layout.place(layout.bitmap_start(&bytes))..layout.place(layout.bitmap_start(&bytes)) + 512,
    ];
    let change = (0..places.len(), any::<usize>(), any::<u8>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(change, 1..5), |changes| {
        let mut changed = bytes.clone();
        for (place, at, value) in changes {
            let place = places[place].clone();
            changed[place.start + at % place.len()] = value;
        }
        if (9..=12).contains(&changed[0x6C]) {
            let sector = 1 << changed[0x6C];
            seal(&mut changed, sector);
        }
        let disk = MemoryDisk::new(&changed, changed.len() as u64);
        let found = disk.survey();
        prop_assert!(disk.read.into_inner() < 64 << 20);
        if let Ok(found) = found {
            let root = u32_at(&changed, 0x60) as u64;
            let start = found.free.ranges().iter().any(|free| {
                let heap = u32_at(&changed, 0x58) as u64 * (1 << changed[0x6C]);
                free.contains(&(heap + (root - 2) * found.unit))
            });
            prop_assert!(!start, "the root directory is free");
        }
        Ok(())
    });
    result.unwrap();
}
