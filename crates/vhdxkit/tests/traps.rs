//! Mistakes that existing programs make with VHDX files, each as a test named after the failure.
//!
//! The search for the active sequence has its share of them beside its code, in `log/scan.rs`.

mod common;

use std::sync::Arc;

use vhdxkit::defect::Defect;
use vhdxkit::format::Guid;
use vhdxkit::format::header::Header;
use vhdxkit::log::{Log, LogState, replay_in_place};
use vhdxkit::ops::check::check;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{ErrorKind, Image};
use vhdxkit_testkit::{self as kit, Contents, LogEntry};

const MIB: u64 = 1 << 20;

fn open(bytes: Vec<u8>) -> vhdxkit::Result<Image> {
    common::open(MemoryStorage::new(bytes))
}

fn guest(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn both_headers(storage: &dyn Storage) -> [Header; 2] {
    let pair = HeaderPair::inspect(storage).unwrap();
    pair.copies().each_ref().map(|copy| copy.as_ref().expect("a valid copy").clone())
}

/// A 16 MiB disk with one block in place, and a session to log in.
fn disk() -> (kit::Image, Guid) {
    let image = kit::Image::dynamic(16 * MIB).block(0, Contents::Pattern(1));
    let session = image.session(1);
    (image.dirty(session), session)
}

/// Opens the image in memory and replays it in place: both must show what the builder expects.
fn replays_as_expected(image: &kit::Image) {
    let bytes = image.build_vec();
    assert!(guest(&open(bytes.clone()).unwrap()) == image.expected_guest(), "in memory");
    let file = Arc::new(MemoryStorage::new(bytes));
    replay_in_place(&*file).unwrap().expect("something to replay");
    let replayed = open(file.to_vec()).unwrap();
    assert_eq!(replayed.log().state(), LogState::Clean);
    assert!(guest(&replayed) == image.expected_guest(), "in place");
}

/// Trap 1: what lies before the head's Tail is not replayed; its space may have been reused.
#[test]
fn entries_before_the_tail_are_not_replayed_over_newer_data() {
    let (image, _) = disk();
    let page = image.layout().bat_page_offset(0);
    let image = image
        .log_entry(LogEntry::new().data(page, &[0xEE; 4096]))
        .log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)).tail_self());
    replays_as_expected(&image);
}

/// Trap 2: one torn entry must not make the image unopenable, nor hide what came before it.
#[test]
fn a_torn_last_entry_does_not_lose_the_ones_before() {
    let (image, _) = disk();
    let image = image
        .log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)))
        .log_entry(LogEntry::new().allocate(4, Contents::Pattern(4)).torn(1));
    replays_as_expected(&image);
}

/// Trap 2: the descriptors behind the first 126 lie in sectors without a header.
#[test]
fn more_than_126_descriptors_are_all_replayed() {
    let image = kit::Image::dynamic(16 * MIB).block(0, Contents::Pattern(1));
    let session = image.session(1);
    let payload = image.layout().payload_start;
    let entry = (0..200u64).fold(LogEntry::new(), |entry, number| {
        entry.data(payload + number * 4096, &[number as u8; 4096])
    });
    let image = open(image.dirty(session).log_entry(entry).build_vec()).unwrap();
    let mut bytes = vec![0; 201 * 4096];
    image.read_at(0, &mut bytes).unwrap();
    for (number, sector) in bytes.chunks(4096).enumerate() {
        let expected = if number < 200 { number as u8 } else { 1 };
        assert!(sector.iter().all(|&byte| byte == expected), "sector {number}");
    }
}

