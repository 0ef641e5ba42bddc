//! Region table (MS-VHDX 2.2.3): where BAT and metadata lie. Rules V11 to V16.

use zerocopy::FromBytes;

use crate::Result;
use crate::defect::{CopyFault, Defect};
use crate::findings::Findings;
use crate::format::limits::MAX_REGIONS;
use crate::format::region::{
    BAT_REGION, METADATA_REGION, RegionTableEntry, RegionTableHeader, SIGNATURE, TABLE_LENGTH,
};
use crate::format::{Guid, HEADER_SECTION_LENGTH, MIB, REGION_TABLE_OFFSETS, checksum};
use crate::storage::{Storage, StorageExt};

use super::headers::LogPlace;

/// A region, judged to be aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// What it is.
    pub guid: Guid,
    /// File offset, a multiple of 1 MiB and at least 1 MiB.
    pub offset: u64,
    /// Bytes, a non-zero multiple of 1 MiB.
    pub length: u32,
    /// Whether whoever does not know it must not open the file.
    pub required: bool,
    /// File offset of its entry in the region table.
    pub entry_at: u64,
}

impl Region {
    /// The file offset just behind the region.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    /// `BAT`, `metadata`, or the GUID.
    #[must_use]
    pub fn name(&self) -> String {
        match self.guid {
            BAT_REGION => "BAT".to_owned(),
            METADATA_REGION => "metadata".to_owned(),
            other => other.to_string(),
        }
    }
}

/// All regions of a file, none overlapping another, BAT and metadata among them.
#[derive(Debug, Clone)]
pub struct RegionMap {
    regions: Vec<Region>,
    bat: Region,
    metadata: Region,
}

impl RegionMap {
    /// Reads the region table. `storage` must be replayed; `file_size` is its length.
    pub(crate) fn read(
        storage: &dyn Storage,
        log: Option<LogPlace>,
        findings: &mut Findings,
    ) -> Result<Self> {
        let file_size = storage.length()?;
        let (table_at, bytes) = choose_table(storage, findings)?;
        let mut regions = parse_entries(table_at, &bytes, findings)?;
        judge_places(&mut regions, file_size, log, findings)?;
        judge_requirements(&regions, findings)?;
        let find = |guid| regions.iter().find(|region| region.guid == guid).copied();
        let bat = find(BAT_REGION).ok_or(Defect::RegionMissing { name: "BAT" })?;
        let metadata = find(METADATA_REGION).ok_or(Defect::RegionMissing { name: "metadata" })?;
        Ok(Self { regions, bat, metadata })
    }

    /// Every region, in the table's order.
    #[must_use]
    pub fn all(&self) -> &[Region] {
        &self.regions
    }

    /// The block allocation table.
    #[must_use]
    pub fn bat(&self) -> Region {
        self.bat
    }

    /// The metadata region.
    #[must_use]
    pub fn metadata(&self) -> Region {
        self.metadata
    }
}

/// The bytes of a copy that counts, and the offset of the other one when that says something else: for
/// those who mend it.
pub(crate) fn good_table(storage: &dyn Storage) -> Result<Option<(Vec<u8>, u64)>> {
    let [at_first, at_second] = REGION_TABLE_OFFSETS;
    Ok(match (read_table(storage, at_first)?, read_table(storage, at_second)?) {
        (Ok(first), Ok(second)) if first != second => Some((first, at_second)),
        (Ok(first), Err(_)) => Some((first, at_second)),
        (Err(_), Ok(second)) => Some((second, at_first)),
        _ => None,
    })
}

fn read_table(storage: &dyn Storage, at: u64) -> Result<Result<Vec<u8>, CopyFault>> {
    let mut bytes = vec![0; TABLE_LENGTH];
    storage.read_zero_filled(at, &mut bytes)?;
    let Ok((header, _)) = RegionTableHeader::read_from_prefix(&bytes) else {
        return Ok(Err(CopyFault::Missing));
    };
    if header.signature != SIGNATURE {
        return Ok(Err(CopyFault::Signature(header.signature)));
    }
    let (found, computed) = (header.checksum.get(), checksum::of_structure(&bytes));
    if found != computed {
        return Ok(Err(CopyFault::Checksum { found, computed }));
    }
    Ok(Ok(bytes))
}

