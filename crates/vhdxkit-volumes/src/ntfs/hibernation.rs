//! Whether Windows sleeps on the volume: `hiberfil.sys` in the root directory holds its memory.
//!
//! The memory holds metadata that is newer than the volume's. A file that begins with zeros holds none;
//! whatever else it begins with is not ours to explain.
//!
//! A directory is a tree of index blocks. It is not descended but read through, block after block as its
//! bitmap says which are in use: links that go in circles are never followed.

use super::mft::{Mft, Stream};
use super::record::{
    BITMAP, DATA, INDEX_ALLOCATION, INDEX_ROOT, Reference, take_out_update_sequence,
};
use crate::Trouble;
use crate::bytes::{u8_at, u16_at, u32_at};

const ROOT: u64 = 5;
const INDEX: &str = "$I30";
const NAME: &str = "hiberfil.sys";
/// So much of the file says whether it holds anything.
const HEAD: u64 = 4096;
/// That is a root directory with half a million names.
const LARGEST_DIRECTORY: u64 = 64 << 20;
/// Names may differ in upper and lower case only; nobody has more of one.
const MOST_FOUND: usize = 16;

/// Why the volume cannot be taken as clean.
pub(super) fn unclean(mft: &Mft<'_>) -> Result<Option<String>, Trouble> {
    for reference in find(mft)? {
        let file = mft.referred(reference)?;
        let Some(data) = mft.stream(&file, DATA, "")? else { continue };
        if data.is_transformed() {
            return Ok(Some(format!("its {NAME} is compressed, encrypted or sparse")));
        }
        let head = mft.read(NAME, &data, 0..HEAD.min(data.length))?;
        if head.iter().any(|byte| *byte != 0) {
            let why = "Windows hibernates on it, or did: hiberfil.sys holds memory (fast startup)";
            return Ok(Some(why.to_owned()));
        }
    }
    Ok(None)
}

/// The files of that name in the root directory.
fn find(mft: &Mft<'_>) -> Result<Vec<Reference>, Trouble> {
    let directory = mft.record(ROOT)?;
    if !directory.is_directory() {
        return Err(Trouble::damaged("the root directory is none"));
    }
    let part = |kind| mft.stream(&directory, kind, INDEX);
    let root =
        part(INDEX_ROOT)?.ok_or_else(|| Trouble::damaged("the root directory has no index"))?;
    let root = mft.read("the index of the root directory", &root, 0..root.length)?;
    let mut found = Vec::new();
    look_through(root.get(0x10..).unwrap_or_default(), &mut found)?;
    let is_large = u8_at(&root, 0x1C) & 1 != 0;
    if is_large {
        let missing = || Trouble::damaged("the root directory lacks its index blocks");
        let blocks = part(INDEX_ALLOCATION)?.ok_or_else(missing)?;
        let in_use = part(BITMAP)?.ok_or_else(missing)?;
        look_through_blocks(mft, &blocks, &in_use, u64::from(u32_at(&root, 8)), &mut found)?;
    }
    Ok(found)
}

fn look_through_blocks(
    mft: &Mft<'_>,
    blocks: &Stream,
    in_use: &Stream,
    size: u64,
    found: &mut Vec<Reference>,
) -> Result<(), Trouble> {
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Err(Trouble::damaged(format!(
            "the root directory has index blocks of {size} bytes"
        )));
    }
    if blocks.length > LARGEST_DIRECTORY {
        let length = blocks.length;
        return Err(Trouble::not_known(format!(
            "the root directory takes {length} bytes: too many to look for {NAME}"
        )));
    }
    let count = blocks.length.checked_div(size).unwrap_or_default();
    let bits =
        mft.read("the root directory's bitmap", in_use, 0..in_use.length.min(count.div_ceil(8)))?;
    for number in 0..count {
        let byte = usize::try_from(number >> 3).unwrap_or(usize::MAX);
        if (u8_at(&bits, byte) >> (number & 7)) & 1 == 0 {
            continue;
        }
        let start = number.saturating_mul(size);
        let what = format!("index block {number} of the root directory");
        let mut block = mft.read(&what, blocks, start..start.saturating_add(size))?;
        take_out_update_sequence(&mut block, b"INDX", &what)?;
        look_through(block.get(0x18..).unwrap_or_default(), found)?;
    }
    Ok(())
}

/// The entries of a node, which begins with its header.
fn look_through(node: &[u8], found: &mut Vec<Reference>) -> Result<(), Trouble> {
    let damaged = || Trouble::damaged("the index of the root directory is damaged");
    let length = usize::try_from(u32_at(node, 4)).unwrap_or(usize::MAX);
    let entries = node.get(..length).ok_or_else(damaged)?;
    let start = usize::try_from(u32_at(node, 0)).unwrap_or(usize::MAX);
    let mut rest = entries.get(start..).filter(|_| start >= 16).ok_or_else(damaged)?;
    loop {
        let size = usize::from(u16_at(rest, 8));
        let entry = rest.get(..size).filter(|entry| entry.len() >= 16).ok_or_else(damaged)?;
        let is_last = u16_at(entry, 0x0C) & 2 != 0;
        if is_last {
            return Ok(());
        }
        if is_hiberfil(entry).ok_or_else(damaged)? {
            found.push(Reference::at(entry, 0));
        }
        if found.len() > MOST_FOUND {
            return Err(damaged());
        }
        rest = rest.get(size..).unwrap_or_default();
    }
}

/// Whether an entry has the name, in whatever case; `None` when it has no name.
fn is_hiberfil(entry: &[u8]) -> Option<bool> {
    let size = usize::from(u8_at(entry, 0x50)).checked_mul(2)?;
    let name = entry.get(0x52..0x52usize.checked_add(size)?)?;
    let units = name.chunks_exact(2).map(|unit| u16_at(unit, 0));
    let lower =
        units.map(|unit| u8::try_from(unit).map_or(unit, |byte| byte.to_ascii_lowercase().into()));
    Some(lower.eq(NAME.encode_utf16()))
}

/// The index blocks of the root directory: their clusters have to be in use.
pub(super) fn root_blocks(mft: &Mft<'_>) -> Result<Option<Stream>, Trouble> {
    mft.stream(&mft.record(ROOT)?, INDEX_ALLOCATION, INDEX)
}
