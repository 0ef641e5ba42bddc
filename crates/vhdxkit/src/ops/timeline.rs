//! The log as a story: every entry of the ring, and what each changed.

use std::collections::BTreeMap;

use crate::Result;
use crate::format::bat::RawEntry;
use crate::format::limits::MAX_TOLD_CHANGES;
use crate::format::{Guid, LOG_SECTOR_LEN, REGION_TABLE_OFFSETS};
use crate::image::Image;
use crate::log::{EntryInfo, EntryStatus, Log, LogEntry, Update};
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::{BatSlot, Geometry};
use crate::view::regions::Region;

/// What a logged range belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogTarget {
    /// The block allocation table.
    Bat,
    /// A sector bitmap block.
    SectorBitmap,
    /// The metadata region.
    Metadata,
    /// A region table.
    RegionTable,
    /// Anything else.
    Other,
}

impl LogTarget {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bat => "bat",
            Self::SectorBitmap => "sector_bitmap",
            Self::Metadata => "metadata",
            Self::RegionTable => "region_table",
            Self::Other => "other",
        }
    }
}

/// One BAT entry that a log entry changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatChange {
    /// Its number in the table.
    pub bat_index: u64,
    /// What it stands for.
    pub slot: BatSlot,
    /// Its value before, where that can be known.
    pub before: Option<RawEntry>,
    /// Its value after.
    pub after: RawEntry,
}

/// One descriptor of a log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChange {
    /// Whether it writes zeros; otherwise data.
    pub zero: bool,
    /// File offset.
    pub file_offset: u64,
    /// Bytes.
    pub length: u64,
    /// What lies there.
    pub target: LogTarget,
    /// For data in the BAT: what changes.
    pub bat_changes: Vec<BatChange>,
    /// How many further changes are not told: see [`limits`](crate::format::limits).
    pub left_out: u64,
}

/// An entry and its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineEntry {
    /// The entry.
    pub entry: LogEntry,
    /// Its descriptors, in order; none when it is torn.
    pub changes: Vec<LogChange>,
}

/// Tells what lies where in the file, as far as the tables behind the log can be read.
struct Places {
    bat: Region,
    metadata: Region,
    geometry: Geometry,
    bitmaps: std::collections::BTreeSet<u64>,
}

impl Places {
    fn of(image: &Image) -> Result<Self> {
        let geometry = *image.geometry();
        let mut bitmaps = std::collections::BTreeSet::new();
        if geometry.is_differencing() {
            for chunk in 0..geometry.chunks() {
                let raw = image.bat_entry(geometry.bitmap_index(chunk))?;
                bitmaps.insert(raw.file_offset());
            }
        }
        let (bat, metadata) = (image.regions().bat(), image.regions().metadata());
        Ok(Self { bat, metadata, geometry, bitmaps })
    }

    fn target(&self, file_offset: u64) -> LogTarget {
        let inside = |region: Region| region.offset <= file_offset && file_offset < region.end();
        let [first, _] = REGION_TABLE_OFFSETS;
        if file_offset >= first && file_offset < crate::format::HEADER_SECTION_LENGTH {
            LogTarget::RegionTable
        } else if inside(self.bat) {
            LogTarget::Bat
        } else if inside(self.metadata) {
            LogTarget::Metadata
        } else if file_offset > 0 && self.bitmaps.contains(&crate::format::mib_floor(file_offset)) {
            LogTarget::SectorBitmap
        } else {
            LogTarget::Other
        }
    }
}

/// Calls `visit` with every entry of the ring in the order in which things happened: earlier
/// sessions first, then the current one by sequence number. `file` is the file as it lies on disk,
/// `image` the same file opened to be inspected; without it (its tables may be damaged) the story
/// names offsets only.
///
/// # Errors
/// The log cannot be read, or `visit` fails.
pub fn for_each_entry(
    file: &dyn Storage,
    log: &Log,
    image: Option<&Image>,
    mut visit: impl FnMut(TimelineEntry) -> Result<()>,
) -> Result<()> {
    let places = image.map(Places::of).transpose()?;
    let mut teller = Teller { file, log, places, last: BTreeMap::new(), told: None };
    for entry in in_order(log) {
        let changes = match entry.status {
            EntryStatus::Torn => Vec::new(),
            _ => {
                let changes = teller.changes(&entry)?;
                teller.told = Some(entry.info);
                changes
            }
        };
        visit(TimelineEntry { entry, changes })?;
    }
    Ok(())
}

