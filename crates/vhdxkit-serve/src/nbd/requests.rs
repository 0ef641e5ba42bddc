//! What requests mean: each judged, then carried out on the export, its reply encoded.

use std::ops::{ControlFlow, Range};

use crate::{Export, Run};

use super::contexts::{Context, statuses};
use super::protocol::{Errno, Headers, Request, command, command_flag as flag};
use super::replies::{Failure, Replies};
use super::session::{MOST_AT_ONCE, PIECE};

/// Reads of so many bytes are looked through for holes, which need not be sent.
const LOOK_FOR_HOLES: u64 = 32 << 10;
/// So many runs of one read are told apart at most; the rest is read.
const MOST_RUNS: usize = 128;
/// Bytes that one request has brought into the cache at most, and has looked at for that.
const MOST_CACHED: u64 = 64 << 20;
const MOST_LOOKED_AT: u64 = 1 << 30;
/// Bytes in one step of a request that reads or writes them all.
const SLOW_STEP: u64 = 4 << 20;
/// Bytes in one step of a request that changes the mapping only: some blocks, whatever their size.
const QUICK_STEP: u64 = 1 << 30;

/// Why a request is not even tried.
pub(super) fn judge(
    request: &Request,
    export: &Export,
    headers: Headers,
    contexts: &[Context],
) -> Result<(), Failure> {
    let inval = |why: &str| Err(Failure::new(Errno::Inval, why));
    let allowed = match request.command {
        command::READ if headers > Headers::Simple => flag::FUA | flag::DF,
        command::READ | command::FLUSH | command::CACHE | command::TRIM | command::DISC => {
            flag::FUA
        }
        command::WRITE if headers == Headers::Extended => flag::FUA | flag::PAYLOAD_LEN,
        command::WRITE => flag::FUA,
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS if headers == Headers::Extended => {
            flag::FUA | flag::REQ_ONE | flag::PAYLOAD_LEN
        }
        command::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
        _ => return inval("this server does not know the command"),
    };
    if request.flags & !allowed != 0 {
        return inval("the command does not have such flags here");
    }
    let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if writes && !export.is_writable() {
        return Err(Failure::new(Errno::Perm, "the export is read-only"));
    }
    match request.command {
        command::FLUSH | command::DISC => return Ok(()),
        command::BLOCK_STATUS if contexts.is_empty() => {
            return inval("no context was agreed on for this export");
        }
        // Its length is that of the payload, which has the rest.
        command::BLOCK_STATUS if request.has(flag::PAYLOAD_LEN) => return Ok(()),
        command::READ if request.length > MOST_AT_ONCE.into() => {
            let errno = if headers == Headers::Extended { Errno::Overflow } else { Errno::Inval };
            return Err(Failure::new(errno, format!("more than {MOST_AT_ONCE} bytes at once")));
        }
        _ => {}
    }
    judge_range(request, export, request.length)
}

/// Judges where a request points to, and for how many bytes.
pub(super) fn judge_range(request: &Request, export: &Export, length: u64) -> Result<(), Failure> {
    let sector = u64::from(export.sector_size());
    if length == 0 {
        return Err(Failure::new(Errno::Inval, "the range is empty"));
    }
    let end = request.offset.checked_add(length);
    if end.is_none_or(|end| end > export.size()) {
        let stores = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
        let errno = if stores { Errno::NoSpc } else { Errno::Inval };
        return Err(Failure::new(errno, "the range reaches beyond the end of the disk"));
    }
    let aligned = request.offset.is_multiple_of(sector) && length.is_multiple_of(sector);
    // Reading a part of a sector costs nobody anything.
    if !aligned && request.command != command::READ {
        let why = format!("offset and length must be multiples of {sector}");
        return Err(Failure::new(Errno::Inval, why));
    }
    Ok(())
}

fn range_of(request: &Request) -> Range<u64> {
    request.offset..request.offset.saturating_add(request.length)
}

/// How far a request is that is carried out in steps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// Bytes of its range that are done.
    done: u64,
    /// Bytes that were brought into the cache.
    cached: u64,
}

/// Carries out the next step of a request that may wait for a device. When it was the last one, the reply is
/// put, and the answer is yes. A write has been written already: what is left of it is to make it durable.
/// A read has [`PIECE`] bytes at most.
pub(super) fn perform(
    request: &Request,
    progress: &mut Progress,
    export: &Export,
    contexts: &[Context],
    replies: &mut Replies,
) -> bool {
    let mark = replies.mark();
    let stepped = match request.command {
        command::READ => {
            read(request, export, replies);
            return true;
        }
        command::BLOCK_STATUS => {
            if let Err(failure) = block_status(request, export, contexts, replies) {
                replies.take_back(mark);
                replies.failed(request, &failure);
            }
            return true;
        }
        command::FLUSH => export.flush().map_err(Failure::from).map(|()| true),
        command::WRITE => Ok(true),
        command::TRIM => step(request, progress, export, false, |range| export.discard(range)),
        command::WRITE_ZEROES => write_zeroes(request, progress, export),
        command::CACHE => prefetch(request, progress, export),
        // The judge has let nothing else pass.
        _ => Err(Failure::new(Errno::Inval, "this server does not know the command")),
    };
    let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    let durable = match stepped {
        Ok(false) => return false,
        Ok(true) if changes && request.has(flag::FUA) => export.flush().map_err(Failure::from),
        Ok(true) => Ok(()),
        Err(failure) => Err(failure),
    };
    match durable {
        Ok(()) => replies.done(request),
        Err(failure) => replies.failed(request, &failure),
    }
    true
}

