//! What the tests of NTFS, FAT and exFAT have in common.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit_volumes::{Disk, Survey, Trouble, survey};

use crate::common::FileDisk;

/// Surveys a file that holds nothing but a file system.
pub fn survey_file(path: &Path) -> Result<Survey, Trouble> {
    let disk = FileDisk::open(path);
    survey(&disk, 0..disk.size())
}

/// Surveys it, and it has to be clean.
pub fn clean(path: &Path) -> Survey {
    let found = survey_file(path).unwrap();
    assert_eq!(found.unclean, None, "{}", path.display());
    found
}

/// Why nothing of a file system may be released.
pub fn refusal(found: Result<Survey, Trouble>) -> String {
    match found {
        Ok(survey) => survey.unclean.expect("it was taken for clean"),
        Err(trouble) => trouble.to_string(),
    }
}

pub fn free_units(survey: &Survey) -> u64 {
    let counted: u64 = survey.free.ranges().iter().map(|range| range.end - range.start).sum();
    assert_eq!(counted, survey.free.bytes());
    assert!(counted.is_multiple_of(survey.unit));
    counted / survey.unit
}

/// The ranges of units for which `free` says so, one by one: slow and simple.
pub fn ranges(count: u64, base: u64, unit: u64, free: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in (0..count).filter(|number| free(*number)) {
        let (start, end) = (base + number * unit, base + (number + 1) * unit);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// The number behind `label` in what a tool prints.
pub fn number_behind(text: &str, label: &str) -> u64 {
    let rest = text.split(label).nth(1).unwrap_or_else(|| panic!("no {label:?} in {text}"));
    let digits = |c: char| c.is_ascii_digit();
    let start = rest.find(digits).unwrap();
    rest[start..].split(|c| !digits(c)).next().unwrap().parse().unwrap()
}

/// A disk in memory that counts what is read of it; zero behind its bytes.
pub struct MemoryDisk<'a> {
    bytes: &'a [u8],
    size: u64,
    pub read: AtomicU64,
}

impl<'a> MemoryDisk<'a> {
    pub fn new(bytes: &'a [u8], size: u64) -> Self {
        Self { bytes, size, read: AtomicU64::new(0) }
    }

    pub fn survey(&self) -> Result<Survey, Trouble> {
        survey(self, 0..self.size)
    }
}

impl Disk for MemoryDisk<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(offset + buf.len() as u64 <= self.size);
        let start = self.bytes.len().min(offset as usize);
        let found = &self.bytes[start..self.bytes.len().min(start + buf.len())];
        buf.fill(0);
        buf[..found.len()].copy_from_slice(found);
        Ok(())
    }
}

/// Bytes as a survey, whether it is clean or not.
pub fn survey_bytes(bytes: &[u8]) -> Result<Survey, Trouble> {
    MemoryDisk::new(bytes, bytes.len() as u64).survey()
}

/// An empty image of so many bytes.
pub fn empty(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// A file of the team's folder with real images; says when it is not there.
pub fn shared(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("VHDXKIT_SHARED") {
        let path = Path::new(&folder).join("data").join(name);
        assert!(path.exists(), "VHDXKIT_SHARED is set, and {name} is not in it");
        return Some(path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: there is no {}", path.display());
    None
}
