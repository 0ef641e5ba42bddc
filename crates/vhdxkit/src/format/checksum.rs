//! CRC-32C (Castagnoli), the one checksum of the format.
//!
//! Headers, region tables and log entries carry it at byte 4 and compute it with those four bytes
//! taken as zero. Nothing else in a VHDX file is checksummed.

use std::ops::Range;

/// Where a structure keeps its checksum.
pub const CHECKSUM_FIELD: Range<usize> = 4..8;

/// The checksum of a whole structure, its own checksum field counted as zero.
///
/// Anything shorter than the field itself is summed as it is.
#[must_use]
pub fn of_structure(bytes: &[u8]) -> u32 {
    let mut sum = StructureSum::new();
    sum.update(bytes);
    sum.finish()
}

/// [`of_structure`] for bytes that arrive in pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct StructureSum {
    crc: u32,
    seen_field: bool,
}

impl StructureSum {
    /// A sum over nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece. The first piece must hold the checksum field whole, or the rest of a
    /// structure that is too short to have one.
    pub fn update(&mut self, piece: &[u8]) {
        let rest = match (self.seen_field, piece.split_at_checked(8)) {
            (false, Some((start, rest))) => {
                let signature = start.get(..4).unwrap_or_default();
                self.crc = crc32c::crc32c_append(self.crc, signature);
                self.crc = crc32c::crc32c_append(self.crc, &[0; 4]);
                rest
            }
            _ => piece,
        };
        self.seen_field = true;
        self.crc = crc32c::crc32c_append(self.crc, rest);
    }

    /// The checksum of all pieces.
    #[must_use]
    pub fn finish(self) -> u32 {
        self.crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let counting: Vec<u8> = (0..32).collect();
        for (input, sum) in [
            (&b"123456789"[..], 0xE306_9283),
            (b"", 0),
            (&[0; 32], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&counting, 0x46DD_794E),
            (&[0; 4096], 0x98F9_4189),
        ] {
            assert_eq!(crc32c::crc32c(input), sum);
        }
    }

    #[test]
    fn the_checksum_field_counts_as_zero_and_pieces_do_not_matter() {
        let mut bytes = vec![0xA5; 4096];
        bytes[CHECKSUM_FIELD].fill(0);
        let whole = crc32c::crc32c(&bytes);
        bytes[CHECKSUM_FIELD].fill(0x77);
        assert_eq!(of_structure(&bytes), whole);

        let mut sum = StructureSum::new();
        for piece in bytes.chunks(100) {
            sum.update(piece);
        }
        assert_eq!(sum.finish(), whole);
    }
}
