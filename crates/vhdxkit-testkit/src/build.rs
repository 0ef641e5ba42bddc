//! What a description says of itself, and its way into bytes.

use std::fs::File;
use std::path::Path;

use vhdxkit::format::Guid;

use crate::image::{Image, Kind};
use crate::layout::{Layout, Shape};
use crate::plan::Plan;
use crate::seed;
use crate::sink::Sink;

impl Image {
    /// `LogGuid` of the `number`th writing session of this image's story.
    #[must_use]
    pub fn session(&self, number: u64) -> Guid {
        seed::guid(self.seed, 0x1000 + number)
    }

    /// The header's `FileWriteGuid`.
    #[must_use]
    pub fn file_write_guid(&self) -> Guid {
        seed::guid(self.seed, 1)
    }

    /// The header's `DataWriteGuid`, for linking children.
    #[must_use]
    pub fn data_write_guid(&self) -> Guid {
        self.data_write_guid.unwrap_or_else(|| seed::guid(self.seed, 2))
    }

    /// The virtual disk ID.
    #[must_use]
    pub fn disk_id(&self) -> Guid {
        self.disk_id.unwrap_or_else(|| seed::guid(self.seed, 3))
    }

    /// The shape of the disk as described.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            virtual_size: self.virtual_size,
            block_size: u64::from(self.block_size),
            sector: u64::from(self.logical_sector),
            differencing: matches!(self.kind, Kind::Differencing(_)),
        }
    }

    /// Where everything will lie.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Plan::new(self).layout
    }

    /// Writes the image into a sink.
    pub fn build(&self, sink: &mut impl Sink) {
        Plan::new(self).write(sink);
    }

    /// The image in memory.
    #[must_use]
    pub fn build_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.build(&mut bytes);
        bytes
    }

    /// Writes the image to a file, sparse where the file system can. Replaces the file.
    pub fn build_file(&self, path: &Path) {
        let mut file = File::create(path).expect("creating the image file");
        self.build(&mut file);
    }
}
