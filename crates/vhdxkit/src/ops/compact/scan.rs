//! Whether a block holds anything that somebody needs: its bytes that are not free, up to the first that
//! settles it. Free bytes are not read, nor are holes of the file.

use std::ops::Range;

use crate::format::bat::{PayloadState, RawEntry};
use crate::ops::buffer::{Buffer, CHUNK};
use crate::ops::partitions::Volume;
use crate::ops::zeros::{is_zero, length};
use crate::storage::DataRuns;
use crate::{Error, Image, Result};

use super::CompactOptions;

/// The first look at a block: most blocks in use show it there.
const FIRST_LOOK: u64 = 4096;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// Something that has to stay.
    InUse,
    /// Zeros only.
    Zero,
    /// Free bytes; and zeros, where it is in use.
    Free,
    /// What its parent shows; `free` bytes apart, whatever those are.
    LikeParent { free: bool },
}

/// Looks into the blocks of an image, in ascending order.
pub(super) struct Scan<'a> {
    image: &'a Image,
    /// Free bytes of the disk, in order, without overlaps.
    free: Vec<Range<u64>>,
    /// The first of them that may reach into the next block.
    next: usize,
    bytes_read: u64,
    own: Buffer,
    parents: Buffer,
}

impl<'a> Scan<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        let (own, parents) = (Buffer::new(), Buffer::new());
        Self { image, free: Vec::new(), next: 0, bytes_read: 0, own, parents }
    }

    /// Bytes of the disk that were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Takes for free what these volumes call so, and what the caller does.
    pub(super) fn believe(&mut self, volumes: &[Volume], options: &CompactOptions) {
        self.free.extend(options.also_free.iter().filter(|range| !range.is_empty()).cloned());
        for volume in volumes {
            let Some(map) = volume.free_to_give(options.assume_clean) else { continue };
            let start = volume.range.start;
            let to_disk = |at: u64| start.saturating_add(at).min(volume.range.end);
            self.free.extend(map.ranges().iter().map(|r| to_disk(r.start)..to_disk(r.end)));
        }
        self.free.sort_unstable_by_key(|range| range.start);
        // Volumes do not overlap each other, but the caller's ranges may.
        self.free.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
    }

    /// What a block holds that has a place in the file.
    pub(super) fn judge(&mut self, block: u64, raw: RawEntry) -> Result<Contents> {
        let geometry = self.image.geometry();
        let start = geometry.block_start(block);
        let range = start..start.saturating_add(geometry.used_bytes(block));
        let (needed, free) = self.needed(&range);
        let mut zero = true;
        let mut like_parent = self.image.parent().is_some();
        for part in needed {
            self.look(raw, start, part, &mut zero, &mut like_parent)?;
            if !zero && !like_parent {
                return Ok(Contents::InUse);
            }
        }
        Ok(match (zero, free) {
            (true, false) => Contents::Zero,
            (true, true) => Contents::Free,
            (false, free) => Contents::LikeParent { free },
        })
    }

    /// The parts of a block that are not free, and whether any of it is.
    fn needed(&mut self, block: &Range<u64>) -> (Vec<Range<u64>>, bool) {
        while self.free.get(self.next).is_some_and(|free| free.end <= block.start) {
            self.next = self.next.saturating_add(1);
        }
        let mut needed = Vec::new();
        let mut at = block.start;
        let mut any = false;
        let ahead = self.free.get(self.next..).unwrap_or_default();
        for free in ahead.iter().take_while(|free| free.start < block.end) {
            any = true;
            if at < free.start {
                needed.push(at..free.start);
            }
            at = free.end.min(block.end);
        }
        if at < block.end {
            needed.push(at..block.end);
        }
        (needed, any)
    }

    /// Looks at a part of a block that begins at `start` of the disk.
    fn look(
        &mut self,
        raw: RawEntry,
        start: u64,
        part: Range<u64>,
        zero: &mut bool,
        like_parent: &mut bool,
    ) -> Result<()> {
        let image = self.image;
        let whole = raw.state() == PayloadState::FullyPresent.to_raw();
        if !whole && image.parent().is_none() {
            // What the parent shows between its sectors is not known.
            *zero = false;
            return Ok(());
        }
        // Without a parent to compare with, what is a hole in the file need not be looked at.
        if whole && !*like_parent {
            let to_file = |at: u64| raw.file_offset().saturating_add(at.saturating_sub(start));
            let to_disk = |at: u64| start.saturating_add(at.saturating_sub(raw.file_offset()));
            let place = to_file(part.start)..to_file(part.end);
            for run in DataRuns::new(&**image.storage(), place.clone()) {
                let run =
                    run.map_err(|e| Error::io("cannot map the file's holes", place.start, e))?;
                if run.data && *zero {
                    let range = to_disk(run.range.start)..to_disk(run.range.end);
                    self.compare(range, zero, like_parent)?;
                }
            }
            return Ok(());
        }
        self.compare(part, zero, like_parent)
    }

    fn compare(&mut self, part: Range<u64>, zero: &mut bool, like_parent: &mut bool) -> Result<()> {
        let image = self.image;
        let mut at = part.start;
        let mut step = FIRST_LOOK;
        while at < part.end && (*zero || *like_parent) {
            let piece = self.own.first(part.end.saturating_sub(at).min(step));
            image.read_at(at, piece)?;
            let now = length(piece);
            self.bytes_read = self.bytes_read.saturating_add(now);
            *zero = *zero && is_zero(piece);
            if *like_parent {
                let there = self.parents.first(now);
                read_parent(image, at, there)?;
                self.bytes_read = self.bytes_read.saturating_add(now);
                *like_parent = there == piece;
            }
            at = at.saturating_add(now);
            step = step.saturating_mul(4).min(u64::try_from(CHUNK).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

/// What a child's parent shows; zeros behind its end.
fn read_parent(image: &Image, at: u64, buf: &mut [u8]) -> Result<()> {
    let Some(parent) = image.parent() else { return Ok(()) };
    let there = parent.virtual_size().saturating_sub(at);
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
    let (now, beyond) = buf.split_at_mut(there);
    beyond.fill(0);
    if now.is_empty() { Ok(()) } else { parent.read_at(at, now) }
}
