//! Placing log entries in the ring.

use vhdxkit::format::{Guid, MIB, mib_floor};

use crate::image::Image;
use crate::log::{Change, LogEntry, LogItem, PlacedEntry, Tail, Update, encode, entry_length};
use crate::plan::{Fill, Piece, Plan};

/// What is known while entries are added one after another.
pub(crate) struct Ring {
    offset: u64,
    length: u64,
    /// Where the next entry goes if it does not say so itself.
    next: u64,
    /// The file's length before the log allocated anything.
    flushed: u64,
    session: Guid,
    placed: Vec<PlacedEntry>,
}

impl Ring {
    pub(crate) fn new(image: &Image, plan: &Plan) -> Self {
        let session = if image.log_guid.is_zero() { image.session(1) } else { image.log_guid };
        Self {
            offset: plan.layout.log_offset,
            length: plan.layout.log_length,
            next: 0,
            flushed: mib_floor(plan.written_end),
            session,
            placed: Vec::new(),
        }
    }

    /// Adds everything the image has for its log.
    pub(crate) fn fill(mut self, image: &Image, plan: &mut Plan) {
        for item in &image.log {
            match item {
                LogItem::Raw { sector, bytes } => self.write(plan, sector * 4096, bytes),
                LogItem::Entry(entry) => self.add(plan, entry),
            }
        }
        plan.layout.log_entries = self.placed;
    }

    fn add(&mut self, plan: &mut Plan, entry: &LogEntry) {
        let bat_before = (!entry.is_whole()).then(|| plan.bat.clone());
        let updates = resolve(plan, &entry.changes);
        if entry.applied {
            for update in &updates {
                let (offset, length, fill) = match update {
                    Update::Data { file_offset, sector } => {
                        (*file_offset, 4096, Fill::Bytes(sector.to_vec()))
                    }
                    Update::Zero { file_offset, length } => {
                        (*file_offset, *length, Fill::Repeat(0, *length))
                    }
                };
                plan.written_end = plan.written_end.max(offset + length);
                plan.pieces.push(Piece { offset, fill });
            }
        }
        if let Some(bat) = bat_before.filter(|_| !entry.applied) {
            plan.bat = bat;
        }

        let placed = self.describe(plan, entry, updates);
        assert!(placed.length <= self.length, "the entry is longer than the log");
        let mut bytes = encode(&placed, &entry.patches);
        for (offset, xor) in &entry.corrupt {
            bytes[*offset] ^= xor;
        }
        if let Some(sectors) = entry.torn {
            bytes.truncate(usize::try_from(sectors * 4096).unwrap());
        }
        self.next = (placed.log_offset + placed.length) % self.length;
        self.write(plan, placed.log_offset, &bytes);
        self.placed.push(placed);
    }

    /// Settles the fields an entry leaves open.
    fn describe(&self, plan: &Plan, entry: &LogEntry, updates: Vec<Update>) -> PlacedEntry {
        let log_offset = entry.sector.map_or(self.next, |sector| sector * 4096);
        let guid = entry.guid.unwrap_or(self.session);
        let mut of_session = self.placed.iter().filter(|other| other.guid == guid);
        let first = of_session.clone().next().map_or(log_offset, |first| first.log_offset);
        let following = of_session.next_back().map_or(1, |last| last.sequence.wrapping_add(1));
        let tail = match entry.tail {
            Some(Tail::Raw(tail)) => u64::from(tail),
            Some(Tail::Entry(index)) => {
                self.placed.get(index).map_or(log_offset, |other| other.log_offset)
            }
            Some(Tail::Itself) => log_offset,
            None => first,
        };
        PlacedEntry {
            log_offset,
            length: entry_length(&updates),
            guid,
            sequence: entry.sequence.unwrap_or(following),
            tail: u32::try_from(tail).unwrap(),
            flushed: entry.flushed.unwrap_or(self.flushed),
            last: entry.last.unwrap_or_else(|| plan.space_end().next_multiple_of(MIB)),
            whole: entry.is_whole(),
            updates,
        }
    }

    /// Writes into the ring, round its end; what was there is whole no longer.
    fn write(&mut self, plan: &mut Plan, start: u64, bytes: &[u8]) {
        assert!(start < self.length, "the log has no sector at {start:#x}");
        let length = bytes.len() as u64;
        assert!(length <= self.length, "the bytes do not fit the log");
        let ring = self.length;
        for other in &mut self.placed {
            let behind = (start + ring - other.log_offset) % ring;
            let ahead = (other.log_offset + ring - start) % ring;
            if length > 0 && (behind < other.length || ahead < length) {
                other.whole = false;
            }
        }
        let before_wrap = length.min(self.length - start) as usize;
        plan.bytes(self.offset + start, bytes[..before_wrap].to_vec());
        if before_wrap < bytes.len() {
            plan.bytes(self.offset, bytes[before_wrap..].to_vec());
        }
    }
}

/// Turns described changes into updates: allocates blocks, and makes one page of every BAT page
/// that the entry touches.
fn resolve(plan: &mut Plan, changes: &[Change]) -> Vec<Update> {
    let mut updates = Vec::new();
    let mut pages: Vec<(u64, usize)> = Vec::new();
    for change in changes {
        match change {
            Change::Data { file_offset, sector } => {
                updates.push(Update::Data { file_offset: *file_offset, sector: sector.clone() });
            }
            Change::Zero { file_offset, length } => {
                updates.push(Update::Zero { file_offset: *file_offset, length: *length });
            }
            Change::Allocate { block, place_mib, contents, written } => {
                let index = plan.layout.bat_index(*block);
                let raw = plan.allocate(*block, *place_mib, contents, *written);
                plan.bat.set(index, raw);
                let page = index / 512;
                if !pages.iter().any(|(known, _)| *known == page) {
                    pages.push((page, updates.len()));
                    let file_offset = plan.layout.bat_offset + 4096 * page;
                    updates.push(Update::Data { file_offset, sector: Box::new([0; 4096]) });
                }
            }
        }
    }
    for (page, position) in pages {
        if let Update::Data { sector, .. } = &mut updates[position] {
            *sector = plan.bat.page(page);
        }
    }
    updates
}
