//! Where workloads begin: a file, its parent if it is a child, and what a guest sees in it.
//!
//! A child's parent holds other data in each of the blocks that workloads use: one full of it, one in its
//! upper half only, one with none at all. What a crash may show of the child begins with that data, so
//! bytes of the parent in the wrong place are told from old writes and from foreign bytes.

use std::ops::Range;
use std::sync::Arc;

use vhdxkit::ops::relink::relink_storage;
use vhdxkit::storage::Storage;
use vhdxkit::{CreateOptions, Image, OpenOptions, Shrink};

use crate::disk::SimDisk;
use crate::medium::Medium;
use crate::model::{Model, Properties, SECTOR, foreign, stamp};

/// Bytes.
pub const MIB: u64 = 1 << 20;
/// So much of the disk does one sector bitmap speak for (512-byte sectors).
pub const CHUNK: u64 = 4096 * MIB;

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
    /// Blocks of 2 MiB of a disk that was enlarged again and again: its table lies behind most of them, and of
    /// the gaps between them some are too small for a block.
    Enlarged,
    /// A child that holds nothing yet, of six blocks of 1 MiB.
    Child,
    /// One of six blocks of 2 MiB; the free space of its file holds foreign bytes, its sector bitmap the
    /// bits of an earlier life: the blocks show their parent all the same.
    ChildRecycled,
    /// One with blocks of 256 MiB: two of those that are used belong to one sector bitmap, the third to
    /// the next.
    ChildBorder,
    /// One with two sector bitmaps that ends within a block. Its parent is larger.
    ChildResize,
}

/// What lies below a disk: nothing, or the finished file of its parent.
#[derive(Debug, Clone, Default)]
pub struct Below(Option<Arc<SimDisk>>);

impl Below {
    /// Whether the disk is nobody's child.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// A parent.
    #[must_use]
    pub fn of(parent: Arc<SimDisk>) -> Self {
        Self(Some(parent))
    }

    /// The parent, open for reading.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn parent(&self) -> Option<Image> {
        self.0.as_ref().map(|parent| read_only(parent).expect("a parent can be read"))
    }

    /// The parent's file; an empty one for nothing.
    #[must_use]
    pub fn medium(&self) -> Medium {
        self.0.as_ref().map_or_else(Medium::default, |parent| parent.view())
    }

    /// How to make a child of it.
    fn child(&self) -> CreateOptions {
        let parent = read_only(self.0.as_ref().expect("it is a parent")).expect("it can be read");
        CreateOptions::child_of(&parent).expect("it can have a child")
    }

    /// Opens an image over it.
    ///
    /// # Errors
    /// As [`OpenOptions::open_child`].
    pub fn open(&self, options: &OpenOptions, file: Arc<dyn Storage>) -> vhdxkit::Result<Image> {
        match &self.0 {
            None => options.open_storage(file),
            Some(parent) => options.open_child(file, read_only(parent)?),
        }
    }

    /// Tells a child another way to it.
    ///
    /// # Errors
    /// As [`relink_storage`].
    pub fn relink(&self, child: Arc<dyn Storage>, way: String, seed: u64) -> vhdxkit::Result<()> {
        let parent = read_only(self.0.as_ref().expect("it is a parent"))?;
        relink_storage(child, &parent, Some(way), false, Some(seed)).map(|_| ())
    }
}

fn read_only(disk: &Arc<SimDisk>) -> vhdxkit::Result<Image> {
    OpenOptions::new().open_storage(disk.clone())
}

/// What a workload finds.
#[derive(Debug, Clone)]
pub struct Scene {
    /// Which of them it is.
    pub start: Start,
    /// The file, all of it durable.
    pub medium: Medium,
    /// What lies below it.
    pub below: Below,
    /// What the guest sees.
    pub model: Model,
}

impl Scene {
    /// How to make another child of the same parent, with so many bytes, and what that shows.
    #[must_use]
    pub fn another_child(&self, size: u64) -> (CreateOptions, Model) {
        let mut model = self.model.clone();
        model.forget_properties();
        model.resize(size);
        model.resized();
        (self.below.child().virtual_size_of(size), model)
    }
}

