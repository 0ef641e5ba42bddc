//! Sector bitmaps of differencing disks (MS-VHDX 2.5.2): which sectors of a partially present block
//! lie in this file.

use crate::Result;
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::Geometry;

/// The bits of one block: one per logical sector, least significant bit first, set when the sector
/// lies in this file. At most 64 KiB.
pub(crate) fn block_bits(
    storage: &dyn Storage,
    geometry: &Geometry,
    bitmap_offset: u64,
    block: u64,
) -> Result<Vec<u8>> {
    let bits = u64::from(geometry.block_size())
        .checked_div(u64::from(geometry.logical_sector_size()))
        .unwrap_or_default();
    let bytes = bits / 8;
    let within = block.checked_rem(geometry.chunk_ratio()).unwrap_or_default();
    let mut buf = vec![0; usize::try_from(bytes).unwrap_or_default()];
    let offset = bitmap_offset.saturating_add(within.saturating_mul(bytes));
    storage.read_exact_at(offset, &mut buf)?;
    Ok(buf)
}

/// Sectors that share a bit value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitRun {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) present: bool,
}

/// The runs of equal bits, in order, found 64 bits at a time.
pub(crate) fn runs(bits: &[u8]) -> Vec<BitRun> {
    let mut runs: Vec<BitRun> = Vec::new();
    let mut first = 0u64;
    for raw in bits.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(raw) {
            *to = *from;
        }
        let mut word = u64::from_le_bytes(word);
        let mut left = u32::try_from(raw.len()).unwrap_or(0).saturating_mul(8);
        while left > 0 {
            let present = word & 1 == 1;
            let same = if present { word.trailing_ones() } else { word.trailing_zeros() };
            let count = same.min(left);
            push(&mut runs, BitRun { first, count: u64::from(count), present });
            first = first.saturating_add(u64::from(count));
            word = word.checked_shr(count).unwrap_or_default();
            left = left.saturating_sub(count);
        }
    }
    runs
}

fn push(runs: &mut Vec<BitRun>, run: BitRun) {
    match runs.last_mut() {
        Some(last) if last.present == run.present => {
            last.count = last.count.saturating_add(run.count);
        }
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_count_from_the_least_significant() {
        let run = |first, count, present| BitRun { first, count, present };
        assert_eq!(runs(&[0b0000_0110]), [run(0, 1, false), run(1, 2, true), run(3, 5, false)]);
        assert_eq!(runs(&[0xFF; 512]), [run(0, 4096, true)]);
        assert_eq!(runs(&[0; 32]), [run(0, 256, false)]);
        assert_eq!(runs(&[]), []);
    }

    proptest! {
        #[test]
        fn runs_say_the_same_as_the_bits(bits in proptest::collection::vec(any::<u8>(), 0..80)) {
            let runs = runs(&bits);
            let flat: Vec<bool> =
                runs.iter().flat_map(|run| vec![run.present; run.count as usize]).collect();
            let one_by_one: Vec<bool> =
                (0..bits.len() * 8).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect();
            prop_assert_eq!(flat, one_by_one);
            prop_assert!(runs.windows(2).all(|pair| pair[0].present != pair[1].present));
        }
    }
}
