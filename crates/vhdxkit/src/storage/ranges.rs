//! What a copy-on-write layer remembers: an ordered list of disjoint patches over a base.

use std::collections::{BTreeMap, btree_map};
use std::io;
use std::ops::{Bound, Range};

use super::to_usize;
use crate::format::limits;

/// No piece of data crosses a multiple of this, so that splitting or joining one copies at most
/// that much, whatever the order of writes.
const CELL: u64 = 4096;
/// One run of data joins no more pieces than this, so that asking for it stays cheap.
const MAX_JOINED: usize = 1024;

/// Patches over a base of a known length: bytes, and ranges of zeros. Later ones override earlier.
///
/// Zeros are kept as ranges whatever their length, and only where the base has something to hide.
#[derive(Debug)]
pub(crate) struct RangeMap {
    /// By start.
    pieces: BTreeMap<u64, Piece>,
    /// Bytes of all data pieces.
    stored: u64,
    base_length: u64,
    max_bytes: u64,
    max_pieces: usize,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Zero,
    Data(Box<[u8]>),
}

impl Piece {
    fn stored(&self) -> u64 {
        match &self.content {
            Content::Zero => 0,
            Content::Data(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        }
    }

    fn is_zero(&self) -> bool {
        matches!(self.content, Content::Zero)
    }
}

/// A stretch of the walk through a range: a patch, or a gap where the base shows.
struct Segment<'a> {
    range: Range<u64>,
    /// The patch with its start.
    piece: Option<(u64, &'a Piece)>,
}

impl Segment<'_> {
    /// The patched bytes; `None` when it is not data.
    fn data(&self) -> Option<&[u8]> {
        let (start, Piece { content: Content::Data(bytes), .. }) = self.piece? else { return None };
        bytes.get(within(start, &self.range))
    }

    fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

struct Walk<'a> {
    at: u64,
    end: u64,
    ahead: Option<(u64, &'a Piece)>,
    rest: btree_map::Range<'a, u64, Piece>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.at >= self.end {
            return None;
        }
        if self.ahead.is_none() {
            self.ahead = self.rest.next().map(|(start, piece)| (*start, piece));
        }
        let (stop, piece) = match self.ahead {
            Some((start, piece)) if start <= self.at => {
                self.ahead = None;
                (piece.end.min(self.end), Some((start, piece)))
            }
            Some((start, _)) => (start.min(self.end), None),
            None => (self.end, None),
        };
        let range = self.at..stop;
        self.at = stop;
        Some(Segment { range, piece })
    }
}

impl RangeMap {
    /// No patches yet over a base of this many bytes. Beyond them everything is zeros.
    pub(crate) fn new(base_length: u64) -> Self {
        Self {
            pieces: BTreeMap::new(),
            stored: 0,
            base_length,
            max_bytes: limits::MAX_OVERLAY_BYTES,
            max_pieces: limits::MAX_OVERLAY_RANGES,
        }
    }

    /// So many bytes of data may be kept from now on.
    pub(crate) fn set_room(&mut self, bytes: u64) {
        self.max_bytes = bytes;
    }

    /// Bytes of data kept.
    pub(crate) fn stored(&self) -> u64 {
        self.stored
    }