/// The entries as a story: sessions in the order of the ring, the current one last.
fn in_order(log: &Log) -> Vec<LogEntry> {
    let mut first_seen: BTreeMap<Guid, u32> = BTreeMap::new();
    for entry in log.entries() {
        first_seen.entry(entry.info.log_guid).or_insert(entry.info.log_offset);
    }
    let mut entries = log.entries().to_vec();
    entries.sort_by_key(|entry| {
        let guid = entry.info.log_guid;
        let current = !log.guid().is_zero() && guid == log.guid();
        (current, first_seen.get(&guid).copied(), entry.info.sequence, entry.info.log_offset)
    });
    entries
}

struct Teller<'a> {
    file: &'a dyn Storage,
    log: &'a Log,
    places: Option<Places>,
    /// The last image of each BAT sector that a session logged.
    last: BTreeMap<(Guid, u64), Box<[u8]>>,
    /// The entry told before this one.
    told: Option<EntryInfo>,
}

impl Teller<'_> {
    fn changes(&mut self, entry: &LogEntry) -> Result<Vec<LogChange>> {
        let mut changes: Vec<LogChange> = Vec::new();
        let mut room = MAX_TOLD_CHANGES;
        let (file, log) = (self.file, self.log);
        log.updates(file, entry, |update| {
            let (zero, file_offset, length) = match update {
                Update::Data { file_offset, .. } => {
                    (false, file_offset, u64::try_from(LOG_SECTOR_LEN).unwrap_or_default())
                }
                Update::Zero { file_offset, length } => (true, file_offset, length),
            };
            let (target, bat) = match &self.places {
                Some(places) => (places.target(file_offset), Some((places.bat, places.geometry))),
                None if file_offset < crate::format::HEADER_SECTION_LENGTH => {
                    (LogTarget::RegionTable, None)
                }
                None => (LogTarget::Other, None),
            };
            let mut bat_changes = match (update, target, bat) {
                (Update::Data { sector, .. }, LogTarget::Bat, Some((bat, geometry))) => {
                    let first = file_offset.saturating_sub(bat.offset) / 8;
                    self.bat_changes(entry, file_offset, sector, first, &geometry)?
                }
                _ => Vec::new(),
            };
            let left_out = bat_changes.len().saturating_sub(room);
            bat_changes.truncate(room);
            room = room.saturating_sub(bat_changes.len());
            let left_out = u64::try_from(left_out).unwrap_or(u64::MAX);
            changes.push(LogChange { zero, file_offset, length, target, bat_changes, left_out });
            Ok(())
        })?;
        Ok(changes)
    }

    fn bat_changes(
        &mut self,
        entry: &LogEntry,
        file_offset: u64,
        sector: &[u8; LOG_SECTOR_LEN],
        first_index: u64,
        geometry: &Geometry,
    ) -> Result<Vec<BatChange>> {
        let key = (entry.info.log_guid, file_offset);
        let mut earlier = self.last.insert(key, sector.to_vec().into_boxed_slice());
        // A session that goes on where the one before it ended, with the next number, saw what
        // that one left (QEMU writes a session per open in this way).
        if let Some(told) = self.told.filter(|told| continues(told, &entry.info)) {
            earlier = earlier.or_else(|| self.last.get(&(told.log_guid, file_offset)).cloned());
        }
        // What an entry about to be replayed changes is what lies on disk; what an older one
        // changed is known only from the image before it.
        let before = match (earlier, entry.status) {
            (Some(image), _) => Some(image),
            (None, EntryStatus::Active) => {
                let mut bytes = vec![0; LOG_SECTOR_LEN];
                self.file.read_zero_filled(file_offset, &mut bytes)?;
                Some(bytes.into_boxed_slice())
            }
            _ => None,
        };
        let mut old = before.as_deref().map(raw_entries);
        let mut changes = Vec::new();
        for (bat_index, after) in (first_index..).zip(raw_entries(sector)) {
            let before = old.as_mut().and_then(Iterator::next);
            let slot = geometry.slot(bat_index);
            let differs = before.map_or(after.0 != 0, |before| before != after);
            if differs && slot != BatSlot::Padding {
                changes.push(BatChange { bat_index, slot, before, after });
            }
        }
        Ok(changes)
    }
}

fn continues(before: &EntryInfo, entry: &EntryInfo) -> bool {
    before.log_offset.checked_add(before.length) == Some(entry.log_offset)
        && before.sequence.checked_add(1) == Some(entry.sequence)
}

fn raw_entries(bytes: &[u8]) -> impl Iterator<Item = RawEntry> + '_ {
    let (raws, _) = bytes.as_chunks::<8>();
    raws.iter().map(|raw| RawEntry(u64::from_le_bytes(*raw)))
}
