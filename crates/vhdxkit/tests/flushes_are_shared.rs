//! C4: a flush that begins while another runs must not be answered by that one, which may have taken
//! its snapshot before the write in question; and those who wait share the next one.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions};

const MIB: u64 = 1 << 20;

/// A medium whose syncs can be held up.
struct Gated {
    file: MemoryStorage,
    gated: AtomicBool,
    syncs: AtomicUsize,
    began: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Storage for Gated {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.gated.load(Ordering::SeqCst) {
            self.began.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        Ok(())
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

#[test]
fn those_who_come_while_a_flush_runs_share_the_next_one() {
    let (began, begins) = channel();
    let (goes_on, go_on) = channel();
    let file = Arc::new(Gated {
        file: MemoryStorage::empty(),
        gated: AtomicBool::new(false),
        syncs: AtomicUsize::new(0),
        began,
        go_on: Mutex::new(go_on),
    });
    CreateOptions::new(64 * MIB).block_size(1 << 20).create_storage(&*file).unwrap();
    let image: Image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    image.flush().unwrap();

    image.write_at(MIB, &[2; 512]).unwrap();
    let before = file.syncs.load(Ordering::SeqCst);
    file.gated.store(true, Ordering::SeqCst);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| image.flush().unwrap());
        // The first flush has its snapshot and is in its sync.
        begins.recv_timeout(Duration::from_secs(10)).unwrap();
        for block in 2..6u64 {
            let (image, answered) = (&image, &answered);
            scope.spawn(move || {
                image.write_at(block * MIB, &[3; 512]).unwrap();
                image.flush().unwrap();
                answered.fetch_add(1, Ordering::SeqCst);
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        goes_on.send(()).unwrap();
        // One commit for all four, and none of them is answered before its sync has ended.
        begins.recv_timeout(Duration::from_secs(10)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(answered.load(Ordering::SeqCst), 0, "answered by a flush that began before");
        file.gated.store(false, Ordering::SeqCst);
        goes_on.send(()).unwrap();
    });
    let syncs = file.syncs.load(Ordering::SeqCst) - before;
    assert_eq!(syncs, 2, "a sync for the first flush, and one for the other four");
}
