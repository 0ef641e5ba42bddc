//! The file in cells: who owns what of it, and how far the disk's order is the file's.

use std::ops::Range;

use crate::format::bat::{PayloadState, RawEntry, SECTOR_BITMAP_BLOCK};
use crate::format::region::{BAT_REGION, METADATA_REGION};
use crate::format::{HEADER_SECTION_LENGTH, MIB};
use crate::map::{Block, EntryRules, SpaceMap, walk};
use crate::storage::StorageExt;
use crate::view::geometry::{BatSlot, Geometry};
use crate::{Image, Result};

use super::{Detail, spread};

/// Who owns a byte of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileOwner {
    /// File identifier, headers, region tables.
    Header,
    /// The log.
    Log,
    /// The block allocation table.
    Bat,
    /// The metadata region.
    Metadata,
    /// A region of another kind.
    OtherRegion,
    /// Sector bitmap blocks.
    SectorBitmap,
    /// Payload blocks with contents.
    Payload,
    /// Payload blocks that read as zeros and keep their place: trimmed, or undefined.
    Retained,
    /// Nobody, with owners behind it.
    Gap,
    /// Nobody, up to the end of the file.
    Tail,
}

impl FileOwner {
    /// All of them, in the order of a legend.
    pub const ALL: [Self; 10] = [
        Self::Header,
        Self::Log,
        Self::Bat,
        Self::Metadata,
        Self::OtherRegion,
        Self::SectorBitmap,
        Self::Payload,
        Self::Retained,
        Self::Gap,
        Self::Tail,
    ];
}

/// Bytes by owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileCell {
    bytes: [u64; FileOwner::ALL.len()],
}

impl FileCell {
    /// Bytes of an owner.
    #[must_use]
    pub fn of(&self, owner: FileOwner) -> u64 {
        self.bytes.get(owner as usize).copied().unwrap_or_default()
    }

    /// Bytes of all owners, and of nobody.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn add(&mut self, owner: FileOwner, bytes: u64) {
        if let Some(slot) = self.bytes.get_mut(owner as usize) {
            *slot = slot.saturating_add(bytes);
        }
    }
}

/// How the stored blocks lie, for a reader that goes through the disk from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// Payload blocks that are stored, some of them in part.
    pub blocks: u64,
    /// Runs that they form: within a run, what comes next on the disk comes next in the file.
    pub runs: u64,
    /// Stored blocks whose predecessor on the disk is stored too: so many could lie right behind it.
    pub neighbours: u64,
    /// Those of them that do.
    pub in_order: u64,
}

/// Where the stored blocks of each part of the disk lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scatter {
    /// Parts of the disk.
    pub columns: u32,
    /// Bytes of a column.
    pub column_bytes: u64,
    /// Parts of the file.
    pub rows: u32,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Bytes stored there, row by row.
    pub bytes: Vec<u64>,
}

/// The file from its first byte to its last, as it is once its log is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePicture {
    /// Bytes of the file.
    pub length: u64,
    /// Bytes of a cell; the last cell may be used in part.
    pub cell_bytes: u64,
    /// The cells, in order.
    pub cells: Vec<FileCell>,
    /// All of them together.
    pub totals: FileCell,
    /// Payload and bitmap blocks of which a part is another's, too: damage. That part is counted once.
    pub shared_blocks: u64,
    /// Fragmentation.
    pub order: Order,
    /// The disk against the file.
    pub scatter: Scatter,
}

/// Sweeps the file of an image: its fixed structures, then its BAT.
pub(super) fn sweep(image: &Image, detail: Detail) -> Result<FilePicture> {
    let rules = image.entry_rules();
    let storage = &**image.storage();
    let mut sweep = Sweep::new(&rules, storage.length()?, detail);
    sweep.claim(FileOwner::Header, 0, HEADER_SECTION_LENGTH);
    if let Some(log) = image.log().place() {
        sweep.claim(FileOwner::Log, log.offset, u64::from(log.length));
    }
    for region in image.regions().all() {
        let owner = match region.guid {
            BAT_REGION => FileOwner::Bat,
            METADATA_REGION => FileOwner::Metadata,
            _ => FileOwner::OtherRegion,
        };
        sweep.claim(owner, region.offset, u64::from(region.length));
    }
    let geometry = rules.geometry;
    walk(storage, rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            match geometry.slot(index) {
                BatSlot::Payload(block) => sweep.payload(&rules, block, raw),
                BatSlot::Bitmap(chunk) => {
                    if let Ok(Some(place)) = rules.bitmap(chunk, raw) {
                        sweep.claim_block(FileOwner::SectorBitmap, place, SECTOR_BITMAP_BLOCK);
                    }
                }
                BatSlot::Padding => {}
            }
        }
        Ok(())
    })?;
    Ok(sweep.finish())
}

struct Sweep {
    picture: FilePicture,
    space: SpaceMap,
    /// The end of what is owned.
    owned_end: u64,
    /// The last stored block, and where it ends in the file.
    last: Option<(u64, u64)>,
}

