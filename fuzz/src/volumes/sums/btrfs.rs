//! btrfs with CRC-32C: superblock, and nodes of trees, which are known by the file system's identifier.

use super::{Changed, PAGE, le32};

const SUPERBLOCK: u64 = 64 << 10;
/// Its second copy.
const MIRROR: u64 = 64 << 20;

pub(super) fn fix(disk: &mut Changed) {
    let Some(sb) = disk.get(SUPERBLOCK, PAGE) else { return };
    if &sb[0x40..0x48] != b"_BHRfS_M" {
        return;
    }
    put(disk, SUPERBLOCK, &sb);
    if let Some(mirror) = disk.get(MIRROR, PAGE).filter(|sb| &sb[0x40..0x48] == b"_BHRfS_M") {
        put(disk, MIRROR, &mirror);
    }
    let node = le32(&sb, 0x94) as usize;
    if !(PAGE..=64 << 10).contains(&node) {
        return;
    }
    for page in disk.pages() {
        let Some(header) = disk.get(page, 0x30) else { return };
        if ![SUPERBLOCK, MIRROR].contains(&page) && header[0x20..0x30] == sb[0x20..0x30] {
            let Some(bytes) = disk.get(page, node) else { return };
            put(disk, page, &bytes);
        }
    }
}

fn put(disk: &mut Changed, at: u64, bytes: &[u8]) {
    disk.write(at, &crc32c::crc32c(&bytes[0x20..]).to_le_bytes());
}
