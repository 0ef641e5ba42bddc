//! Images with exactly one fault each that a repair can mend, and what the guest sees afterwards.

use vhdxkit::format::bat::RawEntry;
use vhdxkit::format::{HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS};

use crate::patch::{put_u32, put_u64, reseal_header, reseal_region_table};
use crate::{Contents, Image, LogEntry, guid};

/// An image with a fault.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What is wrong with it.
    pub name: &'static str,
    /// The code of the finding.
    pub code: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// Its log has to be discarded, which the user has to say.
    pub discard_log: bool,
    /// Data is lost, which the user has to say.
    pub allow_data_loss: bool,
    /// The header copy that counts, which the user has to say.
    pub header: Option<u8>,
    /// Bytes of the disk after the repair, by offset.
    pub guest: Vec<(u64, Vec<u8>)>,
    /// The disk is a child of another one.
    pub child: bool,
    /// The repair is one that changes what the guest sees.
    pub new_identity: bool,
}

/// A disk of 16 blocks of 1 MiB, three of them present: number 0, 2 and 5, one behind another in the file.
#[must_use]
pub fn sound() -> Image {
    let text: Vec<u8> = (0..MIB).map(|i| (i * 7 + i / 4096) as u8 | 1).collect();
    Image::dynamic(16 * MIB)
        .block(0, Contents::Pattern(0x11))
        .block(2, Contents::Data(text))
        .block(5, Contents::Pattern(0x55))
}

struct Maker {
    name: &'static str,
    code: &'static str,
    image: Image,
}

impl Maker {
    /// The image with its bytes changed; the guest sees what it saw.
    fn fault(self, change: impl FnOnce(&mut Vec<u8>, &Image)) -> Fault {
        let mut bytes = self.image.build_vec();
        change(&mut bytes, &self.image);
        let small = self.image.shape().virtual_size <= 64 * MIB;
        let child = self.image.shape().differencing;
        Fault {
            name: self.name,
            code: self.code,
            bytes,
            discard_log: false,
            allow_data_loss: false,
            header: None,
            guest: if small && !child {
                vec![(0, self.image.expected_guest())]
            } else {
                Vec::new()
            },
            child,
            new_identity: false,
        }
    }
}

impl Fault {
    fn losing(mut self, range: std::ops::Range<u64>) -> Self {
        self.new_identity = true;
        let range = range.start as usize..range.end as usize;
        self.guest[0].1[range].fill(0);
        self
    }

    fn on_word(mut self) -> Self {
        self.allow_data_loss = true;
        self
    }

    fn shows(mut self, offset: u64, bytes: Vec<u8>) -> Self {
        self.guest.push((offset, bytes));
        self
    }
}

fn of(code: &'static str, name: &'static str, image: Image) -> Maker {
    Maker { name, code, image }
}

fn entry(bytes: &mut [u8], image: &Image, index: u64, raw: u64) {
    put_u64(bytes, image.layout().bat_offset + 8 * index, raw);
}

/// A field of both headers.
fn both_headers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for (copy, at) in HEADER_OFFSETS.into_iter().enumerate() {
        change(&mut bytes[at as usize..at as usize + 4096]);
        reseal_header(bytes, copy);
    }
}

/// One of each fault that can be repaired.
#[must_use]
pub fn repairable() -> Vec<Fault> {
    [headers(), logs(), tables(), entries(), overlaps(), ends()].concat()
}

