//! The process that writes, so that our side pays for a process as QEMU's does: 4 KiB into one block
//! after another, through the library or straight into a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{Image, OpenOptions};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << 20;
/// Bytes of the disk.
pub(crate) const DISK: u64 = 64 << 30;

/// What is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Medium {
    /// A VHDX image, through the library.
    Image,
    /// A file, by the calls of the operating system.
    File,
}

/// What a worker does.
#[derive(Debug, Clone, Args)]
pub(crate) struct Work {
    /// What it is.
    pub(crate) medium: Medium,
    /// The image or file.
    pub(crate) path: PathBuf,
    /// Writes.
    pub(crate) writes: u64,
    /// Writes after which there is a flush; 0 for none.
    pub(crate) every: u64,
}

/// Where on the disk a write goes: each into a block of its own, not always at its start.
pub(crate) fn place(number: u64) -> u64 {
    number * BLOCK + number % 200 * 4096
}

impl Work {
    /// Whether a flush follows a write.
    pub(crate) fn flushes_after(&self, number: u64) -> bool {
        self.every > 0 && (number + 1).is_multiple_of(self.every)
    }

    /// Does it, closes, and gives the seconds between open and close. At the end all is durable.
    pub(crate) fn run(&self) -> anyhow::Result<f64> {
        match self.medium {
            Medium::Image => {
                let image = OpenOptions::new().write(true).open(&self.path)?;
                let seconds = self.write_to_image(&image)?;
                image.close()?;
                Ok(seconds)
            }
            Medium::File => {
                let file = File::options().write(true).open(&self.path)?;
                let begun = Instant::now();
                for number in 0..self.writes {
                    file.write_all_at(&[7; 4096], place(number))?;
                    if self.flushes_after(number) {
                        file.sync_data()?;
                    }
                }
                let seconds = begun.elapsed().as_secs_f64();
                file.sync_data()?;
                Ok(seconds)
            }
        }
    }

    fn write_to_image(&self, image: &Image) -> anyhow::Result<f64> {
        let begun = Instant::now();
        for number in 0..self.writes {
            image.write_at(place(number), &[7; 4096])?;
            if self.flushes_after(number) {
                image.flush()?;
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Does it to an image, and counts the syncs.
    pub(crate) fn count_syncs(&self) -> anyhow::Result<Syncs> {
        let file = Arc::new(Counting::open(&self.path)?);
        let image = OpenOptions::new().write(true).open_storage(file.clone())?;
        let opened = file.syncs.load(Ordering::Relaxed);
        self.write_to_image(&image)?;
        let written = file.syncs.load(Ordering::Relaxed);
        image.close()?;
        Ok(Syncs { between: written - opened, all: file.syncs.load(Ordering::Relaxed) })
    }
}

/// How often a file was synced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Syncs {
    /// After the open and before the close.
    pub(crate) between: u64,
    /// Open and close included.
    pub(crate) all: u64,
}

/// A file that counts its syncs.
struct Counting {
    file: FileStorage,
    syncs: AtomicU64,
}

impl Counting {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = FileStorage::open(path, OpenMode::ReadWrite)?;
        Ok(Self { file, syncs: AtomicU64::new(0) })
    }
}

impl Storage for Counting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.file.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }
}
