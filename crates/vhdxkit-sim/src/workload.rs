//! What a guest does before the crash.

use std::sync::{Arc, Mutex};

use vhdxkit::storage::Storage;
use vhdxkit::{CreateOptions, Image, OpenOptions, Shrink};

use crate::disk::{Moment, SimDisk, Window};
use crate::medium::Medium;
use crate::model::{Model, SECTOR, foreign, stamp};
use crate::random::Random;

const MIB: u64 = 1 << 20;

/// One thing that a guest, or who runs it, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write a whole block.
    Block(u64),
    /// Write a part of a block: its second sector and the one in the middle.
    Part(u64),
    /// Write across the border of this block and the next one.
    Across(u64),
    /// Write zeros to a whole block.
    Zero(u64),
    /// Write zeros to the second half of a block.
    ZeroPart(u64),
    /// Discard a whole block.
    Discard(u64),
    /// Discard the second half of a block.
    DiscardPart(u64),
    /// Make it durable.
    Flush,
    /// Close cleanly and open again.
    Close,
    /// The process dies; what it wrote is all there. Open again.
    Kill,
    /// Write a part of a block and make it durable.
    Store(u64),
    /// Write a part of a block; while its bytes are on their way, another thread flushes.
    FlushDuringWrite(u64),
    /// Flush; while that is on its way, another thread discards the first block and writes the other.
    ChurnDuringFlush(u64, u64),
    /// Write to a block that has a place; while the bytes are on their way, another thread discards that
    /// block, flushes, and writes the other block.
    ReuseDuringWrite(u64, u64),
    /// Write a part of a block and flush; the process dies in a sync on the way, the first, second or
    /// third. Open again.
    KillInSync(u64, u64),
    /// Another size, in MiB. What is cut off may be anything.
    Resize(u64),
}

/// Where a workload begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// An empty disk of six blocks of 1 MiB.
    Fresh,
    /// Six blocks of 2 MiB, in a file with free space that holds foreign bytes, and holes between them.
    Recycled,
    /// A fixed disk of five blocks.
    Fixed,
    /// Blocks of 256 MiB: the table's sector bitmap entries come after every 16.
    Border,
}

/// A start and what follows.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Where it begins.
    pub start: Start,
    /// So many commits before that, which are not crashed: they fill the log.
    pub commits: usize,
    /// What is done.
    pub operations: Vec<Operation>,
}

impl Start {
    fn options(self) -> CreateOptions {
        match self {
            Self::Fresh => CreateOptions::new(6 * MIB).block_size(1 << 20),
            Self::Recycled => CreateOptions::new(12 * MIB).block_size(2 << 20),
            Self::Fixed => CreateOptions::new(5 * MIB).block_size(1 << 20).fixed(true),
            Self::Border => CreateOptions::new(18 << 28).block_size(1 << 28),
        }
        .reproducible(42)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block(self) -> u64 {
        match self {
            Self::Fresh | Self::Fixed => MIB,
            Self::Recycled => 2 * MIB,
            Self::Border => 256 * MIB,
        }
    }

    /// The blocks that workloads use.
    #[must_use]
    pub fn blocks(self) -> [u64; 3] {
        if self == Self::Border { [14, 15, 16] } else { [0, 1, 2] }
    }

    /// The image before anything is done, all of it durable.
    ///
    /// # Panics
    /// It cannot be created.
    #[must_use]
    pub fn medium(self) -> Medium {
        let disk = SimDisk::default();
        self.options().create_storage(&disk).expect("an image can be created");
        if self == Self::Recycled {
            let end = disk.len().expect("a length");
            for mebibyte in 0..8 {
                for at in [0, 512, MIB / 2, MIB - 512] {
                    let at = end + mebibyte * MIB + at;
                    disk.write_at(at, &foreign()).expect("room");
                }
            }
        }
        disk.view()
    }

    /// Where guest data starts in the file.
    #[must_use]
    pub fn metadata_end(self) -> u64 {
        4 * MIB
    }

    fn model(self) -> Model {
        let size = match self {
            Self::Fresh => 6 * MIB,
            Self::Recycled => 12 * MIB,
            Self::Fixed => 5 * MIB,
            Self::Border => 18 << 28,
        };
        let block = self.block();
        let [first, _, last] = self.blocks();
        let cells = (first..=last + 2).flat_map(move |number| {
            let start = number * block;
            [start, start + SECTOR, start + block / 2, start + block - SECTOR]
        });
        Model::new(size, cells)
    }
}

/// A running workload.
struct Guest {
    disk: Arc<SimDisk>,
    image: Option<Arc<Image>>,
    model: Model,
    start: Start,
    opened: u64,
    quiet: bool,
}

/// Carries a workload out, and gives what a crash could interrupt.
///
/// # Errors
/// An operation fails, or the living image shows something else than was written.
pub fn run(workload: &Workload, medium: &Medium) -> Result<Vec<Window>, String> {
    let disk = Arc::new(SimDisk::new(medium.clone()));
    let model = workload.start.model();
    let mut guest =
        Guest { disk, image: None, model, start: workload.start, opened: 0, quiet: false };
    guest.open()?;
    guest.fill_log(workload.commits)?;
    for (number, operation) in workload.operations.iter().enumerate() {
        guest
            .step(number, *operation)
            .map_err(|e| format!("operation {number}, {operation:?}: {e}"))?;
    }
    Ok(guest.disk.windows())
}

impl Guest {
    fn open(&mut self) -> Result<(), String> {
        self.opened += 1;
        let options = OpenOptions::new().write(true).reproducible(self.opened * 1_000_003);
        let image = options.open_storage(self.disk.clone()).map_err(|e| e.to_string())?;
        self.image = Some(Arc::new(image));
        Ok(())
    }