/// Trap 3: a file must be extended to LastFileOffset, all the more when that is a whole mebibyte;
/// otherwise the blocks that the log hands out lie beyond its end once the log is cleared.
#[test]
fn the_file_is_extended_to_last_file_offset() {
    let (image, _) = disk();
    let length = image.layout().file_length;
    let page = image.layout().bat_page_offset(0);
    let mut bat = [0; 4096];
    bat[..8].copy_from_slice(&(length | 6).to_le_bytes());
    let image = image.log_entry(LogEntry::new().data(page, &bat).last(length + 5 * MIB));
    let bytes = image.build_vec();
    assert_eq!(bytes.len() as u64, length, "the file ends before the block");
    assert_eq!(open(bytes.clone()).unwrap().storage().len().unwrap(), length + 5 * MIB);
    let file = MemoryStorage::new(bytes);
    let report = replay_in_place(&file).unwrap().unwrap();
    assert_eq!((report.bytes_before, report.bytes_after), (length, length + 5 * MIB));
    assert_eq!(file.len().unwrap(), length + 5 * MIB);
    assert!(guest(&open(file.to_vec()).unwrap()).iter().all(|&byte| byte == 0));
}

/// Trap 4: the newest entry alone says how long the file must be, and it is asked before anything is
/// written. Windows even writes 0.
#[test]
fn flushed_file_offset_is_the_heads_and_is_asked_before_the_first_write() {
    let (image, _) = disk();
    let length = image.layout().file_length;
    let older = LogEntry::new().allocate(3, Contents::Pattern(3)).flushed(length + 900 * MIB);
    let head = || LogEntry::new().allocate(4, Contents::Pattern(4));
    replays_as_expected(&image.clone().log_entry(older.clone()).log_entry(head().flushed(0)));

    let cut = image.log_entry(older.flushed(0)).log_entry(head().flushed(length + 900 * MIB));
    let bytes = cut.build_vec();
    let file = MemoryStorage::new(bytes.clone());
    let error = replay_in_place(&file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
    assert!(matches!(error.defect(), Some(Defect::Truncated { .. })));
    assert!(file.to_vec() == bytes, "something was written before the length was asked");
    assert_eq!(open(bytes).unwrap_err().kind(), ErrorKind::Truncated);
}

/// Trap 5: an entry that would write over the file identifier, the headers or the log, or beyond any
/// file, does not count. Older ones still do; without any the image is refused, unchanged.
#[test]
fn entries_that_write_where_no_log_may_do_not_count() {
    let (image, _) = disk();
    let log = image.layout().log_offset;
    let bad: [LogEntry; 6] = [
        LogEntry::new().data(0, &[0; 4096]),
        LogEntry::new().data(64 << 10, &[0; 4096]),
        LogEntry::new().data(128 << 10, &[0; 4096]),
        LogEntry::new().data(log + 4096, &[0; 4096]),
        LogEntry::new().zero(log - MIB + (192 << 10), 2 * MIB),
        LogEntry::new().zero(4 * MIB, 1 << 60),
    ];
    for (number, entry) in bad.into_iter().enumerate() {
        let alone = image.clone().log_entry(entry.clone()).build_vec();
        let file = MemoryStorage::new(alone.clone());
        let error = replay_in_place(&file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LogInvalid, "entry {number}");
        assert!(file.to_vec() == alone, "entry {number} wrote something");

        let after = image
            .clone()
            .log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)))
            .log_entry(entry);
        let log = Log::read(&MemoryStorage::new(after.build_vec())).unwrap();
        assert_eq!(log.active().unwrap().entries().len(), 1, "entry {number}");
    }
}

/// Trap 8: QEMU's replay changes the DataWriteGuid, differently in the two copies (which orphans
/// children), and gives a damaged copy a valid checksum.
#[test]
fn replay_keeps_the_data_write_guid_and_leaves_two_complete_headers() {
    let (image, _) = disk();
    let image = image.log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)));
    for damaged in [None, Some(0x1_0000), Some(0x2_0000)] {
        let mut bytes = image.build_vec();
        if let Some(at) = damaged {
            // The lower sequence number is the older copy's; damage must not pick the stale fields.
            bytes[at + 0x20..at + 0x30].fill(0x99);
        }
        let file = MemoryStorage::new(bytes);
        let before = HeaderPair::inspect(&file).unwrap().current().clone();
        if before.log_guid.is_zero() {
            continue; // the copy that named the log is gone, and with it the need to replay
        }
        replay_in_place(&file).unwrap().unwrap();
        let headers = both_headers(&file);
        for header in &headers {
            assert_eq!(header.data_write_guid, before.data_write_guid);
            assert_ne!(header.file_write_guid, before.file_write_guid);
            assert!(header.log_guid.is_zero());
            assert_eq!(header.log_offset, before.log_offset);
        }
        assert_eq!(headers[0].file_write_guid, headers[1].file_write_guid);
    }
}

