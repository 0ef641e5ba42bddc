//! Opening, in the order of the format: identifier, headers, log, and only then everything else.
//!
//! The types carry the trust. [`HeaderPair`] may be read from any file. Regions, metadata and BAT
//! are read from [`Recovered`] storage only, which can be had only by way of the log.

use std::sync::Arc;

use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::GuidSource;
use crate::format::metadata::PARENT_LOCATOR;
use crate::log::{Log, LogState};
use crate::map::{Bat, Bitmaps, EntryRules};
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::Geometry;
use crate::view::headers::HeaderPair;
use crate::view::locator::ParentLocator;
use crate::view::metadata::MetadataTable;
use crate::view::regions::{RegionMap, judge_inside};
use crate::{Result, map};

use super::write::Writer;
use super::{Image, orphan};

/// What to do about a log that cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirtyLog {
    /// Refuse: what lies behind the log cannot be trusted.
    MustReplay,
    /// Look at the file as it lies on disk: for telling people about it, or on the user's word.
    MayBeInvalid,
}

/// A file whose log has been replayed: what lies behind the log may be read.
pub(crate) struct Recovered {
    pub(crate) storage: Arc<dyn Storage>,
    /// Length of the file as it lies on disk.
    pub(crate) file_size: u64,
    pub(crate) headers: HeaderPair,
    pub(crate) log: Log,
}

impl Recovered {
    /// Reads headers and log, and replays in memory.
    pub(crate) fn read(
        file: Arc<dyn Storage>,
        policy: DirtyLog,
        findings: &mut Findings,
    ) -> Result<Self> {
        let headers = HeaderPair::read(&*file, findings)?;
        // Reading goes on, with a word about it: what is there is there, whether the ring can be read or not.
        let (headers, lost) = orphan::find_lost_log(&file, headers.clone(), findings)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "whether a lost header named a log is not known");
                (headers, None)
            });
        lost.into_iter().for_each(|defect| findings.note(defect));
        let log = Log::read_pending(&*file, &headers)?;
        let storage = match log.replay_in_memory(Arc::clone(&file)) {
            Ok(storage) => storage,
            Err(error) if policy == DirtyLog::MayBeInvalid => {
                let Some(defect) = error.defect() else { return Err(error) };
                findings.note(defect.clone());
                Arc::clone(&file)
            }
            Err(error) => return Err(error),
        };
        note_dirty(&log, findings)?;
        let file_size = file.length()?;
        Ok(Self { storage, file_size, headers, log })
    }
}

impl Recovered {
    /// Reads headers and log, and replays in the file. The flag tells whether there was anything to
    /// replay: then the file has the FileWriteGuid of the one who opened it already.
    fn in_place(
        file: Arc<dyn Storage>,
        guids: &GuidSource,
        findings: &mut Findings,
    ) -> Result<(Self, bool)> {
        let headers = HeaderPair::read(&*file, findings)?;
        // What is logged next would be written over the entries: a strict reading ends here.
        let (headers, lost) = orphan::find_lost_log(&file, headers, findings)?;
        lost.map_or(Ok(()), |defect| findings.report(defect))?;
        let log = Log::read_pending(&*file, &headers)?;
        // What comes after a damaged entry in the middle of the log may be had otherwise: nobody gives it up
        // without having been told to.
        if let Some(defect) = log.unreachable_entries() {
            return Err(defect.into());
        }
        let (headers, replayed) = log.replay_into_file(&*file, headers, guids)?;
        if replayed.is_none() {
            // What was read may be only in the operating system's cache. Were it lost after we have
            // built on it, neither header copy might be left.
            crate::log::sync(&*file)?;
        }
        note_dirty(&log, findings)?;
        let file_size = file.length()?;
        Ok((Self { storage: file, file_size, headers, log }, replayed.is_some()))
    }
}

/// A dirty log is worth a remark, whatever is done about it.
fn note_dirty(log: &Log, findings: &mut Findings) -> Result<()> {
    if let (LogState::Dirty, Some(active), Some(place)) = (log.state(), log.active(), log.place())
        && let (Some(first), Some(last)) = (active.entries().first(), active.head())
    {
        findings.report(Defect::DirtyLog {
            at: place.offset.saturating_add(u64::from(first.log_offset)),
            first: first.sequence,
            last: last.sequence,
            entries: u64::try_from(active.entries().len()).unwrap_or(u64::MAX),
        })?;
    }
    match log.unreachable_entries() {
        Some(defect) => findings.report(defect),
        None => Ok(()),
    }
}

