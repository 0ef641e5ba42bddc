//! However a mount begins or ends: what was synced is there, nothing else was changed, and whoever did
//! something wrong is told what to do.
//!
//! These tests mount, so they want Linux, root and /dev/fuse; where something is missing they say what.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/mounting.rs"]
mod mounting;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use common::{Run, Workdir, json, vhdx};
use mounting::{Attached, Loop, MIB, Mounted, all_of, bytes_of, eventually, noise, possible, run};

fn small_disk(dir: &Workdir, name: &str) -> String {
    let image = dir.path(name);
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    image
}

fn log_state(image: &str) -> String {
    let info = json(&vhdx(&["info", "--json", image]).succeeds());
    info["log"]["state"].as_str().unwrap().to_owned()
}

/// Writes and syncs; what was written.
fn write_synced(mounted: &Mounted, at: u64, seed: u64) -> Vec<u8> {
    let bytes = noise(seed, 3 << 20);
    let file = File::options().write(true).open(mounted.file("disk.raw")).unwrap();
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
    bytes
}

fn contents(dir: &Workdir, image: &str) -> Vec<u8> {
    let raw = dir.path("contents.raw");
    vhdx(&["convert", "--force", image, &raw]).succeeds();
    fs::read(&raw).unwrap()
}

#[test]
fn a_crashed_image_is_shown_and_not_touched() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    for name in ["crashed.vhdx", "sectors-4k.vhdx", "clean.vhdx"] {
        let image = dir.copy(name);
        let before = dir.fingerprint(&image);
        let expected = contents(&dir, &image);
        let mounted = Mounted::start(&dir, &image, &["--read-only"]);
        assert!(all_of(&mounted.file("disk.raw"), expected.len() as u64) == expected, "{name}");
        let refused = File::options().write(true).open(mounted.file("disk.raw")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        mounted.unmount();
        assert!(dir.fingerprint(&image) == before, "{name} was changed");
    }
}

#[test]
fn a_chain_is_shown_as_one_disk_and_written_in_its_child() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let base = small_disk(&dir, "base.vhdx");
    let mounted = Mounted::start(&dir, &base, &[]);
    let below = write_synced(&mounted, 10 * MIB, 1);
    mounted.unmount();
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    let before = dir.fingerprint(&base);
    let mounted = Mounted::start(&dir, &child, &[]);
    let above = write_synced(&mounted, 12 * MIB, 2);
    mounted.unmount();
    let mounted = Mounted::start(&dir, &child, &["--read-only"]);
    let disk = mounted.file("disk.raw");
    assert_eq!(bytes_of(&disk, 10 * MIB, 2 << 20), below[..2 << 20]);
    assert!(bytes_of(&disk, 12 * MIB, 3 << 20) == above);
    mounted.unmount();
    assert!(dir.fingerprint(&base) == before, "the parent was changed");
    // Without its parent it is no disk.
    fs::rename(&base, dir.path("elsewhere.vhdx")).unwrap();
    let empty = dir.path("empty");
    fs::create_dir(&empty).unwrap();
    vhdx(&["mount", "--read-only", &child, &empty]).fails_with(5);
}

