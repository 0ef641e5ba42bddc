//! What lies on a disk: its partitions, its file systems, and which bytes of those are free.
//!
//! Everything here is a guest's word. Whoever believes it gives space away, so it is believed only as far
//! as it can be checked: a file system that contradicts itself is [damaged](Trouble::Damaged), and nothing
//! of it is free; one that was not unmounted cleanly says so ([`Survey::unclean`]), since what it has
//! promised may still wait in a journal or in a sleeping guest's memory.
//!
//! This crate does no I/O of its own and writes nothing: the caller brings a [`Disk`]. It reads metadata
//! only, a bounded amount of it at a time.
//!
//! * [`partitions`]: MBR with logical partitions, GPT with its second copy.
//! * [`recognise`]: which file system begins at a place, by its first bytes.
//! * [`survey`](fn@survey): which bytes of a file system are free, and whether it says so cleanly.
//! * [`volumes`]: all of that for a whole disk, and who is believed.
//!
//! One module for each family of file systems. They know nothing of each other, nor of those above: `bytes.rs` is
//! how they read, `free.rs` what they all fill, `space.rs` and `trouble.rs` what they answer.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::arithmetic_side_effects
    )
)]

mod btrfs;
mod bytes;
mod disk;
mod exfat;
mod ext;
mod fat;
mod free;
mod members;
mod ntfs;
mod own;
mod partitions;
mod recognise;
mod space;
mod survey;
mod swap;
mod trouble;
mod volumes;
mod xfs;

pub use disk::{Disk, Window};
pub use free::{FreeMap, FreeMapBuilder};
pub use partitions::{Partition, PartitionType, end_of_last, first_gpt_is_intact, partitions};
pub use recognise::{FileSystem, recognise};
pub use space::Survey;
pub use survey::survey;
pub use trouble::Trouble;
pub use volumes::{Volume, volumes};
