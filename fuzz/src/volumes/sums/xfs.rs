//! XFS with checksums (V5): superblocks and headers of allocation groups, and blocks of trees, which are
//! known by their magic numbers.

use super::PAGE;
use super::{Changed, be32, fix_crc32c, size};

/// Allocation groups whose headers are made right; the bases have four.
const MOST_GROUPS: u64 = 16;
/// A block with these magic numbers has its checksum at 52: trees of free space, of inodes, of owners.
const TREES: [&[u8; 4]; 6] = [b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC"];

pub(super) fn fix(disk: &mut Changed) {
    let Some(sb) = disk.get(0, 512).filter(|sb| sb.starts_with(b"XFSB")) else { return };
    let version = u16::from_be_bytes([sb[100], sb[101]]) & 15;
    let block = be32(&sb, 4);
    let sector = u16::from_be_bytes([sb[102], sb[103]]);
    if version != 5 || !(512..=4096).contains(&block) || !(512..=4096).contains(&sector) {
        return;
    }
    let group = u64::from(be32(&sb, 84)) * u64::from(block);
    let sector = u64::from(sector);
    for number in 0..u64::from(be32(&sb, 88)).min(MOST_GROUPS) {
        let start = number * group;
        // Superblock, AGF, AGI and AGFL, one sector each.
        for (place, (magic, sum)) in
            (0..).zip([(b"XFSB", 224), (b"XAGF", 216), (b"XAGI", 312), (b"XAFL", 32)])
        {
            let at = start + place * sector;
            if disk.get(at, 4).is_some_and(|found| found == magic) {
                fix_crc32c(disk, at, sector as usize, sum);
            }
        }
    }
    for page in disk.pages() {
        for at in (page..page + PAGE as u64).step_by(block as usize) {
            if at + u64::from(block) > size(disk) {
                return;
            }
            if disk.get(at, 4).is_some_and(|found| TREES.iter().any(|tree| found == *tree)) {
                fix_crc32c(disk, at, block as usize, 52);
            }
        }
    }
}
