//! Mistakes that other programs make when they write, each guarded here or in the simulator.
//!
//! Trap 6 (a header that names a log without an entry) and 7 (log space reused too early) are crash
//! states: `vhdxkit-sim`, planted there as d02, c01 and c02.

mod common;

use std::sync::Arc;

use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode, Storage};
use vhdxkit::{CreateOptions, ErrorKind, ExtentState, OpenOptions};

const MIB: u64 = 1 << 20;

/// Trap 9: the end of a file is taken for zeros after a clean reopen, and shows old bytes in a new
/// block.
#[test]
fn what_lies_behind_the_last_block_never_shows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    CreateOptions::new(64 * MIB).block_size(1 << 20).create(&path).unwrap();
    let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    let end = file.len().unwrap();
    file.write_at(end, &vec![0xEE; 8 << 20]).unwrap();
    drop(file);
    for round in 0..4u64 {
        let image = OpenOptions::new().write(true).open(&path).unwrap();
        image.write_at(round * 5 * MIB + 8192, &[1; 512]).unwrap();
        let mut block = vec![0xAA; 1 << 20];
        image.read_at(round * 5 * MIB, &mut block).unwrap();
        block[8192..8704].fill(0);
        assert!(block.iter().all(|byte| *byte == 0), "round {round}: old bytes in a new block");
        image.close().unwrap();
    }
}

/// Free space in which data and holes share a mebibyte was counted as free twice, and given to two blocks.
#[test]
fn free_space_with_small_holes_is_handed_out_once() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(64 * MIB).block_size(2 << 20).create_storage(&*file).unwrap();
    let end = file.len().unwrap();
    for mebibyte in 0..9 {
        for within in [8192, MIB / 2, MIB - 4096] {
            file.write_at(end + mebibyte * MIB + within, &[0xEE; 6000]).unwrap();
        }
    }
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    for block in 0..8u8 {
        image.write_at(u64::from(block) * 2 * MIB, &vec![block + 1; 2 << 20]).unwrap();
    }
    image.close().unwrap();
    for block in 0..8u8 {
        let mut bytes = vec![0; 2 << 20];
        image.read_at(u64::from(block) * 2 * MIB, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == block + 1), "block {block} shows another one");
    }
    assert!(!vhdxkit::ops::check::check(file, &mut ()).unwrap().has_problems());
}

/// Blocks behind the end of a file that was cut: growing the file would make what is lost read as zeros,
/// without an error, for ever.
#[test]
fn an_image_with_blocks_behind_its_end_is_not_written() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(64 * MIB).block_size(1 << 20).create_storage(&*file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    for block in 0..3 {
        image.write_at(block * MIB, &[7; 1 << 20]).unwrap();
    }
    image.close().unwrap();
    file.set_len(file.len().unwrap() - MIB).unwrap();
    let before = file.to_vec();
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    let error = image.write_at(40 * MIB, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(image.read_at(2 * MIB, &mut [0; 512]).is_err());
    image.read_at(MIB, &mut [0; 512]).unwrap();
    drop(image);
    assert!(before == file.to_vec(), "the file was changed");
}

/// Trap 12: "fixed" images whose every block is ZERO, and which grow to twice their size.
#[test]
fn a_fixed_disk_has_every_block_from_the_start_and_never_grows() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(20 * MIB + 512)
        .block_size(2 << 20)
        .fixed(true)
        .create_storage(&*file)
        .unwrap();
    let length = file.len().unwrap();
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    let size = image.virtual_size();
    assert!(image.extents(0..size).all(|e| e.unwrap().state == ExtentState::Data));
    for at in (0..size - 512).step_by(1 << 20) {
        image.write_at(at / 512 * 512, &[1; 512]).unwrap();
    }
    image.write_zeroes(0..size).unwrap();
    image.discard(0..size).unwrap();
    image.close().unwrap();
    assert_eq!(file.len().unwrap(), length);
    assert!(image.extents(0..size).all(|e| e.unwrap().state == ExtentState::Data));
}

/// A file that is cut by somebody else while we write it: an error that says so, and no entry that
/// would lie about the length.
#[test]
fn a_file_that_shrinks_under_us_is_noticed() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(64 * MIB).block_size(1 << 20).create_storage(&*file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    image.flush().unwrap();
    image.write_at(9 * MIB, &[1; 512]).unwrap();
    file.set_len(6 * MIB).unwrap();
    let error = image.flush().unwrap_err();
    assert!(error.to_string().contains("cut"), "{error}");
    assert_eq!(image.write_at(0, &[2; 512]).unwrap_err().kind(), ErrorKind::Poisoned);
    let mut sector = [0; 512];
    image.read_at(0, &mut sector).unwrap();
    assert_eq!(sector, [1; 512]);
}

