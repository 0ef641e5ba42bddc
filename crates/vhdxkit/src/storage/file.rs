//! A medium in a file or on a block device.

mod sys;

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::{Storage, advance, locks, to_usize};
use crate::Error;

/// Zeros written at once where a hole cannot be punched.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// [`ZEROS`] as a step through a file.
const ZERO_STEP: u64 = 64 << 10;

/// How a [`FileStorage`] is opened, and so which locks it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading. Others may read as well, nobody may write.
    ReadOnly {
        /// Take no locks and ignore those of others: what is read may be half-changed.
        force_share: bool,
    },
    /// For reading and writing. Nobody else may use the file.
    ReadWrite,
}

/// A file or block device as a medium. All calls are positional.
///
/// The locks of [`open`](Self::open) hold off other users of this library and, on Linux, QEMU. They
/// are advisory, except on Windows, which enforces them, and last until this is dropped: other
/// handles of the same open file (see [`try_clone_file`](Self::try_clone_file)) do not keep them.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    locked: bool,
}

impl FileStorage {
    /// Opens an existing file or block device and takes the locks of `mode`.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) when another program holds it, naming those
    /// that could be seen; [`ErrorKind::Io`](crate::ErrorKind::Io) when it cannot be opened or is
    /// neither file nor block device.
    pub fn open(path: &Path, mode: OpenMode) -> crate::Result<Self> {
        let failed = |error| Error::io_whole("cannot open the file", error);
        // Judged before opening as well: opening a pipe could wait for ever.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        refuse_unsuitable(metadata.file_type()).map_err(failed)?;
        let write = mode == OpenMode::ReadWrite;
        let file = OpenOptions::new().read(true).write(write).open(path).map_err(failed)?;
        Self::take(file, mode)
    }

    /// Takes a file that was opened for this mode, and its locks.
    pub(crate) fn take(file: File, mode: OpenMode) -> crate::Result<Self> {
        let failed = |error| Error::io_whole("cannot open the file", error);
        let metadata = file.metadata().map_err(failed)?;
        refuse_unsuitable(metadata.file_type()).map_err(failed)?;
        let locked = mode != OpenMode::ReadOnly { force_share: true };
        if locked {
            locks::acquire(&file, mode == OpenMode::ReadWrite)?;
        }
        Ok(Self { file, locked })
    }

    /// Makes a file at `path`, where none may exist, and fills it, locked against others. When that fails no file is
    /// left.
    pub(crate) fn make(
        path: &Path,
        fill: impl FnOnce(&Self) -> crate::Result<()>,
    ) -> crate::Result<()> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io_whole("cannot make the file", e).in_file(path))?;
        let made = Self::take(file, OpenMode::ReadWrite).and_then(|file| fill(&file));
        if made.is_err() {
            // What went wrong is told already; a half-made file is no image, so it does no harm.
            let _ = std::fs::remove_file(path);
        }
        made.map_err(|e| e.in_file(path))
    }

    /// Takes a file that is open already. No locks are taken: that is the caller's business.
    #[must_use]
    pub fn from_file(file: File) -> Self {
        Self { file, locked: false }
    }

    /// The file. Its cursor is unspecified, and moving it does no harm.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle of the same open file. It shares the cursor, which is unspecified.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn try_clone_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    // A vectored call is short where the file ends, and where the system stops early. What is
    // missing then goes buffer by buffer, which is rare.

    /// Goes on after the first `done` bytes of the buffers; returns how many are filled in all.
    fn read_rest(
        &self,
        start: u64,
        bufs: &mut [IoSliceMut<'_>],
        mut done: usize,
    ) -> io::Result<usize> {
        let mut passed = 0usize;
        for buf in bufs {
            let behind = passed.saturating_add(buf.len());
            if done < behind
                && let Some(rest) = buf.get_mut(done.saturating_sub(passed)..)
            {
                done = done.saturating_add(self.read_at(advance(start, done)?, rest)?);
                if done < behind {
                    break;
                }
            }
            passed = behind;
        }
        Ok(done)
    }

    /// Goes on after the first `done` bytes of the buffers.
    fn write_rest(&self, start: u64, bufs: &[IoSlice<'_>], done: usize) -> io::Result<()> {
        let mut passed = 0usize;
        for buf in bufs {
            let skip = done.saturating_sub(passed);
            if let Some(rest) = buf.get(skip..) {
                self.write_at(advance(start, passed.saturating_add(skip))?, rest)?;
            }
            passed = passed.saturating_add(buf.len());
        }
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let step = range.end.saturating_sub(at).min(ZERO_STEP);
            self.write_at(at, ZEROS.get(..to_usize(step)).unwrap_or(&ZEROS))?;
            at = at.saturating_add(step);
        }
        Ok(())
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // Closing would give the locks up as well, but not before every copy of the descriptor is
        // closed, and a process just being started by another thread has one for a moment.
        if self.locked {
            locks::release(&self.file);
        }
    }
}

