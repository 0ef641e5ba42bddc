//! `recover`: a new image from a file that cannot be opened any more.
//!
//! A VHDX has little that cannot be lost. Four small places tell where everything else lies: the headers, the
//! region tables, the metadata, the block allocation table. Each can be gone, and the payload still be there,
//! all of it. What is said twice, and where:
//!
//! | lost | known from |
//! |---|---|
//! | one copy of header or region table | the other |
//! | both headers | the log by its entries' signature; the region tables do not need them |
//! | both region tables | images in the log; the metadata by its signature, the BAT by its looks |
//! | the first mebibyte | all of that together |
//! | metadata | images in the log; the caller; inference, which is said |
//! | BAT | images in the log, current and older ones |
//! | the file's end | what lies before it |
//!
//! # The way
//! 1. Headers (`headers`), and the looks of every mebibyte, if anything is missing (`looks`).
//! 2. The log as a witness (`history`): images of sectors by session and age. If it is known which session is
//!    the newest it is replayed in memory, as an open would do.
//! 3. Regions (`regions`), what the disk is (`shape`), the table from all witnesses (`table`).
//! 4. The fate of every block (`settle`), with all claims on one place weighed (`space`).
//! 5. **A view**: the file, unchanged, with new tables laid over it in memory, behind its last block. That is an
//!    ordinary image, and everything that reads images reads it: it is copied to a new file by `import`, over
//!    its parent if there is one, or, as a child, by `child`.
//!
//! # What is certain
//! The format has no checksum over payload, BAT and metadata. So *intact* means that the table names the
//! block's place, not that its bytes were never overwritten. A fate that claims certainty (intact, log, absent) is
//! given only where nothing newer can say otherwise; [`Fate::Older`] and [`Fate::Guessed`] say why they are
//! not. What is lost reads zeros and is listed; in a child it is zeros too, never the parent's old data.
//!
//! # Identity
//! The virtual disk's ID is kept if the metadata has it; else it is that of a parent that was given, and told to be
//! that. The DataWriteGuid, by which children know their
//! parent, is kept only if a sound header has it *and* nothing of the disk is lost or guessed: otherwise
//! children would take this disk for what it is not any more. Everything else that names the file is new.
//!
//! # Bounds
//! The source is only read, bad spots in it read zeros and are told. Memory: six bits for each mebibyte of
//! the file and a few more, 64 MiB of log sectors, the new table. No place is given to two blocks, so the result
//! is never larger than the file. Time: the table thrice, a sector of each mebibyte, and the space that nothing
//! names.

mod child;
mod forgiving;
mod headers;
pub(crate) mod history;
mod looks;
mod peek;
mod regions;
mod report;
mod settle;
mod shape;
mod space;
mod table;

use std::ops::Range;
use std::sync::Arc;

use crate::format::{Guid, GuidSource, HEADER_SECTION_LENGTH, mib_ceil};
use crate::image::{DirtyLog, Identity, Layout, open_layer};
use crate::storage::{Overlay, Patched, Storage, StorageExt, only_read};
use crate::view::geometry::Geometry;
use crate::{Error, Image, OpenOptions, Result};

use super::disk::Disk;
use super::import::{ImportReport, options_for, to_vhdx};
use super::progress::Progress;

pub use report::{Fate, FateRun, Fates, Report, Statement, Trust};

use forgiving::Forgiving;
use headers::Headers;
use history::History;
use looks::Heads;
use regions::Regions;
use settle::Settler;
use shape::Shape;
use space::Claims;
use table::{Reliance, Table};

/// What the caller knows of the disk, and allows.
#[derive(Debug, Clone, Default)]
pub struct SalvageOptions {
    virtual_size: Option<u64>,
    block_size: Option<u32>,
    logical_sector: Option<u32>,
    parent: Option<Parent>,
    guess_order: bool,
}

#[derive(Debug, Clone, Copy)]
struct Parent {
    geometry: Geometry,
    data_write_guid: Guid,
    /// It and its own parents are what their children name.
    is_named: bool,
}

impl SalvageOptions {
    /// Nothing is known, and no order is guessed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the virtual disk, whatever the file says.
    #[must_use]
    pub fn virtual_size(mut self, bytes: u64) -> Self {
        self.virtual_size = Some(bytes);
        self
    }

