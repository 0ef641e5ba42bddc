//! Carrying a workload out on the real library, with the model beside it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vhdxkit::format::Guid;
use vhdxkit::ops::compact::{CompactOptions, compact};
use vhdxkit::{Extent, Image, OpenOptions, Shrink};

use crate::disk::{Moment, SimDisk, Window};
use crate::medium::Medium;
use crate::model::{Expectation, Model, Properties, SECTOR, stamp};
use crate::start::{Below, MIB, Scene, Start};
use crate::workload::{Half, Operation, Workload};

/// A running workload.
struct Guest {
    disk: Arc<SimDisk>,
    below: Below,
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
pub fn run(workload: &Workload, scene: &Scene) -> Result<Vec<Window>, String> {
    Ok(carry_out(workload, scene)?.disk.windows())
}

/// Carries a workload out that ends with a flush, and gives the file with its log, and what it shows.
///
/// # Errors
/// As [`run`].
pub fn finish(workload: &Workload, scene: &Scene) -> Result<(Medium, Arc<Expectation>), String> {
    let guest = carry_out(workload, scene)?;
    Ok((guest.disk.view(), guest.model.expectation()))
}

fn carry_out(workload: &Workload, scene: &Scene) -> Result<Guest, String> {
    let mut guest = Guest {
        disk: Arc::new(SimDisk::new(scene.medium.clone())),
        below: scene.below.clone(),
        image: None,
        model: scene.model.clone(),
        start: scene.start,
        opened: 0,
        quiet: false,
    };
    guest.open()?;
    guest.fill_log(workload.commits)?;
    for (number, operation) in workload.operations.iter().enumerate() {
        guest
            .step(number, *operation)
            .map_err(|e| format!("operation {number}, {operation:?}: {e}"))?;
    }
    Ok(guest)
}

impl Guest {
    fn open(&mut self) -> Result<(), String> {
        self.opened += 1;
        let options = OpenOptions::new().write(true).reproducible(self.opened * 1_000_003);
        let image = self.below.open(&options, self.disk.clone()).map_err(|e| e.to_string())?;
        self.image = Some(Arc::new(image));
        Ok(())
    }

    fn image(&self) -> &Arc<Image> {
        self.image.as_ref().expect("it is open")
    }

