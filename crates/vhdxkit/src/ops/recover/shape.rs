//! What the disk is: sizes, type, identity, other metadata. By the metadata region; by what the log holds of
//! it; by the caller's word; and only then by inference, which is always said.
//!
//! # What can be inferred, and from what
//! * **Block size**: the largest one with which no two blocks that the table names overlap, and the last does not
//!   reach beyond the end of the file. Writers put blocks side by side and end the file with the last, so the
//!   largest that fits is the right one as soon as two blocks are neighbours, or the file ends as they leave it.
//!   Where most blocks are neighbours the last may be cut short.
//! * **Sector size**: 4096 when only with it the partitions on the disk hold file systems; else 512.
//! * **Disk size**: where a GPT says that its second copy lies; else the largest of the end of the last partition,
//!   of the file system that fills the disk, and of the last block that the table has an entry for. A disk that
//!   is a little too long does no harm, one that is too short loses its end.
//! * **Type**: a child if a block is present in part (or a parent was given), else dynamic.
//! * **Identity**: never. A disk whose identity is lost gets that of its parent, if one was given, which is said; else a
//!   new one.

use std::sync::Arc;

use zerocopy::little_endian::U32;

use crate::Result;
use crate::findings::Findings;
use crate::format::limits::{
    MAX_BLOCK_SIZE, MAX_FILE_OFFSET, MAX_INFERRED_FROM, MAX_VIRTUAL_SIZE, MIN_BLOCK_SIZE,
};
use crate::format::metadata::{
    CHS_PARAMETERS, FILE_PARAMETERS, FileParameters, HAS_PARENT, INCOMPLETE_FILE, IS_REQUIRED,
    Item, LEAVE_BLOCK_ALLOCATED, LOGICAL_SECTOR_SIZE, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE,
    PMEM_LABELS, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use crate::format::{Guid, mib_ceil};
use crate::storage::{Overlay, Storage, StorageExt};
use crate::view::geometry::Geometry;
use crate::view::locator::{ParentLocator, ParentPaths};
use crate::view::metadata::{MetadataItem, MetadataTable};
use crate::view::regions::Region;

use super::history::History;
use super::looks;
use super::peek::Peek;
use super::report::{Report, Trust};
use super::table::Table;
use super::{Parent, SalvageOptions};

const NOT_VOUCHED: &str =
    "nothing vouches for the parent that was given: what shows of it may be of another disk";

/// What the disk is.
pub(super) struct Shape {
    pub(super) geometry: Geometry,
    /// Metadata besides the mandatory items.
    pub(super) items: Vec<Item>,
    /// The identity that the guest sees, if it is known.
    pub(super) disk_id: Option<Guid>,
    /// Which block is where rests on an inference.
    pub(super) is_guess: bool,
}

impl Shape {
    /// Whether it is a child that knows its parent.
    pub(super) fn has_locator(&self) -> bool {
        has_locator(&self.items)
    }
}

fn has_locator(items: &[Item]) -> bool {
    items.iter().any(|item| item.id == PARENT_LOCATOR && !item.is_user())
}

/// Values that are known, legal ones only.
#[derive(Default)]
struct Known {
    block: Option<u32>,
    flags: Option<u32>,
    size: Option<u64>,
    logical: Option<u32>,
    physical: Option<u32>,
    disk_id: Option<Guid>,
    /// The identity is that of the parent that was given.
    is_id_of_parent: bool,
    items: Vec<Item>,
    /// Items that are marked as required and that nobody here knows, or knows to say that the file is unfinished.
    not_kept: Vec<Guid>,
}

/// Finds out what the disk is. `table` gives the table at the place that is known for it, with so many entries;
/// `None` where there is too little to go on.
pub(super) fn find<'a>(
    storage: &Arc<dyn Storage>,
    metadata: Option<Region>,
    history: &History,
    table: &dyn Fn(u64) -> Option<Table<'a>>,
    options: &SalvageOptions,
    report: &mut Report,
) -> Result<Option<Shape>> {
    let mut known = match metadata {
        Some(region) => read(storage, region, history, report)?,
        None => Known::default(),
    };
    for id in &known.not_kept {
        report.remarks.push(match *id {
            INCOMPLETE_FILE => "the file is marked incomplete: whoever created it never finished. The result is not \
                                marked, but it holds no more than the file did"
                .to_owned(),
            id => format!(
                "the metadata item {id} is marked as required, is not known to this version, and is not copied: what \
                 it says of the disk is not in the result"
            ),
        });
    }
    let given = take_given(&mut known, options, report);
    let mut is_guess = given.contradicts;
    if known.block.is_none()
        || known.size.is_none()
        || known.logical.is_none()
        || known.flags.is_none()
    {
        is_guess |= infer(storage, &mut known, given, table, options, report)?;
    }
    finish(known, is_guess, options, report)
}

