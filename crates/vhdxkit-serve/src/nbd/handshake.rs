//! The handshake: a client says what it can do and which export it wants.
//!
//! Fixed newstyle only. Where the server wants TLS nothing is told before it has begun, not even names;
//! and what was agreed on before TLS is forgotten, since anybody may have said it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::contexts::Context;
use super::offer::{House, Offer};
use super::protocol::{
    Fields, Headers, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option, reply,
};
use super::session::MOST_AT_ONCE;
use super::wire::Wire;

/// An option's data at most: a name, and queries for contexts.
const LONGEST_OPTION: u32 = 64 << 10;
/// What is longer than that is refused; beyond this, so is the client.
const LONGEST_SKIPPED: u32 = 1 << 20;
/// Bytes of a sector that no client has to be told of: none makes smaller requests.
const SECTOR_OF_ALL: u32 = 512;
/// Options in one handshake: who needs more wants something else.
const MOST_OPTIONS: u32 = 10_000;

/// What was agreed on.
pub(super) struct Agreed {
    pub(super) offer: Arc<Offer>,
    pub(super) headers: Headers,
    pub(super) contexts: Vec<Context>,
}

/// What a client said so far.
struct Haggling<'a, W> {
    wire: &'a mut W,
    house: &'a House,
    stopping: &'a AtomicBool,
    no_zeroes: bool,
    encrypted: bool,
    headers: Headers,
    /// The contexts that were chosen, and for which export.
    contexts: (String, Vec<Context>),
}

/// An error as an answer to an option: its number and what a person should know.
type Refusal = (u32, String);

fn refuse(number: u32, why: impl Into<String>) -> Refusal {
    (number, why.into())
}

fn malformed() -> Refusal {
    refuse(reply::ERR_INVALID, "the option's data makes no sense")
}

/// Shakes hands; `None` when the client goes without having chosen an export.
pub(super) fn shake_hands(
    wire: &mut impl Wire,
    house: &House,
    stopping: &AtomicBool,
) -> io::Result<Option<Agreed>> {
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(offered.to_be_bytes());
    wire.send(&hello)?;
    let flags = u32::from_be_bytes(read_array(wire)?);
    if flags & !u32::from(offered) != 0 {
        return Err(broken("the client has flags that we did not offer"));
    }
    let mut haggling = Haggling {
        wire,
        house,
        stopping,
        no_zeroes: flags & u32::from(handshake_flag::NO_ZEROES) != 0,
        encrypted: false,
        headers: Headers::Simple,
        contexts: (String::new(), Vec::new()),
    };
    for _ in 0..MOST_OPTIONS {
        if let Some(result) = haggling.next()? {
            return Ok(result);
        }
    }
    Err(broken("the client goes on and on with options"))
}

pub(super) fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn read_array<const N: usize>(wire: &mut impl Wire) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    read_all(wire, &mut bytes)?;
    Ok(bytes)
}

