//! What a guest writes is what it reads, in this session, after a clean close, and after a crash; and
//! other programs agree.

mod common;

use std::sync::Arc;

use vhdxkit::log::LogState;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, ErrorKind, Image, OpenOptions};

const MIB: u64 = 1 << 20;

fn fresh(options: &CreateOptions) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::empty());
    options.create_storage(&*file).unwrap();
    file
}

fn writable(file: &Arc<MemoryStorage>) -> Image {
    OpenOptions::new().write(true).reproducible(1).open_storage(file.clone()).unwrap()
}

fn readable(file: &Arc<MemoryStorage>) -> Image {
    OpenOptions::new().open_storage(file.clone()).unwrap()
}

fn read(image: &Image, offset: u64, length: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; length];
    image.read_at(offset, &mut buf).unwrap();
    buf
}

fn dynamic() -> CreateOptions {
    CreateOptions::new(64 * MIB).block_size(1 << 20).reproducible(7)
}

#[test]
fn what_was_written_reads_back_in_this_session_after_a_close_and_after_a_crash() {
    for close in [true, false] {
        let file = fresh(&dynamic());
        let image = writable(&file);
        image.write_at(3 * MIB - 512, &[7; 2048]).unwrap();
        assert_eq!(read(&image, 3 * MIB - 512, 2048), [7; 2048]);
        assert_eq!(read(&image, 3 * MIB - 1024, 512), [0; 512]);
        image.flush().unwrap();
        image.write_at(40 * MIB, &[9; 512]).unwrap();
        if close {
            image.close().unwrap();
        } else {
            image.flush().unwrap();
        }
        drop(image);
        let again = readable(&file);
        let state = if close { LogState::Clean } else { LogState::Dirty };
        assert_eq!(again.log().state(), state);
        assert_eq!(read(&again, 3 * MIB - 512, 2048), [7; 2048]);
        assert_eq!(read(&again, 40 * MIB, 512), [9; 512]);
        assert_eq!(read(&again, 0, 512), [0; 512]);
        let again = writable(&file);
        assert_eq!(read(&again, 3 * MIB - 512, 2048), [7; 2048]);
        assert!(file.len().unwrap() <= 80 * MIB);
    }
}

#[test]
fn an_image_that_is_opened_for_writing_and_not_written_stays_as_it_is() {
    let file = fresh(&dynamic());
    let before = file.to_vec();
    let image = writable(&file);
    image.flush().unwrap();
    image.discard(0..0).unwrap();
    image.close().unwrap();
    assert!(file.to_vec() == before);
}

#[test]
fn a_clean_close_cuts_the_file_to_what_is_used() {
    let file = fresh(&dynamic());
    let empty = file.len().unwrap();
    let image = writable(&file);
    for block in 0..5 {
        image.write_at(block * 7 * MIB, &[1; 512]).unwrap();
    }
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), empty + 5 * MIB);
    image.close().unwrap();
    assert_eq!(image.write_at(0, &[0; 512]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(read(&image, 7 * MIB, 512), [1; 512]);
}

#[test]
fn trimmed_and_zeroed_blocks_read_zeros_and_their_space_is_used_again() {
    let file = fresh(&dynamic());
    let image = writable(&file);
    for block in 0..10 {
        image.write_at(block * MIB, &vec![block as u8 + 1; 1 << 20]).unwrap();
    }
    image.flush().unwrap();
    image.discard(2 * MIB..5 * MIB).unwrap();
    image.write_zeroes(6 * MIB + 512..8 * MIB).unwrap();
    for (at, value) in [(2, 0), (4, 0), (5, 6), (6, 7), (7, 0), (8, 9)] {
        assert_eq!(read(&image, at * MIB, 512), [value; 512], "{at}");
    }
    assert_eq!(read(&image, 7 * MIB - 512, 512), [0; 512]);
    image.flush().unwrap();
    for block in 20..24 {
        image.write_at(block * MIB + 4096, &[0xAA; 512]).unwrap();
        assert_eq!(read(&image, block * MIB, 4096), [0; 4096], "stale bytes in block {block}");
    }
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), 4 * MIB + 10 * MIB);
    let again = readable(&file);
    for (at, value) in [(2, 0), (5, 6), (6, 7), (7, 0), (8, 9), (20, 0)] {
        assert_eq!(read(&again, at * MIB, 512), [value; 512], "{at}");
    }
    assert_eq!(read(&again, 23 * MIB + 4096, 512), [0xAA; 512]);
}

