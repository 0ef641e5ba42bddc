//! The description of an image, in builder style.

use vhdxkit::format::Guid;
use vhdxkit::format::metadata::Item;
use vhdxkit::format::region::RegionTableEntry;

use crate::log::{LogEntry, LogItem};

/// What a payload block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Fully present: these bytes, then zeros to the end of the block.
    Data(Vec<u8>),
    /// Fully present: this byte throughout.
    Pattern(u8),
    /// Only a BAT entry: this state (0 to 7) and file offset (0, or a multiple of 1 MiB). Takes no
    /// space and writes no block.
    State(u8, u64),
    /// Space in the file with these bytes in it, but a BAT entry of this state: what a trimmed
    /// block leaves behind.
    Retained(u8, Vec<u8>),
}

/// The three types of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dynamic,
    Fixed,
    Differencing(Guid),
}

/// One payload block as described.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) index: u64,
    pub(crate) place_mib: Option<u64>,
    pub(crate) contents: Contents,
    /// Sectors present, for a partially present block.
    pub(crate) present: Option<Vec<u64>>,
}

/// An extra region as described.
#[derive(Debug, Clone)]
pub(crate) struct ExtraRegion {
    pub(crate) guid: Guid,
    pub(crate) required: bool,
    pub(crate) length: u32,
}

/// An image to be built. Every method returns the changed description; nothing is written before
/// [`build_vec`](Image::build_vec) or [`build_file`](Image::build_file).
///
/// The layout is the one Windows makes: header section, log, metadata, BAT, (extra regions,)
/// blocks in the order they were described. Equal descriptions give equal bytes. Descriptions that
/// make no sense are built as far as they can be and panic otherwise.
///
/// ```
/// use vhdxkit_testkit::{Contents, Image};
///
/// let image = Image::dynamic(4 << 20).block(2, Contents::Data(b"hello".to_vec()));
/// let bytes = image.build_vec();
/// assert_eq!(bytes.len(), 5 << 20);
/// assert_eq!(&image.expected_guest()[2 << 20..][..5], b"hello");
/// ```
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) kind: Kind,
    pub(crate) virtual_size: u64,
    pub(crate) block_size: u32,
    pub(crate) logical_sector: u32,
    pub(crate) physical_sector: u32,
    pub(crate) log_length: u32,
    pub(crate) bat_length: Option<u32>,
    pub(crate) creator: String,
    pub(crate) seed: u64,
    pub(crate) header_sequence: u64,
    pub(crate) twin_headers: bool,
    pub(crate) data_write_guid: Option<Guid>,
    pub(crate) disk_id: Option<Guid>,
    pub(crate) log_guid: Guid,
    pub(crate) regions: Option<Vec<RegionTableEntry>>,
    pub(crate) extra_regions: Vec<ExtraRegion>,
    pub(crate) required_flag: bool,
    pub(crate) items: Option<Vec<Item>>,
    pub(crate) extra_items: Vec<Item>,
    pub(crate) locator: Vec<(String, String)>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) raw_bat: Vec<(u64, u64)>,
    pub(crate) log: Vec<LogItem>,
    pub(crate) cut_last_block: bool,
    pub(crate) extra_tail: u64,
    pub(crate) file_length: Option<u64>,
}

impl Image {
    fn new(kind: Kind, virtual_size: u64) -> Self {
        Self {
            kind,
            virtual_size,
            block_size: 1 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            log_length: 1 << 20,
            bat_length: None,
            creator: "vhdxkit-testkit".into(),
            seed: 1,
            header_sequence: 7,
            twin_headers: false,
            data_write_guid: None,
            disk_id: None,
            log_guid: Guid::ZERO,
            regions: None,
            extra_regions: Vec::new(),
            required_flag: true,
            items: None,
            extra_items: Vec::new(),
            locator: Vec::new(),
            blocks: Vec::new(),
            raw_bat: Vec::new(),
            log: Vec::new(),
            cut_last_block: false,
            extra_tail: 0,
            file_length: None,
        }
    }

    /// A dynamic disk: blocks are not present unless described. 1 MiB blocks, 512-byte logical and
    /// 4096-byte physical sectors, a log of 1 MiB, clean.
    #[must_use]
    pub fn dynamic(virtual_size: u64) -> Self {
        Self::new(Kind::Dynamic, virtual_size)
    }

    /// A fixed disk: every block is present, in order; those not described hold zeros.
    #[must_use]
    pub fn fixed(virtual_size: u64) -> Self {
        Self::new(Kind::Fixed, virtual_size)
    }

    /// A differencing disk linked to the parent that has this `DataWriteGuid`. Its locator names
    /// `.\parent.vhdx` unless [`parent_path`](Self::parent_path) says otherwise.
    #[must_use]
    pub fn differencing(virtual_size: u64, parent_data_write_guid: Guid) -> Self {
        Self::new(Kind::Differencing(parent_data_write_guid), virtual_size)
    }

    /// Sets the bytes of a payload block.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Sets the logical and physical sector size.
    #[must_use]
    pub fn sectors(mut self, logical: u32, physical: u32) -> Self {
        (self.logical_sector, self.physical_sector) = (logical, physical);
        self
    }

    /// Sets the bytes of the log. Zero: the header says there is none.
    #[must_use]
    pub fn log_length(mut self, bytes: u32) -> Self {
        self.log_length = bytes;
        self
    }

    /// Forces the bytes of the BAT region, which otherwise fits its entries. Those it has no room
    /// for are not written.
    #[must_use]
    pub fn bat_length(mut self, bytes: u32) -> Self {
        self.bat_length = Some(bytes);
        self
    }