    fn image(&self) -> &Arc<Image> {
        self.image.as_ref().expect("it is open")
    }

    fn step(&mut self, number: usize, operation: Operation) -> Result<(), String> {
        let ran = match operation {
            Operation::Block(block) => {
                let start = block * self.start.block();
                self.write(number, &[(start, self.start.block())])
            }
            Operation::Part(block) => {
                let start = block * self.start.block();
                let middle = start + self.start.block() / 2;
                self.write(number, &[(start + SECTOR, SECTOR), (middle, SECTOR)])
            }
            Operation::Across(block) => {
                let border = (block + 1) * self.start.block();
                self.write(number, &[(border - SECTOR, 2 * SECTOR)])
            }
            Operation::Zero(block) => self.zero(number, block, 0, false),
            Operation::ZeroPart(block) => self.zero(number, block, self.start.block() / 2, false),
            Operation::Discard(block) => self.zero(number, block, 0, true),
            Operation::DiscardPart(block) => self.zero(number, block, self.start.block() / 2, true),
            Operation::Flush => self.flush(number),
            Operation::Close => self.reopen(number, true),
            Operation::Kill => self.reopen(number, false),
            Operation::Store(block) => {
                let start = block * self.start.block();
                let wrote = self.write(number, &[(start + SECTOR, SECTOR)]);
                wrote.and_then(|()| self.flush(number))
            }
            Operation::FlushDuringWrite(block) => self.flush_during_write(number, block),
            Operation::ChurnDuringFlush(one, other) => self.churn_during_flush(number, one, other),
            Operation::ReuseDuringWrite(one, other) => self.reuse_during_write(number, one, other),
            Operation::KillInSync(block, syncs) => self.kill_in_sync(number, block, syncs),
            Operation::Resize(mebibytes) => self.resize(number, mebibytes * MIB),
        };
        ran?;
        self.model.require_newest(self.image())
    }

    /// One commit after another, nothing recorded.
    fn fill_log(&mut self, commits: usize) -> Result<(), String> {
        self.quiet = true;
        let block = self.start.blocks()[2];
        for commit in 0..commits {
            let change = match commit % 2 {
                0 => Operation::Part(block),
                _ => Operation::Discard(block),
            };
            self.step(0, change)?;
            self.step(0, Operation::Flush)?;
        }
        self.quiet = false;
        Ok(())
    }

    fn begin(&self, number: usize) {
        if self.quiet {
            return;
        }
        self.disk.record(number, &self.model.expectation());
    }