fn finish(
    mut known: Known,
    is_guess: bool,
    options: &SalvageOptions,
    report: &mut Report,
) -> Result<Option<Shape>> {
    let (Some(block), Some(size), Some(logical)) = (known.block, known.size, known.logical) else {
        let missing = [
            (known.block.is_none(), "block size (--block-size)"),
            (known.size.is_none(), "disk size (--size)"),
            (known.logical.is_none(), "sector size (--logical-sector-size)"),
        ];
        let missing: Vec<&str> = missing.iter().filter(|(no, _)| *no).map(|(_, n)| *n).collect();
        let text = format!("nothing tells the {}: give it to go on", missing.join(", "));
        report.say("disk", Trust::Lost, None, text);
        return Ok(None);
    };
    let physical = known.physical.unwrap_or(logical.max(512));
    let flags = known.flags.unwrap_or_default();
    let parameters = FileParameters { block_size: U32::new(block), flags: U32::new(flags) };
    let judged =
        Geometry::for_new(parameters, size, logical, physical, known.disk_id.unwrap_or_default());
    let geometry = match judged {
        Ok(geometry) => geometry,
        Err(error) => {
            report.say("disk", Trust::Lost, None, format!("its sizes make no sense: {error}"));
            return Ok(None);
        }
    };
    if !geometry.is_differencing() {
        known.items.retain(|item| item.id != PARENT_LOCATOR || item.is_user());
    } else if let Some(parent) = options.parent.as_ref().filter(|_| !has_locator(&known.items)) {
        let text = "its name is lost: the parent that was given is taken, and nothing tells whether it is the right one";
        report.say("parent", Trust::Given, None, text);
        report.doubts.push(NOT_VOUCHED.to_owned());
        known.items.extend(locator_to(parent.data_write_guid));
    } else if !has_locator(&known.items) {
        let text = "the disk is a child, and the name of its parent is lost: give it (--parent)";
        report.say("parent", Trust::Lost, None, text);
        report.doubts.push(text.to_owned());
    } else if let Some(parent) = &options.parent {
        judge_parent(&known.items, parent, report);
    }
    match known.disk_id {
        Some(id) if known.is_id_of_parent => {
            let text = format!("{id}, that of the parent that was given: the disk's own is lost");
            report.say("virtual disk id", Trust::Given, None, text);
        }
        Some(id) => report.say("virtual disk id", Trust::Sound, None, format!("{id}, kept")),
        None => {
            let text =
                "not to be had: the result gets a new one, the guest may take it for another disk";
            report.say("virtual disk id", Trust::Lost, None, text);
        }
    }
    Ok(Some(Shape { geometry, items: known.items, disk_id: known.disk_id, is_guess }))
}

/// Whether the parent that was given is the one that the disk names.
fn judge_parent(items: &[Item], parent: &Parent, report: &mut Report) {
    let locator = items.iter().find(|item| item.id == PARENT_LOCATOR && !item.is_user());
    let locator = locator.and_then(|item| ParentLocator::parse(&item.data));
    let named = locator.as_ref().and_then(ParentLocator::linkage);
    let also = locator.as_ref().and_then(ParentLocator::linkage2);
    let given = parent.data_write_guid;
    if named != Some(given) && also != Some(given) {
        let named = named.map_or_else(|| "nobody".to_owned(), |named| named.to_string());
        report.doubts.push(format!(
            "the parent that was given is {given}, and the disk names {named}: what shows of the parent may be of \
             another disk, or newer"
        ));
    } else if !parent.is_named {
        report.doubts.push(
            "one of the parents beneath the one that was given is not the one that its child names: what shows of it \
             may be of another disk, or newer"
                .to_owned(),
        );
    }
}

/// A locator that names a parent by its DataWriteGuid.
pub(super) fn locator_to(parent: Guid) -> Option<Item> {
    let relative = Some(r".\parent.vhdx".to_owned());
    let paths = ParentPaths { relative, ..ParentPaths::default() };
    let data = ParentLocator::new(parent, None, &paths).to_bytes()?;
    Some(Item { id: PARENT_LOCATOR, flags: IS_REQUIRED, data })
}

