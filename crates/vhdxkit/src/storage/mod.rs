//! The medium an image lies on: a file, memory, or a copy-on-write layer in memory.
//!
//! Everything above works through [`Storage`], so that the same code replays a log in place, into
//! memory, or onto a simulated disk. All calls are positional and take `&self`; none keeps a cursor.

mod clone;
mod extents;
mod file;
mod locks;
mod memory;
#[cfg(test)]
mod model;
mod overlay;
mod ranges;

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

pub use file::{FileStorage, OpenMode};
pub use locks::change_tracking_beside;
pub use memory::MemoryStorage;
pub use overlay::{Overlay, Patched};

pub(crate) use clone::Cloners;
pub(crate) use extents::DataRuns;

/// The half of a [`Storage`] that writes, of a medium that is only read: every change is refused, and there is nothing
/// to make durable.
macro_rules! only_read {
    () => {
        fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn punch(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn allocate(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
    };
}

pub(crate) use only_read;

/// A random-access medium of bytes.
///
/// Implementations are used from many threads at once. Offsets and lengths are bytes. A write
/// beyond the end extends the medium; the gap reads as zeros.
pub trait Storage: Send + Sync {
    /// Reads into `buf` from `offset`. Returns how many bytes were there: fewer than asked only
    /// where the medium ends.
    ///
    /// # Errors
    /// What the medium reports.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// [`read_at`](Self::read_at) into several buffers, one after another.
    ///
    /// # Errors
    /// What the medium reports.
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut done = 0usize;
        for buf in bufs {
            let read = self.read_at(advance(offset, done)?, buf)?;
            done = done.saturating_add(read);
            if read < buf.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Fills `buf` from `offset` if that is possible without waiting for a device: `false`, with `buf`
    /// unspecified, when it might not be. For servers, that do not want to keep others waiting.
    ///
    /// # Errors
    /// What the medium reports.
    fn read_ready_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<bool> {
        Ok(false)
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// What the medium reports; then an unknown part may have been written.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// [`write_at`](Self::write_at) from several buffers, one after another.
    ///
    /// # Errors
    /// What the medium reports.
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut done = 0usize;
        for buf in bufs {
            self.write_at(advance(offset, done)?, buf)?;
            done = done.saturating_add(buf.len());
        }
        Ok(())
    }

    /// Makes everything written so far durable, the length included.
    ///
    /// # Errors
    /// What the medium reports. After a failure nothing is known about what is durable.
    fn sync(&self) -> io::Result<()>;

    /// The current length.
    ///
    /// # Errors
    /// What the medium reports.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is zero.
    ///
    /// # Errors
    /// What the medium reports.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends to `length`; new bytes read as zeros.
    ///
    /// # Errors
    /// What the medium reports.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes a range inside the medium read as zeros, giving its space back where the medium can.
    /// The length does not change; what lies beyond the end is ignored.
    ///
    /// # Errors
    /// What the medium reports.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;

    /// Reserves space for a range, so that writing there cannot run out of it. Contents stay; the
    /// length grows when the range reaches beyond it.
    ///
    /// # Errors
    /// What the medium reports; [`io::ErrorKind::Unsupported`] where it cannot.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;

    /// The first run of data at or after `offset`: everything between `offset` and its start reads
    /// as zeros without being read. `None` when only zeros (or nothing) follow. A medium that
    /// cannot tell says that all of it is data.
    ///
    /// # Errors
    /// What the medium reports.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// The file whose bytes these are, unchanged and at the same offsets, if there is one: for copies
    /// that the operating system can do by itself.
    fn as_file(&self) -> Option<&std::fs::File> {
        None
    }
}

fn advance(offset: u64, done: usize) -> io::Result<u64> {
    u64::try_from(done)
        .ok()
        .and_then(|done| offset.checked_add(done))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "offset overflows"))
}

/// A length that is known to fit memory, or is about to be cut to what does.
fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// What every layer above needs of a medium: reads that say what was missing, and errors with a
/// place.
pub(crate) trait StorageExt: Storage {
    /// Fills `buf`; what lies beyond the end is zero.
    fn read_zero_filled(&self, offset: u64, buf: &mut [u8]) -> crate::Result<usize> {
        let read =
            self.read_at(offset, buf).map_err(|e| crate::Error::io("cannot read", offset, e))?;
        if let Some(missing) = buf.get_mut(read..) {
            missing.fill(0);
        }
        Ok(read)
    }

    /// Fills `buf` or fails.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> crate::Result<()> {
        let read =
            self.read_at(offset, buf).map_err(|e| crate::Error::io("cannot read", offset, e))?;
        if read < buf.len() {
            return Err(crate::Error::io(
                "cannot read",
                offset,
                io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        Ok(())
    }

    fn length(&self) -> crate::Result<u64> {
        self.len().map_err(|e| crate::Error::io_whole("cannot tell the file's length", e))
    }
}

impl<T: Storage + ?Sized> StorageExt for T {}

impl<T: Storage + ?Sized> Storage for std::sync::Arc<T> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, buf)
    }
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (**self).read_vectored_at(offset, bufs)
    }
    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        (**self).read_ready_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, buf)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        (**self).write_vectored_at(offset, bufs)
    }
    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        (**self).set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        (**self).punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        (**self).allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }
    fn as_file(&self) -> Option<&std::fs::File> {
        (**self).as_file()
    }
}
