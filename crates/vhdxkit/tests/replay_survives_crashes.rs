//! Replay in place is itself a writer: a crash at any moment of it must leave a file that opens and
//! shows the guest the same bytes.
//!
//! Every write, extension and sync of a replay is recorded. Then every state that a power loss could
//! leave is built: what was synced before is there, and of what came after the last sync any part:
//! all subsets while there are at most ten writes, otherwise all prefixes, single losses and single
//! survivors; each with the last survivor whole or torn after 512 bytes. Each state is opened, and
//! replayed once more.

mod common;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use vhdxkit::log::replay_in_place;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit_testkit::{Contents, Image, LogEntry};

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Punch(Range<u64>),
    Sync,
}

/// A file that remembers what was done to it.
struct Recorder {
    file: MemoryStorage,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Storage for Recorder {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.note(Event::Write(offset, buf.to_vec()));
        self.file.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.note(Event::Sync);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.note(Event::SetLen(length));
        self.file.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.note(Event::Punch(range.clone()));
        self.file.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }
}

/// A crashed disk whose log extends the file, zeroes a range, and changes the table twice.
fn crashed() -> Image {
    let image = Image::dynamic(16 * MIB).block(0, Contents::Pattern(1));
    let session = image.session(1);
    let layout = image.layout();
    let page = layout.bat_page_offset(0);
    let image = image.dirty(session);
    image
        .log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)))
        // Pages behind the used part of the table: whether they arrived is seen in the file only.
        .log_entry(LogEntry::new().data(page + 4096, &[8; 4096]).data(page + 8192, &[9; 4096]))
        .log_entry(LogEntry::new().zero(page + 8192, 8192).data(page + 16384, &[7; 4096]))
        .log_entry(LogEntry::new().allocate(4, Contents::Pattern(4)).last(12 * MIB))
}

fn replay_events(bytes: &[u8]) -> Vec<Event> {
    let file = MemoryStorage::new(bytes.to_vec());
    let recorder = Recorder { file, events: Mutex::default() };
    replay_in_place(&recorder).unwrap().expect("something to replay");
    recorder.events.into_inner().unwrap()
}

fn apply(file: &MemoryStorage, event: &Event, torn: bool) {
    match event {
        Event::Write(offset, bytes) => {
            let length = if torn { bytes.len().min(512) } else { bytes.len() };
            file.write_at(*offset, &bytes[..length]).unwrap();
        }
        Event::SetLen(length) => file.set_len(*length).unwrap(),
        Event::Punch(range) => file.punch(range.clone()).unwrap(),
        Event::Sync => {}
    }
}

/// The sets of unsynced events that may survive.
fn survivors(count: usize) -> Vec<Vec<usize>> {
    if count <= 10 {
        let subset = |bits: usize| (0..count).filter(|i| bits >> i & 1 == 1).collect();
        return (0..1usize << count).map(subset).collect();
    }
    let prefixes = (0..=count).map(|end| (0..end).collect());
    let losses = (0..count).map(|lost| (0..count).filter(|&i| i != lost).collect());
    let alone = (0..count).map(|one| vec![one]);
    prefixes.chain(losses).chain(alone).collect()
}

fn check_state(state: &MemoryStorage, expected: &[u8], what: &str) {
    let bytes = state.to_vec();
    let image = common::open(MemoryStorage::new(bytes.clone()))
        .unwrap_or_else(|e| panic!("{what}: cannot be opened: {e}"));
    let mut guest = vec![0; expected.len()];
    image.read_at(0, &mut guest).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(guest == expected, "{what}: the guest sees something else");
    let again = Arc::new(MemoryStorage::new(bytes));
    replay_in_place(&*again).unwrap_or_else(|e| panic!("{what}: cannot be replayed: {e}"));
    let image = common::open(MemoryStorage::new(again.to_vec())).unwrap();
    assert!(!image.headers().is_dirty(), "{what}: still dirty");
    image.read_at(0, &mut guest).unwrap();
    assert!(guest == expected, "{what}: the second replay shows something else");
}

