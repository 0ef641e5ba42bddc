//! Making a new, empty disk.

use std::path::{Path, PathBuf};

use zerocopy::little_endian::U32;

use crate::format::bat::{PayloadState, RawEntry};
use crate::format::metadata::{
    FileParameters, HAS_PARENT, IS_REQUIRED, Item, LEAVE_BLOCK_ALLOCATED, LOGICAL_SECTOR_SIZE,
    PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use crate::format::{Guid, GuidSource};
use crate::storage::{FileStorage, Storage};
use crate::view::geometry::{DiskType, Geometry};
use crate::view::locator::{ParentLocator, ParentPaths};
use crate::{Error, Result};

use super::layout::{Identity, Layout};
use super::{Image, paths_from};

/// What a new disk is to be.
///
/// ```
/// use vhdxkit::{CreateOptions, OpenOptions};
/// use vhdxkit::storage::MemoryStorage;
/// use std::sync::Arc;
///
/// let file = Arc::new(MemoryStorage::empty());
/// CreateOptions::new(10 << 30).block_size(1 << 20).create_storage(&*file)?;
/// let disk = OpenOptions::new().write(true).open_storage(file)?;
/// disk.write_at(4096, &[7; 512])?;
/// disk.close()?;
/// # Ok::<(), vhdxkit::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CreateOptions {
    virtual_size: u64,
    fixed: bool,
    preallocate: bool,
    block_size: u32,
    logical_sector: u32,
    physical_sector: u32,
    log_size: u32,
    disk_id: Option<Guid>,
    seed: Option<u64>,
    parent: Option<Parent>,
    /// The DataWriteGuid of contents that are known by it already.
    data_write_guid: Option<Guid>,
    /// Of a disk without a parent: metadata besides the mandatory items.
    items: Vec<Item>,
}

/// Of whom the new disk is to be a child.
#[derive(Debug, Clone)]
struct Parent {
    data_write_guid: Guid,
    /// What belongs to the virtual disk, besides what every disk has.
    items: Vec<Item>,
    /// Its file, if it lies in one.
    file: Option<PathBuf>,
}

