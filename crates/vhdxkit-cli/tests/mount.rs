//! A mounted disk is a disk: file systems live on it, give space back, and are the same for QEMU afterwards.
//!
//! These tests mount, so they want Linux, root and /dev/fuse; where something is missing they say what.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/mounting.rs"]
mod mounting;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{Workdir, json, vhdx};
use mounting::{
    Attached, Loop, MIB, Mounted, all_of, bytes_of, eventually, harvest, noise, plant, possible,
    run, space, try_run,
};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

/// Clean, unlocked, nothing wrong with it.
fn assert_closed(image: &str) {
    let info = json(&vhdx(&["info", "--json", image]).succeeds());
    assert_eq!(info["log"]["state"], "clean");
    let checked = json(&vhdx(&["check", "--json", image]).succeeds());
    assert_eq!(checked["result"], "ok", "{checked:#}");
}

/// A file system on a loop device on `disk.raw`: made, filled, trimmed, checked, and read by QEMU.
fn lives_on_a_mounted_disk(mkfs: &[&str], check: &[&str], mount: &[&str]) {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "400M", "--block-size", "1M"]).succeeds();
    let mounted = Mounted::start(&dir, &image, &[]);
    let disk = mounted.file("disk.raw");
    let device = Loop::on(&disk, &[]);
    run(&[mkfs, &[device.0.as_str()]].concat());
    let files = Attached::by(&dir, &["mount", &device.0]);
    plant(&files.0);
    let expected = harvest(&files.0);

    // What is deleted and trimmed takes no space in the image any more.
    fs::write(files.path("big"), noise(7, 48 << 20)).unwrap();
    run(&["sync", "-f", &files.0]);
    let full = space(&image);
    fs::remove_file(files.path("big")).unwrap();
    // XFS frees what was deleted a moment later.
    eventually("trimming gives the space of the deleted file back", || {
        run(&["sync", "-f", &files.0]);
        run(&["fstrim", &files.0]);
        run(&["sync", "-f", &files.0]);
        space(&image) + 40 * MIB <= full
    });

    files.end();
    drop(device);
    run(&[check, &[disk.as_str()]].concat());
    mounted.unmount();
    assert_closed(&image);

    let raw = dir.path("disk.raw");
    run(&["qemu-img", "convert", "-f", "vhdx", "-O", "raw", &image, &raw]);
    run(&[check, &[raw.as_str()]].concat());
    let files = Attached::by(&dir, &[mount, &[raw.as_str()]].concat());
    assert_eq!(harvest(&files.0), expected);
}

#[test]
fn ext4_lives_on_a_mounted_disk() {
    if possible(&["mkfs.ext4", "e2fsck", "losetup", "fstrim", "qemu-img"]) {
        let mount = ["mount", "-o", "loop,ro"];
        lives_on_a_mounted_disk(&["mkfs.ext4", "-q"], &["e2fsck", "-fn"], &mount);
    }
}

#[test]
fn xfs_lives_on_a_mounted_disk() {
    if possible(&["mkfs.xfs", "xfs_repair", "losetup", "fstrim", "qemu-img"]) {
        let mount = ["mount", "-o", "loop,ro,norecovery"];
        lives_on_a_mounted_disk(&["mkfs.xfs", "-q"], &["xfs_repair", "-n", "-f"], &mount);
    }
}

/// Partitions are made through `disk.raw`, and used through their own files.
fn partitioned(dir: &Workdir, script: &str) -> String {
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    let mounted = Mounted::start(dir, &image, &[]);
    let shell = format!("printf '{script}' | sfdisk -q --no-reread {}", mounted.file("disk.raw"));
    run(&["sh", "-c", &shell]);
    mounted.unmount();
    image
}

