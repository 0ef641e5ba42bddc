//! Changes single nodes of a small btrfs in memory, and makes their checksums right again.

use std::path::Path;

use vhdxkit_volumes::{Survey, Trouble};

use crate::common::sh;

pub type Key = (u64, u8, u64);

pub const SUPERBLOCK: usize = 64 << 10;
pub const ROOT_ITEM: u8 = 132;
const HEADER: usize = 101;
const ITEM: usize = 25;

#[derive(Clone)]
pub struct Btrfs {
    pub bytes: Vec<u8>,
    pub node_size: usize,
}

/// A leaf's item: where its header and its contents are.
pub struct Item {
    pub key: Key,
    pub header: usize,
    pub at: usize,
    pub length: usize,
}

impl Btrfs {
    /// A new one, in which each tree is a single leaf.
    pub fn new(size: &str, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        sh(&format!("truncate -s {size} {0}; mkfs.btrfs -q {options} {0}", path.display()));
        Self::load(&path)
    }

    pub fn load(path: &Path) -> Self {
        let mut new = Self { bytes: std::fs::read(path).unwrap(), node_size: 0 };
        new.node_size = new.number(SUPERBLOCK + 0x94, 4) as usize;
        new
    }

    pub fn survey(&self) -> Result<Survey, Trouble> {
        vhdxkit_volumes::survey(&self.bytes, 0..self.bytes.len() as u64)
    }

    /// Why nothing is free.
    pub fn refusal(&self) -> String {
        match self.survey() {
            Ok(survey) => survey.unclean.expect("it was taken for clean"),
            Err(trouble) => trouble.to_string(),
        }
    }

    pub fn number(&self, at: usize, length: usize) -> u64 {
        let bytes = self.bytes[at..at + length].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Little-endian, as many bytes as given.
    pub fn put(&mut self, at: usize, number: u64, length: usize) {
        self.bytes[at..at + length].copy_from_slice(&number.to_le_bytes()[..length]);
    }

    pub fn root_of(&self, tree: u64) -> u64 {
        match tree {
            1 => self.number(SUPERBLOCK + 0x50, 8),
            3 => self.number(SUPERBLOCK + 0x58, 8),
            _ => {
                let root = self.leaves(1)[0];
                let items = self.items(root);
                let item = items.iter().find(|item| (item.key.0, item.key.1) == (tree, ROOT_ITEM));
                self.number(item.unwrap().at + 176, 8)
            }
        }
    }

    /// All copies of the leaf that is a tree.
    pub fn leaves(&self, tree: u64) -> Vec<usize> {
        let at = self.root_of(tree);
        let found = (1 << 20..self.bytes.len() - self.node_size).step_by(4096);
        let found = found.filter(|place| {
            self.number(place + 0x30, 8) == at
                && self.number(place + 0x58, 8) == tree
                && self.number(*place, 4) == u64::from(self.sum(*place, self.node_size))
        });
        let found: Vec<usize> = found.collect();
        assert!((1..=2).contains(&found.len()), "{found:?} for {at}");
        found
    }

    pub fn items(&self, leaf: usize) -> Vec<Item> {
        let header = |number| leaf + HEADER + number * ITEM;
        let headers = (0..self.number(leaf + 0x60, 4) as usize).map(header);
        let items = headers.map(|header| Item {
            key: (self.number(header, 8), self.bytes[header + 8], self.number(header + 9, 8)),
            header,
            at: leaf + HEADER + self.number(header + 17, 4) as usize,
            length: self.number(header + 21, 4) as usize,
        });
        items.collect()
    }

    /// Writes the items of a leaf anew.
    pub fn set_items(&mut self, leaf: usize, items: &[(Key, Vec<u8>)]) {
        self.bytes[leaf + HEADER..leaf + self.node_size].fill(0);
        self.put(leaf + 0x60, items.len() as u64, 4);
        let mut end = self.node_size - HEADER;
        for (number, (key, contents)) in items.iter().enumerate() {
            let header = leaf + HEADER + number * ITEM;
            end -= contents.len();
            self.put(header, key.0, 8);
            self.put(header + 8, key.1.into(), 1);
            self.put(header + 9, key.2, 8);
            self.put(header + 17, end as u64, 4);
            self.put(header + 21, contents.len() as u64, 4);
            self.bytes[leaf + HEADER + end..][..contents.len()].copy_from_slice(contents);
        }
    }

    /// The contents of a leaf's items.
    pub fn contents(&self, leaf: usize) -> Vec<(Key, Vec<u8>)> {
        let each = self.items(leaf).into_iter();
        each.map(|item| (item.key, self.bytes[item.at..item.at + item.length].to_vec())).collect()
    }

    /// Changes every copy of a tree's leaf.
    pub fn change(&mut self, tree: u64, change: impl Fn(&mut Self, usize)) {
        for leaf in self.leaves(tree) {
            change(self, leaf);
            self.seal(leaf);
        }
    }

    /// Changes the first item of a tree's leaf whose key is such.
    pub fn change_item(
        &mut self,
        tree: u64,
        which: impl Fn(Key) -> bool,
        change: impl Fn(&mut Self, &Item),
    ) {
        self.change(tree, |fs, leaf| {
            let items = fs.items(leaf);
            change(fs, items.iter().find(|item| which(item.key)).expect("there is such an item"));
        });
    }

    pub fn change_superblock(&mut self, change: impl Fn(&mut Self)) {
        change(self);
        let sum = self.sum(SUPERBLOCK, 4096);
        self.put(SUPERBLOCK, sum.into(), 4);
    }

    pub fn seal(&mut self, node: usize) {
        let sum = self.sum(node, self.node_size);
        self.put(node, sum.into(), 4);
    }

    fn sum(&self, at: usize, length: usize) -> u32 {
        crc32c::crc32c(&self.bytes[at + 32..at + length])
    }
}
