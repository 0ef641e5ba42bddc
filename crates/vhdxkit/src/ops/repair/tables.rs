//! Region tables, metadata and the block table's region; and from everything found, what is to be done.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::defect::{Defect, Severity};
use crate::findings::Findings;
use crate::format::limits::{MAX_CUT_KEPT, MAX_FILE_OFFSET};
use crate::format::metadata::{HAS_PARENT, LEAVE_BLOCK_ALLOCATED};
use crate::format::region::{BAT_REGION, RegionTableEntry, encode_table};
use crate::format::{HEADER_SECTION_LENGTH, MIB, REGION_TABLE_OFFSETS, mib_ceil};
use crate::image::{ImageParts, Recovered, read_image_parts, region_length};
use crate::log::Log;
use crate::map::{EntryRules, SpaceMap};
use crate::ops::check::{claim_fixed, entries_at_hand};
use crate::ops::progress::Progress;
use crate::storage::{DataRuns, Storage, StorageExt};
use crate::view::geometry::{DiskType, Geometry};
use crate::view::headers::{HeaderPair, LogPlace};
use crate::view::regions::{Region, RegionMap, good_table};
use crate::{Error, Result};

use super::RepairOptions;
use super::draft::{Copy, Pages};
use super::entries::Entries;
use super::ground::Ground;
use super::report::{Report, hex};
use super::shifted::{Search, Shifted, Unshifted};
use super::write::{Actions, grouped};

/// What region tables and metadata need.
#[derive(Default)]
struct Wants {
    region_tables: bool,
    extend_to: u64,
    /// Where the flags of the file parameters stand, and what they should be.
    flags: Option<(u64, u32)>,
    move_bat: bool,
}

/// Everything that is to be done, and the file as it is once its log is dealt with. `None` when nothing is, or
/// may be.
pub(super) fn think(
    file: &Arc<dyn Storage>,
    ground: Ground,
    options: &RepairOptions,
    before: &Findings,
    report: &mut Report,
    progress: &mut dyn Progress,
) -> Result<Option<(Actions, Arc<dyn Storage>)>> {
    let storage = Arc::clone(&ground.storage);
    let mut quiet = Findings::tolerant();
    let headers = HeaderPair::read(&*storage, &mut quiet)?;
    let log = Log::read_pending(&*storage, &headers)?;
    let file_size = storage.length()?;
    let recovered = Recovered { storage: Arc::clone(&storage), file_size, headers, log };
    let mut findings = Findings::tolerant();
    let parts = match read_image_parts(&recovered, &mut findings) {
        Ok(parts) => parts,
        Err(error) => {
            let Some(defect) = error.defect() else { return Err(error) };
            report.beyond(defect, NO_TABLES);
            return Ok(None);
        }
    };
    let Some(wants) = judge_tables(&findings, report) else { return Ok(None) };
    let Some(geometry) = parts.geometry else { return Ok(None) };
    if !all_there(&ground, &recovered, &parts, &geometry, report) {
        return Ok(None);
    }
    let rules = EntryRules { geometry, bat_offset: parts.regions.bat().offset, file_size };
    let (space, highest) = claimed(&recovered, &parts.regions);
    let unshifted = search_shifted(&recovered, &parts, rules, report)?;
    let Some(unshifted) = unshifted else { return Ok(None) };
    let mut entries =
        Entries::new(&storage, rules, space, highest, &ground.missing, options, report);
    let count = entries_at_hand(&geometry, &parts.regions);
    entries.judge(&*storage, count, &unshifted)?;
    entries.count_nameless(&*storage, progress)?;
    entries.doubt_owners(&*storage, count)?;
    if entries.hopeless || (entries.held_back && ground.extend_first.is_some()) {
        return Ok(None);
    }
    assemble(file, ground, &storage, &parts, wants, entries, before)
        .map(|actions| actions.map(|actions| (actions, storage)))
}

const NO_TABLES: &str =
    "without readable tables nothing says where the disk's blocks are; the file is left as it is";