impl Start {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Fresh,
        Self::Recycled,
        Self::Fixed,
        Self::Border,
        Self::Enlarged,
        Self::Child,
        Self::ChildRecycled,
        Self::ChildBorder,
        Self::ChildResize,
    ];

    /// Whether the disk has a parent.
    #[must_use]
    pub fn is_child(self) -> bool {
        matches!(self, Self::Child | Self::ChildRecycled | Self::ChildBorder | Self::ChildResize)
    }

    /// Whether blocks are so large that nobody writes a whole one.
    #[must_use]
    pub fn is_border(self) -> bool {
        matches!(self, Self::Border | Self::ChildBorder)
    }

    /// Whether free space holds foreign bytes.
    fn is_recycled(self) -> bool {
        matches!(self, Self::Recycled | Self::ChildRecycled)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block(self) -> u64 {
        match self {
            Self::Recycled | Self::ChildRecycled | Self::Enlarged => 2 * MIB,
            Self::Border | Self::ChildBorder => 256 * MIB,
            _ => MIB,
        }
    }

    /// The bytes of the disk that a block has.
    #[must_use]
    pub fn bytes_of(self, block: u64) -> Range<u64> {
        block * self.block()..(block + 1) * self.block()
    }

    /// The blocks that workloads use.
    #[must_use]
    pub fn blocks(self) -> [u64; 3] {
        match self {
            Self::Border | Self::ChildBorder => [14, 15, 16],
            Self::ChildResize => [0, 1, CHUNK / MIB],
            _ => [0, 1, 2],
        }
    }

    /// The blocks of which the model watches sectors.
    fn watched(self) -> Vec<u64> {
        let [first, _, last] = self.blocks();
        match self {
            Self::ChildResize => (0..7).chain(last..last + 4).collect(),
            Self::Enlarged => (0..8).collect(),
            _ => (first..=last + 2).collect(),
        }
    }

    /// Where guest data starts in the file.
    #[must_use]
    pub fn metadata_end(self) -> u64 {
        4 * MIB
    }

    fn size(self) -> u64 {
        match self {
            Self::Fresh | Self::Child => 6 * MIB,
            Self::Recycled | Self::ChildRecycled => 12 * MIB,
            Self::Fixed => 5 * MIB,
            Self::Enlarged => 16 * MIB,
            Self::Border | Self::ChildBorder => 18 << 28,
            Self::ChildResize => CHUNK + MIB + MIB / 2,
        }
    }

    /// The scene before anything is done.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn scene(self) -> Scene {
        let cells = self.watched().into_iter().flat_map(|block| self.cells(block));
        let mut model = Model::new(self.size(), cells);
        let (below, options) = match self.is_child() {
            true => self.parent(&mut model),
            false => (Below::default(), CreateOptions::new(self.size())),
        };
        let options = options.block_size(u32::try_from(self.block()).expect("it is a block's"));
        let options = options.fixed(self == Self::Fixed).reproducible(42);
        let disk = Arc::new(SimDisk::default());
        options.create_storage(&*disk).expect("an image can be created");
        if self == Self::ChildRecycled {
            leave_stale_bits(&disk, &below);
        }
        if self.is_recycled() {
            leave_foreign_bytes(&disk);
        }
        if self == Self::Enlarged {
            self.enlarge(&disk, &mut model);
        }
        let image = below.open(&OpenOptions::new(), disk.clone()).expect("it can be opened");
        model.describe(Properties::of(&image));
        drop(image);
        Scene { start: self, medium: disk.view(), below, model }
    }

    /// The watched sectors of a block.
    fn cells(self, number: u64) -> [u64; 4] {
        let (start, block) = (number * self.block(), self.block());
        [start, start + SECTOR, start + block / 2, start + block - SECTOR]
    }

    /// Stores blocks, each where there is room, and moves the table away from between them. Once block 0 has gone,
    /// a compaction moves the table down, and then there is no gap for the last block but where that was.
    fn enlarge(self, disk: &Arc<SimDisk>, model: &mut Model) {
        let steps: [(&[u64], u64); 4] =
            [(&[4], 300 << 30), (&[0], 600 << 30), (&[1, 5, 6], 900 << 30), (&[7, 2], 900 << 30)];
        for (blocks, size) in steps {
            let options = OpenOptions::new().write(true).reproducible(44 + size);
            let mut image = options.open_storage(disk.clone()).expect("it can be opened");
            for at in blocks.iter().flat_map(|block| self.cells(*block)) {
                let version = model.next_version();
                model.put(at..at + SECTOR, version);
                image.write_at(at, &stamp(at, version)).expect("it can be written");
            }
            model.resize(size);
            image.resize(size, Shrink::ZerosOnly).expect("it can grow");
            model.resized();
            image.close().expect("it can be closed");
        }
        let options = OpenOptions::new().write(true).reproducible(43);
        let image = options.open_storage(disk.clone()).expect("it can be opened");
        model.put(self.bytes_of(1), 0);
        image.write_zeroes(self.bytes_of(1)).expect("it can be zeroed");
        image.close().expect("it can be closed");
        model.acknowledge();
    }

    /// Makes a parent with data, and tells how to make its child. The model learns what the child shows.
    fn parent(self, model: &mut Model) -> (Below, CreateOptions) {
        let more = if self == Self::ChildResize { 2 * MIB } else { 0 };
        let options = CreateOptions::new(self.size() + more).block_size(2 << 20).reproducible(41);
        let disk = Arc::new(SimDisk::default());
        options.create_storage(&*disk).expect("a parent can be created");
        let writable = OpenOptions::new().write(true).reproducible(40);
        let parent = writable.open_storage(disk.clone()).expect("a parent can be opened");
        for (number, block) in self.watched().into_iter().enumerate() {
            let cells = self.cells(block);
            let held = match number {
                1 => &cells[2..],
                3 => &[],
                _ => &cells[..],
            };
            for &at in held.iter().filter(|at| **at < parent.virtual_size()) {
                let version = model.next_version();
                model.put(at..at + SECTOR, version);
                parent.write_at(at, &stamp(at, version)).expect("a parent can be written");
            }
        }
        parent.close().expect("a parent can be closed");
        drop(parent);
        model.resized();
        let below = Below(Some(disk));
        let options = below.child().virtual_size_of(self.size());
        (below, options)
    }
}