    /// Sets the creator in the file identifier.
    #[must_use]
    pub fn creator(mut self, creator: &str) -> Self {
        self.creator = creator.into();
        self
    }

    /// Sets what all GUIDs of the image are derived from.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the sequence number of header 1; header 2, the current one, has the next.
    #[must_use]
    pub fn header_sequence(mut self, first: u64) -> Self {
        self.header_sequence = first;
        self
    }

    /// Makes both headers identical, same sequence number included, as Disk2vhd does.
    #[must_use]
    pub fn twin_headers(mut self) -> Self {
        self.twin_headers = true;
        self
    }

    /// Sets the identity that children link to.
    #[must_use]
    pub fn with_data_write_guid(mut self, guid: Guid) -> Self {
        self.data_write_guid = Some(guid);
        self
    }

    /// Sets the virtual disk ID; a child has its parent's.
    #[must_use]
    pub fn with_disk_id(mut self, guid: Guid) -> Self {
        self.disk_id = Some(guid);
        self
    }

    /// Describes a payload block. Blocks that need space get it in the order of these calls,
    /// behind the BAT (in a fixed disk: where the block belongs). Of two descriptions of a block
    /// the later one goes into the BAT.
    #[must_use]
    pub fn block(self, index: u64, contents: Contents) -> Self {
        self.push(index, None, contents, None)
    }

    /// Describes a payload block that lies at a file offset of so many MiB, whatever else is
    /// there. Blocks described later go behind it.
    #[must_use]
    pub fn place_block(self, index: u64, file_offset_mib: u64, contents: Contents) -> Self {
        self.push(index, Some(file_offset_mib), contents, None)
    }

    /// Describes a partially present block of a differencing disk: `data` from the block's start
    /// (zeros after it), of which the sectors in `present` count, numbered from the block's start.
    /// The chunk's sector bitmap block is put in front of the first such block of the chunk.
    #[must_use]
    pub fn partial_block(
        self,
        index: u64,
        present: impl IntoIterator<Item = u64>,
        data: Vec<u8>,
    ) -> Self {
        self.push(index, None, Contents::Data(data), Some(present.into_iter().collect()))
    }

    fn push(
        mut self,
        index: u64,
        place_mib: Option<u64>,
        contents: Contents,
        present: Option<Vec<u64>>,
    ) -> Self {
        self.blocks.push(Block { index, place_mib, contents, present });
        self
    }

    /// Puts a raw value into the BAT, over whatever the blocks put there.
    #[must_use]
    pub fn bat_entry(mut self, index: u64, raw: u64) -> Self {
        self.raw_bat.push((index, raw));
        self
    }

    /// Replaces the entries of both region tables; the regions themselves stay where they are.
    #[must_use]
    pub fn regions(mut self, entries: Vec<RegionTableEntry>) -> Self {
        self.regions = Some(entries);
        self
    }

    /// Adds a region behind the BAT, filled with zeros.
    #[must_use]
    pub fn extra_region(mut self, guid: Guid, required: bool, length: u32) -> Self {
        self.extra_regions.push(ExtraRegion { guid, required, length });
        self
    }

    /// Sets whether the BAT and metadata regions are marked required; QEMU does not mark them.
    #[must_use]
    pub fn required_flag(mut self, required: bool) -> Self {
        self.required_flag = required;
        self
    }

    /// Adds a metadata item behind the usual ones.
    #[must_use]
    pub fn metadata_item(mut self, item: Item) -> Self {
        self.extra_items.push(item);
        self
    }

    /// Replaces the usual metadata items, the parent locator included.
    #[must_use]
    pub fn replace_metadata(mut self, items: Vec<Item>) -> Self {
        self.items = Some(items);
        self
    }

    /// Adds a pair to the parent locator, behind the `parent_linkage` that is always first. The
    /// key `parent_linkage` itself replaces that one.
    #[must_use]
    pub fn parent_path(mut self, key: &str, value: &str) -> Self {
        self.locator.push((key.into(), value.into()));
        self
    }

    /// Ends the file with the virtual disk's last byte if its last block is the last thing in the
    /// file, as QEMU does with fixed disks.
    #[must_use]
    pub fn cut_last_block(mut self, cut: bool) -> Self {
        self.cut_last_block = cut;
        self
    }

    /// Lets the file end so many zero bytes later.
    #[must_use]
    pub fn extra_tail(mut self, bytes: u64) -> Self {
        self.extra_tail = bytes;
        self
    }

    /// Forces the length of the file: cuts it off, or extends it with zeros.
    #[must_use]
    pub fn file_length(mut self, bytes: u64) -> Self {
        self.file_length = Some(bytes);
        self
    }

    /// Sets the header's `LogGuid`: the log needs replay. Log entries added without a GUID of
    /// their own carry it. [`session`](Self::session) has GUIDs to use.
    #[must_use]
    pub fn dirty(mut self, log_guid: Guid) -> Self {
        self.log_guid = log_guid;
        self
    }

    /// Adds a log entry, behind the one added before or where it says itself. Does not make the
    /// image dirty.
    #[must_use]
    pub fn log_entry(mut self, entry: LogEntry) -> Self {
        self.log.push(LogItem::Entry(Box::new(entry)));
        self
    }

    /// Puts raw bytes into the log at a sector, over the entries added so far.
    #[must_use]
    pub fn raw_log(mut self, sector: u64, bytes: &[u8]) -> Self {
        self.log.push(LogItem::Raw { sector, bytes: bytes.to_vec() });
        self
    }
}