/// The copy that counts, and its file offset: the first valid one.
fn choose_table(storage: &dyn Storage, findings: &mut Findings) -> Result<(u64, Vec<u8>)> {
    let [at_first, at_second] = REGION_TABLE_OFFSETS;
    match (read_table(storage, at_first)?, read_table(storage, at_second)?) {
        (Ok(first), Ok(second)) => {
            if first != second {
                findings.report(Defect::RegionTablesDiffer { at: at_second })?;
            }
            Ok((at_first, first))
        }
        (Ok(first), Err(fault)) => {
            findings.report(Defect::RegionTableCopyInvalid { at: at_second, fault })?;
            Ok((at_first, first))
        }
        (Err(fault), Ok(second)) => {
            findings.report(Defect::RegionTableCopyInvalid { at: at_first, fault })?;
            Ok((at_second, second))
        }
        (Err(first), Err(second)) => Err(Defect::NoRegionTable { first, second }.into()),
    }
}

fn parse_entries(table_at: u64, bytes: &[u8], findings: &mut Findings) -> Result<Vec<Region>> {
    let Ok((header, rest)) = RegionTableHeader::read_from_prefix(bytes) else {
        return Ok(Vec::new());
    };
    let count = header.entry_count.get();
    if count > MAX_REGIONS {
        findings.report(Defect::RegionCount { at: table_at.saturating_add(8), count })?;
    }
    let mut regions: Vec<Region> = Vec::new();
    let mut at = table_at.saturating_add(16);
    for raw in rest.chunks_exact(32).take(usize::try_from(count.min(MAX_REGIONS)).unwrap_or(0)) {
        let Ok(entry) = RegionTableEntry::read_from_bytes(raw) else { break };
        let region = Region {
            guid: entry.guid,
            offset: entry.file_offset.get(),
            length: entry.length.get(),
            required: entry.required.get() & 1 == 1,
            entry_at: at,
        };
        if regions.iter().any(|other| other.guid == region.guid) {
            findings.report(Defect::RegionRepeated { at, guid: region.guid })?;
        } else {
            regions.push(region);
        }
        at = at.saturating_add(32);
    }
    Ok(regions)
}

/// Drops what cannot be a region (after reporting it), and reports overlaps and missing bytes.
fn judge_places(
    regions: &mut Vec<Region>,
    file_size: u64,
    log: Option<LogPlace>,
    findings: &mut Findings,
) -> Result<()> {
    let mut taken = vec![("the header section".to_owned(), 0, HEADER_SECTION_LENGTH)];
    if let Some(log) = log {
        taken.push(("the log".to_owned(), log.offset, log.end()));
    }
    let mut good = Vec::with_capacity(regions.len());
    for region in regions.drain(..) {
        let (at, guid) = (region.entry_at, region.guid);
        let aligned = region.offset % MIB == 0 && u64::from(region.length) % MIB == 0;
        let fits = region.offset.checked_add(u64::from(region.length)).is_some();
        if !aligned || !fits || region.offset < MIB || region.length == 0 {
            let (file_offset, length) = (region.offset, region.length);
            findings.report(Defect::RegionPlace { at, guid, file_offset, length })?;
            continue;
        }
        let what = format!("the {} region", region.name());
        let clash =
            taken.iter().find(|(_, start, end)| region.offset < *end && *start < region.end());
        if let Some((with, ..)) = clash {
            let with = with.clone();
            findings.report(Defect::RegionOverlap { at, what: what.clone(), with })?;
        }
        if region.end() > file_size && region.guid != BAT_REGION && region.guid != METADATA_REGION {
            findings.report(Defect::RegionOutside { at, guid, end: region.end(), file_size })?;
        }
        taken.push((what, region.offset, region.end()));
        good.push(region);
    }
    *regions = good;
    Ok(())
}

fn judge_requirements(regions: &[Region], findings: &mut Findings) -> Result<()> {
    for region in regions {
        let at = region.entry_at.saturating_add(28);
        match (region.guid, region.required) {
            (BAT_REGION, false) => {
                findings.report(Defect::RegionNotRequired { at, name: "BAT" })?;
            }
            (METADATA_REGION, false) => {
                findings.report(Defect::RegionNotRequired { at, name: "metadata" })?;
            }
            (BAT_REGION | METADATA_REGION, true) | (_, false) => {}
            (guid, true) => findings.report(Defect::UnknownRequiredRegion { at, guid })?,
        }
    }
    Ok(())
}

/// V14 for a region whose first `used` bytes matter: an error when one of those is missing from the
/// file, a warning when only padding is.
pub(crate) fn judge_inside(
    region: &Region,
    used: u64,
    file_size: u64,
    findings: &mut Findings,
) -> Result<()> {
    let (at, guid, end) = (region.entry_at, region.guid, region.end());
    if end <= file_size {
        return Ok(());
    }
    findings.report(if region.offset.saturating_add(used) > file_size {
        Defect::RegionOutside { at, guid, end, file_size }
    } else {
        Defect::RegionTail { at, guid, end, file_size }
    })
}