/// What lies behind the log, judged; `None` where a check found too little to go on.
pub(crate) struct ImageParts {
    pub(crate) regions: RegionMap,
    pub(crate) metadata: MetadataTable,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) locator: Option<ParentLocator>,
}

/// Reads regions, metadata, geometry and parent locator of a recovered file.
pub(crate) fn read_image_parts(from: &Recovered, findings: &mut Findings) -> Result<ImageParts> {
    let storage = &*from.storage;
    let regions = RegionMap::read(storage, from.headers.log_place(), findings)?;
    let metadata = MetadataTable::read(storage, regions.metadata(), findings)?;
    let items = metadata.disk_items(storage, findings)?;
    let geometry = Geometry::judge(&items, findings)?;
    if let Some(geometry) = &geometry {
        judge_bat_region(&regions, geometry, storage.length()?, findings)?;
    }
    let differencing = geometry.as_ref().is_some_and(Geometry::is_differencing);
    let locator = match metadata.system_item(PARENT_LOCATOR) {
        Some(item) if differencing => ParentLocator::read(storage, item, findings)?,
        Some(item) => {
            findings.report(Defect::LocatorUnexpected { at: item.entry_at })?;
            None
        }
        None if differencing => {
            findings.report(Defect::LocatorMissing { at: regions.metadata().offset })?;
            None
        }
        None => None,
    };
    Ok(ImageParts { regions, metadata, geometry, locator })
}

/// V25 and V14 for the BAT.
fn judge_bat_region(
    regions: &RegionMap,
    geometry: &Geometry,
    file_size: u64,
    findings: &mut Findings,
) -> Result<()> {
    let bat = regions.bat();
    let (needed, length) = (geometry.bat_bytes(), u64::from(bat.length));
    if needed > length {
        let at = bat.entry_at.saturating_add(24);
        findings.report(Defect::BatTooSmall { at, needed, length })?;
    }
    judge_inside(&bat, needed, file_size, findings)
}

/// Opens one image for reading, whatever it is a child of.
pub(crate) fn open_layer(file: Arc<dyn Storage>, policy: DirtyLog) -> Result<Image> {
    let mut findings = Findings::strict();
    let recovered = Recovered::read(file, policy, &mut findings)?;
    assemble(recovered, findings)
}

/// Opens one image for writing, whatever it is a child of.
pub(crate) fn open_layer_for_writing(file: Arc<dyn Storage>, guids: GuidSource) -> Result<Image> {
    let mut findings = Findings::strict();
    let (recovered, replayed) = Recovered::in_place(Arc::clone(&file), &guids, &mut findings)?;
    let headers = recovered.headers.clone();
    let image = assemble(recovered, findings)?;
    let writer = Writer::new(file, headers, guids, replayed)?;
    let bat = image.bat.over(Arc::clone(writer.sectors()));
    let bitmaps = image.bitmaps.over(Arc::clone(writer.sectors()));
    Ok(Image { bat, bitmaps, writer: Some(Box::new(writer)), ..image })
}

/// From a recovered file to an image that can be read.
fn assemble(recovered: Recovered, mut findings: Findings) -> Result<Image> {
    let parts = read_image_parts(&recovered, &mut findings)?;
    let Recovered { storage, file_size, headers, log } = recovered;
    // A strict reading has failed before if the sizes were no good.
    let geometry = parts.geometry.ok_or(Defect::ItemMissing {
        at: parts.regions.metadata().offset,
        name: "File Parameters",
    })?;
    let bat_offset = parts.regions.bat().offset;
    let rules = EntryRules { geometry, bat_offset, file_size: storage.length()? };
    let bat = map::Bat::new(Arc::clone(&storage), bat_offset, geometry.bat_entries());
    let bitmaps = Bitmaps::new(Arc::clone(&storage), &geometry);
    Ok(Image {
        storage,
        file_size,
        headers,
        log,
        regions: parts.regions,
        metadata: parts.metadata,
        geometry,
        rules,
        bat,
        bitmaps,
        locator: parts.locator,
        path: None,
        parent: None,
        findings,
        writer: None,
    })
}

#[allow(dead_code)]
fn image_is_shareable() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Image>();
    shareable::<Bat>();
}