/// Does the next part of a range, and tells whether it was the last.
fn step(
    request: &Request,
    progress: &mut Progress,
    export: &Export,
    slow: bool,
    part: impl FnOnce(Range<u64>) -> vhdxkit::Result<()>,
) -> Result<bool, Failure> {
    let whole = range_of(request);
    let start = whole.start + progress.done;
    let end = match slow {
        true => start.saturating_add(SLOW_STEP).min(whole.end),
        // Whole blocks have to stay whole, or they would not give their space back.
        false => export.whole_blocks_up_to(start.saturating_add(QUICK_STEP)).min(whole.end),
    };
    part(start..end)?;
    progress.done = end - whole.start;
    Ok(end == whole.end)
}

fn write_zeroes(
    request: &Request,
    progress: &mut Progress,
    export: &Export,
) -> Result<bool, Failure> {
    let (keeps_space, quick) = (request.has(flag::NO_HOLE), export.zeroes_quickly());
    if request.has(flag::FAST_ZERO) && (keeps_space || !quick) {
        return Err(Failure::new(Errno::NotSup, "writing zeros is as slow as writing here"));
    }
    step(request, progress, export, keeps_space || !quick, |range| match keeps_space {
        true => export.store_zeroes(range),
        false => export.write_zeroes(range),
    })
}

/// Reads a part of a range so that it is in the system's cache afterwards.
fn prefetch(request: &Request, progress: &mut Progress, export: &Export) -> Result<bool, Failure> {
    let mut cached = progress.cached;
    let last = step(request, progress, export, true, |range| {
        let mut buf = vec![0; PIECE];
        let mut data = Vec::new();
        export.runs(range, |run| {
            if !run.is_zero() {
                data.push(run.start..run.end());
            }
            ControlFlow::Continue(())
        })?;
        for range in data {
            let mut at = range.start;
            while at < range.end {
                let step = usize::try_from(range.end - at).unwrap_or(PIECE).min(PIECE);
                export.read_at(at, &mut buf[..step])?;
                at += step as u64;
                cached += step as u64;
            }
        }
        Ok(())
    })?;
    progress.cached = cached;
    // It is a hint: neither all of a disk is read for it, nor looked at.
    Ok(last || cached >= MOST_CACHED || progress.done >= MOST_LOOKED_AT)
}

fn block_status(
    request: &Request,
    export: &Export,
    contexts: &[Context],
    replies: &mut Replies,
) -> Result<(), Failure> {
    let rows = statuses(export, contexts, range_of(request), request.has(flag::REQ_ONE))?;
    let last = rows.len().saturating_sub(1);
    for (at, row) in rows.iter().enumerate() {
        replies.status(request, row.context.id(), &row.list, at == last);
    }
    Ok(())
}

/// Reads at most [`PIECE`] bytes, waiting for the device.
fn read(request: &Request, export: &Export, replies: &mut Replies) {
    let mark = replies.mark();
    let read = put_data(request, replies, |replies, length| {
        export.read_at(request.offset, replies.room(length)).map(|()| true)
    });
    if let Err(error) = read {
        replies.take_back(mark);
        replies.failed(request, &error.into());
    }
}

/// Reads at most [`PIECE`] bytes if nobody has to wait for them; `false`, with nothing put, otherwise.
pub(super) fn read_ready(request: &Request, export: &Export, replies: &mut Replies) -> bool {
    let mark = replies.mark();
    let read = put_data(request, replies, |replies, length| {
        export.read_ready_at(request.offset, replies.room(length))
    });
    match read {
        Ok(true) => true,
        Ok(false) => {
            replies.take_back(mark);
            false
        }
        Err(error) => {
            replies.take_back(mark);
            replies.failed(request, &error.into());
            true
        }
    }
}

/// A reply that is one piece of data.
fn put_data(
    request: &Request,
    replies: &mut Replies,
    fill: impl FnOnce(&mut Replies, usize) -> vhdxkit::Result<bool>,
) -> vhdxkit::Result<bool> {
    let length = usize::try_from(request.length).unwrap_or(usize::MAX).min(PIECE);
    match replies.headers() {
        Headers::Simple => replies.simple(request, 0),
        Headers::Structured | Headers::Extended => {
            replies.data(request, request.offset, length, true);
        }
    }
    fill(replies, length)
}

/// A part of a large read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// It reads as zeros.
    pub(super) hole: bool,
}

/// Whether a read is to be looked through for holes.
pub(super) fn may_have_holes(request: &Request, headers: Headers) -> bool {
    headers > Headers::Simple && !request.has(flag::DF) && request.length >= LOOK_FOR_HOLES
}

/// The parts of a large read, in order: neighbours that are alike are one.
pub(super) fn parts(request: &Request, export: &Export) -> vhdxkit::Result<Vec<Part>> {
    let range = range_of(request);
    let mut parts: Vec<Part> = Vec::new();
    let mut told = range.start;
    export.runs(range.clone(), |run: Run| {
        let (hole, full) = (run.is_zero(), parts.len() == MOST_RUNS);
        match parts.last_mut() {
            Some(last) if last.hole == hole => last.range.end = run.end(),
            _ if full => return ControlFlow::Break(()),
            _ => parts.push(Part { range: run.start..run.end(), hole }),
        }
        told = run.end();
        ControlFlow::Continue(())
    })?;
    if told < range.end {
        parts.push(Part { range: told..range.end, hole: false });
    }
    Ok(parts)
}