fn headers() -> Vec<Fault> {
    let [first, second] = HEADER_OFFSETS.map(|at| at as usize);
    let damaged = |bytes: &mut [u8], at: usize| bytes[at + 0x20] ^= 1;
    let reserved = |bytes: &mut [u8], at: usize| bytes[at + 0x100] ^= 1;
    let mut faults = vec![
        of("V1", "the signature is damaged", sound())
            .fault(|bytes, _| bytes[..8].copy_from_slice(b"vhdxfilf")),
        of("V3", "header copy 1 is damaged", sound()).fault(|bytes, _| damaged(bytes, first)),
        of("V3", "header copy 2 is damaged, the current one", sound())
            .fault(|bytes, _| damaged(bytes, second)),
        of("V3", "header copy 2, the current one, is damaged where it holds nothing", sound())
            .fault(|bytes, _| reserved(bytes, second)),
        of("W-HDRPAIR", "the older header has another identity", sound()).fault(|bytes, _| {
            bytes[first + 0x20..first + 0x30].fill(0x77);
            reseal_header(bytes, 0);
        }),
        of("W-HDRSEQ", "both headers carry the same number", sound().twin_headers())
            .fault(|_, _| {}),
        of(
            "V4",
            "both headers carry the same number and differ in the session",
            sound().twin_headers(),
        )
        .fault(|bytes, _| {
            bytes[second + 0x10..second + 0x20].fill(0x77);
            reseal_header(bytes, 1);
        }),
        of("V6", "the log version of a clean file", sound())
            .fault(|bytes, _| both_headers(bytes, |header| header[0x40] = 1)),
        of("V7", "the log of a clean file is misplaced", sound())
            .fault(|bytes, _| both_headers(bytes, |header| header[0x48] = 1)),
    ];
    let mut tie = of("V4", "both headers carry the same number and differ", sound().twin_headers())
        .fault(|bytes, _| {
            bytes[first + 0x20..first + 0x30].fill(0x77);
            reseal_header(bytes, 0);
        });
    tie.header = Some(2);
    faults.push(tie);
    faults
}

fn logs() -> Vec<Fault> {
    let image = sound();
    let session = image.session(1);
    let mut orphan =
        of("V8", "a log without an entry", image.clone().dirty(session)).fault(|_, _| {});
    orphan.discard_log = true;
    let torn = image.clone().dirty(session);
    let torn =
        torn.log_entry(LogEntry::new().data(image.layout().bat_page_offset(0), &[0; 4096]).torn(1));
    let mut torn = of("V8", "a log whose only entry is torn", torn).fault(|_, _| {});
    torn.discard_log = true;
    torn.new_identity = true;
    let mut misplaced = of("V8", "a dirty log that lies nowhere", image.clone().dirty(session))
        .fault(|bytes, _| both_headers(bytes, |header| header[0x48] = 1));
    misplaced.discard_log = true;
    let length = image.layout().file_length;
    let page = image.layout().bat_page_offset(0);
    let table = || image.build_vec()[page as usize..page as usize + 4096].to_vec();
    let longer = image.clone().dirty(session);
    let longer = longer.log_entry(
        LogEntry::new().data(page, &table()).flushed(length + 4 * MIB).last(length + 4 * MIB),
    );
    let cut = image.clone().dirty(session);
    let cut = cut.log_entry(LogEntry::new().data(page, &table()).flushed(length).last(length));
    let allocates = image.clone().dirty(session);
    let allocates = allocates.log_entry(LogEntry::new().allocate(9, Contents::Pattern(0x99)));
    vec![
        orphan,
        torn,
        misplaced,
        of("V9", "the file is shorter than it was, by nothing but free space", longer)
            .fault(|_, _| {}),
        of("V9", "the file was cut off within its last block", cut.clone())
            .fault(|bytes, _| bytes.truncate((length - MIB / 2) as usize))
            .losing(5 * MIB + MIB / 2..6 * MIB),
        of("V9", "the file was cut off before its last block", cut)
            .fault(|bytes, _| bytes.truncate((length - MIB) as usize))
            .losing(5 * MIB..6 * MIB)
            .on_word(),
        of("I-DIRTY", "a log that needs replay", allocates.clone()).fault(|_, _| {}),
        of("V32", "an offset under ZERO in a file whose log needs replay", allocates).fault(
            |bytes, image| {
                // In the log's own copy of the page, and in the page.
                let at = image.layout().log_entry_offset(0) + 4096 + 8 * 7;
                put_u64(bytes, at, (900 * MIB) | 2);
                crate::reseal_log_entry(bytes, image.layout().log_entry_offset(0), MIB, MIB);
            },
        ),
    ]
}

