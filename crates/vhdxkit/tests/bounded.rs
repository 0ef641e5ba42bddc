//! Work and memory stay within what the file's size explains: shown by counting, not by a clock.

mod common;

use common::Counting;
use std::sync::Arc;

use vhdxkit::OpenOptions;
use vhdxkit::format::Guid;
use vhdxkit::log::{EntryBuilder, Log};
use vhdxkit::ops::export::{Target, to_storage};
use vhdxkit::ops::inspect::count_blocks;
use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode, Storage};

const LOG: u32 = 64 << 20;
const SECTORS: u64 = 64 << 8;

/// A file that is nothing but headers and a log of 64 MiB.
fn file_with_log(guid: Guid, sector: impl Fn(u32) -> Vec<u8>) -> MemoryStorage {
    let image = vhdxkit_testkit::Image::dynamic(1 << 30).log_length(LOG);
    let layout = image.layout();
    let storage = MemoryStorage::new(image.build_vec());
    for number in 0..LOG / 4096 {
        let at = layout.log_offset + u64::from(number) * 4096;
        storage.write_at(at, &sector(number)).unwrap();
    }
    // Both headers name the session.
    for copy in [0x1_0000, 0x2_0000] {
        let mut header = vec![0; 4096];
        storage.read_at(copy, &mut header).unwrap();
        let mut header =
            <vhdxkit::format::header::Header as zerocopy::FromBytes>::read_from_bytes(&header)
                .unwrap();
        header.log_guid = guid;
        storage.write_at(copy, zerocopy::IntoBytes::as_bytes(&header.sealed())).unwrap();
    }
    storage
}

/// Headers, and what is read ahead of a descriptor.
const SLACK: u64 = 1 << 20;

/// The log, and how many bytes were read for it: the medium's count, not the library's own.
fn read_log(storage: MemoryStorage) -> (Log, u64) {
    let storage = Counting::new(storage);
    let log = Log::read(&storage).unwrap();
    (log, storage.count())
}

#[test]
fn a_log_full_of_one_sector_entries_is_scanned_in_linear_time() {
    let guid = Guid::from_u128(7);
    let storage = file_with_log(guid, |number| {
        EntryBuilder::new(guid, u64::from(number) + 1).encode().unwrap()
    });
    let (log, read) = read_log(storage);
    assert!(read <= 2 * u64::from(LOG) + SLACK, "{read} bytes were read");
    assert_eq!(log.entries().len() as u64, SECTORS);
    assert_eq!(log.active().unwrap().entries().len() as u64, SECTORS);
    assert!(log.sectors_judged() <= 2 * SECTORS, "{}", log.sectors_judged());
}

/// Every sector claims to start an entry as long as the log, with descriptors for all of it.
#[test]
fn a_hostile_log_is_scanned_in_linear_time() {
    let guid = Guid::from_u128(7);
    let storage = file_with_log(guid, |number| {
        let mut entry = EntryBuilder::new(guid, u64::from(number) + 1).encode().unwrap();
        entry[8..12].copy_from_slice(&LOG.to_le_bytes());
        entry[24..28].copy_from_slice(&100_000u32.to_le_bytes());
        entry
    });
    let (log, read) = read_log(storage);
    assert!(read <= 2 * u64::from(LOG) + SLACK, "{read} bytes were read");
    assert_eq!(log.entries().len() as u64, SECTORS);
    assert!(log.active().is_none());
    assert!(log.sectors_judged() <= 2 * SECTORS, "{}", log.sectors_judged());
}

#[cfg(target_os = "linux")]
fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// 64 TiB in blocks of 1 MiB: a BAT of 513 MiB, empty and full.
#[test]
fn looking_at_a_64_tib_image_reads_less_than_a_mebibyte() {
    if !common::have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for zero in ["off", "on"] {
        let path = dir.path().join(format!("{zero}.vhdx"));
        let options = format!("block_size=1M,block_state_zero={zero}");
        let path_text = path.to_str().unwrap();
        common::run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", &options, path_text, "64T"]);
        let file = FileStorage::open(&path, OpenMode::ReadOnly { force_share: false }).unwrap();
        let file = Arc::new(Counting::new(file));
        let image = OpenOptions::new().open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
        let counts = count_blocks(&image, false).unwrap();
        assert_eq!(counts.map(|counts| counts.not_present), (zero == "off").then_some(64 << 20));
        assert!(file.count() < 1 << 20, "{} bytes were read", file.count());
    }
}

#[test]
fn copying_an_empty_disk_of_100_gib_reads_next_to_nothing() {
    let image = vhdxkit_testkit::Image::dynamic(100 << 30).block_size(1 << 20);
    let file = Arc::new(Counting::new(MemoryStorage::new(image.build_vec())));
    let image = OpenOptions::new().open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
    let target = MemoryStorage::default();
    let report = to_storage(&image, &target, Target::Empty, &mut ()).unwrap();
    assert_eq!((report.read, report.written), (0, 0));
    assert_eq!(target.len().unwrap(), 100 << 30);
    assert!(file.count() < 1 << 20, "{} bytes were read", file.count());
}

/// What replay in memory keeps of a range of zeros must not depend on its length.
#[test]
fn a_zero_descriptor_over_terabytes_costs_nothing() {
    let image = vhdxkit_testkit::Image::dynamic(64 << 20);
    let session = image.session(1);
    let image = image.dirty(session);
    let end = 200u64 << 40;
    let entry = vhdxkit_testkit::LogEntry::new().zero(64 << 20, end - (64 << 20)).last(1 << 40);
    let bytes = image.log_entry(entry).build_vec();
    #[cfg(target_os = "linux")]
    let before = resident_peak();
    let image = common::open(MemoryStorage::new(bytes)).unwrap();
    assert_eq!(image.storage().len().unwrap(), end);
    #[cfg(target_os = "linux")]
    assert!(resident_peak() - before < 64 << 20);
}
