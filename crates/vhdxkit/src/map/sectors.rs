//! Metadata sectors whose newest contents are not in their place in the file yet.
//!
//! A sector (4 KiB, the log's unit) goes through three stages. Changed in memory, it is *unlogged*: a
//! crash loses the change. A commit takes an image of it; once the log entry that carries the image
//! is stable the sector is *logged*: a crash keeps the change, the file's own place for it still
//! holds older bytes. Then it is *applied*: written in place, and forgotten here.
//!
//! Two rules keep this safe. In place goes only the image that the newest stable entry carries,
//! never the live bytes, which may already hold changes that no entry has. And a sector is forgotten
//! only when its live bytes are those in place, so that reading it back from the file cannot
//! resurrect older ones.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::LOG_SECTOR_LEN;
use crate::storage::{Storage, StorageExt};
use crate::{Error, Result};

/// The bytes of a metadata sector.
pub(crate) type Sector = [u8; LOG_SECTOR_LEN];

/// What an entry carries of a sector, with the sector's file offset.
pub(crate) type Image = (u64, Arc<Sector>);

/// The sectors of one open file.
pub(crate) struct Sectors {
    file: Arc<dyn Storage>,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    /// How many of them are unlogged.
    unlogged: AtomicUsize,
}

struct Waiting {
    live: Box<Sector>,
    /// `live` holds changes that no entry carries.
    unlogged: bool,
    /// What the newest stable entry carries, while that is not in place.
    logged: Option<Arc<Sector>>,
}

impl Sectors {
    pub(crate) fn new(file: Arc<dyn Storage>) -> Self {
        Self { file, waiting: Mutex::default(), unlogged: AtomicUsize::new(0) }
    }

    // Every change of the map is one step, so a panic elsewhere cannot leave it half changed.
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest contents of the sector at a file offset.
    pub(crate) fn read(&self, offset: u64, sector: &mut Sector) -> Result<()> {
        if let Some(waiting) = self.waiting().get(&offset) {
            *sector = *waiting.live;
            return Ok(());
        }
        self.file.read_zero_filled(offset, sector)?;
        Ok(())
    }

