//! One block's mapping at a time: the gate, room for a block, and publishing where it lies.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::format::LOG_SECTOR_LEN;
use crate::format::bat::RawEntry;
use crate::map::Place;
use crate::storage::Storage;
use crate::{Error, Result};

use super::{State, Writer};
use crate::image::Image;

/// While this lives, nobody else changes the mapping of the block.
pub(super) struct Gate<'a> {
    writer: &'a Writer,
    block: u64,
}

impl Gate<'_> {
    pub(super) fn block(&self) -> u64 {
        self.block
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.writer.state().busy.remove(&self.block);
        self.writer.opened.notify_all();
    }
}

/// What a change of a block's mapping means for the file.
#[derive(Debug, Default)]
pub(super) struct Publication {
    /// Where the block's bytes lie from now on.
    pub(super) place: Option<Place>,
    /// Space that it gives up.
    pub(super) dropped: Option<Range<u64>>,
    /// Until now the block read as other bytes than zeros: its parent's, or its own in another place.
    pub(super) covers_parent: bool,
}

impl State {
    /// Space comes into use with the next commit.
    pub(super) fn expose(&mut self, place: Place) {
        self.payload_first |= !place.proven;
        self.exposed = self.exposed.max(place.end());
        self.space.used(place.end());
    }
}

impl Writer {
    /// Waits until nobody else changes the mapping of the block.
    pub(super) fn gate(&self, block: u64) -> Result<Gate<'_>> {
        let mut state = self.state();
        loop {
            self.require_usable()?;
            if state.busy.insert(block) {
                return Ok(Gate { writer: self, block });
            }
            state = self.opened.wait(state).unwrap_or_else(|broken| self.broken(broken));
        }
    }

    /// Waits until no block's mapping is being changed.
    pub(super) fn wait_for_gates(&self) {
        let mut state = self.state();
        while !state.busy.is_empty() {
            state = self.opened.wait(state).unwrap_or_else(|broken| self.broken(broken));
        }
    }

    /// Room for a payload block of `length` bytes.
    pub(super) fn allocate(&self, length: u64) -> Result<Place> {
        self.reap()?;
        let mut state = self.state();
        if let Some(place) = state.space.allocate_block() {
            return Ok(place);
        }
        state.space.coalesce();
        if let Some(place) = state.space.allocate_block() {
            return Ok(place);
        }
        self.grow(&mut state, length)?;
        let place = state.space.allocate_block();
        place.ok_or_else(|| Error::limit("the file cannot grow any more"))
    }

    /// Room that reads as zeros, in one piece, for metadata. It comes into use with
    /// [`State::expose`].
    pub(super) fn room(&self, length: u64) -> Result<Place> {
        self.reap()?;
        let mut state = self.state();
        let place = match state.space.allocate(length) {
            Some(place) => place,
            None => {
                self.grow_by(&mut state, length)?;
                let place = state.space.allocate(length);
                place.ok_or_else(|| Error::limit("the file cannot grow any more"))?
            }
        };
        drop(state);
        if !place.zero {
            let cleared = self.file.punch(place.offset..place.end());
            if let Err(error) = cleared {
                self.give_back(place);
                return Err(Error::io("cannot clear new space", place.offset, error));
            }
        }
        Ok(place)
    }

    /// Extends the file by a step, or, where that is more than it can have, by what is needed.
    pub(super) fn grow(&self, state: &mut State, need: u64) -> Result<()> {
        let wanted = state.unplaced.saturating_mul(need).max(need);
        if let Some(length) = state.space.step_ahead(wanted)
            && self.file.set_len(length).is_ok()
        {
            self.grown(state, length);
            return Ok(());
        }
        self.grow_by(state, need)
    }

    /// Extends the file so that `need` bytes are free at its end.
    pub(super) fn grow_by(&self, state: &mut State, need: u64) -> Result<()> {
        let length = state.space.length_for(need);
        let length = length.ok_or_else(|| Error::limit("the file would be longer than 256 TiB"))?;
        self.file.set_len(length).map_err(|e| Error::io("cannot extend the file", length, e))?;
        self.grown(state, length);
        Ok(())
    }

    /// The file has been extended.
    pub(super) fn grown(&self, state: &mut State, length: u64) {
        state.space.grown(length);
        self.length.store(length, Ordering::Release);
    }

    /// Hands out again what nobody can be using any more. Its space goes back to the host first.
    pub(super) fn reap(&self) -> Result<()> {
        let Some(free) = self.pins.advance() else { return Ok(()) };
        let mut state = self.state();
        let mut ready = Vec::new();
        while let Some((generation, _)) = state.retired.front()
            && *generation <= free
            && let Some((_, range)) = state.retired.pop_front()
        {
            ready.push(range);
        }
        // Neighbours go back in one piece.
        ready.sort_unstable_by_key(|range| range.start);
        ready.dedup_by(|next, range| {
            let joins = range.end == next.start;
            if joins {
                range.end = next.end;
            }
            joins
        });
        for range in ready {
            if state.never_grows {
                // It is filled again or cut off soon; where nothing can be punched, zeros would be written.
                state.space.release(range, crate::map::Contents::Unknown);
                continue;
            }
            // Holding the lock: whoever needs room waits for this rather than growing the file.
            let contents = match self.file.punch(range.clone()) {
                Ok(()) => state.space.punched(),
                Err(_) => crate::map::Contents::Unknown,
            };
            state.space.release(range, contents);
        }
        Ok(())
    }

    /// What was just written outside of the log has to be durable before the next entry.
    pub(super) fn make_payload_first(&self) {
        self.state().payload_first = true;
    }

    /// Changes a metadata sector in memory, if it is to be another one.
    pub(super) fn change_to(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut now = [0; LOG_SECTOR_LEN];
        self.sectors.read(offset, &mut now)?;
        if now == bytes {
            return Ok(());
        }
        self.sectors.change(offset, |sector| {
            for (to, from) in sector.iter_mut().zip(bytes) {
                *to = *from;
            }
        })
    }

    /// Changes bytes of metadata in memory, across sectors where they lie so. The caller makes them one
    /// commit.
    pub(super) fn put_bytes(&self, at: u64, bytes: &[u8]) -> Result<()> {
        const SECTOR: u64 = 4096;
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let within = usize::try_from(at % SECTOR).unwrap_or_default();
            let room = LOG_SECTOR_LEN.saturating_sub(within);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.sectors.change(at.saturating_sub(at % SECTOR), |bytes| {
                for (to, from) in bytes.iter_mut().skip(within).zip(now) {
                    *to = *from;
                }
            })?;
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            rest = later;
        }
        Ok(())
    }

    /// Space that was handed out and not used after all.
    pub(super) fn give_back(&self, place: Place) {
        self.state().space.give_back(place);
    }
}

impl Image {
    /// Changes where a block lies. The caller holds the block's gate, and every write that the new
    /// mapping stands for has returned.
    pub(super) fn publish(
        &self,
        writer: &Writer,
        block: u64,
        raw: RawEntry,
        change: Publication,
    ) -> Result<()> {
        let mut state = writer.state();
        writer.require_usable()?;
        self.bat.set(self.geometry.payload_index(block), raw)?;
        if let Some(place) = change.place {
            state.payload_first |= change.covers_parent;
            state.placed = state.placed.saturating_add(1);
            state.unplaced = state.unplaced.saturating_sub(1);
            state.expose(place);
        }
        if let Some(range) = change.dropped {
            state.dropped.push(range);
            writer.dropped.store(state.dropped.len(), Ordering::Relaxed);
            state.unplaced = state.unplaced.saturating_add(1);
        }
        Ok(())
    }
}
