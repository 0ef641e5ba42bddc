//! The transmission: requests of one client in, replies out.
//!
//! # Who does what
//! One thread belongs to the client. It takes requests as they come, many at a time, and answers at once
//! what can be answered without waiting for a device: reads of what the system has cached, and writes, which
//! go to its cache. Replies gather and are sent with one call. What may take longer (flushes, discards,
//! reads from the device) goes to the export's [`workers`](super::workers), and the client's thread goes on;
//! finished replies come back through [`Returns`], and the thread sends them. So nobody but the client's own
//! thread ever waits for the client: one that does not read its replies stops itself, and nothing else.
//!
//! # What it may cost
//! A client has [`INPUT`] bytes of requests, one [`PIECE`] of data on its way in and one on its way out, and
//! [`MOST_RESERVED`] bytes of replies under way: less than two mebibytes in all, most of it only while it is
//! used. Longer reads and writes go through in pieces; only the whole reply to a client without structured
//! ones ([`WHOLE`]) is larger for a moment.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::contexts::{Context, MOST_TOLD};
use super::handshake::{Agreed, broken};
use super::offer::Offer;
use super::protocol::{Errno, Fields, Headers, Request, command, command_flag as flag};
use super::replies::{Failure, Replies};
use super::requests::{Progress, judge, judge_range, may_have_holes, parts, read_ready};
use super::tasks::{Returns, Task};
use super::wire::{Bell, Wire, wait_for};

/// Bytes that one request may read or write.
pub(super) const MOST_AT_ONCE: u32 = 32 << 20;
/// Bytes that are read or written at once on behalf of one request.
pub(super) const PIECE: usize = 256 << 10;
/// Bytes of requests that are taken at once. A write that fits is written straight from there.
const INPUT: usize = 128 << 10;
/// So many bytes of replies are sent without waiting for more.
const ENOUGH: usize = 64 << 10;
/// A read of so many bytes by a client without structured replies is answered as a whole: where an error
/// comes in the midst of one, such a client can only be cut off.
const WHOLE: usize = 2 << 20;
/// Requests of one client that are under way with the workers at the same time.
const MOST_JOBS: usize = 32;
/// Bytes that their replies may have together.
const MOST_RESERVED: usize = 1 << 20;
/// While the last replies are waited for, whether the client is still there is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A payload of a request other than a write.
const LONGEST_PAYLOAD: u64 = 4096;

/// The number of the next client.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Requests that have come and were not looked at yet.
struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let start = self.start;
        self.start += length;
        &self.buf[start..self.start]
    }

    /// Room behind what is there, for `wanted` bytes in all.
    fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buf[self.end..]
    }
}

/// A client that has chosen its export.
struct Session<'a, W> {
    wire: &'a mut W,
    offer: Arc<Offer>,
    contexts: Arc<[Context]>,
    stopping: &'a AtomicBool,
    input: Input,
    replies: Replies,
    /// Made when something is waited for the first time.
    returns: Option<Arc<Returns>>,
    /// Tells clients apart where they meet.
    number: u64,
    /// Requests under way with the workers, and memory set aside for their replies.
    jobs: usize,
    reserved: usize,
    /// For payloads that do not fit the input.
    scratch: Vec<u8>,
}

/// Serves one client until it goes, or the server stops.
pub(super) fn transmit(
    wire: &mut impl Wire,
    agreed: Agreed,
    stopping: &AtomicBool,
) -> io::Result<()> {
    let mut session = Session {
        wire,
        offer: agreed.offer,
        contexts: agreed.contexts.into(),
        stopping,
        input: Input { buf: vec![0; INPUT].into(), start: 0, end: 0 },
        replies: Replies::new(agreed.headers),
        returns: None,
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        jobs: 0,
        reserved: 0,
        scratch: Vec::new(),
    };
    let served = session.serve();
    // What is under way ends before the client is forgotten. It hears of it if it still listens; not after an
    // error, which may have come in the midst of a reply.
    let finished = session.finish(served.is_err());
    served.and(finished)
}

