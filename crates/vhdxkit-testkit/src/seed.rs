//! GUIDs that look random and are the same in every run.

use vhdxkit::format::Guid;

/// The `number`th GUID of a seed, of the shape of a random (version 4) GUID.
#[must_use]
pub fn guid(seed: u64, number: u64) -> Guid {
    let start = mix(seed) ^ mix(number.wrapping_add(0x5EED));
    let wide = (u128::from(mix(start)) << 64) | u128::from(mix(start.wrapping_add(1)));
    let version = (wide & !(0xF << 76)) | (4 << 76);
    Guid::from_u128((version & !(3 << 62)) | (2 << 62))
}

/// Spreads a number over 64 bits (the finalizer of SplitMix64).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_version_4_and_depend_on_both_numbers() {
        for (seed, number) in [(0, 0), (0, 1), (1, 0), (7, 3)] {
            let text = guid(seed, number).to_string();
            assert_eq!(text.as_bytes()[14], b'4', "{text}");
            assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}");
            assert_eq!(guid(seed, number), guid(seed, number));
        }
        assert_ne!(guid(0, 0), guid(0, 1));
        assert_ne!(guid(0, 1), guid(1, 0));
    }
}
