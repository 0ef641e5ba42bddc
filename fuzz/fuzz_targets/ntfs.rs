//! The free space of whatever was made of NTFS.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::volumes::NTFS.run(input));
