//! A disk as files in a folder, by FUSE: `disk.raw`, and `partition-N.raw` for each partition.
//!
//! Whatever takes a raw disk takes these files: a loop device and through it every file system of the
//! kernel, `ntfs-3g`, `fsck`, `dd`, `cp`. The way of a request is short: the kernel hands it to one of a few
//! threads, which does it on an [`Export`] and answers. Nothing is kept here between two requests, so that
//! there is nothing that an `fsync` or an unmount could forget.
//!
//! **Several files, one disk.** A byte of `partition-1.raw` is a byte of `disk.raw` too. The kernel keeps a page
//! cache for each file and knows nothing of that; so a writable mount has none (direct I/O), and all files
//! show every write at once. A loop device caches above us, so a mounted file system loses nothing by it. A
//! shared mapping of a file would be such a cache again: a page of it that one sector was changed in is written
//! back whole, over what was written and synced through another file meanwhile. So there is none on a writable
//! mount (`mmap` with MAP_SHARED fails with ENODEV; MAP_PRIVATE is a copy, and works). A read-only mount cannot
//! go stale, and its pages are kept, mapped or not.
//!
//! **Durability.** A write is answered when the image has it, an `fsync` when the image has committed it:
//! what loop devices ask for as a barrier, and a guest's file system relies on. Closing a file makes nothing
//! durable, as on any other file system; the unmount does. A `sync` of everything does not reach us (`tidy.rs`
//! tells why), and what was written is committed within about five seconds anyway.
//!
//! **Space.** A punched hole has to read as zeros afterwards, says POSIX and relies the loop driver on, which
//! sends both discards and zeros that way. A VHDX promises that for whole blocks that are given back; parts
//! of blocks are written with zeros. So `fstrim` on a loop-mounted file system shrinks what the image uses, and
//! does so soon even if nobody syncs.
//!
//! **Neither passthrough nor splice.** The kernel can read a file in our place (passthrough), but only at the
//! same offsets, which a VHDX never has: its data begins behind its tables, block by block in the order of
//! their first writing. Splicing pages from the image into the answer saves one copy, but what it would copy
//! is in the page cache under an image that others may write through us: a page could change after it was
//! checked, and holes, overlaid ranges and parents would need the other way anyway.

mod errno;
mod filesystem;
mod mount;
mod mounts;
mod tidy;

use std::ops::Range;
use std::sync::Arc;

use vhdxkit::ops::partitions::Partition;

use crate::{Disk, Export};

pub use mount::{Mount, MountOptions, abandon, server_of, unmount};
pub use mounts::{MountPoint, Standing, User, mounts, standing, users_of};

/// The type of our mounts in the system's table of mounts.
pub const TYPE: &str = "fuse.vhdx";
/// The type of those whose image stays as it is.
pub const SNAPSHOT_TYPE: &str = "fuse.vhdx-snapshot";

/// A file of a mount.
#[derive(Debug, Clone)]
pub struct ServedFile {
    /// Its name in the folder.
    pub name: String,
    /// What it holds.
    pub export: Export,
}

impl ServedFile {
    /// `disk.raw`: the whole disk.
    #[must_use]
    pub fn disk(disk: &Arc<Disk>) -> Self {
        Self { name: "disk.raw".to_owned(), export: Export::whole(Arc::clone(disk)) }
    }

    /// `partition-N.raw`.
    #[must_use]
    pub fn partition(disk: &Arc<Disk>, partition: &Partition) -> Self {
        let range: Range<u64> = partition.range.clone();
        Self {
            name: format!("partition-{}.raw", partition.number),
            export: Export::part(Arc::clone(disk), range),
        }
    }
}
