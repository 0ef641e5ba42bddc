//! Compacting gives back all that can go and nothing else: the guest reads the same bytes, the file is as
//! short as its blocks allow, and a second run finds nothing to do.

use std::sync::Arc;

use vhdxkit::ops::check::check;
use vhdxkit::ops::compact::{CompactOptions, CompactReport, compact, plan};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions, Shrink};

mod common;

const MIB: u64 = 1 << 20;

/// A small generator of numbers that look random: the same ones each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

fn open(file: &Arc<MemoryStorage>) -> Image {
    OpenOptions::new().write(true).open_storage(file.clone()).unwrap()
}

fn contents(image: &Image) -> Vec<u8> {
    let mut all = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut all).unwrap();
    all
}

fn no_problem(file: &Arc<MemoryStorage>) {
    let findings = check(file.clone(), &mut ()).unwrap();
    assert!(!findings.has_problems(), "{:?}", findings.list());
}

fn zeros_only() -> CompactOptions {
    CompactOptions::default().free_space(false)
}

fn compact_again(file: &Arc<MemoryStorage>, over: Option<Image>) -> CompactReport {
    let image = open(file);
    assert!(over.is_none());
    compact(image, zeros_only(), &mut ()).unwrap()
}

/// A disk after a life of writes, zeros, trims and growth.
fn lived(block: u32, seed: u64) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::empty());
    let size = 40 * u64::from(block) + 3 * MIB / 2;
    CreateOptions::new(size).block_size(block).create_storage(&*file).unwrap();
    let mut random = Random(seed);
    for session in 0..3 {
        let mut image = open(&file);
        let size = image.virtual_size();
        for _ in 0..60 {
            let length = [4096, 65536, u64::from(block)][random.below(3) as usize];
            let at = random.below(size / 4096) * 4096;
            let length = length.min(size - at);
            match random.below(8) {
                0 => image.write_zeroes(at..at + length).unwrap(),
                1 => image.discard(at..at + length).unwrap(),
                2 => image.flush().unwrap(),
                // Zeros that a guest wrote take space like everything else.
                3 | 4 => image.write_at(at, &vec![0; length as usize]).unwrap(),
                _ => image.write_at(at, &vec![random.below(255) as u8; length as usize]).unwrap(),
            }
        }
        if session == 1 {
            image.resize(size + 7 * u64::from(block), Shrink::ZerosOnly).unwrap();
        }
        image.close().unwrap();
    }
    file
}

/// The blocks of a dynamic disk that hold a byte that is not zero.
fn needed_blocks(all: &[u8], block: u32) -> u64 {
    all.chunks(block as usize).filter(|bytes| bytes.iter().any(|byte| *byte != 0)).count() as u64
}

#[test]
fn a_disk_after_a_long_life_keeps_its_bytes_and_no_block_of_zeros() {
    for seed in 0..12 {
        let block = [MIB, 2 * MIB, 4 * MIB][seed as usize % 3] as u32;
        let file = lived(block, seed);
        let image = open(&file);
        let before = contents(&image);
        let planned = plan(&image, &zeros_only(), &mut ()).unwrap();
        let report = compact(image, zeros_only(), &mut ()).unwrap();
        let image = open(&file);
        assert!(contents(&image) == before, "seed {seed}: the disk reads otherwise");
        let blocks = needed_blocks(&before, block);
        let placed = image.extents(0..image.virtual_size()).map(Result::unwrap);
        let held: u64 = placed.filter(|e| e.file_offset.is_some()).map(|e| e.length).sum();
        assert!(held <= blocks * u64::from(block), "seed {seed}: {held} bytes in {blocks} blocks");
        drop(image);
        no_problem(&file);
        assert_eq!(report.bytes_after, file.len().unwrap());
        assert!(report.bytes_after <= planned.file_size_after, "{report:?}");
        let fixed = report.bytes_after - blocks * u64::from(block);
        assert!(fixed <= 4 * MIB, "seed {seed}: {fixed} bytes beside {blocks} blocks");
        let again = compact_again(&file, None);
        assert!(!again.plan.has_work(), "seed {seed}: {again:?}");
    }
}

