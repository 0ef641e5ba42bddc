//! The boot sector: how large a volume, its clusters and its records are, and where its MFT begins.

use std::ops::Range;

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::{Trouble, Window};

/// Drivers count clusters with 32 bits.
const MOST_CLUSTERS: u64 = u32::MAX as u64;
const LARGEST_CLUSTER: u64 = 2 << 20;
/// Records are of 1 KiB, or of 4 KiB where sectors are.
const RECORD_SIZES: Range<u64> = 512..4097;

/// The shape of a volume, all of it judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    /// Bytes of a cluster.
    pub(super) cluster: u64,
    /// Clusters; what is left of the sectors behind the last one belongs to nobody.
    pub(super) clusters: u64,
    /// Bytes of an MFT record.
    pub(super) record: u64,
    /// The first cluster of the MFT.
    pub(super) mft: u64,
    /// The first cluster of the copy of its first records.
    pub(super) mirror: u64,
    /// Bytes of the volume, its last sector (the copy of the boot sector) included.
    pub(super) length: u64,
}

impl Geometry {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Trouble> {
        let boot = window.read("the boot sector", 0, 512)?;
        Self::judge(&boot, window.size())
    }

    fn judge(boot: &[u8], room: u64) -> Result<Self, Trouble> {
        if u16_at(boot, 510) != 0xAA55 {
            return Err(Trouble::damaged("the boot sector has no signature"));
        }
        // These are FAT's: reserved sectors, FATs, root entries, sectors, sectors of a FAT.
        let fat = boot.get(0x0E..0x15).unwrap_or_default();
        if fat.iter().any(|byte| *byte != 0) || u16_at(boot, 0x16) != 0 || u32_at(boot, 0x20) != 0 {
            return Err(Trouble::damaged("the boot sector has fields of FAT that are not zero"));
        }
        let sector = u64::from(u16_at(boot, 0x0B));
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(Trouble::damaged(format!("sectors of {sector} bytes")));
        }
        let cluster = sectors_per_cluster(u8_at(boot, 0x0D))
            .and_then(|count| count.checked_mul(sector))
            .filter(|size| *size <= LARGEST_CLUSTER)
            .ok_or_else(|| Trouble::damaged("clusters of an impossible size"))?;
        let sectors = u64_at(boot, 0x28);
        let bytes =
            sectors.checked_mul(sector).filter(|bytes| *bytes <= room).ok_or_else(|| {
                Trouble::damaged(format!(
                    "{sectors} sectors of {sector} bytes, in a place of {room} bytes"
                ))
            })?;
        let clusters = bytes.checked_div(cluster).unwrap_or_default();
        if clusters == 0 || clusters > MOST_CLUSTERS {
            return Err(Trouble::damaged(format!("a volume of {clusters} clusters")));
        }
        let record = structure_size(u8_at(boot, 0x40), cluster)
            .filter(|size| RECORD_SIZES.contains(size))
            .ok_or_else(|| Trouble::damaged("MFT records of an impossible size"))?;
        let (mft, mirror) = (u64_at(boot, 0x30), u64_at(boot, 0x38));
        if mft == 0 || mirror == 0 || mft >= clusters || mirror >= clusters {
            return Err(Trouble::damaged(format!(
                "the MFT is at cluster {mft}, its mirror at {mirror}, of {clusters}"
            )));
        }
        let length = bytes.saturating_add(sector).min(room);
        Ok(Self { cluster, clusters, record, mft, mirror, length })
    }

    /// Where a cluster begins, in bytes. Saturates: what is read there is compared with the end.
    pub(super) fn byte(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.cluster)
    }

    /// How many clusters these bytes take.
    pub(super) fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster.max(1))
    }
}

/// Up to 128 the number itself; larger clusters have the negative of its logarithm.
fn sectors_per_cluster(code: u8) -> Option<u64> {
    match code {
        0..=0x80 => Some(u64::from(code)).filter(|count| count.is_power_of_two()),
        _ => 1u64.checked_shl(u32::from(code.wrapping_neg())),
    }
}

/// A positive number counts clusters, a negative one is the logarithm of the bytes.
fn structure_size(code: u8, cluster: u64) -> Option<u64> {
    let size = match code {
        0..=0x7F => u64::from(code).checked_mul(cluster),
        _ => 1u64.checked_shl(u32::from(code.wrapping_neg())),
    };
    size.filter(|size| size.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_and_record_sizes_in_both_ways() {
        let sizes = [0x01, 0x08, 0x80, 0xF8, 0xF4].map(sectors_per_cluster);
        assert_eq!(sizes, [Some(1), Some(8), Some(128), Some(256), Some(4096)]);
        assert_eq!([0x00, 0x03, 0x7F, 0x81].map(sectors_per_cluster), [None, None, None, None]);
        assert_eq!(structure_size(0xF6, 4096), Some(1024));
        assert_eq!(structure_size(0x01, 4096), Some(4096));
        assert_eq!(structure_size(0x80, 4096), None);
        assert_eq!(structure_size(0x03, 4096), None);
        assert_eq!(structure_size(0x00, 4096), None);
    }
}
