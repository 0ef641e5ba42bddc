//! The images of `testdata/`: small, of our own making, each with something to find.
//!
//! Changing one of them changes the repository's files: write them again, and put the new
//! checksums into `testdata/README.md`.

use vhdxkit::format::metadata::VIRTUAL_DISK_SIZE;

use crate::image::{Contents, Image};
use crate::log::LogEntry;

/// Text of the crashed disk, in three parts of one block each.
const STORY: &str = include_str!("story.txt");
/// What separates the parts.
const PART_END: &str = "----\n";

const MIB: u64 = 1 << 20;

/// One image of `testdata/`.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its file name.
    pub name: &'static str,
    /// The image.
    pub image: Image,
    /// The file name of its parent, which is a sample too.
    pub parent: Option<&'static str>,
}

impl Sample {
    /// The guest's bytes after replay, over those of the parent.
    #[must_use]
    pub fn guest(&self) -> Vec<u8> {
        let parent = all().into_iter().find(|sample| Some(sample.name) == self.parent);
        self.image.expected_guest_over(&parent.map_or_else(Vec::new, |parent| parent.guest()))
    }
}

/// All samples, parents first.
#[must_use]
pub fn all() -> Vec<Sample> {
    let sample = |name, image, parent| Sample { name, image, parent };
    vec![
        sample("crashed.vhdx", crashed(), None),
        sample("clean.vhdx", clean(), None),
        sample("sectors-4k.vhdx", sectors_4k(), None),
        sample("child.vhdx", child(), Some("clean.vhdx")),
    ]
}

/// Part `number` (0 to 2) of the text on the crashed disk. It lies at so many MiB of the disk.
///
/// # Panics
/// There are three parts.
#[must_use]
pub fn story_part(number: usize) -> &'static str {
    STORY.split(PART_END).nth(number).expect("the story has three parts")
}

/// A dynamic disk of 64 MiB whose writer lost power in its second session.
///
/// | log sector | entry | says |
/// |---|---|---|
/// | 0 | 1001, second session | nothing: the session begins |
/// | 1, 3 | 1002, 1003 | blocks 12 and 13 are zeros; in place already, superseded |
/// | 5 | 1004, Tail of all that follow | block 9 is unmapped, its space free; BAT page 1 is zeroed |
/// | 7 | 1005 | block 1 takes the space of block 9 |
/// | 9 | 1006 | block 2 is new at the end of the file |
/// | 11 | 1007, its last sector never written | block 0 unmapped, the disk grown to 128 MiB |
/// | 13 and up | 508 to 511, first session | long in place |
///
/// Read without replay, blocks 1 and 2 are missing, and block 9 shows what belongs to block 1.
/// Replay of the torn entry would lose block 0; its order was never completed.
#[must_use]
pub fn crashed() -> Image {
    let text = |part: usize| Contents::Data(story_part(part).as_bytes().to_vec());
    let image = Image::dynamic(64 * MIB).seed(0xC4A5).header_sequence(23);
    let (first, second) = (image.session(1), image.session(2));

    // The first session: two blocks written, others trimmed, all of it in place.
    let old = |entry: LogEntry| entry.guid(first).tail_self().flushed(4 * MIB).applied();
    let mut image = image
        .log_entry(old(LogEntry::new()).sequence(501))
        .log_entry(old(LogEntry::new().allocate(0, text(0))))
        .log_entry(old(LogEntry::new().allocate(9, lines("the old chart", 40))));
    for block in 20..28 {
        image = image.log_entry(old(LogEntry::new().allocate(block, Contents::State(2, 0))));
    }

    // The second session, up to the entry whose Tail says that everything before it is in place.
    let new = |entry: LogEntry| entry.guid(second).flushed(6 * MIB);
    let trimmed = |block| LogEntry::new().allocate(block, Contents::State(2, 0));
    let image = image
        .dirty(second)
        .log_entry(new(LogEntry::new()).at(0).sequence(1001).tail_self())
        .log_entry(new(trimmed(12)).applied())
        .log_entry(new(trimmed(13)).applied());
    let layout = image.layout();
    let tail = layout.log_entries.len();
    let unmapped = LogEntry::new()
        .allocate(9, Contents::State(3, 0))
        .zero(layout.bat_offset + 4096, 4096)
        .tail_self();
    let image = image
        .log_entry(new(unmapped))
        .log_entry(new(LogEntry::new().allocate_at(1, 5, text(1))).tail_entry(tail))
        .log_entry(new(LogEntry::new().allocate(2, text(2))).tail_entry(tail));

    // The entry that was being written when the power failed.
    let (offset, sector) = grown_size_sector(&image, 128 * MIB);
    let torn = LogEntry::new().allocate(0, Contents::State(3, 0)).data(offset, &sector);
    image.log_entry(new(torn).tail_entry(tail).torn(2))
}

