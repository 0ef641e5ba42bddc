//! Small valid images: 18 of them, every kind of disk × sector size × state of the log.

use vhdxkit::format::bat::RawEntry;
use vhdxkit::format::header::Header;
use vhdxkit::format::identifier::FileIdentifier;
use vhdxkit::format::metadata::{self, FileParameters, Item};
use vhdxkit::format::region::{self, RegionTableEntry};
use vhdxkit::format::{Guid, HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS, locator};
use vhdxkit::log::EntryBuilder;
use vhdxkit::storage::{MemoryStorage, Storage};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Where the log lies, one mebibyte.
pub const LOG_AT: u64 = MIB;
/// Where the metadata region lies.
pub const METADATA_AT: u64 = 2 * MIB;
/// Where the BAT lies.
pub const BAT_AT: u64 = 3 * MIB;
/// The first mebibyte behind the tables: the first block.
pub const FIRST_AT: u64 = 4 * MIB;
/// The second one: another block, or the sector bitmap.
pub const SECOND_AT: u64 = 5 * MIB;
/// The session that a dirty log belongs to.
pub const SESSION: Guid = Guid::from_u128(0x1122_3344_5566_4788_99AA_BBCC_DDEE_FF00);
/// An earlier session.
pub const EARLIER: Guid = Guid::from_u128(0x0102_0304_0506_4708_8910_1112_1314_1516);

/// What kind of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Four blocks, one of them stored; a dirty log stores another and extends the file for it.
    Dynamic,
    /// Two blocks, both stored.
    Fixed,
    /// Four blocks, one of them stored in part.
    Differencing,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// Entries of an earlier session only.
    Clean,
    /// Two entries to be replayed.
    Dirty,
    /// The same across the end of the ring, among a retired, a foreign and a torn entry.
    Wrapped,
}

/// The parts of an image; change some, then [`build`](Self::build).
#[derive(Debug, Clone)]
pub struct Base {
    /// Both copies; the second has the higher sequence number.
    pub header: Header,
    /// Entries of both region tables.
    pub regions: Vec<RegionTableEntry>,
    /// Metadata items.
    pub items: Vec<Item>,
    /// BAT entries that are not zero.
    pub bat: Vec<(u64, RawEntry)>,
    /// Entries of the log by the sector of the ring they start at.
    pub log: Vec<(u32, Vec<u8>)>,
    /// Other bytes, by file offset.
    pub payload: Vec<(u64, Vec<u8>)>,
    /// Bytes of the file.
    pub length: u64,
}

impl Base {
    /// How many different ones [`number`](Self::number) gives.
    pub const COUNT: u8 = 18;

    /// One of the bases; numbers beyond [`COUNT`](Self::COUNT) start again.
    pub fn number(number: u8) -> Self {
        let kind = [Kind::Dynamic, Kind::Fixed, Kind::Differencing][usize::from(number % 3)];
        let log = [LogKind::Dirty, LogKind::Wrapped, LogKind::Clean][usize::from(number / 3 % 3)];
        let sector = [512, 4096][usize::from(number / 9 % 2)];
        Self::new(kind, log, sector)
    }

    /// The base with these properties.
    pub fn new(kind: Kind, log: LogKind, sector: u32) -> Self {
        let (flags, blocks, length) = match kind {
            Kind::Dynamic => (0, 4, SECOND_AT),
            Kind::Fixed => (metadata::LEAVE_BLOCK_ALLOCATED, 2, SECOND_AT + MIB),
            Kind::Differencing => (metadata::HAS_PARENT, 4, SECOND_AT + MIB),
        };
        let parameters = FileParameters { block_size: U32::new(1 << 20), flags: U32::new(flags) };
        let id = Guid::from_u128(0xD15C);
        let mut items = Item::mandatory(parameters, blocks * MIB, sector, 4096, id);
        if kind == Kind::Differencing {
            items.push(Item {
                id: metadata::PARENT_LOCATOR,
                flags: metadata::IS_REQUIRED,
                data: parent_locator(),
            });
        }
        let bat = bat_of(kind, sector, false);
        let bitmap = [0b0001_1010u8, 0xFF, 0, 0x80];
        let mut payload = vec![(FIRST_AT, b"first block".to_vec())];
        match kind {
            Kind::Dynamic => {}
            Kind::Fixed => payload.push((SECOND_AT + MIB - 8, b"the end.".to_vec())),
            Kind::Differencing => payload.push((SECOND_AT, bitmap.to_vec())),
        }
        let mut header = Header::new_zeroed();
        header.sequence_number = U64::new(7);
        header.file_write_guid = Guid::from_u128(0xF11E);
        header.data_write_guid = Guid::from_u128(0xDA7A);
        header.version = U16::new(1);
        header.log_length = U32::new(1 << 20);
        header.log_offset = U64::new(LOG_AT);
        if log != LogKind::Clean {
            header.log_guid = SESSION;
        }
        let regions = vec![
            region_at(region::BAT_REGION, BAT_AT),
            region_at(region::METADATA_REGION, METADATA_AT),
        ];
        let log = log_of(kind, log, sector, length);
        Self { header, regions, items, bat, log, payload, length }
    }

