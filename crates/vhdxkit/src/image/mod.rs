//! One virtual disk: create it, open it, read it, write it.
//!
//! `open` goes from bytes to an [`Image`] in the only order the format allows, `read` serves guest
//! bytes, `extents` tells where they lie, `cursor` adapts to [`std::io::Read`]. `create` makes a new
//! file, laid out by `layout`; `write` is everything that changes one.

mod create;
mod cursor;
mod extents;
mod layout;
mod open;
mod orphan;
mod pending;
mod read;
mod relative;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::findings::Findings;
use crate::format::Guid;
use crate::format::metadata::Item;
use crate::log::Log;
use crate::map::{Bat, Bitmap, Bitmaps, EntryRules, Pin};
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::Geometry;
use crate::view::headers::HeaderPair;
use crate::view::locator::ParentLocator;
use crate::view::metadata::{MetadataItem, MetadataTable};
use crate::view::regions::RegionMap;
use crate::{Error, Result};

pub use create::CreateOptions;
pub use cursor::Cursor;
pub(crate) use extents::Swept;
pub use extents::{Extent, ExtentState, Extents};
pub(crate) use layout::{BatWriter, Identity, Layout, region_length};
pub(crate) use open::{
    DirtyLog, ImageParts, Recovered, open_layer, open_layer_for_writing, read_image_parts,
};
pub(crate) use orphan::find_lost_log;
pub use pending::PendingReplay;
pub(crate) use relative::{folder_of, paths as parent_paths, paths_from};
pub(crate) use write::GivenUp;
use write::Writer;
pub use write::{ResizeReport, Shrink};

/// An open VHDX disk.
///
/// Everything takes `&self`, and reads from many threads do not wait for each other. A child whose parent
/// is open reads as one disk with it. Opening for
/// reading never changes the file: a log that needs replay is replayed in memory.
///
/// ```
/// let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
/// let mut first_sector = [0; 512];
/// image.read_at(0, &mut first_sector)?;
/// println!("{} bytes, {}", image.geometry().virtual_size(), image.log().state().name());
/// # Ok::<(), vhdxkit::Error>(())
/// ```
pub struct Image {
    /// The file as it is once its log is replayed.
    storage: Arc<dyn Storage>,
    file_size: u64,
    headers: HeaderPair,
    log: Log,
    regions: RegionMap,
    metadata: MetadataTable,
    geometry: Geometry,
    rules: EntryRules,
    bat: Bat,
    bitmaps: Bitmaps,
    locator: Option<ParentLocator>,
    /// Where it was opened from, if that was a file.
    path: Option<PathBuf>,
    /// Of a child, where the parent was asked for and found.
    parent: Option<Box<Image>>,
    findings: Findings,
    /// When it is open for writing.
    writer: Option<Box<Writer>>,
}

impl Image {
    /// The same image, known to lie in this file.
    pub(crate) fn at(self, path: &Path) -> Self {
        Self { path: Some(path.to_path_buf()), ..self }
    }

    /// The same image, read over its parent.
    pub(crate) fn over(self, parent: Self) -> Self {
        Self { parent: Some(Box::new(parent)), ..self }
    }

    fn writer(&self) -> Result<&Writer> {
        self.writer.as_deref().ok_or_else(|| crate::Error::invalid("the image is open for reading"))
    }

