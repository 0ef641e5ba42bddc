//! exFAT's boot regions, and partition tables.

use super::{Changed, le32, le64};

/// Two boot regions of twelve sectors; the last is the checksum of the others, over and over.
pub(super) fn fix_exfat(disk: &mut Changed) {
    let Some(boot) = disk.get(0, 512).filter(|boot| &boot[3..11] == b"EXFAT   ") else { return };
    let sector = 1usize << boot[0x6C].clamp(9, 12);
    for start in [0, 12 * sector as u64] {
        let Some(bytes) = disk.get(start, 11 * sector) else { return };
        let sum = bytes.iter().enumerate().filter(|(at, _)| ![106, 107, 112].contains(at));
        let sum = sum.fold(0u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()));
        disk.write(start + 11 * sector as u64, &sum.to_le_bytes().repeat(sector / 4));
    }
}

/// Both copies: the entries' checksum, then the header's.
pub(super) fn fix_gpt(disk: &mut Changed) {
    let last = super::size(disk) / 512 * 512;
    for (at, sector) in [(512, 512), (4096, 4096), (last.saturating_sub(512), 512)] {
        let Some(mut header) = disk.get(at, 512) else { continue };
        if !header.starts_with(b"EFI PART") {
            continue;
        }
        let length = (le32(&header, 12) as usize).clamp(92, 512);
        let entries = u64::from(le32(&header, 80)) * u64::from(le32(&header, 84));
        let start = le64(&header, 72).saturating_mul(sector);
        if let Some(entries) = disk.get(start, entries.min(1 << 20) as usize) {
            header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        }
        header[16..20].fill(0);
        let sum = crc32(&header[..length]).to_le_bytes();
        header[16..20].copy_from_slice(&sum);
        disk.write(at, &header);
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0xEDB8_8320,
        })
    });
    !crc
}
