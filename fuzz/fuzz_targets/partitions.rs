//! The partitions of whatever was made of MBR and GPT, and what lies in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhdxkit_fuzz::volumes::PARTITIONS.run(input));
