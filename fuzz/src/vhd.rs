//! From a fuzzer's bytes to a VHD file, and what must hold for any.
//!
//! The first byte chooses a small valid file, the second whether checksums are made right again; records
//! follow: a place, an offset from it (two bytes), a length, so many bytes.

use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::ops::disk::Source;
use vhdxkit::storage::MemoryStorage;
use vhdxkit::vhd::{Vhd, VhdOptions};

const SIZE: u64 = (1 << 20) + 1536;
const CUT: u8 = 6;

/// A dynamic file (0), a fixed one (1), a child (2).
fn base(kind: u8) -> Vec<u8> {
    let medium = Arc::new(MemoryStorage::empty());
    let options = VhdOptions::new(SIZE).block_size(512 << 10).fixed(kind == 1);
    options.create_storage(&*medium).expect("a sound shape");
    let writer = OpenOptions::new().write(true);
    let disk = writer.open_vhd_storage(medium.clone()).expect("a sound file");
    disk.write_at(1024, &[7; 2048]).expect("there is room");
    disk.write_at(SIZE - 512, &[9; 512]).expect("there is room");
    drop(disk);
    let mut file = medium.to_vec();
    if kind == 2 {
        let end = file.len() - 512;
        file[63] = 4;
        file[end + 63] = 4;
        file[512 + 40..512 + 56].fill(0xAA);
        file[512 + 65] = b'p';
        file[512 + 576..512 + 580].copy_from_slice(b"W2ru");
        file[512 + 587] = 8;
        file[512 + 598..512 + 600].copy_from_slice(&1536u16.to_be_bytes());
        seal_all(&mut file);
    }
    file
}

