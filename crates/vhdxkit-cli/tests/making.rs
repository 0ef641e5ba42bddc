//! The commands that make or change images, as a person runs them.

mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::{Run, Workdir, json, vhdx};

const MIB: u64 = 1 << 20;

/// Runs the command with bytes on stdin.
fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Run::command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command may refuse before it has read anything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn write(image: &str, offset: &str, input: &[u8]) {
    let output = with_input(&["write", image, "--offset", offset], input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn have_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

fn qemu(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_new_disk_is_what_was_asked_for() {
    let dir = Workdir::new();
    let image = dir.path("a disk.vhdx");
    let made = json(&vhdx(&["create", "--json", &image, "3G"]).succeeds());
    assert_eq!(made["virtual_size"], 3u64 << 30);
    assert_eq!(made["file_size"], std::fs::metadata(&image).unwrap().len());
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!((&info["type"], &info["block_size"]), (&"dynamic".into(), &(32 * MIB).into()));
    vhdx(&["check", &image]).succeeds();

    let other = dir.path("other.vhdx");
    let id = "11223344-5566-4788-99aa-bbccddeeff00";
    let sizes = ["--block-size", "2M", "--logical-sector-size", "4096", "--log-size", "4M"];
    let mut arguments = vec!["create", &other, "20M", "--fixed", "--preallocate", "--disk-id", id];
    arguments.extend(sizes);
    vhdx(&arguments).succeeds();
    let info = json(&vhdx(&["info", "--json", &other]).succeeds());
    assert_eq!((&info["type"], &info["block_size"]), (&"fixed".into(), &(2 * MIB).into()));
    assert_eq!(info["logical_sector_size"], 4096);
    assert_eq!(info["virtual_disk_id"], id);
    assert_eq!(info["log"]["length"], 4 * MIB);
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::fs::MetadataExt;
        let meta = std::fs::metadata(&other).unwrap();
        assert!(meta.st_blocks() * 512 >= meta.len(), "the file is sparse");
    }
    let before = std::fs::read(&image).unwrap();
    let refused = vhdx(&["create", &image, "1G"]).fails_with(1);
    assert!(refused.contains("--force"), "{refused}");
    assert!(std::fs::read(&image).unwrap() == before);
    for bad in [["0", "32M"], ["1000", "32M"], ["65T", "32M"], ["1G", "3M"], ["1G", "512M"]] {
        let target = dir.path("bad.vhdx");
        vhdx(&["create", &target, bad[0], "--block-size", bad[1]]).fails();
        assert!(!std::path::Path::new(&target).exists());
    }
    assert_eq!(dir.names(), ["a disk.vhdx", "other.vhdx"], "something was left behind");
}

#[test]
fn write_takes_stdin_and_refuses_what_is_no_whole_sector() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    let bytes: Vec<u8> = (0..3 * MIB).map(|i| (i % 251) as u8).collect();
    write(&image, "0x7ffe00", &bytes);
    let read = vhdx(&["read", &image, "--offset", "0x7ffe00", "--length", "3M"]);
    assert!(read.succeeds_with_bytes() == bytes);
    vhdx(&["check", &image]).succeeds();
    let before = std::fs::read(&image).unwrap();
    for (offset, input) in [("7", &bytes[..512]), ("65M", &bytes[..512]), ("64M", &bytes[..512])] {
        let output = with_input(&["write", &image, "--offset", offset], input);
        assert_eq!(output.status.code(), Some(1), "{offset}");
    }
    let output = with_input(&["write", &image, "--offset", "0"], &bytes[..100]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("100 bytes"), "{text}");
    let guest = vhdx(&["read", &image]).succeeds_with_bytes();
    assert!(guest[..512].iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::read(&image).unwrap().len(), before.len());
    if have_qemu() {
        qemu(&["check", "-q", "-f", "vhdx", &image]);
    }
}

#[test]
fn resize_grows_shrinks_and_protects_data_and_partitions() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    let grown = json(&vhdx(&["resize", "--json", &image, "+36M"]).succeeds());
    assert_eq!(
        (&grown["changed"], &grown["virtual_size_after"]),
        (&true.into(), &(100 * MIB).into())
    );
    assert_eq!(json(&vhdx(&["resize", "--json", &image, "100M"]).succeeds())["changed"], false);
    write(&image, "80M", &[7; 512]);
    let refused = vhdx(&["resize", &image, "70M"]).fails_with(1);
    assert!(refused.contains(&(80 * MIB).to_string()) && refused.contains("--force"), "{refused}");
    vhdx(&["resize", &image, "81M"]).succeeds();
    // A partition of 40 MiB at 1 MiB, without contents.
    let mut sector = [0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&(40 * 2048u32).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    write(&image, "0", &sector);
    vhdx(&["resize", "--force", &image, "50M"]).succeeds();
    let refused = vhdx(&["resize", &image, "--", "-10M"]).fails_with(1);
    assert!(
        refused.contains("partition") && refused.contains(&(41 * MIB).to_string()),
        "{refused}"
    );
    vhdx(&["resize", &image, "41M"]).succeeds();
    for bad in ["0", "1000", "65T", "+70T", "-99G"] {
        vhdx(&["resize", &image, "--", bad]).fails_with(1);
    }
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!(info["virtual_size"], 41 * MIB);
    vhdx(&["check", &image]).succeeds();
    if have_qemu() {
        qemu(&["check", "-q", "-f", "vhdx", &image]);
    }
}

#[test]
fn the_smallest_size_keeps_every_byte_and_every_partition() {
    let dir = Workdir::new();
    let image = dir.path("a.vhdx");
    vhdx(&["create", &image, "100M", "--block-size", "1M"]).succeeds();
    // Zeros behind the last byte are not worth keeping, stored or not.
    write(&image, "80M", &[7; 512]);
    write(&image, "90M", &[0; 4096]);
    let size = || json(&vhdx(&["info", "--json", &image]).succeeds())["virtual_size"].clone();
    vhdx(&["resize", &image, "min"]).succeeds();
    assert_eq!(size(), 80 * MIB + 512);
    assert_eq!(vhdx(&["read", &image, "--offset", "80M"]).succeeds_with_bytes(), [7; 512]);
    vhdx(&["resize", &image, "100M"]).succeeds();
    // A partition up to 95 MiB, empty at its end.
    let mut sector = [0; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&(94 * 2048u32).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    write(&image, "0", &sector);
    vhdx(&["resize", &image, "min"]).succeeds();
    assert_eq!(size(), 95 * MIB);
    vhdx(&["check", &image]).succeeds();
}

/// Nearly every disk of today has a GPT, with a second copy in its last sectors: "holds data" and "has that size
/// already" left people with no way to make one smaller. What is printed is typed here, and the table is whole again.
#[test]
fn a_disk_with_a_gpt_becomes_smaller_by_what_is_printed() {
    if Command::new("sgdisk").arg("-V").output().is_err() {
        eprintln!("skipped: sgdisk is not installed");
        return;
    }
    let dir = Workdir::new();
    let (raw, image) = (dir.path("gpt.raw"), dir.path("gpt.vhdx"));
    std::fs::File::create(&raw).unwrap().set_len(100 * MIB).unwrap();
    let sgdisk = |arguments: &[&str]| {
        let output = Command::new("sgdisk").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    sgdisk(&["-n", "1:2048:+40M", &raw]);
    vhdx(&["convert", &raw, &image, "--block-size", "1M"]).succeeds();
    let other = dir.path("other.vhdx");
    std::fs::copy(&image, &other).unwrap();
    let least = 42 * MIB;
    let command = format!("vhdx resize --force {image} {least}");
    let told = vhdx(&["resize", &image, "min"]).succeeds();
    assert!(told.contains("has that size already") && told.contains(&command), "{told}");
    let refused = vhdx(&["resize", &image, "--", "-70M"]).fails_with(1);
    assert!(refused.contains("partition of the disk reaches"), "{refused}");
    let refused = vhdx(&["resize", &image, "41M"]).fails_with(1);
    assert!(refused.contains(&command), "{refused}");
    let refused = vhdx(&["resize", &image, "--", "-5M"]).fails_with(1);
    let wish = format!("vhdx resize --force {image} {}", 95 * MIB);
    assert!(refused.contains(&wish) && refused.contains("sgdisk -e"), "{refused}");

    let told = vhdx(&["resize", "--force", &image, &least.to_string()]).succeeds();
    assert!(told.contains("cut off") && told.contains("sgdisk -e"), "{told}");
    std::fs::remove_file(&raw).unwrap();
    vhdx(&["convert", &image, &raw]).succeeds();
    sgdisk(&["-e", &raw]);
    let verdict = sgdisk(&["-v", &raw]);
    assert!(verdict.contains("No problems found"), "{verdict}");

    // Where the first copy is damaged the second one is the only table.
    let damaged = dir.path("damaged.vhdx");
    std::fs::copy(&other, &damaged).unwrap();
    write(&damaged, "1K", &[0x77; 512]);
    let told = vhdx(&["resize", &damaged, "min"]).succeeds();
    let refused = vhdx(&["resize", &damaged, "50M"]).fails_with(1);
    assert!(!told.contains("cuts it off") && !refused.contains("cuts it off"), "{told}{refused}");

    // What else lies there is not cut off by anybody's advice.
    write(&other, "63M", &[7; 512]);
    let told = vhdx(&["resize", &other, "min"]).succeeds();
    assert!(!told.contains("--force"), "{told}");
}

#[test]
fn raw_and_vhdx_convert_into_each_other() {
    let dir = Workdir::new();
    let (raw, image, fixed, back) =
        (dir.path("a.raw"), dir.path("a.vhdx"), dir.path("fixed.vhdx"), dir.path("back.raw"));
    let bytes: Vec<u8> =
        (0..5 * MIB + 512).map(|i| if i % (2 * MIB) < 9999 { 3 } else { 0 }).collect();
    std::fs::write(&raw, &bytes).unwrap();
    let measured = json(&vhdx(&["measure", "--json", &raw, "--block-size", "1M"]).succeeds());
    let done = json(&vhdx(&["convert", "--json", &raw, &image, "--block-size", "1M"]).succeeds());
    assert_eq!(done["changed"], true);
    assert!(measured["required"].as_u64() >= done["bytes_after"].as_u64());
    // Three blocks hold something: the zeros between are not stored.
    assert_eq!(done["bytes_after"], (4 + 3) * MIB);
    vhdx(&["compare", &raw, &image]).succeeds();
    vhdx(&["convert", &image, &fixed, "--fixed"]).succeeds();
    assert_eq!(json(&vhdx(&["info", "--json", &fixed]).succeeds())["type"], "fixed");
    vhdx(&["convert", &fixed, &back]).succeeds();
    assert!(std::fs::read(&back).unwrap() == bytes);
    for file in [&image, &fixed] {
        vhdx(&["check", file]).succeeds();
        if have_qemu() {
            qemu(&["check", "-q", "-f", "vhdx", file]);
            qemu(&["compare", "-q", "-f", "vhdx", "-F", "raw", file, &raw]);
        }
    }
    // A raw file may end anywhere, a disk only behind a sector.
    let (ragged, whole) = (dir.path("ragged.raw"), dir.path("whole.vhdx"));
    std::fs::write(&ragged, vec![6; 1000]).unwrap();
    let done = json(&vhdx(&["convert", "--json", &ragged, &whole]).succeeds());
    assert_eq!(done["virtual_size"], 1024);
    let read = vhdx(&["read", &whole]).succeeds_with_bytes();
    assert!(read == [vec![6; 1000], vec![0; 24]].concat());
    let names = dir.names();
    for arguments in [
        vec!["convert", &raw, &image],
        vec!["convert", &raw, &raw, "--force"],
        vec!["convert", &raw, "-", "--to", "vhdx"],
        vec!["convert", &raw, "x.vhdx", "--block-size", "3M"],
        vec!["convert", &image, "x.raw", "--fixed"],
        vec!["convert", &image, "x.vmdk"],
        vec!["convert", &image, "x.unknown"],
    ] {
        vhdx(&arguments).fails();
    }
    assert_eq!(dir.names(), names, "something was left behind");
}

/// A disk full in the middle: nothing is left under the target's name, and an image that was being
/// written keeps what it had.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_nothing_more() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    write(&image, "1M", &[5; 4096]);
    let raw = dir.path("big.raw");
    std::fs::write(&raw, vec![1; 12 << 20]).unwrap();
    let names = dir.names();
    // No file may become longer than 8 MiB: what the system answers is an error like any other.
    let limited = |arguments: &str| {
        let program = env!("CARGO_BIN_EXE_vhdx");
        let script = format!("trap '' XFSZ; ulimit -f 8192; exec {program} {arguments}");
        Command::new("bash")
            .args(["-c", &script])
            .stdin(std::fs::File::open(&raw).unwrap())
            .output()
    };
    let output = limited(&format!("convert '{raw}' '{}'", dir.path("copy.vhdx"))).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("too large") && text.contains("what to do"), "{text}");
    let output = limited(&format!("write '{image}' --offset 2M")).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(dir.names(), names, "something was left behind");
    vhdx(&["check", &image]).succeeds();
    let kept = vhdx(&["read", &image, "--offset", "1M", "--length", "4096"]);
    assert!(kept.succeeds_with_bytes() == [5; 4096]);
    write(&image, "2M", &[6; 4096]);
}

/// Killed in the middle of a long write: whatever it had flushed or not, the image opens.
#[test]
#[cfg(unix)]
fn a_killed_write_leaves_an_image_that_opens() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M", "--block-size", "1M"]).succeeds();
    let mut child = Run::command(&["write", &image]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![9; 10 << 20]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stdin);
    vhdx(&["check", &image]).succeeds();
    vhdx(&["log", "replay", &image]).succeeds();
    write(&image, "0", &[1; 512]);
    vhdx(&["check", &image]).succeeds();
}