/// The 4 KiB of metadata that hold the virtual disk size, with another size in them.
fn grown_size_sector(image: &Image, size: u64) -> (u64, Vec<u8>) {
    let offset = image.layout().metadata_offset as usize;
    let mut region = image.build_vec()[offset..offset + 0x11000].to_vec();
    let id = VIRTUAL_DISK_SIZE.to_bytes();
    let entry = region[32..].chunks(32).find(|entry| entry[..16] == id).expect("the item is there");
    let item = u32::from_le_bytes(entry[16..20].try_into().unwrap()) as usize;
    region[item..item + 8].copy_from_slice(&size.to_le_bytes());
    (offset as u64 + 0x10000, region[0x10000..].to_vec())
}

/// A dynamic disk with a block in every state, whose last block is used in part only.
#[must_use]
pub fn clean() -> Image {
    Image::dynamic(9 * MIB + 1536)
        .seed(0xC1EA)
        .block(0, lines("clean, block 0, fully present", 40))
        .block(2, Contents::State(2, 0))
        .block(3, Contents::State(3, 0))
        .block(4, Contents::State(1, 0))
        .block(9, lines("clean, block 9, the last", 30))
        .block(6, Contents::Pattern(0x66))
        .block(5, Contents::Retained(3, b"trimmed: nobody should read this\n".repeat(20)))
}

/// A dynamic disk with logical sectors of 4096 bytes.
#[must_use]
pub fn sectors_4k() -> Image {
    Image::dynamic(5 * MIB + 3 * 4096)
        .sectors(4096, 4096)
        .seed(0x4096)
        .block(5, lines("sectors of 4096 bytes, block 5, the last", 60))
        .block(1, lines("sectors of 4096 bytes, block 1", 60))
}

/// A child of [`clean`]: some blocks its own, some its parent's, some of both.
#[must_use]
pub fn child() -> Image {
    let parent = clean();
    let sectors: String = (0..2048).map(|n| format!("child, sector {n:<497}\n")).collect();
    Image::differencing(parent.shape().virtual_size, parent.data_write_guid())
        .seed(0xC41D)
        .with_disk_id(parent.disk_id())
        .parent_path("absolute_win32_path", r"C:\vm\clean.vhdx")
        .parent_path("relative_path", r".\clean.vhdx")
        .parent_path(
            "volume_path",
            r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\vm\clean.vhdx",
        )
        .parent_path("parent_linkage2", "{00000000-0000-0000-0000-000000000000}")
        .block(1, lines("child, block 1, fully present", 40))
        .partial_block(6, (8..16).chain([1, 2047]), sectors.into_bytes())
        .block(3, Contents::State(2, 0))
        .partial_block(9, [2], lines_of("child, block 9, the last", 40))
}

fn lines(text: &str, count: usize) -> Contents {
    Contents::Data(lines_of(text, count))
}

fn lines_of(text: &str, count: usize) -> Vec<u8> {
    (1..=count).map(|n| format!("line {n:2}: {text}\n")).collect::<String>().into_bytes()
}
