//! What a client sees of a disk, in the library's terms.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use vhdxkit::{Error, Extent, ExtentState, Result};

use crate::Disk;

/// Written at once where zeros have to be stored.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// [`ZEROS`] as a step through a disk.
const ZERO_STEP: u64 = 64 << 10;

/// A disk, or a partition of it, as its clients see it: bytes from 0 to [`size`](Self::size).
///
/// All calls may come from many threads at once. What a write has returned from is durable once a
/// [`flush`](Self::flush) that began later has returned, by whichever client.
#[derive(Debug, Clone)]
pub struct Export {
    disk: Arc<Disk>,
    window: Range<u64>,
}

/// A run of an export that is all of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What the image says of it.
    pub state: ExtentState,
    /// Which image of the chain says so: 0 is the one that is served.
    pub depth: u32,
    /// It has a place in the file, and the file has a hole there: it reads as zeros all the same.
    pub hole: bool,
}

impl Run {
    /// Whether it reads as zeros.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.hole || self.state.is_zero()
    }

    /// The byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

impl Export {
    /// The whole disk.
    #[must_use]
    pub fn whole(disk: Arc<Disk>) -> Self {
        let window = 0..disk.image().virtual_size();
        Self { disk, window }
    }

    /// A part of the disk; what lies beyond its end is left out.
    #[must_use]
    pub fn part(disk: Arc<Disk>, range: Range<u64>) -> Self {
        let end = range.end.min(disk.image().virtual_size());
        Self { disk, window: range.start.min(end)..end }
    }