/// The metadata region as it lies there; where it does not make sense, with what the log holds of it.
fn read(
    storage: &Arc<dyn Storage>,
    region: Region,
    history: &History,
    report: &mut Report,
) -> Result<Known> {
    let mut known = parse(&**storage, region)?;
    let mut trust = Trust::Sound;
    let whole = |known: &Known| {
        known.block.is_some()
            && known.flags.is_some()
            && known.size.is_some()
            && known.logical.is_some()
    };
    if !whole(&known) {
        let overlay = Overlay::new(Arc::clone(storage))
            .map_err(|e| crate::Error::io_whole("cannot tell the file's length", e))?;
        let mut patched = false;
        for (offset, image) in history.newest() {
            if (region.offset..region.end()).contains(&offset) {
                let written = overlay.write_at(offset, &*image.bytes);
                written.map_err(|e| crate::Error::io("cannot patch", offset, e))?;
                patched = true;
            }
        }
        if patched {
            let logged = parse(&overlay, region)?;
            if whole(&logged) || logged.items.len() > known.items.len() {
                (known, trust) = (logged, Trust::Log);
            }
        }
    }
    if !whole(&known) {
        let text = "the metadata is damaged: not all of the disk's sizes are there";
        report.say("metadata", Trust::Lost, Some(region.offset), text);
    } else {
        report.say("metadata", trust, Some(region.offset), "all of the disk's sizes are there");
    }
    Ok(known)
}

fn parse(storage: &dyn Storage, region: Region) -> Result<Known> {
    let mut findings = Findings::tolerant();
    let table = match MetadataTable::read(storage, region, &mut findings) {
        Ok(table) => table,
        Err(error) if error.defect().is_some() => return Ok(Known::default()),
        Err(error) => return Err(error),
    };
    let items = table.disk_items(storage, &mut findings)?;
    let parameters = items.parameters.map(|(value, _)| value);
    let block = parameters.map(|value| value.block_size.get());
    let flags = parameters.map(|value| value.flags.get());
    let block = block.filter(|size| is_block_size(*size));
    let logical = items.logical_sector.map(|(size, _)| size);
    let logical = logical.filter(|size| Geometry::is_sector_size(*size));
    let size = items.virtual_size.map(|(size, _)| size);
    let mut known = Known {
        block,
        flags: flags
            .filter(|flags| block.is_some() && flags & !(HAS_PARENT | LEAVE_BLOCK_ALLOCATED) == 0),
        size: size.filter(|size| is_disk_size(*size, logical.unwrap_or(512))),
        logical,
        physical: items.physical_sector.map(|(size, _)| size),
        disk_id: items.disk_id.filter(|id| !id.is_zero()),
        is_id_of_parent: false,
        items: Vec::new(),
        not_kept: Vec::new(),
    };
    known.physical = known.physical.filter(|size| Geometry::is_sector_size(*size));
    for item in table.items() {
        match kept(item) {
            Kept::AsItIs => {}
            Kept::Anew => continue,
            Kept::Not => {
                known.not_kept.push(item.id);
                continue;
            }
        }
        if item.id == PARENT_LOCATOR && !item.is_user() {
            let locator = ParentLocator::read(storage, *item, &mut Findings::strict());
            if !matches!(locator, Ok(Some(_))) {
                continue;
            }
        }
        let mut data = vec![0; usize::try_from(item.length).unwrap_or_default()];
        if storage.read_zero_filled(item.offset, &mut data)? == data.len() {
            known.items.push(Item { id: item.id, flags: item.flags, data });
        }
    }
    Ok(known)
}

/// What becomes of a metadata item.
enum Kept {
    /// It goes into the result as it is.
    AsItIs,
    /// One of the mandatory ones, which are written anew.
    Anew,
    /// With it nobody could open the result.
    Not,
}

fn kept(item: &MetadataItem) -> Kept {
    let anew = [
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
    ];
    let known = [PARENT_LOCATOR, CHS_PARAMETERS, PMEM_LABELS];
    match item.is_user() {
        false if anew.contains(&item.id) => Kept::Anew,
        false if known.contains(&item.id) => Kept::AsItIs,
        _ if item.is_required() => Kept::Not,
        _ => Kept::AsItIs,
    }
}

fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&bytes)
}

fn is_disk_size(bytes: u64, sector: u32) -> bool {
    bytes > 0 && bytes <= MAX_VIRTUAL_SIZE && bytes.is_multiple_of(u64::from(sector))
}

