//! Real file systems for the tests: made, filled and judged by their own tools.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit_volumes::Disk;

/// A raw file as a disk that counts what is read of it.
pub struct FileDisk {
    file: File,
    size: u64,
    pub bytes_read: AtomicU64,
}

impl FileDisk {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        Self { file, size, bytes_read: AtomicU64::new(0) }
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.file.read_exact_at(buf, offset)
    }
}

/// Whether a command can be run; when not, says so: a test that cannot be made must not look passed.
pub fn have(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!("SKIPPED: there is no {tool} here");
    }
    found
}

/// Runs a shell line, which has to succeed, and returns what it prints. `set -e` holds for all of it.
pub fn sh(line: &str) -> String {
    let out = Command::new("bash").args(["-euc", line]).stdin(Stdio::null()).output().unwrap();
    let (text, errors) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{line}\n{text}\n{errors}");
    text.into_owned()
}

/// A file system in an image, mounted through a loop device; unmounted when dropped.
pub struct Mounted {
    at: std::path::PathBuf,
}

impl Mounted {
    /// Mounts `image` on a new directory beside it.
    pub fn new(image: &Path) -> Self {
        let at = image.with_extension("mnt");
        let _ = std::fs::create_dir(&at);
        sh(&format!("mount -o loop {} {}", image.display(), at.display()));
        Self { at }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.at).status();
        let done = done.is_ok_and(|status| status.success());
        if !std::thread::panicking() {
            assert!(done, "cannot unmount {}", self.at.display());
        }
    }
}

/// Whether this process may mount images; when not, says so.
pub fn can_mount() -> bool {
    let root = sh("id -u").trim() == "0" && Path::new("/dev/loop-control").exists();
    if !root {
        eprintln!("SKIPPED: images cannot be mounted here");
    }
    root
}

/// Surveys the file system that an image file holds.
pub fn survey_of(image: &Path) -> Result<vhdxkit_volumes::Survey, vhdxkit_volumes::Trouble> {
    let disk = FileDisk::open(image);
    let size = disk.size();
    vhdxkit_volumes::survey(&disk, 0..size)
}

/// Ranges in order that do not touch, of ranges that may.
pub fn joined(mut ranges: Vec<std::ops::Range<u64>>) -> Vec<std::ops::Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut found: Vec<std::ops::Range<u64>> = Vec::new();
    for range in ranges {
        match found.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => found.push(range),
        }
    }
    found
}
