//! From a fuzzer's bytes to an image, and what must hold for any image.
//!
//! `base` builds small valid images, `input` changes one of them as the bytes say and makes the
//! checksums right again, so that the rules behind them are reached; `properties` is what must
//! hold; `seeds` are inputs to start from. No dependency on a fuzzer.

pub mod base;
pub mod input;
pub mod properties;
pub mod seeds;

use std::sync::Arc;

/// Target `open`: open, read, check, recover.
pub fn open(input: &[u8]) {
    if let Some(file) = input::decode(input) {
        properties::open(&(Arc::new(file) as _));
    }
}

/// Target `recover`: salvage, whatever is left.
pub fn recover(input: &[u8]) {
    if let Some(file) = input::decode(input) {
        properties::salvage(&(Arc::new(file) as _));
    }
}

/// Target `log`: the log alone.
pub fn log(input: &[u8]) {
    if let Some(file) = input::decode(input) {
        properties::log(&(Arc::new(file) as _));
    }
}
