//! Making VHD files: what they will look like, and an empty one.
//!
//! Everything but the footers is written first and synced, then the footers: what was cut short is no VHD.

use std::path::Path;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::format::Guid;
use crate::image::parent_paths;
use crate::storage::{FileStorage, Storage};
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::format::{
    DEFAULT_BLOCK_SIZE, DynamicHeader, FOOTER_BYTES, FOOTER_COOKIE, Footer, HEADER_BYTES,
    HEADER_COOKIE, MAX_SIZE, SECTOR, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED, UNUSED, VERSION,
    geometry, guid_bytes, now, time_stamp,
};
use super::locator::NewLink;
use super::write::set_bits;
use super::{Table, Vhd};

/// Azure wants sizes that are multiples of this.
const MEBIBYTE: u64 = 1 << 20;
/// Blocks that can be made: those that Windows makes.
const BLOCK_SIZES: [u32; 3] = [512 << 10, 1 << 20, 2 << 20];
/// Who we are, in footers.
const CREATOR: [u8; 4] = *b"vkit";

/// A VHD to be made: dynamic, with blocks of 2 MiB and a new identity, unless told otherwise.
///
/// ```
/// use vhdxkit::storage::MemoryStorage;
/// use vhdxkit::vhd::VhdOptions;
///
/// let disk = MemoryStorage::empty();
/// VhdOptions::new(64 << 20).fixed(true).create_storage(&disk)?;
/// assert_eq!(disk.to_vec().len(), (64 << 20) + 512);
/// # Ok::<(), vhdxkit::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VhdOptions {
    size: u64,
    fixed: bool,
    preallocate: bool,
    block_size: u32,
    unique_id: Guid,
    parent: Option<NewLink>,
}

