//! NTFS volumes as mkntfs, ntfs-3g and Windows leave them: the free clusters are exactly those that
//! NTFS-3G's own tools know, and a volume that is not at rest gives none away.

#[path = "common/clusters.rs"]
mod clusters;
mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use clusters::{clean, empty, free_units, number_behind, ranges, refusal, shared, survey_file};
use common::{FileDisk, have, sh};
use vhdxkit_volumes::{Disk, Survey, Trouble, partitions, survey};

fn tools() -> bool {
    ["mkfs.ntfs", "ntfs-3g", "ntfsinfo", "ntfscat"].into_iter().all(have)
}

fn make(path: &Path, options: &str) {
    sh(&format!("mkfs.ntfs -F -q -f {options} {} 2>&1", path.display()));
}

/// Mounts the volume, runs a shell line in its root, and waits until it is unmounted.
fn mounted(path: &Path, line: &str) {
    let folder = tempfile::tempdir().unwrap();
    sh(&format!(
        "m={}; ntfs-3g -o no_detach {} $m >/dev/null 2>&1 & pid=$!
         trap 'cd /; mountpoint -q $m && umount $m; true' EXIT
         until mountpoint -q $m; do kill -0 $pid; sleep 0.05; done
         (cd $m; {line}); sync -f $m; umount $m; wait $pid",
        folder.path().display(),
        path.display(),
    ));
}

/// Files of many sizes, in the root and in a directory; then every third one goes.
const FILL: &str = "mkdir d; for n in $(seq 300); do \
    head -c $((n * n % 40000 + 1)) /dev/zero > f$n; head -c $((n * 7)) /dev/zero > d/some-longer-name-$n; \
    done; rm f*[147] d/*[258]";

/// Number by number what ntfsinfo counts, and range by range what ntfscat reads from `$Bitmap`.
fn compare(path: &Path) -> Survey {
    let ours = clean(path);
    let info = sh(&format!("ntfsinfo -m {} 2>&1", path.display()));
    assert_eq!(free_units(&ours), number_behind(&info, "Free Clusters:"), "{info}");
    let clusters = number_behind(&info, "Volume Size in Clusters:");
    assert_eq!(ours.unit, number_behind(&info, "Cluster Size:"));

    let copy = path.with_extension("bitmap");
    sh(&format!("ntfscat {} '$Bitmap' > {}", path.display(), copy.display()));
    let bitmap = fs::read(&copy).unwrap();
    let is_free = |n: u64| bitmap[(n / 8) as usize] >> (n % 8) & 1 == 0;
    assert_eq!(ours.free.ranges(), ranges(clusters, 0, ours.unit, is_free));
    ours
}

#[test]
fn free_clusters_are_those_of_ntfsinfo_in_every_shape() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (mib, options) in [
        (8, "-c 512"),
        (64, "-c 1024"),
        (64, "-c 2048 -L 'Größe 日本'"),
        (64, "-c 4096"),
        (200, "-c 8192"),
        (200, "-c 65536"),
        (64, "-s 4096"),
        (600, "-s 4096 -c 65536"),
        (64, "-s 1024 -c 1024"),
        (2048, "-c 131072"),
        (16384, "-c 2097152"),
    ] {
        let path = empty(folder.path(), "ntfs.img", mib << 20);
        make(&path, options);
        let fresh = compare(&path);
        let label = if options.contains("-L") { "Größe 日本" } else { "" };
        assert_eq!((fresh.name, fresh.label.as_str()), ("NTFS", label));
        assert_eq!(fresh.length, mib << 20);
        mounted(
            &path,
            if mib == 8 { "for n in 1 2 3 4; do cp /bin/sh $n; done; rm 2" } else { FILL },
        );
        let filled = compare(&path);
        assert!(free_units(&filled) < free_units(&fresh), "{options}");
        fs::remove_file(&path).unwrap();
    }
}

/// A volume that grows gets another bitmap, elsewhere; until somebody has looked after it, it is dirty.
#[test]
fn a_volume_that_was_resized_is_dirty_until_it_is_repaired() {
    if !tools() || !have("ntfsresize") || !have("ntfsfix") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "ntfs.img", 8 << 20);
    make(&path, "-c 512");
    mounted(&path, "for n in $(seq 1000); do head -c 3000 /dev/zero > $n; done; rm *[02468]");
    fs::File::options().write(true).open(&path).unwrap().set_len(24 << 20).unwrap();
    sh(&format!("yes | ntfsresize -ff {} 2>&1", path.display()));
    assert!(refusal(survey_file(&path)).contains("dirty"));
    sh(&format!("ntfsfix -d {} 2>&1", path.display()));
    compare(&path);
}

