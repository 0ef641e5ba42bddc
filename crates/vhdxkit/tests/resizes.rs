//! A disk gets another size: what was there stays, what is new reads as zeros, what is cut off is
//! gone, and nothing is cut off by accident.

mod common;

use std::sync::Arc;

use vhdxkit::ops::check::check;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions, Shrink};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn writable(file: &Arc<MemoryStorage>) -> Image {
    OpenOptions::new().write(true).reproducible(1).open_storage(file.clone()).unwrap()
}

fn read(image: &Image, offset: u64) -> [u8; 512] {
    let mut buf = [0xEE; 512];
    image.read_at(offset, &mut buf).unwrap();
    buf
}

fn require_sound(file: &Arc<MemoryStorage>) {
    let findings = check(file.clone(), &mut ()).unwrap();
    assert!(!findings.has_problems(), "{findings:?}");
}

fn made(options: &CreateOptions) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::empty());
    options.create_storage(&*file).unwrap();
    file
}

#[test]
fn growing_keeps_what_was_there_and_adds_zeros() {
    for (fixed, sizes) in [
        (false, [3 * MIB, 10 * MIB, 5 * GIB, 300 * GIB, 40 << 40].as_slice()),
        (true, &[3 * MIB + 512, 10 * MIB, 700 * MIB]),
    ] {
        let options =
            CreateOptions::new(2 * MIB + 512).block_size(1 << 20).fixed(fixed).reproducible(3);
        let file = made(&options);
        let mut image = writable(&file);
        image.write_at(MIB, &[1; 512]).unwrap();
        image.write_at(2 * MIB, &[2; 512]).unwrap();
        let mut written = vec![(MIB, 1), (2 * MIB, 2)];
        for (number, &size) in sizes.iter().enumerate() {
            let before = image.virtual_size();
            let report = image.resize(size, Shrink::ZerosOnly).unwrap();
            assert_eq!((report.size_before, report.size_after), (before, size));
            assert_eq!(image.virtual_size(), size);
            for at in [before, size - 512] {
                assert_eq!(read(&image, at), [0; 512], "{size} at {at}");
            }
            let value = number as u8 + 10;
            image.write_at(size - 512, &[value; 512]).unwrap();
            written.push((size - 512, value));
            for &(at, value) in &written {
                assert_eq!(read(&image, at), [value; 512], "{size} at {at}");
            }
        }
        image.flush().unwrap();
        drop(image);
        let again = writable(&file);
        for &(at, value) in &written {
            assert!(read(&again, at) == [value; 512], "at {at}");
        }
        again.write_at(0, &[9; 512]).unwrap();
        again.close().unwrap();
        require_sound(&file);
    }
}

#[test]
fn the_old_tables_space_is_used_again_in_a_later_epoch() {
    let file = made(&CreateOptions::new(GIB).block_size(1 << 20).reproducible(3));
    let mut image = writable(&file);
    assert!(image.resize(400 * GIB, Shrink::ZerosOnly).unwrap().table_moved);
    for block in 0..300 {
        image.write_at(block * MIB, &[5; 512]).unwrap();
        image.flush().unwrap();
    }
    image.close().unwrap();
    // Header, log, metadata, a block in the old table's place, the new table of 4 MiB, other blocks.
    assert_eq!(file.len().unwrap(), (1 + 1 + 1 + 1 + 4 + 299) * MIB);
    require_sound(&file);
}

#[test]
fn shrinking_refuses_to_cut_data_off_and_frees_what_is_behind_the_end() {
    let file = made(&CreateOptions::new(3 * GIB).block_size(1 << 20).reproducible(3));
    let mut image = writable(&file);
    for at in [0, GIB, 2 * GIB + 5 * MIB] {
        image.write_at(at, &vec![7; 1 << 20]).unwrap();
    }
    let error = image.resize(2 * GIB, Shrink::ZerosOnly).unwrap_err().to_string();
    assert!(error.contains(&(2 * GIB + 5 * MIB).to_string()), "{error}");
    let error = image.resize(GIB + 512, Shrink::ZerosOnly).unwrap_err().to_string();
    assert!(error.contains(&(GIB + 512).to_string()), "{error}");
    assert_eq!(read(&image, 2 * GIB + 5 * MIB), [7; 512]);
    image.resize(GIB + 512, Shrink::Anything).unwrap();
    assert_eq!(image.virtual_size(), GIB + 512);
    assert_eq!(read(&image, GIB), [7; 512]);
    assert!(image.read_at(GIB + 512, &mut [0; 512]).is_err());
    image.resize(3 * GIB, Shrink::ZerosOnly).unwrap();
    for at in [GIB + 512, 2 * GIB + 5 * MIB] {
        assert_eq!(read(&image, at), [0; 512], "old data came back at {at}");
    }
    image.close().unwrap();
    require_sound(&file);
    assert_eq!(file.len().unwrap(), 4 * MIB + 2 * MIB);
    let image = writable(&file);
    assert_eq!((read(&image, 0), read(&image, GIB)), ([7; 512], [7; 512]));
}

#[test]
fn impossible_sizes_are_refused() {
    let file = made(&CreateOptions::new(GIB).block_size(1 << 20).reproducible(3));
    let before = file.to_vec();
    let mut image = writable(&file);
    for size in [0, 511, GIB + 1, (64 << 40) + 512] {
        assert!(image.resize(size, Shrink::Anything).is_err(), "{size}");
    }
    assert!(!image.resize(GIB, Shrink::Anything).unwrap().table_moved);
    drop(image);
    assert!(file.to_vec() == before);
}
