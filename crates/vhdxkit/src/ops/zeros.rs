//! Telling zeros from data, for copies that need not store zeros.

/// Zeros are found in units of this.
const ZERO_UNIT: usize = 4096;

/// A length of bytes in memory.
pub(super) fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or_default()
}

/// Splits a buffer into runs of data and lengths of zeros, each with its offset.
pub(super) fn split_zeros(
    at: u64,
    bytes: &[u8],
) -> impl Iterator<Item = (u64, Result<&[u8], u64>)> {
    let units = bytes.chunks(ZERO_UNIT).map(is_zero);
    let mut runs: Vec<(bool, usize)> = Vec::new();
    for (unit, bytes) in units.zip(bytes.chunks(ZERO_UNIT)) {
        match runs.last_mut() {
            Some((zero, length)) if *zero == unit => *length = length.saturating_add(bytes.len()),
            _ => runs.push((unit, bytes.len())),
        }
    }
    let (mut at, mut rest) = (at, bytes);
    runs.into_iter().map(move |(zero, count)| {
        let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        let offset = at;
        at = at.saturating_add(length(now));
        rest = later;
        (offset, if zero { Err(length(now)) } else { Ok(now) })
    })
}

/// Whether all bytes are zero, 64 at a time.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_split_off_in_units_of_4_kib() {
        let mut bytes = vec![0; 5 * 4096 + 100];
        bytes[4096] = 1;
        bytes[3 * 4096 - 1] = 1;
        let runs: Vec<_> = split_zeros(1 << 20, &bytes)
            .map(|(at, run)| (at - (1 << 20), run.map(<[u8]>::len)))
            .collect();
        assert_eq!(runs, [(0, Err(4096)), (4096, Ok(8192)), (12288, Err(2 * 4096 + 100))]);
    }

    #[test]
    fn a_single_byte_anywhere_is_not_zero() {
        for at in 0..200 {
            let mut bytes = [0; 200];
            assert!(is_zero(&bytes));
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
