//! What a long chain costs: a block that an image holds is read from that image, and the others are not
//! touched. So a chain of ten is as fast as a flat disk where its last image has the data, which is where a
//! guest works. Reads are counted on media that count; times are told, and hold nothing.

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::Counting;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, ExtentState, Image, OpenOptions};
use vhdxkit_testkit::random::Random;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
const IMAGES: usize = 10;
/// Blocks of the base alone, which nobody else has written.
const DEEP: std::ops::Range<u64> = 24 * MIB..28 * MIB;

/// Files that no image has open, so that each opening starts cold.
struct Chain {
    files: Vec<MemoryStorage>,
    guest: Vec<u8>,
}

/// An open chain, and its media, the base's first.
struct Opened {
    image: Image,
    media: Vec<Arc<Counting<MemoryStorage>>>,
}

fn image_over(parent: Option<Image>, file: &Arc<dyn Storage>, write: bool) -> Image {
    let options = OpenOptions::new().write(write);
    match parent {
        None => options.open_storage(Arc::clone(file)).unwrap(),
        Some(parent) => options.open_child(Arc::clone(file), parent).unwrap(),
    }
}

impl Chain {
    /// The base has all of the disk, and each child a part of what the last one writes: in that are whole
    /// blocks, blocks in part, zeros and trimmed blocks.
    fn new(images: usize) -> Self {
        let mut files: Vec<Arc<MemoryStorage>> = Vec::new();
        let mut guest = vec![0; SIZE as usize];
        for number in 0..images {
            let parent = Self::open_plain(&files);
            let options = match &parent {
                None => CreateOptions::new(SIZE),
                Some(parent) => CreateOptions::child_of(parent).unwrap(),
            };
            let file = Arc::new(MemoryStorage::empty());
            options.block_size(1 << 20).create_storage(&*file).unwrap();
            let image = image_over(parent, &(file.clone() as Arc<dyn Storage>), true);
            let mut write = |at: u64, length: u64| {
                let bytes: Vec<u8> = (at..at + length).map(|at| pattern(number, at)).collect();
                image.write_at(at, &bytes).unwrap();
                guest[at as usize..(at + length) as usize].copy_from_slice(&bytes);
            };
            match number {
                0 => write(0, SIZE),
                last if last + 1 == images => {
                    write(0, 8 * MIB);
                    (8 * MIB..16 * MIB).step_by(8192).for_each(|at| write(at, 4096));
                    image.write_zeroes(16 * MIB..18 * MIB).unwrap();
                    image.discard(18 * MIB..20 * MIB).unwrap();
                    guest[16 * MIB as usize..20 * MIB as usize].fill(0);
                }
                _ => {
                    write(number as u64 * MIB, 3 * MIB);
                    write(20 * MIB + number as u64 * 4096, 4096);
                }
            }
            image.close().unwrap();
            drop(image);
            files.push(file);
        }
        Self { files: files.iter().map(|file| MemoryStorage::new(file.to_vec())).collect(), guest }
    }

    fn open_plain(files: &[Arc<MemoryStorage>]) -> Option<Image> {
        files.iter().fold(None, |parent, file| {
            Some(image_over(parent, &(Arc::clone(file) as Arc<dyn Storage>), false))
        })
    }

    fn open(&self) -> Opened {
        let copies = self.files.iter().map(|file| MemoryStorage::new(file.to_vec()));
        let media: Vec<_> = copies.map(|file| Arc::new(Counting::new(file))).collect();
        let image = media.iter().fold(None, |parent, file| {
            Some(image_over(parent, &(Arc::clone(file) as Arc<dyn Storage>), false))
        });
        Opened { image: image.unwrap(), media }
    }

    /// The same disk in one file.
    fn flat(&self) -> Self {
        let file = Arc::new(MemoryStorage::empty());
        CreateOptions::new(SIZE).block_size(1 << 20).create_storage(&*file).unwrap();
        let image = image_over(None, &(file.clone() as Arc<dyn Storage>), true);
        image.write_at(0, &self.guest).unwrap();
        image.close().unwrap();
        drop(image);
        Self { files: vec![MemoryStorage::new(file.to_vec())], guest: self.guest.clone() }
    }
}

fn pattern(number: usize, at: u64) -> u8 {
    (number as u64 * 16 + at / 4096 % 13 + 1) as u8
}

