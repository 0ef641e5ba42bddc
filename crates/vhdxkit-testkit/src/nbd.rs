//! A client of the NBD protocol, for tests of servers.
//!
//! [`Wire`] speaks in whole messages and sends any bytes it is told to: for tests of what a server makes of
//! nonsense. [`Client`] negotiates and then sends [`Request`]s without waiting; replies come in any order,
//! in one piece or in several, and say which request they answer. It keeps to the protocol only as far as
//! its caller does: any offset, length, flags and command may be sent.
//!
//! Unlike the rest of this crate it returns errors: that a server goes away is what some tests are about.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The server's first word.
pub const NBDMAGIC: u64 = 0x4E42_444D_4147_4943;
/// Its second word, and the first of each option.
pub const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
/// Before each answer to an option.
pub const OPTION_REPLY: u64 = 0x0003_E889_0455_65A9;
/// Before each request.
pub const REQUEST: u32 = 0x2560_9513;
/// Before a reply in one piece.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const STRUCTURED_REPLY: u32 = 0x668E_33EF;

/// Options.
pub mod option {
    /// Begin with an export; it may be refused.
    pub const GO: u32 = 7;
    /// Replies may come in several pieces.
    pub const STRUCTURED_REPLY: u32 = 8;
}

/// Answers to options; those with the highest bit set are errors.
pub mod answer {
    /// Done.
    pub const ACK: u32 = 1;
    /// Something about the export.
    pub const INFO: u32 = 3;
}

/// Commands.
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// Zeros keep their space.
    pub const NO_HOLE: u16 = 2;
    /// The data in one chunk.
    pub const DF: u16 = 4;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 8;
    /// Zeros only if that is quick.
    pub const FAST_ZERO: u16 = 16;
}

/// Kinds of chunks; those with the highest bit set are errors.
pub mod chunk {
    #![allow(missing_docs)]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// No test's server takes longer for one message.
const PATIENCE: Duration = Duration::from_secs(60);
/// No test asks for more at once.
const LONGEST: u32 = 64 << 20;

/// A connection, message by message.
#[derive(Debug)]
pub struct Wire(UnixStream);

impl Wire {
    /// Connects, and says nothing.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// The socket, for whatever else is to be done to it.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// The server has gone.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Receives so many bytes.
    ///
    /// # Errors
    /// The server has gone, or is silent.
    pub fn receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives the server's greeting, and answers it with these flags (1: fixed newstyle, 2: no zeros
    /// behind an old reply). Returns the server's flags.
    ///
    /// # Errors
    /// The server greets otherwise, or has gone.
    pub fn greet(&mut self, flags: u32) -> io::Result<u16> {
        if (self.u64()?, self.u64()?) != (NBDMAGIC, IHAVEOPT) {
            return Err(io::Error::other("no newstyle server"));
        }
        let theirs = self.u16()?;
        self.send(&flags.to_be_bytes())?;
        Ok(theirs)
    }

    /// Sends an option.
    ///
    /// # Errors
    /// The server has gone.
    pub fn send_option(&mut self, number: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes)
    }

    /// Receives an answer to an option: which option, the kind of answer, its data.
    ///
    /// # Errors
    /// The server sends something else, or has gone.
    pub fn receive_answer(&mut self) -> io::Result<(u32, u32, Vec<u8>)> {
        if self.u64()? != OPTION_REPLY {
            return Err(io::Error::other("no answer to an option"));
        }
        let (option, kind, length) = (self.u32()?, self.u32()?, self.u32()?);
        Ok((option, kind, self.receive(length.min(LONGEST) as usize)?))
    }