/// 64 GiB with next to nothing in them: the bitmap of 2 MiB is what a survey costs.
#[test]
fn a_large_sparse_volume_costs_its_bitmap() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "ntfs.img", 64 << 30);
    make(&path, "-c 4096");
    mounted(&path, "cp /bin/sh a; cp /bin/sh b; rm a");
    let disk = FileDisk::open(&path);
    let start = std::time::Instant::now();
    let found = survey(&disk, 0..disk.size()).unwrap();
    let (read, took) = (disk.bytes_read.load(Ordering::Relaxed), start.elapsed());
    eprintln!("{read} bytes read in {took:?}");
    assert_eq!(found.unclean, None);
    let bitmap = (64u64 << 30) / 4096 / 8;
    assert!(read < bitmap + (1024 << 10), "{read}");
    assert!(took.as_secs() < 5);
    let info = sh(&format!("ntfsinfo -m {} 2>&1", path.display()));
    assert_eq!(free_units(&found), number_behind(&info, "Free Clusters:"));
}

/// Whoever sleeps remembers more than the volume says. NTFS-3G goes by the first bytes of the same file.
#[test]
fn a_hibernated_volume_is_not_at_rest() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let many = "for n in $(seq 400); do : > a-file-with-a-rather-long-name-$n; done";
    for (line, hibernated) in [
        ("(printf hibr; head -c 100000 /dev/zero) > hiberfil.sys", true),
        ("(printf HIBR; head -c 100000 /dev/zero) > HiberFil.SYS", true),
        ("(printf wake; head -c 100000 /dev/zero) > hiberfil.sys", true),
        ("printf hibr > hiberfil.sys", true), // in its record
        ("head -c 100000 /dev/zero > hiberfil.sys", false),
        ("(head -c 4096 /dev/zero; printf hibr) > hiberfil.sys", false),
        (": > hiberfil.sys", false),
        ("(printf hibr; head -c 100000 /dev/zero) > hiberfil.sys2", false),
        ("mkdir d; (printf hibr; head -c 100000 /dev/zero) > d/hiberfil.sys", false),
    ] {
        for more in ["true", many] {
            let path = empty(folder.path(), "ntfs.img", 32 << 20);
            make(&path, "");
            mounted(&path, &format!("{more}; {line}"));
            if hibernated {
                let why = survey_file(&path).unwrap().unclean.unwrap();
                assert!(why.contains("hibernates"), "{line}: {why}");
            } else {
                compare(&path);
            }
        }
    }
}

/// What Windows wrote and detached is clean, and its free clusters are those of ntfsinfo.
#[test]
fn volumes_that_windows_detached_are_clean() {
    if !tools() || !have("qemu-img") {
        return;
    }
    for name in ["fixed.vhdx", "dynamic.vhdx"] {
        let Some(packed) = shared(&format!("{name}.gz")) else { return };
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        sh(&format!(
            "cd {}; gzip -dc {} > a.vhdx; qemu-img convert -O raw a.vhdx raw",
            folder.path().display(),
            packed.display()
        ));
        let disk = FileDisk::open(&raw);
        let volume = partitions(&disk).unwrap().remove(0);
        let start = volume.range.start;
        let ours = survey(&disk, volume.range.clone()).unwrap();
        assert_eq!((ours.unclean.as_deref(), ours.unit), (None, 4096), "{name}");
        assert_eq!(ours.length, volume.range.end - start);

        let alone = folder.path().join("ntfs.img");
        let bytes = &fs::read(&raw).unwrap()[start as usize..volume.range.end as usize];
        fs::write(&alone, bytes).unwrap();
        assert_eq!(compare(&alone), ours);
        windows_log_opened(bytes);
    }
}

/// The same volume as it was while Windows had it mounted, or kept it in memory: its log says so.
fn windows_log_opened(bytes: &[u8]) {
    let pages: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"RSTR")).collect();
    assert_eq!(pages.len(), 2);
    for page in pages {
        for (at, value, why) in
            [(0x3E, 0, "log is open"), (0x1C, 2, "version"), (0x1FE, 0xEE, "torn")]
        {
            let mut opened = bytes.to_vec();
            opened[page + at] = value;
            opened[page + 0x1A] = if at == 0x1C { 0 } else { 1 };
            let found = clusters::survey_bytes(&opened).unwrap().unclean.unwrap();
            assert!(found.contains(why), "{found}");
        }
    }
}

/// A partition that is shorter than its volume: nothing of what was cut off can be judged.
#[test]
fn a_volume_that_does_not_fit_its_place_is_damaged() {
    if !tools() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "ntfs.img", 16 << 20);
    make(&path, "");
    let disk = FileDisk::open(&path);
    assert!(survey(&disk, 0..disk.size()).is_ok());
    let found = survey(&disk, 0..disk.size() - 4096);
    assert!(matches!(found, Err(Trouble::Damaged(_))), "{found:?}");
}