impl VhdOptions {
    /// For a disk of so many bytes: a multiple of 512, up to 2040 GiB. Azure takes fixed disks whose size is
    /// a multiple of 1 MiB.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            fixed: false,
            preallocate: false,
            block_size: DEFAULT_BLOCK_SIZE,
            unique_id: Guid::random(),
            parent: None,
        }
    }

    /// For a copy of a disk of so many bytes: rounded up to whole mebibytes when the copy is fixed, as Azure
    /// wants it, else to whole sectors.
    #[must_use]
    pub fn for_copy(size: u64, fixed: bool) -> Self {
        let unit = if fixed { MEBIBYTE } else { SECTOR };
        Self::new(size.checked_next_multiple_of(unit).unwrap_or(u64::MAX)).fixed(fixed)
    }

    /// For a child of this disk, which must have been opened by its path; the child is to lie at `child`.
    ///
    /// # Errors
    /// The parent's place is not known, or cannot be written in a VHD.
    pub fn child_of(parent: &Vhd, child: &Path) -> Result<Self> {
        let path = parent.path().ok_or_else(|| Error::invalid("the parent's path is not known"))?;
        let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        let link = NewLink {
            unique_id: parent.unique_id(),
            time_stamp: changed.map_or(0, time_stamp),
            name: name.to_owned(),
            paths: parent_paths(child, path)?,
        };
        Ok(Self { parent: Some(link), ..Self::new(parent.virtual_size()) })
    }

    /// A fixed disk: its bytes, and a footer.
    #[must_use]
    pub fn fixed(mut self, yes: bool) -> Self {
        self.fixed = yes;
        self
    }

    /// Reserves the space of the whole file.
    #[must_use]
    pub fn preallocate(mut self, yes: bool) -> Self {
        self.preallocate = yes;
        self
    }

    /// Bytes of a block: 512 KiB, 1 MiB or 2 MiB.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// The identity of the disk; random without this.
    #[must_use]
    pub fn unique_id(mut self, id: Guid) -> Self {
        self.unique_id = id;
        self
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Whether the disk will be fixed.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    pub(crate) fn is_preallocated(&self) -> bool {
        self.preallocate
    }

    /// Makes an empty disk in a new file. Nothing that exists is overwritten, and when it fails no file is left.
    ///
    /// # Errors
    /// As [`create_storage`](Self::create_storage); the file exists or cannot be made.
    pub fn create(&self, path: &Path) -> Result<()> {
        // Bad options must not make a file.
        self.plan().map_err(|e| e.in_file(path))?;
        FileStorage::make(path, |file| self.create_storage(file))
    }

    /// Makes an empty disk in an empty storage, and makes it durable.
    ///
    /// # Errors
    /// A size or block size that the format does not have; the storage is not empty or cannot be written.
    pub fn create_storage(&self, target: &dyn Storage) -> Result<()> {
        let plan = self.plan()?;
        plan.begin(target, 0)?;
        if self.preallocate {
            plan.reserve(target, 0)?;
        }
        plan.write_tables(target, std::iter::empty())?;
        plan.finish(target, 0)
    }

    /// What the file will look like.
    pub(crate) fn plan(&self) -> Result<Plan> {
        if self.size > MAX_SIZE {
            let text =
                format!("a VHD holds {MAX_SIZE} bytes at most, not {}: take a VHDX", self.size);
            return Err(Error::limit(text));
        }
        if !self.size.is_multiple_of(SECTOR) {
            return Err(Error::invalid("the size of a VHD must be a multiple of 512"));
        }
        if self.fixed {
            if self.parent.is_some() {
                return Err(Error::invalid("a child cannot be fixed"));
            }
            let footer = self.footer(TYPE_FIXED, u64::MAX);
            let size = self.size;
            return Ok(Plan {
                footer,
                header: None,
                locators: Vec::new(),
                table: None,
                first: size,
            });
        }
        if !BLOCK_SIZES.contains(&self.block_size) {
            return Err(Error::invalid("the blocks of a VHD have 512K, 1M or 2M"));
        }
        let disk_type = if self.parent.is_some() { TYPE_DIFFERENCING } else { TYPE_DYNAMIC };
        let block_size = u64::from(self.block_size);
        let blocks = self.size.div_ceil(block_size);
        let table = Table {
            offset: FOOTER_BYTES.saturating_add(HEADER_BYTES),
            blocks,
            entries: blocks,
            block_size,
            bitmap_bytes: (block_size / SECTOR / 8).next_multiple_of(SECTOR),
            header: FOOTER_BYTES,
        };
        let behind = table.offset.saturating_add(table.bytes());
        let mut header = DynamicHeader::empty();
        header.cookie = HEADER_COOKIE;
        header.data_offset = U64::new(u64::MAX);
        header.table_offset = U64::new(table.offset);
        header.header_version = U32::new(VERSION);
        header.max_table_entries = U32::new(u32::try_from(blocks).unwrap_or(u32::MAX));
        header.block_size = U32::new(self.block_size);
        let locators = match &self.parent {
            Some(link) => link.enter(&mut header, behind)?,
            None => Vec::new(),
        };
        let first = behind.saturating_add(u64::try_from(locators.len()).unwrap_or_default());
        let footer = self.footer(disk_type, FOOTER_BYTES);
        Ok(Plan { footer, header: Some(header.sealed()), locators, table: Some(table), first })
    }

    fn footer(&self, disk_type: u32, data_offset: u64) -> Footer {
        let sectors = self.size / SECTOR;
        let mut chs = geometry(sectors);
        let product =
            u64::from(chs.0).saturating_mul(u64::from(chs.1)).saturating_mul(u64::from(chs.2));
        if product != sectors {
            // Says to those who believe the geometry that it cannot tell: the head of the module has more.
            chs = (u16::MAX, 16, u8::MAX);
        }
        let mut footer = Footer::new_zeroed();
        footer.cookie = FOOTER_COOKIE;
        footer.features = U32::new(2);
        footer.file_format_version = U32::new(VERSION);
        footer.data_offset = U64::new(data_offset);
        footer.time_stamp = U32::new(now());
        footer.creator_application = CREATOR;
        footer.creator_version = U32::new(VERSION);
        footer.creator_host_os = *b"Wi2k";
        footer.original_size = U64::new(self.size);
        footer.current_size = U64::new(self.size);
        footer.cylinders = U16::new(chs.0);
        footer.heads = chs.1;
        footer.sectors_per_track = chs.2;
        footer.disk_type = U32::new(disk_type);
        footer.unique_id = guid_bytes(self.unique_id);
        footer.sealed()
    }
}

/// A file that is to be made: what stands where.
pub(crate) struct Plan {
    footer: Footer,
    header: Option<DynamicHeader>,
    locators: Vec<u8>,
    table: Option<Table>,
    /// Where the first block goes.
    first: u64,
}