/// A plan was made of the file's own table, which a flush leaves behind the log: blocks just written seemed to be
/// nobody's.
#[test]
fn a_plan_in_the_midst_of_a_session_sees_what_was_written() {
    let memory = Arc::new(MemoryStorage::default());
    let file: Arc<dyn Storage> = memory.clone();
    CreateOptions::new(128 << 20).block_size(1 << 20).create_storage(&*file).unwrap();
    let image = open(&memory);
    for block in 0..100u64 {
        image.write_at(block << 20, &vec![block as u8 + 1; 1 << 20]).unwrap();
    }
    let plan = plan(&image, &CompactOptions::default(), &mut ()).unwrap();
    assert_eq!((plan.nameless, plan.placed.bytes), (0, 100 << 20));
    drop(image);
}

/// Nobody can tell the difference, so children must go on to know it.
#[test]
fn zeros_that_go_leave_the_identity_alone() {
    let file = lived(MIB as u32, 3);
    let identity = |file: &Arc<MemoryStorage>| open(file).headers().current().data_write_guid;
    let before = identity(&file);
    let report = compact(open(&file), zeros_only(), &mut ()).unwrap();
    assert!(report.plan.zero.blocks > 0);
    assert_eq!(identity(&file), before);
}

/// A table that was enlarged lies in the middle of everything: the file could not become shorter.
#[test]
fn a_table_at_the_end_moves_down() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(60 * MIB).block_size(MIB as u32).create_storage(&*file).unwrap();
    let mut image = open(&file);
    for block in 0..60 {
        image.write_at(block * MIB, &[7; 4096]).unwrap();
    }
    // So large that the table does not fit its mebibyte.
    image.resize(200 << 30, Shrink::ZerosOnly).unwrap();
    image.write_at(150 << 30, &[9; 4096]).unwrap();
    image.write_zeroes(MIB..60 * MIB).unwrap();
    image.close().unwrap();
    let before = file.len().unwrap();
    let table = open(&file).regions().bat().offset;
    assert!(table > 60 * MIB);
    let report = compact(open(&file), zeros_only(), &mut ()).unwrap();
    let image = open(&file);
    assert!(image.regions().bat().offset < table);
    assert!(report.bytes_after < before && report.bytes_after <= 9 * MIB, "{report:?}");
    for (at, byte) in [(0, 7), (MIB, 0), (150 << 30, 9)] {
        let mut found = [1; 4096];
        image.read_at(at, &mut found).unwrap();
        assert_eq!(found, [byte; 4096]);
    }
    drop(image);
    no_problem(&file);
}

#[test]
fn a_fixed_image_is_refused_with_the_reason_and_stays_as_it_is() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(8 * MIB).block_size(MIB as u32).fixed(true).create_storage(&*file).unwrap();
    let bytes = |file: &Arc<MemoryStorage>| {
        let mut all = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut all).unwrap();
        all
    };
    let before = bytes(&file);
    let error = compact(open(&file), zeros_only(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("fixed"), "{error}");
    assert!(bytes(&file) == before);
}

mod children {
    use super::*;