/// Data and zeros take effect in the order of the log, and zeros really are written.
#[test]
fn zero_descriptors_are_carried_out_in_order() {
    let image = kit::Image::dynamic(16 * MIB).block(0, Contents::Pattern(1));
    let (session, at) = (image.session(1), image.layout().payload_start);
    let image = image
        .dirty(session)
        .log_entry(LogEntry::new().data(at, &[2; 4096]).data(at + 8192, &[2; 4096]))
        .log_entry(LogEntry::new().zero(at, 16384).data(at + 4096, &[3; 4096]))
        .log_entry(LogEntry::new().zero(at + 20480, 4096));
    let bytes = image.build_vec();
    let file = MemoryStorage::new(bytes.clone());
    let report = replay_in_place(&file).unwrap().unwrap();
    assert_eq!((report.sectors, report.zeroed), (3, 20480));
    for (way, image) in [("in memory", open(bytes)), ("in place", open(file.to_vec()))] {
        let seen = guest(&image.unwrap());
        let first: Vec<u8> = seen.chunks(4096).take(7).map(|sector| sector[100]).collect();
        assert_eq!(first, [0, 3, 0, 0, 1, 0, 1], "{way}");
    }
}

/// Trap 10: without the interleaved sector bitmap entries every block beyond 4 GiB is another one's.
#[test]
fn blocks_beyond_4_gib_are_their_own() {
    let blocks = [0u64, 4095, 4096, 4097, 8191, 8192, 9000];
    let image = blocks.iter().fold(kit::Image::dynamic(9 << 30), |image, &block| {
        image.block(block, Contents::Pattern((block % 251) as u8 + 1))
    });
    let image = open(image.build_vec()).unwrap();
    for block in blocks {
        let mut bytes = vec![0; MIB as usize];
        image.read_at(block * MIB, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == (block % 251) as u8 + 1), "block {block}");
        image.read_at((block + 20) * MIB, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "behind block {block}");
    }
}

