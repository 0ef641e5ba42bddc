//! The free space of whatever was made of ext2, ext3 and ext4.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::volumes::EXT.run(input));