impl Plan {
    /// The BAT; none in a fixed disk.
    pub(crate) fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.footer.current_size.get()
    }

    pub(crate) fn disk_type(&self) -> DiskType {
        match self.footer.disk_type.get() {
            TYPE_FIXED => DiskType::Fixed,
            TYPE_DIFFERENCING => DiskType::Differencing,
            _ => DiskType::Dynamic,
        }
    }

    /// Where the `number`-th stored block goes, its bitmap first.
    pub(crate) fn place(&self, number: u64) -> u64 {
        let stride = self.table.map_or(0, |table| table.stride());
        self.first.saturating_add(number.saturating_mul(stride))
    }

    /// Bytes of the file with so many blocks.
    pub(crate) fn file_size(&self, blocks: u64) -> u64 {
        self.place(blocks).saturating_add(FOOTER_BYTES)
    }

    /// Refuses a storage that holds something, and gives it its length. The footer's place stays zero.
    pub(crate) fn begin(&self, target: &dyn Storage, blocks: u64) -> Result<()> {
        crate::image::Layout::require_empty(target)?;
        self.resize(target, blocks)
    }

    pub(crate) fn resize(&self, target: &dyn Storage, blocks: u64) -> Result<()> {
        let length = self.file_size(blocks);
        target.set_len(length).map_err(|e| Error::io("cannot extend the file", length, e))
    }

    /// Reserves space for a file with so many blocks.
    pub(crate) fn reserve(&self, target: &dyn Storage, blocks: u64) -> Result<()> {
        crate::image::CreateOptions::reserve(target, self.file_size(blocks))
    }

    /// A bitmap that claims all of a block.
    pub(crate) fn full_bitmap(&self) -> Vec<u8> {
        let Some(table) = &self.table else { return Vec::new() };
        let mut map = vec![0; usize::try_from(table.bitmap_bytes).unwrap_or_default()];
        set_bits(&mut map, 0, table.block_size / SECTOR);
        map
    }

    /// Writes header, locators and BAT. Stored blocks come in the order of their places.
    pub(crate) fn write_tables(
        &self,
        target: &dyn Storage,
        stored: impl Iterator<Item = u64>,
    ) -> Result<()> {
        let (Some(table), Some(header)) = (&self.table, &self.header) else { return Ok(()) };
        let put = |at: u64, bytes: &[u8]| {
            target.write_at(at, bytes).map_err(|e| Error::io("cannot write the tables", at, e))
        };
        put(table.header, header.as_bytes())?;
        put(table.offset.saturating_add(table.bytes()), &self.locators)?;
        let mut stored = stored.peekable();
        let (mut number, mut block) = (0u64, 0u64);
        let entries = table.bytes() / 4;
        while block < entries {
            let now = entries.saturating_sub(block).min(1 << 14);
            let at = table.offset.saturating_add(block.saturating_mul(4));
            let mut bytes = Vec::new();
            for block in block..block.saturating_add(now) {
                let mut entry = UNUSED;
                if stored.next_if_eq(&block).is_some() {
                    let sector = self.place(number) / SECTOR;
                    entry =
                        u32::try_from(sector).ok().filter(|entry| *entry != UNUSED).ok_or_else(
                            || Error::limit("the file would be larger than a BAT can address"),
                        )?;
                    number = number.saturating_add(1);
                }
                bytes.extend_from_slice(&entry.to_be_bytes());
            }
            put(at, &bytes)?;
            block = block.saturating_add(now);
        }
        Ok(())
    }

    /// Makes everything durable, then what makes it a VHD: the footer at the end of so many blocks, and its
    /// copy.
    pub(crate) fn finish(&self, target: &dyn Storage, blocks: u64) -> Result<()> {
        let sync = || target.sync().map_err(|e| Error::io_whole("cannot make the disk durable", e));
        sync()?;
        let end = self.place(blocks);
        let places = [Some(end), self.table.map(|_| 0)];
        for at in places.into_iter().flatten() {
            let written = target.write_at(at, self.footer.as_bytes());
            written.map_err(|e| Error::io("cannot write the footer", at, e))?;
        }
        sync()
    }
}
