//! The two ends of a session: the first change of all, and the clean close.
//!
//! # The first change
//! Before anything else in the file changes, a header with a new FileWriteGuid and, since the guest
//! is about to change what it sees, a new DataWriteGuid is made durable (MS-VHDX 2.2.2.1). An image
//! that is opened for writing and never written keeps its identity; so does one of which only the file's
//! own metadata changes, such as the path to its parent.
//!
//! This is also when the table is read once as a whole, to learn which space is free. A table in
//! which two blocks claim the same space is refused here: writing one would change the other. So is one
//! with a block behind the end of the file: as soon as the file grew, what is lost would read as zeros.
//!
//! # The close
//! Everything logged is written in place and synced; only then a header without a LogGuid, synced;
//! then its second copy together with the cut of unused space at the end. A file is never cut while
//! its header names a log: entries may speak of the longer file.

use std::sync::atomic::Ordering;

use crate::defect::Defect;
use crate::format::bat::SECTOR_BITMAP_BLOCK;
use crate::format::{Guid, HEADER_SECTION_LENGTH};
use crate::image::Image;
use crate::log::LogWriter;
use crate::map::{Contents, EntryRules, Space, SpaceMap, walk};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::geometry::{BatSlot, DiskType};
use crate::{Error, Result};

use super::{CLOSED, IDLE, RUNNING, State, Writer};

/// What a change means for the disk's DataWriteGuid, by which children know their parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The guest's view does not change.
    Keep,
    /// It does: the session gives the disk a new one, once.
    New,
    /// It does, and the disk's children have been told this one.
    Set(Guid),
}

impl Image {
    /// Makes sure that the session's header is stable and the file's space is known.
    pub(super) fn begin_session(&self, writer: &Writer, identity: Identity) -> Result<()> {
        if writer.has_begun(identity) {
            return Ok(());
        }
        let mut log = writer.log();
        writer.require_usable()?;
        if writer.has_begun(identity) {
            return Ok(());
        }
        if writer.status.load(Ordering::Acquire) == IDLE {
            self.survey(&mut writer.state())?;
        }
        let written = self.write_session_header(writer, &mut log, identity);
        written.map_err(|error| writer.poison(error))?;
        if identity != Identity::Keep {
            writer.identified.store(true, Ordering::Release);
        }
        writer.status.store(RUNNING, Ordering::Release);
        Ok(())
    }

    fn write_session_header(
        &self,
        writer: &Writer,
        log: &mut LogWriter,
        identity: Identity,
    ) -> Result<()> {
        let (file, data) = (writer.guids.guid(), writer.guids.guid());
        let fresh = writer.status.load(Ordering::Acquire) == IDLE && !writer.replayed;
        let storage = &*writer.file;
        // Besides this one, its copy, and the three of a close.
        log.headers().require_room(5)?;
        log.headers().put(storage, |header| {
            if fresh {
                header.file_write_guid = file;
            }
            match identity {
                Identity::Keep => {}
                Identity::New => header.data_write_guid = data,
                Identity::Set(guid) => header.data_write_guid = guid,
            }
        })?;
        writer.sync(log)?;
        log.headers().put_second(storage)
    }

    /// Learns anew which space is free, after the table has changed as a whole. Everything changed must
    /// be in place.
    pub(super) fn survey_again(&self) -> Result<()> {
        let writer = self.writer()?;
        let mut log = writer.log();
        // Holes count as proven: they have to be durable.
        writer.sync(&mut log).map_err(|error| writer.poison(error))?;
        let mut state = writer.state();
        state.retired.clear();
        state.dropped.clear();
        self.survey(&mut state)
    }

