//! Copy-on-write in memory: an image can be replayed and changed while its file is never touched.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::ranges::RangeMap;
use super::{Storage, only_read, to_usize};

/// A base and what was changed over it.
struct Layer {
    base: Arc<dyn Storage>,
    patches: RangeMap,
    length: u64,
}

impl Layer {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = to_usize(self.length.saturating_sub(offset)).min(buf.len());
        let buf = buf.get_mut(..there).unwrap_or_default();
        self.patches.read(offset, buf, |at, part| self.base.read_at(at, part))?;
        Ok(there)
    }

    /// [`Storage::read_ready_at`]: what the base would have to wait for makes the whole call give up.
    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let there = to_usize(self.length.saturating_sub(offset));
        if there < buf.len() {
            return Ok(false);
        }
        let read =
            self.patches.read(offset, buf, |at, part| match self.base.read_ready_at(at, part)? {
                true => Ok(part.len()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            });
        match read {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = super::advance(offset, buf.len())?;
        self.patches.write(offset, buf)?;
        self.length = self.length.max(end);
        Ok(())
    }

    fn set_len(&mut self, length: u64) {
        if length < self.length {
            self.patches.cut(length);
        }
        self.length = length;
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.patches.next_data(offset, self.length, |at| self.base.next_data(at))
    }

    fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("length", &self.length)
            .field("stored", &self.patches.stored())
            .field("ranges", &self.patches.pieces())
            .finish_non_exhaustive()
    }
}

/// A copy-on-write layer in memory. Writes, zeros and the length stay here; the base is only read,
/// and must not change while the overlay lives.
///
/// What it keeps is bounded by [`MAX_OVERLAY_BYTES`] and [`MAX_OVERLAY_RANGES`]; a call that would
/// exceed them fails with [`io::ErrorKind::OutOfMemory`] and changes nothing. Zeros cost a range,
/// not bytes. Nothing is ever durable: [`sync`](Storage::sync) does nothing.
///
/// [`MAX_OVERLAY_BYTES`]: crate::format::limits::MAX_OVERLAY_BYTES
/// [`MAX_OVERLAY_RANGES`]: crate::format::limits::MAX_OVERLAY_RANGES
pub struct Overlay(RwLock<Layer>);

impl Overlay {
    /// An overlay that shows the base as it is.
    ///
    /// # Errors
    /// When the base cannot tell its length.
    pub fn new(base: Arc<dyn Storage>) -> io::Result<Self> {
        let length = base.len()?;
        Ok(Self(RwLock::new(Layer { base, patches: RangeMap::new(length), length })))
    }

    /// The same with room for `bytes` of data instead of [`MAX_OVERLAY_BYTES`].
    ///
    /// [`MAX_OVERLAY_BYTES`]: crate::format::limits::MAX_OVERLAY_BYTES
    #[must_use]
    pub fn with_room_for(self, bytes: u64) -> Self {
        self.layer_mut().patches.set_room(bytes);
        self
    }

    /// Every range of the base that something was put over, in order.
    pub(crate) fn changes(&self) -> Vec<Range<u64>> {
        self.layer().patches.ranges().collect()
    }

    /// Ends writing: the same contents, immutable, read without taking a lock.
    #[must_use]
    pub fn freeze(self) -> Patched {
        Patched(self.0.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    // Nothing between the steps of a change calls code that could panic.
    fn layer(&self) -> RwLockReadGuard<'_, Layer> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_mut(&self) -> RwLockWriteGuard<'_, Layer> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layer().describe("Overlay", f)
    }
}

impl Storage for Overlay {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.layer().read(offset, buf)
    }

    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.layer().read_ready(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.layer_mut().write(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.layer().length)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.layer_mut().set_len(length);
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let mut layer = self.layer_mut();
        let end = range.end.min(layer.length);
        layer.patches.zero(range.start..end)
    }

    /// Always [`io::ErrorKind::Unsupported`]: the limits may be met by any write.
    fn allocate(&self, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.layer().next_data(offset)
    }
}

