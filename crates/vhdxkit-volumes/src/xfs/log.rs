//! Whether the log was ended by an unmount.
//!
//! XFS has no flag for that. Its log is a ring of 512-byte blocks; each begins with the number of the round
//! (the cycle) in which it was written. Where the cycle drops by one lies the head, the place that will be
//! written next. On a file system that was unmounted cleanly the record before the head is an unmount
//! record, alone in its log record. Everything else means: something may have to be replayed.
//!
//! The head is found by halving. Then the blocks before and behind it are read, as far as writes can have
//! been under way at once: all of them have to be of the cycle they should be. Any doubt is "unclean".
//!
//! Mounting alone writes nothing: until its first change is committed, within half a minute, a mounted file
//! system looks as it was left. By its disk nobody can tell; the disk is whole, too.

use crc32c::{crc32c, crc32c_append};

use super::superblock::Superblock;
use crate::bytes::{be16_at, be32_at, be64_at, u8_at, u32_at};
use crate::{Trouble, Window};

/// Bytes of a log block, whatever the sectors are.
const BLOCK: usize = 512;
/// What a log record begins with; no other log block does.
const MAGIC: u32 = 0xFEED_BABE;
/// As many blocks can be on their way to the disk at once: eight buffers of 256 KiB.
const IN_FLIGHT: u64 = 8 * 512;
/// Bytes of a record for which one header block has room to keep what the cycles replaced.
const PER_HEADER: u64 = 32 << 10;

/// xfsprogs, formatting a log anew in a later cycle, leaves zeros behind its record in so many blocks. The
/// kernel overwrites them when it mounts next.
const FORMATTED: u64 = 512;

const REPLAY: &str = "its log has to be replayed: it was not unmounted cleanly, or is mounted";

/// Why it was not left in good order; `None` when it was.
pub(super) fn unclean(window: &Window<'_>, sb: &Superblock) -> Result<Option<String>, Trouble> {
    let Some((group, start)) = sb.log() else {
        let why = "its log is on another device: whether it has to be replayed is not known";
        return Ok(Some(why.to_owned()));
    };
    if sb.log_incompat != 0 {
        return Ok(Some(REPLAY.to_owned()));
    }
    let start = sb.byte(group, start);
    let blocks = sb.log_blocks.saturating_mul(sb.block_size).div_euclid(512);
    let log = Log { window, sb, start, blocks };
    let ended = match log.head()? {
        Some(head) => log.ends_with_unmount(head)?,
        None => false,
    };
    Ok((!ended).then(|| REPLAY.to_owned()))
}

struct Log<'a> {
    window: &'a Window<'a>,
    sb: &'a Superblock,
    /// Byte where it begins.
    start: u64,
    /// Log blocks; not 0.
    blocks: u64,
}

/// Where the log will be written next, and in which cycles the blocks before and from there on are.
#[derive(Debug, Clone, Copy)]
struct Head {
    block: u64,
    before: u32,
    behind: u32,
}

