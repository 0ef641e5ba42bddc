//! What is on an image's disk: [`vhdxkit_volumes`], over an [`Image`].

use std::io;
use std::ops::Range;

pub use vhdxkit_volumes::{FileSystem, Partition, PartitionType};

use crate::{Error, Image, Result};

/// An image's disk, to be taken apart.
struct OnDisk<'a>(&'a Image);

impl vhdxkit_volumes::Disk for OnDisk<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        self.0.geometry().logical_sector_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf).map_err(io::Error::other)
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
    vhdxkit_volumes::partitions(&OnDisk(image)).map_err(own)
}

/// The byte behind the last partition: see [`vhdxkit_volumes::end_of_last`].
///
/// # Errors
/// The disk cannot be read.
pub fn end_of_last(image: &Image) -> Result<Option<u64>> {
    vhdxkit_volumes::end_of_last(&OnDisk(image)).map_err(own)
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
    vhdxkit_volumes::recognise(&OnDisk(image), range).map_err(own)
}
