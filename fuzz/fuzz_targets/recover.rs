//! Salvaging whatever the bytes describe.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::harness::recover(input));
