//! How things are called: trees by their numbers, items by their keys, devices and file systems by their UUIDs. And
//! where a tree begins.

use crate::bytes::{u8_at, u64_at};

pub(super) const ROOT_TREE: u64 = 1;
pub(super) const EXTENT_TREE: u64 = 2;
pub(super) const CHUNK_TREE: u64 = 3;
pub(super) const DEVICE_TREE: u64 = 4;
pub(super) const BLOCK_GROUP_TREE: u64 = 11;

/// Object, type of the item, offset: what trees are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) u64, pub(super) u8, pub(super) u64);

impl Key {
    pub(super) const LEAST: Self = Self(0, 0, 0);
    pub(super) const MOST: Self = Self(u64::MAX, u8::MAX, u64::MAX);
    pub(super) const LENGTH: usize = 17;

    pub(super) fn at(bytes: &[u8], at: usize) -> Self {
        let field = |offset: usize| at.saturating_add(offset);
        Self(u64_at(bytes, at), u8_at(bytes, field(8)), u64_at(bytes, field(9)))
    }
}

/// Where a tree begins.
#[derive(Debug, Clone)]
pub(super) struct Root {
    /// Its number: what its nodes have as their owner.
    pub(super) tree: u64,
    pub(super) name: &'static str,
    pub(super) at: u64,
    pub(super) generation: u64,
    pub(super) level: u8,
}

impl Root {
    /// A root item.
    pub(super) fn of_item(tree: u64, name: &'static str, item: &[u8]) -> Self {
        let (at, generation, level) = (u64_at(item, 176), u64_at(item, 160), u8_at(item, 238));
        Self { tree, name, at, generation, level }
    }
}

/// An identifier; zeros where the bytes end before it does.
pub(super) fn uuid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}
