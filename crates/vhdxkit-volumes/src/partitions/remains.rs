//! What is left of a partition table by which no partition can be found.
//!
//! Partitioning a disk leaves most of what a file system wrote over all of it before: the superblock of a btrfs, 64 KiB
//! from the start, stays for ever. Where the table is damaged later, that file system looks whole, and its map calls
//! free what the partitions have in use. So a trace of a table is enough to believe nobody.

use std::io::Result;

use super::{bytes, gpt, mbr};
use crate::Disk;

/// A GPT counts in sectors, and a copy of a disk may have come from one whose sectors had the other size.
const SECTORS: [u64; 2] = [512, 4096];

/// Where a trace of a partition table stands, in words; `None` when there is none. `boots` tells that the first
/// sector is that of a file system whose loader lies where an MBR has its entries.
pub(crate) fn remains(disk: &dyn Disk, boots: bool) -> Result<Option<&'static str>> {
    for sector in SECTORS {
        let last = disk.size().checked_div(sector).unwrap_or(0).saturating_sub(1);
        for (number, place) in [
            (1, "it has a partition table (GPT) at its start"),
            (last, "it has a partition table (GPT) at its end"),
        ] {
            let header = bytes::<512>(disk, number.saturating_mul(sector))?;
            if header.is_some_and(|header| gpt::has_signature(&header)) {
                return Ok(Some(place));
            }
        }
    }
    let entries = "its first sector has entries of a partition table (MBR)";
    Ok(match boots {
        // A loader may have any bytes there; but hardly those.
        true => mbr::Table::read(disk, 0)?.filter(mbr::Table::is_protective).map(|_| entries),
        false => mbr::has_entries(disk)?.then_some(entries),
    })
}
