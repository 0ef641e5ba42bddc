//! Promise 5: every call that can fail is failed once. Whatever was acknowledged stays, the handle
//! refuses to go on where nobody knows what is durable, and reading goes on.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vhdxkit::storage::Storage;
use vhdxkit::{CreateOptions, ErrorKind, Image, OpenOptions, Shrink};
use vhdxkit_sim::check::check_state;
use vhdxkit_sim::disk::SimDisk;
use vhdxkit_sim::model::{Model, SECTOR, stamp};
use vhdxkit_sim::start::Below;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Header,
    Log,
    InPlace,
    Payload,
    Sync,
    Length,
    Punch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// This call fails, the next one of its kind does not.
    Once,
    /// This call fails; if it was a write, half of it was carried out, or all of a single sector.
    Short,
    /// From here on there is no space: writes and extensions fail.
    Full,
}

struct Faulty {
    disk: SimDisk,
    at: usize,
    fault: Fault,
    calls: AtomicUsize,
    failed: Mutex<Option<Kind>>,
}

impl Faulty {
    fn call(&self, kind: Kind) -> io::Result<()> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let takes_space = !matches!(kind, Kind::Read | Kind::Sync);
        let fails = match self.fault {
            Fault::Once | Fault::Short => number == self.at,
            Fault::Full => number >= self.at && takes_space,
        };
        if !fails {
            return Ok(());
        }
        self.failed.lock().unwrap().get_or_insert(kind);
        Err(match self.fault {
            Fault::Once | Fault::Short => io::Error::other("injected"),
            Fault::Full => io::ErrorKind::StorageFull.into(),
        })
    }
}

impl Storage for Faulty {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.call(Kind::Read)?;
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let called = self.call(match offset {
            0x1_0000..0x3_0000 => Kind::Header,
            0x10_0000..0x20_0000 => Kind::Log,
            0..0x40_0000 => Kind::InPlace,
            _ => Kind::Payload,
        });
        if called.is_err() && self.fault == Fault::Short {
            let half = (buf.len() / 2).next_multiple_of(SECTOR as usize).min(buf.len());
            self.disk.write_at(offset, &buf[..half])?;
        }
        called?;
        self.disk.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.call(Kind::Sync)?;
        self.disk.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.call(Kind::Read)?;
        self.disk.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        // Cutting a file takes no space.
        if length < self.disk.len()? && self.fault == Fault::Full {
            return self.disk.set_len(length);
        }
        self.call(Kind::Length)?;
        self.disk.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.call(Kind::Punch)?;
        self.disk.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.call(Kind::Length)?;
        self.disk.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.call(Kind::Read)?;
        self.disk.next_data(offset)
    }
}

/// A guest that goes on whatever fails, and knows what it was promised.
struct Guest {
    image: Image,
    model: Model,
}

impl Guest {
    fn write(&mut self, offset: u64) -> vhdxkit::Result<()> {
        let version = self.model.next_version();
        let before = self.model.clone();
        self.model.put(offset..offset + SECTOR, version);
        let done = self.image.write_at(offset, &stamp(offset, version));
        if done.is_err() {
            self.model = before;
            // It may have reached the disk all the same: what the image shows now is what counts.
            self.model.may_have_put(&self.image, offset, version);
        }
        done
    }

    fn discard(&mut self, block: u64) -> vhdxkit::Result<()> {
        let before = self.model.clone();
        self.model.put(block * MIB..(block + 1) * MIB, 0);
        let done = self.image.discard(block * MIB..(block + 1) * MIB);
        if done.is_err() {
            self.model = before;
        }
        done
    }

    fn flush(&mut self) -> vhdxkit::Result<()> {
        let done = self.image.flush();
        if done.is_ok() {
            self.model.acknowledge();
        }
        done
    }

    fn resize(&mut self, size: u64) -> vhdxkit::Result<()> {
        let before = self.model.clone();
        self.model.resize(size);
        match self.image.resize(size, Shrink::Anything) {
            Ok(_) => {
                self.model.resized();
                Ok(())
            }
            Err(error) => {
                self.model.failed_resize(&before, self.image.virtual_size());
                Err(error)
            }
        }
    }
}