/// Which of the values that place blocks the caller has given.
#[derive(Clone, Copy)]
struct Given {
    block: bool,
    logical: bool,
    /// One of them is not what the file says.
    contradicts: bool,
}

/// Takes a value as it was given, with what the file itself says if that is another one. Says whether it is.
fn give(what: &'static str, value: u64, own: Option<u64>, report: &mut Report) -> bool {
    match own.filter(|own| *own != value) {
        Some(own) => {
            let text = format!("{value}, as given; the file itself says {own}");
            report.say(what, Trust::Given, None, text);
            report.doubts.push(format!(
                "the {what} that was given, {value}, is not the one in the file, {own}: if the file is right, the \
                 result is wrong"
            ));
            true
        }
        None => {
            report.say(what, Trust::Given, None, format!("{value}, as given"));
            false
        }
    }
}

fn take_given(known: &mut Known, options: &SalvageOptions, report: &mut Report) -> Given {
    let mut contradicts = false;
    if let Some(block) = options.block_size {
        let own = known.block.replace(block).map(u64::from);
        contradicts |= give("block size", u64::from(block), own, report);
    }
    if let Some(size) = options.virtual_size {
        // It moves no block; a table that is too short for one is told with the doubt.
        give("disk size", size, known.size.replace(size), report);
    }
    if let Some(logical) = options.logical_sector {
        let own = known.logical.replace(logical).map(u64::from);
        contradicts |= give("logical sector size", u64::from(logical), own, report);
    }
    if let Some(parent) = &options.parent {
        let geometry = parent.geometry;
        let fill = "taken from the parent that was given";
        if known.size.is_none() {
            known.size = Some(geometry.virtual_size());
            report.say("disk size", Trust::Given, None, fill);
        }
        if known.logical.is_none() {
            known.logical = Some(geometry.logical_sector_size());
            report.say("logical sector size", Trust::Given, None, fill);
        }
        if known.physical.is_none() {
            known.physical = Some(geometry.physical_sector_size());
        }
        if known.flags.is_none() {
            known.flags = Some(HAS_PARENT);
            report.say("disk type", Trust::Given, None, "a child, since a parent was given");
        }
        if known.disk_id.is_none() {
            known.disk_id = Some(geometry.disk_id()).filter(|id| !id.is_zero());
            known.is_id_of_parent = known.disk_id.is_some();
        }
    }
    Given { block: known.block.is_some(), logical: known.logical.is_some(), contradicts }
}

/// Fills in what is missing from what the table and the disk's contents show. Says whether the places of blocks
/// rest on that.
fn infer<'a>(
    storage: &Arc<dyn Storage>,
    known: &mut Known,
    given: Given,
    table: &dyn Fn(u64) -> Option<Table<'a>>,
    options: &SalvageOptions,
    report: &mut Report,
) -> Result<bool> {
    let entries = present(table)?;
    let file_size = storage.length()?;
    if known.flags.is_none() {
        let partial = entries.iter().any(|(_, raw)| raw.state() == 7);
        known.flags = Some(if partial { HAS_PARENT } else { 0 });
        let text = match partial {
            true => "a child: blocks are present in part",
            false => "dynamic: whether it was a child, or fixed, is not recorded any more",
        };
        report.say("disk type", Trust::Inferred, None, text);
    }
    if known.block.is_none() {
        known.block = infer_block_size(&entries, known.logical.unwrap_or(512), file_size);
        if let Some(block) = known.block {
            let text = format!("{block}, the largest with which no blocks overlap");
            report.say("block size", Trust::Inferred, None, text);
        }
    }
    let Some(block) = known.block else { return Ok(true) };
    let peek = |sector| Peek::new(storage, &entries, block, sector);
    if known.logical.is_none() {
        let (sector, why) = match peek(4096).shows_file_systems() && !peek(512).shows_file_systems()
        {
            true => (4096, "its partitions make sense with no other"),
            false => (512, "the usual one; nothing on the disk speaks against it"),
        };
        known.logical = Some(sector);
        report.say("logical sector size", Trust::Inferred, None, format!("{sector}, {why}"));
    }
    let sector = known.logical.unwrap_or(512);
    if known.size.is_none() {
        let peek = peek(sector);
        let last = entries.last().map_or(0, |(index, _)| peek.end_of_entry(*index));
        let (size, why) = match peek.size_on_disk() {
            Some((size, why, true)) => (size, why),
            Some((size, why, false)) if size >= last => (size, why),
            _ => (last, "the end of the last block that the table names (it may have been less)"),
        };
        let size = size.next_multiple_of(u64::from(sector)).min(MAX_VIRTUAL_SIZE);
        if size > 0 {
            known.size = Some(size);
            report.say("disk size", Trust::Inferred, None, format!("{size}, {why}"));
        }
    }
    let type_given = options.parent.is_some();
    Ok(!(given.block && given.logical && type_given))
}

