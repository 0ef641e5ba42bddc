//! The order in which a repair reaches the file; the head of `mod.rs` argues it.

use std::sync::Arc;

use zerocopy::little_endian::{U16, U32, U64};

use crate::findings::Findings;
use crate::format::header::LOG_VERSION;
use crate::format::identifier::SIGNATURE;
use crate::format::{Guid, GuidSource, MIB, mib_ceil, mib_floor};
use crate::log::{Change, FileSizes, HeaderWriter, Log, LogWriter, sync};
use crate::ops::progress::{Progress, advance};
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::headers::{HeaderPair, LogPlace};
use crate::{Error, Result};

use super::draft::{Copy, Page};

/// Pages of an entry: with so many QEMU survives that its first sector is torn.
const PAGES_OF_AN_ENTRY: usize = 14;
const COPY_STEP: usize = 1 << 20;

/// Everything that a repair does to a file.
pub(super) struct Actions {
    pub(super) headers: HeaderPair,
    pub(super) log: Log,
    pub(super) identifier: bool,
    pub(super) discard: bool,
    pub(super) replay: bool,
    pub(super) extend_first: Option<u64>,
    pub(super) new_log: Option<LogPlace>,
    /// Behind the end of the file.
    pub(super) copies: Vec<Copy>,
    /// Pages of space that nothing refers to yet.
    pub(super) direct: Vec<Page>,
    /// Pages that go through the log, in groups that belong together.
    pub(super) logged: Vec<Vec<Page>>,
    pub(super) extend_to: u64,
    pub(super) cut_to: Option<u64>,
    /// What the guest sees changes, or may.
    pub(super) new_identity: bool,
    /// Pages of the block table that were shifted are moved back.
    pub(super) moves_back: bool,
    /// What the log held is given up, all or some.
    pub(super) gives_up_log: bool,
    /// The end of the last thing that is claimed.
    pub(super) highest: u64,
}

/// Whether a storage shows the copies of its own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    Made,
    ToMake,
}

/// Metadata pages in groups of one entry each; those of the region tables are one.
pub(super) fn grouped(tables: Vec<Page>, others: Vec<Page>) -> Vec<Vec<Page>> {
    let mut groups: Vec<Vec<Page>> = Vec::new();
    if !tables.is_empty() {
        groups.push(tables);
    }
    groups.extend(others.chunks(PAGES_OF_AN_ENTRY).map(<[Page]>::to_vec));
    groups
}

/// Carries it out. With the same GUIDs the same file becomes the same bytes.
pub(super) fn carry_out(
    storage: &dyn Storage,
    actions: &Actions,
    guids: &GuidSource,
    copies: Copies,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut headers = HeaderWriter::new(actions.headers.clone());
    let entries = u64::try_from(actions.logged.len()).unwrap_or(u64::MAX);
    headers.require_room(entries.saturating_add(8))?;
    sync(storage)?;
    let (file, data) = (guids.guid(), guids.guid());
    let dirty = actions.headers.is_dirty() && !actions.discard;
    headers.put(storage, |header| {
        header.file_write_guid = file;
        if actions.new_identity {
            header.data_write_guid = data;
        }
        if !dirty {
            header.log_guid = Guid::ZERO;
            header.log_version = U16::new(LOG_VERSION);
        }
    })?;
    synced(storage, &mut headers)?;
    if actions.identifier {
        let failed = |e| Error::io("cannot write the identifier", 0, e);
        storage.write_at(0, &SIGNATURE).map_err(failed)?;
        synced(storage, &mut headers)?;
    }
    if let Some(length) = actions.extend_first {
        extend(storage, length)?;
        synced(storage, &mut headers)?;
    }
    if actions.replay {
        actions.log.apply_to(storage)?;
        synced(storage, &mut headers)?;
        headers.put(storage, |header| header.log_guid = Guid::ZERO)?;
        synced(storage, &mut headers)?;
    }
    if let Some(place) = actions.new_log {
        make_log(storage, place)?;
        synced(storage, &mut headers)?;
        headers.put(storage, |header| {
            header.log_offset = U64::new(place.offset);
            header.log_length = U32::new(place.length);
        })?;
        synced(storage, &mut headers)?;
    }
    fill_new_space(storage, actions, copies, progress)?;
    synced(storage, &mut headers)?;
    if !actions.logged.is_empty() {
        headers = commit(storage, actions, guids)?;
    }
    if let Some(length) = actions.cut_to {
        storage.set_len(length).map_err(|e| Error::io("cannot cut the file", length, e))?;
        synced(storage, &mut headers)?;
    }
    headers.put_second(storage)?;
    sync(storage)
}

