//! Sparse maps: a disk of some size, of which only the bytes are kept that are not zero.
//!
//! ```text
//! 8        size of the disk, bytes
//! 8, 4     offset, length of a piece; the top bit of the length: one byte that is repeated
//! …        its bytes; then the next piece
//! ```
//!
//! Numbers are little-endian. Pieces come in order and do not overlap.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit_volumes::Disk;

/// Bytes of a page, in which contents are held.
pub const PAGE: usize = 4096;
/// So many zeros end a piece.
const GAP: usize = 32;
/// So many bytes that are all the same become one.
const SAME: usize = 64;
/// No more equal bytes in a row are kept: they are no map of anything, but an empty journal.
const MOST_SAME: usize = 8 << 20;
const REPEATED: u32 = 1 << 31;

type Pages = BTreeMap<u64, Box<[u8; PAGE]>>;

/// A disk that is never changed.
#[derive(Default)]
pub struct Map {
    /// Bytes of the disk.
    pub size: u64,
    /// Where bytes are that are not zero, in order.
    pub pieces: Vec<Range<u64>>,
    pages: Pages,
}

impl Map {
    /// Takes an encoded map apart; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (size, mut rest) = bytes.split_first_chunk::<8>()?;
        let mut map = Self { size: u64::from_le_bytes(*size), ..Self::default() };
        while !rest.is_empty() {
            let (offset, more) = rest.split_first_chunk::<8>()?;
            let (length, more) = more.split_first_chunk::<4>()?;
            let (offset, length) = (u64::from_le_bytes(*offset), u32::from_le_bytes(*length));
            let same = length & REPEATED != 0;
            let length = (length & !REPEATED) as usize;
            let (now, later) = more.split_at_checked(if same { 1 } else { length })?;
            match same {
                true => put(&mut map.pages, None, offset, &vec![now[0]; length.min(MOST_SAME)]),
                false => put(&mut map.pages, None, offset, now),
            }
            map.pieces.push(offset..offset + length as u64);
            rest = later;
        }
        Some(map)
    }

    /// The map of a disk, without runs of more than `longest` bytes in which there is hardly a zero: tables
    /// that are the same on every disk.
    pub fn encode(disk: &dyn Disk, longest: usize) -> io::Result<Vec<u8>> {
        let mut out = disk.size().to_le_bytes().to_vec();
        let mut piece = Vec::new();
        let (mut page, mut at) = (vec![0; PAGE], 0);
        while at < disk.size() {
            let length = (PAGE as u64).min(disk.size() - at) as usize;
            disk.read_at(at, &mut page[..length])?;
            // A piece goes on over pages without a zero at their border.
            if page[..length].iter().all(|byte| *byte == 0) {
                flush(&mut out, at, &mut piece, longest);
            } else {
                piece.extend(&page[..length]);
            }
            at += length as u64;
        }
        flush(&mut out, at, &mut piece, longest);
        Ok(out)
    }
}

/// Writes the pieces of some bytes that end at `end`.
fn flush(out: &mut Vec<u8>, end: u64, bytes: &mut Vec<u8>, longest: usize) {
    let start = end - bytes.len() as u64;
    let mut at = 0;
    let run = |at: usize| bytes[at..].iter().take_while(|byte| **byte == bytes[at]).count();
    let mut put = |at: usize, length: usize, same: bool| {
        out.extend((start + at as u64).to_le_bytes());
        out.extend((length as u32 | if same { REPEATED } else { 0 }).to_le_bytes());
        out.extend(&bytes[at..at + if same { 1 } else { length }]);
    };
    while at < bytes.len() {
        let same = run(at);
        if bytes[at] == 0 {
            at += same;
            continue;
        }
        if same >= SAME {
            if same <= MOST_SAME {
                put(at, same, true);
            }
            at += same;
            continue;
        }
        // Up to the next run of equal bytes that is worth an end.
        let mut behind = at;
        while behind < bytes.len() {
            let same = run(behind);
            if same >= if bytes[behind] == 0 { GAP } else { SAME } {
                break;
            }
            behind += same;
        }
        if behind - at <= longest {
            let zeros = bytes[at..behind].iter().rev().take_while(|byte| **byte == 0).count();
            put(at, behind - at - zeros, false);
        }
        at = behind;
    }
    bytes.clear();
}

fn put(pages: &mut Pages, base: Option<&Pages>, mut at: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (number, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
        let (now, later) = bytes.split_at(bytes.len().min(PAGE - within));
        let page = pages.entry(number).or_insert_with(|| {
            base.and_then(|base| base.get(&number)).cloned().unwrap_or_else(|| Box::new([0; PAGE]))
        });
        page[within..within + now.len()].copy_from_slice(now);
        (at, bytes) = (at + now.len() as u64, later);
    }
}

/// A map with changes: what is surveyed. It counts what is read of it, and does not put up with a reader
/// that never ends.
pub struct Changed {
    base: Arc<Map>,
    pages: Pages,
    size: u64,
    sector: u32,
    calls: AtomicU64,
    bytes: AtomicU64,
}

/// More calls are a loop…
const MOST_CALLS: u64 = 200_000;
/// … and so are more bytes: no disk here is larger than 64 GiB, whose largest map of free space takes 256 MiB.
const MOST_BYTES: u64 = 1 << 30;

impl Changed {
    /// The base itself, with this size and sectors of so many bytes.
    pub fn new(base: Arc<Map>, size: u64, sector: u32) -> Self {
        let (calls, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { base, pages: Pages::new(), size, sector, calls, bytes }
    }

    /// The disk under the changes.
    pub fn base(&self) -> &Map {
        &self.base
    }

    /// Changes bytes; what lies behind the end is forgotten.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let room = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        put(&mut self.pages, Some(&self.base.pages), at, &bytes[..bytes.len().min(room)]);
    }

    /// Bytes, without counting them; `None` when they reach behind the end.
    pub fn get(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let end = at.checked_add(length as u64)?;
        let mut bytes = vec![0; if end <= self.size { length } else { return None }];
        self.copy(at, &mut bytes);
        Some(bytes)
    }

    /// The pages with something in them, in order, as byte offsets.
    pub fn pages(&self) -> Vec<u64> {
        let mut pages: Vec<u64> =
            self.base.pages.keys().chain(self.pages.keys()).copied().collect();
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().map(|number| number * PAGE as u64).collect()
    }

    fn copy(&self, at: u64, buf: &mut [u8]) {
        buf.fill(0);
        let end = at + buf.len() as u64;
        // Most of what is read is empty: only pages that exist are looked at.
        let numbers = at / PAGE as u64..end.div_ceil(PAGE as u64);
        for pages in [&self.base.pages, &self.pages] {
            for (number, page) in pages.range(numbers.clone()) {
                let start = number * PAGE as u64;
                let (from, to) = (at.max(start), end.min(start + PAGE as u64));
                buf[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
            }
        }
    }
}

impl Disk for Changed {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(calls < MOST_CALLS && bytes < MOST_BYTES, "{calls} reads, {bytes} bytes");
        assert!(buf.len() <= 16 << 20, "{} bytes at once", buf.len());
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.copy(offset, buf);
        Ok(())
    }
}
