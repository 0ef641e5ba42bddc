//! What a flush costs is its syncs; everything else is noise beside them. Counted on a real file,
//! growth and checkpoints included.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions};

const MIB: u64 = 1 << 20;

struct Counting {
    file: FileStorage,
    syncs: AtomicU64,
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

/// Syncs of 100 writes of 4 KiB, each to a new block, with a flush after every `every` of them and
/// one at the end: from the opened image to before it is closed.
fn syncs(block_mib: u32, every: Option<u64>, foreign: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    let block = u64::from(block_mib) * MIB;
    CreateOptions::new(400 * block).block_size(block_mib << 20).create(&path).unwrap();
    let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    // Free space that holds foreign bytes: data at both ends of each block's worth.
    let end = file.len().unwrap();
    for gap in 0..foreign {
        for at in (0..block).step_by(1 << 20) {
            file.write_at(end + gap * block + at, &[0xAA; 4096]).unwrap();
        }
    }
    let file = Arc::new(Counting { file, syncs: AtomicU64::new(0) });
    let image: Image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    let before = file.syncs.load(Ordering::Relaxed);
    for number in 0..100 {
        image.write_at(number * 3 * block + 8192, &[number as u8; 4096]).unwrap();
        if every.is_some_and(|every| (number + 1) % every == 0) {
            image.flush().unwrap();
        }
    }
    if every.is_some_and(|every| 100 % every != 0) {
        image.flush().unwrap();
    }
    let counted = file.syncs.load(Ordering::Relaxed) - before;
    image.close().unwrap();
    counted
}

#[test]
fn a_flush_is_one_sync_and_writing_none() {
    for block_mib in [1, 2, 32] {
        let (none, some, each) = (
            syncs(block_mib, None, 0),
            syncs(block_mib, Some(32), 0),
            syncs(block_mib, Some(1), 0),
        );
        println!("blocks of {block_mib} MiB: {none}, {some}, {each} syncs for no flush, 32, each");
        assert!(none <= 2, "no flush: {none}");
        // One of a session is for the second copy of its first header.
        assert!(some <= 7, "a flush every 32: {some}");
        assert!(each <= 106, "a flush each: {each}");
    }
}

/// Gaps in the file are cleared ahead of need, so that only those who are quicker pay for a second sync.
#[test]
fn recycled_space_costs_little_more() {
    let each = syncs(1, Some(1), 100);
    println!("{each} syncs for 100 flushes of blocks in recycled space");
    assert!(each <= 106, "{each}");
}
