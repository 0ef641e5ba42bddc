//! Where new GUIDs come from: randomness, or a seed when files have to be reproducible.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Guid;

/// Makes new GUIDs and numbers that are as good as unique.
#[derive(Debug, Default)]
pub struct GuidSource {
    /// State of a generator; `None` for the system's randomness.
    seeded: Option<AtomicU64>,
}

impl GuidSource {
    /// The system's randomness.
    #[must_use]
    pub const fn random() -> Self {
        Self { seeded: None }
    }

    /// The same GUIDs again for the same seed. Two files made from one seed carry the same identity:
    /// for tests that compare files byte by byte, not for disks that meet.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seeded: Some(AtomicU64::new(seed)) }
    }

    /// Seeded when there is a seed.
    pub(crate) fn from_seed(seed: Option<u64>) -> Self {
        seed.map_or(Self::random(), Self::seeded)
    }

    /// A new version 4 GUID.
    #[must_use]
    pub fn guid(&self) -> Guid {
        let Some(state) = &self.seeded else { return Guid::random() };
        let (high, low) = (next(state), next(state));
        let bits = (u128::from(high) << 64) | u128::from(low);
        Guid::from_u128(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().as_u128())
    }

    /// A number that no earlier session of a log is likely to have used, far from either end of the
    /// 64 bits.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = self.guid().to_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0]).saturating_add(1)
    }
}

/// SplitMix64: one addition of state, two multiplications of mixing.
fn next(state: &AtomicU64) -> u64 {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let z = state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_randomness_does_not() {
        let (a, b) = (GuidSource::seeded(7), GuidSource::seeded(7));
        let first = a.guid();
        assert_eq!(first, b.guid());
        assert_ne!(first, a.guid());
        assert_ne!(first, GuidSource::seeded(8).guid());
        assert_eq!(first.to_string().as_bytes()[14], b'4', "version 4: {first}");
        let random = GuidSource::random();
        assert_ne!(random.guid(), random.guid());
        assert!(random.first_sequence() > 0);
    }
}