impl Opened {
    /// Reads of each medium so far, the base's first.
    fn calls(&self) -> Vec<u64> {
        self.media.iter().map(|medium| medium.calls()).collect()
    }

    fn bytes(&self) -> u64 {
        self.media.iter().map(|medium| medium.count()).sum()
    }

    fn read(&self, guest: &[u8], at: u64, length: usize) {
        let mut bytes = vec![0x55; length];
        self.image.read_at(at, &mut bytes).unwrap();
        assert!(bytes == guest[at as usize..at as usize + length], "{length} bytes from {at}");
    }
}

/// The ranges that the last image of the chain decides.
fn held(image: &Image) -> Vec<(u64, u64, ExtentState)> {
    let extents = image.extents(0..SIZE).map(Result::unwrap).filter(|extent| extent.depth == 0);
    extents.map(|extent| (extent.start, extent.length, extent.state)).collect()
}

#[test]
fn what_the_child_holds_is_read_without_its_parents() {
    let chain = Chain::new(IMAGES);
    let held = held(&chain.open().image);
    let data: u64 = held.iter().filter(|piece| piece.2 == ExtentState::Data).map(|p| p.1).sum();
    let zeros: u64 = held.iter().filter(|piece| piece.2.is_zero()).map(|piece| piece.1).sum();
    assert_eq!((data, zeros), (12 * MIB, 4 * MIB), "whole blocks, parts, zeros");
    let opened = chain.open();
    let before = opened.calls();
    for &(start, length, _) in &held {
        opened.read(&chain.guest, start, length as usize);
        opened.read(&chain.guest, start, 512);
        opened.read(&chain.guest, start + length - 100, 100);
    }
    let after = opened.calls();
    assert_eq!(before[..IMAGES - 1], after[..IMAGES - 1], "a parent was read");
    assert!(after[IMAGES - 1] > before[IMAGES - 1]);
}

/// Once the tables are known: one read of one file, however deep it lies.
#[test]
fn what_lies_in_the_base_costs_one_read_of_the_base() {
    let chain = Chain::new(IMAGES);
    let opened = chain.open();
    opened.read(&chain.guest, DEEP.start, 512);
    let before = opened.calls();
    opened.read(&chain.guest, DEEP.start + 4096, 4096);
    let mut expected = before;
    expected[0] += 1;
    assert_eq!(opened.calls(), expected);
}

/// From the same reads of the guest the medium sees the same bytes, but for what opening ten files takes and
/// a page of each table.
#[test]
fn a_chain_reads_no_more_bytes_than_a_flat_disk() {
    let chain = Chain::new(IMAGES);
    let flat = chain.flat();
    let sides = [chain.open(), flat.open()].map(|opened| {
        let before = opened.bytes();
        let mut random = Random::new(5);
        for _ in 0..2000 {
            opened.read(&chain.guest, random.below(8 * MIB / 4096) * 4096, 4096);
        }
        opened.bytes() - before
    });
    let [chained, flat] = sides;
    assert!(chained <= flat + 8192, "{chained} bytes of a chain, {flat} of a flat disk");
    println!(
        "2000 reads of 4 KiB: {chained} bytes from a chain of {IMAGES}, {flat} from a flat disk"
    );
}

/// How long it takes, both sides in turn. The demand is 1.3 times the flat disk; it is told, not held,
/// since a machine that others use proves nothing by its clock.
#[test]
fn the_time_of_a_chain_is_told() {
    let chain = Chain::new(IMAGES);
    let (long, flat) = (chain.open(), chain.flat().open());
    for (what, start, length) in [
        ("whole blocks of the last image", 0, 8 * MIB),
        ("parts of blocks of the last image", 8 * MIB, 8 * MIB),
        ("blocks of the base", DEEP.start, DEEP.end - DEEP.start),
    ] {
        let run = |side: &Opened| {
            let (mut random, mut bytes) = (Random::new(9), vec![0; 4096]);
            let begun = Instant::now();
            for _ in 0..20_000 {
                // Each second piece of 4 KiB is held where blocks are held in part.
                let at = start + random.below(length / 8192) * 8192;
                side.image.read_at(at, &mut bytes).unwrap();
            }
            begun.elapsed().as_secs_f64()
        };
        let mut ratios: Vec<f64> = (0..9).map(|_| run(&long) / run(&flat)).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "4 KiB reads in memory, {what}: {:.2} ({:.2} to {:.2}) of the flat disk's time",
            ratios[4], ratios[0], ratios[8]
        );
    }
}
