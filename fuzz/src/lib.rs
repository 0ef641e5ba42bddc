//! Fuzz targets of vhdxkit. Everything but the targets' `main` is in [`harness`], [`session`] and
//! [`volumes`], which the project's ordinary tests include as well, to replay the corpus without a fuzzer.

pub mod harness;
pub mod session;
pub mod vhd;
pub mod volumes;