    /// Sends a request's header as it is, and its data.
    ///
    /// # Errors
    /// The server has gone.
    pub fn send_request(&mut self, cookie: u64, length: u32, request: &Request) -> io::Result<()> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend(request.flags.to_be_bytes());
        bytes.extend(request.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(request.offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(&request.data);
        self.send(&bytes)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// See [`command`].
    pub command: u16,
    /// See [`flag`].
    pub flags: u16,
    /// Where.
    pub offset: u64,
    /// Bytes. Of a write, the length of its data.
    pub length: u32,
    /// What a write writes.
    pub data: Vec<u8>,
}

impl Request {
    /// A request without data.
    #[must_use]
    pub fn new(command: u16, offset: u64, length: u32) -> Self {
        Self { command, offset, length, ..Self::default() }
    }

    /// A write.
    #[must_use]
    pub fn write(offset: u64, data: Vec<u8>) -> Self {
        Self { command: command::WRITE, flags: 0, offset, length: data.len() as u32, data }
    }

    /// A flush.
    #[must_use]
    pub fn flush() -> Self {
        Self::new(command::FLUSH, 0, 0)
    }

    /// The same with these flags, too.
    #[must_use]
    pub fn with(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Of the request that it answers.
    pub cookie: u64,
    /// The protocol's number of the error; zero if it was done.
    pub error: u32,
    /// What the server says about the error, in a structured reply.
    pub message: String,
    /// What a read has read; of other commands' structured replies, all chunks' payloads.
    pub data: Vec<u8>,
    /// Chunks that it came in; zero for a simple reply.
    pub chunks: usize,
}

/// A connection after negotiation.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    size: u64,
    flags: u16,
    structured: bool,
    next: u64,
    /// What is not answered yet, by its cookie: offset and length, and whether it reads.
    waiting: HashMap<u64, (u64, u32, bool)>,
    /// Replies of which some chunks have come.
    partial: HashMap<u64, Reply>,
}

impl Client {
    /// Connects, and begins with an export; with structured replies if the server has them and they are
    /// wanted.
    ///
    /// # Errors
    /// Nobody listens, the export is refused, or the server does not keep to the protocol.
    pub fn connect(socket: &Path, export: &str, structured: bool) -> io::Result<Self> {
        let mut wire = Wire::connect(socket)?;
        let theirs = wire.greet(3)?;
        if theirs & 1 == 0 {
            return Err(io::Error::other("not fixed newstyle"));
        }
        let structured = structured && {
            wire.send_option(option::STRUCTURED_REPLY, &[])?;
            wire.receive_answer()?.1 == answer::ACK
        };
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend(export.as_bytes());
        data.extend(0u16.to_be_bytes());
        wire.send_option(option::GO, &data)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let (_, kind, data) = wire.receive_answer()?;
            match kind {
                answer::ACK => break,
                // Kind 0 is the export itself: its size and what it can do.
                answer::INFO if data.len() == 12 && data[..2] == [0, 0] => {
                    size = u64::from_be_bytes(data[2..10].try_into().expect("eight bytes"));
                    flags = u16::from_be_bytes(data[10..].try_into().expect("two bytes"));
                }
                answer::INFO => {}
                _ => {
                    let words = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("refused with {kind:#x}: {words}")));
                }
            }
        }
        let (waiting, partial) = (HashMap::new(), HashMap::new());
        Ok(Self { wire, size, flags, structured, next: 1, waiting, partial })
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the export can do, in the protocol's bits.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Whether structured replies were agreed on.
    #[must_use]
    pub fn structured(&self) -> bool {
        self.structured
    }

    /// The connection, to send it anything.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Requests that are not answered yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The cookie of the next request.
    #[must_use]
    pub fn next_cookie(&self) -> u64 {
        self.next
    }