fn tables() -> Vec<Fault> {
    let [first, second] = REGION_TABLE_OFFSETS.map(|at| at as usize);
    let empty = Image::dynamic(16 * MIB);
    let big = Image::dynamic(160 << 30).block(3, Contents::Pattern(0x33)).bat_length(1 << 20);
    vec![
        of("V11", "region table copy 1 is damaged", sound())
            .fault(|bytes, _| bytes[first + 20] ^= 1),
        of("V11", "region table copy 2 is zeros", sound())
            .fault(|bytes, _| bytes[second..second + (64 << 10)].fill(0)),
        of("M-RTDIFF", "the region tables differ", sound()).fault(|bytes, _| {
            bytes[second + 0x2000] = 1;
            reseal_region_table(bytes, 1);
        }),
        of("V14", "the unused end of the BAT region is missing", empty)
            .fault(|bytes, image| bytes.truncate(image.layout().bat_offset as usize + 4096)),
        of("V21", "reserved bits of the file parameters are set", sound()).fault(|bytes, image| {
            put_u32(bytes, image.layout().metadata_offset + 0x1_0004, 0x8000_0010);
        }),
        of("V25", "the BAT region is too small for the disk", big)
            .fault(|_, _| {})
            .shows(2 * MIB, vec![0; 512])
            .shows(3 * MIB, vec![0x33; 1 << 20])
            .shows((160 << 30) - 4096, vec![0; 4096]),
    ]
}

fn entries() -> Vec<Fault> {
    let large = || Image::dynamic(5 << 30).block(1, Contents::Pattern(0x44));
    let child =
        || {
            let text = vec![0x77; 8192];
            Image::differencing(16 * MIB, guid(9, 9))
                .block(1, Contents::Pattern(0x44))
                .partial_block(4, [0, 1, 7], text)
        };
    let whole = || Image::differencing(16 * MIB, guid(9, 9)).block(1, Contents::Pattern(0x44));
    let place = |image: &Image, block: u64| image.layout().blocks[&block];
    let mut shifted = of("M-BATSHIFT", "a page of the table is shifted by one entry", by_qemu())
        .fault(|bytes, image| shift(bytes, image.layout().bat_offset as usize))
        .shows(0, vec![0x11; 512])
        .shows(2 * MIB, vec![0x22; 512])
        .shows(5 * MIB, vec![0x55; 512])
        .shows(7 * MIB, vec![0; 512]);
    // Each block shows its own contents again.
    shifted.new_identity = true;
    vec![
        of("V26", "a block in state 5", sound()).fault(|bytes, image| entry(bytes, image, 7, 5)),
        of("V26", "a partially present block in a disk without a parent", sound())
            .fault(|bytes, image| entry(bytes, image, 5, place(image, 5) | 7)),
        of("V26", "junk in the entry of a sector bitmap", large())
            .fault(|bytes, image| entry(bytes, image, 4096, (77 * MIB) | 6))
            .shows(MIB, vec![0x44; 1 << 20])
            .shows(4 << 30, vec![0; 512]),
        of("V26", "junk in the entry of a child's sector bitmap", whole())
            .fault(|bytes, image| entry(bytes, image, 4096, 3))
            .shows(MIB, vec![0x44; 1 << 20]),
        of("V28", "a child's sector bitmap without a place, and without need", whole())
            .fault(|bytes, image| entry(bytes, image, 4096, 6))
            .shows(MIB, vec![0x44; 1 << 20]),
        of("V29", "a child's sector bitmap behind the end, and without need", whole())
            .fault(|bytes, image| entry(bytes, image, 4096, (900 * MIB) | 6))
            .shows(MIB, vec![0x44; 1 << 20]),
        of("V27", "reserved bits of an entry are set", sound()).fault(|bytes, image| {
            entry(bytes, image, 2, place(image, 2) | 0x1_0008 | 6);
            entry(bytes, image, 8, 0x10);
        }),
        of("V27", "reserved bits in a child", child())
            .fault(|bytes, image| entry(bytes, image, 1, place(image, 1) | 0x18 | 6))
            .shows(MIB, vec![0x44; 1 << 20])
            .shows(4 * MIB, vec![0x77; 1024]),
        of("V32", "offsets under ZERO and NOT_PRESENT", sound()).fault(|bytes, image| {
            entry(bytes, image, 7, (900 * MIB) | 2);
            entry(bytes, image, 9, place(image, 2));
        }),
        of("V28", "a block without a place", sound())
            .fault(|bytes, image| entry(bytes, image, 2, 6))
            .losing(2 * MIB..3 * MIB)
            .on_word(),
        of("V29", "the file ends within a block", sound())
            .fault(|bytes, _| bytes.truncate(bytes.len() - 300_000))
            .losing(6 * MIB - 300_000..6 * MIB),
        of("V29", "a block lies behind the end of the file", sound())
            .fault(|bytes, image| entry(bytes, image, 5, (900 * MIB) | 6))
            .losing(5 * MIB..6 * MIB)
            .on_word(),
        shifted,
    ]
}

