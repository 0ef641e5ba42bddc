//! What a repair will write, kept apart from the file: second places for bytes that two owners claim, and
//! changed pages of metadata.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::format::limits::MAX_REPAIR_PAGES;
use crate::format::{KIB, LOG_SECTOR_LEN};
use crate::storage::{Storage, StorageExt, only_read};
use crate::{Error, Result};

/// Bytes of a page: what a log entry carries.
pub(super) const PAGE: u64 = 4 * KIB;

/// Bytes of the file that get a second place, behind everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) length: u64,
}

impl Copy {
    fn target(&self) -> Range<u64> {
        self.to..self.to.saturating_add(self.length)
    }
}

/// A file as it will be once its copies are made: nothing is copied to show that. It can only be read.
pub(super) struct Moved {
    file: Arc<dyn Storage>,
    file_length: u64,
    /// What is copied: the file with its log replayed.
    source: Arc<dyn Storage>,
    /// In the order of their targets, none overlapping another or the file.
    copies: Vec<Copy>,
    length: u64,
}

impl Moved {
    pub(super) fn new(
        file: Arc<dyn Storage>,
        source: Arc<dyn Storage>,
        copies: &[Copy],
    ) -> Result<Self> {
        let file_length = file.length()?;
        let end = copies.last().map_or(0, |copy| copy.target().end);
        let length = file_length.max(end);
        Ok(Self { file, file_length, source, copies: copies.to_vec(), length })
    }

    /// What lies at an offset: a copy, or none up to some other offset.
    fn at(&self, offset: u64) -> (Option<&Copy>, u64) {
        let number = self.copies.partition_point(|copy| copy.target().end <= offset);
        match self.copies.get(number) {
            Some(copy) if copy.to <= offset => (Some(copy), copy.target().end),
            Some(copy) => (None, copy.to),
            None => (None, self.length),
        }
    }
}

/// Reads what is there, zeros for the rest.
fn read_or_zeros(from: &dyn Storage, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let read = from.read_at(offset, buf)?;
    buf.get_mut(read..).unwrap_or_default().fill(0);
    Ok(())
}

impl Storage for Moved {
    only_read!();

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(buf.len());
        let (mut at, mut rest) = (offset, buf.get_mut(..there).unwrap_or_default());
        while !rest.is_empty() {
            let (copy, end) = self.at(at);
            let step = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(step.min(rest.len()));
            match copy {
                Some(copy) => {
                    let from = copy.from.saturating_add(at.saturating_sub(copy.to));
                    read_or_zeros(&*self.source, from, now)?;
                }
                None => read_or_zeros(&*self.file, at, now)?,
            }
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            rest = later;
        }
        Ok(there)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if let Some(found) = self.file.next_data(offset)? {
            return Ok(Some(found));
        }
        let start = offset.max(self.file_length);
        Ok((start < self.length).then_some(start..self.length))
    }
}

/// One changed page of metadata and where it goes.
pub(super) type Page = (u64, Arc<[u8; LOG_SECTOR_LEN]>);

/// Changed pages of metadata over a file that is only read.
pub(super) struct Pages {
    base: Arc<dyn Storage>,
    pages: BTreeMap<u64, Arc<[u8; LOG_SECTOR_LEN]>>,
}

impl Pages {
    pub(super) fn new(base: Arc<dyn Storage>) -> Self {
        Self { base, pages: BTreeMap::new() }
    }

    /// Puts bytes at a file offset; those that stand there already cost nothing.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let number = at / PAGE;
            let start = number.saturating_mul(PAGE);
            let within = usize::try_from(at.saturating_sub(start)).unwrap_or_default();
            let room = LOG_SECTOR_LEN.saturating_sub(within).min(rest.len());
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.put_in_page(start, within, now)?;
            at = at.saturating_add(u64::try_from(room).unwrap_or(u64::MAX));
            rest = later;
        }
        Ok(())
    }

    fn put_in_page(&mut self, start: u64, within: usize, bytes: &[u8]) -> Result<()> {
        if !self.pages.contains_key(&start) {
            let mut page = [0; LOG_SECTOR_LEN];
            self.base.read_zero_filled(start, &mut page)?;
            if page.get(within..).is_some_and(|there| there.starts_with(bytes)) {
                return Ok(());
            }
            if self.pages.len() >= MAX_REPAIR_PAGES {
                return Err(Error::limit(format!(
                    "more than {MAX_REPAIR_PAGES} pages of the file's tables would change: \
                     that is no repair any more; `vhdx recover` makes a new file"
                )));
            }
            self.pages.insert(start, Arc::new(page));
        }
        let page = self.pages.get_mut(&start).map(Arc::make_mut);
        let end = within.saturating_add(bytes.len());
        if let Some(target) = page.and_then(|page| page.get_mut(within..end)) {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Whether nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// All of them, in order.
    pub(super) fn into_pages(self) -> Vec<Page> {
        self.pages.into_iter().collect()
    }
}
