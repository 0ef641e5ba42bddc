//! The second copy of a GPT. It lies at the end of the disk, and so keeps every such disk from becoming smaller,
//! though nothing is lost with it: the first copy says everything, and `sgdisk -e` makes a second one from it.

use std::ops::Range;

use vhdxkit::ops::partitions::{end_of_last, first_gpt_is_intact};
use vhdxkit::{Image, Result};

const MIB: u64 = 1 << 20;
/// More than any second copy takes: 128 entries are 16 KiB.
const MOST: u64 = MIB;

/// Where it lies, and what the disk could be without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SecondGpt {
    /// The byte behind it.
    pub(super) end: u64,
    /// The smallest size, in whole mebibytes, that keeps every partition and leaves room for a new second copy.
    pub(super) least: u64,
}

impl SecondGpt {
    /// Finds it where it is all that a smaller disk would lose; `None` when there is none, or more.
    pub(super) fn in_the_way(image: &Image) -> Result<Option<Self>> {
        // Where the first one is damaged the second one is the table.
        if !first_gpt_is_intact(image)? {
            return Ok(None);
        }
        let Some(place) = place(image)? else { return Ok(None) };
        let last = end_of_last(image)?.unwrap_or(0).checked_next_multiple_of(MIB);
        let Some(least) = last.and_then(|last| last.checked_add(MIB)) else { return Ok(None) };
        let alone = least < place.start
            && is_zeros(image, least..place.start)?
            && is_zeros(image, place.end..image.virtual_size())?;
        Ok(alone.then_some(Self { end: place.end, least }))
    }
}

/// Whether the disk has a GPT whose second copy is not where the first one says, as a smaller disk leaves it.
pub(super) fn is_gone(image: &Image) -> Result<bool> {
    let sector = u64::from(image.geometry().logical_sector_size());
    let Some(first) = header(image, sector)? else { return Ok(false) };
    if !first_gpt_is_intact(image)? {
        return Ok(false);
    }
    let at = u64_at(&first, 32).saturating_mul(sector);
    Ok(header(image, at)?.is_none())
}

/// Where the first copy says that the second one is, if it is there.
fn place(image: &Image) -> Result<Option<Range<u64>>> {
    let sector = u64::from(image.geometry().logical_sector_size());
    let Some(first) = header(image, sector)? else { return Ok(None) };
    let at = u64_at(&first, 32).saturating_mul(sector);
    let Some(second) = header(image, at)? else { return Ok(None) };
    let start = u64_at(&second, 72).saturating_mul(sector);
    let end = at.saturating_add(sector);
    let sound = at > sector && start < at && end - start <= MOST;
    Ok(sound.then_some(start..end))
}

/// The sector at this byte of the disk, if it is the header of a GPT.
fn header(image: &Image, at: u64) -> Result<Option<[u8; 512]>> {
    let mut bytes = [0; 512];
    if at.saturating_add(512) > image.virtual_size() {
        return Ok(None);
    }
    image.read_at(at, &mut bytes)?;
    Ok(bytes.starts_with(b"EFI PART").then_some(bytes))
}

fn u64_at(header: &[u8; 512], at: usize) -> u64 {
    let field = header.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn is_zeros(image: &Image, range: Range<u64>) -> Result<bool> {
    let mut piece = vec![0; 1 << 20];
    for extent in image.extents(range) {
        let extent = extent?;
        let mut at = extent.start;
        while at < extent.end() && !extent.state.is_zero() {
            let length = (extent.end() - at).min(MIB);
            let bytes = &mut piece[..usize::try_from(length).unwrap_or(1 << 20)];
            image.read_at(at, bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += length;
        }
    }
    Ok(true)
}
