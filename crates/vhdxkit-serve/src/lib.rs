//! Hand a VHDX disk image to those who use disks: virtual machines, the kernel, a person who wants one
//! file out of it.
//!
//! * [`Disk`]: an open image that is being served, by whomever and however often. [`Disk::close`] ends that.
//! * [`Export`]: the whole disk, or one of its partitions, as a client sees it. Both servers know nothing
//!   else of an image than this.
//! * [`nbd`]: a server for machines and tools.
//! * [`fuse`]: the disk and its partitions as files in a folder.
//!
//! The library below is synchronous and so are the servers: a thread for each client, and a few that wait
//! for devices in their place.

mod disk;
mod export;
pub mod fuse;
pub mod nbd;
mod trouble;

pub use disk::Disk;
pub use export::{Export, Run};
pub use trouble::Tell;
