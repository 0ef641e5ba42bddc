//! Reads an image from a medium of one's own: here, a file that counts how much of it is read.
//!
//! `cargo run --example own_storage -- disk.vhdx`

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit::OpenOptions;
use vhdxkit::storage::{FileStorage, OpenMode, Storage};

struct Counting {
    inner: FileStorage,
    read: AtomicU64,
}

impl Storage for Counting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buf)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or("testdata/crashed.vhdx".into());
    let inner = FileStorage::open(path.as_ref(), OpenMode::ReadOnly { force_share: false })?;
    let storage = Arc::new(Counting { inner, read: AtomicU64::new(0) });
    let image = OpenOptions::new().open_storage(Arc::clone(&storage) as Arc<dyn Storage>)?;
    let opened = storage.read.load(Ordering::Relaxed);
    println!("opening {} bytes of disk read {opened} bytes of file", image.virtual_size());
    Ok(())
}
