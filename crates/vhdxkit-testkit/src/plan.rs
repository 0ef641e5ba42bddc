//! From a description to offsets and bytes.

use std::collections::BTreeMap;

use vhdxkit::format::region::{self, RegionTableEntry};
use vhdxkit::format::{HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS};

use crate::image::{Block, Contents, Image, Kind};
use crate::layout::{Layout, Shape};
use crate::ring::Ring;
use crate::sections;
use crate::sink::Sink;

/// Bytes for a place in the file.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) fill: Fill,
}

/// What a piece consists of.
#[derive(Debug)]
pub(crate) enum Fill {
    Bytes(Vec<u8>),
    Repeat(u8, u64),
}

/// The BAT as far as it differs from zero.
#[derive(Debug, Clone)]
pub(crate) struct Bat {
    shape: Shape,
    /// In a fixed disk, where block 0 lies: the others follow it.
    row_start: Option<u64>,
    set: BTreeMap<u64, u64>,
}

impl Bat {
    pub(crate) fn set(&mut self, index: u64, raw: u64) {
        self.set.insert(index, raw);
    }

    fn entry(&self, index: u64) -> u64 {
        if let Some(raw) = self.set.get(&index) {
            return *raw;
        }
        let group = self.shape.chunk_ratio() + 1;
        let block = index / group * self.shape.chunk_ratio() + index % group;
        match self.row_start {
            Some(start) if index % group + 1 < group && block < self.shape.blocks() => {
                (start + block * self.shape.block_size) | 6
            }
            _ => 0,
        }
    }

    /// 4 KiB page `number` of the table.
    pub(crate) fn page(&self, number: u64) -> Box<[u8; 4096]> {
        let mut page = Box::new([0; 4096]);
        for (i, slot) in page.chunks_exact_mut(8).enumerate() {
            slot.copy_from_slice(&self.entry(number * 512 + i as u64).to_le_bytes());
        }
        page
    }

    /// The pages that are not all zero, in order.
    fn used_pages(&self) -> Vec<u64> {
        let mut pages: Vec<u64> = match self.row_start {
            Some(_) => (0..self.shape.bat_entries().div_ceil(512)).collect(),
            None => Vec::new(),
        };
        pages.extend(self.set.keys().map(|index| index / 512));
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

/// Everything that will be written.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) bat: Bat,
    /// Where the next block goes.
    cursor: u64,
    /// Where the space that is in the file ends.
    pub(crate) written_end: u64,
}

impl Plan {
    pub(crate) fn new(image: &Image) -> Self {
        let metadata = sections::metadata(image);
        let mut plan = Self::start(image, metadata.len() as u64);
        plan.bytes(0, sections::identifier(image));
        for (offset, header) in HEADER_OFFSETS.into_iter().zip(sections::headers(image)) {
            plan.bytes(offset, header);
        }
        let table = region::encode_table(&plan.region_entries(image)).expect("regions fit");
        for offset in REGION_TABLE_OFFSETS {
            plan.bytes(offset, table.clone());
        }
        plan.bytes(plan.layout.metadata_offset, metadata);
        for block in &image.blocks {
            plan.place(block);
        }
        for (index, raw) in &image.raw_bat {
            plan.bat.set(*index, *raw);
        }
        let room = plan.layout.bat_length / 4096;
        for number in plan.bat.used_pages().into_iter().filter(|number| *number < room) {
            let page = plan.bat.page(number).to_vec();
            plan.bytes(plan.layout.bat_offset + 4096 * number, page);
        }
        Ring::new(image, &plan).fill(image, &mut plan);
        plan.layout.file_length = plan.file_length(image);
        plan
    }

    /// Lays out the regions.
    fn start(image: &Image, metadata_bytes: u64) -> Self {
        let shape = image.shape();
        let log_length = u64::from(image.log_length);
        let metadata_offset = MIB + log_length;
        let metadata_length = metadata_bytes.next_multiple_of(MIB);
        let bat_offset = metadata_offset + metadata_length;
        let bat_needed = (shape.bat_entries() * 8).next_multiple_of(MIB).max(MIB);
        let bat_length = image.bat_length.map_or(bat_needed, u64::from);
        let mut end = bat_offset + bat_length;
        let mut extra_regions = Vec::new();
        for region in &image.extra_regions {
            extra_regions.push(end);
            end += u64::from(region.length);
        }
        let row_start = (image.kind == Kind::Fixed).then_some(end);
        let rows = row_start.map_or(0, |_| shape.blocks() * shape.block_size);
        let layout = Layout {
            shape,
            log_offset: MIB,
            log_length,
            metadata_offset,
            metadata_length,
            bat_offset,
            bat_length,
            extra_regions,
            payload_start: end,
            file_length: 0,
            blocks: BTreeMap::new(),
            bitmaps: BTreeMap::new(),
            log_entries: Vec::new(),
        };
        let bat = Bat { shape, row_start, set: BTreeMap::new() };
        let end = end + rows;
        Self { layout, pieces: Vec::new(), bat, cursor: end, written_end: end }
    }