/// A disk that others build on is not changed under them by mistake.
#[test]
fn the_parent_of_a_checkpoint_is_written_only_by_force() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let base = small_disk(&dir, "base.vhdx");
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    let before = dir.fingerprint(&base);
    let empty = dir.path("empty");
    fs::create_dir(&empty).unwrap();
    std::os::unix::fs::symlink(&base, format!("{empty}.vhdx")).unwrap();
    for image in [&base, &format!("{empty}.vhdx")] {
        let text = vhdx(&["mount", image, &empty]).fails_with(1);
        for part in ["child.avhdx builds on it", "--read-only", "--snapshot", "--force"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
    Mounted::start(&dir, &base, &["--read-only"]).unmount();
    assert!(dir.fingerprint(&base) == before, "the parent was changed");
    let mounted = Mounted::start(&dir, &base, &["--force"]);
    write_synced(&mounted, 0, 1);
    mounted.unmount();
}

#[test]
fn what_was_synced_survives_a_kill() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let mounted = Mounted::start(&dir, &image, &[]);
    let synced = write_synced(&mounted, 5 * MIB, 1);
    let file = File::options().write(true).open(mounted.file("disk.raw")).unwrap();
    file.write_all_at(&noise(2, 1 << 20), 30 * MIB).unwrap();
    mounted.signal("KILL");
    let directory = mounted.directory.clone();
    assert_eq!(mounted.ends(), None);
    assert!(file.write_all_at(&[1], 0).is_err(), "nobody is told that this was written");
    drop(file);
    // What is left of the mount is said, and cleared away.
    let text = vhdx(&["mount", &image, &directory]).fails_with(1);
    assert!(text.contains("vhdx unmount"), "{text}");
    let told = vhdx(&["unmount", &directory]).succeeds();
    for part in ["cleared away: its server had died", "is dirty", "vhdx log show"] {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
    assert!(fs::metadata(&directory).is_ok(), "the directory can be used again");
    assert_eq!(log_state(&image), "dirty");
    assert_eq!(contents(&dir, &image)[5 << 20..8 << 20], synced);
    // And the next writer replays it.
    let mounted = Mounted::start(&dir, &image, &[]);
    assert!(bytes_of(&mounted.file("disk.raw"), 5 * MIB, 3 << 20) == synced);
    mounted.unmount();
    assert_eq!(log_state(&image), "clean");
}

/// `sync` does not reach a mount like this: what nobody syncs is committed by itself soon, and also while
/// somebody goes on writing.
#[test]
fn what_nobody_syncs_is_committed_soon() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let (once, always) = (small_disk(&dir, "once.vhdx"), small_disk(&dir, "always.vhdx"));
    let (a, b) = (Mounted::start(&dir, &once, &[]), Mounted::start(&dir, &always, &[]));
    let open = |m: &Mounted| File::options().write(true).open(m.file("disk.raw")).unwrap();
    let (file, busy) = (open(&a), open(&b));
    file.write_all_at(&noise(1, 3 << 20), 5 * MIB).unwrap();
    for turn in 0..80u64 {
        busy.write_all_at(&noise(turn, 4096), turn * 4096).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    for mounted in [a, b] {
        mounted.signal("KILL");
        assert_eq!(mounted.ends(), None);
    }
    drop((file, busy));
    assert!(contents(&dir, &once)[5 << 20..8 << 20] == noise(1, 3 << 20));
    assert!(contents(&dir, &always)[..4096] == noise(0, 4096), "while it is being written");
    for name in ["disk0", "disk1"] {
        vhdx(&["unmount", &dir.path(name)]).succeeds();
    }
}

#[test]
fn umount_and_signals_close_cleanly() {
    if !possible(&["umount"]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    for (turn, end) in ["umount", "INT", "TERM"].into_iter().enumerate() {
        let mounted = Mounted::start(&dir, &image, &[]);
        let at = turn as u64 * 4 * MIB;
        let file = File::options().write(true).open(mounted.file("disk.raw")).unwrap();
        // Not synced: the unmount does that.
        file.write_all_at(&noise(at, 1 << 20), at).unwrap();
        drop(file);
        match end {
            "umount" => drop(run(&["umount", &mounted.directory])),
            signal => mounted.signal(signal),
        }
        assert_eq!(mounted.ends(), Some(0), "{end}");
        assert_eq!(log_state(&image), "clean", "{end}");
        assert!(contents(&dir, &image)[at as usize..][..1 << 20] == noise(at, 1 << 20), "{end}");
        vhdx(&["check", &image]).succeeds();
    }
}

/// A mount that is in use goes on, and says by whom it is used.
#[test]
fn a_used_mount_is_not_taken_away() {
    if !possible(&["losetup"]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let mounted = Mounted::start(&dir, &image, &[]);
    let device = Loop::on(&mounted.file("disk.raw"), &[]);
    let text = vhdx(&["unmount", &mounted.directory]).fails_with(1);
    assert!(text.contains(&format!("losetup -d {}", device.0)), "{text}");
    mounted.signal("TERM");
    eventually("it answers at once", || mounted.errors().contains("is in use: waiting"));
    assert!(!mounted.errors().contains("goes on being served"), "{}", mounted.errors());
    // While it waits, that is still the first one.
    mounted.signal("TERM");
    eventually("it says who uses it", || mounted.errors().contains(&device.0));
    assert!(mounted.errors().contains("goes on being served"), "{}", mounted.errors());
    std::thread::sleep(Duration::from_millis(300));
    let bytes = write_synced(&mounted, MIB, 3);
    assert!(bytes_of(&device.0, MIB, 3 << 20) == bytes, "it goes on");
    // Twice means at once; what was synced is there.
    mounted.signal("TERM");
    assert_eq!(mounted.ends(), Some(130));
    drop(device);
    assert_eq!(contents(&dir, &image)[1 << 20..4 << 20], bytes);
}

/// What somebody has mounted over it is not taken for it, and not taken away.
#[test]
fn a_covered_mount_says_what_covers_it() {
    if !possible(&["mount", "umount"]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let mounted = Mounted::start(&dir, &image, &[]);
    run(&["mount", "-t", "tmpfs", "cover", &mounted.directory]);
    fs::write(mounted.file("on-top"), "").unwrap();
    mounted.signal("TERM");
    eventually("it is said", || mounted.errors().contains("cover mounted over it"));
    assert!(fs::metadata(mounted.file("on-top")).is_ok());
    run(&["umount", &mounted.directory]);
    let bytes = write_synced(&mounted, 0, 1);
    mounted.signal("TERM");
    assert_eq!(mounted.ends(), Some(0));
    assert_eq!(log_state(&image), "clean");
    assert!(contents(&dir, &image)[..3 << 20] == bytes);
}

#[test]
fn unmounting_from_inside_or_many_times_at_once_is_explained() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let mounted = Mounted::start(&dir, &image, &[]);
    // Its own folder keeps this command from unmounting, and that is what it says.
    let output = Run::command(&["unmount", "."]).current_dir(&mounted.directory).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("own folder"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    // Of many who unmount at once, nobody meets an unexplained error.
    let many = (0..8).map(|_| {
        let mut command = Run::command(&["unmount", &mounted.directory]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let many: Vec<_> = many.collect::<Vec<_>>().into_iter().map(|c| c.wait_with_output()).collect();
    for output in many.into_iter().map(Result::unwrap) {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let explained = text.contains("nothing is mounted");
        assert!(output.status.success() || explained, "{text}");
    }
    assert_eq!(mounted.ends(), Some(0));
    assert_eq!(log_state(&image), "clean");
}

/// The medium is full: the writer is told so, all else goes on, and so does writing when there is room.
#[test]
fn a_full_medium_is_told_to_the_writer_and_to_the_owner() {
    if !possible(&["mount"]) {
        return;
    }
    let dir = Workdir::new();
    let small = Attached::by(&dir, &["mount", "-t", "tmpfs", "-o", "size=16m", "none"]);
    let image = small.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    fs::write(small.path("ballast"), vec![1; 4 << 20]).unwrap();
    let mounted = Mounted::start(&dir, &image, &[]);
    let synced = write_synced(&mounted, 0, 1);
    let disk = mounted.file("disk.raw");
    let file = File::options().write(true).open(&disk).unwrap();
    let error = file.write_all_at(&noise(2, 16 << 20), 8 * MIB).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert!(bytes_of(&disk, 0, 3 << 20) == synced, "reading goes on");
    assert!(mounted.errors().contains("full"), "{}", mounted.errors());
    fs::remove_file(small.path("ballast")).unwrap();
    file.write_all_at(&noise(3, 1 << 20), 40 * MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    vhdx(&["unmount", &mounted.directory]).succeeds();
    assert_eq!(mounted.ends(), Some(0));
    assert_eq!(log_state(&image), "clean");
    let shown = contents(&dir, &image);
    assert!(shown[..3 << 20] == synced && shown[40 << 20..41 << 20] == noise(3, 1 << 20));
    fs::remove_file(&image).unwrap();
    small.end();
}

/// The image loses its end while it is served: that part is an error, told to both, and the rest is read.
#[test]
fn what_has_vanished_is_an_error_and_the_rest_is_read() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let mounted = Mounted::start(&dir, &image, &[]);
    let first = write_synced(&mounted, 0, 1);
    write_synced(&mounted, 20 * MIB, 2);
    mounted.unmount();
    let mounted = Mounted::start(&dir, &image, &["--read-only"]);
    let length = fs::metadata(&image).unwrap().len();
    File::options().write(true).open(&image).unwrap().set_len(length - 2 * MIB).unwrap();
    let disk = File::open(mounted.file("disk.raw")).unwrap();
    let error = disk.read_exact_at(&mut [0; 512], 23 * MIB - 512).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(mounted.errors().contains("cannot read"), "{}", mounted.errors());
    assert!(bytes_of(&mounted.file("disk.raw"), 0, 3 << 20) == first);
    drop(disk);
    mounted.signal("TERM");
    assert_eq!(mounted.ends(), Some(0));
}

#[test]
fn what_cannot_be_mounted_is_refused_with_advice() {
    if !possible(&["sfdisk"]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let empty = dir.path("empty");
    fs::create_dir(&empty).unwrap();
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let text = vhdx(arguments).fails_with(code);
        for part in words {
            assert!(text.contains(part), "{arguments:?}: {part} is missing:\n{text}");
        }
    };
    let (nowhere, taken) = (dir.path("nowhere"), dir.path(""));
    refused(&["mount", &image, &nowhere], 1, &["no directory", "mkdir"]);
    refused(&["mount", &image, &taken], 1, &["not empty", "mkdir"]);
    refused(&["mount", &image, &image], 1, &["no directory"]);
    refused(&["mount", &empty, &image], 1, &["IMAGE first, then DIR", "not touched: the image"]);
    refused(&["mount", &nowhere, &empty], 1, &["nowhere"]);
    refused(&["mount", "--detach", &nowhere, &empty], 1, &["nowhere"]);
    refused(&["mount", &image, &empty, "--partition", "1"], 1, &["no partition table"]);
    refused(&["mount", &image, &empty, "--force-share"], 2, &["--read-only"]);
    refused(&["unmount", &empty], 1, &["nothing is mounted"]);
    refused(&["unmount", "/proc"], 1, &["umount /proc"]);

    let mounted = Mounted::start(&dir, &image, &[]);
    let mut child = std::process::Command::new("sfdisk")
        .args(["-q", "--no-reread", &mounted.file("disk.raw")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"2048,2048\n4096,2048\n").unwrap();
    assert!(child.wait().unwrap().success());
    refused(&["mount", &image, &empty], 4, &["in use"]);
    refused(&["mount", &image, &mounted.directory], 1, &["vhdx unmount"]);
    mounted.unmount();
    refused(&["mount", &image, &empty, "--partition", "9"], 1, &["partition 9", "1, 2"]);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[test]
fn a_detached_mount_serves_when_the_command_returns() {
    if !possible(&[]) {
        return;
    }
    let dir = Workdir::new();
    let image = small_disk(&dir, "disk.vhdx");
    let directory = dir.path("disk");
    fs::create_dir(&directory).unwrap();
    // Its output is a pipe here: nobody may have to wait for the server's end to read all of it.
    let printed = vhdx(&["mount", "--detach", "--json", &image, &directory]).succeeds();
    struct Guard(String);
    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = Run::command(&["unmount", &self.0]).output();
        }
    }
    let guard = Guard(directory.clone());
    let pid = json(&printed)["pid"].as_u64().unwrap();
    assert_ne!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        std::env::current_dir().unwrap()
    );
    let disk = format!("{directory}/disk.raw");
    File::options().write(true).open(&disk).unwrap().write_all_at(&noise(1, 4096), 0).unwrap();
    vhdx(&["unmount", &directory]).succeeds();
    std::mem::forget(guard);
    assert_eq!(log_state(&image), "clean");
    assert_eq!(contents(&dir, &image)[..4096], noise(1, 4096));
}
