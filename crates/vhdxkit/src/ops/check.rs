//! `check`: every rule that reading can judge, to the end, whatever is wrong on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{OpenOptions, leads_to};
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::bat::SECTOR_BITMAP_BLOCK;
use crate::format::limits::{MAX_FILE_OFFSET, MAX_FINDINGS_PER_CODE};
use crate::format::{HEADER_SECTION_LENGTH, MIB};
use crate::image::{DirtyLog, Recovered, read_image_parts};
use crate::log::{EntryStatus, LogState};
use crate::map::{Block, EntryRules, SpaceMap, walk};
use crate::storage::{FileStorage, OpenMode, Storage, StorageExt, change_tracking_beside};
use crate::view::geometry::{BatSlot, Geometry};
use crate::view::regions::RegionMap;
use crate::{ErrorKind, Image, Result};

use super::doubt::{Doubt, PageJudge};
use super::nameless::Named;
use super::progress::{Progress, advance};
use super::repair::shifted::{Search, Shifted};

/// Checks the file at `path`. Nothing is changed. Progress counts bytes of the BAT.
///
/// ```
/// let findings = vhdxkit::ops::check::check_file("../../testdata/crashed.vhdx", false, &mut ())?;
/// assert!(!findings.has_problems());
/// for finding in findings.list() {
///     println!("{} {}: {finding}", finding.code(), finding.severity().name());
/// }
/// # Ok::<(), vhdxkit::Error>(())
/// ```
///
/// # Errors
/// Only when the file cannot be read or is locked; whatever is wrong *with* it is a finding.
pub fn check_file(
    path: impl AsRef<Path>,
    force_share: bool,
    progress: &mut dyn Progress,
) -> Result<Findings> {
    let path = path.as_ref();
    let named = |e: crate::Error| e.in_file(path);
    let file = FileStorage::open(path, OpenMode::ReadOnly { force_share }).map_err(named)?;
    let mut findings = check(Arc::new(file), progress).map_err(named)?;
    for neighbour in change_tracking_beside(path) {
        findings.report(Defect::ChangeTracking { path: neighbour.display().to_string() })?;
    }
    Ok(findings)
}

/// What a check found in one file of a chain.
#[derive(Debug)]
pub struct CheckedImage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and with the link to its parent.
    pub findings: Findings,
}

