//! Replies on their way out: encoded one after another into a buffer, which is sent as a whole.

use super::contexts::Status;
use super::protocol::{
    EXTENDED_REPLY_MAGIC, Errno, Headers, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    chunk,
};

/// A failure, as a reply tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    /// For people; empty when there is nothing to add.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }
}

impl From<vhdxkit::Error> for Failure {
    fn from(error: vhdxkit::Error) -> Self {
        use std::io::ErrorKind as Io;
        use vhdxkit::ErrorKind as Kind;
        let errno = match (error.kind(), error.io_error().map(std::io::Error::kind)) {
            (Kind::InvalidInput | Kind::OutOfRange, _) => Errno::Inval,
            (_, Some(Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory)) => {
                Errno::NoSpc
            }
            _ => Errno::Io,
        };
        Self::new(errno, error.to_string())
    }
}

/// Messages of people's length: the protocol allows 4096 bytes.
const LONGEST_MESSAGE: usize = 1024;

/// The buffer grows by this.
const STEP: usize = 64 << 10;

/// Encoded replies. What was used once is not cleared when it is used again.
#[derive(Debug)]
pub(super) struct Replies {
    headers: Headers,
    buf: Vec<u8>,
    used: usize,
}

impl Replies {
    pub(super) fn new(headers: Headers) -> Self {
        Self { headers, buf: Vec::new(), used: 0 }
    }

    pub(super) fn headers(&self) -> Headers {
        self.headers
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[..self.used]
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Gives memory back that is more than this; there must be nothing to be sent.
    pub(super) fn shrink(&mut self, length: usize) {
        if self.used == 0 && self.buf.len() > length {
            self.buf = Vec::new();
        }
    }

    /// Forgets everything behind a mark, taken from [`Self::mark`].
    pub(super) fn take_back(&mut self, mark: usize) {
        self.used = mark;
    }

    pub(super) fn mark(&self) -> usize {
        self.used
    }

    /// Room for `length` bytes more, to be filled by the caller. They may hold anything.
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        let start = self.used;
        self.used += length;
        if self.buf.len() < self.used {
            // Grows in steps: this happens a few times in the life of a connection.
            let step = if self.used < STEP { 4096 } else { STEP };
            self.buf.resize(self.used.next_multiple_of(step), 0);
        }
        &mut self.buf[start..self.used]
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// The header of a chunk with a payload of `length` bytes.
    pub(super) fn chunk(&mut self, request: &Request, kind: u16, done: bool, length: usize) {
        let flags = if done { chunk::DONE } else { 0 };
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let extended = self.headers == Headers::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        self.put(&magic.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&request.cookie.to_be_bytes());
        if extended {
            self.put(&request.offset.to_be_bytes());
            self.put(&u64::from(length).to_be_bytes());
        } else {
            self.put(&length.to_be_bytes());
        }
    }

    /// The header of a simple reply. What follows it, if anything, is data.
    pub(super) fn simple(&mut self, request: &Request, error: u32) {
        self.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.put(&error.to_be_bytes());
        self.put(&request.cookie.to_be_bytes());
    }

    /// A request that was carried out and has nothing to say.
    pub(super) fn done(&mut self, request: &Request) {
        match self.headers {
            Headers::Extended => self.chunk(request, chunk::NONE, true, 0),
            // Shorter, and allowed where no data belongs to the reply.
            Headers::Simple | Headers::Structured => self.simple(request, 0),
        }
    }

    /// A request that failed.
    pub(super) fn failed(&mut self, request: &Request, failure: &Failure) {
        if self.headers == Headers::Simple {
            return self.simple(request, failure.errno.code());
        }
        let mut end = failure.message.len().min(LONGEST_MESSAGE);
        while !failure.message.is_char_boundary(end) {
            end -= 1;
        }
        let message = &failure.message.as_bytes()[..end];
        self.chunk(request, chunk::ERROR, true, 6 + message.len());
        self.put(&failure.errno.code().to_be_bytes());
        self.put(&u16::try_from(message.len()).unwrap_or_default().to_be_bytes());
        self.put(message);
    }

    /// The header of a chunk of data of `length` bytes, which follow.
    pub(super) fn data(&mut self, request: &Request, offset: u64, length: usize, done: bool) {
        self.chunk(request, chunk::OFFSET_DATA, done, 8 + length);
        self.put(&offset.to_be_bytes());
    }

    /// A chunk that stands for zeros.
    pub(super) fn hole(&mut self, request: &Request, offset: u64, length: u32, done: bool) {
        self.chunk(request, chunk::OFFSET_HOLE, done, 12);
        self.put(&offset.to_be_bytes());
        self.put(&length.to_be_bytes());
    }

    /// What one context says of a range.
    pub(super) fn status(&mut self, request: &Request, context: u32, list: &[Status], done: bool) {
        if self.headers == Headers::Extended {
            self.chunk(request, chunk::BLOCK_STATUS_EXT, done, 8 + 16 * list.len());
            self.put(&context.to_be_bytes());
            self.put(&u32::try_from(list.len()).unwrap_or_default().to_be_bytes());
            for status in list {
                self.put(&status.length.to_be_bytes());
                self.put(&u64::from(status.flags).to_be_bytes());
            }
        } else {
            self.chunk(request, chunk::BLOCK_STATUS, done, 4 + 8 * list.len());
            self.put(&context.to_be_bytes());
            for status in list {
                // A request of this kind of header is no longer than that.
                self.put(&u32::try_from(status.length).unwrap_or(u32::MAX).to_be_bytes());
                self.put(&status.flags.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { flags: 0, command: 0, cookie: 7, offset: 0, length: 1 };

    /// The length in a chunk's header says where the next one begins: it must fit what was put.
    #[test]
    fn every_chunk_is_as_long_as_it_says() {
        for headers in [Headers::Structured, Headers::Extended] {
            let failure = Failure::new(Errno::Io, "ä".repeat(2000));
            let status = [Status { length: 4096, flags: 3 }, Status { length: 512, flags: 0 }];
            let puts: [&dyn Fn(&mut Replies); 4] = [
                &|replies| replies.failed(&REQUEST, &failure),
                &|replies| {
                    replies.data(&REQUEST, 0, 5, true);
                    replies.put(&[0; 5]);
                },
                &|replies| replies.hole(&REQUEST, 0, 5, true),
                &|replies| replies.status(&REQUEST, 1, &status, true),
            ];
            for put in puts {
                let mut replies = Replies::new(headers);
                put(&mut replies);
                let (header, told) = match headers {
                    Headers::Extended => {
                        (32, u64::from_be_bytes(replies.bytes()[24..32].try_into().unwrap()))
                    }
                    _ => {
                        (20, u32::from_be_bytes(replies.bytes()[16..20].try_into().unwrap()).into())
                    }
                };
                assert_eq!(replies.bytes().len() as u64, header + told, "{headers:?}");
            }
        }
    }

    #[test]
    fn room_is_used_again() {
        let mut replies = Replies::new(Headers::Simple);
        replies.put(b"abc");
        let mark = replies.mark();
        replies.put(b"def");
        replies.take_back(mark);
        replies.put(b"g");
        assert_eq!(replies.bytes(), b"abcg");
        replies.clear();
        assert_eq!(replies.bytes(), b"");
    }
}