/// Behind what the image uses; holes between them.
fn leave_foreign_bytes(disk: &SimDisk) {
    let end = disk.len().expect("a length");
    for mebibyte in 0..8 {
        for at in [0, 512, MIB / 2, MIB - 512] {
            let at = end + mebibyte * MIB + at;
            disk.write_at(at, &foreign()).expect("room");
        }
    }
}

/// Gives a child a sector bitmap, and takes the only block away that it was made for. That leaves a block
/// that is not present, and bits that mean nothing.
fn leave_stale_bits(disk: &Arc<SimDisk>, below: &Below) {
    let options = OpenOptions::new().write(true).reproducible(43);
    let child = below.open(&options, disk.clone()).expect("a child can be opened");
    child.write_at(0, &foreign()).expect("a child can be written");
    child.close().expect("a child can be closed");
    let table = child.regions().bat().offset;
    let bits = child.sector_bitmap(0).expect("its entry is good").expect("it is there");
    disk.write_at(table, &[0; 8]).expect("room");
    disk.write_at(bits, &[0xFF; 4096]).expect("room");
    // Nobody changes a table beside the log and leaves there what it was before, for a lost header to bring back.
    let log = child.headers().log_place().expect("it has a log");
    disk.write_at(log.offset, &vec![0; log.length as usize]).expect("room");
}

#[cfg(test)]
mod tests {
    use vhdxkit::ops::compact::{CompactOptions, compact};

    use super::*;

    /// The one start where a compaction needs the place that the table has just left. Were it not so any more, a
    /// crash in between would be tried by nothing.
    #[test]
    fn compacting_an_enlarged_disk_uses_the_tables_old_place() {
        let scene = Start::Enlarged.scene();
        let disk = Arc::new(SimDisk::new(scene.medium));
        let open = || {
            let options = OpenOptions::new().write(true).reproducible(1);
            options.open_storage(disk.clone()).expect("it can be opened")
        };
        let places = |image: &Image| {
            let block =
                image.extents(4 * MIB..6 * MIB).next().expect("block 2").expect("it is whole");
            (image.regions().bat().offset / MIB, block.file_offset.expect("it has a place") / MIB)
        };
        let image = open();
        assert_eq!(places(&image), (17, 21));
        image.discard(0..2 * MIB).expect("it can be discarded");
        compact(image, CompactOptions::default().free_space(false), &mut ()).expect("a compaction");
        assert_eq!(places(&open()), (6, 17));
    }
}
