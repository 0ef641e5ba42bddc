//! The ring the log entries lie in: reads that wrap from the last sector to the first.

use crate::format::LOG_SECTOR;
use crate::storage::{Storage, StorageExt};
use crate::view::headers::LogPlace;
use crate::{Error, Result};

/// The bytes of a log, addressed by log offset.
#[derive(Clone, Copy)]
pub(crate) struct Ring<'a> {
    storage: &'a dyn Storage,
    place: LogPlace,
}

impl<'a> Ring<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, place: LogPlace) -> Self {
        Self { storage, place }
    }

    pub(crate) fn place(&self) -> LogPlace {
        self.place
    }

    /// How many 4 KiB sectors the ring has.
    pub(crate) fn sectors(&self) -> u32 {
        self.place.length / LOG_SECTOR
    }

    /// Where the sector `count` sectors behind `sector` lies, wrapping.
    pub(crate) fn step(&self, sector: u32, count: u32) -> u32 {
        let sum = u64::from(sector).saturating_add(u64::from(count));
        let wrapped = sum.checked_rem(u64::from(self.sectors())).unwrap_or_default();
        u32::try_from(wrapped).unwrap_or_default()
    }

    /// The file offset of a sector.
    pub(crate) fn file_offset(&self, sector: u32) -> u64 {
        let within = u64::from(sector).saturating_mul(u64::from(LOG_SECTOR));
        self.place.offset.saturating_add(within)
    }

    /// Reads whole sectors from `sector` on, wrapping as often as needed. What the file does not
    /// hold reads as zeros, like the never-written rest of a log.
    pub(crate) fn read(&self, sector: u32, buf: &mut [u8]) -> Result<()> {
        let mut sector = sector;
        let mut rest = buf;
        while !rest.is_empty() {
            let until_end = self.sectors().saturating_sub(sector);
            let room = u64::from(until_end).saturating_mul(u64::from(LOG_SECTOR));
            let length = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest
                .split_at_mut_checked(length)
                .filter(|_| length > 0)
                .ok_or_else(|| Error::invalid("read outside of the log"))?;
            self.storage.read_zero_filled(self.file_offset(sector), now)?;
            rest = later;
            sector = 0;
        }
        Ok(())
    }
}
