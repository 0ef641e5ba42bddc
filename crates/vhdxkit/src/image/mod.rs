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
mod read;
mod write;

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::findings::Findings;
use crate::log::Log;
use crate::map::{Bat, EntryRules, Pin};
use crate::storage::Storage;
use crate::view::geometry::Geometry;
use crate::view::headers::HeaderPair;
use crate::view::locator::ParentLocator;
use crate::view::metadata::MetadataTable;
use crate::view::regions::RegionMap;

pub use create::CreateOptions;
pub use cursor::Cursor;
pub use extents::{Extent, ExtentState, Extents};
pub(crate) use layout::Layout;
pub use open::OpenOptions;
pub(crate) use open::{DirtyLog, Recovered, open, read_image_parts};
use write::Writer;
pub use write::{ResizeReport, Shrink};

/// An open VHDX disk.
///
/// Everything takes `&self`, and reads from many threads do not wait for each other. Opening for
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
    locator: Option<ParentLocator>,
    findings: Findings,
    /// When it is open for writing.
    writer: Option<Writer>,
}

impl Image {
    /// Opens the VHDX file at `path` for reading.
    ///
    /// # Errors
    /// [`Error::kind`](crate::Error::kind) tells them apart: not a VHDX file, corrupt, an
    /// unsupported feature, locked by a writer, a log that cannot be replayed, or an I/O error.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        OpenOptions::new().open(path)
    }

    fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| crate::Error::invalid("the image is open for reading"))
    }

    /// Keeps the space that the mapping shows from being reused while this lives.
    fn pin(&self) -> Option<Pin<'_>> {
        self.writer.as_ref().map(|writer| writer.pins().pin())
    }

    /// The rules for BAT entries, with the file as long as it is now.
    fn rules_now(&self) -> EntryRules {
        let file_size = self.writer.as_ref().map_or(self.rules.file_size, Writer::length);
        EntryRules { file_size, ..self.rules }
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
        Ok(self.rules_now().bitmap(chunk, raw)?)
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
