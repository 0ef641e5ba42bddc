//! What goes wrong, on every floor of the crate.

use std::io;

/// Why nothing is known of a file system's space. All of it counts as in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The disk cannot be read.
    #[error("cannot read the disk: {0}")]
    Io(#[source] io::Error),
    /// It contradicts itself, or the place where it lies.
    #[error("{0}")]
    Damaged(String),
    /// It is whole, as far as one can see, but nobody here knows its free space: another kind of contents,
    /// or a feature that is not understood.
    #[error("{0}")]
    NotKnown(String),
}

impl Trouble {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    pub(crate) fn not_known(what: impl Into<String>) -> Self {
        Self::NotKnown(what.into())
    }
}
