//! Inputs to start from: every base as it is, cut off, and on a disk that is larger than it.

use super::Target;
use super::input::{FIX, SECTORS_4K, SIZE};

/// The seeds of a target, by name.
pub fn of(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (number, ((name, _), map)) in (0u8..).zip(target.bases.iter().zip(target.maps())) {
        seeds.push((format!("{name}-whole"), vec![number, FIX]));
        seeds.push((format!("{name}-as-it-is"), vec![number, 0]));
        seeds.push((format!("{name}-sectors-4k"), vec![number, FIX | SECTORS_4K]));
        for (what, size) in [
            ("cut", map.size / 3),
            ("cut-at-the-end", map.size - 512),
            ("tiny", 68 << 10),
            ("larger", map.size * 2),
        ] {
            let mut bytes = vec![number, FIX | SIZE];
            bytes.extend(u32::try_from(size / 512).expect("below 2 TiB").to_le_bytes());
            seeds.push((format!("{name}-{what}"), bytes));
        }
    }
    seeds
}
