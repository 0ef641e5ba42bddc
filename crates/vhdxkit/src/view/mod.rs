//! Checked values: what the bytes of [`format`](crate::format) mean once every rule about them has
//! been applied.
//!
//! A value of a type in here has been judged. [`headers`] may be read from any file; everything
//! else lies behind the log and must be read from replayed storage only.

pub mod geometry;
pub mod headers;
pub mod locator;
pub mod metadata;
pub mod regions;
