//! What a worker was about to do, and what was answered.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// A unit of the disk is about to get this version; zero for zeros.
    Put { offset: u64, version: u64 },
    /// A whole block is about to become zeros.
    Drop { block: u64 },
    /// A flush was answered.
    Flushed,
}

const RECORD: usize = 24;

impl Note {
    fn encode(self) -> [u8; RECORD] {
        let (kind, a, b) = match self {
            Self::Put { offset, version } => (1u64, offset, version),
            Self::Drop { block } => (2, block, 0),
            Self::Flushed => (3, 0, 0),
        };
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&a.to_le_bytes());
        bytes[16..].copy_from_slice(&b.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a word"));
        Some(match word(0) {
            1 => Self::Put { offset: word(8), version: word(16) },
            2 => Self::Drop { block: word(8) },
            3 => Self::Flushed,
            _ => return None,
        })
    }
}

/// Writes one thread's journal.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self)
    }

    pub(crate) fn note(&mut self, note: Note) -> io::Result<()> {
        self.0.write_all(&note.encode())
    }
}

/// Everything that was noted; a note cut off by the kill was not followed by anything.
pub(crate) fn read(path: &Path) -> Vec<Note> {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.chunks_exact(RECORD).filter_map(Note::decode).collect()
}