fn read_all(wire: &mut impl Wire, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match wire.read(&mut buf[done..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

impl<W: Wire> Haggling<'_, W> {
    /// Answers one option; `Some` when it was the last.
    fn next(&mut self) -> io::Result<Option<Option<Agreed>>> {
        if u64::from_be_bytes(read_array(self.wire)?) != OPTION_MAGIC {
            return Err(broken("the client does not send options"));
        }
        let number = u32::from_be_bytes(read_array(self.wire)?);
        let length = u32::from_be_bytes(read_array(self.wire)?);
        if length > LONGEST_OPTION {
            self.skip(length)?;
            self.answer(number, reply::ERR_TOO_BIG, b"the option's data is too long")?;
            return Ok(None);
        }
        let tls_only = ![option::EXPORT_NAME, option::ABORT, option::STARTTLS].contains(&number);
        if self.needs_tls() && tls_only {
            // Not even kept in memory: anybody may have said it.
            self.skip(length)?;
            self.answer(number, reply::ERR_TLS_REQD, b"this server talks through TLS only")?;
            return Ok(None);
        }
        let mut data = vec![0; length as usize];
        read_all(self.wire, &mut data)?;
        match number {
            option::EXPORT_NAME => return self.export_name(&data).map(|agreed| Some(Some(agreed))),
            option::ABORT => {
                // The client need not wait for the answer.
                let _ = self.answer(number, reply::ACK, &[]);
                return Ok(Some(None));
            }
            option::STARTTLS => self.start_tls(&data)?,
            _ if self.stopping.load(Ordering::Relaxed) => {
                self.answer(number, reply::ERR_SHUTDOWN, b"the server is about to end")?;
            }
            option::GO => {
                let chosen = self.info(number, &data);
                if let Some(offer) = self.settle(number, chosen)? {
                    return Ok(Some(Some(self.agreed(offer))));
                }
            }
            option::INFO => {
                let chosen = self.info(number, &data);
                self.settle(number, chosen)?;
            }
            _ => {
                let done = self.simple_option(number, &data);
                self.settle(number, done)?;
            }
        }
        Ok(None)
    }

    /// Ends an option: with an acknowledgement, or with the refusal.
    fn settle<T>(&mut self, number: u32, result: Result<T, Failed>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => {
                self.answer(number, reply::ACK, &[])?;
                Ok(Some(value))
            }
            Err(Failed::Refused((error, why))) => {
                self.answer(number, error, why.as_bytes())?;
                Ok(None)
            }
            Err(Failed::Wire(error)) => Err(error),
        }
    }

    fn simple_option(&mut self, number: u32, data: &[u8]) -> Result<(), Failed> {
        match number {
            option::LIST => self.list(data),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                let wanted = match number {
                    option::EXTENDED_HEADERS => Headers::Extended,
                    _ => Headers::Structured,
                };
                if !data.is_empty() {
                    return Err(malformed().into());
                }
                if self.headers >= wanted {
                    return Err(refuse(reply::ERR_INVALID, "that was agreed on already").into());
                }
                self.headers = wanted;
                Ok(())
            }
            option::LIST_META_CONTEXT => self.list_contexts(data),
            option::SET_META_CONTEXT => self.set_contexts(data),
            _ => Err(refuse(reply::ERR_UNSUP, "this server does not know the option").into()),
        }
    }

    fn needs_tls(&self) -> bool {
        self.house.tls.is_some() && !self.encrypted
    }

    fn skip(&mut self, length: u32) -> io::Result<()> {
        if length > LONGEST_SKIPPED {
            return Err(broken("the client sends an endless option"));
        }
        let (mut buf, mut left) = ([0; 4096], length as usize);
        while left > 0 {
            let step = left.min(buf.len());
            read_all(self.wire, &mut buf[..step])?;
            left -= step;
        }
        Ok(())
    }

    fn answer(&mut self, number: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.wire.send(&bytes)
    }

    fn start_tls(&mut self, data: &[u8]) -> io::Result<()> {
        let number = option::STARTTLS;
        let Some(config) = self.house.tls.clone() else {
            return self.answer(number, reply::ERR_POLICY, b"this server has no certificate");
        };
        if self.encrypted || !data.is_empty() {
            return self.answer(number, reply::ERR_INVALID, b"TLS has begun already, or has data");
        }
        self.answer(number, reply::ACK, &[])?;
        self.wire.start_tls(&config)?;
        self.encrypted = true;
        self.headers = Headers::Simple;
        self.contexts = (String::new(), Vec::new());
        Ok(())
    }

    /// The old way to choose: there is no way to say no but to hang up.
    fn export_name(&mut self, data: &[u8]) -> io::Result<Agreed> {
        if self.needs_tls() || self.stopping.load(Ordering::Relaxed) {
            return Err(broken("the client chose an export that it may not have"));
        }
        let name = std::str::from_utf8(data).ok();
        let offer = name.and_then(|name| self.house.find(name)).cloned();
        let offer = offer.ok_or_else(|| broken("the client chose an export that there is not"))?;
        if offer.export.sector_size() > SECTOR_OF_ALL {
            // It has no way to ask for sizes, and would write parts of sectors.
            return Err(broken("the client cannot hear of sectors as large as this disk has"));
        }
        let mut bytes = offer.export.size().to_be_bytes().to_vec();
        bytes.extend(offer.flags(self.headers).to_be_bytes());
        if !self.no_zeroes {
            bytes.extend([0; 124]);
        }
        self.wire.send(&bytes)?;
        Ok(self.agreed(offer))
    }

    fn agreed(&self, offer: Arc<Offer>) -> Agreed {
        let (name, contexts) = &self.contexts;
        let same = self.house.find(name).is_some_and(|chosen| Arc::ptr_eq(chosen, &offer));
        Agreed {
            headers: self.headers,
            contexts: if same { contexts.clone() } else { Vec::new() },
            offer,
        }
    }

    fn offer(&self, name: &str) -> Result<&Arc<Offer>, Failed> {
        self.house.find(name).ok_or_else(|| {
            let names = self.house.names();
            refuse(reply::ERR_UNKNOWN, format!("there is no export '{name}' here, but {names}"))
                .into()
        })
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Failed> {
        if !data.is_empty() {
            return Err(malformed().into());
        }
        for offer in &self.house.offers {
            let mut entry = (offer.name.len() as u32).to_be_bytes().to_vec();
            entry.extend(offer.name.as_bytes());
            entry.extend(offer.description.as_bytes());
            self.answer(option::LIST, reply::SERVER, &entry)?;
        }
        Ok(())
    }

    fn info(&mut self, number: u32, data: &[u8]) -> Result<Arc<Offer>, Failed> {
        let mut fields = Fields(data);
        let name = fields.text().ok_or_else(malformed)?;
        let count = fields.u16().ok_or_else(malformed)?;
        let wanted: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
        let wanted = wanted.filter(|_| fields.0.is_empty()).ok_or_else(malformed)?;
        let offer = Arc::clone(self.offer(name)?);
        let (export, sector) = (&offer.export, offer.export.sector_size());
        // Requests that are no multiple of a sector are refused. Nobody makes such as long as sectors have
        // 512 bytes; a client that does not want to hear of larger ones might.
        if sector > SECTOR_OF_ALL && !wanted.contains(&info::BLOCK_SIZE) {
            let why = format!("this disk has sectors of {sector} bytes: ask for block sizes");
            return Err(refuse(reply::ERR_BLOCK_SIZE_REQD, why).into());
        }
        let mut bytes = info::EXPORT.to_be_bytes().to_vec();
        bytes.extend(export.size().to_be_bytes());
        bytes.extend(offer.flags(self.headers).to_be_bytes());
        self.answer(number, reply::INFO, &bytes)?;
        let mut bytes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [sector, export.preferred_size(), MOST_AT_ONCE] {
            bytes.extend(size.to_be_bytes());
        }
        self.answer(number, reply::INFO, &bytes)?;
        for (kind, text) in [(info::NAME, &offer.name), (info::DESCRIPTION, &offer.description)] {
            if wanted.contains(&kind) {
                let mut bytes = kind.to_be_bytes().to_vec();
                bytes.extend(text.as_bytes());
                self.answer(number, reply::INFO, &bytes)?;
            }
        }
        Ok(offer)
    }

    /// The export and the queries of an option about contexts.
    fn queries<'d>(&self, data: &'d [u8]) -> Result<(&'d str, Vec<&'d str>), Failed> {
        if self.headers < Headers::Structured {
            let why = "contexts need structured replies, or extended headers";
            return Err(refuse(reply::ERR_INVALID, why).into());
        }
        let mut fields = Fields(data);
        let name = fields.text().ok_or_else(malformed)?;
        self.offer(name)?;
        let count = fields.u32().ok_or_else(malformed)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.text().ok_or_else(malformed)?);
        }
        match fields.0.is_empty() {
            true => Ok((name, queries)),
            false => Err(malformed().into()),
        }
    }

    fn list_contexts(&mut self, data: &[u8]) -> Result<(), Failed> {
        let (_, queries) = self.queries(data)?;
        let mut found: Vec<Context> = match queries.is_empty() {
            true => Context::ALL.to_vec(),
            false => queries.into_iter().flat_map(Context::listed).collect(),
        };
        found.sort_unstable();
        found.dedup();
        self.tell_contexts(option::LIST_META_CONTEXT, &found)
    }

    fn set_contexts(&mut self, data: &[u8]) -> Result<(), Failed> {
        // What was chosen before counts no more, whatever comes of this.
        self.contexts = (String::new(), Vec::new());
        let (name, queries) = self.queries(data)?;
        // Only whole names choose.
        let chosen = |context: &Context| queries.contains(&context.name());
        let contexts: Vec<Context> = Context::ALL.into_iter().filter(chosen).collect();
        self.contexts = (name.to_owned(), contexts.clone());
        self.tell_contexts(option::SET_META_CONTEXT, &contexts)
    }

    fn tell_contexts(&mut self, number: u32, contexts: &[Context]) -> Result<(), Failed> {
        for context in contexts {
            let mut bytes = context.id().to_be_bytes().to_vec();
            bytes.extend(context.name().as_bytes());
            self.answer(number, reply::META_CONTEXT, &bytes)?;
        }
        Ok(())
    }
}

/// Why an option was not carried out.
enum Failed {
    /// The client is told.
    Refused(Refusal),
    /// There is no client any more.
    Wire(io::Error),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Wire(error)
    }
}