impl Log<'_> {
    fn wrap(&self, block: u64) -> u64 {
        block.checked_rem(self.blocks).unwrap_or_default()
    }

    /// `count` blocks from `block` on, around the end.
    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, Trouble> {
        let block = self.wrap(block);
        let first = count.min(self.blocks.saturating_sub(block));
        let at = |block: u64| block.saturating_mul(512).saturating_add(self.start);
        let mut raw = self.window.read("the log", at(block), first.saturating_mul(512))?;
        let rest = count.saturating_sub(first).min(self.blocks);
        raw.extend(self.window.read("the log", at(0), rest.saturating_mul(512))?);
        Ok(raw)
    }

    fn cycle_at(&self, block: u64) -> Result<u32, Trouble> {
        Ok(cycle(&self.read(block, 1)?))
    }

    /// The head; `None` when there is none to be trusted.
    fn head(&self) -> Result<Option<Head>, Trouble> {
        let last = self.blocks.saturating_sub(1);
        let (before, end) = (self.cycle_at(0)?, self.cycle_at(last)?);
        let head = if before == 0 {
            // Nothing was ever written, not even by mkfs.
            return Ok(None);
        } else if before == end {
            Head { block: self.blocks, before, behind: end }
        } else if before.checked_sub(1) == Some(end) {
            let (mut low, mut high) = (0u64, last);
            while high.saturating_sub(low) > 1 {
                let middle = low.midpoint(high);
                match self.cycle_at(middle)? {
                    0 if middle < FORMATTED => high = middle,
                    found if found == before => low = middle,
                    found if found == end => high = middle,
                    _ => return Ok(None),
                }
            }
            Head { block: high, before, behind: end }
        } else {
            return Ok(None);
        };
        Ok(Some(head))
    }

    /// Whether all blocks around the head are of the cycle they should be, and the record before it is an
    /// unmount record, whole, that ends there.
    fn ends_with_unmount(&self, head: Head) -> Result<bool, Trouble> {
        let reach = IN_FLIGHT.min(self.blocks);
        let from = self.wrap(head.block.saturating_add(self.blocks).saturating_sub(reach));
        let count = reach.saturating_mul(2).min(self.blocks);
        let raw = self.read(from, count)?;
        let numbered =
            raw.chunks_exact(BLOCK).zip((0..count).map(|n| self.wrap(from.saturating_add(n))));
        let is_gap =
            |block: &[u8], number: u64| cycle(block) == 0 && number < FORMATTED && head.behind != 0;
        let gap = numbered.clone().any(|(block, number)| is_gap(block, number));
        let sharp = numbered.clone().all(|(block, number)| match number < head.block {
            true => cycle(block) == head.before,
            false => cycle(block) == head.behind || is_gap(block, number),
        });
        let reach = usize::try_from(reach).unwrap_or_default();
        let last = numbered.take(reach).filter(|(block, _)| be32_at(block, 0) == MAGIC).last();
        let Some((_, at)) = last.filter(|(_, at)| sharp && (!gap || *at == 0)) else {
            return Ok(false);
        };
        let start = self.wrap(at.saturating_add(self.blocks).saturating_sub(from));
        let bytes = |blocks: usize| blocks.saturating_mul(BLOCK);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let record = raw.get(bytes(start)..bytes(reach)).unwrap_or_default();
        Ok(self.is_unmount(record, at))
    }

    /// Whether `record`, which begins at log block `at` and reaches to the head, is an unmount record.
    fn is_unmount(&self, record: &[u8], at: u64) -> bool {
        const UNMOUNT_FLAG: u8 = 0x20;
        const UNMOUNT_TYPE: [u8; 2] = [0x6E, 0x55];
        let version = be32_at(record, 8);
        let size = u64::from(be32_at(record, 320));
        let headers = match (version, self.sb.log_v2) {
            (1, _) => 1,
            (2, true) => size.div_ceil(PER_HEADER).max(1),
            _ => return false,
        };
        let length = u64::from(be32_at(record, 12));
        let blocks = headers.saturating_add(length.div_ceil(512));
        let there = u64::try_from(record.len().div_euclid(BLOCK)).unwrap_or_default();
        let (cycle, lsn) = (be32_at(record, 4), be64_at(record, 16));
        let uuid = record.get(304..320) == Some(&self.sb.uuid);
        if blocks != there || lsn != u64::from(cycle) << 32 | at || !uuid {
            return false;
        }
        let data = usize::try_from(headers).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        let data = record.get(data..).unwrap_or_default();
        // One operation: its head of 12 bytes, the first four replaced by the cycle, and its type, which
        // is written in the order of the machine that mounted it.
        let kind = be16_at(data, 12).to_be_bytes();
        be32_at(record, 40) == 1
            && u8_at(data, 9) & UNMOUNT_FLAG != 0
            && (kind == UNMOUNT_TYPE || kind == [0x55, 0x6E])
            && checksum_holds(record, headers, data)
    }
}

/// The round in which a log block was written.
fn cycle(block: &[u8]) -> u32 {
    match be32_at(block, 0) {
        MAGIC => be32_at(block, 4),
        cycle => cycle,
    }
}

/// A record's CRC-32C; 0 is none. Its header is 328 bytes, and four fewer by a machine of 32 bits.
fn checksum_holds(record: &[u8], headers: u64, data: &[u8]) -> bool {
    const AT: usize = 32;
    /// What an extended header holds: its cycle, and the words that cycles replaced.
    const EXTENDED: usize = 260;
    let kept = u32_at(record, AT);
    let length = usize::try_from(be32_at(record, 12)).unwrap_or(usize::MAX);
    let of = |size: usize| {
        let behind = AT.saturating_add(4);
        let crc = crc32c(record.get(..AT)?);
        let crc = crc32c_append(crc32c_append(crc, &[0; 4]), record.get(behind..size)?);
        // Only those that its length needs; the others are there, and not looked at.
        let needed = u64::from(be32_at(record, 12)).div_ceil(PER_HEADER).min(headers);
        let more = usize::try_from(needed).ok()?.saturating_sub(1);
        let extended = record.chunks_exact(BLOCK).skip(1).take(more);
        let crc = extended
            .fold(crc, |crc, block| crc32c_append(crc, block.get(..EXTENDED).unwrap_or_default()));
        Some(crc32c_append(crc, data.get(..length)?))
    };
    kept == 0 || of(328) == Some(kept) || of(324) == Some(kept)
}