    fn write(&mut self, number: usize, parts: &[(u64, u64)]) -> Result<(), String> {
        let version = self.model.next_version();
        for &(offset, length) in parts {
            let length = length.min(self.model.size().saturating_sub(offset));
            if length == 0 {
                // A smaller disk has lost this block.
                continue;
            }
            self.model.put(offset..offset + length, version);
            self.begin(number);
            let sectors = (offset..offset + length).step_by(SECTOR as usize);
            let bytes: Vec<u8> = sectors.flat_map(|at| stamp(at, version)).collect();
            self.image().write_at(offset, &bytes).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn zero(&mut self, number: usize, block: u64, from: u64, discard: bool) -> Result<(), String> {
        let start = block * self.start.block();
        let end = (start + self.start.block()).min(self.model.size());
        let range = (start + from).min(end)..end;
        if discard && self.start == Start::Fixed {
            // A fixed disk ignores it.
            self.begin(number);
            return self.image().discard(range).map_err(|e| e.to_string());
        }
        self.model.put(range.clone(), 0);
        self.begin(number);
        let image = self.image();
        let done = if discard { image.discard(range) } else { image.write_zeroes(range) };
        done.map_err(|e| e.to_string())
    }

    fn flush(&mut self, number: usize) -> Result<(), String> {
        self.begin(number);
        self.image().flush().map_err(|e| e.to_string())?;
        self.model.acknowledge();
        self.begin(number);
        Ok(())
    }

    fn reopen(&mut self, number: usize, close: bool) -> Result<(), String> {
        self.begin(number);
        if close {
            self.image().close().map_err(|e| e.to_string())?;
            self.model.acknowledge();
            self.begin(number);
        }
        self.image = None;
        if !close {
            // Without a flush the mapping of new blocks dies with the process: the disk goes back to
            // some earlier state, and what it shows from now on is what counts.
            self.open()?;
            let seen = crate::model::judge(self.image(), &self.model.expectation())?;
            self.model.now_is(&seen);
            self.begin(number);
            return Ok(());
        }
        self.open()
    }

    fn flush_during_write(&mut self, number: usize, block: u64) -> Result<(), String> {
        let at = block * self.start.block() + SECTOR;
        if at >= self.model.size() {
            return Ok(());
        }
        let mark = self.model.mark();
        let image = Arc::clone(self.image());
        let failed = Shared::default();
        let told = failed.clone();
        self.disk.at(Moment::Write(self.start.metadata_end()), move || told.note(image.flush()));
        self.write(number, &[(at, SECTOR)])?;
        self.disk.settle();
        failed.take()?;
        self.model.acknowledge_up_to(&mark);
        self.begin(number);
        Ok(())
    }

    fn churn_during_flush(&mut self, number: usize, one: u64, other: u64) -> Result<(), String> {
        let mark = self.model.mark();
        let action = self.discard_and_write(one, other, false);
        self.begin(number);
        let failed = Shared::default();
        let told = failed.clone();
        self.disk.at(Moment::Sync, move || told.note(action()));
        self.image().flush().map_err(|e| e.to_string())?;
        self.disk.settle();
        failed.take()?;
        self.model.acknowledge_up_to(&mark);
        self.begin(number);
        Ok(())
    }

    fn reuse_during_write(&mut self, number: usize, one: u64, other: u64) -> Result<(), String> {
        let start = one * self.start.block();
        let mut extents = self.image().extents(start..start + SECTOR);
        let placed = extents.next().is_some_and(|e| e.is_ok_and(|e| e.file_offset.is_some()));
        drop(extents);
        if !placed || self.start == Start::Fixed {
            return Ok(());
        }
        let version = self.model.next_version();
        self.model.put(start..start + SECTOR, version);
        let block = start..start + self.start.block();
        self.model.put(block, 0);
        let mark = self.model.mark();
        let action = self.discard_and_write(one, other, true);
        self.begin(number);
        let failed = Shared::default();
        let told = failed.clone();
        self.disk.at(Moment::Write(self.start.metadata_end()), move || told.note(action()));
        self.image().write_at(start, &stamp(start, version)).map_err(|e| e.to_string())?;
        self.disk.settle();
        failed.take()?;
        self.model.acknowledge_up_to(&mark);
        self.begin(number);
        Ok(())
    }

    /// What another thread does: discards a block, flushes if it is told to, writes to another.
    fn discard_and_write(
        &mut self,
        one: u64,
        other: u64,
        flush: bool,
    ) -> impl FnOnce() -> vhdxkit::Result<()> + Send + 'static {
        let start = one * self.start.block();
        let dropped = start..(start + self.start.block()).min(self.model.size()).max(start);
        if self.start != Start::Fixed {
            self.model.put(dropped.clone(), 0);
        }
        let version = self.model.next_version();
        let at = other * self.start.block() + SECTOR;
        self.model.put(at..at + SECTOR, version);
        let image = Arc::clone(self.image());
        move || {
            image.discard(dropped)?;
            if flush {
                image.flush()?;
            }
            image.write_at(at, &stamp(at, version))
        }
    }

    fn kill_in_sync(&mut self, number: usize, block: u64, syncs: u64) -> Result<(), String> {
        self.disk.die_in_sync(syncs);
        let start = block * self.start.block();
        self.write(number, &[(start + SECTOR, SECTOR)])?;
        self.image().flush().map_err(|e| e.to_string())?;
        self.disk.go_back();
        self.reopen(number, false)
    }

    fn resize(&mut self, number: usize, size: u64) -> Result<(), String> {
        self.model.resize(size);
        self.begin(number);
        let image = self.image.as_mut().and_then(Arc::get_mut);
        let image = image.expect("it is open, and nobody else uses it");
        image.resize(size, Shrink::Anything).map_err(|e| e.to_string())?;
        self.model.resized();
        self.begin(number);
        Ok(())
    }
}

/// An error that another thread has met.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Option<String>>>);

impl Shared {
    fn note(&self, result: vhdxkit::Result<()>) {
        if let Err(error) = result {
            *self.0.lock().expect("no panic under this lock") = Some(error.to_string());
        }
    }

