//! Giving space back: blocks lose their places, others move into the gaps, the end is cut off.
//!
//! # Nothing new can go wrong
//! Every change here is one that guests cause, too, and takes the same way: an entry of the table changes
//! in memory, a commit logs it, and the space that was given up goes to others only when the entry that
//! says so is stable. So a crash at any moment leaves a whole image in which a part of the work is done,
//! and the next run goes on with the rest. Three things are particular:
//!
//! * **A block that moves** has its bytes copied, made durable, and only then its entry changed: until that
//!   entry is stable the old place is its place. The copy must not meet writes to the old place, hence
//!   `&mut`: nobody else has the image.
//! * **A sector bitmap** is metadata: entries of the present epoch may write to its place, so what it gives
//!   up waits for the end of the epoch (rule F11).
//! * **A region** (the table of a disk that was enlarged lies where the file ended then) moves as when a
//!   disk grows: copied, durable, and then one entry with both region tables.
//! * **The file never grows** for what is only moved; what is free is not cleared ahead of need.
//!
//! The end of the file is cut by the close, behind a header that names no log.

use std::ops::Range;

use crate::Error;
use crate::Result;
use crate::format::bat::{BITMAP_PRESENT, PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::image::Image;
use crate::map::{Contents, Place};
use crate::storage::Storage;
use crate::view::regions::Region;

use super::blocks::Publication;
use super::guest::COMMIT_AT;
use super::payload::zero;
use super::resize::for_each_data;
use super::session::Identity;
use super::{State, Writer};

/// So many spaces given up are worth a commit.
const COMMIT_AT_DROPPED: usize = 64;

/// Places of sector bitmaps that are given up with the next commit.
#[derive(Debug, Default)]
pub(crate) struct GivenUp(Vec<Range<u64>>);

impl Image {
    /// Makes everything durable and puts it in place: the file's own table is the newest.
    pub(crate) fn settle(&self) -> Result<()> {
        self.flush()?;
        self.writer()?.sectors.apply()
    }

    /// Begins a session that gives space back. `visible`: bytes that the guest may read will change, so the
    /// disk gets another identity towards its children.
    pub(crate) fn begin_compaction(&mut self, visible: bool) -> Result<()> {
        let writer = self.writer()?;
        writer.require_usable()?;
        self.begin_session(writer, if visible { Identity::New } else { Identity::Keep })?;
        writer.state().never_grows = true;
        Ok(())
    }

    /// Takes a block's place away and gives it another state, one without contents.
    pub(crate) fn release_block(&mut self, block: u64, state: PayloadState) -> Result<()> {
        let writer = self.writer()?;
        let _gate = writer.gate(block)?;
        let dropped = self.kept_place(block)?;
        let change = Publication { dropped, ..Publication::default() };
        self.publish(writer, block, RawEntry::new(state.to_raw(), 0), change)
    }

    /// Takes the sector bitmap of a chunk away, in which no block is partially present.
    pub(crate) fn release_bitmap(&mut self, chunk: u64, given_up: &mut GivenUp) -> Result<()> {
        let Some(at) = self.sector_bitmap(chunk)? else { return Ok(()) };
        let writer = self.writer()?;
        let _state = writer.state();
        writer.require_usable()?;
        self.bat.set(self.geometry.bitmap_index(chunk), RawEntry::default())?;
        given_up.0.push(at..at.saturating_add(SECTOR_BITMAP_BLOCK));
        Ok(())
    }

    /// Moves a block that has a place to the lowest free space before it. `false` when there is none.
    pub(crate) fn move_block(&mut self, block: u64, buf: &mut [u8]) -> Result<bool> {
        let writer = self.writer()?;
        let _gate = writer.gate(block)?;
        let Some(old) = self.kept_place(block)? else { return Ok(false) };
        let Some(place) = writer.room_below(old.start, None)? else { return Ok(false) };
        let raw = self.bat.entry(self.geometry.payload_index(block))?;
        // The copy is durable before the entry: what lies in the new place until then is nobody's.
        let change =
            Publication { place: Some(place), dropped: Some(old.clone()), covers_parent: true };
        let moved = self.copy_within(writer, old, place, buf).and_then(|()| {
            self.publish(writer, block, RawEntry::new(raw.state(), place.offset), change)
        });
        if moved.is_err() {
            writer.give_back(place);
        }
        moved.map(|()| true)
    }

    /// Likewise the sector bitmap of a chunk.
    pub(crate) fn move_bitmap(
        &mut self,
        chunk: u64,
        given_up: &mut GivenUp,
        buf: &mut [u8],
    ) -> Result<bool> {
        let Some(at) = self.sector_bitmap(chunk)? else { return Ok(false) };
        // The file's bytes have to be the newest, and no older image may follow them.
        self.commit_compaction(given_up, true)?;
        let writer = self.writer()?;
        writer.sectors.apply()?;
        let old = at..at.saturating_add(SECTOR_BITMAP_BLOCK);
        let Some(place) = writer.room_below(at, Some(SECTOR_BITMAP_BLOCK))? else {
            return Ok(false);
        };
        let copied = self.copy_within(writer, old.clone(), place, buf);
        let moved = copied.and_then(|()| {
            let mut state = writer.state();
            writer.require_usable()?;
            let raw = RawEntry::new(BITMAP_PRESENT, place.offset);
            self.bat.set(self.geometry.bitmap_index(chunk), raw)?;
            state.payload_first = true;
            state.expose(place);
            Ok(())
        });
        if moved.is_err() {
            writer.give_back(place);
        }
        moved?;
        given_up.0.push(old);
        Ok(true)
    }

    /// Moves a region, the BAT or the metadata, to the lowest free space before it, by one entry that
    /// carries both region tables. `false` when there is none.
    pub(crate) fn move_region(
        &mut self,
        region: Region,
        given_up: &mut GivenUp,
        buf: &mut [u8],
    ) -> Result<bool> {
        // The file's bytes have to be the newest, and no older image may follow them.
        self.settle_compaction(given_up)?;
        let writer = self.writer()?;
        let length = u64::from(region.length);
        let Some(place) = writer.room_below(region.offset, Some(length))? else {
            return Ok(false);
        };
        let old = region.offset..region.end();
        if let Err(error) = self.copy_within(writer, old.clone(), place, buf) {
            writer.give_back(place);
            return Err(error);
        }
        {
            let mut state = writer.state();
            state.payload_first = true;
            state.expose(place);
        }
        let moved = Region { offset: place.offset, ..region };
        self.decide(writer, || self.stage_region(writer, moved))?;
        // Entries of this epoch may write to the old place.
        writer.state().held.push(old);
        if let Err(error) = self.reload() {
            return Err(self.writer()?.poison(error));
        }
        let bat = self.regions.bat();
        self.writer()?.state().bat = bat.offset..bat.end();
        self.settle_compaction(given_up)?;
        Ok(true)
    }

    /// Makes what was done so far durable when that is much, or `now`. Space that was given up can be used
    /// afterwards.
    pub(crate) fn commit_compaction(&mut self, given_up: &mut GivenUp, now: bool) -> Result<()> {
        let writer = self.writer()?;
        let dropped = writer.state().dropped.len();
        if !now && writer.sectors.unlogged() < COMMIT_AT && dropped < COMMIT_AT_DROPPED {
            return Ok(());
        }
        writer.flush()?;
        writer.state().held.append(&mut given_up.0);
        Ok(())
    }

    /// The last step before the close: what gaps still hold goes back to the host.
    pub(crate) fn finish_compaction(&mut self) -> Result<()> {
        self.writer()?.clear_gaps();
        Ok(())
    }

    /// Everything done is durable and in place, and the space of bitmaps that were given up is free, too.
    pub(crate) fn settle_compaction(&mut self, given_up: &mut GivenUp) -> Result<()> {
        self.commit_compaction(given_up, true)?;
        let writer = self.writer()?;
        writer.sectors.apply()?;
        writer.end_epoch()
    }

    fn copy_within(
        &self,
        writer: &Writer,
        old: Range<u64>,
        place: Place,
        buf: &mut [u8],
    ) -> Result<()> {
        let start = old.start;
        let to_place = |at: u64| place.offset.saturating_add(at.saturating_sub(start));
        // What is a hole there is cleared here; everything else is written over.
        let mut done = place.offset;
        for_each_data(&*self.storage, old, buf, &mut |at, bytes| {
            let to = to_place(at);
            if done < to && !place.zero {
                zero(writer, done..to, true)?;
            }
            let written = writer.file.write_at(to, bytes);
            written.map_err(|e| Error::io("cannot move a block", to, e))?;
            done = to.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            Ok(())
        })?;
        if done < place.end() && !place.zero {
            zero(writer, done..place.end(), true)?;
        }
        Ok(())
    }
}

impl Writer {
    /// Gives the host what the gaps that remain hold, but for those at the end, which is cut off.
    fn clear_gaps(&self) {
        let mut state = self.state();
        let end = state.space.cut_length();
        let mut cleared = Vec::new();
        while let Some(range) = state.space.take_unknown(end) {
            let below = range.start < end;
            // Nothing is lost but the space.
            let punched = below && self.file.punch(range.clone()).is_ok();
            let contents = if punched { state.space.punched() } else { Contents::Unknown };
            cleared.push((range, contents));
            if !below {
                break;
            }
        }
        for (range, contents) in cleared {
            state.space.release(range, contents);
        }
    }

    /// The lowest free space that begins before a file offset: for a payload block, or of a length.
    fn room_below(&self, limit: u64, length: Option<u64>) -> Result<Option<Place>> {
        self.reap()?;
        let mut state = self.state();
        let found = take_below(&mut state, limit, length);
        if found.is_some() {
            return Ok(found);
        }
        state.space.coalesce();
        Ok(take_below(&mut state, limit, length))
    }
}

fn take_below(state: &mut State, limit: u64, length: Option<u64>) -> Option<Place> {
    match length {
        None => state.space.allocate_block_below(limit),
        Some(length) => state.space.allocate_below(length, limit),
    }
}