    /// Bytes of a payload block, whatever the file says.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// The guest's sector size, whatever the file says.
    #[must_use]
    pub fn logical_sector_size(mut self, bytes: u32) -> Self {
        self.logical_sector = Some(bytes);
        self
    }

    /// The parent of a child. It tells sizes that the child does not tell any more. What is made then is one disk of
    /// both, and has an identity of its own.
    #[must_use]
    pub fn parent(mut self, parent: &Image) -> Self {
        let identity = |image: &Image| image.headers().current().data_write_guid;
        let is_named = parent.layers().all(|image| {
            image.parent().is_none_or(|below| image.wanted_parents().contains(&identity(below)))
        });
        let (geometry, data_write_guid) = (*parent.geometry(), identity(parent));
        self.parent = Some(Parent { geometry, data_write_guid, is_named });
        self
    }

    /// When nothing names the place of any block: place them in order, up to the end of the file. Right for a
    /// fixed disk that was filled in order, wrong for others; nothing can tell.
    #[must_use]
    pub fn guess_order(mut self, yes: bool) -> Self {
        self.guess_order = yes;
        self
    }
}

/// What could be had of a damaged file.
///
/// ```
/// use std::sync::Arc;
/// use vhdxkit::ops::recover::{Salvage, SalvageOptions};
/// use vhdxkit::storage::{MemoryStorage, Storage};
///
/// let file = MemoryStorage::new(std::fs::read("../../testdata/clean.vhdx").unwrap());
/// file.write_at(0, &vec![0; 1 << 20]).unwrap();
/// let salvage = Salvage::read(Arc::new(file), &SalvageOptions::new(), &mut ())?;
/// assert_eq!(salvage.report().share(), 10_000);
/// salvage.write(&MemoryStorage::empty(), None, &mut ())?;
/// # Ok::<(), vhdxkit::Error>(())
/// ```
pub struct Salvage {
    file: Arc<Forgiving>,
    report: Report,
    found: Option<Found>,
}

struct Found {
    view: Arc<dyn Storage>,
    shape: Shape,
    data_write_guid: Option<Guid>,
}

impl Salvage {
    /// Looks for everything that is left. The file is only read. Progress counts bytes of the table.
    ///
    /// # Errors
    /// The file's length cannot be told, the new table does not fit the bounds of
    /// [`limits`](crate::format::limits), or the work was stopped. Whatever is wrong with the file is told by
    /// the [report](Self::report).
    pub fn read(
        file: Arc<dyn Storage>,
        options: &SalvageOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let file = Arc::new(Forgiving::new(file));
        let mut report = Report { file_size: file.length()?, ..Report::default() };
        let found = find(&file, options, &mut report, progress)?;
        report.unreadable = file.unreadable();
        Ok(Self { file, report, found })
    }