/// Steps for what reading the tables found; `None` when they cannot be relied upon.
fn judge_tables(findings: &Findings, report: &mut Report) -> Option<Wants> {
    let mut wants = Wants::default();
    for defect in findings.list() {
        match defect {
            Defect::RegionTableCopyInvalid { at, .. } | Defect::RegionTablesDiffer { at } => {
                wants.region_tables = true;
                let why = match defect {
                    Defect::RegionTablesDiffer { .. } => {
                        "copy 1 is the one that every program uses"
                    }
                    _ => "the other copy is whole",
                };
                let what = format!("rewrite the region table at {} from the other copy", hex(*at));
                report.step(defect, what, why);
            }
            Defect::RegionTail { end, .. } => {
                wants.extend_to = wants.extend_to.max(*end);
                let what = format!("extend the file with zeros to {}", hex(*end));
                report.step(defect, what, "the missing bytes of the region are not used");
            }
            Defect::FileParameterBits { at, found } => {
                wants.flags = Some((*at, found & (LEAVE_BLOCK_ALLOCATED | HAS_PARENT)));
                let what =
                    format!("clear the reserved bits of the file parameters at {}", hex(*at));
                report.step(defect, what, "no version of the format gives them a meaning");
            }
            Defect::BatTooSmall { .. } => {
                wants.move_bat = true;
                report.step(
                    defect,
                    "copy the block table to a larger region at the end of the file".to_owned(),
                    "every entry that there is stays; blocks that never had an entry hold nothing",
                );
            }
            other if other.severity() == Severity::Error => {
                report.beyond(other, NO_TABLES);
                return None;
            }
            _ => {}
        }
    }
    Some(wants)
}

/// Whether a file that was cut off still has everything but blocks.
fn all_there(
    ground: &Ground,
    recovered: &Recovered,
    parts: &ImageParts,
    geometry: &Geometry,
    report: &mut Report,
) -> bool {
    if ground.missing.is_empty() {
        return true;
    }
    let metadata = parts.metadata.items().iter();
    let metadata = metadata.map(|item| item.offset.saturating_add(u64::from(item.length))).max();
    let needed = |region: &Region| match region.guid {
        BAT_REGION => region.offset.saturating_add(geometry.bat_bytes()),
        _ if region.guid == parts.regions.metadata().guid => {
            metadata.unwrap_or_default().max(region.offset.saturating_add(64 << 10))
        }
        _ => region.end(),
    };
    let gone = parts.regions.all().iter().find(|region| needed(region) > ground.missing.start);
    let Some(region) = gone else { return true };
    report.beyond(
        &Defect::RegionOutside {
            at: region.entry_at,
            guid: region.guid,
            end: needed(region),
            file_size: ground.missing.start.min(recovered.file_size),
        },
        NO_TABLES,
    );
    false
}

/// Header section, log and regions, and where the last of them ends.
fn claimed(recovered: &Recovered, regions: &RegionMap) -> (SpaceMap, u64) {
    let mut space = SpaceMap::new(recovered.file_size);
    claim_fixed(recovered, regions, &mut space);
    let log = recovered.log.place().map_or(0, |log| log.end());
    let ends = regions.all().iter().map(Region::end);
    (space, ends.fold(log.max(HEADER_SECTION_LENGTH), u64::max))
}

/// Pages of the block table that QEMU has shifted. `None` where that is in doubt: then what looks like junk
/// must not be cleared.
fn search_shifted(
    recovered: &Recovered,
    parts: &ImageParts,
    rules: EntryRules,
    report: &mut Report,
) -> Result<Option<Unshifted>> {
    let search = Search {
        storage: &*recovered.storage,
        rules,
        bat_length: u64::from(parts.regions.bat().length),
        creator: recovered.headers.creator(),
        space: claimed(recovered, &parts.regions).0,
    };
    match search.find()? {
        Shifted::None => Ok(Some(Unshifted::default())),
        Shifted::Certain(pages) => {
            for defect in pages.defects(rules.bat_offset) {
                report.step(
                    &defect,
                    format!("{}: move its entries back by one", place_of(&defect)),
                    "moved back, every entry is one that QEMU writes and nothing overlaps; as it is, neither \
                     holds. What the guest sees changes: each block shows its own contents again, and the \
                     disk gets a new DataWriteGuid",
                );
            }
            Ok(Some(pages))
        }
        Shifted::Doubtful => {
            let defect = Defect::BitmapEntryState {
                at: rules.bat_offset,
                chunk: 0,
                state: 6,
                differencing: false,
            };
            report.beyond(
                &defect,
                "QEMU made this disk and does not write such entries: pages of the table may have been \
                 shifted (QEMU before 8.0), and then they are all that tells where a block is",
            );
            Ok(None)
        }
    }
}

