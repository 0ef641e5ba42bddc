//! What people do with images: one file, one task each, on top of everything else.

pub mod check;
pub mod compare;
pub mod disk;
pub mod export;
pub mod inspect;
pub mod timeline;

mod progress;

pub use progress::Progress;
