//! A whole guest on a disk that `vhdx serve` hands out, killed again and again.
//!
//! The guest is a small Linux under QEMU's software emulation (`initramfs` puts it together from the
//! `parts` that `scripts/install-guest` fetches). It boots, lets ext4 recover its journal, tells the
//! checksum of every file, runs `e2fsck`, and then does what the host tells it over its console: files are
//! written, replaced, overwritten in place, deleted, each with fsync, some without, and free space is
//! trimmed. The host remembers what was asked for and what was answered (`memory`). At a random moment it
//! kills ([`run`]) the machine and the server (`console`), and the next boot must show every file that
//! was answered for.

mod console;
mod initramfs;
mod memory;
mod parts;
mod report;
mod run;

pub use report::Report;
pub use run::{Plan, run};

/// Bytes of the disk.
const DISK: u64 = 192 << 20;
/// Bytes of a page of the blob.
const PAGE: usize = 4096;
/// Pages of the blob: every file of the guest is made of some of them.
const PAGES: u64 = 1024;