    /// Learns from the whole table which space is free.
    fn survey(&self, state: &mut State) -> Result<()> {
        let length = self.storage.length()?;
        let mut owned = SpaceMap::new(length);
        owned.claim(0, HEADER_SECTION_LENGTH);
        let mut highest = HEADER_SECTION_LENGTH;
        let mut total = HEADER_SECTION_LENGTH;
        let mut claim = |offset: u64, length: u64| {
            highest = highest.max(offset.saturating_add(length));
            total = total.saturating_add(length);
            owned.claim(offset, length)
        };
        if let Some(log) = self.headers.log_place() {
            claim(log.offset, u64::from(log.length));
        }
        for region in self.regions.all() {
            claim(region.offset, u64::from(region.length));
        }
        for held in &state.held {
            claim(held.start, held.end.saturating_sub(held.start));
        }
        let block = u64::from(self.geometry.block_size());
        // The file may have grown since it was opened.
        let rules = EntryRules { file_size: length, ..self.rules };
        let mut placed = 0u64;
        let entries = self.geometry.bat_entries();
        walk(&*self.storage, rules.bat_offset, entries, &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let (place, length) = match self.geometry.slot(index) {
                    BatSlot::Payload(number) => {
                        rules.require_inside(number, raw)?;
                        (rules.owned(raw), block)
                    }
                    BatSlot::Bitmap(chunk) if self.geometry.is_differencing() => {
                        (rules.bitmap(chunk, raw)?, SECTOR_BITMAP_BLOCK)
                    }
                    // Nobody reads it; living files have junk there.
                    BatSlot::Bitmap(_) | BatSlot::Padding => continue,
                };
                let Some(place) = place else { continue };
                placed = placed.saturating_add(1);
                if let Some(at) = claim(place, length) {
                    return Err(Defect::BlockOverlap {
                        at: rules.at(index),
                        what: format!("BAT entry {index}"),
                        file_offset: at,
                        with: "space that something else takes".to_owned(),
                    }
                    .into());
                }
            }
            Ok(())
        })?;
        let mut space = Space::new(length, highest, block);
        for gap in owned.gaps() {
            self.release_gap(&mut space, gap)?;
        }
        state.space = space;
        let bat = self.regions.bat();
        state.bat = bat.offset..bat.end();
        self.writer()?.length.store(length, Ordering::Release);
        state.unplaced = self.geometry.blocks().saturating_sub(placed);
        state.least = match self.geometry.disk_type() {
            DiskType::Fixed => total.saturating_add(state.unplaced.saturating_mul(block)),
            _ => 0,
        };
        Ok(())
    }

    /// A gap, divided into what the file system says are holes and the rest. What we read of the file
    /// has been synced, so that the holes are as durable as everything else.
    fn release_gap(&self, space: &mut Space, gap: std::ops::Range<u64>) -> Result<()> {
        // The file may end within its last mebibyte.
        let gap = gap.start..crate::format::mib_floor(gap.end.min(space.length()));
        // Several runs may share a mebibyte: each is released once.
        let mut done = gap.start;
        for run in DataRuns::new(&*self.storage, gap.clone()) {
            let run = run.map_err(|e| Error::io("cannot map the file's holes", gap.start, e))?;
            let (range, contents) = if run.data {
                // Data that shares a mebibyte with a hole spoils it.
                let end = crate::format::mib_ceil(run.range.end).unwrap_or(gap.end);
                (crate::format::mib_floor(run.range.start)..end.min(gap.end), Contents::Unknown)
            } else {
                let end = crate::format::mib_floor(run.range.end);
                let start = crate::format::mib_ceil(run.range.start).unwrap_or(end);
                (start..end, Contents::ZeroAfter(0))
            };
            let start = range.start.max(done);
            if start < range.end {
                space.release(start..range.end, contents);
                done = range.end;
            }
        }
        Ok(())
    }

    /// Closes the disk cleanly: everything written is durable, the log is retired, and free space at
    /// the end of the file is given back. Afterwards the image can still be read. A second close does
    /// nothing.
    ///
    /// An image that is dropped without this keeps its log; whoever opens it next replays it.
    ///
    /// # Errors
    /// The image is open for reading or poisoned; writing fails. Then the file is as after a crash:
    /// nothing that was flushed is lost.
    pub fn close(&self) -> Result<()> {
        self.writer()?.close()
    }
}

impl Writer {
    /// Whether the session's header allows a change of this kind.
    fn has_begun(&self, identity: Identity) -> bool {
        let identified = match identity {
            Identity::Keep => true,
            Identity::New => self.identified.load(Ordering::Acquire),
            // Rare, and never on the way of a guest's write.
            Identity::Set(_) => false,
        };
        identified && self.status.load(Ordering::Acquire) == RUNNING
    }

    fn close(&self) -> Result<()> {
        let mut log = self.log();
        // Under the lock of the log nobody else begins, ends or poisons a session.
        match self.status.load(Ordering::Acquire) {
            CLOSED => return Ok(()),
            RUNNING => {}
            IDLE => {
                self.status.store(CLOSED, Ordering::Release);
                return Ok(());
            }
            _ => return Err(self.poisoned()),
        }
        // Those that come from now on find the image closed; those at work are waited for.
        self.status.store(CLOSED, Ordering::Release);
        self.wait_for_gates();
        self.finish(&mut log).map_err(|error| self.poison(error))
    }

    fn finish(&self, log: &mut LogWriter) -> Result<()> {
        let storage = &*self.file;
        self.commit_all(log)?;
        if log.is_live() {
            self.sectors.apply()?;
            self.sync(log)?;
            log.retire(storage)?;
            self.sync(log)?;
            log.headers().put_second(storage)?;
            // No entry writes to it any more.
            let generation = self.pins.generation();
            let mut state = self.state();
            let held = std::mem::take(&mut state.held);
            state.retired.extend(held.into_iter().map(|range| (generation, range)));
        }
        self.reap()?;
        self.cut();
        self.sync(log)
    }

    /// Gives unused space at the end of the file back. The header must name no log.
    fn cut(&self) {
        let mut state = self.state();
        let cut = state.space.cut_length().max(state.least);
        if cut < state.space.length() {
            match self.file.set_len(cut) {
                Ok(()) => {
                    state.space.truncated(cut);
                    self.length.store(cut, Ordering::Release);
                }
                // A block device, for one, cannot be cut. Nothing is lost but the space.
                Err(error) => tracing::warn!(%error, "free space at the end was not given back"),
            }
        }
    }
}