    fn step(&mut self, number: usize, operation: Operation) -> Result<(), String> {
        let ran = match operation {
            Operation::Block(block) => {
                let Range { start, end } = self.start.bytes_of(block);
                self.write(number, &[(start, end - start)])
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
            Operation::WriteHalf(block, half) => self.write_half(number, block, half),
            Operation::Zero(block) => self.zero(number, self.start.bytes_of(block)),
            Operation::ZeroHalf(block, half) => {
                let (start, length) = self.half(block, half);
                self.zero(number, start..start + length)
            }
            Operation::Discard(block) => self.discard(number, self.start.bytes_of(block)),
            Operation::DiscardPart(block) => {
                let (start, length) = self.half(block, Half::Upper);
                self.discard(number, start..start + length)
            }
            Operation::Flush => self.flush(number),
            Operation::Close => self.reopen(number, true),
            Operation::Kill => self.reopen(number, false),
            Operation::Store(block) => {
                let start = block * self.start.block();
                let wrote = self.write(number, &[(start + SECTOR, SECTOR)]);
                wrote.and_then(|()| self.flush(number))
            }
            Operation::Complete(block) => self.complete(number, block),
            Operation::Trim(block) => {
                let start = block * self.start.block();
                self.write(number, &[(start + SECTOR, SECTOR)])
                    .and_then(|()| self.discard(number, self.start.bytes_of(block)))
                    .and_then(|()| self.flush(number))
            }
            Operation::FlushDuringWrite(block) => {
                let start = block * self.start.block();
                self.flush_during_write(number, start..start + SECTOR)
            }
            Operation::FlushDuringBlock(block) => {
                self.flush_during_write(number, self.start.bytes_of(block))
            }
            Operation::ChurnDuringFlush(one, other) => self.churn_during_flush(number, one, other),
            Operation::ReuseDuringWrite(one, other) => self.reuse_during_write(number, one, other),
            Operation::KillInSync(block, syncs) => self.kill_in_sync(number, block, syncs),
            Operation::Resize(size) => self.resize(number, size),
            Operation::Refill(size) => self.refill(number, size),
            Operation::Blank(block) => self.blank(number, block),
            Operation::Rewrite(block) => self.rewrite(number, block),
            Operation::Compact => self.compact(number, None),
            Operation::CompactFree(block) => self.compact(number, Some(block)),
            Operation::DiskId => self.set_disk_id(number),
            Operation::PhysicalSectorSize => self.set_physical_sector_size(number),
            Operation::Relink(length) => self.relink(number, length),
        };
        ran?;
        self.model.require_newest(self.image())
    }

    /// One commit after another, nothing recorded. The first gives a block a place that it keeps: a mapping
    /// that is lost shows.
    fn fill_log(&mut self, commits: usize) -> Result<(), String> {
        self.quiet = true;
        let block = self.start.blocks()[2];
        for commit in 0..commits {
            let change = match commit {
                0 => Operation::Part(block),
                odd if odd % 2 == 1 => Operation::Part(block + 1),
                _ => Operation::Discard(block + 1),
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

    /// What the image is being made to say, with something changed.
    fn describe(&mut self, change: impl FnOnce(&mut Properties)) -> Result<(), String> {
        let mut properties = self.model.properties().ok_or("nobody watches it")?.clone();
        change(&mut properties);
        self.model.describe(properties);
        Ok(())
    }

    fn set_disk_id(&mut self, number: usize) -> Result<(), String> {
        let id = format!("00000000-0000-0000-0000-{:012x}", self.model.next_version());
        let id: Guid = id.parse().map_err(|_| "no GUID")?;
        self.describe(|properties| properties.disk_id = id)?;
        self.begin(number);
        self.changeable()?.set_disk_id(id).map_err(|e| e.to_string())?;
        self.all_is_durable(number)
    }

    fn set_physical_sector_size(&mut self, number: usize) -> Result<(), String> {
        let size = 4096 + 512 - self.image().geometry().physical_sector_size();
        self.describe(|properties| properties.physical_sector_size = size)?;
        self.begin(number);
        self.changeable()?.set_physical_sector_size(size).map_err(|e| e.to_string())?;
        self.all_is_durable(number)
    }

    /// The image is dropped as it is: what it has logged is replayed by who changes the link.
    fn relink(&mut self, number: usize, length: usize) -> Result<(), String> {
        self.reopen(number, false)?;
        self.image = None;
        let way = format!("{:0>length$}", self.model.next_version());
        self.describe(|properties| properties.relative_path = Some(way.clone()))?;
        self.begin(number);
        let (disk, seed) = (self.disk.clone(), self.opened * 1_000_033);
        self.below.relink(disk, way, seed).map_err(|e| e.to_string())?;
        self.all_is_durable(number)?;
        self.open()
    }

    fn changeable(&mut self) -> Result<&mut Image, String> {
        let image = self.image.as_mut().and_then(Arc::get_mut);
        image.ok_or_else(|| "somebody else uses the image".to_owned())
    }

    fn all_is_durable(&mut self, number: usize) -> Result<(), String> {
        self.model.acknowledge();
        self.begin(number);
        Ok(())
    }

    /// Where half a block starts on the disk, and its length.
    fn half(&self, block: u64, half: Half) -> (u64, u64) {
        let length = self.start.block() / 2;
        let start = block * self.start.block();
        match half {
            Half::Lower => (start, length),
            Half::Upper => (start + length, length),
        }
    }

    /// Half of a large block is written as zeros, but for its first sectors.
    fn write_half(&mut self, number: usize, block: u64, half: Half) -> Result<(), String> {
        let (start, length) = self.half(block, half);
        let written = length.min(MIB);
        if written < length {
            self.zero(number, start + written..start + length)?;
        }
        self.write(number, &[(start, written)])
    }

    fn complete(&mut self, number: usize, block: u64) -> Result<(), String> {
        self.write_half(number, block, Half::Lower)?;
        self.flush(number)?;
        self.write_half(number, block, Half::Upper)?;
        self.flush(number)
    }

    /// The part of a range that the disk has.
    fn inside(&self, range: Range<u64>) -> Range<u64> {
        let size = self.model.size();
        range.start.min(size)..range.end.min(size)
    }

    fn zero(&mut self, number: usize, range: Range<u64>) -> Result<(), String> {
        let range = self.inside(range);
        self.model.put(range.clone(), 0);
        self.begin(number);
        self.image().write_zeroes(range).map_err(|e| e.to_string())
    }

    fn discard(&mut self, number: usize, range: Range<u64>) -> Result<(), String> {
        let range = self.inside(range);
        let before = self.model.clone();
        // A fixed disk ignores it.
        if self.start != Start::Fixed {
            self.model.put(range.clone(), 0);
        }
        self.begin(number);
        self.image().discard(range.clone()).map_err(|e| e.to_string())?;
        let part = !range.start.is_multiple_of(self.start.block());
        if self.start.is_child() && part {
            // What the parent shows may stay.
            let image = self.image.as_ref().expect("it is open");
            self.model.keeps_or_loses(range, &before, image)?;
        }
        Ok(())
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
            let seen = crate::model::judge(self.image(), &self.model.expectation())
                .map_err(|e| e.to_string())?;
            self.model.now_is(&seen);
            self.begin(number);
            return Ok(());
        }
        self.open()
    }

    fn flush_during_write(&mut self, number: usize, range: Range<u64>) -> Result<(), String> {
        if range.start >= self.model.size() {
            return Ok(());
        }
        let mark = self.model.mark();
        let image = Arc::clone(self.image());
        let failed = Shared::default();
        let told = failed.clone();
        self.disk.at(Moment::Write(self.start.metadata_end()), move || told.note(image.flush()));
        self.write(number, &[(range.start, range.end - range.start)])?;
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
        let own = |e: Extent| e.depth == 0 && e.file_offset.is_some();
        let placed = extents.next().is_some_and(|e| e.is_ok_and(own));
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

    fn refill(&mut self, number: usize, size: u64) -> Result<(), String> {
        self.resize(number, size)?;
        for block in 0..size / self.start.block() {
            let Range { start, end } = self.start.bytes_of(block);
            self.write(number, &[(start, end - start)])?;
        }
        self.flush(number)
    }

    /// Zeros as data: the block keeps its place.
    fn blank(&mut self, number: usize, block: u64) -> Result<(), String> {
        let range = self.inside(self.start.bytes_of(block));
        self.model.put(range.clone(), 0);
        self.begin(number);
        let zeros = vec![0; (range.end - range.start) as usize];
        self.image().write_at(range.start, &zeros).map_err(|e| e.to_string())
    }

    /// The guest sees no difference.
    fn rewrite(&mut self, number: usize, block: u64) -> Result<(), String> {
        let range = self.inside(self.start.bytes_of(block));
        self.begin(number);
        let mut same = vec![0; (range.end - range.start).min(MIB) as usize];
        let image = self.image();
        image.read_at(range.start, &mut same).map_err(|e| e.to_string())?;
        image.write_at(range.start, &same).map_err(|e| e.to_string())
    }

    /// What is not free shows what it did, whatever stops it. Of a free block either is right.
    fn compact(&mut self, number: usize, free: Option<u64>) -> Result<(), String> {
        self.flush(number)?;
        let mut options = CompactOptions::default().free_space(false);
        if let Some(block) = free {
            let range = self.inside(self.start.bytes_of(block));
            if let Some(parent) = self.below.parent() {
                // It may as well show its parent.
                self.model.may_show(range.clone(), &parent)?;
            }
            self.model.put(range.clone(), 0);
            options = options.also_free(range);
        }
        self.begin(number);
        let image = self.image.take().and_then(Arc::into_inner).ok_or("it is in use")?;
        compact(image, options, &mut ()).map_err(|e| e.to_string())?;
        self.open()?;
        let seen = crate::model::judge(self.image(), &self.model.expectation());
        self.model.now_is(&seen.map_err(|e| e.to_string())?);
        self.model.acknowledge();
        self.begin(number);
        Ok(())
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