/// Checks an image and, where `options` allow it, all of its parents and the links between them, child
/// first.
///
/// # Errors
/// As [`check_file`]: only when the child cannot be read or is locked. A parent that cannot be had, or is
/// not the one the child was made from, is a finding (V33).
pub fn check_chain(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<CheckedImage>> {
    let path = path.as_ref();
    let share = options.shares();
    let mut checked = vec![CheckedImage {
        path: path.to_path_buf(),
        findings: check_file(path, share, progress)?,
    }];
    let chain = match options.clone().without_log(true).open(path) {
        Ok(chain) => chain,
        Err(error) if error.kind() == ErrorKind::Parent => {
            let why = error.to_string();
            if let Some(child) = checked.first_mut() {
                child.findings.report(Defect::ParentUnusable { why })?;
            }
            return Ok(checked);
        }
        // What keeps it from being opened was found above.
        Err(_) => return Ok(checked),
    };
    for layer in chain.layers() {
        let Some(path) = layer.path() else { continue };
        if checked.iter().all(|image| image.path != path) {
            let findings = check_file(path, share, progress)?;
            checked.push(CheckedImage { path: path.to_path_buf(), findings });
        }
        if let (Some(defect), Some(image)) = (stale_path(layer), checked.last_mut()) {
            image.findings.report(defect)?;
        }
    }
    Ok(checked)
}

fn stale_path(child: &Image) -> Option<Defect> {
    let (path, parent) = (child.path()?, child.parent()?.path()?);
    let found = parent.display().to_string();
    (!leads_to(child.parent_locator()?, path, parent)).then_some(Defect::ParentPathStale { found })
}

/// [`check_file`] for an image on any storage.
///
/// # Errors
/// The storage cannot be read.
pub fn check(file: Arc<dyn Storage>, progress: &mut dyn Progress) -> Result<Findings> {
    let mut findings = Findings::tolerant();
    match check_all(file, &mut findings, progress) {
        Ok(()) => Ok(findings),
        // Too little is left to go on: that is the last finding.
        Err(error) => match error.defect().cloned() {
            Some(defect) => {
                findings.report(defect)?;
                Ok(findings)
            }
            None => Err(error),
        },
    }
}

fn check_all(
    file: Arc<dyn Storage>,
    findings: &mut Findings,
    progress: &mut dyn Progress,
) -> Result<()> {
    let recovered = Recovered::read(file, DirtyLog::MayBeInvalid, findings)?;
    check_log(&recovered, findings)?;
    let length = recovered.file_size;
    if length % MIB != 0 {
        findings.report(Defect::FileSizeUneven { length })?;
    }
    let parts = read_image_parts(&recovered, findings)?;
    let Some(geometry) = parts.geometry else { return Ok(()) };
    let storage = &*recovered.storage;
    let file_size = storage.length()?;
    let bat_offset = parts.regions.bat().offset;
    let rules = EntryRules { geometry, bat_offset, file_size };
    let mut space = SpaceMap::new(file_size);
    claim_fixed(&recovered, &parts.regions, &mut space);
    check_bat(storage, rules, &parts.regions, &mut space, findings, progress)?;
    check_shifted(&recovered, &parts.regions, rules, findings)?;
    if geometry.is_differencing() {
        check_bitmaps_exist(storage, rules, &parts.regions, findings)?;
    }
    if file_size > MAX_FILE_OFFSET {
        findings.report(Defect::SpaceNotChecked { from: MAX_FILE_OFFSET })?;
    }
    let bytes = space.unowned();
    if bytes == 0 {
        return Ok(());
    }
    findings.report(Defect::LeakedSpace { bytes })?;
    let log = recovered.log.place();
    match (Named { storage, log, regions: &parts.regions, rules }).unexplained(progress)? {
        0 => Ok(()),
        bytes => findings.report(Defect::NamelessData { bytes }),
    }
}

fn check_log(recovered: &Recovered, findings: &mut Findings) -> Result<()> {
    let log = &recovered.log;
    let Some(place) = log.place() else { return Ok(()) };
    for entry in log.entries() {
        let at = place.offset.saturating_add(u64::from(entry.info.log_offset));
        let sequence = entry.info.sequence;
        let ours = log.state() != LogState::Clean && entry.info.log_guid == log.guid();
        match (&entry.fault, entry.status) {
            (Some(fault), _) if ours => {
                findings.report(Defect::TornEntry { at, sequence, fault: fault.clone() })?;
            }
            (None, EntryStatus::Active) if entry.highest_end > entry.info.last_file_offset => {
                let (end, last_file_offset) = (entry.highest_end, entry.info.last_file_offset);
                findings.report(Defect::ReservedLogTarget {
                    at,
                    sequence,
                    end,
                    last_file_offset,
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn claim_fixed(recovered: &Recovered, regions: &RegionMap, space: &mut SpaceMap) {
    space.claim(0, HEADER_SECTION_LENGTH);
    if let Some(log) = recovered.log.place() {
        space.claim(log.offset, u64::from(log.length));
    }
    for region in regions.all() {
        space.claim(region.offset, u64::from(region.length));
    }
}

fn check_bat(
    storage: &dyn Storage,
    rules: EntryRules,
    regions: &RegionMap,
    space: &mut SpaceMap,
    findings: &mut Findings,
    progress: &mut dyn Progress,
) -> Result<()> {
    let geometry = rules.geometry;
    let entries = entries_at_hand(&geometry, regions);
    let mut clashes = Clashes::default();
    let mut pages = PageJudge::new(rules);
    walk(storage, rules.bat_offset, entries, &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            pages.see(index, raw);
            let (place, length) = match geometry.slot(index) {
                BatSlot::Payload(block) => {
                    let judged = rules.payload(block, raw);
                    for remark in rules.payload_remarks(block, raw).into_iter().flatten() {
                        findings.report(remark)?;
                    }
                    if let Err(defect) = judged {
                        findings.report(defect)?;
                    }
                    (rules.owned(raw), u64::from(geometry.block_size()))
                }
                BatSlot::Bitmap(chunk) => match rules.bitmap(chunk, raw) {
                    Ok(place) => (place, SECTOR_BITMAP_BLOCK),
                    Err(defect) => {
                        findings.report(defect)?;
                        continue;
                    }
                },
                BatSlot::Padding => continue,
            };
            if let Some(place) = place
                && let Some(at) = space.claim(place, length)
            {
                clashes.note(Clash { index, place, length, at });
            }
        }
        let bytes = match &stretch {
            crate::map::Stretch::Entries(_, bytes) => {
                u64::try_from(bytes.len()).unwrap_or_default()
            }
            crate::map::Stretch::Zero(_, count) => count.saturating_mul(8),
        };
        advance(progress, bytes)
    })?;
    findings.doubt = pages.end().0;
    report_clashes(storage, rules, regions, entries, &clashes, findings)
}

/// Whether QEMU has shifted pages of the table: only a disk that it made can have such.
fn check_shifted(
    recovered: &Recovered,
    regions: &RegionMap,
    rules: EntryRules,
    findings: &mut Findings,
) -> Result<()> {
    let mut space = SpaceMap::new(rules.file_size);
    claim_fixed(recovered, regions, &mut space);
    let search = Search {
        storage: &*recovered.storage,
        rules,
        bat_length: u64::from(regions.bat().length),
        creator: recovered.headers.creator(),
        space,
    };
    if let Shifted::Certain(pages) = search.find()? {
        for defect in pages.defects(rules.bat_offset) {
            findings.report(defect)?;
        }
        for (index, _) in pages.entries() {
            if let BatSlot::Payload(block) = rules.geometry.slot(index) {
                findings.doubt.add(block..block.saturating_add(1));
            }
        }
    }
    Ok(())
}

/// A table that is too small was reported; what there is of it is checked.
pub(super) fn entries_at_hand(geometry: &Geometry, regions: &RegionMap) -> u64 {
    geometry.bat_entries().min(u64::from(regions.bat().length) / 8)
}

/// The first clashes, as many as are listed, and the number of the rest: naming the other owner costs
/// a look at every entry for every clash.
#[derive(Default)]
struct Clashes {
    listed: Vec<Clash>,
    more: usize,
    /// The bytes of all of them.
    places: Doubt,
}

impl Clashes {
    fn note(&mut self, clash: Clash) {
        self.places.add(clash.place..clash.place.saturating_add(clash.length));
        match self.listed.len() < MAX_FINDINGS_PER_CODE {
            true => self.listed.push(clash),
            false => self.more = self.more.saturating_add(1),
        }
    }
}

/// A BAT entry whose space was taken already.
struct Clash {
    index: u64,
    place: u64,
    length: u64,
    at: u64,
}

/// Names the other owner of each clash. Clashes are rare, so a second sweep finds them.
fn report_clashes(
    storage: &dyn Storage,
    rules: EntryRules,
    regions: &RegionMap,
    entries: u64,
    clashes: &Clashes,
    findings: &mut Findings,
) -> Result<()> {
    let Clashes { listed: clashes, more, places } = clashes;
    let places = places.clone().ranges();
    if clashes.is_empty() {
        return Ok(());
    }
    let geometry = rules.geometry;
    let mut others: Vec<Option<String>> = clashes
        .iter()
        .map(|clash| {
            let hit = regions.all().iter().find(|r| r.offset <= clash.at && clash.at < r.end());
            match hit {
                Some(region) => Some(format!("the {} region", region.name())),
                None if clash.at < HEADER_SECTION_LENGTH => Some("the header section".to_owned()),
                None => None,
            }
        })
        .collect();
    walk(storage, rules.bat_offset, entries, &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            let (place, length) = rules.owner_of(index, raw);
            let Some(place) = place else { continue };
            let next = places.partition_point(|range| range.end <= place);
            let shared =
                places.get(next).is_some_and(|range| range.start < place.saturating_add(length));
            if let (true, BatSlot::Payload(block)) = (shared, geometry.slot(index)) {
                findings.doubt.add(block..block.saturating_add(1));
            }
            for (clash, other) in clashes.iter().zip(&mut others) {
                let covers = place <= clash.at && clash.at < place.saturating_add(length);
                if other.is_none() && covers && index != clash.index {
                    *other = Some(slot_name(&geometry, index));
                }
            }
        }
        Ok(())
    })?;
    for (clash, other) in clashes.iter().zip(others) {
        findings.report(Defect::BlockOverlap {
            at: rules.bat_offset.saturating_add(clash.index.saturating_mul(8)),
            what: format!("{} ({} bytes)", slot_name(&geometry, clash.index), clash.length),
            file_offset: clash.place,
            with: other.unwrap_or_else(|| "the log".to_owned()),
        })?;
    }
    findings.count_more("V30", *more);
    Ok(())
}

pub(super) fn slot_name(geometry: &Geometry, index: u64) -> String {
    match geometry.slot(index) {
        BatSlot::Payload(block) => format!("block {block}"),
        BatSlot::Bitmap(chunk) => format!("the sector bitmap of chunk {chunk}"),
        BatSlot::Padding => format!("BAT entry {index}"),
    }
}

/// V31: a partially present block needs the sector bitmap of its chunk.
fn check_bitmaps_exist(
    storage: &dyn Storage,
    rules: EntryRules,
    regions: &RegionMap,
    findings: &mut Findings,
) -> Result<()> {
    // The bitmap's entry comes after those of its blocks: note the first partial block of a chunk
    // until its end is reached.
    let mut partial: Option<u64> = None;
    let geometry = rules.geometry;
    let mut chunk_with_bitmap: Option<u64> = None;
    let entries = entries_at_hand(&geometry, regions);
    walk(storage, rules.bat_offset, entries, &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            let chunk = match geometry.slot(index) {
                BatSlot::Payload(block) => geometry.chunk_of(block),
                BatSlot::Bitmap(chunk) => chunk,
                BatSlot::Padding => continue,
            };
            if let Some(first) = partial.filter(|&first| geometry.chunk_of(first) != chunk) {
                settle_partial(first, chunk_with_bitmap, &rules, findings)?;
                partial = None;
            }
            match geometry.slot(index) {
                BatSlot::Payload(block) => {
                    if partial.is_none()
                        && matches!(rules.payload(block, raw), Ok(Block::Partial { .. }))
                    {
                        partial = Some(block);
                    }
                }
                BatSlot::Bitmap(chunk) => {
                    if matches!(rules.bitmap(chunk, raw), Ok(Some(_))) {
                        chunk_with_bitmap = Some(chunk);
                    }
                }
                BatSlot::Padding => {}
            }
        }
        Ok(())
    })?;
    match partial {
        Some(first) => settle_partial(first, chunk_with_bitmap, &rules, findings),
        None => Ok(()),
    }
}

fn settle_partial(
    block: u64,
    chunk_with_bitmap: Option<u64>,
    rules: &EntryRules,
    findings: &mut Findings,
) -> Result<()> {
    match chunk_with_bitmap {
        Some(chunk) if chunk == rules.geometry.chunk_of(block) => Ok(()),
        _ => {
            let geometry = rules.geometry;
            let first = geometry.chunk_of(block).saturating_mul(geometry.chunk_ratio());
            let end = first.saturating_add(geometry.chunk_ratio()).min(geometry.blocks());
            findings.doubt.add(first..end);
            findings.report(rules.partial_without_bitmap(block))
        }
    }
}
