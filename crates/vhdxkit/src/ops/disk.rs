//! A disk to copy from or compare with, whatever its format.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::chain::{OpenOptions, VHD_NAMES, is_image_name, is_named};
use crate::error::as_argument;
use crate::format::identifier;
use crate::image::{ExtentState, Extents};
use crate::storage::{DataRuns, FileStorage, OpenMode, Storage, StorageExt};
use crate::vhd::{Place, Vhd, has_footer};
use crate::{Error, Image, Result};

#[cfg(feature = "qcow2")]
use crate::qcow2::Qcow2;

/// How a file is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskFormat {
    /// A VHDX image.
    Vhdx,
    /// The disk's bytes, nothing else.
    Raw,
    /// A VHD, version 1.
    Vhd,
    /// A qcow2 image; read and written with the feature `qcow2` only.
    Qcow2,
}

impl DiskFormat {
    /// `vhdx`, `raw`, `vhd` or `qcow2`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        }
    }

    /// What a file is, for a user who did not say it. By its contents: the signature of VHDX or qcow2 at the
    /// start, the footer of VHD at the end or the start. A name `.vhdx`, `.avhdx`, `.vhd`, `.avhd` or
    /// `.qcow2` counts where the contents say nothing, so that a damaged image is not taken for raw bytes;
    /// `.vhdx` and `.avhdx` whatever they say. Everything else is raw.
    ///
    /// The guest of a raw disk can write what another format starts with. Whoever knows that a disk is raw
    /// says so, and nothing is looked at; a file named `.raw` that looks like another format is refused.
    ///
    /// # Errors
    /// The file cannot be read; it looks like an image of a format that is not supported: taking it for
    /// raw bytes would give a disk that makes no sense; it is named `.raw` and looks like VHD or qcow2.
    pub fn recognise(path: &Path) -> Result<Self> {
        let file = FileStorage::open(path, OpenMode::ReadOnly { force_share: true })?;
        let mut start = [0; 68];
        file.read_zero_filled(0, &mut start)?;
        if start.starts_with(&identifier::SIGNATURE) || is_image_name(path) {
            return Ok(Self::Vhdx);
        }
        let foreign = match () {
            () if start.starts_with(b"KDMV") || start.starts_with(b"# Disk DescriptorFile") => {
                Some("VMDK")
            }
            () if start.ends_with(&[0x7F, 0x10, 0xDA, 0xBE]) => Some("VDI"),
            () => None,
        };
        if let Some(name) = foreign {
            return Err(Error::invalid(format!(
                "it looks like a {name} image, which this version does not read: `qemu-img convert -O vhdx {} NEW.vhdx` makes a VHDX of it (say that it is raw to have its bytes taken as they are)",
                as_argument(path)
            )));
        }
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let named = |name: &str| extension.eq_ignore_ascii_case(name);
        let found = match () {
            () if start.starts_with(b"QFI\xfb") => Some(Self::Qcow2),
            () if has_footer(&file)? => Some(Self::Vhd),
            () => None,
        };
        match found {
            Some(found) if named("raw") => Err(Error::invalid(format!(
                "its name says that it is raw, its contents that it is {}; say which it is",
                found.name()
            ))),
            Some(found) => Ok(found),
            None if is_named(path, &VHD_NAMES) => Ok(Self::Vhd),
            None if named("qcow2") => Ok(Self::Qcow2),
            None => Ok(Self::Raw),
        }
    }
}

/// A disk to copy from or compare with: all that copies and comparisons know of it.
pub trait Source {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// The range ends beyond the disk; what [`Image::read_at`] has for errors, and its like.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// What has to be read of the whole disk and what is zero, in order and without gaps. Blocks
    /// that hold nothing and holes of the underlying file are zero.
    fn runs(&self) -> DiskRuns<'_>;

    /// What the disk's bytes lie on: for each depth of its chain a file.
    fn storages(&self) -> Vec<&Arc<dyn Storage>>;
}

/// An open disk.
#[non_exhaustive]
pub enum Disk {
    /// A VHDX image.
    Vhdx(Box<Image>),
    /// A raw file.
    Raw(Raw),
    /// A VHD, version 1.
    Vhd(Box<Vhd>),
    /// A qcow2 image.
    #[cfg(feature = "qcow2")]
    Qcow2(Box<Qcow2>),
}

/// The bytes of a disk, and nothing else.
pub struct Raw {
    /// Where they lie.
    pub storage: Arc<dyn Storage>,
    /// How many.
    pub size: u64,
}