#[test]
fn ntfs_lives_on_a_partition_by_ntfs_3g() {
    if !possible(&["mkntfs", "ntfs-3g", "ntfsfix", "sfdisk", "losetup", "qemu-img"]) {
        return;
    }
    let dir = Workdir::new();
    let script = "label: gpt\\nstart=2048,size=4096\\nstart=8192,size=98304\\n";
    let image = partitioned(&dir, script);
    let mounted = Mounted::start(&dir, &image, &["--partition", "2"]);
    assert_eq!(fs::read_dir(&mounted.directory).unwrap().count(), 1, "that partition alone");
    let partition = mounted.file("partition-2.raw");
    run(&["mkntfs", "-F", "-Q", "-q", &partition]);
    let files = Attached::by(&dir, &["ntfs-3g", &partition]);
    plant(&files.0);
    let expected = harvest(&files.0);
    // Its process is not to be ended, it is to be unmounted.
    let text = vhdx(&["unmount", &mounted.directory]).fails_with(1);
    assert!(text.contains(&format!("`umount {}`", files.0)) && !text.contains("end "), "{text}");
    files.end();
    mounted.unmount();
    assert_closed(&image);

    let raw = dir.path("disk.raw");
    run(&["qemu-img", "convert", "-f", "vhdx", "-O", "raw", &image, &raw]);
    let (offset, size) = ((8192 * 512).to_string(), (98304 * 512).to_string());
    let device = Loop::on(&raw, &["-r", "-o", &offset, "--sizelimit", &size]);
    let files = Attached::by(&dir, &["ntfs-3g", "-o", "ro", &device.0]);
    assert_eq!(harvest(&files.0), expected);
    files.end();
}

/// The command that is printed for a partition attaches it, as it is printed.
#[test]
fn the_printed_command_attaches_a_partition() {
    if !possible(&["mkfs.ext4", "sfdisk", "losetup"]) {
        return;
    }
    let dir = Workdir::new();
    let script = "label: dos\\n1: start=2048,size=2048,type=82\\n2: start=8192,size=90000,type=5\\n\
                  5: start=10240,size=81920,type=83\\n";
    let image = partitioned(&dir, script);
    let mounted = Mounted::start(&dir, &image, &[]);
    run(&["mkfs.ext4", "-q", &mounted.file("partition-5.raw")]);
    let files = Attached::by(&dir, &["mount", "-o", "loop", &mounted.file("partition-5.raw")]);
    plant(&files.0);
    let expected = harvest(&files.0);
    // The machine dies here: its file system is as dirty as its disk.
    mounted.signal("KILL");
    drop(files);
    drop(mounted);

    let mounted = Mounted::start(&dir, &image, &["--read-only"]);
    let names: Vec<_> = mounted.printed["files"].as_array().unwrap().iter().collect();
    let names: Vec<_> = names.iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk.raw", "partition-1.raw", "partition-5.raw"]);
    let attach = mounted.printed["files"][2]["attach"].as_str().unwrap();
    assert!(attach.contains("noload"), "{attach}");
    let words: Vec<&str> = attach.split(' ').collect();
    let files = Attached::by(&dir, &words[..words.len() - 1]);
    assert_eq!(harvest(&files.0), expected, "all of it was synced");
    files.end();
    mounted.unmount();
}