fn seal(structure: &mut [u8], field: usize) {
    structure[field..field + 4].fill(0);
    let sum = structure.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    structure[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn seal_all(file: &mut [u8]) {
    let end = file.len() - 512;
    if file[..8] == *b"conectix" {
        seal(&mut file[..512], 64);
        seal(&mut file[512..1536], 36);
    }
    seal(&mut file[end..], 64);
}

/// The file that the bytes describe.
fn decode(input: &[u8]) -> Option<Vec<u8>> {
    let (&[kind, flags], mut rest) = input.split_first_chunk::<2>()?;
    let mut file = base(kind % 3);
    let (length, mut cut) = (file.len(), 0);
    while let Some((&[place, low, high, count], later)) = rest.split_first_chunk::<4>() {
        let offset = usize::from(u16::from_le_bytes([low, high]));
        let (bytes, after) = later.split_at(usize::from(count).min(later.len()));
        let start = match place % 7 {
            0 => 0,
            1 => 512,
            2 => 1536,
            3 => 2048,
            4 => length - 512,
            5 => length / 2,
            _ => {
                cut = offset;
                length
            }
        };
        for (at, byte) in (start + offset..).zip(bytes) {
            if let Some(place) = file.get_mut(at) {
                *place = *byte;
            }
        }
        rest = after;
    }
    if flags & 1 != 0 {
        seal_all(&mut file);
    }
    file.truncate(length - cut);
    Some(file)
}

/// Target `vhd`: open, walk, read, write.
pub fn vhd(input: &[u8]) {
    let Some(file) = decode(input) else { return };
    if let Ok(disk) =
        OpenOptions::new().open_vhd_storage(Arc::new(MemoryStorage::new(file.clone())))
    {
        look_at(&disk);
    }
    let medium = Arc::new(MemoryStorage::new(file));
    let writer = OpenOptions::new().write(true);
    let Ok(disk) = writer.open_vhd_storage(medium.clone()) else { return };
    let size = disk.virtual_size();
    for at in [0, size / 1024 * 512, size.saturating_sub(1024)] {
        if at + 1024 <= size && disk.write_at(at, &[0x5A; 1024]).is_ok() && disk.flush().is_ok() {
            let again = OpenOptions::new().open_vhd_storage(medium.clone()).expect("it did open");
            let mut read = [0; 1024];
            again.read_at(at, &mut read).expect("it was just written");
            assert_eq!(read, [0x5A; 1024], "at {at}");
        }
    }
    look_at(&disk);
}

fn look_at(disk: &Vhd) {
    let size = disk.virtual_size();
    let _ = (disk.parent_link(), disk.remarks(), disk.storages().len());
    // A table that is a hole of the file costs nothing to make; real ones are walked.
    let _ = disk.count_blocks();
    let mut behind = 0;
    for run in disk.runs().take(1000) {
        let Ok(run) = run else { break };
        assert_eq!(run.range.start, behind, "runs have no gaps");
        assert!(run.range.end > behind && run.range.end <= size);
        behind = run.range.end;
        let mut buf = vec![0xEE; (run.range.end - run.range.start).min(70_000) as usize];
        if disk.read_at(run.range.start, &mut buf).is_ok() && !run.data {
            assert!(buf.iter().all(|byte| *byte == 0), "zeros are zeros");
        }
    }
}

/// Inputs to start from: each structure changed in a way that a rule is about.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let seed = |name: &str, kind: u8, records: &[(u8, u16, &[u8])]| {
        let mut bytes = vec![kind, 1];
        for (place, offset, change) in records {
            bytes.push(*place);
            bytes.extend(offset.to_le_bytes());
            bytes.push(change.len() as u8);
            bytes.extend_from_slice(change);
        }
        (name.to_owned(), bytes)
    };
    vec![
        seed("dynamic", 0, &[]),
        seed("fixed", 1, &[]),
        seed("child", 2, &[]),
        seed("size", 0, &[(0, 48, &[0xFF; 8]), (4, 48, &[0xFF; 8])]),
        seed("type", 0, &[(4, 60, &[0, 0, 0, 9])]),
        seed("geometry", 0, &[(4, 28, b"vpc "), (4, 56, &[0, 9, 4, 17])]),
        seed("header-far", 0, &[(0, 16, &[0x7F; 8]), (4, 16, &[0x7F; 8])]),
        seed("table-far", 0, &[(1, 16, &[0x7F; 8])]),
        seed("table-on-header", 0, &[(1, 22, &[2, 0])]),
        seed("entries", 0, &[(1, 28, &[0, 0, 0, 1])]),
        seed("small-blocks", 0, &[(1, 28, &[0, 0, 1, 1, 0, 0, 0x10, 0])]),
        seed("large-blocks", 0, &[(1, 32, &[0x10, 0, 0, 0])]),
        seed("odd-blocks", 0, &[(1, 32, &[0, 0, 0x30, 0])]),
        seed("entry-zero", 0, &[(2, 0, &[0; 4])]),
        seed("entry-far", 0, &[(2, 0, &[0x7F; 4])]),
        seed("entry-twice", 0, &[(2, 0, &[0, 0, 0, 4]), (2, 4, &[0, 0, 0, 4])]),
        seed("entry-unused", 0, &[(2, 0, &[0xFF; 4])]),
        seed("bitmap", 0, &[(3, 0, &[0x55; 64])]),
        seed("no-parent", 2, &[(1, 40, &[0; 16])]),
        seed("locator-far", 2, &[(1, 592, &[0xFF; 8])]),
        seed("locator-long", 2, &[(1, 584, &[0xFF; 4])]),
        seed("name", 2, &[(1, 64, &[0xD8; 250])]),
        seed("saved-state", 0, &[(4, 84, &[1])]),
        seed("cut-footer", 0, &[(CUT, 512, &[])]),
        seed("footer-of-511", 1, &[(CUT, 1, &[])]),
        seed("cut-block", 0, &[(CUT, 4096, &[])]),
        seed("footer-in-front", 1, &[(0, 0, b"conectix")]),
    ]
}