/// Trap 10: reads that cross the border of a block, or several, come back short or wrong.
#[test]
fn reads_across_blocks_are_whole() {
    let image = kit::Image::dynamic(8 * MIB)
        .block(3, Contents::Pattern(3))
        .block(1, Contents::Pattern(1))
        .block(2, Contents::Pattern(2));
    let expected = image.expected_guest();
    let image = open(image.build_vec()).unwrap();
    for start in [0, MIB - 1, MIB, MIB + 511, 2 * MIB - 512, 3 * MIB + 7] {
        for length in [1u64, 2, 512, MIB, 2 * MIB + 3, 4 * MIB] {
            let mut bytes = vec![0xCC; length as usize];
            image.read_at(start, &mut bytes).unwrap();
            let wanted = &expected[start as usize..][..length as usize];
            assert!(bytes == wanted, "{length} bytes at {start}");
        }
    }
    assert_eq!(image.read_at(8 * MIB - 1, &mut [0; 2]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(image.read_at(u64::MAX, &mut [0; 2]).unwrap_err().kind(), ErrorKind::OutOfRange);
}

/// Trap 11: a log that stays named after its replay is replayed again, over what came since.
#[test]
fn a_replayed_log_is_not_replayed_again() {
    let (image, _) = disk();
    let page = image.layout().bat_page_offset(0);
    let image = image.log_entry(LogEntry::new().allocate(3, Contents::Pattern(3)));
    let file = MemoryStorage::new(image.build_vec());
    replay_in_place(&file).unwrap().unwrap();
    // Somebody writes the table afterwards.
    file.write_at(page, &[0; 4096]).unwrap();
    let after = file.to_vec();
    assert_eq!(replay_in_place(&file).unwrap(), None);
    assert!(file.to_vec() == after);
    assert!(guest(&open(after).unwrap()).iter().all(|&byte| byte == 0));
}

/// Trap 14: what other programs write and have written for years must open, read right, and not be
/// called broken where nothing is.
#[test]
fn deviations_of_living_programs_are_accepted() {
    let plain = || kit::Image::dynamic(16 * MIB + 512).block(0, Contents::Pattern(7));
    let bitmap_entry = 4096;
    let big = kit::Image::dynamic(5 << 30).block(0, Contents::Pattern(7));
    let junk = big.bat_entry(bitmap_entry, 0xFFFF_FFFF_FFF0_0006);
    let last = 16;
    let cases: [(&str, kit::Image, bool); 7] = [
        ("regions not marked as required (QEMU)", plain().required_flag(false), false),
        ("twin headers (Disk2vhd)", plain().twin_headers(), false),
        ("an uneven length (Disk2vhd)", plain().extra_tail(512), false),
        (
            "a last block cut off at the virtual size (QEMU)",
            plain().block(last, Contents::Pattern(9)).cut_last_block(true),
            false,
        ),
        ("state 5, UNMAPPED in the draft", plain().block(5, Contents::State(5, 0)), true),
        ("junk in an unused bitmap entry (QEMU before 8.0)", junk, true),
        ("an offset under a zero block", plain().block(5, Contents::State(2, 9 * MIB)), true),
    ];
    for (name, image, warns) in cases {
        let bytes = image.build_vec();
        let opened = open(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut first = [0; 512];
        opened.read_at(0, &mut first).unwrap();
        assert_eq!(first, [7; 512], "{name}");
        let mut end = [1; 512];
        opened.read_at(opened.virtual_size() - 512, &mut end).unwrap();
        assert!(end.iter().all(|&byte| byte == 0 || byte == 9), "{name}");
        let findings = check(Arc::new(MemoryStorage::new(bytes)), &mut ()).unwrap();
        assert_eq!(findings.has_problems(), warns, "{name}: {:?}", findings.list());
        let errors = findings.list().iter().filter(|f| f.severity().name() == "error");
        assert_eq!(errors.count(), 0, "{name}: {:?}", findings.list());
    }
}

/// Trap 14: parents' paths as Windows really writes them.
#[test]
fn locators_as_windows_writes_them_are_accepted() {
    let image = kit::Image::differencing(16 * MIB, Guid::from_u128(5))
        .parent_path("absolute_win32_path", r"C:\vm\parent.vhdx")
        .parent_path("relative_path", r".\parent.vhdx")
        .parent_path("parent_linkage2", "{00000000-0000-0000-0000-000000000000}");
    let bytes = image.build_vec();
    let opened = open(bytes.clone()).unwrap();
    let locator = opened.parent_locator().unwrap();
    assert_eq!(locator.linkage(), Some(Guid::from_u128(5)));
    assert_eq!(locator.linkage2(), None);
    assert_eq!(locator.get("absolute_win32_path"), Some(r"C:\vm\parent.vhdx"));
    let findings = check(Arc::new(MemoryStorage::new(bytes)), &mut ()).unwrap();
    assert!(!findings.has_problems(), "{:?}", findings.list());
}

/// V30, and its bound: a table whose every entry names the same place is judged in one more sweep.
#[test]
fn overlaps_name_both_owners_and_are_counted() {
    let image = kit::Image::dynamic(64 * MIB).block(0, Contents::Pattern(1));
    let layout = image.layout();
    let place = layout.blocks[&0] | 6;
    let image = (1..60).fold(image, |image, block| image.bat_entry(layout.bat_index(block), place));
    let image = image.bat_entry(layout.bat_index(63), layout.bat_offset | 6);
    let findings = check(Arc::new(MemoryStorage::new(image.build_vec())), &mut ()).unwrap();
    let overlaps: Vec<String> =
        findings.list().iter().filter(|f| f.code() == "V30").map(ToString::to_string).collect();
    assert_eq!(overlaps.len(), 20);
    assert!(overlaps[0].contains("block 1 ") && overlaps[0].contains("block 0"), "{}", overlaps[0]);
    assert_eq!(findings.left_out().collect::<Vec<_>>(), [("V30", 40)]);
}