    /// What was found, and what became of every block.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The disk as it can be had, without its parent if it is a child; `None` where nothing tells its sizes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn image(&self) -> Result<Option<Image>> {
        let view = self.found.as_ref().map(|found| Arc::clone(&found.view));
        view.map(|view| open_layer(view, DirtyLog::MustReplay)).transpose()
    }

    /// Whether it is a child of which [`write`](Self::write) has to be given the parent.
    #[must_use]
    pub fn needs_parent(&self) -> bool {
        let shape = self.found.as_ref().map(|found| &found.shape);
        shape.is_some_and(|shape| shape.geometry.is_differencing() && !shape.has_locator())
    }

    /// Writes the disk into an empty storage, as an image, and makes it durable. A child stays a child of the same
    /// parent; with its `parent` (opened with its own parents) it becomes a disk of its own. Progress counts
    /// bytes of the disk. What could not be read of the file on the way is in the report from then on.
    ///
    /// # Errors
    /// Nothing tells the sizes of the disk; it is a child whose parent has to be given, or the parent is another
    /// one; the target is not empty or cannot be written; the work was stopped. The target is then no image.
    pub fn write(
        &self,
        target: &dyn Storage,
        parent: Option<(Image, &OpenOptions)>,
        progress: &mut dyn Progress,
    ) -> Result<ImportReport> {
        let found = self.found.as_ref().ok_or_else(|| {
            Error::invalid("nothing tells the sizes of the disk any more: see the report")
        })?;
        let Found { view, shape, data_write_guid } = found;
        let image = open_layer(Arc::clone(view), DirtyLog::MustReplay)?;
        if shape.geometry.is_differencing() && parent.is_none() {
            if !shape.has_locator() {
                return Err(Error::invalid(
                    "the disk is a child, and the name of its parent is lost: give the parent",
                ));
            }
            let guids = GuidSource::random();
            let identity = Identity {
                disk_id: shape.disk_id.unwrap_or_else(|| guids.guid()),
                file_write: guids.guid(),
                data_write: data_write_guid.unwrap_or_else(|| guids.guid()),
            };
            return child::copy(&image, &shape.items, identity, target, progress);
        }
        let image = match parent {
            Some((parent, options)) if shape.geometry.is_differencing() => {
                options.open_child(Arc::clone(view), parent)?
            }
            _ => image,
        };
        let source = Disk::Vhdx(Box::new(image));
        let mut options = options_for(&source).items(self.items_of_disk(shape));
        if let Some(id) = shape.disk_id {
            options = options.disk_id(id);
        }
        if let Some(guid) = data_write_guid.filter(|_| !shape.geometry.is_differencing()) {
            options = options.data_write_guid(guid);
        }
        to_vhdx(&source, target, &options, progress)
    }

    /// What a disk without parent keeps of the metadata.
    fn items_of_disk(&self, shape: &Shape) -> Vec<crate::format::metadata::Item> {
        let locator = crate::format::metadata::PARENT_LOCATOR;
        let items = shape.items.iter();
        items.filter(|item| item.id != locator || item.is_user()).cloned().collect()
    }

    /// Copies a run of [orphans](Report::orphans), or any other part of the file, as it is.
    ///
    /// # Errors
    /// The target cannot be written, or the work was stopped.
    pub fn extract(
        &self,
        part: Range<u64>,
        target: &mut dyn std::io::Write,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut buf = vec![0; 1 << 18];
        let mut at = part.start;
        while at < part.end {
            let wanted = usize::try_from(part.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let wanted = wanted.min(buf.len());
            let piece = buf.get_mut(..wanted).unwrap_or_default();
            let read = self.file.read_zero_filled(at, piece)?;
            let bytes = piece.get(..read).unwrap_or_default();
            let written = target.write_all(bytes);
            written.map_err(|e| Error::io_whole("cannot write what was found", e))?;
            if read < wanted {
                break;
            }
            let step = u64::try_from(read).unwrap_or_default();
            super::progress::advance(progress, step)?;
            at = at.saturating_add(step);
        }
        Ok(())
    }

    /// Parts of the file that could not be read so far.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Range<u64>> {
        self.file.unreadable()
    }
}

