//! A disk to copy from or compare with: a VHDX image, or a raw file.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::chain::{OpenOptions, is_image_name};
use crate::format::identifier;
use crate::image::{ExtentState, Extents};
use crate::storage::{DataRuns, FileStorage, OpenMode, Storage, StorageExt};
use crate::{Error, Image, Result};

/// How a file is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// A VHDX image.
    Vhdx,
    /// The disk's bytes, nothing else.
    Raw,
}

impl DiskFormat {
    /// What a file is: VHDX when it starts with the signature or is named `.vhdx` or `.avhdx`, raw otherwise.
    ///
    /// # Errors
    /// The file cannot be read; it looks like an image of a format that is not supported: taking it for
    /// raw bytes would give a disk that makes no sense.
    pub fn recognise(path: &Path) -> Result<Self> {
        let file = FileStorage::open(path, OpenMode::ReadOnly { force_share: true })?;
        let mut start = [0; 68];
        file.read_zero_filled(0, &mut start)?;
        if start.starts_with(&identifier::SIGNATURE) || is_image_name(path) {
            return Ok(Self::Vhdx);
        }
        let mut footer = [0; 8];
        file.read_zero_filled(file.length()?.saturating_sub(512), &mut footer)?;
        let foreign = match () {
            () if start.starts_with(b"QFI\xfb") => Some("qcow2"),
            () if start.starts_with(b"KDMV") || start.starts_with(b"# Disk DescriptorFile") => {
                Some("VMDK")
            }
            () if start.ends_with(&[0x7F, 0x10, 0xDA, 0xBE]) => Some("VDI"),
            () if start.starts_with(b"conectix") || footer == *b"conectix" => {
                Some("VHD (version 1)")
            }
            () => None,
        };
        match foreign {
            Some(name) => Err(Error::invalid(format!(
                "it looks like a {name} image, which this version does not read; say that it is raw to have its bytes taken as they are"
            ))),
            None => Ok(Self::Raw),
        }
    }
}

/// An open disk of either format.
pub enum Disk {
    /// A VHDX image.
    Vhdx(Box<Image>),
    /// A raw file.
    Raw {
        /// Its bytes.
        storage: Arc<dyn Storage>,
        /// How many.
        size: u64,
    },
}

/// A run of a disk: zeros that need not be read, or data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRun {
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// Whether they have to be read.
    pub data: bool,
    /// Where they lie, if they do: the depth of the file in the disk's chain, and the offset in it.
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
        let format = match format {
            Some(format) => format,
            None => DiskFormat::recognise(path).map_err(named)?,
        };
        if format == DiskFormat::Vhdx {
            return options.open(path).map(|image| Self::Vhdx(Box::new(image)));
        }
        let mode = OpenMode::ReadOnly { force_share: options.shares() };
        let file = FileStorage::open(path, mode).map_err(named)?;
        let size = file.length().map_err(named)?;
        Ok(Self::Raw { storage: Arc::new(file), size })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Vhdx(image) => image.virtual_size(),
            Self::Raw { size, .. } => *size,
        }
    }

    /// What the disk's bytes lie on: for each depth of its chain a file.
    pub(crate) fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        match self {
            Self::Vhdx(image) => image.layers().map(Image::storage).collect(),
            Self::Raw { storage, .. } => vec![storage],
        }
    }

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// As [`Image::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Vhdx(image) => image.read_at(offset, buf),
            Self::Raw { storage, .. } => storage.read_exact_at(offset, buf),
        }
    }

    /// What has to be read of the whole disk and what is zero, in order and without gaps. Blocks
    /// that hold nothing and holes of the underlying file are zero.
    #[must_use]
    pub fn runs(&self) -> DiskRuns<'_> {
        match self {
            Self::Vhdx(image) => image_runs(image),
            Self::Raw { storage, size } => {
                DiskRuns(Source::Raw { runs: DataRuns::new(&**storage, 0..*size) })
            }
        }
    }
}

/// [`Disk::runs`] of an image.
pub(crate) fn image_runs(image: &Image) -> DiskRuns<'_> {
    let extents = image.extents(0..image.virtual_size());
    DiskRuns(Source::Image { image, extents, inner: None })
}

/// Iterator of [`Disk::runs`].
pub struct DiskRuns<'a>(Source<'a>);

enum Source<'a> {
    Image { image: &'a Image, extents: Extents<'a>, inner: Option<Inner<'a>> },
    Raw { runs: DataRuns<'a> },
}

/// An extent of data, being split at the holes of the file it lies in.
struct Inner<'a> {
    runs: DataRuns<'a>,
    disk_start: u64,
    depth: u32,
    file_start: u64,
}

impl Inner<'_> {
    fn next(&mut self) -> Option<Result<DiskRun>> {
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
            place: Some((self.depth, run.range.start)),
        }))
    }
}

impl Iterator for DiskRuns<'_> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Raw { runs } => Some(match runs.next()? {
                Ok(run) => {
                    let place = Some((0, run.range.start));
                    Ok(DiskRun { range: run.range, data: run.data, place })
                }
                Err(e) => Err(Error::io_whole("cannot map the file's holes", e)),
            }),
            Source::Image { image, extents, inner } => loop {
                if let Some(run) = inner.as_mut().and_then(Inner::next) {
                    return Some(run);
                }
                *inner = None;
                let extent = match extents.next()? {
                    Ok(extent) => extent,
                    Err(error) => return Some(Err(error)),
                };
                let range = extent.start..extent.end();
                match extent.file_offset.zip(image.layer(extent.depth)) {
                    Some((file_start, layer)) => {
                        let place = file_start..file_start.saturating_add(extent.length);
                        let runs = DataRuns::new(&**layer.storage(), place);
                        let (disk_start, depth) = (extent.start, extent.depth);
                        *inner = Some(Inner { runs, disk_start, depth, file_start });
                    }
                    // What only the parent knows counts as data: reading it gives the clear error.
                    None => {
                        let data = extent.state == ExtentState::ParentMissing;
                        return Some(Ok(DiskRun { range, data, place: None }));
                    }
                }
            },
        }
    }
}
