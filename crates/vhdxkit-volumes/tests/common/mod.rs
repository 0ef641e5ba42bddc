//! Real file systems for the tests: made, filled and judged by their own tools.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

pub mod ext;
pub mod xfs;

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
        Self::with(image, "rw")
    }

    /// The same with options of `mount`.
    pub fn with(image: &Path, options: &str) -> Self {
        let at = image.with_extension("mnt");
        let _ = std::fs::create_dir(&at);
        sh(&format!("mount -o loop,{options} {} {}", image.display(), at.display()));
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

/// A disk with some of its bytes changed, that remembers what was read of it.
pub struct Changed<'a> {
    base: &'a dyn Disk,
    changes: Vec<(u64, Vec<u8>)>,
    reads: std::sync::Mutex<Vec<std::ops::Range<u64>>>,
}

impl<'a> Changed<'a> {
    pub fn new(base: &'a dyn Disk, changes: Vec<(u64, Vec<u8>)>) -> Self {
        Self { base, changes, reads: std::sync::Mutex::default() }
    }

    pub fn survey(&self) -> Result<vhdxkit_volumes::Survey, vhdxkit_volumes::Trouble> {
        vhdxkit_volumes::survey(self, 0..self.base.size())
    }

    /// How many bytes were read, each as often as it was.
    pub fn bytes_read(&self) -> u64 {
        self.reads.lock().unwrap().iter().map(|range| range.end - range.start).sum()
    }

    /// What was read, once each, in order; not what only the recognition of file systems looks at.
    pub fn places_read(&self) -> Vec<std::ops::Range<u64>> {
        let mut reads = self.reads.lock().unwrap().clone();
        reads.retain(|range| *range != (0..72 << 10));
        reads.sort_by_key(|range| (range.start, range.end));
        reads.dedup_by(|next, one| {
            one.end = if next.start <= one.end { one.end.max(next.end) } else { one.end };
            next.start <= one.end
        });
        reads
    }
}

impl Disk for Changed<'_> {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        self.reads.lock().unwrap().push(offset..end);
        self.base.read_at(offset, buf)?;
        for (at, bytes) in &self.changes {
            for (place, byte) in (*at..).zip(bytes) {
                if (offset..end).contains(&place) {
                    buf[(place - offset) as usize] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// Flips bits of everything that a survey reads, one at a time, up to about `flips` in each piece of it. No
/// flip may free a byte: it is an error, or unclean, or changes nothing of the map. Gives how many of them
/// were noticed.
pub fn no_flipped_bit_frees_anything(image: &Path, flips: u64) -> u64 {
    let base = FileDisk::open(image);
    let whole = Changed::new(&base, Vec::new());
    let expected = whole.survey().unwrap();
    assert_eq!(expected.unclean, None);
    let mut noticed = 0;
    for range in whole.places_read() {
        let bits = (range.end - range.start) * 8;
        // An odd step meets all bits of a byte in turn.
        let step = (bits / flips).max(1) | 1;
        for bit in (0..bits).step_by(step as usize) {
            let place = range.start + bit / 8;
            let mut byte = [0];
            base.read_at(place, &mut byte).unwrap();
            let flipped = Changed::new(&base, vec![(place, vec![byte[0] ^ 1 << (bit % 8)])]);
            match flipped.survey() {
                Ok(found) if found.unclean.is_none() => {
                    assert_eq!(found.free, expected.free, "bit {} at {place}", bit % 8);
                }
                _ => noticed += 1,
            }
        }
    }
    noticed
}

/// Surveys the disk with a few random changes in `places`, many times.
pub fn random_changes(
    base: &dyn Disk,
    places: &[std::ops::Range<u64>],
    mut judge: impl FnMut(&Changed<'_>, Result<vhdxkit_volumes::Survey, vhdxkit_volumes::Trouble>),
) {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let place = proptest::sample::select(places.to_vec()).prop_flat_map(|range| {
        // Heads of structures are where most is said.
        let head = range.start..range.end.min(range.start + 256);
        prop_oneof![head, range]
    });
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..9),
        proptest::sample::select(vec![
            vec![0; 4],
            vec![0xFF; 4],
            vec![0xFF; 8],
            vec![0x80],
            vec![1]
        ]),
    ];
    let changes = proptest::collection::vec((place, bytes), 1..6);
    let judge = std::cell::RefCell::new(&mut judge);
    let mut runner =
        TestRunner::new(Config { cases: 3000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&changes, |changes| {
        let changed = Changed::new(base, changes);
        let found = changed.survey();
        (judge.borrow_mut())(&changed, found);
        Ok(())
    });
    outcome.unwrap();
}
