//! [`std::io::Read`] and [`std::io::Seek`] over a disk.

use std::io::{self, Read, Seek, SeekFrom};

use crate::{Error, ErrorKind};

use super::Image;

/// A position on a disk. Any number of them may share an image.
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
///
/// let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
/// let mut disk = image.cursor();
/// disk.seek(SeekFrom::Start(512))?;
/// let mut sector = [0; 512];
/// disk.read_exact(&mut sector)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    image: &'a Image,
    position: u64,
}

impl Image {
    /// A new position at the start of the disk.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { image: self, position: 0 }
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.image.virtual_size().saturating_sub(self.position);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..length) else { return Ok(0) };
        self.image.read_at(self.position, buf)?;
        self.position = self.position.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        Ok(length)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.image.virtual_size().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "seek before the start of the disk")
        })?;
        Ok(self.position)
    }
}

impl From<Error> for io::Error {
    /// Keeps the whole error inside; the kind is the operating system's where there was one.
    fn from(error: Error) -> Self {
        let kind = match (error.io_error(), error.kind()) {
            (Some(source), _) => source.kind(),
            (None, ErrorKind::OutOfRange | ErrorKind::InvalidInput) => io::ErrorKind::InvalidInput,
            (None, ErrorKind::Unsupported) => io::ErrorKind::Unsupported,
            (None, _) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