    /// Changes the sector at a file offset (a multiple of 4 KiB).
    ///
    /// Two changes must not run at once: the caller holds the lock of the mapping.
    pub(crate) fn change(&self, offset: u64, change: impl FnOnce(&mut Sector)) -> Result<()> {
        let mut live = Box::new([0; LOG_SECTOR_LEN]);
        self.read(offset, &mut live)?;
        change(&mut live);
        let mut waiting = self.waiting();
        let (known, logged) = match waiting.remove(&offset) {
            Some(old) => (old.unlogged, old.logged),
            None => (false, None),
        };
        waiting.insert(offset, Waiting { live, unlogged: true, logged });
        if !known {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How many sectors hold changes that no entry carries.
    pub(crate) fn unlogged(&self) -> usize {
        self.unlogged.load(Ordering::Relaxed)
    }

    /// How many sectors wait to be applied.
    pub(crate) fn logged(&self) -> usize {
        self.waiting().values().filter(|sector| sector.logged.is_some()).count()
    }

    /// Images of up to `most` unlogged sectors, for an entry. They count as carried from now on:
    /// when the entry does not become stable the whole file must not be written any more.
    ///
    /// Where there are more, those in the range `last` (the BAT) come after all others, and the highest of
    /// them first: an entry that makes a block partially present must not become stable before the block's
    /// bits, nor before the BAT's entry for their bitmap block, which follows those of its chunk.
    pub(crate) fn take_unlogged(&self, most: usize, last: &Range<u64>) -> Vec<Image> {
        let mut waiting = self.waiting();
        let unlogged = waiting.iter().filter(|(_, sector)| sector.unlogged);
        let mut offsets: Vec<u64> = unlogged.map(|(&offset, _)| offset).collect();
        if offsets.len() > most {
            offsets.sort_by_key(|offset| (last.contains(offset), Reverse(*offset)));
            offsets.truncate(most);
            offsets.sort_unstable();
        }
        let mut images = Vec::with_capacity(offsets.len());
        for offset in offsets {
            let Some(sector) = waiting.get_mut(&offset) else { continue };
            sector.unlogged = false;
            images.push((offset, Arc::new(*sector.live)));
        }
        self.unlogged.fetch_sub(images.len(), Ordering::Relaxed);
        images
    }

    /// The entry that carries these images is stable.
    pub(crate) fn now_logged(&self, images: Vec<Image>) {
        let mut waiting = self.waiting();
        for (offset, image) in images {
            if let Some(sector) = waiting.get_mut(&offset) {
                sector.logged = Some(image);
            }
        }
    }

    /// Writes every logged image in place. The writes become stable with a later sync; until then the
    /// log must keep the entries.
    ///
    /// # Errors
    /// Writing fails; what was not written stays here and can be tried again.
    pub(crate) fn apply(&self) -> Result<()> {
        let images: Vec<Image> = self
            .waiting()
            .iter()
            .filter_map(|(&offset, sector)| Some((offset, Arc::clone(sector.logged.as_ref()?))))
            .collect();
        for (offset, image) in images {
            self.file
                .write_at(offset, &*image)
                .map_err(|e| Error::io("cannot write a metadata sector", offset, e))?;
            let mut waiting = self.waiting();
            let Some(sector) = waiting.get_mut(&offset) else { continue };
            sector.logged = None;
            // Not logged and not unlogged: the live bytes are what was just written, unless an entry
            // that carries newer ones is under way.
            if !sector.unlogged && *sector.live == *image {
                waiting.remove(&offset);
            }
        }
        Ok(())
    }

    /// The first sector at or after a file offset whose newest bytes are not in the file.
    pub(crate) fn next_from(&self, offset: u64) -> Option<u64> {
        self.waiting().range(offset..).next().map(|(&offset, _)| offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn first_byte(storage: &dyn Storage) -> u8 {
        let mut byte = [0];
        storage.read_at(0, &mut byte).unwrap();
        byte[0]
    }

    fn live(sectors: &Sectors) -> u8 {
        let mut sector = [0; LOG_SECTOR_LEN];
        sectors.read(0, &mut sector).unwrap();
        sector[0]
    }

    /// C11: a lazy apply that wrote the live page would make an uncommitted allocation durable.
    #[test]
    fn in_place_goes_what_was_logged_not_what_is_live() {
        let file = Arc::new(MemoryStorage::new(vec![1; 8192]));
        let sectors = Sectors::new(file.clone());
        sectors.change(0, |sector| sector[0] = 2).unwrap();
        let images = sectors.take_unlogged(9, &(0..0));
        sectors.change(0, |sector| sector[0] = 3).unwrap();
        sectors.apply().unwrap();
        assert_eq!(first_byte(&*file), 1, "nothing is stable yet");
        sectors.now_logged(images);
        sectors.apply().unwrap();
        assert_eq!(first_byte(&*file), 2);
        assert_eq!((live(&sectors), sectors.unlogged()), (3, 1));
    }

    /// C11b: a page forgotten after it was logged but before it was in place comes back stale.
    #[test]
    fn a_sector_is_kept_until_its_newest_bytes_are_in_place() {
        let file = Arc::new(MemoryStorage::new(vec![1; 8192]));
        let sectors = Sectors::new(file.clone());
        sectors.change(0, |sector| sector[0] = 2).unwrap();
        let first = sectors.take_unlogged(9, &(0..0));
        sectors.now_logged(first);
        sectors.change(0, |sector| sector[0] = 3).unwrap();
        let second = sectors.take_unlogged(9, &(0..0));
        // The second entry is under way while the first image is written in place.
        sectors.apply().unwrap();
        assert_eq!((first_byte(&*file), live(&sectors)), (2, 3));
        sectors.now_logged(second);
        sectors.apply().unwrap();
        assert_eq!((first_byte(&*file), sectors.next_from(0)), (3, None));
    }

    #[test]
    fn a_snapshot_takes_no_more_than_fits_and_the_table_last() {
        let sectors = Sectors::new(Arc::new(MemoryStorage::new(vec![0; 65536])));
        for number in 0..10 {
            sectors.change(number * 4096, |sector| sector[0] = 1).unwrap();
        }
        // Two before the table, then the table's highest; in the entry they stand in order.
        let taken = sectors.take_unlogged(4, &(8192..40960));
        let offsets: Vec<u64> = taken.iter().map(|(offset, _)| offset / 4096).collect();
        assert_eq!(offsets, [0, 1, 8, 9]);
        assert_eq!(sectors.unlogged(), 6);
        let taken = sectors.take_unlogged(2, &(8192..40960));
        assert_eq!(taken.iter().map(|(offset, _)| offset / 4096).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(sectors.next_from(8192), Some(8192));
    }
}