#[test]
fn a_crash_at_any_moment_of_a_replay_leaves_the_same_disk() {
    let image = crashed();
    let (before, expected) = (image.build_vec(), image.expected_guest());
    let events = replay_events(&before);
    let mut distinct = BTreeSet::new();
    let mut synced = MemoryStorage::new(before);
    let mut pending: Vec<&Event> = Vec::new();
    for (number, event) in events.iter().enumerate() {
        if *event != Event::Sync {
            pending.push(event);
            continue;
        }
        for set in survivors(pending.len()) {
            for torn in [false, true] {
                let state = MemoryStorage::new(synced.to_vec());
                for (place, &index) in set.iter().enumerate() {
                    apply(&state, pending[index], torn && place + 1 == set.len());
                }
                let mut hash = DefaultHasher::new();
                state.to_vec().hash(&mut hash);
                if distinct.insert(hash.finish()) {
                    check_state(
                        &state,
                        &expected,
                        &format!("before sync {number}, {set:?}, torn {torn}"),
                    );
                }
            }
        }
        for event in pending.drain(..) {
            apply(&synced, event, false);
        }
        synced = MemoryStorage::new(synced.to_vec());
    }
    assert!(pending.is_empty(), "the replay ends without a sync");
    println!("{} distinct crash states of a replay", distinct.len());
    assert!(distinct.len() > 20);
}

/// The order of the writes itself, as the head of `log/replay.rs` argues it.
#[test]
fn headers_and_updates_are_never_in_one_sync() {
    let events = replay_events(&crashed().build_vec());
    let header = |event: &Event| matches!(event, Event::Write(0x1_0000 | 0x2_0000, _));
    let windows: Vec<&[Event]> = events.split(|event| *event == Event::Sync).collect();
    let kinds: Vec<(usize, usize)> = windows
        .iter()
        .map(|window| (window.iter().filter(|e| header(e)).count(), window.len()))
        .collect();
    let [(0, 0), (1, 1), (0, updates), (1, 1), (1, 1), (0, 0)] = kinds[..] else {
        panic!("sync, header, updates, header, header: {kinds:?}");
    };
    assert!(updates > 3, "{kinds:?}");
    let copies: Vec<u64> = events
        .iter()
        .filter(|event| header(event))
        .map(|event| match event {
            Event::Write(offset, _) => *offset,
            _ => 0,
        })
        .collect();
    assert!(copies[0] != copies[1] && copies[1] != copies[2], "{copies:x?}");
}

/// An I/O error anywhere in a replay is reported, and what was done so far can be replayed again.
#[test]
fn a_replay_that_fails_anywhere_can_be_done_again() {
    struct Failing {
        file: MemoryStorage,
        left: Mutex<u64>,
    }
    impl Failing {
        fn spend(&self) -> io::Result<()> {
            let mut left = self.left.lock().unwrap();
            match left.checked_sub(1) {
                Some(rest) => {
                    *left = rest;
                    Ok(())
                }
                None => Err(io::Error::other("no more")),
            }
        }
    }
    impl Storage for Failing {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            self.spend()?;
            self.file.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
            self.spend()?;
            self.file.write_at(offset, buf)
        }
        fn sync(&self) -> io::Result<()> {
            self.spend()
        }
        fn len(&self) -> io::Result<u64> {
            self.spend()?;
            self.file.len()
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.spend()?;
            self.file.set_len(length)
        }
        fn punch(&self, range: Range<u64>) -> io::Result<()> {
            self.spend()?;
            self.file.punch(range)
        }
        fn allocate(&self, range: Range<u64>) -> io::Result<()> {
            self.file.allocate(range)
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            self.spend()?;
            self.file.next_data(offset)
        }
    }

    let image = crashed();
    let (bytes, expected) = (image.build_vec(), image.expected_guest());
    let mut sites = 0;
    for budget in 0..1000 {
        let file = MemoryStorage::new(bytes.clone());
        let failing = Failing { file, left: Mutex::new(budget) };
        let result = replay_in_place(&failing);
        check_state(&failing.file, &expected, &format!("fault at call {budget}"));
        if result.is_ok() {
            break;
        }
        sites += 1;
    }
    println!("{sites} fault sites");
    assert!(sites > 20 && sites < 1000, "{sites}");
}
