//! A medium that fails at a call that can be chosen.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vhdxkit::storage::{MemoryStorage, Storage};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This call fails, the next does not.
    Once,
    /// From this one on there is no space.
    Full,
}

/// A file that fails; several can count their calls together.
pub(crate) struct Failing {
    pub(crate) file: Arc<MemoryStorage>,
    pub(crate) calls: Arc<AtomicUsize>,
    pub(crate) at: usize,
    pub(crate) fault: Fault,
}

impl Failing {
    fn call(&self, takes_space: bool) -> io::Result<()> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Once if number == self.at => Err(io::Error::other("injected")),
            Fault::Full if number >= self.at && takes_space => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Storage for Failing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.call(false)?;
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        // Only new space can be missing: behind the end, or in a hole.
        let end = offset + buf.len() as u64;
        let held = self.file.next_data(offset)?.is_some_and(|d| d.start <= offset && end <= d.end);
        self.call(!held)?;
        self.file.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.call(false)?;
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.call(length > self.file.len()?)?;
        self.file.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.call(false)?;
        self.file.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.call(true)?;
        self.file.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.call(false)?;
        self.file.next_data(offset)
    }
}