#[test]
fn a_read_only_file_is_not_written() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let mut permissions = std::fs::metadata(&image).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&image, permissions).unwrap();
    let before = dir.fingerprint(&image);
    let output = with_input(&["write", &image], &[1; 512]);
    // Root may write whatever it likes; then this says nothing.
    if output.status.code() == Some(1) {
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot open"));
        assert_eq!(dir.fingerprint(&image), before);
    }
}

#[test]
fn writing_is_refused_while_somebody_else_has_the_image() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "64M"]).succeeds();
    let mut child = Run::command(&["write", &image]).stdin(Stdio::piped()).spawn().unwrap();
    // It holds the image as long as its input is open, and certainly once it has written.
    let before = std::fs::metadata(&image).unwrap().len();
    child.stdin.as_mut().unwrap().write_all(&vec![1; 1 << 20]).unwrap();
    let begun = std::time::Instant::now();
    while std::fs::metadata(&image).unwrap().len() == before {
        assert!(begun.elapsed().as_secs() < 20, "nothing is written");
    }
    let refused = with_input(&["write", &image], &[1; 512]);
    assert_eq!(refused.status.code(), Some(4));
    vhdx(&["resize", &image, "65M"]).fails_with(4);
    // By force neither: the writer would lose its disk's name.
    vhdx(&["create", "--force", &image, "65M"]).fails_with(4);
    let raw = dir.path("disk.raw");
    std::fs::write(&raw, [1; 512]).unwrap();
    vhdx(&["convert", "--force", &raw, &image]).fails_with(4);
    if have_qemu() {
        let output =
            Command::new("qemu-img").args(["info", "-f", "vhdx", &image]).output().unwrap();
        assert!(!output.status.success(), "QEMU opens what we are writing");
        assert!(String::from_utf8_lossy(&output.stderr).contains("lock"));
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    vhdx(&["resize", &image, "65M"]).succeeds();
}

