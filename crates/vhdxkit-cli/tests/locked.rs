//! Two programs on one image: whoever writes it must be alone, ours and QEMU alike.
//!
//! QEMU is the other program; without it these tests say so and prove nothing.
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use common::{Workdir, vhdx};

/// A `qemu-io` that has an image open for writing; ended by its process id when dropped.
struct Writer {
    child: Child,
    commands: ChildStdin,
}

impl Writer {
    /// `None`, visibly, where QEMU is not installed.
    fn hold(image: &str) -> Option<Self> {
        let spawned = Command::new("qemu-io")
            .args(["-f", "vhdx", image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: qemu-io is not installed");
            return None;
        };
        let mut commands = child.stdin.take().unwrap();
        // Its answer shows that it has opened the image.
        commands.write_all(b"length\n").unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        Some(Self { child, commands })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.commands.write_all(b"quit\n");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_that_qemu_writes_is_refused_with_its_process_id() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let Some(writer) = Writer::hold(&image) else { return };
    let text = vhdx(&["info", &image]).fails_with(4);
    let pid = format!("(pid {})", writer.child.id());
    for part in ["qemu-io", &pid, "--force-share"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    vhdx(&["log", "replay", &image]).fails_with(4);
    vhdx(&["check", &image]).fails_with(4);
    vhdx(&["convert", &image, &dir.path("x.raw")]).fails_with(4);
    vhdx(&["info", "--force-share", &image]).succeeds();
    drop(writer);
    vhdx(&["info", &image]).succeeds();
}

/// Advice to type an option that the command does not take sends people in a circle. Here it is our own library that
/// has the image open for writing.
#[test]
fn sharing_is_advised_only_by_commands_that_can() {
    let dir = Workdir::new();
    let (image, other) = (dir.copy("clean.vhdx"), dir.copy("crashed.vhdx"));
    let held = vhdxkit::OpenOptions::new().write(true).open(&image).unwrap();
    for command in [
        &["info", &image][..],
        &["check", &image],
        &["convert", &image, &dir.path("x.raw")],
        &["recover", &image],
    ] {
        let text = vhdx(command).fails_with(4);
        assert!(text.contains("; --force-share reads it"), "{command:?}: {text}");
    }
    let text = vhdx(&["serve", &image, "--run", "true"]).fails_with(4);
    assert!(text.contains("--read-only --force-share"), "{text}");
    for command in [
        &["resize", &image, "1G"][..],
        &["compact", &image],
        &["log", "replay", &image],
        &["check", &image, "--repair"],
        &["set", &image, "--new-disk-id"],
        // It is the target that is in use.
        &["convert", "--force", &other, &image],
    ] {
        let text = vhdx(command).fails_with(4);
        let rest = text.split_once("what to do: ").expect(&text).1;
        assert!(!text.contains("--force-share"), "{command:?}: {text}");
        assert!(rest.starts_with("stop that program"), "{command:?}: {text}");
    }
    drop(held);
}

/// The disk's every block lies at the same place, so that converting it takes long enough to be
/// stopped, on a file of a few mebibytes.
fn endless_disk(dir: &Workdir) -> String {
    let size = 256 << 30;
    let image = vhdxkit_testkit::Image::dynamic(size)
        .block_size(256 << 20)
        .block(0, vhdxkit_testkit::Contents::Pattern(0x5A));
    let layout = image.layout();
    let place = layout.blocks[&0] | 6;
    let blocks = size / (256 << 20);
    let image = (1..blocks).fold(image, |image, b| image.bat_entry(layout.bat_index(b), place));
    let path = dir.path("endless.vhdx");
    image.build_file(path.as_ref());
    path
}

#[test]
fn a_stopped_convert_removes_what_it_made() {
    let dir = Workdir::new();
    let image = endless_disk(&dir);
    for signal in ["INT", "TERM"] {
        let mut child = common::Run::command(&["convert", &image, &dir.path("big.raw")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = std::time::Instant::now();
        while dir.names().len() < 2 {
            assert!(begun.elapsed().as_secs() < 20, "the copy never began");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{signal}");
        assert_eq!(dir.names(), ["endless.vhdx"], "{signal} left something behind");
    }
}

#[test]
fn an_image_that_qemu_writes_is_not_repaired() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let Some(_writer) = Writer::hold(&image) else { return };
    vhdx(&["check", &image, "--repair"]).fails_with(4);
    vhdx(&["check", &image, "--undo", &image]).fails_with(4);
}