fn place_of(defect: &Defect) -> String {
    format!("page of the block table at {}", hex(defect.offset().unwrap_or_default()))
}

/// Puts the actions together: where new things go, which pages change.
fn assemble(
    file: &Arc<dyn Storage>,
    ground: Ground,
    storage: &Arc<dyn Storage>,
    parts: &ImageParts,
    wants: Wants,
    mut entries: Entries<'_>,
    before: &Findings,
) -> Result<Option<Actions>> {
    let length = storage.length()?;
    let old_end = file.length()?.max(length);
    let mut wants = wants;
    let mut new_log = ground.new_log;
    if entries.held_back {
        let logs = !entries.is_unchanged() || wants.region_tables || wants.flags.is_some();
        if let Some(log) = ground.headers.log_place().filter(|_| logs)
            && entries.log_is_taken(log)
        {
            return Ok(None);
        }
        entries.hold_back();
        if wants.move_bat || wants.extend_to > length || new_log {
            return Ok(None);
        }
        wants.extend_to = 0;
    }
    let extend_to = entries.extend_to.max(wants.extend_to);
    let mut end = old_end.max(entries.highest).max(extend_to);
    end = mib_ceil(end).ok_or_else(too_long)?;
    let mut copies = Vec::new();
    let bat = match wants.move_bat {
        true => Some(place_bat(parts, &entries, &mut end, &mut copies)?),
        false => None,
    };
    end = entries.move_clashes(end, &mut copies)?;
    let logs =
        !entries.is_unchanged() || wants.region_tables || wants.flags.is_some() || bat.is_some();
    // Tables are changed through a log only.
    new_log |= logs && ground.headers.log_place().is_none() && !ground.headers.is_dirty();
    let new_log = match new_log {
        true => {
            let offset = entries.clear_of_lost(end, MIB);
            let place = LogPlace { offset, length: 1 << 20 };
            end = place.end();
            Some(place)
        }
        false => None,
    };
    if end > MAX_FILE_OFFSET && end > old_end {
        return Err(too_long());
    }
    let grows = bat.is_some() || !copies.is_empty() || extend_to > length || new_log.is_some();
    let highest = if grows { end } else { entries.highest };
    let alone = !grows && !logs && !ground.has_work() && entries.report.steps.is_empty();
    let cut_to = if alone { cut(storage, &mut entries, before, length)? } else { None };
    let (loses, moves_back) = (entries.lost_anything(), entries.moved_back);
    let (tables, others, direct) = pages(storage, parts, &wants, bat, entries)?;
    let actions = Actions {
        new_identity: loses || moves_back || ground.log_lost,
        moves_back,
        gives_up_log: ground.log_lost,
        identifier: ground.identifier,
        discard: ground.discard,
        replay: ground.replay,
        extend_first: ground.extend_first,
        new_log,
        direct,
        logged: grouped(tables, others),
        extend_to: if grows { extend_to.max(bat.map_or(0, |bat| bat.end())) } else { 0 },
        copies,
        cut_to,
        highest,
        headers: ground.headers.clone(),
        log: ground.log.clone(),
    };
    let works = ground.has_work() || !actions.logged.is_empty() || grows || cut_to.is_some();
    Ok(works.then_some(actions))
}

fn too_long() -> Error {
    Error::limit("the repaired file would be longer than 256 TiB; `vhdx recover` makes a new file")
}

/// A larger region for the block table, and the copy that fills it.
fn place_bat(
    parts: &ImageParts,
    entries: &Entries<'_>,
    end: &mut u64,
    copies: &mut Vec<Copy>,
) -> Result<Region> {
    let old = parts.regions.bat();
    let length = region_length(entries.rules.geometry.bat_bytes())?;
    let offset = entries.clear_of_lost(*end, u64::from(length));
    let new = Region { offset, length, ..old };
    copies.push(Copy { from: old.offset, to: new.offset, length: u64::from(old.length) });
    *end = new.end();
    Ok(new)
}