    /// The file.
    pub fn build(&self) -> MemoryStorage {
        let file = MemoryStorage::empty();
        file.set_len(self.length).unwrap();
        let put = |at: u64, bytes: &[u8]| file.write_at(at, bytes).unwrap();
        put(0, FileIdentifier::new("vhdxkit").as_bytes());
        for (at, sequence) in HEADER_OFFSETS.into_iter().zip([0, 1]) {
            let mut header = self.header.clone();
            header.sequence_number = U64::new(header.sequence_number.get() + sequence);
            put(at, header.sealed().as_bytes());
        }
        let table = region::encode_table(&self.regions).unwrap();
        for at in REGION_TABLE_OFFSETS {
            put(at, &table);
        }
        put(METADATA_AT, &metadata::encode_region(&self.items).unwrap());
        for (index, entry) in &self.bat {
            put(BAT_AT + index * 8, &entry.0.to_le_bytes());
        }
        for (sector, bytes) in &self.log {
            for (number, piece) in (u64::from(*sector)..).zip(bytes.chunks(4096)) {
                put(LOG_AT + number % 256 * 4096, piece);
            }
        }
        for (at, bytes) in &self.payload {
            put(*at, bytes);
        }
        file
    }
}

/// An entry of the region table, one mebibyte long and required.
pub fn region_at(guid: Guid, at: u64) -> RegionTableEntry {
    let (file_offset, length) = (U64::new(at), U32::new(1 << 20));
    RegionTableEntry { guid, file_offset, length, required: U32::new(1) }
}

/// The pairs that every parent locator needs.
pub fn parent_locator() -> Vec<u8> {
    let pairs = [
        ("parent_linkage", "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}"),
        ("relative_path", r".\parent.vhdx"),
    ];
    locator::encode(&pairs).unwrap()
}

/// Index of the first chunk's sector bitmap entry, for blocks of 1 MiB.
fn bitmap_index(sector: u32) -> u64 {
    u64::from(sector) * 8
}

/// The BAT before or after replay.
fn bat_of(kind: Kind, sector: u32, replayed: bool) -> Vec<(u64, RawEntry)> {
    let mut bat = match kind {
        Kind::Dynamic => vec![(0, RawEntry::new(6, FIRST_AT)), (1, RawEntry::new(2, 0))],
        Kind::Fixed => vec![(0, RawEntry::new(6, FIRST_AT)), (1, RawEntry::new(6, SECOND_AT))],
        Kind::Differencing => vec![
            (0, RawEntry::new(7, FIRST_AT)),
            (bitmap_index(sector), RawEntry::new(6, SECOND_AT)),
        ],
    };
    if replayed {
        bat.push(match kind {
            Kind::Dynamic => (3, RawEntry::new(6, SECOND_AT)),
            Kind::Fixed => (1, RawEntry::new(6, SECOND_AT)),
            Kind::Differencing => (1, RawEntry::new(2, 0)),
        });
    }
    bat
}

fn log_of(kind: Kind, log: LogKind, sector: u32, length: u64) -> Vec<(u32, Vec<u8>)> {
    let mut page = [0; 4096];
    for (index, entry) in bat_of(kind, sector, true).iter().filter(|(index, _)| *index < 512) {
        let at = *index as usize * 8;
        page[at..at + 8].copy_from_slice(&entry.0.to_le_bytes());
    }
    let after = length.max(SECOND_AT + MIB);
    let first = |guid, sequence, tail: u32| {
        let mut entry = EntryBuilder::new(guid, sequence).tail(tail * 4096);
        entry.data(BAT_AT, &page).unwrap();
        entry.file_sizes(length, after).encode().unwrap()
    };
    let second = |guid, sequence, tail: u32| {
        let mut entry = EntryBuilder::new(guid, sequence).tail(tail * 4096);
        entry.zero(BAT_AT + 4096, 4096).unwrap();
        match kind {
            Kind::Differencing => entry.data(SECOND_AT, &[0x5A; 4096]).unwrap(),
            _ => entry.data(SECOND_AT + 8192, &[0xE5; 4096]).unwrap(),
        }
        entry.file_sizes(length, after).encode().unwrap()
    };
    match log {
        LogKind::Clean => vec![(0, first(EARLIER, 3, 0)), (2, second(EARLIER, 4, 0))],
        LogKind::Dirty => vec![(0, first(SESSION, 3, 0)), (2, second(SESSION, 4, 0))],
        LogKind::Wrapped => {
            let mut torn = second(SESSION, 90, 20);
            torn.truncate(4096);
            vec![
                (20, torn),
                (40, first(EARLIER, 5, 40)),
                (251, second(SESSION, 40, 251)),
                (253, first(SESSION, 41, 253)),
                (255, second(SESSION, 42, 253)),
            ]
        }
    }
}
