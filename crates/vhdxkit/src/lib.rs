//! Open, recover, read and write VHDX (Hyper-V) disk images, crashed ones included.
//!
//! A VHDX file keeps a log of changes to its own tables. After a crash that log has to be replayed
//! before anything else in the file means what it says; many readers refuse such a file or, worse,
//! hand out stale zeros. This library replays in memory when it only reads, so that evidence and
//! backups stay untouched, and in place when asked to.
//!
//! ```
//! let image = vhdxkit::Image::open("../../testdata/crashed.vhdx")?;
//! let mut sector = [0; 512];
//! image.read_at(0, &mut sector)?;
//! # Ok::<(), vhdxkit::Error>(())
//! ```
//!
//! # Where to start
//! * [`Image`]: open a disk, [`read_at`](Image::read_at), [`extents`](Image::extents),
//!   [`cursor`](Image::cursor) for [`std::io::Read`].
//! * [`CreateOptions`] makes one; opened with [`OpenOptions::write`] it takes
//!   [`write_at`](Image::write_at), [`write_zeroes`](Image::write_zeroes),
//!   [`discard`](Image::discard), [`flush`](Image::flush), [`close`](Image::close) and
//!   [`resize`](Image::resize).
//! * [`ops`]: whole tasks: check, compare, copies to raw and to VHDX, the log's timeline.
//! * [`log`]: the metadata log alone: its entries, the active sequence, replay in place.
//! * [`vhd`]: VHD, version 1 of the format: read, written, made, chains included.
//! * [`storage`]: what an image lies on; bring your own medium through [`storage::Storage`].
//! * [`mod@format`]: the structures on disk, for those who take files apart.
//!
//! # How it is built
//! Floors, each using only those below it: `format` (bytes) · `storage` (media) · `view` (checked
//! values) · `log` · `map` (blocks to file offsets) · `image` · `chain` (parents) · `ops`. All calls take `&self`;
//! an open image is [`Send`] and [`Sync`], and neither reads nor writes to blocks that have a place wait
//! for each other.
//!
//! # Features
//! `qcow2` (off): read and write qcow2 images, through the crate `imago`. Everything else is always there: the
//! library is small and synchronous. It compiles for Linux, Windows
//! and macOS; QEMU's byte-range locks and sparse-file queries are used where the system has them.
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

pub mod chain;
pub mod defect;
mod error;
pub mod findings;
pub mod format;
mod image;
pub mod log;
mod map;
pub mod ops;
#[cfg(feature = "qcow2")]
pub mod qcow2;
pub mod storage;
pub mod vhd;
pub mod view;

pub use chain::{OpenOptions, ParentPolicy};
pub use error::{Error, ErrorKind, Holder, Looked, ParentProblem, Result};
pub use image::{
    CreateOptions, Cursor, Extent, ExtentState, Extents, Image, PendingReplay, ResizeReport, Shrink,
};
