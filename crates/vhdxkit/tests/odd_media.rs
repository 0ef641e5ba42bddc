//! Media that behave oddly under a writer: one that cannot be cut, one that panics, one on which something
//! happens between two questions. And requests of odd size.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use vhdxkit::format::bat::RawEntry;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, ErrorKind, Image, OpenOptions};

const MIB: u64 = 1 << 20;
/// Where the BAT of the images here lies.
const BAT: u64 = 3 * MIB;

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Odd {
    inner: MemoryStorage,
    /// Done after the next question about the holes of the BAT has been answered.
    after_question: Mutex<Option<Action>>,
    cannot_be_cut: AtomicBool,
    panics_in_sync: AtomicBool,
    syncs: AtomicU64,
}

impl Storage for Odd {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, SeqCst);
        assert!(!self.panics_in_sync.swap(false, SeqCst), "the medium panics");
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        match self.cannot_be_cut.load(SeqCst) {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => self.inner.set_len(length),
        }
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.punch(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.allocate(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let answer = self.inner.next_data(offset);
        if (BAT..BAT + MIB).contains(&offset)
            && let Some(action) = self.after_question.lock().unwrap().take()
        {
            action();
        }
        answer
    }
}

fn made(size: u64) -> Arc<Odd> {
    let file = Arc::new(Odd::default());
    CreateOptions::new(size).block_size(1 << 20).create_storage(&*file).unwrap();
    file
}

fn writable(file: &Arc<Odd>) -> Image {
    OpenOptions::new().write(true).open_storage(file.clone()).unwrap()
}

/// A sector that was put in place between the question to the memory and that to the file was in neither
/// answer, and a flushed block was shown as never written.
#[test]
fn extents_miss_nothing_while_the_table_goes_in_place() {
    let file = made(64 * MIB);
    let image = Arc::new(writable(&file));
    image.write_at(0, &[7; 4096]).unwrap();
    image.flush().unwrap();
    let other = image.clone();
    *file.after_question.lock().unwrap() = Some(Box::new(move || {
        std::thread::spawn(move || other.close().unwrap()).join().unwrap();
    }));
    let found: Vec<_> = image.extents(0..MIB).map(|e| e.unwrap().state.name()).collect();
    assert_eq!(found, ["data"]);
}

/// A block device has the length it has: the space at its end is not given back, and nothing is wrong.
#[test]
fn an_image_on_a_medium_that_cannot_be_cut_closes_cleanly() {
    let file = made(64 * MIB);
    file.set_len(100 * MIB).unwrap();
    file.cannot_be_cut.store(true, SeqCst);
    let image = writable(&file);
    image.write_at(0, &[7; 4096]).unwrap();
    image.close().unwrap();
    drop(image);
    let image = OpenOptions::new().open_storage(file).unwrap();
    assert!(!image.headers().is_dirty());
    let mut bytes = [0; 4096];
    image.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

/// Whoever waited for a flush that panicked waited for ever.
#[test]
fn a_panic_in_a_flush_poisons_and_lets_nobody_wait() {
    let file = made(64 * MIB);
    let image = Arc::new(writable(&file));
    image.write_at(0, &[7; 4096]).unwrap();
    file.panics_in_sync.store(true, SeqCst);
    let other = image.clone();
    assert!(std::thread::spawn(move || other.flush()).join().is_err());
    let (sender, receiver) = mpsc::channel();
    let other = image.clone();
    let waiting = std::thread::spawn(move || sender.send(other.flush().unwrap_err().kind()));
    let kind = receiver.recv_timeout(Duration::from_secs(20)).expect("the flush hangs");
    assert_eq!(kind, ErrorKind::Poisoned);
    waiting.join().unwrap().unwrap();
    image.read_at(0, &mut [0; 512]).unwrap();
}

/// A trim of the whole disk in one call kept every page of the table in memory until its end.
#[test]
fn a_trim_of_everything_is_committed_on_the_way() {
    let blocks = 64 << 10;
    let file = made(blocks * MIB);
    let image = writable(&file);
    for block in 0..blocks {
        image.write_at(block * MIB, &[1; 512]).unwrap();
    }
    image.flush().unwrap();
    let before = file.syncs.load(SeqCst);
    image.discard(0..blocks * MIB).unwrap();
    let syncs = file.syncs.load(SeqCst) - before;
    assert!(syncs >= blocks / 64, "{syncs} syncs");
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), 4 * MIB);
}

/// A block that was given up reads as zeros here; elsewhere it may show what it held. Zeros that a guest
/// has written are zeros everywhere.
#[test]
fn zeros_over_a_trimmed_block_are_written_down() {
    for (state, place, range) in
        [(1u8, 0, 0..MIB), (3, 0, 0..MIB), (3, 4 * MIB, 0..MIB), (3, 4 * MIB, 4096..8192)]
    {
        let file = made(64 * MIB);
        file.write_at(4 * MIB, &vec![0x5A; 1 << 20]).unwrap();
        file.write_at(BAT, &RawEntry::new(state, place).0.to_le_bytes()).unwrap();
        let image = writable(&file);
        image.write_zeroes(range).unwrap();
        image.close().unwrap();
        assert_eq!(image.bat_entry(0).unwrap(), RawEntry::new(2, 0), "state {state} at {place:#x}");
        assert_eq!(file.len().unwrap(), 4 * MIB, "the place was not given back");
    }
}
