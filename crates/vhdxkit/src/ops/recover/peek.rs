//! A look at the disk through a table whose sizes are not certain yet: do its contents make sense?

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use vhdxkit_volumes::{Disk, end_of_last, partitions, recognise};

use crate::format::bat::{RawEntry, SECTORS_PER_BITMAP};
use crate::format::limits::MAX_VIRTUAL_SIZE;
use crate::storage::{Storage, StorageExt};

use super::looks;

/// The disk, if blocks and sectors have these sizes.
pub(super) struct Peek {
    storage: Arc<dyn Storage>,
    places: BTreeMap<u64, u64>,
    block: u64,
    sector: u32,
}

impl Peek {
    pub(super) fn new(
        storage: &Arc<dyn Storage>,
        entries: &[(u64, RawEntry)],
        block: u32,
        sector: u32,
    ) -> Self {
        let mut peek = Self {
            storage: Arc::clone(storage),
            places: BTreeMap::new(),
            block: u64::from(block).max(1),
            sector,
        };
        let present = entries.iter().filter(|(_, raw)| looks::is_present(*raw));
        peek.places = present
            .filter_map(|(index, raw)| Some((peek.block_of_entry(*index)?, raw.file_offset())))
            .collect();
        peek
    }

    fn ratio(&self) -> u64 {
        let chunk = SECTORS_PER_BITMAP.saturating_mul(u64::from(self.sector));
        chunk.checked_div(self.block).unwrap_or(1).max(1)
    }

    /// The block that an entry of the table is for; `None` for a sector bitmap's.
    fn block_of_entry(&self, index: u64) -> Option<u64> {
        let period = self.ratio().saturating_add(1);
        let (chunk, within) = (index.checked_div(period)?, index.checked_rem(period)?);
        (within < self.ratio()).then(|| chunk.saturating_mul(self.ratio()).saturating_add(within))
    }

    /// The byte of the disk behind the block of an entry.
    pub(super) fn end_of_entry(&self, index: u64) -> u64 {
        let block =
            self.block_of_entry(index).or_else(|| self.block_of_entry(index.checked_sub(1)?));
        block.map_or(0, |block| block.saturating_add(1).saturating_mul(self.block))
    }

    /// Whether a partition of the disk holds a file system that is known.
    pub(super) fn shows_file_systems(&self) -> bool {
        let found = partitions(self).unwrap_or_default();
        found.iter().any(|partition| self.recognise(partition.range.clone()).is_some())
    }

    fn recognise(&self, range: Range<u64>) -> Option<u64> {
        let range = range.start..range.end.min(MAX_VIRTUAL_SIZE);
        let found = recognise(self, range.clone()).ok()??;
        // One that does not say how large it is ends with the place that it was given.
        (range.end != MAX_VIRTUAL_SIZE || found.end < MAX_VIRTUAL_SIZE).then_some(found.end)
    }

    /// How large the disk is, as its contents say, who says so, and whether that is exact.
    pub(super) fn size_on_disk(&self) -> Option<(u64, &'static str, bool)> {
        let sector = u64::from(self.sector);
        let mut gpt = [0; 40];
        self.read_at(sector, &mut gpt).ok()?;
        if gpt.starts_with(b"EFI PART") {
            let other = gpt.last_chunk::<8>().map(|raw| u64::from_le_bytes(*raw))?;
            let end = other.checked_add(1)?.checked_mul(sector)?;
            let why = "where its GPT has its second copy";
            return (end <= MAX_VIRTUAL_SIZE).then_some((end, why, true));
        }
        if let Some(end) = end_of_last(self).ok().flatten().filter(|end| *end <= MAX_VIRTUAL_SIZE) {
            return Some((end, "the end of its last partition (it may have been longer)", false));
        }
        let end = self.recognise(0..MAX_VIRTUAL_SIZE)?;
        (end > 0).then_some((
            end,
            "the end of the file system on it (it may have been longer)",
            false,
        ))
    }
}

impl Disk for Peek {
    fn size(&self) -> u64 {
        MAX_VIRTUAL_SIZE
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = at.checked_div(self.block).unwrap_or_default();
            let within = at.checked_rem(self.block).unwrap_or_default();
            let room = usize::try_from(self.block.saturating_sub(within)).unwrap_or(usize::MAX);
            let length = room.min(rest.len());
            let Some((now, later)) = rest.split_at_mut_checked(length) else { break };
            if let Some(place) = self.places.get(&block) {
                let read = self.storage.read_zero_filled(place.saturating_add(within), now);
                read.map_err(io::Error::other)?;
            }
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            rest = later;
        }
        Ok(())
    }
}