fn find(
    file: &Arc<Forgiving>,
    options: &SalvageOptions,
    report: &mut Report,
    progress: &mut dyn Progress,
) -> Result<Option<Found>> {
    let raw: Arc<dyn Storage> = Arc::clone(file) as Arc<dyn Storage>;
    let headers = Headers::read(&*raw, report)?;
    let heads = match headers.is_sound() && Regions::are_named(&*raw)? {
        true => Heads::default(),
        false => looks::look(&*raw, progress)?,
    };
    let history = History::read(&*raw, &headers, &heads, report)?;
    let replay = history.replay(&raw, &headers, report)?;
    let (storage, replayed, file_size) = (replay.storage, replay.is_replayed, replay.file_size);
    let has_gap = replay.has_gap;
    let regions = Regions::find(&*storage, &history, &heads, report)?;
    let is_clean = headers.is_sound() && headers.session().is_none();
    let is_complete = (is_clean && (headers.is_last() || history.is_unused()))
        || (headers.is_last() && replayed && !has_gap);
    let reliance = Reliance { is_complete, is_replayed: replayed, has_gap };
    let bat = regions.bat.map(|region| region.offset);
    let table = |entries: u64| {
        bat.map(|offset| Table::new(&storage, &raw, offset, entries, &history, reliance))
    };
    let Some(shape) = shape::find(&storage, regions.metadata, &history, &table, options, report)?
    else {
        return Ok(None);
    };
    let geometry = shape.geometry;
    for region in regions.unknown() {
        let text =
            format!("the region {} is not known to this version, and not copied", region.name());
        report.remarks.push(text);
    }
    report.geometry = Some(geometry);
    let claims = Claims::new(file_size, &tables_of_file(&regions, &history, &geometry));
    let table = table(geometry.bat_entries());
    let mut settler = Settler::new(geometry, shape.is_guess, table, claims, file_size);

    // Behind everything that a block may be placed at, so that nothing of the file is hidden.
    let length = storage.length()?;
    let base = length.saturating_add(u64::from(geometry.block_size()));
    let layout = Layout::tables_at(geometry, mib_ceil(base).unwrap_or(base))?;
    let overlay = Overlay::new(Arc::clone(&storage))
        .map_err(|e| Error::io_whole("cannot tell the file's length", e))?;
    layout.set_length(&overlay, 0)?;
    overlay
        .punch(0..HEADER_SECTION_LENGTH)
        .map_err(|e| Error::io("cannot lay out the new tables", 0, e))?;
    let mut writer = layout.bat_writer(&overlay);
    settler.run(&*storage, options.guess_order, &mut writer, report, progress)?;
    let data_write_guid = headers.last().map(|header| header.data_write_guid);
    let data_write_guid = data_write_guid.filter(|_| report.is_whole());
    let is_flattened = geometry.is_differencing() && options.parent.is_some();
    let kept = data_write_guid.filter(|_| !is_flattened);
    match data_write_guid {
        Some(guid) if is_flattened => {
            let text = format!(
                "that of the child was {guid}; over its parent the result is another disk, and gets a new one"
            );
            report.say("DataWriteGuid", Trust::Sound, None, text);
        }
        Some(guid) => report.say("DataWriteGuid", Trust::Sound, None, format!("{guid}, kept")),
        None => {
            let text = "the result gets a new one: children of this disk do not know it any more";
            report.say("DataWriteGuid", Trust::Lost, None, text);
        }
    }
    let guids = GuidSource::random();
    let identity = Identity {
        disk_id: shape.disk_id.unwrap_or_else(|| guids.guid()),
        file_write: guids.guid(),
        data_write: kept.unwrap_or_else(|| guids.guid()),
    };
    let mut items = shape.items.clone();
    if geometry.is_differencing() && !shape.has_locator() {
        // Only for the view, which is not opened as a child without one. It names nobody.
        items.extend(shape::locator_to(guids.guid()));
    }
    layout.write_tables_as(&overlay, identity, &items)?;
    layout.finish(&overlay)?;
    let original = (!replayed).then(|| Arc::clone(file));
    let view: Arc<dyn Storage> = Arc::new(View { patched: overlay.freeze(), file: original });
    Ok(Some(Found { view, shape, data_write_guid: kept }))
}

/// What the file's own tables take, as far as that is known.
fn tables_of_file(regions: &Regions, history: &History, geometry: &Geometry) -> Vec<Range<u64>> {
    let header_section = 0..HEADER_SECTION_LENGTH;
    let mut taken = Vec::from([header_section]);
    taken.extend(history.place().map(|place| place.offset..place.end()));
    taken.extend(regions.all.iter().map(|region| region.offset..region.end()));
    taken.extend(regions.metadata.map(|region| region.offset..region.end()));
    let bat = regions.bat.map(|region| region.offset);
    taken.extend(bat.map(|at| {
        let length = mib_ceil(geometry.bat_bytes()).unwrap_or_default();
        at..at.saturating_add(length)
    }));
    taken
}

/// The file with new tables. Payload lies where it lay, so that a copy may share it.
struct View {
    patched: Patched,
    /// The file, if nothing is replayed over it.
    file: Option<Arc<Forgiving>>,
}

impl Storage for View {
    only_read!();
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.patched.read_at(offset, buf)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.patched.len()
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<Range<u64>>> {
        self.patched.next_data(offset)
    }
    fn as_file(&self) -> Option<&std::fs::File> {
        self.file.as_ref()?.as_file()
    }
}