    /// Patches kept.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Every range that a patch covers, in order; neighbours may touch.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces.iter().map(|(start, piece)| *start..piece.end)
    }

    /// Remembers `bytes` at `offset`. On an error nothing has changed.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] when a limit would be exceeded, `InvalidInput` when the
    /// offset overflows.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = super::advance(offset, bytes.len())?;
        let cells = to_usize(end.div_ceil(CELL).saturating_sub(offset / CELL));
        // A piece that reaches over both ends is split into two, hence one more.
        self.make_sure_of_room(offset..end, true, cells.saturating_add(1))?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let room = to_usize(CELL.saturating_sub(at % CELL)).min(rest.len());
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            let next = super::advance(at, now.len())?;
            self.store(at..next, now);
            (at, rest) = (next, later);
        }
        Ok(())
    }

    /// Makes a range read as zeros. On an error nothing has changed.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] when a limit would be exceeded.
    pub(crate) fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let before = self.pieces.range(..=range.start).next_back();
        if before.is_some_and(|(_, piece)| piece.is_zero() && piece.end >= range.end) {
            return Ok(());
        }
        self.make_sure_of_room(range.clone(), false, 2)?;
        self.clear(&range);
        self.hide(range);
        Ok(())
    }

    /// Forgets everything at or after `length`: what becomes visible there later is zeros.
    ///
    /// Cannot fail: it leaves at most one patch more than there were.
    pub(crate) fn cut(&mut self, length: u64) {
        self.clear(&(length..u64::MAX));
        self.hide(length..u64::MAX);
    }

    /// Fills `buf` from `offset`: patches, and what `base` reads between them. Where the base has
    /// nothing, zeros.
    ///
    /// # Errors
    /// Those of `base`.
    pub(crate) fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        base: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let end = super::advance(offset, buf.len())?;
        let mut rest = buf;
        for segment in self.walk(offset..end) {
            let len = to_usize(segment.len());
            let (now, later) = rest.split_at_mut_checked(len).unwrap_or_default();
            if segment.piece.is_none() {
                let there = to_usize(self.base_length.saturating_sub(segment.range.start)).min(len);
                let read = match now.get_mut(..there) {
                    Some(shown) if there > 0 => base(segment.range.start, shown)?,
                    _ => 0,
                };
                now.get_mut(read..).unwrap_or_default().fill(0);
            } else if let Some(bytes) = segment.data() {
                now.copy_from_slice(bytes);
            } else {
                now.fill(0);
            }
            rest = later;
        }
        Ok(())
    }

    /// The first run of data at or after `offset` and below `length`, out of patches and what
    /// `base` says of itself. The run may end before the data does.
    ///
    /// # Errors
    /// Those of `base`.
    pub(crate) fn next_data(
        &self,
        offset: u64,
        length: u64,
        base: impl Fn(u64) -> io::Result<Option<Range<u64>>>,
    ) -> io::Result<Option<Range<u64>>> {
        let mut base = BaseData { ask: base, end: self.base_length, known: None };
        let mut run: Option<Range<u64>> = None;
        let mut joined = 0usize;
        for segment in self.walk(offset..length) {
            let data = match segment.piece {
                None => base.within(&segment.range)?,
                Some((_, piece)) if piece.is_zero() => None,
                Some(_) => Some(segment.range.clone()),
            };
            match (&mut run, data) {
                (Some(run), Some(data)) if data.start == run.end => run.end = data.end,
                (None, data) => run = data,
                (Some(_), _) => break,
            }
            joined = joined.saturating_add(usize::from(run.is_some()));
            let broken = run.as_ref().is_some_and(|run| run.end < segment.range.end);
            if broken || joined >= MAX_JOINED {
                break;
            }
        }
        Ok(run)
    }

    /// Divides a range into patches and gaps.
    fn walk(&self, range: Range<u64>) -> Walk<'_> {
        let before = self.pieces.range(..=range.start).next_back();
        Walk {
            at: range.start,
            end: range.end,
            ahead: before
                .filter(|(_, piece)| piece.end > range.start)
                .map(|(start, piece)| (*start, piece)),
            rest: self.pieces.range((Bound::Excluded(range.start), Bound::Unbounded)),
        }
    }

    /// Refuses what would exceed a limit. `data` tells whether the range is to hold bytes; `more`
    /// is how many pieces may come in place of those inside the range.
    fn make_sure_of_room(&self, range: Range<u64>, data: bool, more: usize) -> io::Result<()> {
        let (mut freed, mut inside) = (0u64, 0usize);
        for segment in self.walk(range.clone()) {
            let Some((start, piece)) = segment.piece else { continue };
            freed = freed.saturating_add(if piece.is_zero() { 0 } else { segment.len() });
            let whole = start >= range.start && piece.end <= range.end;
            inside = inside.saturating_add(usize::from(whole));
        }
        let added = if data { range.end.saturating_sub(range.start) } else { 0 };
        let bytes = self.stored.saturating_sub(freed).saturating_add(added);
        if data && bytes > self.max_bytes {
            return Err(full(format!(
                "the in-memory layer would hold more than its limit of {} bytes",
                self.max_bytes
            )));
        }
        let pieces = self.pieces.len().saturating_sub(inside).saturating_add(more);
        if pieces > self.max_pieces {
            return Err(full(format!(
                "the in-memory layer would hold more than its limit of {} separate ranges",
                self.max_pieces
            )));
        }
        Ok(())
    }

    /// Keeps `bytes`, which lie within one cell.
    fn store(&mut self, range: Range<u64>, bytes: &[u8]) {
        if let Some(kept) = self.kept_mut(&range) {
            kept.copy_from_slice(bytes);
            return;
        }
        self.clear(&range);
        let mut whole = range.clone();
        let mut joined = Vec::new();
        // Many small writes must not become many pieces: join within the cell.
        if !range.start.is_multiple_of(CELL)
            && let Some((start, left)) = self.take_data_ending_at(range.start)
        {
            whole.start = start;
            joined.extend_from_slice(&left);
        }
        joined.extend_from_slice(bytes);
        if !range.end.is_multiple_of(CELL)
            && let Some((end, right)) = self.take_data_starting_at(range.end)
        {
            whole.end = end;
            joined.extend_from_slice(&right);
        }
        let content = Content::Data(joined.into_boxed_slice());
        self.put(whole.start, Piece { end: whole.end, content });
    }

    /// The bytes of a data piece that covers the range.
    fn kept_mut(&mut self, range: &Range<u64>) -> Option<&mut [u8]> {
        let (start, piece) = self.pieces.range_mut(..=range.start).next_back()?;
        match &mut piece.content {
            Content::Data(bytes) if piece.end >= range.end => bytes.get_mut(within(*start, range)),
            _ => None,
        }
    }

    /// Puts zeros over what the base has in a range without patches.
    fn hide(&mut self, range: Range<u64>) {
        let mut whole = range.start..range.end.min(self.base_length);
        if whole.is_empty() {
            return;
        }
        let before = self.pieces.range(..whole.start).next_back();
        if let Some((start, piece)) = before
            && piece.is_zero()
            && piece.end == whole.start
        {
            whole.start = *start;
        }
        if let Some(after) = self.pieces.get(&whole.end)
            && after.is_zero()
        {
            let end = after.end;
            self.take(whole.end);
            whole.end = end;
        }
        self.put(whole.start, Piece { end: whole.end, content: Content::Zero });
    }

    /// Removes every patch from a range, splitting those that reach over its ends.
    fn clear(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let before = self.pieces.range(..range.start).next_back();
        if let Some((&start, piece)) = before
            && piece.end > range.start
            && let Some(piece) = self.take(start)
        {
            self.put_part(start, &piece, start..range.start);
            self.put_part(start, &piece, range.end..piece.end);
        }
        while let Some((&start, _)) = self.pieces.range(range.clone()).next() {
            let Some(piece) = self.take(start) else { break };
            self.put_part(start, &piece, range.end..piece.end);
        }
    }

    fn put_part(&mut self, start: u64, piece: &Piece, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let content = match &piece.content {
            Content::Zero => Content::Zero,
            Content::Data(bytes) => {
                Content::Data(bytes.get(within(start, &part)).unwrap_or_default().into())
            }
        };
        self.put(part.start, Piece { end: part.end, content });
    }

    fn put(&mut self, start: u64, piece: Piece) {
        self.stored = self.stored.saturating_add(piece.stored());
        self.pieces.insert(start, piece);
    }

    fn take(&mut self, start: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&start)?;
        self.stored = self.stored.saturating_sub(piece.stored());
        Some(piece)
    }

    fn take_data_ending_at(&mut self, end: u64) -> Option<(u64, Box<[u8]>)> {
        let (&start, piece) = self.pieces.range(..end).next_back()?;
        if piece.end != end {
            return None;
        }
        self.take_data_starting_at(start).map(|(_, bytes)| (start, bytes))
    }

    /// The end and the bytes of the piece that starts there.
    fn take_data_starting_at(&mut self, start: u64) -> Option<(u64, Box<[u8]>)> {
        if self.pieces.get(&start)?.is_zero() {
            return None;
        }
        match self.take(start)? {
            Piece { end, content: Content::Data(bytes) } => Some((end, bytes)),
            Piece { .. } => None,
        }
    }
}

