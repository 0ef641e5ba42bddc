//! qcow2 images, through the crate `imago`. Flat ones: no file is opened because an image names it.
//!
//! `imago` keeps its own idea of a medium, whose trait is unsafe to implement; so an image lies in a file here,
//! and in nothing else. Its header is looked at before `imago` sees it, for what it does not judge itself and for
//! errors in words.

mod cut;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use imago::file::File;
use imago::format::access::Mapping;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use crate::format::limits::MAX_VIRTUAL_SIZE;
use crate::storage::{FileStorage, Storage, StorageExt};
use crate::vhd::Place;
use crate::{Error, Result};

type Driver = imago::qcow2::Qcow2<File>;

/// Bytes of the L1 table that is read: what 64 TiB need with clusters of 64 KiB, and more than QEMU takes.
const MAX_L1_ENTRIES: u32 = 4 << 20;

/// An open qcow2 image.
pub struct Qcow2 {
    access: FormatAccess<File>,
    /// Has the locks.
    storage: Arc<dyn Storage>,
    header: Header,
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    version: u32,
    size: u64,
    cluster_size: u64,
    l1_table: u64,
    l1_entries: u32,
    /// Bytes of the file.
    refcount_table: Range<u64>,
}

impl Header {
    /// Entries of an L2 table.
    fn per_table(&self) -> u64 {
        self.cluster_size / 8
    }

    fn read(file: &dyn Storage) -> Result<Self> {
        let mut bytes = [0; 104];
        file.read_zero_filled(0, &mut bytes)?;
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
            u32::from_be_bytes(word.copied().unwrap_or_default())
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at.saturating_add(4)));
        if !bytes.starts_with(b"QFI\xfb") {
            return Err(Error::wrong_format(
                "it is no qcow2 image: it does not start with its signature",
            ));
        }
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return Err(Error::unsupported(format!("a qcow2 image of version {version}")));
        }
        let wrong = |what: String| Err(Error::malformed("qcow2 header", 0, what));
        let bits = word(20);
        if !(9..=21).contains(&bits) {
            return wrong(format!("clusters of 2^{bits} bytes"));
        }
        let cluster_size = 1u64.checked_shl(bits).unwrap_or_default();
        if word(32) != 0 {
            return Err(Error::unsupported("an encrypted qcow2 image"));
        }
        if long(8) != 0 {
            return Err(Error::unsupported(
                "a qcow2 image over a backing file; no file is opened because an image names it (`qemu-img convert` makes a flat image)",
            ));
        }
        // Version 2 has no features.
        if version == 3 {
            refuse_features(long(72))?;
        }
        let (size, entries, table) = (long(24), word(36), long(40));
        if size > MAX_VIRTUAL_SIZE {
            return wrong(format!("a disk of {size} bytes, more than this version reads"));
        }
        let refcounts = u64::from(word(56)).saturating_mul(cluster_size);
        let header = Self {
            version,
            size,
            cluster_size,
            l1_table: table,
            l1_entries: entries,
            refcount_table: long(48)..long(48).saturating_add(refcounts),
        };
        let covered = cluster_size.saturating_mul(header.per_table());
        let needed = size.div_ceil(covered.max(1));
        let length = file.length()?;
        if entries > MAX_L1_ENTRIES || u64::from(entries) < needed {
            return wrong(format!("an L1 table of {entries} entries, and {needed} are needed"));
        }
        let end = u64::from(entries).saturating_mul(8).checked_add(table);
        if end.is_none_or(|end| end > length) {
            return wrong(format!(
                "the L1 table at {table:#x} lies outside of the file, which ends at {length:#x}: was it cut off?"
            ));
        }
        Ok(header)
    }
}

/// Refuses images that need more than is known here, each with what makes an image of it that does not.
///
/// A dirty image has refcounts that may be wrong, and a corrupt one was taken out of service by QEMU: the first of
/// them could be read, but QEMU itself repairs it before it does.
fn refuse_features(incompatible: u64) -> Result<()> {
    let text = match incompatible {
        0 => return Ok(()),
        bits if bits & 2 != 0 => {
            "a qcow2 image that QEMU has marked corrupt (`qemu-img check -r all IMAGE` repairs it; copy it first)"
        }
        bits if bits & 1 != 0 => {
            "a qcow2 image that is dirty: what wrote it last did not close it (`qemu-img check -r all IMAGE` puts it in order; copy it first)"
        }
        bits if bits & 4 != 0 => "a qcow2 image with an external data file",
        bits if bits & 8 != 0 => {
            "a qcow2 image that is not compressed by zlib (`qemu-img convert -O qcow2 IMAGE NEW.qcow2` makes one that is read)"
        }
        bits if bits & 16 != 0 => {
            "a qcow2 image with extended L2 entries (`qemu-img convert -O qcow2 IMAGE NEW.qcow2` makes one without them)"
        }
        bits => {
            return Err(Error::unsupported(format!(
                "a qcow2 image with the features {bits:#x} (`qemu-img convert -O qcow2 IMAGE NEW.qcow2` makes one without them)"
            )));
        }
    };
    Err(Error::unsupported(text))
}

