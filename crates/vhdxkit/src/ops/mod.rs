//! What people do with images: one file, one task each, on top of everything else.

pub mod check;
pub mod compact;
pub mod compare;
pub mod disk;
pub(crate) mod doubt;
pub mod export;
pub mod import;
#[cfg(feature = "qcow2")]
pub mod import_qcow2;
pub mod import_vhd;
pub mod inspect;
pub mod measure;
pub mod merge;
pub(crate) mod nameless;
pub mod partitions;
pub mod picture;
pub mod recover;
pub mod relink;
pub mod repair;
pub mod smallest;
pub mod timeline;

mod buffer;
mod progress;
mod writeback;
mod zeros;

pub use progress::Progress;