    /// Keeps the space that the mapping shows from being reused while this lives.
    fn pin(&self) -> Option<Pin<'_>> {
        self.writer.as_deref().map(|writer| writer.pins().pin())
    }

    /// The rules for BAT entries, with the file as long as it is now.
    pub(crate) fn entry_rules(&self) -> EntryRules {
        let file_size = self.writer.as_deref().map_or(self.rules.file_size, Writer::length);
        EntryRules { file_size, ..self.rules }
    }

    /// Whether it was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writer.is_some()
    }

    /// Sizes, sector sizes, type and identity of the disk.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Bytes of the virtual disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size()
    }

    /// Bytes of the file as it lies on disk.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// The headers as they lie on disk.
    #[must_use]
    pub fn headers(&self) -> &HeaderPair {
        &self.headers
    }

    /// The log as it lies on disk. The history in the ring of a clean file was not read for it;
    /// [`Log::read`] does that.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The regions of the file.
    #[must_use]
    pub fn regions(&self) -> &RegionMap {
        &self.regions
    }

    /// The metadata table.
    #[must_use]
    pub fn metadata(&self) -> &MetadataTable {
        &self.metadata
    }

    /// Who the parent is, for a differencing disk.
    #[must_use]
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.locator.as_ref()
    }

    /// The identities that a child accepts as its parent's; none for other disks.
    pub(crate) fn wanted_parents(&self) -> Vec<Guid> {
        let locator = self.locator.as_ref().filter(|_| self.geometry.is_differencing());
        locator.map_or_else(Vec::new, |locator| {
            locator.linkage().into_iter().chain(locator.linkage2()).collect()
        })
    }

    /// The error of whoever needs the parent of a child that was opened alone.
    pub(crate) fn parent_needed(&self, what: &'static str) -> Error {
        let error = Error::parent_needed(what, self.wanted_parents());
        match self.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    }

    /// The path that it was opened by; `None` for an image on a storage of the caller's.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The parent of a child, open for reading; `None` while it was not asked for
    /// ([`OpenOptions::parents`](crate::OpenOptions::parents)).
    #[must_use]
    pub fn parent(&self) -> Option<&Image> {
        self.parent.as_deref()
    }

    /// The image at a depth of the chain: 0 is this one, 1 its parent.
    #[must_use]
    pub fn layer(&self, depth: u32) -> Option<&Image> {
        let mut image = self;
        for _ in 0..depth {
            image = image.parent()?;
        }
        Some(image)
    }

    /// This image and its parents, as far as they are open.
    pub fn layers(&self) -> impl Iterator<Item = &Image> {
        std::iter::successors(Some(self), |image| image.parent())
    }

    /// What opening noticed without having to refuse the file.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The file's bytes with the log replayed over them: what every offset that this image gives
    /// out refers to.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The sector bitmap block of a chunk: its file offset, `None` when there is none.
    ///
    /// # Errors
    /// Its BAT entry is damaged, or reading the BAT fails.
    pub fn sector_bitmap(&self, chunk: u64) -> Result<Option<u64>> {
        if !self.geometry.is_differencing() {
            return Ok(None);
        }
        let raw = self.bat_entry(self.geometry.bitmap_index(chunk))?;
        Ok(self.entry_rules().bitmap(chunk, raw)?)
    }

    /// The sector bitmap of a partially present block.
    fn bitmap_of(&self, block: u64) -> Result<Bitmap> {
        let chunk = self.geometry.chunk_of(block);
        match self.sector_bitmap(chunk)? {
            Some(file_offset) => Ok(Bitmap { chunk, file_offset }),
            None => Err(self.rules.partial_without_bitmap(block).into()),
        }
    }

    /// A metadata item with its bytes.
    pub(crate) fn item(&self, item: &MetadataItem) -> Result<Item> {
        let mut data = vec![0; usize::try_from(item.length).unwrap_or_default()];
        if !data.is_empty() {
            self.storage.read_exact_at(item.offset, &mut data)?;
        }
        Ok(Item { id: item.id, flags: item.flags, data })
    }

    /// The BAT entry at `index`, as stored.
    ///
    /// # Errors
    /// There is no such entry, or reading the BAT fails.
    pub fn bat_entry(&self, index: u64) -> Result<crate::format::bat::RawEntry> {
        if index >= self.geometry.bat_entries() {
            return Err(crate::Error::invalid(format!("the BAT has no entry {index}")));
        }
        self.bat.entry(index)
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}
