//! The free space of whatever was made of FAT12, FAT16 and FAT32.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::volumes::FAT.run(input));