impl Sweep {
    fn new(rules: &EntryRules, length: u64, detail: Detail) -> Self {
        let cell_bytes =
            length.div_ceil(detail.file_cells.max(1)).div_ceil(MIB).max(1).saturating_mul(MIB);
        let cells = usize::try_from(length.div_ceil(cell_bytes.max(1))).unwrap_or_default();
        let picture = FilePicture {
            length,
            cell_bytes,
            cells: vec![FileCell::default(); cells],
            totals: FileCell::default(),
            shared_blocks: 0,
            order: Order::default(),
            scatter: Scatter::new(rules.geometry.virtual_size(), length, detail.scatter),
        };
        Self { picture, space: SpaceMap::new(length), owned_end: 0, last: None }
    }

    /// Counts a range that nobody else has.
    fn count(&mut self, owner: FileOwner, range: Range<u64>) {
        let FilePicture { length, cell_bytes, cells, totals, .. } = &mut self.picture;
        spread(range.start..range.end.min(*length), *cell_bytes, |index, bytes| {
            if let Some(cell) = cells.get_mut(index) {
                cell.add(owner, bytes);
                totals.add(owner, bytes);
            }
        });
    }

    /// Takes what of a range is still free. The value tells whether that was all of it.
    fn claim(&mut self, owner: FileOwner, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        self.owned_end = self.owned_end.max(end.min(self.picture.length));
        let Some(clash) = self.space.claim(offset, length) else {
            self.count(owner, offset..end);
            return true;
        };
        // Damage: what lies before the first clash is surely ours; the rest, at most a block, is left to
        // the other owners.
        self.count(owner, offset..clash.max(offset));
        false
    }

    fn claim_block(&mut self, owner: FileOwner, offset: u64, length: u64) {
        if !self.claim(owner, offset, length) {
            self.picture.shared_blocks = self.picture.shared_blocks.saturating_add(1);
        }
    }

    fn payload(&mut self, rules: &EntryRules, block: u64, raw: RawEntry) {
        let Some(place) = rules.owned(raw) else { return };
        // One that reaches beyond the file is no place to draw; its part in the file is taken all the same.
        let readable =
            matches!(rules.payload(block, raw), Ok(Block::Present { .. } | Block::Partial { .. }));
        let present = matches!(
            PayloadState::from_raw(raw.state()),
            Some(PayloadState::FullyPresent | PayloadState::PartiallyPresent)
        );
        let block_bytes = u64::from(rules.geometry.block_size());
        let owner = if present { FileOwner::Payload } else { FileOwner::Retained };
        self.claim_block(owner, place, block_bytes);
        if readable {
            self.note_order(block, place, block_bytes);
            self.picture.scatter.note(&rules.geometry, block, place);
        }
    }

    fn note_order(&mut self, block: u64, place: u64, block_bytes: u64) {
        let order = &mut self.picture.order;
        order.blocks = order.blocks.saturating_add(1);
        let before = self.last.filter(|(last, _)| last.checked_add(1) == Some(block));
        if before.is_some() {
            order.neighbours = order.neighbours.saturating_add(1);
        }
        match before.is_some_and(|(_, end)| end == place) {
            true => order.in_order = order.in_order.saturating_add(1),
            false => order.runs = order.runs.saturating_add(1),
        }
        self.last = Some((block, place.saturating_add(block_bytes)));
    }

    fn finish(mut self) -> FilePicture {
        let space = std::mem::replace(&mut self.space, SpaceMap::new(0));
        let owned_end = self.owned_end;
        space.for_each_gap(|gap| {
            let owner = if gap.start >= owned_end { FileOwner::Tail } else { FileOwner::Gap };
            self.count(owner, gap);
        });
        self.picture
    }
}

impl Scatter {
    fn new(disk: u64, file: u64, (columns, rows): (u32, u32)) -> Self {
        let (columns, rows) = (columns.max(1), rows.max(1));
        let cells = usize::try_from(columns).unwrap_or_default();
        let cells = cells.saturating_mul(usize::try_from(rows).unwrap_or_default());
        Self {
            columns,
            column_bytes: disk.div_ceil(u64::from(columns)).max(1),
            rows,
            row_bytes: file.div_ceil(u64::from(rows)).max(1),
            bytes: vec![0; cells],
        }
    }

    /// Bytes of the file in a part of it that hold a part of the disk.
    #[must_use]
    pub fn at(&self, column: u32, row: u32) -> u64 {
        let index = u64::from(row).saturating_mul(u64::from(self.columns));
        let index = usize::try_from(index.saturating_add(u64::from(column)));
        index.ok().and_then(|index| self.bytes.get(index)).copied().unwrap_or_default()
    }

    fn note(&mut self, geometry: &Geometry, block: u64, place: u64) {
        let start = geometry.block_start(block);
        let end = start.saturating_add(geometry.used_bytes(block));
        let (row_bytes, columns) = (self.row_bytes, u64::from(self.columns));
        let bytes = &mut self.bytes;
        let mut done = 0u64;
        spread(start..end, self.column_bytes, |column, in_column| {
            let at = place.saturating_add(done);
            done = done.saturating_add(in_column);
            spread(at..at.saturating_add(in_column), row_bytes, |row, in_row| {
                let index = u64::try_from(row).unwrap_or(u64::MAX).saturating_mul(columns);
                let index = usize::try_from(index).unwrap_or(usize::MAX).saturating_add(column);
                if let Some(slot) = bytes.get_mut(index) {
                    *slot = slot.saturating_add(in_row);
                }
            });
        });
    }
}