impl CreateOptions {
    /// A dynamic disk of so many bytes (a multiple of the logical sector size, at most 64 TiB) with
    /// what Windows takes by default: blocks of 32 MiB, sectors of 512 bytes on a medium of 4096, a
    /// log of 1 MiB.
    #[must_use]
    pub fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            fixed: false,
            preallocate: false,
            block_size: 32 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            log_size: 1 << 20,
            disk_id: None,
            seed: None,
            parent: None,
            data_write_guid: None,
            items: Vec::new(),
        }
    }

    /// A child of a disk: it shows what the parent shows until it is written. The parent must not change
    /// from now on, or the child does not know it any more. Size, sectors, identity and other metadata of
    /// the virtual disk are the parent's; blocks have 2 MiB, as Windows has it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let (base, checkpoint) = (dir.path().join("base.vhdx"), dir.path().join("child.avhdx"));
    /// use vhdxkit::{CreateOptions, Image, OpenOptions, ParentPolicy};
    ///
    /// CreateOptions::new(1 << 30).create(&base)?;
    /// CreateOptions::child_of(&Image::open(&base)?)?.create(&checkpoint)?;
    /// let disk = OpenOptions::new().write(true).parents(ParentPolicy::Follow).open(&checkpoint)?;
    /// disk.write_at(0, &[7; 512])?;
    /// disk.close()?;
    /// # Ok::<(), vhdxkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// The parent's metadata cannot be read.
    pub fn child_of(parent: &Image) -> Result<Self> {
        let geometry = parent.geometry();
        let known = [VIRTUAL_DISK_SIZE, VIRTUAL_DISK_ID, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE];
        let mut items = Vec::new();
        for item in parent.metadata().items() {
            if item.is_virtual_disk() && (item.is_user() || !known.contains(&item.id)) {
                items.push(parent.item(item)?);
            }
        }
        let parent = Parent {
            data_write_guid: parent.headers().current().data_write_guid,
            items,
            file: parent.path().map(Path::to_path_buf),
        };
        Ok(Self {
            block_size: 2 << 20,
            logical_sector: geometry.logical_sector_size(),
            physical_sector: geometry.physical_sector_size(),
            disk_id: Some(geometry.disk_id()),
            parent: Some(parent),
            ..Self::new(geometry.virtual_size())
        })
    }

    /// The same for a disk of another size.
    #[must_use]
    pub fn virtual_size_of(mut self, bytes: u64) -> Self {
        self.virtual_size = bytes;
        self
    }

    /// A fixed disk: every block has its place from the start.
    #[must_use]
    pub fn fixed(mut self, yes: bool) -> Self {
        self.fixed = yes;
        self
    }

    /// Reserves the file's space where the medium can, so that writing cannot run out of it and the
    /// file is not sparse.
    #[must_use]
    pub fn preallocate(mut self, yes: bool) -> Self {
        self.preallocate = yes;
        self
    }

    /// Bytes of a payload block: a power of two from 1 MiB to 256 MiB. Small blocks suit guests that
    /// scatter their writes (Linux file systems: 1 MiB).
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// The guest's sector size, 512 or 4096.
    #[must_use]
    pub fn logical_sector_size(mut self, bytes: u32) -> Self {
        self.logical_sector = bytes;
        self
    }

    /// The sector size that the guest is told the medium has, 512 or 4096.
    #[must_use]
    pub fn physical_sector_size(mut self, bytes: u32) -> Self {
        self.physical_sector = bytes;
        self
    }

    /// Bytes of the log, a multiple of 1 MiB up to 1 GiB. More than 1 MiB saves a checkpoint now and
    /// then, and makes replay after a crash longer.
    #[must_use]
    pub fn log_size(mut self, bytes: u32) -> Self {
        self.log_size = bytes;
        self
    }

    /// The identity that the guest sees; random without this.
    #[must_use]
    pub fn disk_id(mut self, id: Guid) -> Self {
        self.disk_id = Some(id);
        self
    }

    /// Takes every GUID from this seed, so that the same options make the same bytes.
    #[must_use]
    pub fn reproducible(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// For a copy of contents that are known by this DataWriteGuid.
    pub(crate) fn data_write_guid(mut self, guid: Guid) -> Self {
        self.data_write_guid = Some(guid);
        self
    }

    /// Metadata of a disk without a parent, besides the mandatory items.
    pub(crate) fn items(mut self, items: Vec<Item>) -> Self {
        self.items = items;
        self
    }

    /// Makes a file at `path`, where none may exist. When that fails no file is left.
    ///
    /// # Errors
    /// Options that the format does not allow; the file exists; writing fails.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        // Bad options must not make a file.
        self.layout().map_err(|e| e.in_file(path))?;
        FileStorage::make(path, |file| self.create_in(file, &self.paths(path)?))
    }

    /// Makes the image in an empty storage, and makes it durable. A child finds its parent beside it,
    /// under the name that the parent has now.
    ///
    /// # Errors
    /// As [`create`](Self::create). Until the last write the storage does not look like an image.
    pub fn create_storage(&self, target: &dyn Storage) -> Result<()> {
        let file = self.parent.as_ref().and_then(|parent| parent.file.as_deref());
        let name = file.and_then(Path::file_name).and_then(|name| name.to_str());
        let relative = Some(format!(".\\{}", name.unwrap_or("parent.vhdx")));
        self.create_in(target, &ParentPaths { relative, ..ParentPaths::default() })
    }

    /// [`create_storage`](Self::create_storage) for a storage that will be the file at `path`, which need
    /// not exist: from there a child finds its parent.
    ///
    /// # Errors
    /// As `create_storage`.
    pub fn create_storage_at(&self, target: &dyn Storage, path: &Path) -> Result<()> {
        self.create_in(target, &self.paths(path)?)
    }

    fn paths(&self, path: &Path) -> Result<ParentPaths> {
        match self.parent.as_ref().and_then(|parent| parent.file.as_deref()) {
            // A link of that name will be replaced, not followed.
            Some(parent) => paths_from(path.parent().unwrap_or(Path::new("")), parent),
            None => Ok(ParentPaths::default()),
        }
    }

    fn create_in(&self, target: &dyn Storage, paths: &ParentPaths) -> Result<()> {
        let layout = self.layout()?;
        Layout::require_empty(target)?;
        let blocks = if self.fixed { layout.geometry.blocks() } else { 0 };
        layout.set_length(target, blocks)?;
        if self.preallocate {
            Self::reserve(target, layout.place(blocks))?;
        }
        self.write_tables_with(&layout, target, &self.more_items(paths)?)?;
        let present =
            |block| RawEntry::new(PayloadState::FullyPresent.to_raw(), layout.place(block));
        layout.write_bat(target, (0..blocks).map(|block| (block, present(block))))?;
        layout.finish(target)
    }

    /// Reserves the first `length` bytes of a new file.
    pub(crate) fn reserve(target: &dyn Storage, length: u64) -> Result<()> {
        let reserved = target.allocate(0..length);
        reserved.map_err(|e| Error::io("cannot reserve space for the image", length, e))
    }

    /// [`Layout::write_tables`] with the identities that the options ask for.
    pub(crate) fn write_tables(&self, layout: &Layout, target: &dyn Storage) -> Result<()> {
        self.write_tables_with(layout, target, &self.items)
    }

    fn write_tables_with(
        &self,
        layout: &Layout,
        target: &dyn Storage,
        more_items: &[Item],
    ) -> Result<()> {
        let guids = GuidSource::from_seed(self.seed);
        let disk_id = self.disk_id.unwrap_or_else(|| guids.guid());
        match self.data_write_guid {
            Some(data_write) => {
                let identity = Identity { disk_id, file_write: guids.guid(), data_write };
                layout.write_tables_as(target, identity, more_items)
            }
            None => layout.write_tables(target, &guids, disk_id, more_items),
        }
    }

    /// What a child has besides the mandatory items.
    fn more_items(&self, paths: &ParentPaths) -> Result<Vec<Item>> {
        let Some(parent) = &self.parent else { return Ok(self.items.clone()) };
        let locator = ParentLocator::new(parent.data_write_guid, None, paths);
        let data = locator.to_bytes();
        let data = data.ok_or_else(|| Error::limit("the path to the parent is too long"))?;
        let locator = Item { id: PARENT_LOCATOR, flags: IS_REQUIRED, data };
        Ok(std::iter::once(locator).chain(parent.items.iter().cloned()).collect())
    }

    /// Bytes of the disk to be made.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(crate) fn is_preallocated(&self) -> bool {
        self.preallocate
    }

    /// Where everything will lie.
    pub(crate) fn layout(&self) -> Result<Layout> {
        let flags = match (&self.parent, self.fixed) {
            (Some(_), true) => {
                return Err(Error::invalid("a child of another disk cannot be fixed"));
            }
            (Some(_), false) => HAS_PARENT,
            (None, true) => LEAVE_BLOCK_ALLOCATED,
            (None, false) => 0,
        };
        let parameters =
            FileParameters { block_size: U32::new(self.block_size), flags: U32::new(flags) };
        let geometry = Geometry::for_new(
            parameters,
            self.virtual_size,
            self.logical_sector,
            self.physical_sector,
            self.disk_id.unwrap_or_default(),
        )?;
        debug_assert_eq!(geometry.disk_type() == DiskType::Fixed, self.fixed);
        Layout::new(geometry, self.log_size)
    }
}
