//! A medium whose bad spots read as zeros, and are remembered: a disk that fails is often why something has
//! to be salvaged.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::{Storage, only_read};

/// What is given up at once around a bad spot.
const STEP: usize = 4096;
/// Bad spots that are remembered one by one; further ones widen the last.
const MOST: usize = 1 << 16;

/// Reads of the inner medium that fail are tried again in pieces.
pub(super) struct Forgiving {
    inner: Arc<dyn Storage>,
    bad: Mutex<Vec<Range<u64>>>,
}

impl Forgiving {
    pub(super) fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, bad: Mutex::new(Vec::new()) }
    }

    /// What could not be read so far, in order.
    pub(super) fn unreadable(&self) -> Vec<Range<u64>> {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bad.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in bad {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    fn note(&self, range: Range<u64>) {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        let full = bad.len() >= MOST;
        match bad.last_mut() {
            Some(last) if full || (last.start <= range.start && range.start <= last.end) => {
                last.start = last.start.min(range.start);
                last.end = last.end.max(range.end);
            }
            _ => bad.push(range),
        }
    }

    fn in_pieces(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.len()?;
        let mut at = offset;
        let mut done = 0usize;
        for piece in buf.chunks_mut(STEP) {
            let room = usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX);
            let wanted = piece.len();
            let piece = piece.get_mut(..wanted.min(room)).unwrap_or_default();
            let end = at.saturating_add(u64::try_from(piece.len()).unwrap_or_default());
            match self.inner.read_at(at, piece) {
                Ok(read) if read == piece.len() => {}
                _ => {
                    piece.fill(0);
                    self.note(at..end);
                }
            }
            done = done.saturating_add(piece.len());
            at = end;
            if piece.len() < wanted {
                break;
            }
        }
        Ok(done)
    }
}

impl Storage for Forgiving {
    only_read!();

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read_at(offset, buf) {
            Ok(read) => Ok(read),
            Err(_) => self.in_pieces(offset, buf),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.inner.len()?;
        match self.inner.next_data(offset) {
            Ok(found) => Ok(found),
            Err(_) => Ok((offset < length).then_some(offset..length)),
        }
    }

    fn as_file(&self) -> Option<&std::fs::File> {
        self.inner.as_file()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Lists of ranges that happen to hold one.
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    struct Failing(MemoryStorage, Range<u64>);

    impl Storage for Failing {
        only_read!();
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            if offset < self.1.end && self.1.start < offset + buf.len() as u64 {
                return Err(io::Error::other("bad sector"));
            }
            self.0.read_at(offset, buf)
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
            Err(io::Error::other("bad map"))
        }
    }

    #[test]
    fn only_the_pages_around_a_bad_spot_are_given_up() {
        let bytes: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8 + 1).collect();
        let inner = Failing(MemoryStorage::new(bytes.clone()), 9000..9001);
        let medium = Forgiving::new(Arc::new(inner));
        let mut buf = vec![0xEE; 60_000];
        assert_eq!(medium.read_at(0, &mut buf).unwrap(), 50_000);
        assert_eq!(buf[..8192], bytes[..8192]);
        assert!(buf[8192..12288].iter().all(|byte| *byte == 0));
        assert_eq!(buf[12288..50_000], bytes[12288..]);
        assert_eq!(medium.unreadable(), [8192..12288]);
        assert_eq!(medium.next_data(7).unwrap(), Some(7..50_000));
    }
}
