//! What is on an image's disk: [`vhdxkit_volumes`], over an [`Image`].

use std::cell::Cell;
use std::io;
use std::ops::Range;

pub use vhdxkit_volumes::{FileSystem, FreeMap, Partition, PartitionType, Survey, Trouble, Volume};

use crate::{Error, Image, Result};

/// An image's disk, to be taken apart.
struct OnDisk<'a> {
    image: &'a Image,
    read: Cell<u64>,
}

impl<'a> OnDisk<'a> {
    fn new(image: &'a Image) -> Self {
        Self { image, read: Cell::new(0) }
    }
}

impl vhdxkit_volumes::Disk for OnDisk<'_> {
    fn size(&self) -> u64 {
        self.image.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        self.image.geometry().logical_sector_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        self.read.set(self.read.get().saturating_add(length));
        self.image.read_at(offset, buf).map_err(io::Error::other)
    }
}

/// The error as the image gave it.
fn own(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io_whole("cannot read the disk", error),
    }
}

/// The partitions of a disk: see [`vhdxkit_volumes::partitions`].
///
/// # Errors
/// The disk cannot be read.
pub fn partitions(image: &Image) -> Result<Vec<Partition>> {
    vhdxkit_volumes::partitions(&OnDisk::new(image)).map_err(own)
}

/// The byte behind the last partition: see [`vhdxkit_volumes::end_of_last`].
///
/// # Errors
/// The disk cannot be read.
pub fn end_of_last(image: &Image) -> Result<Option<u64>> {
    vhdxkit_volumes::end_of_last(&OnDisk::new(image)).map_err(own)
}

/// Whether the first copy of a GPT is whole: see [`vhdxkit_volumes::first_gpt_is_intact`].
///
/// # Errors
/// The disk cannot be read.
pub fn first_gpt_is_intact(image: &Image) -> Result<bool> {
    vhdxkit_volumes::first_gpt_is_intact(&OnDisk::new(image)).map_err(own)
}

/// The file system that fills a disk without partitions, as WSL's disks have it: see
/// [`vhdxkit_volumes::recognise`].
///
/// # Errors
/// The disk cannot be read.
pub fn whole_disk_file_system(image: &Image) -> Result<Option<FileSystem>> {
    file_system(image, 0..image.virtual_size())
}

/// The file system that begins where `range` of the disk does: see [`vhdxkit_volumes::recognise`].
///
/// # Errors
/// The disk cannot be read.
pub fn file_system(image: &Image, range: Range<u64>) -> Result<Option<FileSystem>> {
    vhdxkit_volumes::recognise(&OnDisk::new(image), range).map_err(own)
}

/// Everything on a disk, with the free space of its file systems: see [`vhdxkit_volumes::volumes`].
///
/// # Errors
/// The disk cannot be read.
pub fn volumes(image: &Image) -> Result<Vec<Volume>> {
    volumes_counted(image).map(|(volumes, _)| volumes)
}

/// [`volumes`], and how many bytes of the disk were read for it.
pub(crate) fn volumes_counted(image: &Image) -> Result<(Vec<Volume>, u64)> {
    let disk = OnDisk::new(image);
    let found = vhdxkit_volumes::volumes(&disk).map_err(own)?;
    Ok((found, disk.read.get()))
}