#[test]
fn fixed_disks_keep_their_blocks() {
    let file = fresh(&dynamic().fixed(true));
    let length = file.len().unwrap();
    let image = writable(&file);
    image.write_at(MIB, &[5; 4096]).unwrap();
    image.discard(MIB..2 * MIB).unwrap();
    assert_eq!(read(&image, MIB, 512), [5; 512]);
    image.write_zeroes(MIB..2 * MIB).unwrap();
    assert_eq!(read(&image, MIB, 512), [0; 512]);
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), length);
    assert!(readable(&file).extents(0..64 * MIB).all(|e| e.unwrap().file_offset.is_some()));
}

#[test]
fn the_log_is_filled_many_times() {
    let file = fresh(&CreateOptions::new(4 << 30).block_size(1 << 20).reproducible(7));
    let image = writable(&file);
    for round in 0..600u64 {
        image.write_at(round * 5 * MIB, &round.to_le_bytes().repeat(64)).unwrap();
        image.flush().unwrap();
    }
    drop(image);
    let again = readable(&file);
    assert_eq!(again.log().state(), LogState::Dirty);
    for round in 0..600u64 {
        assert_eq!(read(&again, round * 5 * MIB, 512), round.to_le_bytes().repeat(64));
    }
}

#[test]
fn extents_show_what_is_not_in_the_file_yet() {
    let file = fresh(&CreateOptions::new(64 << 40).block_size(1 << 20).reproducible(7));
    let image = writable(&file);
    let at = (40 << 40) + 5 * MIB;
    image.write_at(at, &[1; 512]).unwrap();
    let data: Vec<_> = image
        .extents(0..image.virtual_size())
        .map(|e| e.unwrap())
        .filter(|e| e.file_offset.is_some())
        .collect();
    assert_eq!((data.len(), data[0].start, data[0].length), (1, at, MIB));
}

#[test]
fn bad_requests_change_nothing() {
    let file = fresh(&dynamic());
    let before = file.to_vec();
    let image = writable(&file);
    for (offset, length) in [(1, 512), (0, 100), (512, 513)] {
        let error = image.write_at(offset, &vec![1; length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    for offset in [64 * MIB, 64 * MIB - 512, u64::MAX - 511] {
        let error = image.write_at(offset, &[1; 1024]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    }
    assert!(image.discard(5..512).is_err() && image.write_zeroes(0..65 * MIB).is_err());
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 1024..512;
    assert!(image.discard(reversed).is_err());
    assert!(file.to_vec() == before);
    let reader = readable(&file);
    assert!(reader.write_at(0, &[0; 512]).is_err() && reader.flush().is_err());
}

/// Writing to one of two blocks that share their space would change the other.
#[test]
fn an_image_whose_blocks_overlap_is_not_written() {
    let file = fresh(&dynamic().fixed(true));
    let table = readable(&file).regions().bat().offset;
    let mut entry = [0; 8];
    file.read_at(table, &mut entry).unwrap();
    file.write_at(table + 8, &entry).unwrap();
    let before = file.to_vec();
    let image = writable(&file);
    let error = image.write_at(0, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("BAT"), "{error}");
    drop(image);
    assert!(file.to_vec() == before);
}

/// Space that was given up can be used again only after a commit: it must not take the guest to ask for
/// one.
#[test]
fn a_block_written_and_trimmed_over_and_over_does_not_make_the_file_grow() {
    let file = fresh(&dynamic());
    let image = writable(&file);
    for round in 0..2000u64 {
        image.write_at(round % 3 * MIB, &[7; 512]).unwrap();
        image.discard(round % 3 * MIB..(round % 3 + 1) * MIB).unwrap();
    }
    assert!(file.len().unwrap() < 300 * MIB, "{} MiB", file.len().unwrap() / MIB);
    image.close().unwrap();
    assert!(file.len().unwrap() < 80 * MIB, "{} MiB", file.len().unwrap() / MIB);
}
