//! A child into a new file, without its parent: blocks, sector bitmaps and the name of the parent go as they are.

use std::ops::Range;

use crate::format::MIB;
use crate::format::bat::{PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::format::metadata::Item;
use crate::image::{Identity, Layout};
use crate::map::walk;
use crate::storage::{Cloners, DataRuns, Storage, StorageExt};
use crate::view::geometry::BatSlot;
use crate::{Error, Image, Result};

use super::super::buffer::Buffer;
use super::super::import::ImportReport;
use super::super::progress::{Progress, advance};
use super::super::writeback::Writeback;
use super::super::zeros::{length, split_zeros};
use super::looks;

/// Bytes of the new file's log.
const LOG_LENGTH: u32 = 1 << 20;

/// Copies what `child` itself holds into an empty storage, and makes it durable.
pub(super) fn copy(
    child: &Image,
    items: &[Item],
    identity: Identity,
    target: &dyn Storage,
    progress: &mut dyn Progress,
) -> Result<ImportReport> {
    let geometry = *child.geometry();
    let layout = Layout::new(geometry, LOG_LENGTH)?;
    Layout::require_empty(target)?;
    layout.set_length(target, 0)?;
    let mut copy = Copy {
        source: &**child.storage(),
        target,
        cloners: Cloners::between([child.storage()], target),
        end: layout.place(0),
        buffer: Buffer::new(),
        report: ImportReport { virtual_size: geometry.virtual_size(), ..ImportReport::default() },
    };
    let mut bat = layout.bat_writer(target);
    let (table, entries) = (child.regions().bat().offset, geometry.bat_entries());
    Writeback::during(target, |writeback| {
        walk(copy.source, table, entries, &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let size = match geometry.slot(index) {
                    BatSlot::Payload(_) => u64::from(geometry.block_size()),
                    BatSlot::Bitmap(_) => SECTOR_BITMAP_BLOCK,
                    BatSlot::Padding => continue,
                };
                let to = match looks::is_present(raw) {
                    true => copy.block(raw.file_offset(), size, writeback, progress)?,
                    false => 0,
                };
                if raw.state() != PayloadState::NotPresent.to_raw() {
                    bat.put(index, RawEntry::new(raw.state(), to))?;
                }
            }
            Ok(())
        })
    })?;
    let Copy { end, mut report, .. } = copy;
    target.set_len(end).map_err(|e| Error::io("cannot extend the new image", end, e))?;
    layout.write_tables_as(target, identity, items)?;
    bat.write()?;
    layout.finish(target)?;
    report.file_size = end;
    Ok(report)
}

struct Copy<'a> {
    source: &'a dyn Storage,
    target: &'a dyn Storage,
    cloners: Cloners<'a>,
    /// Where the next block goes, the end of the file so far.
    end: u64,
    buffer: Buffer,
    report: ImportReport,
}

impl Copy<'_> {
    /// Copies a block; gives its new place.
    fn block(
        &mut self,
        from: u64,
        size: u64,
        writeback: &mut Writeback,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let to = self.end;
        self.end = to.saturating_add(size);
        debug_assert!(self.end.is_multiple_of(MIB));
        for run in DataRuns::new(self.source, from..from.saturating_add(size)) {
            let run = run.map_err(|e| Error::io("cannot map the file's holes", from, e))?;
            if run.data {
                let at = to.saturating_add(run.range.start.saturating_sub(from));
                self.run(run.range, at, writeback)?;
            }
        }
        self.report.blocks = self.report.blocks.saturating_add(1);
        advance(progress, size)?;
        Ok(to)
    }

    fn run(&mut self, from: Range<u64>, to: u64, writeback: &mut Writeback) -> Result<()> {
        let size = from.end.saturating_sub(from.start);
        if self.cloners.can(0) {
            let shared = self.cloners.share((0, from.start), to, size);
            if shared.map_err(|e| Error::io("cannot share the data with the copy", to, e))? {
                self.report.written = self.report.written.saturating_add(size);
                return Ok(());
            }
        }
        let mut done = 0;
        while done < size {
            let buf = self.buffer.first(size.saturating_sub(done));
            self.source.read_zero_filled(from.start.saturating_add(done), buf)?;
            self.report.read = self.report.read.saturating_add(length(buf));
            for (at, part) in split_zeros(to.saturating_add(done), buf) {
                if let Ok(bytes) = part {
                    let written = self.target.write_at(at, bytes);
                    written.map_err(|e| Error::io("cannot write the copy", at, e))?;
                    self.report.written = self.report.written.saturating_add(length(bytes));
                    writeback.wrote(length(bytes));
                }
            }
            done = done.saturating_add(length(buf)).max(done.saturating_add(1));
        }
        Ok(())
    }
}
