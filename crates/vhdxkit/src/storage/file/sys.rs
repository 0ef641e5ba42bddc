//! What each operating system offers for files.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

/// Buffers one vectored call takes: POSIX lets systems refuse more than 1024.
pub(super) const MAX_VECTORS: usize = 1024;

/// Where data is.
#[cfg_attr(not(any(target_os = "linux", target_os = "macos")), allow(dead_code))]
pub(super) enum Seek {
    /// The first data at or after the place asked for.
    Found(Range<u64>),
    /// No data follows.
    Nothing,
    /// This file or system does not tell.
    CannotTell,
}

#[cfg(unix)]
pub(super) fn read(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(unix)]
pub(super) fn write(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, buf, offset)
}

#[cfg(windows)]
pub(super) fn read(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, offset)
}

#[cfg(windows)]
pub(super) fn write(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, buf, offset)
}

#[cfg(not(any(unix, windows)))]
pub(super) fn read(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(unix, windows)))]
pub(super) fn write(_: &File, _: &[u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reads what lies in memory already; how much it was may be less than there is, for any reason.
#[cfg(not(target_os = "linux"))]
pub(super) fn read_cached(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Ok(0)
}

#[cfg(target_os = "linux")]
pub(super) use linux::{allocate, punch, read_cached, read_vectored, write_vectored};

#[cfg(target_os = "linux")]
mod linux {
    use super::{File, IoSlice, IoSliceMut, Range, io};
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::libc::off_t;

    fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
        loop {
            match call() {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Reads what lies in memory already; how much it was may be less than there is, for any reason.
    pub(in super::super) fn read_cached(
        file: &File,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv2};
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        match preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read),
            // The first says that it would wait, the others that the system or the file cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Fills buffers in one call; how much it read may be short for any reason. An offset that the
    /// call cannot express counts as nothing read.
    pub(in super::super) fn read_vectored(
        file: &File,
        bufs: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        let Ok(offset) = off_t::try_from(offset) else { return Ok(0) };
        Ok(retry(|| nix::sys::uio::preadv(file, bufs, offset))?)
    }

    /// Writes buffers in one call; may be short for any reason.
    pub(in super::super) fn write_vectored(
        file: &File,
        bufs: &[IoSlice<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        let Ok(offset) = off_t::try_from(offset) else { return Ok(0) };
        Ok(retry(|| nix::sys::uio::pwritev(file, bufs, offset))?)
    }

    /// `None` when the call cannot express the range.
    fn signed(range: &Range<u64>) -> Option<(off_t, off_t)> {
        let len = range.end.checked_sub(range.start)?;
        off_t::try_from(range.end).ok()?;
        Some((off_t::try_from(range.start).ok()?, off_t::try_from(len).ok()?))
    }

    /// Punches a hole; `false` when that is not possible here.
    pub(in super::super) fn punch(file: &File, range: &Range<u64>) -> io::Result<bool> {
        let Some((start, len)) = signed(range) else { return Ok(false) };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match retry(|| fallocate(file, flags, start, len)) {
            Ok(()) => Ok(true),
            // EINVAL: a block device, and the range is not whole sectors of it.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(in super::super) fn allocate(file: &File, range: &Range<u64>) -> io::Result<()> {
        let Some((start, len)) = signed(range) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        match retry(|| fallocate(file, FallocateFlags::empty(), start, len)) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

// Nothing read, nothing written: the caller goes on buffer by buffer.

#[cfg(not(target_os = "linux"))]
pub(super) fn read_vectored(_: &File, _: &mut [IoSliceMut<'_>], _: u64) -> io::Result<usize> {
    Ok(0)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write_vectored(_: &File, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
    Ok(0)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn punch(_: &File, _: &Range<u64>) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(_: &File, _: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(super) fn next_data(_: &File, _: u64) -> io::Result<Seek> {
    Ok(Seek::CannotTell)
}

/// Asks for a hole first, since macOS answers a question for data asked inside data with the data
/// after the next hole. Moves the shared cursor, which nothing uses.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Seek> {
    use nix::errno::Errno;
    use nix::libc::off_t;
    use nix::unistd::{Whence, lseek};

    let ask = |at: off_t| -> nix::Result<Range<off_t>> {
        let mut at = at;
        loop {
            let hole = lseek(file, at, Whence::SeekHole)?;
            if hole > at {
                return Ok(at..hole);
            }
            // When somebody punches the data away before the next question, look further.
            at = lseek(file, at, Whence::SeekData)?;
        }
    };
    let Ok(at) = off_t::try_from(offset) else {
        return Ok(if i64::try_from(offset).is_ok() { Seek::CannotTell } else { Seek::Nothing });
    };
    match ask(at) {
        Ok(found) => match (u64::try_from(found.start), u64::try_from(found.end)) {
            (Ok(start), Ok(end)) => Ok(Seek::Found(start..end)),
            _ => Ok(Seek::CannotTell),
        },
        Err(Errno::ENXIO) => Ok(Seek::Nothing),
        Err(
            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS | Errno::EOVERFLOW,
        ) => Ok(Seek::CannotTell),
        Err(error) => Err(error.into()),
    }
}
