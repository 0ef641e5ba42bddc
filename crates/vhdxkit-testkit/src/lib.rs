//! Builds VHDX images for tests: clean, crashed, hostile.
//!
//! An [`Image`] is described in builder style and written into anything that is a [`Sink`]: a
//! vector for small images, a sparse file for disks of 64 TiB. Equal descriptions give equal
//! bytes; GUIDs come from a seed. [`Image::layout`] tells where everything lies,
//! [`Image::expected_guest`] what a right reader gets out. Lying images come from raw BAT values,
//! raw regions and items, and from patching built bytes and making the checksums right again with
//! [`patch`].
//!
//! The crate takes structures and checksums from [`vhdxkit::format`], and nothing that computes
//! with them: BAT indices, log entries and replay are its own, so that each checks the other.
//!
//! [`samples`] holds the images of `testdata/`; `cargo run -p vhdxkit-testkit -- testdata` writes
//! them again.
//!
//! [`nbd`] is a client of the NBD protocol, for tests of servers.
//!
//! Panics are its error handling.

mod build;
mod expected;
pub mod faults;
mod image;
mod layout;
mod log;
#[cfg(unix)]
pub mod nbd;
pub mod patch;
mod plan;
pub mod random;
mod ring;
pub mod samples;
mod sections;
mod seed;
mod sink;

pub use image::{Contents, Image};
pub use layout::{Layout, Shape};
pub use log::{LogEntry, PlacedEntry};
pub use patch::{reseal_header, reseal_log_entry, reseal_region_table};
pub use seed::guid;
pub use sink::Sink;
