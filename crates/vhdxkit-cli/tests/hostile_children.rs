//! The command on children that come from anybody: one exit code, an error that says where it looked, and
//! no file opened that the policy does not allow. strace tells what the whole process opened.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Run, Workdir, vhdx};
use vhdxkit::format::Guid;
use vhdxkit_testkit::{Contents, Image};

const MIB: u64 = 1 << 20;
const WANTED: Guid = Guid::from_u128(0xABCD);
/// Exit code: a parent is missing, or is not the right one.
const PARENT: i32 = 5;

fn child(dir: &Workdir, path: &str) -> String {
    let file = dir.path("child.avhdx");
    let image = Image::differencing(4 * MIB, WANTED).seed(2).parent_path("relative_path", path);
    image.build_file(file.as_ref());
    file
}

fn parent(path: &str) {
    let image = Image::dynamic(4 * MIB).with_data_write_guid(WANTED);
    image.block(0, Contents::Pattern(7)).build_file(path.as_ref());
}

/// Runs `vhdx read` under strace. Gives its exit code, what it said, and the files that it really opened,
/// under the names that the calls have; `None` where strace is missing.
fn traced(dir: &Workdir, image: &str, policy: &str) -> Option<(i32, String, BTreeSet<String>)> {
    let report = dir.path("strace");
    let usable = Command::new("strace").args(["-o", &report, "true"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not installed, or may not trace here");
        return None;
    }
    let mut strace = Command::new("timeout");
    strace.args(["20", "strace", "-f", "-qq", "-z", "-e", "trace=open,openat,openat2,creat"]);
    strace.args(["-o", &report, env!("CARGO_BIN_EXE_vhdx")]);
    strace.args(["read", image, "--length", "512", "--parents", policy]);
    let output = strace.output().unwrap();
    let calls = std::fs::read_to_string(&report).unwrap();
    let opened = calls.lines().filter_map(|line| line.split('"').nth(1));
    // What every program opens.
    let system = ["/lib/", "/usr/lib", "/etc/ld.so", "/proc/self/maps", "/sys/"];
    let opened = opened.filter(|name| !system.iter().any(|start| name.starts_with(start)));
    let opened = opened.map(str::to_owned).collect();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((output.status.code().unwrap(), text, opened))
}

#[test]
fn what_no_policy_allows_is_never_opened() {
    let dir = Workdir::new();
    std::fs::create_dir(dir.path("outside")).unwrap();
    parent(&dir.path("outside/passwd"));
    parent(&dir.path("outside/parent.vhdx"));
    let made = Command::new("mkfifo").arg(dir.path("pipe.vhdx")).status();
    assert!(made.unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", dir.path("device.vhdx")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path("linked.vhdx")).unwrap();
    let up = r"..\".repeat(40);
    let paths = [
        format!(r"{up}etc\passwd"),
        format!(r"{up}dev\zero"),
        r".\device.vhdx".to_owned(),
        r".\linked.vhdx".to_owned(),
        r".\pipe.vhdx".to_owned(),
        r".\outside\passwd".to_owned(),
        "/etc/passwd".to_owned(),
        r"\\server\share\parent.vhdx".to_owned(),
    ];
    let beneath = format!("beneath={}", dir.path(""));
    for path in &paths {
        let image = child(&dir, path);
        for policy in ["deny", "follow", &beneath] {
            let Some((code, text, opened)) = traced(&dir, &image, policy) else { return };
            assert_eq!(code, PARENT, "{path}, {policy}: {text}");
            assert!(text.contains("child.avhdx"), "{path}, {policy}: {text}");
            let folder = dir.path("");
            let folder = folder.trim_end_matches('/');
            let mut allowed = BTreeSet::from([image.as_str()]);
            match policy {
                "deny" => {}
                // Searched for an image that has the right identity.
                "follow" => drop(allowed.insert(folder)),
                // The pipe is a matter of the library's own test.
                _ => allowed.extend([folder, beneath.trim_start_matches("beneath="), "pipe.vhdx"]),
            }
            for name in &opened {
                assert!(allowed.contains(name.as_str()), "{path}, {policy}: {name} was opened");
            }
            if policy != "deny" {
                assert!(text.contains(&WANTED.to_string()), "{path}, {policy}: {text}");
                assert!(text.contains("looked at "), "{path}, {policy}: {text}");
            }
        }
    }
}

#[test]
fn only_the_first_image_is_opened_where_parents_are_denied() {
    let dir = Workdir::new();
    parent(&dir.path("parent.vhdx"));
    let image = child(&dir, r".\parent.vhdx");
    let Some((code, text, opened)) = traced(&dir, &image, "deny") else { return };
    assert_eq!(code, PARENT, "{text}");
    assert_eq!(opened, BTreeSet::from([image.clone()]));
    let (code, _, opened) = traced(&dir, &image, "follow").unwrap();
    assert_eq!(code, 0);
    assert_eq!(opened, BTreeSet::from([image, dir.path("parent.vhdx")]));
}

/// Whatever is wrong with the parent, scripts see one exit code, and people where it was looked for.
#[test]
fn every_unusable_parent_ends_with_the_same_exit_code() {
    let dir = Workdir::new();
    let there = dir.path("parent.vhdx");
    let image = child(&dir, r".\parent.vhdx");
    let refused = |words: &str, options: &[&str]| {
        let all = [&["read", image.as_str(), "--length", "512"], options].concat();
        let text = vhdx(&all).fails_with(PARENT);
        for part in [image.as_str(), &WANTED.to_string(), &there, words, "what to do: "] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    };
    refused("no such file", &[]);
    std::fs::write(&there, "not an image").unwrap();
    refused("VHDX", &[]);
    Image::dynamic(4 * MIB).build_file(there.as_ref());
    refused("is not the disk that the child was made from", &[]);
    let other = Image::dynamic(4 * MIB).with_data_write_guid(WANTED).sectors(4096, 4096);
    other.build_file(there.as_ref());
    refused("its sectors have 4096 bytes", &["--ignore-parent-id"]);
    std::fs::remove_file(&there).unwrap();
    std::fs::hard_link(&image, &there).unwrap();
    refused("circle", &["--ignore-parent-id"]);
    std::fs::remove_file(&there).unwrap();
    parent(&there);
    let writer = vhdxkit::OpenOptions::new().write(true).open(&there).unwrap();
    refused("in use by", &[]);
    drop(writer);
    vhdx(&["read", &image, "--length", "512"]).succeeds_with_bytes();
}

/// Opening is bounded: by the length of a chain, and by what an error says of it.
#[test]
fn a_chain_of_hundreds_is_refused_in_seconds_with_a_short_error() {
    let dir = Workdir::new();
    let guid = |number: u128| Guid::from_u128(1000 + number);
    for number in 0..=299u128 {
        let image = match number {
            0 => Image::dynamic(4 * MIB),
            _ => Image::differencing(4 * MIB, guid(number - 1))
                .parent_path("relative_path", &format!(r".\{}.vhdx", number - 1)),
        };
        let path = dir.path(&format!("{number}.vhdx"));
        image.with_data_write_guid(guid(number)).build_file(Path::new(&path));
    }
    let begun = Instant::now();
    for command in ["read", "info", "check", "map"] {
        let image = dir.path("299.vhdx");
        let run = Run::command(&[command, &image]).output().unwrap();
        let text = [run.stdout, run.stderr].concat();
        assert!(text.len() < 20_000, "{command} says {} bytes", text.len());
        let text = String::from_utf8_lossy(&text);
        if command == "read" {
            assert_eq!(run.status.code(), Some(PARENT), "{text}");
            assert!(text.contains("more than 256 images"), "{text}");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
