//! One connection of a client that remembers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhdxkit_testkit::nbd::{Client, Reply, Request, command, flag};
use vhdxkit_testkit::random::Random;

use super::ledger::{Deed, Ledger};
use crate::kill::{BLOCK, DISK, UNIT, UNITS};
use crate::model::{SECTOR, stamp, version_of};

/// Requests under way on a connection at most.
const DEPTH: u64 = 8;
/// Blocks that get half of all requests, so that much is written over what was just written.
const HOT: u64 = 6;

/// What the connections have in common.
#[derive(Debug)]
pub(super) struct Common {
    /// Of what was sent and answered.
    pub(super) ledger: Mutex<Ledger>,
    /// Set just before the server is killed: from now on errors are no news.
    pub(super) killed: AtomicBool,
    /// Where the server listens.
    pub(super) socket: PathBuf,
    /// Makes this round's writes differ from those of others.
    pub(super) round: u64,
    /// Reads that were judged.
    pub(super) reads: AtomicU64,
    /// Flushes that were answered.
    pub(super) flushes: AtomicU64,
}

impl Common {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }
}

/// What is under way, and what to make of its reply.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Change { number: usize },
    Flush { sent: u64 },
    Read { unit: u64, sent: u64 },
}

/// A connection's own.
struct Session<'a> {
    common: &'a Common,
    number: u64,
    random: Random,
    step: u64,
    asked: HashMap<u64, Asked>,
}

/// Talks to the server until it is killed.
///
/// # Errors
/// A request is refused, a read shows what it must not, the server does not keep to the protocol, or goes
/// without being killed.
pub(super) fn talk(common: &Common, number: u64) -> Result<(), String> {
    let random = Random::new(common.round * 16 + number);
    let mut session = Session { common, number, random, step: 0, asked: HashMap::new() };
    while !common.killed() {
        // Every other connection takes replies in one piece.
        match Client::connect(&common.socket, "", number.is_multiple_of(2)) {
            Ok(client) => return session.run(client),
            Err(_) => std::thread::sleep(Duration::from_micros(300)),
        }
    }
    Ok(())
}

