//! Reading the log of whatever the bytes describe, torn and foreign entries included.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::harness::log(input));