/// What cannot be written is refused while the image is still as it was, its dirty log included.
#[test]
fn bad_arguments_do_not_even_replay_the_log() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let input = dir.path("input");
    let before = dir.fingerprint(&image);
    let from_file = |offset: &str| {
        let stdin = std::fs::File::open(&input).unwrap();
        Run::command(&["write", &image, "--offset", offset]).stdin(stdin).output().unwrap()
    };
    std::fs::write(&input, vec![1; 3 << 20]).unwrap();
    assert_eq!(from_file("7").status.code(), Some(1));
    assert_eq!(from_file("1T").status.code(), Some(1));
    for (size, status) in [("-1T", 1), ("12x", 2)] {
        vhdx(&["resize", &image, "--", size]).fails_with(status);
    }
    // Of a pipe nobody knows how much will come; of a file only Unix tells.
    #[cfg(unix)]
    {
        let info = json(&vhdx(&["info", "--json", &image]).succeeds());
        let end = info["virtual_size"].as_u64().unwrap();
        let output = from_file(&(end - 4096).to_string());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("4096"), "{text}");
        std::fs::write(&input, vec![1; (2 << 20) + 7]).unwrap();
        assert_eq!(from_file("0").status.code(), Some(1));
    }
    assert_eq!(dir.fingerprint(&image), before);
    // Out of a pipe it is written up to the piece that does not fit.
    let output = with_input(&["write", &image, "--offset", "0"], &vec![1; (2 << 20) + 7]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("2097152 bytes"), "{text}");
    vhdx(&["check", &image]).succeeds();
}

