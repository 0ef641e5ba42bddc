//! Media that fail, fill up or hang while clients are served: the client is told the truth, what was
//! acknowledged stays, whoever runs the server reads what happened, and reading goes on.

mod common;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Serving, new_disk};
use vhdxkit::OpenOptions;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit_testkit::nbd::{Client, Request, command};

const EIO: u32 = 5;
const ENOSPC: u32 = 28;

/// A medium that can be made to fail, and to hang.
#[derive(Default)]
struct Trouble {
    reads_fail: AtomicBool,
    /// Reads from this offset of the file on fail.
    rotten_from: AtomicU64,
    full: AtomicBool,
    syncs_fail: AtomicBool,
    hangs: Mutex<bool>,
    released: Condvar,
}

impl Trouble {
    fn hang(&self, yes: bool) {
        *self.hangs.lock().unwrap() = yes;
        self.released.notify_all();
    }

    fn pass(&self) {
        drop(self.released.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
    }
}

struct Medium(Arc<MemoryStorage>, Arc<Trouble>);

fn when(flag: &AtomicBool, kind: io::ErrorKind) -> io::Result<()> {
    if flag.load(Ordering::Relaxed) { Err(kind.into()) } else { Ok(()) }
}

impl Storage for Medium {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.1.pass();
        when(&self.1.reads_fail, io::ErrorKind::Other)?;
        let rotten = self.1.rotten_from.load(Ordering::Relaxed);
        if rotten > 0 && offset + buf.len() as u64 > rotten {
            return Err(io::ErrorKind::Other.into());
        }
        self.0.read_at(offset, buf)
    }
    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        // The first mebibytes are in the cache, so to say.
        when(&self.1.reads_fail, io::ErrorKind::Other)?;
        if offset < 6 << 20 { self.0.read_ready_at(offset, buf) } else { Ok(false) }
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        when(&self.1.full, io::ErrorKind::StorageFull)?;
        self.0.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        when(&self.1.syncs_fail, io::ErrorKind::Other)?;
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        when(&self.1.full, io::ErrorKind::StorageFull)?;
        self.0.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.0.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.0.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

fn serving() -> (Serving, Arc<MemoryStorage>, Arc<Trouble>) {
    let (file, trouble) = (Arc::new(new_disk(512)), Arc::new(Trouble::default()));
    let medium = Medium(Arc::clone(&file), Arc::clone(&trouble));
    (Serving::storage(Arc::new(medium), |options| options), file, trouble)
}

fn told_of(serving: &Serving, words: &str) {
    assert!(serving.told().iter().any(|line| line.contains(words)), "{:?}", serving.told());
}

#[test]
fn a_full_disk_is_told_as_such_and_writing_goes_on_when_there_is_room() {
    let (serving, file, trouble) = serving();
    let mut client = serving.client();
    let kept = vec![1; 1 << 20];
    assert_eq!(client.call(&Request::write(0, kept.clone())).unwrap().error, 0);
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    trouble.full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let reply = client.call(&Request::write(2 << 20, vec![2; 4096])).unwrap();
        assert_eq!(reply.error, ENOSPC, "{}", reply.message);
    }
    told_of(&serving, "full");
    assert_eq!(serving.told().len(), 1, "{:?}", serving.told());
    assert_eq!(client.call(&Request::new(command::READ, 0, 1 << 20)).unwrap().data, kept);
    trouble.full.store(false, Ordering::Relaxed);
    assert_eq!(client.call(&Request::write(2 << 20, vec![2; 4096])).unwrap().error, 0);
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    drop(client);
    serving.stop().close().unwrap();
    let image = OpenOptions::new().open_storage(file).unwrap();
    let mut read = vec![0; 4096];
    image.read_at(2 << 20, &mut read).unwrap();
    assert_eq!(read, [2; 4096]);
}

#[test]
fn a_failed_read_is_an_error_and_not_the_end() {
    let (serving, _, trouble) = serving();
    let mut client = serving.client();
    assert_eq!(client.call(&Request::write(0, vec![3; 2 << 20])).unwrap().error, 0);
    trouble.reads_fail.store(true, Ordering::Relaxed);
    // In one piece, in several, and from a part of the file that is not in the cache.
    for (offset, length) in [(0, 4096), (0, 1 << 20), (1 << 20, 1 << 20), (1 << 20, 512)] {
        let reply = client.call(&Request::new(command::READ, offset, length)).unwrap();
        assert_eq!(reply.error, EIO, "{}", reply.message);
    }
    told_of(&serving, "cannot read");
    trouble.reads_fail.store(false, Ordering::Relaxed);
    let reply = client.call(&Request::new(command::READ, 0, 1 << 20)).unwrap();
    assert_eq!((reply.error, reply.data), (0, vec![3; 1 << 20]));
}

