//! An NBD client that says whatever the bytes say.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::session::nbd(input));
