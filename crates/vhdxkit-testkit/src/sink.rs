//! Where a built image goes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// Something bytes can be put into at any offset; what was never put reads as zeros.
///
/// Panics when it cannot take the bytes: this is a tool for tests.
pub trait Sink {
    /// Stores `bytes` at `offset`, growing as needed.
    fn put(&mut self, offset: u64, bytes: &[u8]);
    /// Makes it exactly `len` bytes long.
    fn set_len(&mut self, len: u64);
}

impl Sink for Vec<u8> {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).expect("the offset fits memory");
        let end = start + bytes.len();
        if self.len() < end {
            self.resize(end, 0);
        }
        self[start..end].copy_from_slice(bytes);
    }

    fn set_len(&mut self, len: u64) {
        self.resize(usize::try_from(len).expect("the image fits memory"), 0);
    }
}

impl Sink for File {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.seek(SeekFrom::Start(offset)).expect("seeking in the image file");
        self.write_all(bytes).expect("writing the image file");
    }

    fn set_len(&mut self, len: u64) {
        File::set_len(self, len).expect("sizing the image file");
    }
}
