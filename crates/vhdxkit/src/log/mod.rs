//! The metadata log.
mod encode;
pub use encode::EntryBuilder;