impl Qcow2 {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// It is no qcow2 image, a damaged one, one that was cut off, or one that is not supported: encrypted, over a backing file,
    /// with an external data file, dirty or marked corrupt, compressed otherwise than by zlib, with extended L2 entries.
    pub(crate) fn open(file: FileStorage) -> Result<Self> {
        let header = Header::read(&file)?;
        cut::refuse_cut(&file, &header)?;
        let failed = |e| malformed("cannot open the image", e);
        let medium = file.try_clone_file().and_then(File::try_from).map_err(failed)?;
        let mut driver = Driver::open_image(medium, false).map_err(failed)?;
        driver.set_backing(None);
        driver.set_data_file(None);
        Ok(Self { access: FormatAccess::new(driver), storage: Arc::new(file), header })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.header.size
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size
    }

    /// 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// The storage cannot tell.
    pub fn file_size(&self) -> Result<u64> {
        self.storage.length()
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// The range ends beyond the disk; the file cannot be read or is damaged.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = u64::try_from(buf.len()).ok().and_then(|length| offset.checked_add(length));
        if end.is_none_or(|end| end > self.header.size) {
            return Err(Error::out_of_range(offset..end.unwrap_or(u64::MAX), self.header.size));
        }
        self.access.read(buf, offset).map_err(|e| malformed("cannot read the image", e))
    }

    /// What the disk is at a byte of it, and where that ends.
    pub(crate) fn place(&self, at: u64) -> Result<(u64, Place)> {
        let left = self.header.size.saturating_sub(at);
        let (mapping, length) = self
            .access
            .get_mapping(at, left)
            .map_err(|e| malformed("cannot read the image's map", e))?;
        let place = match mapping {
            Mapping::Raw { offset, .. } => Place::Data { depth: 0, file_offset: Some(offset) },
            Mapping::Zero { .. } | Mapping::Eof { .. } => Place::Zero,
            _ => Place::Data { depth: 0, file_offset: None },
        };
        let length = if matches!(mapping, Mapping::Eof { .. }) { left } else { length.min(left) };
        Ok((at.saturating_add(length), place))
    }
}

/// An image that is being made.
pub(crate) struct NewQcow2(FormatAccess<File>);

impl NewQcow2 {
    /// Begins an image in an empty file.
    pub(crate) fn create(file: &FileStorage, size: u64, cluster_size: u32) -> Result<Self> {
        crate::image::Layout::require_empty(file)?;
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return Err(Error::invalid("a cluster has a power of two from 512 bytes to 2M"));
        }
        if size > MAX_VIRTUAL_SIZE {
            return Err(Error::limit("a disk of more than 64 TiB"));
        }
        let failed = |e| Error::io_whole("cannot make the image", e);
        let medium = file.try_clone_file().and_then(File::try_from).map_err(failed)?;
        let open = |medium| Ok(Driver::builder(medium).backing(None).write(true));
        let driver = Driver::create_builder(medium)
            .size(size)
            .cluster_size(usize::try_from(cluster_size).unwrap_or_default())
            .create_open(DenyImplicitOpenGate::default(), open)
            .map_err(failed)?;
        Ok(Self(FormatAccess::new(driver)))
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes, offset).map_err(|e| Error::io_whole("cannot write the copy", e))
    }

    /// Writes what is still kept in memory, and makes all of it durable.
    pub(crate) fn finish(self) -> Result<()> {
        let done = self.0.flush().and_then(|()| self.0.sync());
        done.map_err(|e| Error::io_whole("cannot make the copy durable", e))
    }
}

/// `imago` has one sort of error for a damaged file and a failing medium; the latter has a number.
fn malformed(action: &'static str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::io_whole(action, error),
        None => Error::damaged(format!("{action}: {error}")),
    }
}