impl Session<'_> {
    fn run(&mut self, mut client: Client) -> Result<(), String> {
        if client.size() != DISK {
            return Err(format!("the export has {} bytes", client.size()));
        }
        while !self.common.killed() {
            let depth = 1 + self.random.below(DEPTH) as usize;
            let talked = loop {
                if client.waiting() >= depth {
                    break client.receive().map(Some);
                }
                let request = self.choose(client.next_cookie());
                if let Err(error) = client.send(&request) {
                    break Err(error);
                }
            };
            match talked {
                Ok(Some(reply)) => self.settle(&reply)?,
                Ok(None) => {}
                Err(_) if self.common.killed() => return Ok(()),
                Err(error) => return Err(format!("the server was not killed yet: {error}")),
            }
        }
        Ok(())
    }

    /// Chooses what to ask for next, and notes it.
    fn choose(&mut self, cookie: u64) -> Request {
        let block = self.block();
        let start = block * BLOCK;
        let unit = start + self.random.one_of(&UNITS) * UNIT;
        let fua = if self.random.below(4) == 0 { flag::FUA } else { 0 };
        // A block of zeros that keep their space is a long write: few, or most kills would fall into them.
        let no_hole = if self.random.below(8) == 0 { flag::NO_HOLE } else { 0 };
        let (request, asked) = match self.random.below(24) {
            0 => self.change(Request::new(command::TRIM, start, BLOCK as u32), Deed::Put(0), fua),
            1 => self.change(Request::new(command::TRIM, unit, UNIT as u32), Deed::MayZero, fua),
            2 | 3 => {
                let (from, length) = self.random.one_of(&[(start, BLOCK), (unit, UNIT)]);
                let zeros = Request::new(command::WRITE_ZEROES, from, length as u32).with(no_hole);
                self.change(zeros, Deed::Put(0), fua)
            }
            4 | 5 => {
                let sent = self.common.ledger().ask();
                (Request::new(command::READ, unit, UNIT as u32), Asked::Read { unit, sent })
            }
            6..=15 => {
                let sent = self.common.ledger().ask();
                (Request::flush(), Asked::Flush { sent })
            }
            16 if block + 1 < DISK / BLOCK => self.write(start + BLOCK - UNIT, 2 * UNIT, fua),
            _ => self.write(unit, UNIT, fua),
        };
        self.asked.insert(cookie, asked);
        request
    }

    fn block(&mut self) -> u64 {
        match self.random.below(2) {
            0 => (self.common.round * 7 + self.random.below(HOT)) % (DISK / BLOCK),
            _ => self.random.below(DISK / BLOCK),
        }
    }

    fn write(&mut self, offset: u64, length: u64, fua: u16) -> (Request, Asked) {
        self.step += 1;
        let version = (self.common.round << 40) | (self.number << 36) | self.step;
        let sectors = (offset..offset + length).step_by(SECTOR as usize);
        let data = sectors.flat_map(|at| stamp(at, version)).collect();
        self.change(Request::write(offset, data), Deed::Put(version), fua)
    }

    fn change(&mut self, request: Request, deed: Deed, fua: u16) -> (Request, Asked) {
        let range = request.offset..request.offset + u64::from(request.length);
        let number = self.common.ledger().send(range, deed, fua != 0);
        (request.with(fua), Asked::Change { number })
    }

    /// Notes that a reply has come.
    fn settle(&mut self, reply: &Reply) -> Result<(), String> {
        let asked = self.asked.remove(&reply.cookie).ok_or("a reply to no request")?;
        let mut ledger = self.common.ledger();
        if reply.error != 0 {
            let what = match asked {
                Asked::Change { number } => ledger.describe(number),
                other => format!("{other:?}"),
            };
            return Err(format!("{what} is refused with {}: {}", reply.error, reply.message));
        }
        match asked {
            Asked::Change { number } => ledger.answer(number),
            Asked::Flush { sent } => {
                ledger.flushed(sent);
                self.common.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Asked::Read { unit, sent } => {
                let allowed = ledger.readable(unit, sent);
                drop(ledger);
                judge_read(unit, &reply.data, &allowed)?;
                self.common.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Whether every byte is that of one of several writes.
fn is_mixed_of(at: u64, bytes: &[u8], allowed: &[u64]) -> bool {
    let stamps: Vec<_> = allowed.iter().map(|version| stamp(at, *version)).collect();
    let known = |(number, byte): (usize, &u8)| stamps.iter().any(|stamp| stamp[number] == *byte);
    allowed.len() > 1 && bytes.iter().enumerate().all(known)
}

fn judge_read(unit: u64, data: &[u8], allowed: &[Vec<u64>]) -> Result<(), String> {
    for (number, (bytes, allowed)) in data.chunks(SECTOR as usize).zip(allowed).enumerate() {
        let at = unit + number as u64 * SECTOR;
        let found = match version_of(at, bytes) {
            Ok(found) => found,
            // The system copies into its cache without a lock: who reads beside a write may see both.
            Err(_) if is_mixed_of(at, bytes, allowed) => continue,
            Err(what) => return Err(format!("a read of {at:#x}: {what}")),
        };
        if !allowed.contains(&found) {
            return Err(format!("a read of {at:#x} shows {found}; allowed are {allowed:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a write under way both may show. What excuses that must excuse nothing else.
    #[test]
    fn a_read_may_show_a_mixture_of_writes_under_way_and_of_nothing_else() {
        let at = 7 * SECTOR;
        let mixed = |one: &[u8], other: &[u8]| [&one[..200], &other[200..]].concat();
        let (old, new, zeros) = (stamp(at, 3), stamp(at, 4), stamp(at, 0));
        let judged = |bytes: &[u8], allowed: &[u64]| is_mixed_of(at, bytes, allowed);
        assert!(judged(&mixed(&old, &new), &[3, 4]));
        assert!(judged(&mixed(&old, &zeros), &[3, 0]));
        // A write that is not among them, nothing under way, another sector's bytes, the host's.
        assert!(!judged(&mixed(&old, &stamp(at, 9)), &[3, 4]));
        assert!(!judged(&mixed(&old, &new), &[4]));
        assert!(!judged(&mixed(&old, &stamp(at + SECTOR, 4)), &[3, 4]));
        assert!(!judged(&mixed(&old, &crate::model::foreign()), &[3, 4]));
    }
}