impl<W: Wire> Session<'_, W> {
    fn serve(&mut self) -> io::Result<()> {
        let headers = self.replies.headers();
        let length = headers.request_length();
        while self.need(length)? {
            let request = Request::decode(headers, self.input.take(length));
            let request = request.ok_or_else(|| broken("the client does not send requests"))?;
            let payload = request.payload_length(headers);
            if payload > MOST_AT_ONCE.into() {
                // To read it all would be to wait for nothing; to leave it, to take it for requests.
                return Err(broken("the client sends more than it may at once"));
            }
            if request.command == command::DISC {
                return Ok(());
            }
            match judge(&request, &self.offer.export, headers, &self.contexts) {
                Ok(()) => self.carry_out(request)?,
                Err(failure) => {
                    self.skip(payload)?;
                    self.replies.failed(&request, &failure);
                }
            }
            if self.replies.mark() >= ENOUGH {
                self.send()?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, request: Request) -> io::Result<()> {
        match request.command {
            command::WRITE => self.write(&request),
            command::READ if may_have_holes(&request, self.replies.headers()) => {
                self.read_in_parts(&request)
            }
            command::READ if request.length > PIECE as u64 => self.read_whole(&request),
            command::READ => {
                if !read_ready(&request, &self.offer.export, &mut self.replies) {
                    self.hand_over(request, Arc::clone(&self.contexts))?;
                }
                Ok(())
            }
            command::BLOCK_STATUS if request.has(flag::PAYLOAD_LEN) => self.filtered(request),
            _ => self.hand_over(request, Arc::clone(&self.contexts)),
        }
    }

    /// Has a request carried out by those who may wait.
    fn hand_over(&mut self, request: Request, contexts: Arc<[Context]>) -> io::Result<()> {
        let reserved = match request.command {
            command::READ => usize::try_from(request.length).unwrap_or(PIECE),
            // Descriptors have 16 bytes at most.
            command::BLOCK_STATUS => contexts.len() * MOST_TOLD * 16,
            _ => 1024,
        };
        while self.jobs > 0 && (self.jobs >= MOST_JOBS || self.reserved + reserved > MOST_RESERVED)
        {
            // The client has enough under way: now it waits for itself.
            self.wait_for_one()?;
        }
        let returns = match &self.returns {
            Some(returns) => Arc::clone(returns),
            None => Arc::clone(self.returns.insert(Arc::new(Returns::new(Bell::new()?)))),
        };
        self.jobs += 1;
        self.reserved += reserved;
        let task = Task {
            client: self.number,
            request,
            contexts,
            headers: self.replies.headers(),
            reserved,
            offer: Arc::clone(&self.offer),
            returns,
            progress: Progress::default(),
        };
        task.submit();
        Ok(())
    }

    /// Waits until something that is under way is done, and passes it on.
    fn wait_for_one(&mut self) -> io::Result<()> {
        let Some(returns) = self.returns.clone() else { return Ok(()) };
        loop {
            let before = self.jobs;
            self.collect()?;
            if self.jobs < before {
                return Ok(());
            }
            wait_for(&[returns.bell.as_fd()], None)?;
            returns.bell.hear();
        }
    }

    /// Takes the replies of what is done, and sends those that are too long to wait for others.
    fn collect(&mut self) -> io::Result<()> {
        let Some(returns) = &self.returns else { return Ok(()) };
        for done in returns.take() {
            self.jobs -= 1;
            self.reserved -= done.reserved;
            let bytes = done.replies.bytes();
            if bytes.len() + self.replies.mark() > ENOUGH {
                self.wire.send(self.replies.bytes())?;
                self.replies.clear();
                self.wire.send(bytes)?;
            } else {
                self.replies.put(bytes);
            }
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.replies.mark() > 0 {
            self.wire.send(self.replies.bytes())?;
            self.replies.clear();
            self.replies.shrink(PIECE + 2 * ENOUGH);
        }
        Ok(())
    }

    /// Before something is waited for from the client: sends what it may be waiting for itself, and goes on
    /// sending until the client has said something.
    fn before_reading(&mut self) -> io::Result<()> {
        loop {
            self.collect()?;
            self.send()?;
            let Some(returns) = self.returns.as_ref().filter(|_| self.jobs > 0) else {
                return Ok(());
            };
            let ready = self.wire.wait(&returns.bell)?;
            if ready.rung {
                // Silenced first: what rings after it is collected by whoever hears that.
                returns.bell.hear();
                self.collect()?;
                self.send()?;
            }
            if ready.readable {
                return Ok(());
            }
        }
    }

    /// Reads until the input has `wanted` bytes; `false` when the client has ended before the first.
    fn need(&mut self, wanted: usize) -> io::Result<bool> {
        while self.input.bytes().len() < wanted {
            self.before_reading()?;
            let stopping = self.stopping.load(Ordering::Relaxed);
            let read = if stopping { 0 } else { self.wire.read(self.input.room(wanted))? };
            self.input.end += read;
            if read == 0 {
                return match self.input.bytes().is_empty() || stopping {
                    true => Ok(false),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        Ok(true)
    }

    /// Takes the next bytes of a payload into the scratch, [`PIECE`] at most; returns how many.
    fn next_piece(&mut self, left: u64) -> io::Result<usize> {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        self.scratch.resize(PIECE, 0);
        let mut done = self.input.bytes().len().min(length);
        self.scratch[..done].copy_from_slice(self.input.take(done));
        while done < length {
            self.before_reading()?;
            match self.wire.read(&mut self.scratch[done..length])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(length)
    }

    /// Passes by a payload that nobody wants.
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            left -= self.next_piece(left)? as u64;
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) -> io::Result<()> {
        let mut result = Ok(());
        if request.length <= INPUT as u64 {
            let length = usize::try_from(request.length).unwrap_or(INPUT);
            if !self.need(length)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            result = self.offer.export.write_at(request.offset, self.input.take(length));
        } else {
            let mut done = 0;
            while done < request.length {
                let length = self.next_piece(request.length - done)?;
                // After a failure the rest has to be taken off the wire all the same.
                if result.is_ok() {
                    let bytes = &self.scratch[..length];
                    result = self.offer.export.write_at(request.offset + done, bytes);
                }
                done += length as u64;
            }
        }
        match result {
            Ok(()) if request.has(flag::FUA) => {
                self.hand_over(*request, Arc::clone(&self.contexts))
            }
            Ok(()) => {
                self.replies.done(request);
                Ok(())
            }
            Err(error) => {
                self.replies.failed(request, &error.into());
                Ok(())
            }
        }
    }

    /// A read by a client that understands chunks: holes are told, not sent.
    fn read_in_parts(&mut self, request: &Request) -> io::Result<()> {
        let export = self.offer.export.clone();
        let parts = match parts(request, &export) {
            Ok(parts) => parts,
            Err(error) => {
                self.replies.failed(request, &error.into());
                return Ok(());
            }
        };
        if let [part] = &*parts
            && !part.hole
            && request.length <= PIECE as u64
        {
            if !read_ready(request, &export, &mut self.replies) {
                return self.hand_over(*request, Arc::clone(&self.contexts));
            }
            return Ok(());
        }
        let end = request.offset + request.length;
        for part in parts {
            let mut at = part.range.start;
            while at < part.range.end {
                let left = part.range.end - at;
                if part.hole {
                    // A request is shorter than 4 GiB.
                    let length = u32::try_from(left).unwrap_or(u32::MAX);
                    self.replies.hole(request, at, length, part.range.end == end);
                    break;
                }
                let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let mark = self.replies.mark();
                self.replies.data(request, at, length, at + length as u64 == end);
                if let Err(error) = export.read_at(at, self.replies.room(length)) {
                    self.replies.take_back(mark);
                    self.replies.failed(request, &error.into());
                    return Ok(());
                }
                at += length as u64;
                if self.replies.mark() >= ENOUGH {
                    self.send()?;
                }
            }
        }
        Ok(())
    }

    /// A long read whose reply must be one piece.
    fn read_whole(&mut self, request: &Request) -> io::Result<()> {
        if self.replies.headers() > Headers::Simple {
            let why = format!("more than {PIECE} bytes in one piece");
            self.replies.failed(request, &Failure::new(Errno::Overflow, why));
            return Ok(());
        }
        let length = usize::try_from(request.length).unwrap_or(usize::MAX);
        let export = self.offer.export.clone();
        let first = if length <= WHOLE { length } else { PIECE };
        let mark = self.replies.mark();
        self.replies.simple(request, 0);
        if let Err(error) = export.read_at(request.offset, self.replies.room(first)) {
            self.replies.take_back(mark);
            self.replies.failed(request, &error.into());
            return Ok(());
        }
        let mut done = first;
        self.send()?;
        while done < length {
            let step = (length - done).min(PIECE);
            let at = request.offset + done as u64;
            let read = export.read_at(at, self.replies.room(step));
            // The reply has said that all is well.
            read.map_err(|_| broken("a read failed in the midst of its reply"))?;
            self.send()?;
            done += step;
        }
        self.replies.shrink(PIECE + ENOUGH);
        Ok(())
    }

    /// A question about some of the contexts only, which its payload names.
    fn filtered(&mut self, request: Request) -> io::Result<()> {
        let malformed = Failure::new(Errno::Inval, "the payload makes no sense");
        if request.length > LONGEST_PAYLOAD {
            self.skip(request.length)?;
            self.replies.failed(&request, &malformed);
            return Ok(());
        }
        let length = self.next_piece(request.length)?;
        let mut fields = Fields(&self.scratch[..length]);
        let meant = fields.u64();
        let mut wanted = Vec::new();
        while let Some(id) = fields.u32() {
            wanted.extend(self.contexts.iter().filter(|context| context.id() == id));
        }
        let sound = fields.0.is_empty() && !wanted.is_empty();
        let Some(meant) = meant.filter(|_| sound) else {
            self.replies.failed(&request, &malformed);
            return Ok(());
        };
        if let Err(failure) = judge_range(&request, &self.offer.export, meant) {
            self.replies.failed(&request, &failure);
            return Ok(());
        }
        wanted.sort_unstable();
        wanted.dedup();
        self.hand_over(Request { length: meant, ..request }, wanted.into())
    }

    /// Waits for what is under way, and sends the last replies, unless the client has gone.
    fn finish(&mut self, mut gone: bool) -> io::Result<()> {
        let Some(returns) = self.returns.clone() else {
            return if gone { Ok(()) } else { self.send() };
        };
        let mut result = Ok(());
        loop {
            // Collected before it is waited for: the bell may have been heard already.
            if gone {
                self.jobs -= returns.take().len();
            } else {
                result = self.collect().and_then(|()| self.send());
                gone = result.is_err() || self.wire.has_gone();
            }
            if gone {
                returns.abandon();
            }
            if self.jobs == 0 {
                return result;
            }
            wait_for(&[returns.bell.as_fd()], Some(LOOK_AGAIN))?;
            returns.bell.hear();
        }
    }
}