/// A disk as QEMU makes it: every entry of a block says ZERO or FULLY_PRESENT.
fn by_qemu() -> Image {
    let zero = |image: Image, block| image.block(block, Contents::State(2, 0));
    let image =
        (0..16).fold(Image::dynamic(16 * MIB).creator("QEMU v7.2.0").required_flag(false), zero);
    image
        .block(0, Contents::Pattern(0x11))
        .block(2, Contents::Pattern(0x22))
        .block(5, Contents::Pattern(0x55))
        .block(15, Contents::Pattern(0xFF))
}

/// What QEMU before 8.0 made of a page when it gave its first block a place: the new entry, then the whole
/// old page.
fn shift(bytes: &mut [u8], at: usize) {
    let new_first = bytes[at..at + 8].to_vec();
    bytes[at..at + 8].copy_from_slice(&RawEntry::new(2, 0).0.to_le_bytes());
    bytes.copy_within(at..at + 4088, at + 8);
    bytes[at..at + 8].copy_from_slice(&new_first);
}

fn overlaps() -> Vec<Fault> {
    let place = |image: &Image, block: u64| image.layout().blocks[&block];
    let mut twice = of("V30", "two blocks at the same place", sound())
        .fault(|bytes, image| entry(bytes, image, 9, place(image, 2) | 6));
    let shown = twice.guest[0].1[2 << 20..3 << 20].to_vec();
    twice.guest[0].1[9 << 20..10 << 20].copy_from_slice(&shown);
    let wide = Image::dynamic(16 * MIB)
        .block_size(2 << 20)
        .block(0, Contents::Pattern(0x11))
        .block(2, Contents::Pattern(0x22));
    let mut half = of("V30", "two blocks share half of their space", wide)
        .fault(|bytes, image| entry(bytes, image, 5, (place(image, 0) + MIB) | 6));
    half.guest[0].1[10 << 20..11 << 20].fill(0x11);
    half.guest[0].1[11 << 20..12 << 20].fill(0x22);
    let mut metadata = of("V30", "a block lies in the metadata region", sound())
        .fault(|bytes, image| entry(bytes, image, 9, image.layout().metadata_offset | 6));
    let image = sound();
    let at = image.layout().metadata_offset as usize;
    metadata.guest[0].1[9 << 20..10 << 20].copy_from_slice(&metadata.bytes[at..at + (1 << 20)]);
    let child = Image::differencing(16 * MIB, guid(9, 9))
        .block(1, Contents::Pattern(0x44))
        .partial_block(4, [0, 1], vec![0x77; 1024]);
    vec![
        twice,
        half,
        metadata,
        of("V30", "a trimmed block still claims another one's space", sound())
            .fault(|bytes, image| entry(bytes, image, 9, place(image, 2) | 3)),
        of("V30", "a child's block lies where its sector bitmap is", child)
            .fault(|bytes, image| {
                let bitmap = image.layout().bitmaps[&0];
                entry(bytes, image, 1, bitmap | 6);
            })
            .shows(4 * MIB, vec![0x77; 1024]),
    ]
}

fn ends() -> Vec<Fault> {
    vec![
        of("V35", "free space at the end of the file", sound())
            .fault(|bytes, _| bytes.resize(bytes.len() + (3 << 20), 0)),
    ]
}
