//! ext4: bitmaps, then the group descriptors that hold their checksums, then the superblock.

use super::Changed;
use super::{le16, le32, raw_crc32c};

const GDT_CSUM: u32 = 0x10;
const METADATA_CSUM: u32 = 0x400;
const HAS_64BIT: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// Groups whose checksums are made right; the bases have fewer.
const MOST_GROUPS: u64 = 64;

pub(super) fn fix(disk: &mut Changed) {
    let Some(sb) = disk.get(1024, 1024) else { return };
    if le16(&sb, 0x38) != 0xEF53 {
        return;
    }
    let read_only = le32(&sb, 0x64);
    if read_only & (GDT_CSUM | METADATA_CSUM) != 0 {
        fix_groups(disk, &sb, read_only & METADATA_CSUM != 0);
    }
    if read_only & METADATA_CSUM != 0 {
        disk.write(1024 + 0x3FC, &raw_crc32c(u32::MAX, &sb[..0x3FC]).to_le_bytes());
    }
}

fn fix_groups(disk: &mut Changed, sb: &[u8], crc32c: bool) {
    let block = 1024u64 << (le32(sb, 0x18) % 7);
    let incompat = le32(sb, 0x60);
    let per_group = u64::from(le32(sb, 0x20)).max(1);
    let clusters = u64::from(le32(sb, 0x24));
    let size = match incompat & HAS_64BIT {
        0 => 32,
        _ => usize::from(le16(sb, 0xFE)).clamp(32, 1024),
    };
    let uuid = &sb[0x68..0x78];
    let seed = match incompat & CSUM_SEED {
        0 => raw_crc32c(u32::MAX, uuid),
        _ => le32(sb, 0x270),
    };
    let blocks = u64::from(le32(sb, 4));
    // The block behind the one that the superblock lies in.
    let table = (1024 / block + 1) * block;
    for group in 0..blocks.div_ceil(per_group).min(MOST_GROUPS) {
        let at = table + group * size as u64;
        let Some(mut descriptor) = disk.get(at, size) else { return };
        let number = (group as u32).to_le_bytes();
        descriptor[0x1E..0x20].fill(0);
        let sum = if crc32c {
            let high = if size >= 64 { u64::from(le32(&descriptor, 0x20)) << 32 } else { 0 };
            let bitmap = (u64::from(le32(&descriptor, 0)) | high).saturating_mul(block);
            let length = (clusters / 8).min(block) as usize;
            if let Some(bitmap) = disk.get(bitmap, length) {
                let sum = raw_crc32c(seed, &bitmap).to_le_bytes();
                descriptor[0x18..0x1A].copy_from_slice(&sum[..2]);
                if size >= 64 {
                    descriptor[0x38..0x3A].copy_from_slice(&sum[2..]);
                }
            }
            (raw_crc32c(raw_crc32c(seed, &number), &descriptor) & 0xFFFF) as u16
        } else {
            let rest = if size > 0x20 { &descriptor[0x20..] } else { &[] };
            [uuid, &number, &descriptor[..0x1E], rest].into_iter().fold(u16::MAX, crc16)
        };
        descriptor[0x1E..0x20].copy_from_slice(&sum.to_le_bytes());
        disk.write(at, &descriptor);
    }
}

fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0xA001,
        })
    })
}