/// Somebody else writes a header while we have the image: the next header of ours is not written.
#[test]
fn a_second_writer_is_noticed_before_a_header_is_written() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(64 * MIB).block_size(1 << 20).create_storage(&*file).unwrap();
    let first = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    let second = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    second.write_at(0, &[1; 512]).unwrap();
    second.close().unwrap();
    let error = first.write_at(MIB, &[2; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignWriter, "{error}");
    let again = OpenOptions::new().open_storage(file).unwrap();
    let mut sector = [0; 512];
    again.read_at(0, &mut sector).unwrap();
    assert_eq!(sector, [1; 512]);
}

/// Many threads on one image: every thread finds what it wrote, and the file is sound afterwards.
#[test]
fn many_threads_write_trim_and_flush_one_image() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(256 * MIB).block_size(1 << 20).create_storage(&*file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(file.clone()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let image = &image;
            scope.spawn(move || {
                // All threads meet in the same blocks, each in its own sectors.
                let mut sector = [0; 4096];
                for step in 0..400u64 {
                    let at = (step * 7 % 60) * MIB + thread * 4096;
                    let value = (thread * 40 + step % 40) as u8 + 1;
                    image.write_at(at, &[value; 4096]).unwrap();
                    image.read_at(at, &mut sector).unwrap();
                    assert_eq!(sector, [value; 4096], "thread {thread}, step {step}");
                    let own = (100 + thread) * MIB;
                    match step % 5 {
                        0 => image.flush().unwrap(),
                        1 => image.write_at(own, &[value; 4096]).unwrap(),
                        3 => image.discard(own..own + MIB).unwrap(),
                        _ => {}
                    }
                }
            });
        }
    });
    image.close().unwrap();
    let findings = vhdxkit::ops::check::check(file, &mut ()).unwrap();
    assert!(!findings.has_problems(), "{findings:?}");
}

/// Many threads on a child: they meet in words of one bitmap, and blocks become whole under them. What
/// nobody wrote shows the parent all the while.
#[test]
fn many_threads_fill_the_blocks_of_a_child() {
    const BLOCKS: u64 = 12;
    let base = Arc::new(MemoryStorage::empty());
    CreateOptions::new(BLOCKS * MIB).block_size(1 << 20).create_storage(&*base).unwrap();
    let parent = OpenOptions::new().write(true).open_storage(base.clone()).unwrap();
    parent.write_at(0, &vec![0xBB; (BLOCKS * MIB) as usize]).unwrap();
    parent.close().unwrap();
    drop(parent);
    let below = || OpenOptions::new().open_storage(base.clone()).unwrap();
    let file = Arc::new(MemoryStorage::empty());
    let options = CreateOptions::child_of(&below()).unwrap();
    options.block_size(1 << 20).create_storage(&*file).unwrap();
    let open = |write: bool| OpenOptions::new().write(write).open_child(file.clone(), below());
    let image = open(true).unwrap();
    // Of every eight sectors each thread has one; of the even blocks all are written, of the odd ones half.
    let written = |block: u64, sector: u64| block.is_multiple_of(2) || sector < 1024;
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let image = &image;
            scope.spawn(move || {
                let mut found = [0; 512];
                for step in 0..256u64 {
                    for block in 0..BLOCKS {
                        let sector = (step * 37 % 256) * 8 + thread;
                        let at = block * MIB + sector * 512;
                        image.read_at(at, &mut found).unwrap();
                        assert_eq!(found, [0xBB; 512], "the parent, thread {thread}, {at:#x}");
                        if written(block, sector) {
                            image.write_at(at, &[thread as u8 + 1; 512]).unwrap();
                            image.read_at(at, &mut found).unwrap();
                            assert_eq!(found, [thread as u8 + 1; 512], "thread {thread}, {at:#x}");
                        }
                    }
                    if step % 16 == thread {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    let judge = |image: &vhdxkit::Image| {
        let mut all = vec![0; (BLOCKS * MIB) as usize];
        image.read_at(0, &mut all).unwrap();
        for (number, sector) in all.chunks(512).enumerate() {
            let (block, within) = (number as u64 / 2048, number as u64 % 2048);
            let expected = if written(block, within) { (within % 8) as u8 + 1 } else { 0xBB };
            assert_eq!(sector, [expected; 512], "block {block}, sector {within}");
        }
    };
    judge(&image);
    image.close().unwrap();
    drop(image);
    judge(&open(false).unwrap());
    let findings = vhdxkit::ops::check::check(file.clone(), &mut ()).unwrap();
    assert!(!findings.has_problems(), "{findings:?}");
    let image = open(false).unwrap();
    for block in 0..BLOCKS {
        let state = image.bat_entry(image.geometry().payload_index(block)).unwrap().state();
        assert_eq!(state, if block.is_multiple_of(2) { 6 } else { 7 }, "block {block}");
    }
}