/// Ctrl-C in the middle of a copy: neither the target nor an unfinished file stays.
#[test]
#[cfg(unix)]
fn an_interrupted_copy_leaves_nothing() {
    let dir = Workdir::new();
    let raw = dir.path("disk.raw");
    std::fs::write(&raw, vec![1; 256 << 20]).unwrap();
    let image = dir.path("disk.vhdx");
    for _ in 0..10 {
        let mut child =
            Run::command(&["convert", &raw, &image]).stderr(Stdio::null()).spawn().unwrap();
        while !dir.names().iter().any(|name| name.ends_with(".partial")) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        Command::new("kill").args(["-INT", &child.id().to_string()]).output().unwrap();
        let status = child.wait().unwrap();
        if status.code() == Some(1) {
            assert_eq!(dir.names(), ["disk.raw"], "something was left behind");
            return;
        }
        // It was done before the signal came.
        assert!(status.success(), "{status}");
        std::fs::remove_file(&image).unwrap();
    }
    panic!("no copy could be interrupted");
}

/// A qcow2 that is wrapped as raw bytes makes a disk without sense, and nobody notices.
#[test]
fn images_of_other_formats_are_not_taken_for_raw_bytes() {
    let dir = Workdir::new();
    let target = dir.path("x.vhdx");
    let mut footer = vec![0; 1 << 20];
    footer[(1 << 20) - 512..][..8].copy_from_slice(b"conectix");
    for (name, bytes, told) in [
        ("disk", b"QFI\xfb....".repeat(512), "qcow2"),
        ("disk", b"KDMV....".repeat(512), "VMDK"),
        ("disk", footer, "VHD"),
        ("broken.vhdx", vec![0; 2 << 20], "vhdxfile"),
        ("broken.AVHDX", vec![0; 2 << 20], "vhdxfile"),
    ] {
        let source = dir.path(name);
        std::fs::write(&source, &bytes).unwrap();
        let refused = vhdx(&["convert", &source, &target]).fails_with(1);
        assert!(refused.contains(told), "{refused}");
        vhdx(&["measure", &source]).fails_with(1);
        vhdx(&["convert", "--from", "raw", "--force", &source, &target]).succeeds();
        std::fs::remove_file(&target).unwrap();
    }
}

/// WSL's disks hold a file system without a partition table.
#[test]
fn a_file_system_without_partitions_is_not_cut() {
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        eprintln!("skipped: mkfs.ext4 is not installed");
        return;
    }
    let dir = Workdir::new();
    let (raw, image) = (dir.path("fs.raw"), dir.path("fs.vhdx"));
    std::fs::File::create(&raw).unwrap().set_len(100 * MIB).unwrap();
    assert!(Command::new("mkfs.ext4").args(["-q", &raw]).status().unwrap().success());
    vhdx(&["convert", &raw, &image]).succeeds();
    let refused = vhdx(&["resize", &image, "99M"]).fails_with(1);
    assert!(refused.contains("ext4") && refused.contains("104857600"), "{refused}");
    vhdx(&["resize", &image, "200M"]).succeeds();
    vhdx(&["resize", &image, "100M"]).succeeds();
    vhdx(&["resize", "--force", &image, "99M"]).succeeds();
    let wrong = vhdx(&["resize", &image, "65T"]).fails_with(1);
    assert!(!wrong.contains("--force"), "{wrong}");
}