    /// The region table as Windows orders it: BAT first.
    fn region_entries(&self, image: &Image) -> Vec<RegionTableEntry> {
        if let Some(entries) = &image.regions {
            return entries.clone();
        }
        let entry = |guid, file_offset: u64, length: u64, required: bool| RegionTableEntry {
            guid,
            file_offset: file_offset.into(),
            length: u32::try_from(length).expect("a region is below 4 GiB").into(),
            required: u32::from(required).into(),
        };
        let (layout, required) = (&self.layout, image.required_flag);
        let mut entries = vec![
            entry(region::BAT_REGION, layout.bat_offset, layout.bat_length, required),
            entry(
                region::METADATA_REGION,
                layout.metadata_offset,
                layout.metadata_length,
                required,
            ),
        ];
        for (region, offset) in image.extra_regions.iter().zip(&layout.extra_regions) {
            entries.push(entry(region.guid, *offset, region.length.into(), region.required));
        }
        entries
    }

    /// Puts a described block into the file and the BAT.
    fn place(&mut self, block: &Block) {
        let index = self.layout.bat_index(block.index);
        if let Some(present) = &block.present {
            self.mark_present(block.index, present);
        }
        let mut raw = self.allocate(block.index, block.place_mib, &block.contents, true);
        if block.present.is_some() {
            raw |= 7;
        }
        self.bat.set(index, raw);
    }

    /// Gives a block its space and writes it there; returns its BAT entry.
    pub(crate) fn allocate(
        &mut self,
        block: u64,
        place_mib: Option<u64>,
        contents: &Contents,
        written: bool,
    ) -> u64 {
        let block_size = self.layout.shape.block_size;
        let (state, fill) = match contents {
            Contents::State(state, offset) => return offset | u64::from(*state),
            Contents::Data(data) => (6, Fill::Bytes(data.clone())),
            Contents::Pattern(byte) => (6, Fill::Repeat(*byte, block_size)),
            Contents::Retained(state, data) => (*state, Fill::Bytes(data.clone())),
        };
        let in_row = self.bat.row_start.filter(|_| block < self.layout.shape.blocks());
        let offset = match (place_mib, in_row) {
            (Some(mib), _) => mib << 20,
            (None, Some(start)) => start + block * block_size,
            (None, None) => self.cursor,
        };
        let near = |other: &u64| other.abs_diff(offset) < block_size;
        let recycled = self.layout.blocks.values().any(near);
        self.cursor = self.cursor.max(offset + block_size);
        self.layout.blocks.insert(block, offset);
        if written {
            if let Fill::Bytes(data) = &fill {
                assert!(data.len() as u64 <= block_size, "block {block} is too long");
            }
            self.written_end = self.written_end.max(offset + block_size);
            if recycled {
                self.pieces.push(Piece { offset, fill: Fill::Repeat(0, block_size) });
            }
            self.pieces.push(Piece { offset, fill });
        }
        offset | u64::from(state)
    }

    /// Sets a block's bits in the sector bitmap of its chunk, making the bitmap if need be.
    fn mark_present(&mut self, block: u64, present: &[u64]) {
        let shape = self.layout.shape;
        let chunk = block / shape.chunk_ratio();
        let bitmap = match self.layout.bitmaps.get(&chunk) {
            Some(offset) => *offset,
            None => {
                let offset = self.cursor;
                self.cursor += MIB;
                self.written_end = self.written_end.max(self.cursor);
                self.layout.bitmaps.insert(chunk, offset);
                self.bat.set(shape.bitmap_index(chunk), offset | 6);
                offset
            }
        };
        let sectors = shape.block_size / shape.sector;
        let mut bits = vec![0_u8; (sectors / 8) as usize];
        for &sector in present {
            assert!(sector < sectors, "sector {sector} is not in a block of {sectors}");
            bits[(sector / 8) as usize] |= 1 << (sector % 8);
        }
        self.bytes(bitmap + block % shape.chunk_ratio() * (sectors / 8), bits);
    }

    /// Where all space given out so far ends.
    pub(crate) fn space_end(&self) -> u64 {
        self.cursor.max(self.written_end)
    }

    pub(crate) fn bytes(&mut self, offset: u64, bytes: Vec<u8>) {
        self.pieces.push(Piece { offset, fill: Fill::Bytes(bytes) });
    }

    fn file_length(&self, image: &Image) -> u64 {
        let Shape { virtual_size, block_size, .. } = self.layout.shape;
        let mut end = self.written_end;
        if image.cut_last_block && !virtual_size.is_multiple_of(block_size) {
            let last = virtual_size / block_size;
            let in_row = self.bat.row_start.map(|start| start + last * block_size);
            let offset = self.layout.blocks.get(&last).copied().or(in_row);
            if offset.is_some_and(|offset| offset + block_size == end) {
                end -= block_size - virtual_size % block_size;
            }
        }
        image.file_length.unwrap_or(end + image.extra_tail)
    }

    /// Writes all of it, cut off where the file ends.
    pub(crate) fn write(&self, sink: &mut impl Sink) {
        let end = self.layout.file_length;
        sink.set_len(end);
        for piece in &self.pieces {
            let room = end.saturating_sub(piece.offset);
            match &piece.fill {
                Fill::Bytes(bytes) => {
                    let length = room.min(bytes.len() as u64) as usize;
                    if length > 0 {
                        sink.put(piece.offset, &bytes[..length]);
                    }
                }
                Fill::Repeat(byte, length) => fill(sink, piece.offset, *byte, room.min(*length)),
            }
        }
    }
}

/// Writes `length` times the same byte. Zeros are written too: they may go over something.
fn fill(sink: &mut impl Sink, offset: u64, byte: u8, length: u64) {
    let chunk = vec![byte; length.min(MIB) as usize];
    let mut done = 0;
    while done < length {
        let part = (length - done).min(MIB);
        sink.put(offset + done, &chunk[..part as usize]);
        done += part;
    }
}
