//! Extents: which logical addresses are in use.

use super::chunks::{Chunks, USES};
use super::names::{Key, Root};
use super::tree::Reader;
use crate::bytes::u64_at;
use crate::{FreeMap, FreeMapBuilder, Trouble};

/// Types of items: an extent with its length, a node with its level, and who refers to them.
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const REFERENCES: [u8; 5] = [172, 176, 178, 182, 184];
const BLOCK_GROUP_ITEM: u8 = 192;

/// Bytes of an extent item, and of a block group's.
const EXTENT: usize = 24;
const BLOCK_GROUP: usize = 24;

/// The logical addresses that chunks have and no extent takes. `block_groups` is the tree that block groups
/// are in, where that is not the one of the extents.
pub(super) fn free(
    reader: &mut Reader<'_>,
    extents: &Root,
    block_groups: Option<&Root>,
) -> Result<FreeMap, Trouble> {
    let (sector, node) = (reader.superblock().sector_size, reader.superblock().node_size);
    let chunks = reader.chunks().clone();
    let mut space = Space::new(&chunks, sector);
    let all = Key::LEAST..=Key::MOST;
    reader.walk(extents, all.clone(), &mut |key, item| match key.1 {
        EXTENT_ITEM if item.len() < EXTENT => space.damaged(key.0, "is cut off"),
        EXTENT_ITEM => space.extent(key.0, key.2),
        METADATA_ITEM => space.extent(key.0, node),
        BLOCK_GROUP_ITEM if block_groups.is_none() => space.block_group(key, item),
        kind if REFERENCES.contains(&kind) => Ok(()),
        kind => Err(Trouble::not_known(format!("its extent tree has items of type {kind}"))),
    })?;
    if let Some(tree) = block_groups {
        reader.walk(tree, all, &mut |key, item| match key.1 {
            BLOCK_GROUP_ITEM => space.block_group(key, item),
            kind => {
                Err(Trouble::not_known(format!("its block group tree has items of type {kind}")))
            }
        })?;
    }
    space.finish(reader.superblock().bytes_used)
}

/// Extents and block groups, as they come.
struct Space<'a> {
    chunks: &'a Chunks,
    sector: u64,
    free: FreeMapBuilder,
    /// The chunk that the last extent lies in, and where it ends.
    chunk: usize,
    behind: u64,
    /// For each chunk, bytes that extents take, and that its block group says are taken.
    used: Vec<u64>,
    groups: Vec<Option<u64>>,
}

impl<'a> Space<'a> {
    fn new(chunks: &'a Chunks, sector: u64) -> Self {
        let count = chunks.all().len();
        Self {
            chunks,
            sector,
            free: FreeMapBuilder::new(u64::MAX),
            chunk: 0,
            behind: chunks.all().first().map_or(0, |chunk| chunk.logical),
            used: vec![0; count],
            groups: vec![None; count],
        }
    }

    fn damaged(&self, at: u64, what: &str) -> Result<(), Trouble> {
        Err(Trouble::damaged(format!("the extent at {at} {what}")))
    }

    fn extent(&mut self, start: u64, length: u64) -> Result<(), Trouble> {
        let aligned = |bytes: u64| bytes.is_multiple_of(self.sector);
        if length == 0 || !aligned(start) || !aligned(length) {
            return self.damaged(start, &format!("of {length} bytes is no sectors"));
        }
        let Some((chunk, _)) = self.chunks.find(start, length) else {
            return self.damaged(start, &format!("of {length} bytes lies in no chunk"));
        };
        while self.chunk < chunk {
            self.close_chunk()?;
        }
        if start < self.behind {
            return self.damaged(start, &format!("begins before {}", self.behind));
        }
        self.free.add(self.behind..start)?;
        self.behind = start.saturating_add(length);
        if let Some(used) = self.used.get_mut(chunk) {
            *used = used.saturating_add(length);
        }
        Ok(())
    }

    /// The rest of the chunk is free; on to the next.
    fn close_chunk(&mut self) -> Result<(), Trouble> {
        let end = self.chunks.all().get(self.chunk).map_or(self.behind, |chunk| chunk.end());
        self.free.add(self.behind..end)?;
        self.chunk = self.chunk.saturating_add(1);
        self.behind = self.chunks.all().get(self.chunk).map_or(end, |chunk| chunk.logical);
        Ok(())
    }

    fn block_group(&mut self, key: Key, item: &[u8]) -> Result<(), Trouble> {
        let of_chunk = self.chunks.find(key.0, key.2).filter(|(_, chunk)| {
            chunk.logical == key.0
                && chunk.length == key.2
                && chunk.kind & USES == u64_at(item, 16) & USES
        });
        let group = of_chunk.and_then(|(number, _)| self.groups.get_mut(number));
        match group {
            Some(group) if item.len() >= BLOCK_GROUP => *group = Some(u64_at(item, 0)),
            _ => {
                return Err(Trouble::damaged(format!("the block group at {} has no chunk", key.0)));
            }
        }
        Ok(())
    }

    fn finish(mut self, total: u64) -> Result<FreeMap, Trouble> {
        while self.chunk < self.chunks.all().len() {
            self.close_chunk()?;
        }
        for ((chunk, used), group) in self.chunks.all().iter().zip(&self.used).zip(&self.groups) {
            let at = chunk.logical;
            match group {
                None => {
                    return Err(Trouble::damaged(format!("the chunk at {at} has no block group")));
                }
                Some(said) if said != used => {
                    return Err(Trouble::damaged(format!(
                        "the block group at {at} says that {said} bytes are in use, its extents {used}"
                    )));
                }
                Some(_) => {}
            }
        }
        let used = self.used.iter().fold(0u64, |sum, used| sum.saturating_add(*used));
        if used != total {
            return Err(Trouble::damaged(format!(
                "the superblock says that {total} bytes are in use, the extents {used}"
            )));
        }
        Ok(self.free.finish())
    }
}