    fn take(&self) -> Result<(), String> {
        match self.0.lock().expect("no panic under this lock").take() {
            Some(error) => Err(format!("beside it: {error}")),
            None => Ok(()),
        }
    }
}

/// The operations of short workloads.
#[must_use]
pub fn alphabet(start: Start) -> Vec<Operation> {
    use Operation::{
        Across, Block, ChurnDuringFlush, Close, Discard, DiscardPart, Flush, FlushDuringWrite,
        Kill, KillInSync, Part, ReuseDuringWrite, Store, Zero, ZeroPart,
    };
    let [a, b, _] = start.blocks();
    let mut operations = vec![
        Part(a),
        Part(b),
        Store(a),
        Across(a),
        ZeroPart(a),
        Zero(a),
        Discard(a),
        Discard(b),
        FlushDuringWrite(a),
        ChurnDuringFlush(a, b),
        ReuseDuringWrite(a, b),
        Flush,
        Close,
        Kill,
        KillInSync(a, 1),
        KillInSync(a, 2),
        KillInSync(b, 3),
    ];
    if start != Start::Border {
        operations.extend([Block(a), Block(b), DiscardPart(b)]);
    }
    operations
}

/// Those of workloads with changes of size, in MiB: within the table, and beyond what it holds.
#[must_use]
pub fn resizes() -> Vec<Operation> {
    use Operation::{Across, Block, Close, Discard, Kill, Part, Resize, Store};
    let within = [Resize(2), Resize(5), Resize(7)];
    let beyond = [Resize(129 << 10), Resize(300 << 10)];
    let others = [Part(0), Store(0), Store(4), Block(1), Across(0), Discard(0), Close, Kill];
    [&within[..], &beyond, &others].concat()
}

/// Those of workloads that begin with an almost full log.
#[must_use]
pub fn at_the_end_of_an_epoch() -> Vec<Operation> {
    use Operation::{
        ChurnDuringFlush, Close, Discard, Flush, FlushDuringWrite, Kill, KillInSync, Part, Store,
    };
    vec![
        Store(0),
        Store(1),
        Part(1),
        Discard(0),
        Flush,
        FlushDuringWrite(1),
        ChurnDuringFlush(0, 1),
        KillInSync(1, 1),
        KillInSync(1, 2),
        Kill,
        Close,
    ]
}

/// A long workload: enough flushes to fill the log several times.
#[must_use]
pub fn long(start: Start, seed: u64, length: usize) -> Workload {
    use Operation::*;
    let mut random = Random::new(seed);
    let blocks = start.blocks();
    let small = start != Start::Border;
    let operations = (0..length).map(|_| {
        let block = blocks[random.below(3) as usize];
        match random.below(40) {
            0..=7 => Part(block),
            8..=10 if small => Block(block),
            11..=12 => Across(block),
            13 => Zero(block),
            14 => ZeroPart(block),
            15..=18 => Discard(block),
            19 => DiscardPart(block),
            21 => FlushDuringWrite(block),
            22 => ChurnDuringFlush(block, blocks[0] + 3),
            23 => ReuseDuringWrite(block, blocks[0] + 3),
            20 if random.below(6) == 0 => Close,
            20 if random.below(4) == 0 => Kill,
            _ => Flush,
        }
    });
    Workload { start, commits: 0, operations: operations.collect() }
}