/// Where free space at the end of the file can be cut off: only of a file with which nothing else is wrong, and
/// only what holds nothing. Bytes that belong to nothing may be a block whose entry was lost, or what an earlier
/// repair could not keep in its place.
fn cut(
    storage: &Arc<dyn Storage>,
    entries: &mut Entries<'_>,
    before: &Findings,
    length: u64,
) -> Result<Option<u64>> {
    if before.list().iter().any(|defect| defect.severity() > Severity::Info) {
        return Ok(None);
    }
    let geometry = entries.rules.geometry;
    let mut least = entries.highest;
    if geometry.disk_type() == DiskType::Fixed {
        let unplaced = entries.unplaced.saturating_mul(u64::from(geometry.block_size()));
        least = least.saturating_add(unplaced);
    }
    let bytes = length.saturating_sub(least);
    if bytes < MIB {
        return Ok(None);
    }
    if !holds_nothing(&**storage, least..length)? {
        let why = "at the end of the file they are not empty, so a repair keeps them; `vhdx compact` gives it back";
        entries.report.beyond(&Defect::LeakedSpace { bytes }, why);
        return Ok(None);
    }
    entries.cut_off(least, bytes);
    Ok(Some(least))
}

/// Whether a range of the file is holes and zeros; no more zeros than an undo file may have to keep.
fn holds_nothing(storage: &dyn Storage, range: Range<u64>) -> Result<bool> {
    let mut buf = vec![0; 1 << 20];
    let mut zeros = 0u64;
    for run in DataRuns::new(storage, range.clone()) {
        let run = run.map_err(|e| Error::io("cannot map the file's holes", range.start, e))?;
        let mut at = run.range.start;
        while run.data && at < run.range.end {
            let left = usize::try_from(run.range.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let room = left.min(buf.len());
            let Some(part) = buf.get_mut(..room) else { break };
            storage.read_zero_filled(at, part)?;
            let read = u64::try_from(room).unwrap_or(u64::MAX);
            zeros = zeros.saturating_add(read);
            if part.iter().any(|byte| *byte != 0) || zeros > MAX_CUT_KEPT {
                return Ok(false);
            }
            at = at.saturating_add(read);
        }
    }
    Ok(true)
}

type Split = (Vec<super::draft::Page>, Vec<super::draft::Page>, Vec<super::draft::Page>);

/// All changed pages: of the region tables, of everything else that is in use, of space that is new.
fn pages(
    storage: &Arc<dyn Storage>,
    parts: &ImageParts,
    wants: &Wants,
    bat: Option<Region>,
    entries: Entries<'_>,
) -> Result<Split> {
    let mut tables = Pages::new(Arc::clone(storage));
    if let Some(bat) = bat {
        let table = table_with(parts, bat)?;
        for at in REGION_TABLE_OFFSETS {
            tables.put(at, &table)?;
        }
    } else if wants.region_tables
        && let Some((good, other)) = good_table(&**storage)?
    {
        tables.put(other, &good)?;
    }
    let mut others = Pages::new(Arc::clone(storage));
    if let Some((at, flags)) = wants.flags {
        others.put(at, U32::new(flags).as_bytes())?;
    }
    let old = entries.rules.bat_offset;
    let mut others = others.into_pages();
    let mut direct = Vec::new();
    let changed = entries.pages.into_pages();
    match bat {
        // The new table is nobody's yet.
        Some(bat) => direct.extend(
            changed
                .into_iter()
                .map(|(at, page)| (bat.offset.saturating_add(at.saturating_sub(old)), page)),
        ),
        None => others.extend(changed),
    }
    Ok((tables.into_pages(), others, direct))
}

/// The region table with another place for the block table.
fn table_with(parts: &ImageParts, bat: Region) -> Result<Vec<u8>> {
    let regions = parts.regions.all().iter();
    let regions = regions.map(|region| if region.guid == BAT_REGION { &bat } else { region });
    let entries: Vec<RegionTableEntry> = regions
        .map(|region| RegionTableEntry {
            guid: region.guid,
            file_offset: U64::new(region.offset),
            length: U32::new(region.length),
            required: U32::new(u32::from(region.required)),
        })
        .collect();
    encode_table(&entries).ok_or_else(|| Error::limit("too many regions"))
}