fn synced(storage: &dyn Storage, headers: &mut HeaderWriter) -> Result<()> {
    sync(storage)?;
    headers.synced();
    Ok(())
}

fn extend(storage: &dyn Storage, length: u64) -> Result<()> {
    if storage.length()? >= length {
        return Ok(());
    }
    storage.set_len(length).map_err(|e| Error::io("cannot extend the file", length, e))
}

/// Written, not left as a hole: the log is to take entries when the disk is full.
fn make_log(storage: &dyn Storage, place: LogPlace) -> Result<()> {
    extend(storage, place.end())?;
    let zeros = vec![0; COPY_STEP];
    let mut at = place.offset;
    while at < place.end() {
        storage.write_at(at, &zeros).map_err(|e| Error::io("cannot write the log", at, e))?;
        at = at.saturating_add(MIB);
    }
    Ok(())
}

/// Everything that goes where nothing refers to yet. When that fails the file gets its old length back.
fn fill_new_space(
    storage: &dyn Storage,
    actions: &Actions,
    copies: Copies,
    progress: &mut dyn Progress,
) -> Result<()> {
    let before = storage.length()?;
    let fill = |progress: &mut dyn Progress| {
        extend(storage, actions.extend_to)?;
        for copy in &actions.copies {
            extend(storage, copy.to.saturating_add(copy.length))?;
            if copies == Copies::ToMake {
                copy_bytes(storage, copy, progress)?;
            }
        }
        for (offset, page) in &actions.direct {
            write_page(storage, *offset, &page[..])?;
        }
        Ok(())
    };
    fill(progress).inspect_err(|_| {
        // Of no use to anybody; that it stays does no harm either.
        let _ = storage.set_len(before);
    })
}

fn copy_bytes(storage: &dyn Storage, copy: &Copy, progress: &mut dyn Progress) -> Result<()> {
    let mut buf = vec![0; COPY_STEP];
    let source = copy.from..copy.from.saturating_add(copy.length);
    for run in DataRuns::new(storage, source) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", copy.from, e))?;
        let mut at = run.range.start;
        while run.data && at < run.range.end {
            let left = usize::try_from(run.range.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(part) = buf.get_mut(..left.min(COPY_STEP)) else { break };
            storage.read_zero_filled(at, part)?;
            let to = copy.to.saturating_add(at.saturating_sub(copy.from));
            storage.write_at(to, part).map_err(|e| Error::io("cannot copy a block", to, e))?;
            let done = u64::try_from(part.len()).unwrap_or(u64::MAX);
            at = at.saturating_add(done);
            advance(progress, done)?;
        }
    }
    Ok(())
}

fn write_page(storage: &dyn Storage, offset: u64, page: &[u8]) -> Result<()> {
    storage.write_at(offset, page).map_err(|e| Error::io("cannot write a page", offset, e))
}

/// The changed pages, entry by entry, each durable before it is put in place; then the log is retired.
fn commit(storage: &dyn Storage, actions: &Actions, guids: &GuidSource) -> Result<HeaderWriter> {
    let headers = HeaderPair::read(storage, &mut Findings::tolerant())?;
    let mut log = LogWriter::new(headers, guids)?;
    let length = storage.length()?;
    let last = mib_ceil(length.max(actions.highest)).unwrap_or(length);
    let sizes = FileSizes { durable: mib_floor(length), last };
    for group in &actions.logged {
        if log.must_change(group.len()) {
            log.begin_epoch(storage, sizes)?;
            sync_log(storage, &mut log)?;
            log.publish(storage)?;
            sync_log(storage, &mut log)?;
        }
        let changes: Vec<Change> =
            group.iter().map(|(offset, page)| Change::Data(*offset, Arc::clone(page))).collect();
        log.append(storage, &changes, sizes)?;
        sync_log(storage, &mut log)?;
        if !log.is_live() {
            log.publish(storage)?;
            sync_log(storage, &mut log)?;
        }
        for (offset, page) in group {
            write_page(storage, *offset, &page[..])?;
        }
    }
    sync_log(storage, &mut log)?;
    log.retire(storage)?;
    sync_log(storage, &mut log)?;
    Ok(HeaderWriter::new(log.headers().pair().clone()))
}

fn sync_log(storage: &dyn Storage, log: &mut LogWriter) -> Result<()> {
    sync(storage)?;
    log.headers().synced();
    Ok(())
}