/// Asks the base where its data is, once per answer.
struct BaseData<F> {
    ask: F,
    end: u64,
    /// The last answer: the first data at or after a place that we have passed since.
    known: Option<Range<u64>>,
}

impl<F: Fn(u64) -> io::Result<Option<Range<u64>>>> BaseData<F> {
    /// The first data of the base within a range.
    fn within(&mut self, range: &Range<u64>) -> io::Result<Option<Range<u64>>> {
        let end = range.end.min(self.end);
        if range.start >= end {
            return Ok(None);
        }
        let found = match self.known.take() {
            Some(known) if known.end > range.start => known,
            _ => match (self.ask)(range.start)? {
                Some(found) if found.end > range.start.max(found.start) => found,
                // An answer without an extent tells nothing: then all of it is data.
                Some(_) => range.start..u64::MAX,
                None => u64::MAX..u64::MAX,
            },
        };
        let data = found.start.max(range.start)..found.end.min(end);
        self.known = Some(found);
        Ok((!data.is_empty()).then_some(data))
    }
}

/// A range of the medium as a range of a piece's bytes.
fn within(start: u64, range: &Range<u64>) -> Range<usize> {
    to_usize(range.start.saturating_sub(start))..to_usize(range.end.saturating_sub(start))
}

fn full(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, message)
}

#[cfg(test)]
mod tests;
