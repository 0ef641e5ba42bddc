//! Random trees of images against flat arrays of bytes.
//!
//! Every image of a tree has a model: all the bytes that its guest sees. Leaves are written, zeroed,
//! trimmed, resized, closed and reopened, killed and reopened, merged; then children are made of some of them, with
//! other block sizes, and those are written, and so on. At the end every image of the tree, read through its
//! whole chain, must show its model, byte for byte, and its extents must say the same.

use std::sync::Arc;

use vhdxkit::ops::check::check;
use vhdxkit::ops::merge::merge_storages;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, ExtentState, Image, OpenOptions, Shrink};
use vhdxkit_testkit::random::Random;

const MIB: u64 = 1 << 20;

struct Node {
    file: Arc<MemoryStorage>,
    parent: Option<usize>,
    depth: usize,
    /// It has children: it must not change any more.
    settled: bool,
    guest: Vec<u8>,
}

struct Tree {
    nodes: Vec<Node>,
    random: Random,
    sector: u64,
    opened: u64,
}

impl Tree {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sector = if random.below(3) == 0 { 4096 } else { 512 };
        let size = (1 + random.below(5)) * MIB + random.below(64) * sector;
        let file = Arc::new(MemoryStorage::empty());
        CreateOptions::new(size)
            .logical_sector_size(sector as u32)
            .block_size(1 << 20 << random.below(3))
            .fixed(random.below(4) == 0)
            .reproducible(seed)
            .create_storage(&*file)
            .unwrap();
        let guest = vec![0; size as usize];
        let root = Node { file, parent: None, depth: 0, settled: false, guest };
        Self { nodes: vec![root], random, sector, opened: seed << 20 }
    }

    fn open(&mut self, node: usize, write: bool) -> Image {
        self.opened += 1;
        let options = OpenOptions::new().write(write).reproducible(self.opened);
        let file = Arc::clone(&self.nodes[node].file) as Arc<dyn Storage>;
        match self.nodes[node].parent {
            None => options.open_storage(file).unwrap(),
            Some(parent) => {
                let parent = self.open(parent, false);
                options.open_child(file, parent).unwrap()
            }
        }
    }

    fn fork(&mut self, node: usize) {
        let parent = self.open(node, false);
        let file = Arc::new(MemoryStorage::empty());
        self.opened += 1;
        CreateOptions::child_of(&parent)
            .unwrap()
            .block_size(1 << 20 << self.random.below(3))
            .reproducible(self.opened)
            .create_storage(&*file)
            .unwrap();
        self.nodes[node].settled = true;
        let (depth, guest) = (self.nodes[node].depth + 1, self.nodes[node].guest.clone());
        self.nodes.push(Node { file, parent: Some(node), depth, settled: false, guest });
    }

    /// Merges a leaf into its parent, if that has no other child. Both show the same afterwards.
    fn merge(&mut self, node: usize) {
        let Some(parent) = self.nodes[node].parent else { return };
        let others = self.nodes.iter().filter(|other| other.parent == Some(parent)).count();
        if self.nodes[node].settled || others > 1 {
            return;
        }
        self.opened += 1;
        let storage = |node: &Node| Arc::clone(&node.file) as Arc<dyn Storage>;
        let (child, below) = (storage(&self.nodes[node]), storage(&self.nodes[parent]));
        merge_storages(child, below, self.grandparent(parent), Some(self.opened)).unwrap();
        self.nodes[parent].guest = self.nodes[node].guest.clone();
    }

    /// The parent of a node, open for reading.
    fn grandparent(&mut self, node: usize) -> Option<Image> {
        self.nodes[node].parent.map(|parent| self.open(parent, false))
    }

    /// A range of whole sectors, small ones and whole blocks among them.
    fn range(&mut self, size: u64) -> std::ops::Range<u64> {
        let random = &mut self.random;
        let (start, length) = match random.below(5) {
            0 => (random.below(size / MIB + 1) * MIB, (1 + random.below(2)) * MIB),
            1 => (random.below(size / MIB + 1) * MIB, self.sector),
            2 => (random.below(size / self.sector) * self.sector, size),
            3 => (random.below(size / MIB + 1) * MIB + MIB / 2, MIB),
            _ => (
                random.below(size / self.sector) * self.sector,
                (1 + random.below(40)) * self.sector,
            ),
        };
        let start = start.min(size);
        start..(start + length).min(size)
    }

    /// Changes a leaf in one session or several.
    fn work(&mut self, node: usize, operations: usize) {
        let mut image = self.open(node, true);
        for _ in 0..operations {
            let size = image.virtual_size();
            let range = self.range(size);
            let bytes = range.start as usize..range.end as usize;
            let op = self.random.below(20);
            if std::env::var_os("TELL").is_some() {
                println!("node {node} size {size} {op} {range:?}");
                self.require(&image, node);
            }
            match op {
                0..=8 => {
                    let stamp = self.random.below(255) as u8 + 1;
                    let data: Vec<u8> =
                        bytes.clone().map(|at| stamp ^ (at / 512 % 251) as u8).collect();
                    image.write_at(range.start, &data).unwrap();
                    self.nodes[node].guest[bytes].copy_from_slice(&data);
                }
                9..=11 => {
                    image.write_zeroes(range).unwrap();
                    self.nodes[node].guest[bytes].fill(0);
                }
                12..=13 => self.discard(&image, node, range),
                14 => {
                    let sectors = self.random.below(7 * MIB / self.sector) + 1;
                    image.resize(sectors * self.sector, Shrink::Anything).unwrap();
                    self.nodes[node].guest.resize((sectors * self.sector) as usize, 0);
                }
                15..=17 => image.flush().unwrap(),
                18 => {
                    image.close().unwrap();
                    drop(image);
                    image = self.open(node, true);
                }
                _ => {
                    // Killed: the log stays, and the next one replays it.
                    image.flush().unwrap();
                    drop(image);
                    image = self.open(node, true);
                }
            }
        }
        self.require(&image, node);
        if self.random.below(4) > 0 {
            image.close().unwrap();
        } else {
            // Its children will read it through its log.
            image.flush().unwrap();
        }
    }

    /// What was discarded reads as before or as zeros, sector by sector.
    fn discard(&mut self, image: &Image, node: usize, range: std::ops::Range<u64>) {
        image.discard(range.clone()).unwrap();
        let bytes = range.start as usize..range.end as usize;
        let mut now = vec![0; bytes.len()];
        image.read_at(range.start, &mut now).unwrap();
        let before = &mut self.nodes[node].guest[bytes];
        let sectors = now.chunks(self.sector as usize).zip(before.chunks(self.sector as usize));
        for (number, (now, before)) in sectors.enumerate() {
            let zero = now.iter().all(|byte| *byte == 0);
            assert!(zero || now == before, "sector {number} of {range:?} shows other bytes");
        }
        before.copy_from_slice(&now);
    }

    fn require(&self, image: &Image, node: usize) {
        let guest = &self.nodes[node].guest;
        assert_eq!(image.virtual_size(), guest.len() as u64);
        let mut seen = vec![1; guest.len()];
        image.read_at(0, &mut seen).unwrap();
        let difference = seen.iter().zip(guest).position(|(a, b)| a != b);
        assert_eq!(difference, None, "image {node} at depth {}", self.nodes[node].depth);
        let mut at = 0;
        for extent in image.extents(0..guest.len() as u64) {
            let extent = extent.unwrap();
            assert_eq!(extent.start, at);
            at = extent.end();
            let expected = &guest[extent.start as usize..at as usize];
            match extent.state {
                ExtentState::Data => {
                    let mut bytes = vec![0; expected.len()];
                    let layer = image.layer(extent.depth).unwrap();
                    let read = layer.storage().read_at(extent.file_offset.unwrap(), &mut bytes);
                    assert_eq!(read.unwrap(), bytes.len());
                    // The file of an image that is open for writing has its payload in place at once.
                    assert!(bytes == expected, "extent {extent:?} of image {node}");
                }
                ExtentState::ParentMissing => panic!("the parent is there"),
                _ => assert!(expected.iter().all(|byte| *byte == 0), "{extent:?} of image {node}"),
            }
        }
        assert_eq!(at, guest.len() as u64);
    }
}

#[test]
fn every_image_of_a_random_tree_shows_what_its_guest_wrote() {
    let seeds = if std::env::var_os("VHDXKIT_LONG").is_some() { 3000 } else { 60 };
    for seed in 0..seeds {
        println!("seed {seed}");
        let mut tree = Tree::new(seed);
        tree.work(0, 25);
        for _ in 0..6 {
            let count = tree.nodes.len() as u64;
            let node = tree.random.below(count) as usize;
            if tree.nodes[node].depth < 5 {
                tree.fork(node);
            }
            let leaves: Vec<usize> =
                (0..tree.nodes.len()).filter(|&n| !tree.nodes[n].settled).collect();
            let leaf = leaves[tree.random.below(leaves.len() as u64) as usize];
            tree.work(leaf, 25);
            if tree.random.below(4) == 0 {
                tree.merge(leaf);
            }
        }
        for node in 0..tree.nodes.len() {
            let image = tree.open(node, false);
            tree.require(&image, node);
            let file = Arc::clone(&tree.nodes[node].file) as Arc<dyn Storage>;
            let findings = check(file, &mut ()).unwrap();
            assert!(!findings.has_problems(), "seed {seed}, image {node}: {:?}", findings.list());
        }
    }
}