/// A file that was synced right before the crash is in the journal alone: a snapshot shows it, and neither the
/// image nor its parent is touched.
#[test]
fn a_snapshot_recovers_what_only_the_journal_has() {
    if !possible(&["mkfs.ext4", "losetup"]) {
        return;
    }
    let dir = Workdir::new();
    let (base, child) = (dir.path("base.vhdx"), dir.path("child.avhdx"));
    vhdx(&["create", &base, "64M", "--block-size", "1M"]).succeeds();
    let mounted = Mounted::start(&dir, &base, &[]);
    run(&["mkfs.ext4", "-q", &mounted.file("disk.raw")]);
    mounted.unmount();
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    let mounted = Mounted::start(&dir, &child, &[]);
    let files = Attached::by(&dir, &["mount", "-o", "loop", &mounted.file("disk.raw")]);
    let file = File::create(files.path("newest")).unwrap();
    file.write_all_at(&noise(1, 100_000), 0).unwrap();
    file.sync_all().unwrap();
    mounted.signal("KILL");
    drop((file, files, mounted));

    let before = [&base, &child].map(|image| dir.fingerprint(image));
    let mounted = Mounted::start(&dir, &child, &["--read-only"]);
    let shown = mounted.printed["files"][0].clone();
    assert!(shown["attach"].as_str().unwrap().contains("noload"), "{shown}");
    let words: Vec<&str> = shown["attach"].as_str().unwrap().split(' ').collect();
    let files = Attached::by(&dir, &words[..words.len() - 1]);
    assert!(!fs::exists(files.path("newest")).unwrap(), "that is what the other commands are for");
    files.end();
    let commands: Vec<&str> =
        shown["recover"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let [unmount, mount, attach] = commands[..] else { panic!("{shown}") };
    let directory = mounted.directory.clone();
    // The commands are taken as they are printed.
    let typed = |command: &str| vhdx(&command.split(' ').skip(1).collect::<Vec<_>>()).succeeds();
    typed(unmount);
    assert_eq!(mounted.ends(), Some(0));
    let told = typed(mount);
    assert!(told.contains("as a snapshot"), "{told}");
    let words: Vec<&str> = attach.split(' ').collect();
    let files = Attached::by(&dir, &words[..words.len() - 1]);
    assert!(fs::read(files.path("newest")).unwrap() == noise(1, 100_000));
    fs::write(files.path("more"), noise(2, 5 << 20)).unwrap();
    run(&["sync", "-f", &files.0]);
    files.end();
    let told = vhdx(&["unmount", &directory]).succeeds();
    assert!(told.contains("forgotten"), "{told}");
    assert!([&base, &child].map(|image| dir.fingerprint(image)) == before, "an image was changed");

    // What does not fit is told to the writer; the rest goes on.
    let mounted = Mounted::start(&dir, &child, &["--snapshot", "--snapshot-memory", "1M"]);
    let file = File::options().write(true).open(mounted.file("disk.raw")).unwrap();
    assert!(file.write_all_at(&noise(3, 8 << 20), 0).is_err());
    drop(file);
    vhdx(&["unmount", &mounted.directory]).succeeds();
    assert_eq!(mounted.ends(), Some(0));
    assert!([&base, &child].map(|image| dir.fingerprint(image)) == before, "an image was changed");
}

/// The kernel hands writes of any length on; the rest of each sector stays, however large sectors are.
#[test]
fn writes_need_not_be_aligned() {
    if !possible(&["dd"]) {
        return;
    }
    for sector in ["512", "4096"] {
        let dir = Workdir::new();
        let image = dir.path("disk.vhdx");
        vhdx(&["create", &image, "8M", "--block-size", "1M", "--logical-sector-size", sector])
            .succeeds();
        let mounted = Mounted::start(&dir, &image, &[]);
        let (disk, model) = (mounted.file("disk.raw"), dir.path("model.raw"));
        File::create(&model).unwrap().set_len(8 * MIB).unwrap();
        let source = dir.path("source");
        fs::write(&source, noise(1, 3 << 20)).unwrap();
        for (block, seek, count) in
            [("100", "seek=7", "30"), ("1000", "seek=1043", "2000"), ("4097", "seek=0", "2")]
        {
            for target in [&disk, &model] {
                let (from, to) = (format!("if={source}"), format!("of={target}"));
                let (size, count) = (format!("bs={block}"), format!("count={count}"));
                run(&["dd", &from, &to, &size, seek, &count, "conv=notrunc,fsync", "status=none"]);
            }
        }
        assert!(all_of(&disk, 8 * MIB) == fs::read(&model).unwrap(), "{sector}");
        // The end of a disk is the end, and is no place for a longer file.
        let file = File::options().write(true).open(&disk).unwrap();
        let error = file.write_all_at(&[1; 8192], 8 * MIB - 4096).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(file.set_len(MIB).unwrap_err().raw_os_error(), Some(1));
        file.set_len(8 * MIB).unwrap();
        drop(file);
        mounted.unmount();
        assert_closed(&image);
        assert_eq!(
            vhdx(&["read", &image, "--length", "4096"]).succeeds_with_bytes(),
            fs::read(&model).unwrap()[..4096]
        );
    }
}

/// Sectors of 4096 bytes: partitions are counted in those, and lie where the guest sees them.
#[test]
fn partitions_of_a_4k_disk_lie_where_its_guest_sees_them() {
    if !possible(&["sgdisk", "losetup"]) {
        return;
    }
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--logical-sector-size", "4096"]).succeeds();
    let mounted = Mounted::start(&dir, &image, &[]);
    let device = Loop::on(&mounted.file("disk.raw"), &["-b", "4096"]);
    run(&["sgdisk", "-n", "1:1024:2047", "-n", "2:2048:4095", &device.0]);
    drop(device);
    mounted.unmount();
    let mounted = Mounted::start(&dir, &image, &[]);
    let (disk, second) = (mounted.file("disk.raw"), mounted.file("partition-2.raw"));
    assert_eq!(fs::metadata(&second).unwrap().len(), 8 * MIB);
    // Each file shows at once what was written to the other.
    let write = |path: &str, at: u64, byte: u8| {
        File::options().write(true).open(path).unwrap().write_all_at(&[byte; 5000], at).unwrap();
    };
    assert_eq!(bytes_of(&disk, 8 * MIB, 5000), [0; 5000]);
    write(&second, 0, 7);
    assert_eq!(bytes_of(&disk, 8 * MIB, 5000), [7; 5000]);
    write(&disk, 8 * MIB, 8);
    assert_eq!(bytes_of(&second, 0, 5000), [8; 5000]);
    mounted.unmount();
}

/// A page that is mapped holds the bytes of another file's sectors too, and would be written back over them.
#[test]
fn no_file_is_mapped_for_writing() {
    if !possible(&["xfs_io"]) {
        return;
    }
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "8M"]).succeeds();
    let map = |disk: &str, how: &str| {
        let output = try_run(&["xfs_io", "-r", "-c", &format!("mmap {how} 0 4096"), disk]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mounted = Mounted::start(&dir, &image, &[]);
    let text = map(&mounted.file("disk.raw"), "-r");
    assert!(text.contains("No such device"), "it can be mapped: {text}");
    mounted.unmount();
    let mounted = Mounted::start(&dir, &image, &["-r"]);
    assert_eq!(map(&mounted.file("disk.raw"), "-r"), "", "what cannot be written is mapped");
    mounted.unmount();
}

/// Where data lies, by SEEK_DATA and SEEK_HOLE.
fn data_of(path: &str) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

#[test]
fn holes_are_shown_and_punched() {
    if !possible(&["cp"]) {
        return;
    }
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "1G", "--block-size", "1M"]).succeeds();
    let mounted = Mounted::start(&dir, &image, &[]);
    let disk = mounted.file("disk.raw");
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    for at in [5, 40, 41] {
        file.write_all_at(&noise(at, 1 << 20), at * MIB).unwrap();
    }
    assert_eq!(data_of(&disk), [(5 * MIB, 6 * MIB), (40 * MIB, 42 * MIB)]);
    let copy = dir.path("copy.raw");
    run(&["cp", "--sparse=auto", &disk, &copy]);
    assert!(space(&copy) <= 4 * MIB, "{}", space(&copy));
    assert_eq!(bytes_of(&copy, 41 * MIB, 1 << 20), noise(41, 1 << 20));

    // A hole reads as zeros whatever its ends, and what is whole gives its space back.
    let before = space(&image);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 40 * MIB + 100, 2 * MIB - 200).unwrap();
    assert_eq!(bytes_of(&disk, 40 * MIB, 100), noise(40, 100));
    assert_eq!(bytes_of(&disk, 40 * MIB + 100, 4096), [0; 4096]);
    assert_eq!(bytes_of(&disk, 42 * MIB - 101, 1), [0]);
    assert_eq!(bytes_of(&disk, 42 * MIB - 100, 100), noise(41, 1 << 20)[(1 << 20) - 100..]);
    fallocate(&file, punch, 4 * MIB, 2000 * MIB).unwrap();
    file.sync_all().unwrap();
    assert_eq!(data_of(&disk), []);
    assert!(space(&image) + 2 * MIB <= before, "{} of {before}", space(&image));
    fallocate(&file, FallocateFlags::ZERO_RANGE, 0, MIB).unwrap();
    // Space that was not taken is not promised.
    let refused = fallocate(&file, FallocateFlags::empty(), 0, MIB).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::OPNOTSUPP);
    drop(file);
    mounted.unmount();
    assert_closed(&image);
}

/// A table of 64 TiB is not walked to answer that there is nothing.
#[test]
fn a_huge_empty_disk_answers_at_once() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let image = dir.path("huge.vhdx");
    vhdx(&["create", &image, "64T"]).succeeds();
    let mounted = Mounted::start(&dir, &image, &[]);
    let disk = mounted.file("disk.raw");
    assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 40);
    let begun = std::time::Instant::now();
    assert_eq!(data_of(&disk), []);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[1; 512], (64 << 40) - 512).unwrap();
    let found = data_of(&disk);
    assert_eq!((found.len(), found[0].1), (1, 64 << 40));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    drop(file);
    mounted.unmount();
}
