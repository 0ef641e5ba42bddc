//! Opening, walking, reading and writing a VHD that the bytes describe.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::vhd::vhd(input));
