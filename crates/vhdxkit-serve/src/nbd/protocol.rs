//! The NBD protocol's numbers and messages, as bytes: no sockets, no disks, no policy.
//!
//! Names are those of the protocol's document (`doc/proto.md` of the NBD project), without their prefix.
//! Everything on the wire is big-endian.

/// `NBDMAGIC`, the server's first word.
pub(super) const MAGIC: u64 = 0x4E42_444D_4147_4943;
/// `IHAVEOPT`, the server's second word, and before each option of a client.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// Before each answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
/// Before each request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each request with an extended header.
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21E4_1C71;
/// Before each simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668E_33EF;
/// Before each chunk of a reply with an extended header.
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6E8A_278C;

/// Handshake flags of the server, and of the client in its answer.
pub(super) mod handshake_flag {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

/// Options.
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const STARTTLS: u32 = 5;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
    pub(in super::super) const EXTENDED_HEADERS: u32 = 11;
}

/// Answers to options; those with the highest bit set are errors.
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    pub(in super::super) const ERR_UNSUP: u32 = 0x8000_0001;
    pub(in super::super) const ERR_POLICY: u32 = 0x8000_0002;
    pub(in super::super) const ERR_INVALID: u32 = 0x8000_0003;
    pub(in super::super) const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub(in super::super) const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub(in super::super) const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub(in super::super) const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub(in super::super) const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Kinds of information about an export.
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod transmission_flag {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const SEND_CACHE: u16 = 1 << 10;
    pub(in super::super) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(in super::super) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Kinds of requests.
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const CACHE: u16 = 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub(super) mod command_flag {
    pub(in super::super) const FUA: u16 = 1;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DF: u16 = 1 << 2;
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 4;
    pub(in super::super) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunks of structured and extended replies.
pub(super) mod chunk {
    /// Flag of the last chunk of a reply.
    pub(in super::super) const DONE: u16 = 1;
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const OFFSET_DATA: u16 = 1;
    pub(in super::super) const OFFSET_HOLE: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 5;
    pub(in super::super) const BLOCK_STATUS_EXT: u16 = 6;
    pub(in super::super) const ERROR: u16 = 0x8001;
}

/// The context `base:allocation`.
pub(super) mod allocation {
    pub(in super::super) const HOLE: u32 = 1;
    pub(in super::super) const ZERO: u32 = 2;
}

/// Errors that a reply can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
    Shutdown = 108,
}

impl Errno {
    pub(super) fn code(self) -> u32 {
        self as u32
    }
}

/// How requests and replies look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Headers {
    /// A reply is one piece.
    Simple,
    /// A reply is a row of chunks.
    Structured,
    /// The same, with lengths of 64 bits.
    Extended,
}

impl Headers {
    /// Bytes of a request's header.
    pub(super) fn request_length(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }
}

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// The client's own mark, given back with the reply.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    /// Bytes of the disk that are meant, or, with a payload, of what follows.
    pub(super) length: u64,
}

impl Request {
    /// Takes a header apart; `None` when it does not start as it should. `bytes` has
    /// [`Headers::request_length`] bytes.
    pub(super) fn decode(headers: Headers, bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = match headers {
            Headers::Simple | Headers::Structured => REQUEST_MAGIC,
            Headers::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if fields.u32()? != magic {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: match headers {
                Headers::Simple | Headers::Structured => fields.u32()?.into(),
                Headers::Extended => fields.u64()?,
            },
        })
    }

    /// Bytes that follow the header.
    pub(super) fn payload_length(&self, headers: Headers) -> u64 {
        let flagged = self.flags & command_flag::PAYLOAD_LEN != 0;
        match self.command {
            command::WRITE => self.length,
            _ if headers == Headers::Extended && flagged => self.length,
            _ => 0,
        }
    }

    /// Whether a flag is set.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Takes big-endian fields from the front of a message.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(length)?;
        self.0 = later;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text that is preceded by its length.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_apart() {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 1, 0, 6]);
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(8u64.to_be_bytes());
        bytes.extend(9u32.to_be_bytes());
        let request = Request { flags: 1, command: 6, cookie: 7, offset: 8, length: 9 };
        assert_eq!(Request::decode(Headers::Simple, &bytes), Some(request));
        assert_eq!(Request::decode(Headers::Extended, &bytes), None);
        for end in 0..bytes.len() {
            assert_eq!(Request::decode(Headers::Structured, &bytes[..end]), None);
        }
    }

    /// A payload that is not expected would be taken for requests.
    #[test]
    fn only_writes_and_announced_payloads_follow_a_header() {
        let request = |command, flags| Request { flags, command, cookie: 0, offset: 0, length: 5 };
        use command_flag::PAYLOAD_LEN;
        let follows = |headers, command, flags| request(command, flags).payload_length(headers);
        assert_eq!(follows(Headers::Simple, command::WRITE, 0), 5);
        assert_eq!(follows(Headers::Extended, command::WRITE, 0), 5);
        assert_eq!(follows(Headers::Extended, command::BLOCK_STATUS, PAYLOAD_LEN), 5);
        assert_eq!(follows(Headers::Extended, command::READ, PAYLOAD_LEN), 5);
        assert_eq!(follows(Headers::Structured, command::READ, PAYLOAD_LEN), 0);
        assert_eq!(follows(Headers::Extended, command::BLOCK_STATUS, 0), 0);
    }
}
