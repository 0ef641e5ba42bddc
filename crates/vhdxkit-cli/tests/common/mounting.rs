//! Mounts, loop devices and file systems for a test, taken away again however it ends: each by its own
//! mount point, device or process id.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::common::{Run, Workdir, json};

pub(crate) const MIB: u64 = 1 << 20;

/// Whether these tests can be made here; what is missing is said.
pub(crate) fn possible(programs: &[&str]) -> bool {
    let mut missing = Vec::new();
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        missing.push("/dev/fuse");
    }
    if fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() != 0) {
        missing.push("the rights of root");
    } else if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success()) {
        missing.push("the right to mount");
    }
    if programs.contains(&"losetup") && !Path::new("/dev/loop-control").exists() {
        missing.push("/dev/loop-control");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    missing.extend(programs.iter().filter(|name| !found(name)));
    if !missing.is_empty() {
        eprintln!("skipped: no {}", missing.join(", no "));
    }
    missing.is_empty()
}

/// Runs a program for a minute at most.
pub(crate) fn try_run(command: &[&str]) -> Output {
    Command::new("timeout").args(["-k", "5", "60"]).args(command).output().unwrap()
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn run(command: &[&str]) -> String {
    let output = try_run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {:?}\n{text}{errors}", output.status);
    text
}

/// Waits for something that takes a moment.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A `vhdx mount` in the foreground.
pub(crate) struct Mounted {
    server: Child,
    pub(crate) directory: String,
    /// What it printed as JSON.
    pub(crate) printed: serde_json::Value,
    errors: String,
    ended: bool,
}

impl Mounted {
    /// Mounts an image on a new directory; returns when it serves.
    pub(crate) fn start(dir: &Workdir, image: &str, options: &[&str]) -> Self {
        let name = (0..).map(|n| dir.path(&format!("disk{n}"))).find(|n| !Path::new(n).exists());
        let directory = name.unwrap();
        fs::create_dir(&directory).unwrap();
        let errors = format!("{directory}.errors");
        let mut server = Run::command(&["mount", "--json", image, &directory])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let mut text = String::new();
        while !text.ends_with("\n}\n") {
            match lines.next() {
                Some(line) => text += &(line.unwrap() + "\n"),
                None => panic!("it did not mount: {}", fs::read_to_string(&errors).unwrap()),
            }
        }
        let printed = json(&text);
        Self { server, directory, printed, errors, ended: false }
    }

    /// The path of a file of the mount.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.server.id()
    }

    /// What it has said on stderr.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }

    pub(crate) fn signal(&self, signal: &str) {
        run(&["kill", "-s", signal, &self.pid().to_string()]);
    }

    /// Waits for the server to end by itself; its exit status, `None` when a signal ended it.
    pub(crate) fn ends(mut self) -> Option<i32> {
        self.ended = true;
        let mut status = None;
        eventually("the server ends", || {
            status = self.server.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// `vhdx unmount`: when it returns, the image is closed and the server has ended well.
    pub(crate) fn unmount(mut self) {
        super::common::vhdx(&["unmount", &self.directory]).succeeds();
        let status = self.server.try_wait().unwrap();
        self.ended = true;
        let errors = self.errors();
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {errors}");
        assert_eq!(errors, "");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.ended {
            let _ = try_run(&["umount", "-l", &self.directory]);
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }
}

/// A loop device on a file.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    pub(crate) fn on(file: &str, options: &[&str]) -> Self {
        let command = [&["losetup", "-f", "--show"], options, &[file]].concat();
        // Somebody else may take the free device that it has found.
        for _ in 0..20 {
            let output = try_run(&command);
            if output.status.success() {
                return Self(String::from_utf8(output.stdout).unwrap().trim().to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self(run(&command).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = try_run(&["losetup", "-d", &self.0]);
    }
}

/// A mounted file system.
pub(crate) struct Attached(pub(crate) String);

impl Attached {
    /// By this command, on a new directory that is its last argument.
    pub(crate) fn by(dir: &Workdir, command: &[&str]) -> Self {
        let name = (0..).map(|n| dir.path(&format!("files{n}"))).find(|n| !Path::new(n).exists());
        let directory = name.unwrap();
        fs::create_dir(&directory).unwrap();
        run(&[command, &[directory.as_str()]].concat());
        Self(directory)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// Unmounts; what was used for a moment is waited for.
    pub(crate) fn end(self) {
        let gone = || try_run(&["umount", &self.0]).status.success();
        eventually("the file system is unmounted", gone);
        std::mem::forget(self);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = try_run(&["umount", "-l", &self.0]);
    }
}

/// Bytes that look random and are the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Folders and files of many sizes, synced.
pub(crate) fn plant(folder: &str) {
    for number in 0..60u64 {
        let place = format!("{folder}/tree/{}/{}", number % 5, number % 7);
        fs::create_dir_all(&place).unwrap();
        let length = (number * number * 97) as usize;
        fs::write(format!("{place}/file {number}"), noise(number, length)).unwrap();
    }
    run(&["sync", "-f", folder]);
}

/// A sum over all names and contents below `folder/tree`.
pub(crate) fn harvest(folder: &str) -> String {
    let mut names = Vec::new();
    let mut folders = vec![format!("{folder}/tree")];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path().to_str().unwrap().to_owned();
            match fs::metadata(&path).unwrap().is_dir() {
                true => folders.push(path),
                false => names.push(path),
            }
        }
    }
    assert_eq!(names.len(), 60);
    names.sort();
    let mut sum = Sha256::new();
    for name in names {
        sum.update(&name[folder.len()..]);
        sum.update(fs::read(name).unwrap());
    }
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that a file takes on its medium.
pub(crate) fn space(path: &str) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Bytes of a file.
pub(crate) fn bytes_of(path: &str, offset: u64, length: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// All bytes of a file, which must have this size.
pub(crate) fn all_of(path: &str, size: u64) -> Vec<u8> {
    assert_eq!(fs::metadata(path).unwrap().len(), size);
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}
