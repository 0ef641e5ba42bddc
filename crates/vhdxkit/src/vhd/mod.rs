//! VHD, version 1 of the format: the disks of Virtual PC, Azure and old Hyper-V.
//!
//! A footer at the end of the file tells what it is. A fixed disk is its bytes and that footer. A dynamic
//! disk has a copy of the footer at its head, a header, a BAT and blocks, each behind a bitmap with one bit
//! for each of its sectors. A differencing disk is a dynamic one that names a parent: what its bitmaps do
//! not claim is the parent's.
//!
//! `format` has the bytes, `open` judges them, `locator` reads and writes where a parent lies, `read` and
//! `write` are the guest's accesses, `create` lays out new files.
//!
//! # How large a disk is
//! `Current Size` of the footer. Virtual PC, and QEMU when it signs as `qemu`, mean the geometry instead,
//! which cannot express every size; for files with these creators we follow them, as QEMU does, unless the
//! geometry is the largest there is. What we write says the exact size to every reader: where the geometry
//! cannot, it is the largest one, as `qemu-img -o force_size` does it.
//!
//! # Bits that are zero
//! In a differencing disk such a sector is the parent's. In a dynamic disk it was never written: it reads as
//! zeros.

mod create;
pub mod format;
mod locator;
mod open;
mod read;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::format::Guid;
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::DiskType;
use crate::view::locator::ParentLocator;
use crate::{Error, Result};

pub use create::VhdOptions;
pub use read::VhdBlocks;

pub(crate) use open::{has_footer, open_layer};
pub(crate) use read::Place;

use format::Footer;

/// An open VHD, over its parent if it has one.
pub struct Vhd {
    file: Arc<dyn Storage>,
    path: Option<PathBuf>,
    footer: Footer,
    disk_type: DiskType,
    size: u64,
    table: Option<Table>,
    link: Option<ParentLink>,
    parent: Option<Box<Vhd>>,
    remarks: Vec<String>,
    /// Where the next block goes; there when the disk is open for writing.
    writer: Option<Mutex<write::Writer>>,
}

/// The BAT and what its blocks look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Where the BAT lies.
    pub(crate) offset: u64,
    /// Blocks of the disk; the BAT may have more entries.
    pub(crate) blocks: u64,
    /// Entries of the BAT.
    pub(crate) entries: u64,
    /// Bytes of a block.
    pub(crate) block_size: u64,
    /// Bytes of the bitmap in front of a block, whole sectors.
    pub(crate) bitmap_bytes: u64,
    /// Where the dynamic disk header lies.
    pub(crate) header: u64,
}

impl Table {
    /// Bytes of the BAT in whole sectors.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.saturating_mul(4).next_multiple_of(format::SECTOR)
    }

    /// Bytes of a block and its bitmap.
    pub(crate) fn stride(&self) -> u64 {
        self.bitmap_bytes.saturating_add(self.block_size)
    }

    pub(crate) fn block_of(&self, at: u64) -> u64 {
        at.checked_div(self.block_size).unwrap_or_default()
    }

    pub(crate) fn block_start(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size)
    }
}

/// Who a differencing disk's parent is, and where it was last seen. Nothing here has been looked at on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's unique id.
    pub unique_id: Guid,
    /// When the parent was last changed, in seconds since 2000. Copies of a file change it, so nothing is
    /// judged by it.
    pub time_stamp: u32,
    /// The parent's file name.
    pub name: String,
    /// The paths, under the keys that a VHDX has for them.
    pub(crate) locator: ParentLocator,
    /// A path for a Mac, which is not followed.
    pub mac_url: Option<String>,
    /// Where the last of the paths ends in the file.
    pub(crate) end: u64,
}

impl ParentLink {
    /// The path from the child's folder (`W2ru`).
    #[must_use]
    pub fn relative_path(&self) -> Option<&str> {
        self.locator.get("relative_path")
    }

    /// The absolute path on Windows (`W2ku`).
    #[must_use]
    pub fn absolute_path(&self) -> Option<&str> {
        self.locator.get("absolute_win32_path")
    }
}

impl Vhd {
    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// The storage cannot tell.
    pub fn file_size(&self) -> Result<u64> {
        self.file.length()
    }

    /// Fixed, dynamic or differencing.
    #[must_use]
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// Bytes of a block; none in a fixed disk.
    #[must_use]
    pub fn block_size(&self) -> Option<u64> {
        self.table.map(|table| table.block_size)
    }

    /// The footer.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The identity that children name.
    #[must_use]
    pub fn unique_id(&self) -> Guid {
        format::guid_of(self.footer.unique_id)
    }

    /// Who the parent is, of a differencing disk.
    #[must_use]
    pub fn parent_link(&self) -> Option<&ParentLink> {
        self.link.as_ref()
    }

    /// The parent, when it is open.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.parent.as_deref()
    }

    /// This disk and those below it.
    pub fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |layer| layer.parent())
    }

    /// Where the file lies, if it was opened by its path.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is wrong with the file and did not keep it from being opened, in words.
    #[must_use]
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    pub(crate) fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    pub(crate) fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_path_buf());
        self
    }

    pub(crate) fn over(mut self, parent: Self) -> Self {
        self.parent = Some(Box::new(parent));
        self
    }

    fn parent_needed(&self, what: &'static str) -> Error {
        Error::vhd_parent_needed(what, self.link.as_ref().map(|link| link.unique_id))
    }

    fn check_range(&self, offset: u64, length: usize) -> Result<()> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        match end {
            Some(end) if end <= self.size => Ok(()),
            end => Err(Error::out_of_range(offset..end.unwrap_or(u64::MAX), self.size)),
        }
    }
}
