//! From a fuzzer's bytes to a disk with a file system on it, and what must hold whatever it says of itself.
//!
//! An input begins with one of the target's bases, a sparse map of a disk that real tools made, and
//! changes some of its bytes (`input`); `sums` makes checksums right again, so that the checks behind them
//! are reached; `properties` is what must hold; `seeds` are inputs to start from. No dependency on a fuzzer.
//!
//! The bases lie in `fuzz/bases`, one folder for each target. They are written anew, from whatever the
//! tools at hand make, by
//!
//! ```text
//! cargo test -p vhdxkit-volumes --test fuzz_bases -- --ignored
//! ```
//!
//! which needs root, for it mounts some of them. `map` is their format.

pub mod input;
pub mod map;
pub mod properties;
pub mod seeds;
pub mod sums;

use std::sync::{Arc, OnceLock};

use map::Map;

/// A fuzz target: its name, and the disks that its inputs start from.
pub struct Target {
    /// Also the name of its folders in `fuzz/bases` and `fuzz/corpus`.
    pub name: &'static str,
    /// Names and encoded maps.
    pub bases: &'static [(&'static str, &'static [u8])],
    decoded: OnceLock<Vec<Arc<Map>>>,
}

macro_rules! target {
    ($constant:ident, $name:literal, $($base:literal),+) => {
        #[doc = concat!("Target `", $name, "`.")]
        pub static $constant: Target = Target {
            name: $name,
            bases: &[$((
                $base,
                include_bytes!(concat!("../../bases/", $name, "/", $base, ".map")),
            )),+],
            decoded: OnceLock::new(),
        };
    };
}

target!(EXT, "ext", "ext2-1k", "ext3", "ext4", "ext4-1k", "ext4-bigalloc");
target!(XFS, "xfs", "v4", "v5", "v5-plain", "v5-filled");
target!(BTRFS, "btrfs", "dup", "single", "mixed", "filled");
target!(NTFS, "ntfs", "empty", "cluster-512", "filled");
target!(FAT, "fat", "fat12", "fat16", "fat32", "filled");
target!(EXFAT, "exfat", "empty", "cluster-512");
target!(PARTITIONS, "partitions", "mbr", "gpt", "gpt-4k");

/// All of them.
pub static TARGETS: [&Target; 7] = [&EXT, &XFS, &BTRFS, &NTFS, &FAT, &EXFAT, &PARTITIONS];

impl Target {
    /// Its bases, decoded.
    pub fn maps(&self) -> &[Arc<Map>] {
        self.decoded.get_or_init(|| {
            let maps = self.bases.iter().map(|(name, bytes)| {
                Arc::new(Map::decode(bytes).unwrap_or_else(|| panic!("{name} is no map")))
            });
            maps.collect()
        })
    }

    /// One input.
    pub fn run(&self, input: &[u8]) {
        let Some(disk) = input::decode(self, input) else { return };
        match self.name {
            "partitions" => properties::partitions(&disk),
            _ => properties::survey(&disk, 0..vhdxkit_volumes::Disk::size(&disk)),
        }
    }
}