/// A run of a disk: zeros that need not be read, or data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRun {
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// Whether they have to be read.
    pub data: bool,
    /// Where they lie, if they do, so that a copy may share them: the depth of the file in the disk's chain,
    /// and the offset in it.
    pub place: Option<(u32, u64)>,
}

impl Disk {
    /// Opens a file for reading; without a `format` it is recognised.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open(path: &Path, format: Option<DiskFormat>, force_share: bool) -> Result<Self> {
        Self::open_with(path, format, &OpenOptions::new().force_share(force_share))
    }

    /// [`open`](Self::open) with all options.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_with(
        path: &Path,
        format: Option<DiskFormat>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let named = |e: Error| e.in_file(path);
        let mode = OpenMode::ReadOnly { force_share: options.shares() };
        let open = || FileStorage::open(path, mode).map_err(named);
        let format = match format {
            Some(format) => format,
            None => DiskFormat::recognise(path).map_err(named)?,
        };
        match format {
            DiskFormat::Vhdx => options.open(path).map(|image| Self::Vhdx(Box::new(image))),
            DiskFormat::Vhd => options.open_vhd(path).map(|disk| Self::Vhd(Box::new(disk))),
            DiskFormat::Raw => {
                let file = open()?;
                let size = file.length().map_err(named)?;
                Ok(Self::Raw(Raw { storage: Arc::new(file), size }))
            }
            #[cfg(feature = "qcow2")]
            DiskFormat::Qcow2 => {
                Qcow2::open(open()?).map(|disk| Self::Qcow2(Box::new(disk))).map_err(named)
            }
            #[cfg(not(feature = "qcow2"))]
            DiskFormat::Qcow2 => {
                Err(named(Error::unsupported("a qcow2 image, by a program built without qcow2")))
            }
        }
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> DiskFormat {
        match self {
            Self::Vhdx(_) => DiskFormat::Vhdx,
            Self::Raw(_) => DiskFormat::Raw,
            Self::Vhd(_) => DiskFormat::Vhd,
            #[cfg(feature = "qcow2")]
            Self::Qcow2(_) => DiskFormat::Qcow2,
        }
    }

    /// The disk itself, whatever its format.
    fn source(&self) -> &dyn Source {
        match self {
            Self::Vhdx(image) => &**image,
            Self::Raw(raw) => raw,
            Self::Vhd(disk) => &**disk,
            #[cfg(feature = "qcow2")]
            Self::Qcow2(disk) => &**disk,
        }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.source().size()
    }

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// As [`Image::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.source().read_at(offset, buf)
    }

    /// [`Source::runs`].
    #[must_use]
    pub fn runs(&self) -> DiskRuns<'_> {
        self.source().runs()
    }
}

impl Source for Disk {
    fn size(&self) -> u64 {
        self.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    fn runs(&self) -> DiskRuns<'_> {
        self.runs()
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        self.source().storages()
    }
}

impl Source for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.storage.read_exact_at(offset, buf)
    }

    fn runs(&self) -> DiskRuns<'_> {
        DiskRuns::of(Split::shared(&*self.storage, 0..self.size, 0, 0))
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        vec![&self.storage]
    }
}

impl Source for Image {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    fn runs(&self) -> DiskRuns<'_> {
        let extents = self.extents(0..self.virtual_size());
        DiskRuns::of(ImageRuns { image: self, extents, inner: None })
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        self.layers().map(Image::storage).collect()
    }
}

impl Source for Vhd {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    fn runs(&self) -> DiskRuns<'_> {
        DiskRuns::of(Pieces { disk: self, at: 0, inner: None })
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        self.layers().map(Vhd::storage).collect()
    }
}

/// Iterator of [`Source::runs`].
pub struct DiskRuns<'a>(Box<dyn Iterator<Item = Result<DiskRun>> + 'a>);

impl<'a> DiskRuns<'a> {
    fn of(runs: impl Iterator<Item = Result<DiskRun>> + 'a) -> Self {
        Self(Box::new(runs))
    }
}

impl Iterator for DiskRuns<'_> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// A piece of a disk that lies in one piece in a file, being split at the holes of that file.
struct Split<'a> {
    runs: DataRuns<'a>,
    disk_start: u64,
    file_start: u64,
    /// The depth of the file, where a copy may share its bytes.
    shared: Option<u32>,
}

impl<'a> Split<'a> {
    fn shared(storage: &'a dyn Storage, file: Range<u64>, disk_start: u64, depth: u32) -> Self {
        Self { shared: Some(depth), ..Self::read_only(storage, file, disk_start) }
    }