fn refuse_unsuitable(kind: FileType) -> io::Result<()> {
    if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo()
            || kind.is_socket()
            || (kind.is_char_device() && cfg!(target_os = "linux"))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file nor a block device",
            ));
        }
    }
    Ok(())
}

fn total<T: AsRef<[u8]>>(lengths: impl Iterator<Item = T>) -> usize {
    lengths.fold(0, |sum: usize, buf| sum.saturating_add(buf.as_ref().len()))
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..)
            && !rest.is_empty()
        {
            let at = advance(offset, done)?;
            if i64::try_from(at).is_err() {
                // No file reaches there, and systems would take it for a mistake.
                break;
            }
            match sys::read(&self.file, rest, at) {
                Ok(0) => break,
                Ok(read) => done = done.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        Ok(sys::read_cached(&self.file, buf, offset)? == buf.len())
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut done = 0usize;
        for bufs in bufs.chunks_mut(sys::MAX_VECTORS) {
            let wanted = total(bufs.iter().map(|buf| &**buf));
            let start = advance(offset, done)?;
            let read = sys::read_vectored(&self.file, bufs, start)?;
            let read = self.read_rest(start, bufs, read)?;
            done = done.saturating_add(read);
            if read < wanted {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get(done..)
            && !rest.is_empty()
        {
            match sys::write(&self.file, rest, advance(offset, done)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done = done.saturating_add(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut start = offset;
        for bufs in bufs.chunks(sys::MAX_VECTORS) {
            let written = sys::write_vectored(&self.file, bufs, start)?;
            self.write_rest(start, bufs, written)?;
            start = advance(start, total(bufs.iter().map(|buf| &**buf)))?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Linux flushes a changed length with the data; elsewhere that is not promised.
        if cfg!(target_os = "linux") { self.file.sync_data() } else { self.file.sync_all() }
    }

    fn len(&self) -> io::Result<u64> {
        // Metadata would say 0 for a block device.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let range = range.start..range.end.min(self.len()?);
        if range.is_empty() || sys::punch(&self.file, &range)? {
            return Ok(());
        }
        self.write_zeros(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        sys::allocate(&self.file, &range)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match sys::next_data(&self.file, offset)? {
            sys::Seek::Found(range) => Ok(Some(range)),
            sys::Seek::Nothing => Ok(None),
            sys::Seek::CannotTell => {
                let length = self.len()?;
                Ok((offset < length).then_some(offset..length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn temporary() -> (tempfile::NamedTempFile, FileStorage) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let storage = FileStorage::open(file.path(), OpenMode::ReadWrite).unwrap();
        (file, storage)
    }

    fn blocks(file: &tempfile::NamedTempFile) -> u64 {
        #[cfg(unix)]
        return std::os::unix::fs::MetadataExt::blocks(&file.path().metadata().unwrap());
        #[cfg(not(unix))]
        file.path().metadata().unwrap().len()
    }

    #[test]
    fn reads_are_short_only_at_the_end() {
        let (_file, storage) = temporary();
        storage.write_at(10, b"abcdef").unwrap();
        let mut buf = [9; 8];
        assert_eq!(storage.read_at(12, &mut buf).unwrap(), 4);
        assert_eq!(&buf, b"cdef\x09\x09\x09\x09");
        assert_eq!(storage.read_at(16, &mut buf).unwrap(), 0);
        assert_eq!(storage.read_at(u64::MAX - 3, &mut buf[..3]).unwrap(), 0);
        assert_eq!(storage.len().unwrap(), 16);
        storage.sync().unwrap();
    }

    /// What was just written lies in memory on any system that tells; and a read that would be short is
    /// never called ready.
    #[test]
    #[cfg(target_os = "linux")]
    fn cached_bytes_are_read_without_waiting() {
        let (_file, storage) = temporary();
        storage.write_at(0, &[5; 8192]).unwrap();
        let mut buf = [0; 4096];
        assert!(storage.read_ready_at(4096, &mut buf).unwrap());
        assert_eq!(buf, [5; 4096]);
        assert!(!storage.read_ready_at(4097, &mut buf).unwrap());
        assert!(!storage.read_ready_at(u64::MAX - 3, &mut buf).unwrap());
    }

    #[test]
    fn vectors_of_any_number_and_length_arrive_in_order() {
        let (_file, storage) = temporary();
        // More than the system takes at once, empty ones among them.
        let parts: Vec<Vec<u8>> = (0..2500usize).map(|i| vec![i as u8; i % 7]).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        storage.write_vectored_at(5, &slices).unwrap();
        let whole = parts.concat();
        let mut read = vec![0; whole.len()];
        assert_eq!(storage.read_at(5, &mut read).unwrap(), whole.len());
        assert_eq!(read, whole);

        let mut back: Vec<Vec<u8>> = parts.iter().map(|part| vec![0xee; part.len()]).collect();
        let mut tail = [0xee; 10];
        let mut slices: Vec<IoSliceMut<'_>> = back.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        slices.push(IoSliceMut::new(&mut tail));
        assert_eq!(storage.read_vectored_at(5, &mut slices).unwrap(), whole.len());
        assert_eq!((back.concat(), tail), (whole, [0xee; 10]));
    }

    #[test]
    fn a_vectored_call_that_stops_anywhere_is_completed() {
        let (_file, storage) = temporary();
        let parts: [&[u8]; 5] = [b"ab", b"", b"cdef", b"g", b"hi"];
        for done in 0..=9 {
            storage.set_len(0).unwrap();
            storage.write_at(3, &b"abcdefghi"[..done]).unwrap();
            storage.write_rest(3, &parts.map(IoSlice::new), done).unwrap();

            let mut back = parts.map(<[u8]>::to_vec);
            let mut missing = 0..9;
            for byte in back.iter_mut().flatten() {
                *byte = if missing.next().unwrap() < done { *byte } else { 0xee };
            }
            let mut slices = back.each_mut().map(|part| IoSliceMut::new(part));
            assert_eq!(storage.read_rest(3, &mut slices, done).unwrap(), 9);
            assert_eq!(back.concat(), b"abcdefghi");
        }
        storage.set_len(8).unwrap();
        let mut back = parts.map(|part| vec![0xee; part.len()]);
        let mut slices = back.each_mut().map(|part| IoSliceMut::new(part));
        assert_eq!(storage.read_rest(3, &mut slices, 0).unwrap(), 5);
        assert_eq!(back.concat(), b"abcde\xee\xee\xee\xee");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn holes_of_a_sparse_file_are_found_without_reading() {
        let (_file, storage) = temporary();
        storage.set_len(8 << 20).unwrap();
        storage.write_at(3 << 20, &[1; 65536]).unwrap();
        let found = storage.next_data(0).unwrap();
        if found == Some(0..8 << 20) {
            eprintln!("skipped: this file system does not tell holes");
            return;
        }
        let data = 3 << 20..(3 << 20) + 65536;
        assert_eq!(found, Some(data.clone()));
        assert_eq!(storage.next_data(data.start + 7).unwrap(), Some(data.start + 7..data.end));
        assert_eq!(storage.next_data(data.end).unwrap(), None);
        assert_eq!(storage.next_data(9 << 20).unwrap(), None);
        assert_eq!(storage.next_data(u64::MAX).unwrap(), None);
    }

    #[test]
    fn a_punched_range_reads_as_zeros_and_the_length_stays() {
        let (file, storage) = temporary();
        storage.write_at(0, &[7; 1 << 20]).unwrap();
        let before = blocks(&file);
        storage.punch(1000..900_000).unwrap();
        storage.punch((1 << 20) - 5..u64::MAX).unwrap();
        storage.punch(2 << 20..3 << 20).unwrap();
        assert_eq!(storage.len().unwrap(), 1 << 20);
        let mut expected = vec![7; 1 << 20];
        expected[1000..900_000].fill(0);
        expected[(1 << 20) - 5..].fill(0);
        let mut read = vec![9; 1 << 20];
        storage.read_at(0, &mut read).unwrap();
        assert!(read == expected);
        if cfg!(target_os = "linux") {
            assert!(blocks(&file) < before, "no space was given back");
        }
    }

    #[test]
    fn zeros_are_written_where_no_hole_can_be_made() {
        let (_file, storage) = temporary();
        storage.write_at(0, &[7; 200_000]).unwrap();
        storage.write_zeros(3..190_001).unwrap();
        let mut read = vec![9; 200_000];
        storage.read_at(0, &mut read).unwrap();
        assert!(read[3..190_001].iter().all(|b| *b == 0));
        assert!(read[..3].iter().chain(&read[190_001..]).all(|b| *b == 7));
    }

    #[test]
    fn allocation_reserves_and_extends() {
        let (file, storage) = temporary();
        match storage.allocate(1 << 20..3 << 20) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                eprintln!("skipped: this file system cannot reserve space");
            }
            result => {
                result.unwrap();
                assert_eq!(storage.len().unwrap(), 3 << 20);
                assert!(blocks(&file) * 512 >= 2 << 20);
            }
        }
        storage.allocate(9..9).unwrap();
    }

    #[test]
    fn what_is_no_medium_is_refused_clearly() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [OpenMode::ReadOnly { force_share: false }, OpenMode::ReadWrite] {
            let error = FileStorage::open(directory.path(), mode).unwrap_err();
            assert_eq!(error.to_string(), "cannot open the file: it is a directory");
        }
        let missing = directory.path().join("missing");
        let error = FileStorage::open(&missing, OpenMode::ReadWrite).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(!missing.exists());
        #[cfg(target_os = "linux")]
        {
            let mode = OpenMode::ReadOnly { force_share: true };
            let error = FileStorage::open(Path::new("/dev/zero"), mode).unwrap_err();
            assert!(error.to_string().contains("neither a file nor a block device"), "{error}");
        }
    }
}