/// To a client without structured replies an error can only be told before the data. When it comes later,
/// the client is cut off: it must not get other bytes in the place of those that could not be read.
#[test]
fn a_read_that_fails_in_its_midst_is_not_answered_as_if_all_were_well() {
    let (serving, _, trouble) = serving();
    let mut writer = serving.client();
    for megabyte in 0..8u64 {
        let bytes = vec![megabyte as u8 + 1; 1 << 20];
        assert_eq!(writer.call(&Request::write(megabyte << 20, bytes)).unwrap().error, 0);
    }
    // Somewhere in the last piece of the eighth block, wherever that lies.
    let place = serving.disk.image().extents(7 << 20..8 << 20).next().unwrap().unwrap();
    let end = place.file_offset.unwrap() + place.length;
    trouble.rotten_from.store(end - 4096, Ordering::Relaxed);
    let mut client = Client::connect(serving.path(), "", false).unwrap();
    let long = client.call(&Request::new(command::READ, 4 << 20, 4 << 20));
    assert!(long.is_err(), "{:?}", long.map(|reply| (reply.error, reply.data.len())));
    // What fits in one piece is told properly.
    let mut client = Client::connect(serving.path(), "", false).unwrap();
    let short = client.call(&Request::new(command::READ, 7 << 20, 1 << 20)).unwrap();
    assert_eq!(short.error, EIO);
    assert_eq!(client.call(&Request::new(command::READ, 0, 512)).unwrap().data, [1; 512]);
}

/// A sync that has failed is not tried again: nobody knows what the medium has kept. Flushes fail from
/// then on, so that no client believes in what it has not; reading goes on, and what was flushed before
/// is there afterwards.
#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_nothing_flushed_is_lost() {
    let (serving, file, trouble) = serving();
    let mut client = serving.client();
    assert_eq!(client.call(&Request::write(0, vec![4; 4096])).unwrap().error, 0);
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    assert_eq!(client.call(&Request::write(3 << 20, vec![5; 4096])).unwrap().error, 0);
    trouble.syncs_fail.store(true, Ordering::Relaxed);
    assert_eq!(client.call(&Request::flush()).unwrap().error, EIO);
    trouble.syncs_fail.store(false, Ordering::Relaxed);
    assert_eq!(client.call(&Request::flush()).unwrap().error, EIO);
    assert_eq!(client.call(&Request::write(0, vec![6; 512])).unwrap().error, EIO);
    assert_eq!(client.call(&Request::new(command::READ, 0, 512)).unwrap().data, [4; 512]);
    told_of(&serving, "everything that was flushed is safe");
    drop(client);
    let disk = serving.stop();
    assert!(disk.close().is_err());
    drop(disk);
    let image = OpenOptions::new().open_storage(file).unwrap();
    let mut read = vec![0; 4096];
    image.read_at(0, &mut read).unwrap();
    assert_eq!(read, [4; 4096]);
}

/// Somebody else cuts the file that is being served: what is lost is an error, never zeros.
#[test]
fn a_file_that_is_cut_shows_errors_and_not_zeros() {
    let (serving, file, _) = serving();
    let mut client = serving.client();
    assert_eq!(client.call(&Request::write(0, vec![7; 1 << 20])).unwrap().error, 0);
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    file.set_len(4 << 20).unwrap();
    let reply = client.call(&Request::new(command::READ, 0, 4096)).unwrap();
    assert_eq!(reply.error, EIO, "{}", reply.message);
    assert_eq!(client.call(&Request::write(5 << 20, vec![8; 4096])).unwrap().error, 0);
    assert_eq!(client.call(&Request::flush()).unwrap().error, EIO);
    told_of(&serving, "another program has cut it");
}

/// While the device hangs, what is in the cache is served, to the same client and to others; and when it
/// goes on, everything is answered.
#[test]
fn a_device_that_hangs_holds_up_only_what_needs_it() {
    let (serving, _, trouble) = serving();
    let mut client = serving.client();
    assert_eq!(client.call(&Request::write(0, vec![1; 4 << 20])).unwrap().error, 0);
    trouble.hang(true);
    let slow = client.send(&Request::new(command::READ, 3 << 20, 4096)).unwrap();
    let flush = client.send(&Request::flush()).unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        let quick = client.send(&Request::new(command::READ, 0, 4096)).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!((reply.cookie, reply.error), (quick, 0));
    }
    let mut other = serving.client();
    assert_eq!(other.call(&Request::new(command::READ, 0, 4096)).unwrap().error, 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    trouble.hang(false);
    let mut answered = [client.receive().unwrap(), client.receive().unwrap()];
    answered.sort_by_key(|reply| reply.cookie);
    assert_eq!(answered.map(|reply| (reply.cookie, reply.error)), [(slow, 0), (flush, 0)]);
}
