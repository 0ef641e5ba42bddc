//! A VHD reader of the tests' own: what the specification says, in the simplest words, with nothing taken from
//! the library. It keeps whole files in memory.
#![allow(dead_code)]

/// A file and those below it, child first.
pub(crate) fn read(chain: &[Vec<u8>]) -> Vec<u8> {
    let file = &chain[0];
    let footer = &file[file.len() - 512..];
    assert_eq!(&footer[..8], b"conectix");
    let size = be64(footer, 48) as usize;
    match be32(footer, 60) {
        2 => file[..size].to_vec(),
        3 => tables(file, vec![0; size]),
        4 => {
            let mut parent = read(&chain[1..]);
            parent.resize(size, 0);
            tables(file, parent)
        }
        other => panic!("disk type {other}"),
    }
}

fn tables(file: &[u8], mut disk: Vec<u8>) -> Vec<u8> {
    let header = be64(file, 16) as usize;
    assert_eq!(&file[header..header + 8], b"cxsparse");
    let table = be64(file, header + 16) as usize;
    let block_size = be32(file, header + 32) as usize;
    let bitmap_bytes = (block_size / 512 / 8).next_multiple_of(512);
    for block in 0..disk.len().div_ceil(block_size) {
        let entry = be32(file, table + 4 * block);
        if entry == u32::MAX {
            continue;
        }
        let bitmap = entry as usize * 512;
        for sector in 0..block_size / 512 {
            let at = block * block_size + sector * 512;
            if at >= disk.len() || file[bitmap + sector / 8] & (0x80 >> (sector % 8)) == 0 {
                continue;
            }
            let from = bitmap + bitmap_bytes + sector * 512;
            disk[at..at + 512].copy_from_slice(&file[from..from + 512]);
        }
    }
    disk
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Makes the checksum right again: of a footer (field at 64) or a header (at 36).
pub(crate) fn seal(structure: &mut [u8], field: usize) {
    structure[field..field + 4].fill(0);
    let sum = structure.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    structure[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Changes both footers of a dynamic file and makes their checksums right.
pub(crate) fn patch_footers(file: &mut [u8], at: usize, bytes: &[u8]) {
    let end = file.len() - 512;
    for start in [0, end] {
        let footer = &mut file[start..start + 512];
        footer[at..at + bytes.len()].copy_from_slice(bytes);
        seal(footer, 64);
    }
}

/// Changes the header of a file of ours, which lies behind the footer's copy.
pub(crate) fn patch_header(file: &mut [u8], at: usize, bytes: &[u8]) {
    let header = &mut file[512..1536];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    seal(header, 36);
}
