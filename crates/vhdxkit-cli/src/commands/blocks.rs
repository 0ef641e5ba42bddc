//! Blocks of a disk, as those who use the disk know them: by its bytes.

use std::ops::Range;
use std::path::Path;

use vhdxkit::OpenOptions;
use vhdxkit::format::MIB;

/// How many blocks a disk has, and how large they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    number: u64,
    size: u64,
    disk: u64,
}

impl Blocks {
    /// Of the disk in a file; `None` when nothing that can be read says it.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let options = OpenOptions::new().without_parents().force_share(true).without_log(true);
        let image = options.open(path).ok()?;
        let geometry = image.geometry();
        let (size, disk) = (u64::from(geometry.block_size()), geometry.virtual_size());
        Some(Self { number: geometry.blocks(), size, disk })
    }

    /// Whether these are all of them.
    pub(super) fn are_all(self, ranges: &[Range<u64>]) -> bool {
        let named: u64 = ranges.iter().map(|run| run.end.saturating_sub(run.start)).sum();
        named >= self.number
    }

    /// The bytes of these blocks on the disk.
    pub(super) fn bytes(self, ranges: &[Range<u64>]) -> u64 {
        let bytes = ranges.iter().map(|run| self.place(run)).map(|place| place.end - place.start);
        bytes.sum()
    }

    /// Where the first of them lie, in mebibytes of the disk: `MiB 64-127, 256-287`.
    pub(super) fn mebibytes(self, ranges: &[Range<u64>], most: usize) -> String {
        let names = ranges.iter().take(most).map(|run| {
            let Range { start, end } = self.place(run);
            let (first, last) = (start / MIB, end.div_ceil(MIB).saturating_sub(1));
            match first >= last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            }
        });
        format!("MiB {}", names.collect::<Vec<_>>().join(", "))
    }

    fn place(self, run: &Range<u64>) -> Range<u64> {
        let at = |block: u64| block.saturating_mul(self.size).min(self.disk);
        at(run.start)..at(run.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_named_by_their_bytes() {
        let blocks = Blocks { number: 4, size: 32 * MIB, disk: 100 * MIB + 512 };
        assert_eq!(blocks.mebibytes(&[0..1, 2..4], 12), "MiB 0-31, 64-100");
        assert_eq!(blocks.mebibytes(&[0..1, 2..4], 1), "MiB 0-31");
        assert_eq!(blocks.bytes(&[0..1, 3..4]), 36 * MIB + 512);
        assert!(blocks.are_all(&[0..1, 1..4]) && !blocks.are_all(&[0..1, 2..4]));
        let small = Blocks { number: 3, size: MIB, disk: 3 * MIB };
        assert_eq!(small.mebibytes(&[1..2, 0..0], 1), "MiB 1");
    }
}