/// What is done, from a full log's worth of commits to changes of size.
fn script(guest: &mut Guest, mut told: impl FnMut(&mut Guest, vhdxkit::Result<()>, bool)) {
    let mut step = |guest: &mut Guest, result: vhdxkit::Result<()>| told(guest, result, false);
    for commit in 0..3 {
        let result = guest.write(commit % 3 * MIB);
        step(guest, result);
        let result = guest.flush();
        step(guest, result);
    }
    let result = guest.discard(1);
    step(guest, result);
    let result = guest.flush();
    step(guest, result);
    for block in [1, 3, 4] {
        let result = guest.write(block * MIB + 512);
        step(guest, result);
    }
    let result = guest.flush();
    step(guest, result);
    for size in [7 * MIB, 129 * GIB, 5 * MIB] {
        let result = guest.resize(size);
        step(guest, result);
        let result = guest.write(4 * MIB);
        step(guest, result);
    }
    let result = guest.flush();
    step(guest, result);
    let closed = guest.image.close();
    if closed.is_ok() {
        guest.model.acknowledge();
    }
    told(guest, closed, true);
}

/// An image with a log to replay.
fn dirty() -> SimDisk {
    let disk = Arc::new(SimDisk::default());
    CreateOptions::new(6 * MIB).block_size(1 << 20).reproducible(5).create_storage(&*disk).unwrap();
    let image = OpenOptions::new().write(true).reproducible(6).open_storage(disk.clone()).unwrap();
    image.write_at(5 * MIB, &stamp(5 * MIB, 900)).unwrap();
    image.flush().unwrap();
    drop(image);
    SimDisk::new(disk.view())
}

/// Runs the script with a fault at call number `at`; whether the fault was reached.
fn run(start: &SimDisk, at: usize, fault: Fault) -> bool {
    let faulty = Arc::new(Faulty {
        disk: SimDisk::new(start.view()),
        at,
        fault,
        calls: AtomicUsize::new(0),
        failed: Mutex::default(),
    });
    let cells = (0..7).flat_map(|block| [block * MIB, block * MIB + 512]);
    let mut model = Model::new(6 * MIB, cells);
    model.put(5 * MIB..5 * MIB + 1, 900);
    model.acknowledge();
    let options = OpenOptions::new().write(true).reproducible(8);
    let what = |text: &str| format!("{fault:?} at call {at}: {text}");
    match options.open_storage(faulty.clone()) {
        Ok(image) => {
            let mut guest = Guest { image, model };
            let mut judged = false;
            script(&mut guest, |guest, result, closing| {
                let failed = *faulty.failed.lock().unwrap();
                let (Err(error), Some(kind)) = (result, failed) else { return };
                if judged || guest.image.flush().is_err_and(|e| e.kind() == ErrorKind::InvalidInput)
                {
                    return;
                }
                judged = true;
                // The first error, and what the handle is good for after it.
                let next = guest.write(2 * MIB).err().map(|e| e.kind());
                match kind {
                    Kind::Header | Kind::Log | Kind::Sync => {
                        assert_eq!(next, Some(ErrorKind::Poisoned), "{}", what(&error.to_string()));
                    }
                    Kind::Payload | Kind::Length
                        if fault != Fault::Full
                            && !closing
                            && !error.to_string().contains("metadata") =>
                    {
                        assert_ne!(next, Some(ErrorKind::Poisoned), "{}", what(&error.to_string()));
                    }
                    _ => {}
                }
                // Reading goes on (a full disk is no obstacle to it).
                let mut bytes = [0; 512];
                guest
                    .image
                    .read_at(0, &mut bytes)
                    .unwrap_or_else(|e| panic!("{}", what(&e.to_string())));
            });
            model = guest.model;
        }
        Err(error) => {
            assert!(faulty.failed.lock().unwrap().is_some(), "{}", what(&error.to_string()));
        }
    }
    let expected = model.expectation();
    for (medium, name) in
        [(faulty.disk.view(), "all that was written"), (faulty.disk.durable(), "what was synced")]
    {
        check_state(&medium, &Below::default(), &expected)
            .unwrap_or_else(|error| panic!("{}", what(&format!("{name}: {error}"))));
    }
    faulty.failed.lock().unwrap().is_some()
}

#[test]
fn a_fault_at_any_call_loses_nothing_that_was_acknowledged() {
    let start = dirty();
    for fault in [Fault::Once, Fault::Short, Fault::Full] {
        let mut sites = 0;
        while run(&start, sites, fault) {
            sites += 1;
        }
        println!("{fault:?}: {sites} sites");
        assert!(sites > 100, "{sites}");
    }
}
