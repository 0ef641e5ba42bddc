//! Chunks: which bytes of the device belong to a logical address.

use std::rc::Rc;

use super::names::{Key, uuid_at};
use super::superblock::Superblock;
use crate::Trouble;
use crate::bytes::{u16_at, u64_at};

/// Type of the item that is a chunk, and the object that all chunks have.
const CHUNK_ITEM: u8 = 228;
const CHUNKS: u64 = 256;
/// Bytes of a chunk item without its stripes, and of a stripe.
const ITEM: usize = 48;
const STRIPE: usize = 32;

/// What a chunk is for: data, system, metadata.
pub(super) const USES: u64 = 0b111;
const SYSTEM: u64 = 0b10;
/// The profile of which a chunk has two places on the device.
const DUP: u64 = 1 << 5;
/// Other profiles, which need other devices to be of any use.
const PROFILES: [(u64, &str); 8] = [
    (1 << 3, "RAID0"),
    (1 << 4, "RAID1"),
    (1 << 6, "RAID10"),
    (1 << 7, "RAID5"),
    (1 << 8, "RAID6"),
    (1 << 9, "RAID1C3"),
    (1 << 10, "RAID1C4"),
    (!0x7FF, "unknown"),
];

/// A range of logical addresses, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) logical: u64,
    pub(super) length: u64,
    /// What it is for, and its profile.
    pub(super) kind: u64,
    places: [Option<u64>; 2],
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }

    /// A chunk item.
    pub(super) fn of_item(superblock: &Superblock, key: Key, item: &[u8]) -> Result<Self, Trouble> {
        let damaged = |what: &str| Err(Trouble::damaged(format!("the chunk at {} {what}", key.2)));
        if (key.0, key.1) != (CHUNKS, CHUNK_ITEM) {
            return damaged("has another key");
        }
        let (length, kind) = (u64_at(item, 0), u64_at(item, 24));
        if let Some((_, name)) = PROFILES.iter().find(|(bits, _)| kind & bits != 0) {
            return Err(Trouble::not_known(format!("its profile {name} is not known")));
        }
        let stripes: usize = if kind & DUP == 0 { 1 } else { 2 };
        let whole = stripes.saturating_mul(STRIPE).saturating_add(ITEM);
        if usize::from(u16_at(item, 44)) != stripes || item.len() != whole {
            return damaged("has another number of places than its profile");
        }
        let aligned = |bytes: u64| bytes.is_multiple_of(superblock.sector_size);
        if kind & USES == 0
            || length == 0
            || !aligned(length)
            || !aligned(key.2)
            || key.2.checked_add(length).is_none()
        {
            return damaged("is malformed");
        }
        let mut places = [None; 2];
        let found = item.get(ITEM..).unwrap_or_default().chunks_exact(STRIPE);
        for (place, stripe) in places.iter_mut().zip(found) {
            let device = &superblock.device;
            if u64_at(stripe, 0) != device.id || uuid_at(stripe, 16) != device.uuid {
                return damaged("lies on another device");
            }
            let start = u64_at(stripe, 8);
            let end = start.checked_add(length).filter(|end| *end <= device.total_bytes);
            if end.is_none() || !aligned(start) {
                return damaged("lies outside of the device");
            }
            *place = Some(start);
        }
        Ok(Self { logical: key.2, length, kind, places })
    }
}

/// Chunks in the order of their logical addresses; they do not overlap.
#[derive(Debug, Clone)]
pub(super) struct Chunks(Rc<[Chunk]>);

impl Chunks {
    /// Those that the superblock tells of, so that the chunk tree can be read.
    pub(super) fn of_system(superblock: &Superblock) -> Result<Self, Trouble> {
        let mut chunks = Vec::new();
        let mut rest = superblock.system_chunks.as_slice();
        while !rest.is_empty() {
            let key = Key::at(rest, 0);
            let item = rest.get(Key::LENGTH..).unwrap_or_default();
            let stripes = usize::from(u16_at(item, 44));
            let whole = stripes.saturating_mul(STRIPE).saturating_add(ITEM);
            let Some((item, later)) = item.split_at_checked(whole) else {
                return Err(Trouble::damaged("the superblock's array of chunks is cut off"));
            };
            let chunk = Chunk::of_item(superblock, key, item)?;
            if chunk.kind & SYSTEM == 0 {
                return Err(Trouble::damaged("the superblock has a chunk that is not its own"));
            }
            chunks.push(chunk);
            rest = later;
        }
        chunks.sort_by_key(|chunk| chunk.logical);
        Self::in_order(chunks)
    }

    /// Of chunks in the order of their logical addresses; two that overlap are damage.
    pub(super) fn in_order(chunks: Vec<Chunk>) -> Result<Self, Trouble> {
        let mut behind = 0;
        for chunk in &chunks {
            if chunk.logical < behind {
                return Err(Trouble::damaged(format!("two chunks have {}", chunk.logical)));
            }
            behind = chunk.end();
        }
        Ok(Self(chunks.into()))
    }

    pub(super) fn all(&self) -> &[Chunk] {
        &self.0
    }

    /// The number of the chunk that holds all of a range, and the chunk.
    pub(super) fn find(&self, logical: u64, length: u64) -> Option<(usize, &Chunk)> {
        let end = logical.checked_add(length)?;
        let number = self.0.partition_point(|chunk| chunk.end() <= logical);
        let chunk = self.0.get(number)?;
        (chunk.logical <= logical && end <= chunk.end()).then_some((number, chunk))
    }

    /// Where a range lies on the device: one place or two. `None` when no chunk holds all of it.
    pub(super) fn places_of(&self, logical: u64, length: u64) -> Option<Vec<u64>> {
        let (_, chunk) = self.find(logical, length)?;
        let within = logical.saturating_sub(chunk.logical);
        Some(chunk.places.iter().flatten().map(|place| place.saturating_add(within)).collect())
    }

    /// Chunks by their places on the device, in the order of these.
    pub(super) fn places(&self) -> Vec<(u64, &Chunk)> {
        let each = self
            .0
            .iter()
            .flat_map(|chunk| chunk.places.iter().flatten().map(move |place| (*place, chunk)));
        let mut places: Vec<(u64, &Chunk)> = each.collect();
        places.sort_by_key(|(place, _)| *place);
        places
    }

    /// The superblock and the chunk tree must agree.
    pub(super) fn must_include(&self, others: &Self) -> Result<(), Trouble> {
        let includes = |other: &Chunk| {
            self.find(other.logical, other.length).is_some_and(|(_, chunk)| chunk == other)
        };
        match others.0.iter().find(|other| !includes(other)) {
            None => Ok(()),
            Some(other) => Err(Trouble::damaged(format!(
                "the superblock's chunk at {} is not the chunk tree's",
                other.logical
            ))),
        }
    }
}