    /// Sends a request, without waiting for its reply. Returns its cookie.
    ///
    /// # Errors
    /// The server has gone.
    pub fn send(&mut self, request: &Request) -> io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let reads = request.command == command::READ;
        self.waiting.insert(cookie, (request.offset, request.length, reads));
        self.wire.send_request(cookie, request.length, request)?;
        Ok(cookie)
    }

    /// Receives the next whole reply, whichever request it answers.
    ///
    /// # Errors
    /// The server has gone or is silent, or does not keep to the protocol.
    pub fn receive(&mut self) -> io::Result<Reply> {
        loop {
            match self.wire.u32()? {
                SIMPLE_REPLY => return self.simple(),
                STRUCTURED_REPLY if self.structured => {
                    if let Some(reply) = self.chunk()? {
                        return Ok(reply);
                    }
                }
                other => return Err(io::Error::other(format!("{other:#x} begins no reply"))),
            }
        }
    }

    /// Sends a request and receives its reply; nothing else may be under way.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn call(&mut self, request: &Request) -> io::Result<Reply> {
        let cookie = self.send(request)?;
        let reply = self.receive()?;
        match reply.cookie == cookie {
            true => Ok(reply),
            false => Err(io::Error::other("the reply to another request")),
        }
    }

    /// Says good-bye. There is no reply.
    ///
    /// # Errors
    /// The server has gone.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.wire.send_request(self.next, 0, &Request::new(command::DISC, 0, 0))
    }

    fn simple(&mut self) -> io::Result<Reply> {
        let (error, cookie) = (self.wire.u32()?, self.wire.u64()?);
        let (_, length, reads) = self.answered(cookie)?;
        if reads && self.structured {
            return Err(io::Error::other("a simple reply to a read, where structured was agreed"));
        }
        let length = if reads && error == 0 { length } else { 0 };
        let data = self.wire.receive(length as usize)?;
        Ok(Reply { cookie, error, data, ..Reply::default() })
    }

    fn answered(&mut self, cookie: u64) -> io::Result<(u64, u32, bool)> {
        let known = self.waiting.remove(&cookie);
        known.ok_or_else(|| io::Error::other(format!("a reply to no request: {cookie}")))
    }

    fn chunk(&mut self) -> io::Result<Option<Reply>> {
        let (flags, kind) = (self.wire.u16()?, self.wire.u16()?);
        let (cookie, length) = (self.wire.u64()?, self.wire.u32()?);
        if length > LONGEST {
            return Err(io::Error::other(format!("a chunk of {length} bytes")));
        }
        let payload = self.wire.receive(length as usize)?;
        let known = self.waiting.get(&cookie).copied();
        let (offset, wanted, reads) =
            known.ok_or_else(|| io::Error::other(format!("a chunk for no request: {cookie}")))?;
        let reply = self.partial.entry(cookie).or_insert_with(|| Reply {
            cookie,
            // What no chunk fills stands out.
            data: vec![0xEE; if reads { wanted as usize } else { 0 }],
            ..Reply::default()
        });
        reply.chunks += 1;
        fill(reply, kind, &payload, offset)?;
        if flags & chunk::DONE == 0 {
            return Ok(None);
        }
        self.answered(cookie)?;
        Ok(self.partial.remove(&cookie))
    }
}

/// Adds a chunk to a reply.
fn fill(reply: &mut Reply, kind: u16, payload: &[u8], offset: u64) -> io::Result<()> {
    let short = || io::Error::other(format!("a chunk of kind {kind:#x} is too short, or too long"));
    let word = |at: usize| payload.get(at..at + 8).map(|b| b.try_into().expect("eight bytes"));
    let at = || Some(word(0).map(u64::from_be_bytes)?.checked_sub(offset)? as usize);
    match kind {
        chunk::NONE => {}
        chunk::OFFSET_DATA => {
            let at = at().ok_or_else(short)?;
            let part = reply.data.get_mut(at..at + payload.len() - 8).ok_or_else(short)?;
            part.copy_from_slice(&payload[8..]);
        }
        chunk::OFFSET_HOLE if payload.len() == 12 => {
            let at = at().ok_or_else(short)?;
            let length = u32::from_be_bytes(payload[8..].try_into().expect("four bytes"));
            reply.data.get_mut(at..at + length as usize).ok_or_else(short)?.fill(0);
        }
        kind if kind & 0x8000 != 0 && payload.len() >= 6 => {
            reply.error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
            let length = u16::from_be_bytes(payload[4..6].try_into().expect("two bytes"));
            let words = payload.get(6..6 + usize::from(length)).ok_or_else(short)?;
            reply.message = String::from_utf8_lossy(words).into_owned();
        }
        chunk::OFFSET_HOLE => return Err(short()),
        kind if kind & 0x8000 != 0 => return Err(short()),
        _ => reply.data.extend(payload),
    }
    Ok(())
}
