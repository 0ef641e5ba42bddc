//! Where bytes come from: a disk, and a part of it that is read as if it were one.

use std::io;
use std::ops::Range;

use crate::Trouble;

/// Something to read from. What lies behind [`size`](Disk::size) does not exist.
pub trait Disk {
    /// Bytes.
    fn size(&self) -> u64;

    /// Bytes of a logical sector: what partition tables count in.
    fn sector_size(&self) -> u32;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// The range reaches behind the end, or cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// A disk in memory, with sectors of 512 bytes.
impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let found = rest.and_then(|rest| rest.get(..buf.len()));
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }
}

/// The largest piece that is read at once: no number on a disk makes us take more memory.
pub(crate) const MOST_AT_ONCE: u64 = 16 << 20;

/// A part of a disk; offsets count from its start.
#[derive(Clone)]
pub struct Window<'a> {
    disk: &'a dyn Disk,
    range: Range<u64>,
}

impl<'a> Window<'a> {
    /// The part of `disk` in `range`, cut off at its end.
    #[must_use]
    pub fn new(disk: &'a dyn Disk, range: Range<u64>) -> Self {
        let end = range.end.min(disk.size());
        Self { disk, range: range.start.min(end)..end }
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Fills `buf` from `offset` on; `what` names it where it cannot be had.
    pub(crate) fn fill(&self, what: &str, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        let length = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(length).filter(|end| *end <= self.size());
        let start = self.range.start.checked_add(offset).filter(|_| end.is_some());
        let Some(start) = start else {
            let size = self.size();
            return Err(Trouble::damaged(format!(
                "{what} at {offset} ({length} bytes) lies behind the end at {size}"
            )));
        };
        self.disk.read_at(start, buf).map_err(Trouble::Io)
    }

    /// Bytes at `offset`; never more than 16 MiB: who wants more reads it piece by piece.
    pub(crate) fn read(&self, what: &str, offset: u64, length: u64) -> Result<Vec<u8>, Trouble> {
        if length > MOST_AT_ONCE {
            return Err(Trouble::damaged(format!("{what} is said to take {length} bytes")));
        }
        let mut buf = vec![0; usize::try_from(length).unwrap_or_default()];
        self.fill(what, offset, &mut buf)?;
        Ok(buf)
    }
}
