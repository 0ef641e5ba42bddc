//! Where BAT and metadata lie: by the region tables, by the log's images of them, or by their looks.

use zerocopy::FromBytes;

use crate::Result;
use crate::format::region::{
    BAT_REGION, METADATA_REGION, RegionTableEntry, RegionTableHeader, SIGNATURE, TABLE_LENGTH,
};
use crate::format::{LOG_SECTOR_LEN, MIB, REGION_TABLE_OFFSETS, checksum, mib_floor};
use crate::storage::{Storage, StorageExt};
use crate::view::regions::Region;

use super::history::History;
use super::looks::{self, Heads};
use super::report::{Report, Trust};

/// What is known of the file's layout.
pub(super) struct Regions {
    pub(super) all: Vec<Region>,
    pub(super) bat: Option<Region>,
    pub(super) metadata: Option<Region>,
}

impl Regions {
    /// Whether a table with a right checksum lies in the file.
    pub(super) fn are_named(storage: &dyn Storage) -> Result<bool> {
        for at in REGION_TABLE_OFFSETS {
            let bytes = read(storage, at)?;
            if is_sound(&bytes) && finds_both(&parse(&bytes, at)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Regions that are neither BAT nor metadata.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &Region> {
        self.all.iter().filter(|region| ![BAT_REGION, METADATA_REGION].contains(&region.guid))
    }

    /// Looks everywhere. `storage` is replayed as far as that is possible.
    pub(super) fn find(
        storage: &dyn Storage,
        history: &History,
        heads: &Heads,
        report: &mut Report,
    ) -> Result<Self> {
        let all = tables(storage, history, report)?;
        let named = |guid| all.iter().find(|region| region.guid == guid).copied();
        let (mut bat, mut metadata) = (named(BAT_REGION), named(METADATA_REGION));
        if metadata.is_none() {
            metadata = metadata_by_looks(history, heads, report);
        }
        if bat.is_none() {
            let taken = [metadata.map(|region| region.offset), history.place().map(|p| p.offset)];
            bat = bat_by_looks(history, heads, &taken, report);
        }
        Ok(Self { all, bat, metadata })
    }
}

fn read(storage: &dyn Storage, at: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; TABLE_LENGTH];
    storage.read_zero_filled(at, &mut bytes)?;
    Ok(bytes)
}

fn is_sound(bytes: &[u8]) -> bool {
    let header = RegionTableHeader::read_from_prefix(bytes);
    header.is_ok_and(|(header, _)| {
        header.signature == SIGNATURE && header.checksum.get() == checksum::of_structure(bytes)
    })
}

/// The regions of a table that could be some.
fn parse(bytes: &[u8], table_at: u64) -> Vec<Region> {
    let Ok((header, rest)) = RegionTableHeader::read_from_prefix(bytes) else { return Vec::new() };
    if header.signature != SIGNATURE {
        return Vec::new();
    }
    let count = usize::try_from(header.entry_count.get()).unwrap_or(usize::MAX);
    let mut regions: Vec<Region> = Vec::new();
    for (number, raw) in (0u64..).zip(rest.chunks_exact(32).take(count)) {
        let Ok(entry) = RegionTableEntry::read_from_bytes(raw) else { break };
        let region = Region {
            guid: entry.guid,
            offset: entry.file_offset.get(),
            length: entry.length.get(),
            required: entry.required.get() & 1 == 1,
            entry_at: table_at.saturating_add(16).saturating_add(number.saturating_mul(32)),
        };
        let fits = region.offset >= MIB
            && region.offset.is_multiple_of(MIB)
            && region.length > 0
            && u64::from(region.length).is_multiple_of(MIB)
            && region.offset.checked_add(u64::from(region.length)).is_some();
        let clashes = |other: &Region| {
            other.guid == region.guid
                || (other.offset < region.end() && region.offset < other.end())
        };
        if fits && !regions.iter().any(clashes) {
            regions.push(region);
        }
    }
    regions
}

fn finds_both(regions: &[Region]) -> bool {
    [BAT_REGION, METADATA_REGION].iter().all(|guid| regions.iter().any(|r| r.guid == *guid))
}

/// The best of the two copies, of what the log holds of them, and of what is left of them.
fn tables(storage: &dyn Storage, history: &History, report: &mut Report) -> Result<Vec<Region>> {
    let mut doubtful = None;
    for at in REGION_TABLE_OFFSETS {
        let bytes = read(storage, at)?;
        let regions = parse(&bytes, at);
        if is_sound(&bytes) && finds_both(&regions) {
            let text = format!("{} regions", regions.len());
            report.say("region table", Trust::Sound, Some(at), text);
            return Ok(regions);
        }
        if doubtful.is_none() && finds_both(&regions) {
            doubtful = Some((at, regions));
        }
    }
    for at in REGION_TABLE_OFFSETS {
        if let Some(bytes) = from_log(history, at) {
            let regions = parse(&bytes, at);
            if is_sound(&bytes) && finds_both(&regions) {
                report.say("region table", Trust::Log, Some(at), "as the log wrote it");
                return Ok(regions);
            }
        }
    }
    if let Some((at, regions)) = doubtful {
        let text = "its checksum is wrong; what it names makes sense";
        report.say("region table", Trust::Doubtful, Some(at), text);
        return Ok(regions);
    }
    report.say("region table", Trust::Lost, None, "both copies are damaged");
    Ok(Vec::new())
}

/// A table put together from the log: sectors that it does not hold are taken for zeros, which the checksum
/// then judges.
fn from_log(history: &History, at: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(TABLE_LENGTH);
    let mut any = false;
    for sector in (0u64..16).map(|number| at.saturating_add(number.saturating_mul(4096))) {
        match history.images(sector).first() {
            Some(image) => {
                any = true;
                bytes.extend_from_slice(&*image.bytes);
            }
            None => bytes.extend_from_slice(&[0; LOG_SECTOR_LEN]),
        }
    }
    any.then_some(bytes)
}

fn region_at(guid: crate::format::Guid, offset: u64, mebibytes: u32) -> Region {
    let length = mebibytes.saturating_mul(1 << 20);
    Region { guid, offset, length, required: true, entry_at: 0 }
}

fn metadata_by_looks(history: &History, heads: &Heads, report: &mut Report) -> Option<Region> {
    if let Some(&offset) = heads.metadata.first() {
        report.say("metadata region", Trust::Inferred, Some(offset), "by its signature");
        if heads.metadata.len() > 1 {
            let text = format!(
                "{} places of the file look like a metadata table; the first is taken",
                heads.metadata.len()
            );
            report.remarks.push(text);
        }
        return Some(region_at(METADATA_REGION, offset, 1));
    }
    let found = history
        .newest()
        .find(|(offset, image)| offset.is_multiple_of(MIB) && looks::is_metadata(&image.bytes));
    if let Some((offset, _)) = found {
        report.say("metadata region", Trust::Log, Some(offset), "the log wrote it there");
        return Some(region_at(METADATA_REGION, offset, 1));
    }
    report.say("metadata region", Trust::Lost, None, "no metadata table was found");
    None
}

fn bat_by_looks(
    history: &History,
    heads: &Heads,
    taken: &[Option<u64>],
    report: &mut Report,
) -> Option<Region> {
    let logged = history.newest().filter(|(_, image)| looks::names_blocks(&image.bytes));
    let logged: Vec<u64> = logged.map(|(offset, _)| mib_floor(offset)).collect();
    let seen = heads.tables.iter().copied().chain(logged.iter().copied());
    let Some(offset) = seen.filter(|offset| !taken.contains(&Some(*offset))).min() else {
        report.say("BAT region", Trust::Lost, None, "nothing in the file looks like a table");
        return None;
    };
    let (trust, text) = match logged.contains(&offset) {
        true => (Trust::Log, "the log wrote entries there"),
        false => (Trust::Inferred, "by its looks"),
    };
    report.say("BAT region", trust, Some(offset), text);
    // How long it is, only the disk's sizes tell.
    Some(region_at(BAT_REGION, offset, 1))
}
