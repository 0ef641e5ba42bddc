//! What a writing process is doing right now, told in a file that outlives it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vhdxkit::storage::{FileStorage, Storage};

/// A phase, in the order in which one hides another when several threads are at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Nothing, or computing.
    Idle,
    /// Guest data, holes, the file's length.
    Payload,
    /// Waiting for a sync.
    Sync,
    /// Writing a log entry.
    Log,
    /// Writing metadata in place.
    Checkpoint,
    /// Writing a header.
    Header,
    /// Opening, replay included.
    Open,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Payload,
        Self::Sync,
        Self::Log,
        Self::Checkpoint,
        Self::Header,
        Self::Open,
    ];

    fn from_byte(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Idle)
    }
}

/// One for each thread of a writer, as long as there are not more.
const SLOTS: usize = 64;

/// A file that tells what is being done to it.
pub(crate) struct Traced {
    file: FileStorage,
    phases: File,
    opening: AtomicBool,
    log_end: u64,
    data: u64,
}

impl Traced {
    pub(crate) fn new(
        file: FileStorage,
        phases: &Path,
        log_end: u64,
        data: u64,
    ) -> io::Result<Self> {
        let phases =
            File::options().read(true).write(true).create(true).truncate(true).open(phases)?;
        phases.write_all_at(&[0; SLOTS], 0)?;
        phases.write_all_at(&[6], 0)?;
        Ok(Self { file, phases, opening: AtomicBool::new(true), log_end, data })
    }

    /// From now on it is in use.
    pub(crate) fn opened(&self) {
        self.opening.store(false, Ordering::Relaxed);
        let _ = self.phases.write_all_at(&[0], 0);
    }

    fn during<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let slot = slot();
        let phase = if self.opening.load(Ordering::Relaxed) { Phase::Open } else { phase };
        let _ = self.phases.write_all_at(&[phase as u8], slot);
        let result = work();
        let _ = self.phases.write_all_at(&[0], slot);
        result
    }

    fn kind(&self, offset: u64) -> Phase {
        match offset {
            0..0x10_0000 => Phase::Header,
            offset if offset < self.log_end => Phase::Log,
            offset if offset < self.data => Phase::Checkpoint,
            _ => Phase::Payload,
        }
    }
}

fn slot() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static SLOT: u64 = NEXT.fetch_add(1, Ordering::Relaxed) % (SLOTS as u64 - 1) + 1;
    }
    SLOT.with(|slot| *slot)
}

/// The phase of a process that is no more: of all its threads' the one that matters most.
pub(crate) fn phase_of(path: &Path) -> Phase {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.iter().map(|byte| Phase::from_byte(*byte)).max().unwrap_or(Phase::Open)
}

impl Storage for Traced {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.during(self.kind(offset), || self.file.write_at(offset, buf))
    }
    fn sync(&self) -> io::Result<()> {
        self.during(Phase::Sync, || self.file.sync())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.during(Phase::Payload, || self.file.set_len(length))
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.during(Phase::Payload, || self.file.punch(range))
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.file.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }
}