    /// The disk that it is, or is a part of.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.window.end - self.window.start
    }

    /// Bytes of a sector: what is written is a multiple of it, except by [`write_at`](Self::write_at).
    #[must_use]
    pub fn sector_size(&self) -> u32 {
        self.disk.image().geometry().logical_sector_size()
    }

    /// Bytes that are best read and written together: a sector of the medium, and 4 KiB at least.
    #[must_use]
    pub fn preferred_size(&self) -> u32 {
        self.disk.image().geometry().physical_sector_size().max(4096)
    }

    /// Whether clients may write.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.disk.image().is_writable()
    }

    /// Whether zeros cost less than writing them: not on a disk that keeps all of its space.
    #[must_use]
    pub fn zeroes_quickly(&self) -> bool {
        use vhdxkit::view::geometry::DiskType;
        self.disk.image().geometry().disk_type() != DiskType::Fixed
    }

    /// The border between two blocks of the disk that is next at or below an offset of the export; the offset
    /// itself where there is none behind the export's start.
    #[must_use]
    pub fn whole_blocks_up_to(&self, offset: u64) -> u64 {
        let block = u64::from(self.disk.image().geometry().block_size());
        let on_disk = self.window.start.saturating_add(offset);
        (on_disk - on_disk % block)
            .checked_sub(self.window.start)
            .filter(|at| *at > 0)
            .unwrap_or(offset)
    }

    /// Where a range of the export lies on the disk.
    fn on_disk(&self, range: Range<u64>) -> Result<Range<u64>> {
        match range.start <= range.end && range.end <= self.size() {
            true => Ok(self.window.start + range.start..self.window.start + range.end),
            false => Err(Error::out_of_range(range, self.size())),
        }
    }

    fn of_buffer(&self, offset: u64, length: usize) -> Result<Range<u64>> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        self.on_disk(offset..end.unwrap_or(u64::MAX))
    }

    /// Reads, at any offset.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = self.of_buffer(offset, buf.len())?.start;
        self.disk.watch("read", self.disk.image().read_at(at, buf))
    }

    /// Reads what needs no waiting for a device; `false` when it might.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::read_ready_at`].
    pub fn read_ready_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let at = self.of_buffer(offset, buf.len())?.start;
        self.disk.watch("read", self.disk.image().read_ready_at(at, buf))
    }

    /// Writes, at any offset. What begins or ends inside of a sector is put together with the rest of that
    /// sector, and waits for nobody else to write meanwhile.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::write_at`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let range = self.of_buffer(offset, buf.len())?;
        let result = match self.is_whole_sectors(&range) {
            true => {
                let _shared = self.disk.whole_sectors();
                self.disk.image().write_at(range.start, buf)
            }
            false => self.write_parts(range, buf),
        };
        self.disk.watch("write", result)
    }

    fn is_whole_sectors(&self, range: &Range<u64>) -> bool {
        let sector = u64::from(self.sector_size());
        range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector)
    }

    fn write_parts(&self, range: Range<u64>, buf: &[u8]) -> Result<()> {
        let (image, sector) = (self.disk.image(), u64::from(self.sector_size()));
        let _alone = self.disk.parts_of_sectors();
        let mut rest = buf;
        let mut at = range.start;
        while at < range.end {
            let start = at - at % sector;
            let within = usize::try_from(at - start).unwrap_or_default();
            // Up to the next border, or, from a border on, as many whole sectors as there are.
            let whole = (range.end - at) / sector * sector;
            if within == 0 && whole > 0 {
                let (now, later) = rest.split_at(usize::try_from(whole).unwrap_or(rest.len()));
                image.write_at(at, now)?;
                (at, rest) = (at + whole, later);
                continue;
            }
            let mut whole = vec![0; usize::try_from(sector).unwrap_or_default()];
            image.read_at(start, &mut whole)?;
            let (now, later) = rest.split_at((whole.len() - within).min(rest.len()));
            whole[within..within + now.len()].copy_from_slice(now);
            image.write_at(start, &whole)?;
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// Makes a range read as zeros, giving its space back where that is possible. Any offsets: the parts of
    /// sectors at its ends are written.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::write_zeroes`].
    pub fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        let on_disk = self.on_disk(range.clone())?;
        let sector = u64::from(self.sector_size());
        let first = on_disk.start.next_multiple_of(sector).min(on_disk.end);
        let last = (on_disk.end - on_disk.end % sector).max(first);
        if first < last {
            let _shared = self.disk.whole_sectors();
            let zeroed = self.disk.image().write_zeroes(first..last);
            self.disk.watch("write zeros", zeroed)?;
        }
        let shift = self.window.start;
        self.store_zeroes(range.start..first - shift)?;
        self.store_zeroes(last - shift..range.end)
    }

    /// Writes zeros, so that the range keeps its space.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn store_zeroes(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(ZERO_STEP);
            self.write_at(at, &ZEROS[..usize::try_from(step).unwrap_or(ZEROS.len())])?;
            at += step;
        }
        Ok(())
    }

    /// The client does not need the contents of a range any more. Parts of sectors at its ends stay.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::discard`].
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        let range = self.on_disk(range)?;
        let sector = u64::from(self.sector_size());
        let first = range.start.next_multiple_of(sector).min(range.end);
        let last = (range.end - range.end % sector).max(first);
        let _shared = self.disk.whole_sectors();
        self.disk.watch("discard", self.disk.image().discard(first..last))
    }

    /// Makes everything durable that was written before this call, by anybody.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::flush`].
    pub fn flush(&self) -> Result<()> {
        match self.is_writable() {
            true => self.disk.watch("flush", self.disk.image().flush()),
            false => Ok(()),
        }
    }

    /// Shows the runs of a range in order, without gaps, until `visit` has enough. Neighbours may be alike.
    ///
    /// # Errors
    /// As [`vhdxkit::Image::extents`]; the range reaches beyond the end.
    pub fn runs(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(Run) -> ControlFlow<()>,
    ) -> Result<()> {
        let on_disk = self.on_disk(range)?;
        let mut extents = self.disk.image().extents(on_disk);
        let walked = extents.try_for_each(|extent| match extent {
            Ok(extent) => match self.runs_of(extent, &mut visit) {
                Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
                Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            },
            Err(error) => ControlFlow::Break(Err(error)),
        });
        match walked {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(result) => self.disk.watch("map", result),
        }
    }

    /// An extent, cut at the holes of the file that it lies in.
    fn runs_of(
        &self,
        extent: Extent,
        visit: &mut impl FnMut(Run) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut run = |start: u64, length: u64, hole| {
            let (state, depth) = (extent.state, extent.depth);
            visit(Run { start: start - self.window.start, length, state, depth, hole })
        };
        let file = self.disk.image().layer(extent.depth).map(|image| image.storage());
        let (Some(offset), Some(file)) = (extent.file_offset, file) else {
            return Ok(run(extent.start, extent.length, false));
        };
        // Clients are told of whole sectors; a file system's holes may begin and end inside of one.
        let sector = u64::from(self.sector_size());
        let mut done = 0;
        while done < extent.length {
            let at = offset + done;
            let data =
                file.next_data(at).map_err(|e| Error::io("cannot map the file's holes", at, e));
            let data = data?.unwrap_or(u64::MAX..u64::MAX);
            let hole = (data.start.saturating_sub(at) / sector * sector).min(extent.length - done);
            let data = (data.end.max(at + 1) - at).checked_next_multiple_of(sector);
            let length = match hole {
                0 => data.unwrap_or(u64::MAX).min(extent.length - done),
                hole => hole,
            };
            if run(extent.start + done, length, hole > 0).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            done += length;
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhdxkit::storage::MemoryStorage;
    use vhdxkit::{CreateOptions, OpenOptions};

    fn disk(sector: u32) -> Arc<Disk> {
        let file = MemoryStorage::new(Vec::new());
        let options = CreateOptions::new(8 << 20).block_size(1 << 20).logical_sector_size(sector);
        options.create_storage(&file).unwrap();
        let image = OpenOptions::new().write(true).open_storage(Arc::new(file)).unwrap();
        Disk::new(image, Arc::new(|_: &str| {}))
    }

    fn bytes(export: &Export, offset: u64, length: usize) -> Vec<u8> {
        let mut buf = vec![0xEE; length];
        export.read_at(offset, &mut buf).unwrap();
        buf
    }

    /// A file on a mounted disk may be written anywhere; what stands around it must stay.
    #[test]
    fn writes_inside_of_sectors_leave_the_rest_alone() {
        for sector in [512, 4096] {
            let export = Export::whole(disk(sector));
            export.write_at(0, &[1; 16384]).unwrap();
            export.write_at(100, &[2; 9000]).unwrap();
            export.write_at(12288, &[3; 1]).unwrap();
            export.write_at(13000, &[4; 3]).unwrap();
            let mut expected = vec![1; 16384];
            expected[100..9100].fill(2);
            expected[12288] = 3;
            expected[13000..13003].fill(4);
            assert_eq!(bytes(&export, 0, 16384), expected, "{sector}");
            export.write_zeroes(50..8200).unwrap();
            expected[50..8200].fill(0);
            assert_eq!(bytes(&export, 0, 16384), expected, "{sector}");
        }
    }

    /// Many small writes into one sector: none may undo another.
    #[test]
    fn threads_share_a_sector() {
        let export = Export::whole(disk(4096));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let export = &export;
                scope.spawn(move || {
                    for at in (thread..4096).step_by(8) {
                        export.write_at(at, &[thread as u8 + 1]).unwrap();
                    }
                });
            }
        });
        let expected: Vec<u8> = (0..4096).map(|at| (at % 8) as u8 + 1).collect();
        assert_eq!(bytes(&export, 0, 4096), expected);
    }

    #[test]
    fn a_part_shows_nothing_around_it() {
        let disk = disk(512);
        let whole = Export::whole(Arc::clone(&disk));
        whole.write_at(0, &[1; 3 << 20]).unwrap();
        let part = Export::part(disk, 1 << 20..2 << 20);
        assert_eq!(part.size(), 1 << 20);
        part.write_at(0, &[2; 512]).unwrap();
        part.write_zeroes(512..1024).unwrap();
        for (offset, length) in [(1 << 20, 1), (u64::MAX, 1), ((1 << 20) - 1, 2)] {
            let error = part.read_at(offset, &mut vec![0; length]).unwrap_err();
            assert_eq!(error.kind(), vhdxkit::ErrorKind::OutOfRange);
            assert!(part.write_at(offset, &vec![0; length]).is_err());
            assert!(part.discard(offset..offset.saturating_add(length as u64)).is_err());
        }
        part.discard(0..1 << 20).unwrap();
        assert_eq!(bytes(&whole, (1 << 20) - 512, 512), [1; 512]);
        assert_eq!(bytes(&whole, 2 << 20, 512), [1; 512]);
        let mut runs = Vec::new();
        let visit = |run: Run| {
            runs.push((run.start, run.length, run.is_zero()));
            ControlFlow::Continue(())
        };
        part.runs(0..1 << 20, visit).unwrap();
        assert_eq!(runs, [(0, 1 << 20, true)]);
    }
}