/// What an [`Overlay`] held when it was [frozen](Overlay::freeze). Every call that would change it
/// fails with [`io::ErrorKind::ReadOnlyFilesystem`].
pub struct Patched(Layer);

impl fmt::Debug for Patched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe("Patched", f)
    }
}

impl Storage for Patched {
    only_read!();

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(offset, buf)
    }

    fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.0.read_ready(offset, buf)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.length)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStorage;
    use super::*;

    fn over(bytes: &[u8]) -> (Arc<MemoryStorage>, Overlay) {
        let base = Arc::new(MemoryStorage::new(bytes.to_vec()));
        let overlay = Overlay::new(Arc::clone(&base) as Arc<dyn Storage>).unwrap();
        (base, overlay)
    }

    fn all(storage: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0xee; to_usize(storage.len().unwrap()) + 3];
        let read = storage.read_at(0, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    #[test]
    fn the_base_is_never_touched() {
        let (base, overlay) = over(b"base contents");
        overlay.write_at(2, b"XX").unwrap();
        overlay.punch(5..7).unwrap();
        overlay.set_len(9).unwrap();
        overlay.sync().unwrap();
        assert_eq!(all(&overlay), b"baXX \0\0nt");
        assert_eq!(base.to_vec(), b"base contents");
    }

    #[test]
    fn base_bytes_cut_off_do_not_come_back() {
        let (_, overlay) = over(b"0123456789");
        overlay.set_len(4).unwrap();
        overlay.set_len(12).unwrap();
        assert_eq!(all(&overlay), b"0123\0\0\0\0\0\0\0\0");
        overlay.write_at(20, b"x").unwrap();
        overlay.set_len(8).unwrap();
        overlay.set_len(21).unwrap();
        assert_eq!(all(&overlay), [b"0123".as_slice(), &[0; 17]].concat());
    }

    #[test]
    fn a_base_that_grows_later_stays_hidden() {
        let (base, overlay) = over(b"0123");
        base.write_at(4, b"later").unwrap();
        overlay.set_len(6).unwrap();
        assert_eq!(all(&overlay), b"0123\0\0");
    }

    #[test]
    fn a_frozen_overlay_reads_the_same_and_refuses_changes() {
        let (_, overlay) = over(b"0123456789");
        overlay.write_at(3, b"abc").unwrap();
        overlay.set_len(11).unwrap();
        let patched = overlay.freeze();
        assert_eq!(all(&patched), b"012abc6789\0");
        for result in [
            patched.write_at(0, b"x"),
            patched.set_len(3),
            patched.punch(0..1),
            patched.allocate(0..1),
        ] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
    }

    /// A server answers from an overlay at once only what needs no device beneath it.
    #[test]
    fn a_read_is_ready_when_every_part_of_it_is() {
        struct Slow(MemoryStorage);
        impl Storage for Slow {
            only_read!();
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
                self.0.read_at(offset, buf)
            }
            fn len(&self) -> io::Result<u64> {
                self.0.len()
            }
            fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
                self.0.next_data(offset)
            }
        }
        let overlay = Overlay::new(Arc::new(Slow(MemoryStorage::new(vec![7; 100])))).unwrap();
        overlay.write_at(10, b"abcd").unwrap();
        let mut buf = [0; 4];
        assert!(overlay.read_ready_at(10, &mut buf).unwrap());
        assert_eq!(&buf, b"abcd");
        assert!(!overlay.read_ready_at(9, &mut buf).unwrap());
        let (_, quick) = over(b"0123456789");
        quick.write_at(2, b"x").unwrap();
        assert!(quick.read_ready_at(1, &mut buf).unwrap());
        assert_eq!(&buf, b"1x34");
    }

    #[test]
    fn a_write_that_does_not_fit_changes_nothing() {
        let (_, overlay) = over(b"0123");
        let big = vec![1; to_usize(crate::format::limits::MAX_OVERLAY_BYTES) + 1];
        let error = overlay.write_at(2, &big).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(overlay.len().unwrap(), 4);
        overlay.set_len(6).unwrap();
        assert_eq!(all(&overlay), b"0123\0\0");
    }
}
