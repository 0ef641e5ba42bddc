//! Open, recover and read VHDX disk images.
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

pub mod defect;
pub mod error;
pub mod format;
pub mod log;
pub mod storage;

pub use error::{Error, ErrorKind, Result};