    /// A parent, and a child that wrote many things, among them what the parent has anyway.
    fn family(seed: u64, block: u32) -> (Arc<MemoryStorage>, Arc<MemoryStorage>) {
        let parent = lived(block, seed);
        let base = OpenOptions::new().open_storage(parent.clone()).unwrap();
        let child = Arc::new(MemoryStorage::empty());
        CreateOptions::child_of(&base).unwrap().block_size(block).create_storage(&*child).unwrap();
        let image = OpenOptions::new().write(true).open_child(child.clone(), base).unwrap();
        let mut random = Random(seed + 100);
        for _ in 0..80 {
            let at = random.below(image.virtual_size() / 4096) * 4096;
            let length = [4096, 65536, u64::from(block)][random.below(3) as usize];
            let length = length.min(image.virtual_size() - at);
            let mut same = vec![0; length as usize];
            image.read_at(at, &mut same).unwrap();
            match random.below(6) {
                0 => image.write_zeroes(at..at + length).unwrap(),
                1 => image.discard(at..at + length).unwrap(),
                2 | 3 => image.write_at(at, &same).unwrap(),
                4 => image.write_at(at, &vec![0; length as usize]).unwrap(),
                _ => image.write_at(at, &vec![random.below(255) as u8; length as usize]).unwrap(),
            }
        }
        image.close().unwrap();
        (parent, child)
    }

    fn over(child: &Arc<MemoryStorage>, parent: &Arc<MemoryStorage>) -> Image {
        let parent = OpenOptions::new().open_storage(parent.clone()).unwrap();
        OpenOptions::new().write(true).open_child(child.clone(), parent).unwrap()
    }

    /// The file offsets of its own blocks and sector bitmaps.
    fn own(image: &Image) -> (Vec<u64>, Vec<u64>) {
        let geometry = image.geometry();
        let entry = |index| image.bat_entry(index).unwrap();
        let blocks = (0..geometry.blocks())
            .filter(|block| matches!(entry(geometry.payload_index(*block)).state(), 6 | 7));
        let chunks = 0..geometry.chunks();
        let bitmaps = chunks.filter(|chunk| image.sector_bitmap(*chunk).unwrap().is_some());
        (blocks.collect(), bitmaps.collect())
    }

    #[test]
    fn a_child_keeps_its_bytes_and_no_block_that_its_parent_shows() {
        let mut let_go = 0;
        for seed in 0..10 {
            let block = [MIB, 2 * MIB][seed as usize % 2] as u32;
            let (parent, child) = family(seed, block);
            let image = over(&child, &parent);
            let before = contents(&image);
            let report = compact(image, zeros_only(), &mut ()).unwrap();
            let_go += report.plan.like_parent.blocks;
            let image = over(&child, &parent);
            assert!(contents(&image) == before, "seed {seed}: the child reads otherwise");
            let below = contents(image.parent().unwrap());
            let (blocks, bitmaps) = own(&image);
            for number in blocks {
                let start = (number * u64::from(block)) as usize;
                let end = before.len().min(start + block as usize);
                let mine = &before[start..end];
                let state = image.bat_entry(image.geometry().payload_index(number)).unwrap();
                assert!(
                    mine != &below[start..end],
                    "seed {seed}: block {number} is the parent's, {state:?}"
                );
                let zeros = mine.iter().all(|byte| *byte == 0);
                assert!(!zeros, "seed {seed}: block {number} is zeros");
            }
            let partial = (0..image.geometry().blocks()).any(|block| {
                image.bat_entry(image.geometry().payload_index(block)).unwrap().state() == 7
            });
            assert_eq!(bitmaps.len(), usize::from(partial), "seed {seed}");
            drop(image);
            no_problem(&child);
            let again = compact(over(&child, &parent), zeros_only(), &mut ()).unwrap();
            assert!(!again.plan.has_work(), "seed {seed}: {again:?}");
        }
        assert!(let_go > 10, "{let_go}");
    }

    /// Without its parent nobody knows what a child's block is to be compared with, nor what shows between
    /// its sectors.
    #[test]
    fn a_child_alone_gives_back_zeros_only() {
        let (parent, child) = family(2, MIB as u32);
        let before = contents(&over(&child, &parent));
        let alone = OpenOptions::new().write(true).open_storage(child.clone());
        let report = alone.and_then(|image| compact(image, zeros_only(), &mut ()));
        if let Ok(report) = report {
            assert_eq!(report.plan.like_parent.blocks, 0);
        }
        assert!(contents(&over(&child, &parent)) == before);
    }
}