/// Every entry of the table that is no plain zero, as far as a region of one mebibyte goes (or as many as are
/// looked at).
fn present<'a>(
    table: &dyn Fn(u64) -> Option<Table<'a>>,
) -> Result<Vec<(u64, crate::format::bat::RawEntry)>> {
    let mut found = Vec::new();
    let Some(mut table) = table(1 << 17) else { return Ok(found) };
    for number in 0..table.pages() {
        let page = table.page(number)?;
        if page.whole().is_some() {
            continue;
        }
        for slot in 0..512usize {
            let (raw, _) = page.entry(slot);
            if raw.0 != 0 && looks::is_well_formed(raw) && found.len() < MAX_INFERRED_FROM {
                let slot = u64::try_from(slot).unwrap_or_default();
                found.push((number.saturating_mul(512).saturating_add(slot), raw));
            }
        }
    }
    Ok(found)
}

/// The largest block size with which the places that the table names do not overlap.
fn infer_block_size(
    entries: &[(u64, crate::format::bat::RawEntry)],
    sector: u32,
    file_size: u64,
) -> Option<u32> {
    let mut named: Vec<(u64, u64)> = entries
        .iter()
        .filter(|(_, raw)| looks::is_present(*raw))
        .map(|(index, raw)| (raw.file_offset(), *index))
        .collect();
    named.sort_unstable();
    let end = mib_ceil(file_size).unwrap_or(MAX_FILE_OFFSET);
    let last = named.last()?.0;
    let sizes = (0..9u32).rev().filter_map(|shift| MIN_BLOCK_SIZE.checked_shl(shift));
    // Where blocks lie side by side they show their size; the last one of a file may be cut short (QEMU).
    let gaps = named.windows(2).filter_map(|pair| match pair {
        [(a, _), (b, _)] => Some(b.saturating_sub(*a)),
        _ => None,
    });
    let gaps: Vec<u64> = gaps.collect();
    let side_by_side = |size: u32| {
        let equal = gaps.iter().filter(|gap| **gap == u64::from(size)).count();
        equal > 0 && equal.saturating_mul(2) >= gaps.len()
    };
    let fits = |size: &u32| {
        let chunk = (1u64 << 23).saturating_mul(u64::from(sector));
        let period = chunk.checked_div(u64::from(*size)).unwrap_or_default().saturating_add(1);
        let length = |index: u64| match index.saturating_add(1).checked_rem(period) {
            // The entry of a sector bitmap, if it is a child.
            Some(0) => 1 << 20,
            _ => u64::from(*size),
        };
        let apart = named.windows(2).all(|pair| match pair {
            [(a, index), (b, _)] => a.saturating_add(length(*index)) <= *b,
            _ => true,
        });
        // What was cut off says nothing about where the last block ended.
        let inside = last >= end
            || side_by_side(*size)
            || named.last().is_some_and(|(at, index)| at.saturating_add(length(*index)) <= end);
        apart && inside
    };
    sizes.into_iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bat::RawEntry;

    fn named(places: &[(u64, u64)]) -> Vec<(u64, RawEntry)> {
        places.iter().map(|(index, mib)| (*index, RawEntry::new(6, mib << 20))).collect()
    }

    #[test]
    fn the_block_size_is_the_largest_that_fits() {
        let size = |places: &[(u64, u64)], mib: u64| {
            infer_block_size(&named(places), 512, mib << 20).map(|size| size >> 20)
        };
        assert_eq!(size(&[(0, 4), (1, 6), (2, 8)], 10), Some(2));
        assert_eq!(size(&[(0, 4)], 36), Some(32), "the file ends with the block");
        assert_eq!(size(&[(0, 4), (7, 68), (3, 36)], 100), Some(32));
        assert_eq!(size(&[(0, 4), (1, 600)], 400), Some(256), "a file that was cut off");
        assert_eq!(size(&[], 400), None);
        assert_eq!(size(&[(0, 4), (1, 36)], 45), Some(32), "the last block is cut short");
        // A bitmap block of one mebibyte between blocks of two.
        assert_eq!(size(&[(0, 4), (2048, 6), (1, 7)], 9), Some(2));
    }
}