    fn read_only(storage: &'a dyn Storage, file: Range<u64>, disk_start: u64) -> Self {
        let file_start = file.start;
        Self { runs: DataRuns::new(storage, file), disk_start, file_start, shared: None }
    }
}

impl Iterator for Split<'_> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = match self.runs.next()? {
            Ok(run) => run,
            Err(e) => {
                return Some(Err(Error::io("cannot map the file's holes", self.file_start, e)));
            }
        };
        let to_disk = |at: u64| self.disk_start.saturating_add(at.saturating_sub(self.file_start));
        Some(Ok(DiskRun {
            range: to_disk(run.range.start)..to_disk(run.range.end),
            data: run.data,
            place: self.shared.map(|depth| (depth, run.range.start)),
        }))
    }
}

struct ImageRuns<'a> {
    image: &'a Image,
    extents: Extents<'a>,
    inner: Option<Split<'a>>,
}

impl Iterator for ImageRuns<'_> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(run) = self.inner.as_mut().and_then(Iterator::next) {
                return Some(run);
            }
            self.inner = None;
            let extent = match self.extents.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error)),
            };
            let range = extent.start..extent.end();
            match extent.file_offset.zip(self.image.layer(extent.depth)) {
                Some((start, layer)) => {
                    let file = start..start.saturating_add(extent.length);
                    let storage = &**layer.storage();
                    self.inner = Some(Split::shared(storage, file, extent.start, extent.depth));
                }
                // What only the parent knows counts as data: reading it gives the clear error.
                None => {
                    let data = extent.state == ExtentState::ParentMissing;
                    return Some(Ok(DiskRun { range, data, place: None }));
                }
            }
        }
    }
}

/// A disk that tells piece by piece what it is.
trait Mapped {
    fn size(&self) -> u64;
    /// What the disk is at a byte of it, and where that ends.
    fn place(&self, at: u64) -> Result<(u64, Place)>;
    /// The file at a depth, and whether copies may share its bytes.
    fn file(&self, depth: u32) -> Option<(&dyn Storage, bool)>;
}

impl Mapped for Vhd {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn place(&self, at: u64) -> Result<(u64, Place)> {
        self.place(at)
    }

    fn file(&self, depth: u32) -> Option<(&dyn Storage, bool)> {
        let layer = self.layers().nth(usize::try_from(depth).ok()?)?;
        // Blocks lie behind a bitmap, askew to the units that a file system shares, and their bitmap may take
        // sectors away.
        Some((&**layer.storage(), layer.table().is_none()))
    }
}

struct Pieces<'a, M> {
    disk: &'a M,
    at: u64,
    inner: Option<Split<'a>>,
}

impl<M: Mapped> Iterator for Pieces<'_, M> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(run) = self.inner.as_mut().and_then(Iterator::next) {
                return Some(run);
            }
            self.inner = None;
            let start = self.at;
            if start >= self.disk.size() {
                return None;
            }
            let (end, place) = match self.disk.place(start) {
                // An answer without extent must not keep us here for ever.
                Ok((end, place)) if end > start => (end, place),
                Ok(_) => {
                    self.at = u64::MAX;
                    return Some(Err(Error::invalid("the disk's map has no end")));
                }
                Err(error) => {
                    self.at = u64::MAX;
                    return Some(Err(error));
                }
            };
            self.at = end;
            let run = |data| Some(Ok(DiskRun { range: start..end, data, place: None }));
            match place {
                Place::Zero => return run(false),
                Place::Data { file_offset: None, .. } | Place::ParentMissing => return run(true),
                Place::Data { depth, file_offset: Some(offset) } => {
                    let file = offset..offset.saturating_add(end.saturating_sub(start));
                    self.inner = match self.disk.file(depth) {
                        Some((file_of, true)) => Some(Split::shared(file_of, file, start, depth)),
                        Some((file_of, false)) => Some(Split::read_only(file_of, file, start)),
                        None => return run(true),
                    };
                }
            }
        }
    }
}

#[cfg(feature = "qcow2")]
impl Source for Qcow2 {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    fn runs(&self) -> DiskRuns<'_> {
        DiskRuns::of(Pieces { disk: self, at: 0, inner: None })
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        vec![self.storage()]
    }
}

#[cfg(feature = "qcow2")]
impl Mapped for Qcow2 {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn place(&self, at: u64) -> Result<(u64, Place)> {
        self.place(at)
    }

    fn file(&self, depth: u32) -> Option<(&dyn Storage, bool)> {
        (depth == 0).then(|| (&**self.storage(), true))
    }
}
