//! Numbers in bytes, and runs of bits. What lies behind the end of a slice reads as zero: lengths are
//! judged where structures are read.

use std::ops::Range;

fn first<const LENGTH: usize>(bytes: &[u8], at: usize) -> [u8; LENGTH] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<LENGTH>());
    found.copied().unwrap_or([0; LENGTH])
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(first(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(first(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(first(bytes, at))
}

// The same in big-endian.

pub(crate) fn be16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(first(bytes, at))
}

pub(crate) fn be32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(first(bytes, at))
}

pub(crate) fn be64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(first(bytes, at))
}

/// Text in UTF-16 (little-endian); what cannot be printed is replaced.
pub(crate) fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf16_lossy(&units).chars().map(printable).collect()
}

/// Runs of bits that are 0 among the first `count` of a bitmap, least significant bit of a byte first.
/// A bitmap that is too short has ones behind its end.
pub(crate) fn zero_runs(bitmap: &[u8], count: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let bits = u64::try_from(bitmap.len()).unwrap_or(u64::MAX).saturating_mul(8).min(count);
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = next_bit(bitmap, at, bits, false);
        let end = next_bit(bitmap, start, bits, true);
        at = end;
        (start < end).then_some(start..end)
    })
}

/// The first bit from `at` on that has this value; `end` when there is none.
fn next_bit(bitmap: &[u8], mut at: u64, end: u64, value: bool) -> u64 {
    let skip = if value { 0 } else { u8::MAX };
    while at < end {
        let byte = usize::try_from(at >> 3).ok().and_then(|index| bitmap.get(index)).copied();
        let byte = byte.unwrap_or(u8::MAX);
        if at & 7 == 0 && byte == skip {
            at = at.saturating_add(8);
            continue;
        }
        if (byte >> (at & 7)) & 1 == u8::from(value) {
            return at;
        }
        at = at.saturating_add(1);
    }
    end
}

/// A label: UTF-8 up to the first zero; what cannot be printed is replaced.
pub(crate) fn label(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let shown = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
    String::from_utf8_lossy(text).chars().map(shown).collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_zeros_are_found_up_to_the_count() {
        let runs = |bytes: &[u8], count| zero_runs(bytes, count).collect::<Vec<_>>();
        assert_eq!(runs(&[0b1111_0001, 0xFF, 0, 0x80], 31), [1..4, 16..31]);
        assert_eq!(runs(&[0, 0], 16), [0..16]);
        assert_eq!(runs(&[0, 0], 11), [0..11]);
        assert_eq!(runs(&[0], 100), [0..8], "what is missing is in use");
        assert_eq!(runs(&[0xFF], 8), []);
        assert_eq!(runs(&[], 0), []);
    }
}
