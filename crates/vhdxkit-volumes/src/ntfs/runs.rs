//! Where the clusters of an attribute lie: runs, read from mapping pairs.

use std::ops::Range;

use super::boot::Geometry;
use crate::Trouble;
use crate::bytes::u8_at;

/// More pieces than any driver leaves a file of metadata in; 24 MiB of memory.
const MOST_RUNS: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first cluster, counted in the attribute (VCN).
    vcn: u64,
    /// The first cluster, counted on the volume (LCN); none for a hole.
    lcn: Option<u64>,
    clusters: u64,
}

/// Runs without gaps between them, from the attribute's first cluster on.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
}

impl Runs {
    /// The cluster behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.vcn.saturating_add(run.clusters))
    }

    pub(super) fn has_holes(&self) -> bool {
        self.runs.iter().any(|run| run.lcn.is_none())
    }

    /// The clusters on the volume, as bytes.
    pub(super) fn places(&self, geometry: Geometry) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().filter_map(move |run| {
            let lcn = run.lcn?;
            Some(geometry.byte(lcn)..geometry.byte(lcn.saturating_add(run.clusters)))
        })
    }

    /// Where a cluster lies (none in a hole), and how many clusters there are from it on without a jump.
    pub(super) fn find(&self, vcn: u64) -> Option<(Option<u64>, u64)> {
        let behind = self.runs.partition_point(|run| run.vcn <= vcn);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        let into = vcn.checked_sub(run.vcn)?;
        let left = run.clusters.checked_sub(into).filter(|left| *left > 0)?;
        Some((run.lcn.map(|lcn| lcn.saturating_add(into)), left))
    }

    /// Adds an extent: mapping pairs, which have to fill the clusters from `lowest` to `behind` exactly, and
    /// to go on where the last extent ended.
    pub(super) fn add(
        &mut self,
        pairs: &[u8],
        clusters: Range<u64>,
        geometry: Geometry,
    ) -> Result<(), Trouble> {
        if clusters.start != self.end() {
            return Err(Trouble::damaged(format!(
                "an extent begins at its cluster {}, not at {}",
                clusters.start,
                self.end()
            )));
        }
        let (mut at, mut vcn, mut lcn) = (0, clusters.start, 0);
        loop {
            let header = u8_at(pairs, at);
            if header == 0 {
                break;
            }
            let (length_size, delta_size) = (usize::from(header & 15), usize::from(header >> 4));
            let length_at = at.saturating_add(1);
            let delta_at = length_at.saturating_add(length_size);
            let next = delta_at.saturating_add(delta_size);
            let length = signed(pairs, length_at, length_size).and_then(|n| u64::try_from(n).ok());
            let end = length.filter(|n| *n > 0).and_then(|n| vcn.checked_add(n));
            let end = end.filter(|end| *end <= clusters.end).ok_or_else(unfit)?;
            let length = end.saturating_sub(vcn);
            let start = match delta_size {
                0 => None,
                _ => {
                    let delta = signed(pairs, delta_at, delta_size).ok_or_else(unfit)?;
                    lcn = i64::checked_add(lcn, delta).ok_or_else(unfit)?;
                    Some(place(lcn, length, geometry.clusters)?)
                }
            };
            self.push(Run { vcn, lcn: start, clusters: length })?;
            (at, vcn) = (next, end);
        }
        // The end must be there, not only nothing more.
        match vcn == clusters.end && at < pairs.len() {
            true => Ok(()),
            false => Err(unfit()),
        }
    }

    fn push(&mut self, run: Run) -> Result<(), Trouble> {
        if self.runs.len() >= MOST_RUNS {
            return Err(Trouble::not_known(format!("its metadata lie in over {MOST_RUNS} pieces")));
        }
        self.runs.push(run);
        Ok(())
    }
}

/// The first cluster of a run, which has to lie on the volume.
fn place(lcn: i64, length: u64, clusters: u64) -> Result<u64, Trouble> {
    let start = u64::try_from(lcn).ok();
    let end = start.and_then(|start| start.checked_add(length));
    start.filter(|_| end.is_some_and(|end| end <= clusters)).ok_or_else(|| {
        Trouble::damaged(format!("a run of {length} clusters at {lcn}, on a volume of {clusters}"))
    })
}

fn unfit() -> Trouble {
    Trouble::damaged("mapping pairs that do not fit their attribute")
}

/// A signed number of 1 to 8 bytes.
fn signed(bytes: &[u8], at: usize, size: usize) -> Option<i64> {
    let found = bytes.get(at..at.checked_add(size)?)?;
    let fill = if found.last()? & 0x80 == 0 { 0 } else { 0xFF };
    let mut whole = [fill; 8];
    whole.get_mut(..size)?.copy_from_slice(found);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        cluster: 4096,
        clusters: 1000,
        record: 1024,
        mft: 4,
        mirror: 2,
        length: 4_096_000,
    };

    fn runs(pairs: &[u8], clusters: Range<u64>) -> Result<Vec<(u64, Option<u64>, u64)>, Trouble> {
        let mut runs = Runs::default();
        runs.add(pairs, clusters, GEOMETRY)?;
        Ok(runs.runs.iter().map(|run| (run.vcn, run.lcn, run.clusters)).collect())
    }

    #[test]
    fn mapping_pairs_go_forth_and_back_and_have_holes() {
        let pairs = [0x11, 8, 100, 0x21, 4, 0x2C, 0x01, 0x01, 5, 0x11, 3, 0x9C, 0];
        let expected = [(0, Some(100), 8), (8, Some(400), 4), (12, None, 5), (17, Some(300), 3)];
        assert_eq!(runs(&pairs, 0..20).unwrap(), expected);
    }

    #[test]
    fn mapping_pairs_that_lie_are_damage() {
        for (pairs, clusters) in [
            (&[0x11, 8, 100, 0][..], 0..9),    // too few
            (&[0x11, 8, 100, 0], 0..7),        // too many
            (&[0x11, 8, 100], 0..8),           // no end
            (&[0x11, 8, 0x80, 0], 0..8),       // before the volume
            (&[0x21, 8, 0xE1, 0x03, 0], 0..8), // 993..1001: behind it
            (&[0x11, 0, 100, 0], 0..8),        // nothing
            (&[0x11, 0x88, 100, 0], 0..8),     // less than nothing
            (&[0x88, 8], 0..8),                // cut off
            (&[0xFF; 40], 0..8),               // a number of 15 bytes
            (&[0x11, 8, 100, 0], 1..9),        // not where it should begin
        ] {
            assert!(matches!(runs(pairs, clusters), Err(Trouble::Damaged(_))), "{pairs:x?}");
        }
        assert!(runs(&[0x21, 8, 0xE0, 0x03, 0], 0..8).is_ok());
    }

    #[test]
    fn clusters_are_found_in_their_runs() {
        let mut all = Runs::default();
        all.add(&[0x11, 8, 100, 0x01, 2, 0], 0..10, GEOMETRY).unwrap();
        all.add(&[0x11, 5, 50, 0], 10..15, GEOMETRY).unwrap();
        assert_eq!(all.find(0), Some((Some(100), 8)));
        assert_eq!(all.find(7), Some((Some(107), 1)));
        assert_eq!(all.find(9), Some((None, 1)));
        assert_eq!(all.find(12), Some((Some(52), 3)));
        assert_eq!(all.find(15), None);
    }
}
