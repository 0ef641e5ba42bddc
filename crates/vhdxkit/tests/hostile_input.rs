//! Files that were damaged on purpose: every bit of every structure turned over, every cut, and a
//! table of malformed files with the one error that each must give.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vhdxkit::format::metadata::{self, Item};
use vhdxkit::format::region::{BAT_REGION, METADATA_REGION};
use vhdxkit::format::{Guid, MIB};
use vhdxkit::ops::check::check;
use vhdxkit::storage::{MemoryStorage, Overlay, Storage};
use vhdxkit::{Error, ErrorKind, Image, OpenOptions};
use zerocopy::little_endian::{U16, U32, U64};

#[path = "../../../fuzz/src/harness/base.rs"]
pub mod base;

use base::{Base, FIRST_AT, Kind, LOG_AT, LogKind, METADATA_AT, region_at};

/// What the guest sees of the small disk: a piece of each block.
fn guest_bytes(image: &Image) -> Vec<Result<Vec<u8>, ErrorKind>> {
    let size = image.virtual_size();
    let starts = [0, MIB, 2 * MIB, 3 * MIB + 8192, size.saturating_sub(4096)];
    let read = |start: u64| {
        let mut bytes = vec![0; size.saturating_sub(start).min(4096) as usize];
        match image.read_at(start, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(explained(&error).kind()),
        }
    };
    starts.into_iter().filter(|start| *start < size).map(read).collect()
}

/// The file lies in memory: an error means a malformed file, and says what and where.
fn explained(error: &Error) -> &Error {
    let defect = error.defect().unwrap_or_else(|| panic!("no defect: {error:?}"));
    assert!(defect.offset().is_some() && !defect.structure().is_empty(), "{error:?}");
    assert!(error.to_string().contains(defect.structure()), "{error}");
    error
}

/// Opens, reads and checks; the value is what the guest saw, when it opened.
fn survive(file: Arc<dyn Storage>) -> Option<Vec<Result<Vec<u8>, ErrorKind>>> {
    let opened = OpenOptions::new().open_storage(Arc::clone(&file));
    let found = check(file, &mut ()).expect("a check goes on to the end");
    match opened {
        Ok(image) => Some(guest_bytes(&image)),
        Err(error) => {
            let code = explained(&error).defect().map(|defect| defect.code());
            let mut listed = found.list().iter().map(|defect| Some(defect.code()));
            assert!(listed.any(|other| other == code), "open says {error}, check does not");
            None
        }
    }
}

/// Runs `case` for every number below `count` on two threads. `case` must not panic; who does is
/// named by its number.
fn sweep(count: u64, case: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let run = std::panic::AssertUnwindSafe(|| case(number));
                    if std::panic::catch_unwind(run).is_err() {
                        failed.lock().unwrap().push(number);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} cases failed: {failed:?}", failed.len());
}

/// Set to turn over every bit of the file, padding and guest data included: 42 million files, best
/// with `--release`.
const EVERY_BIT: &str = "EVERY_BIT";

/// The bits to turn over: all of every sector that is not empty, one of every other sector of the
/// structures; no guest data.
fn bits_of_structures(bytes: &[u8]) -> Vec<u64> {
    let kib = |from: usize, count: usize| from << 10..(from + count) << 10;
    let structures = [
        kib(0, 4),
        kib(64, 4),
        kib(128, 4),
        kib(192, 64),
        kib(256, 64),
        kib(1024, 64),
        kib(2048, 68),
        kib(3072, 4),
    ];
    let mut bits = Vec::new();
    for start in structures.into_iter().flat_map(|range| range.step_by(512)) {
        let sector = &bytes[start..start + 512];
        let start = start as u64 * 8;
        match sector.iter().all(|byte| *byte == 0) {
            true => bits.push(start + start / 4096 % 4096),
            false => bits.extend(start..start + 4096),
        }
    }
    bits
}

#[test]
fn every_flipped_bit_is_survived() {
    let before = peak_memory();
    let base = Base::new(Kind::Dynamic, LogKind::Dirty, 512);
    let bytes = base.build().to_vec();
    let every = std::env::var_os(EVERY_BIT).is_some();
    let bits = if every { Vec::new() } else { bits_of_structures(&bytes) };
    let count = if every { bytes.len() * 8 } else { bits.len() };
    let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new(bytes.clone()));
    let whole = survive(Arc::clone(&file)).expect("the file is sound");
    let refused = AtomicU64::new(0);
    sweep(count as u64, |number| {
        let bit = if every { number } else { bits[number as usize] };
        let (at, mask) = (bit / 8, 1 << (bit % 8));
        let damaged = Overlay::new(Arc::clone(&file)).unwrap();
        damaged.write_at(at, &[bytes[at as usize] ^ mask]).unwrap();
        let seen = survive(Arc::new(damaged));
        if seen.is_none() {
            refused.fetch_add(1, Ordering::Relaxed);
        }
        // Headers and region tables lie there twice: one bit costs nothing.
        if (64 << 10..1 << 20).contains(&at) {
            assert_eq!(seen.as_ref(), Some(&whole), "bit {bit} at {at:#x}");
        }
    });
    let refused = refused.into_inner();
    println!("{count} bits turned over, {refused} files refused");
    assert!(count > 50_000 && refused > 10_000);
    assert_memory_since(before);
}

#[test]
fn every_cut_is_survived() {
    let before = peak_memory();
    for log in [LogKind::Dirty, LogKind::Clean] {
        let file: Arc<dyn Storage> = Arc::new(Base::new(Kind::Dynamic, log, 512).build());
        let length = file.len().unwrap();
        assert_eq!(length, 5 * MIB);
        sweep(length / 512, |number| {
            let cut = Overlay::new(Arc::clone(&file)).unwrap();
            cut.set_len(number * 512).unwrap();
            let seen = survive(Arc::new(cut));
            // A dirty file says how long it was. A clean one misses what it needs, or a block.
            match seen {
                Some(seen) => {
                    assert_eq!(log, LogKind::Clean);
                    assert!(number * 512 >= 3 * MIB + 32);
                    assert_eq!(seen[0], Err(ErrorKind::Corrupt), "{number}");
                }
                None => assert!(log == LogKind::Dirty || number * 512 < 3 * MIB + 32, "{number}"),
            }
        });
    }
    assert_memory_since(before);
}

/// The most memory this process ever had in use, in KiB; zero where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn assert_memory_since(before: u64) {
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
}

/// Where the metadata items lie, in the order of [`Base::items`].
const ITEM_AT: [u64; 6] = [0x10000, 0x10008, 0x10010, 0x10014, 0x10018, 0x10028];

/// A malformed file: how it came to be, and the error it must give.
struct Malformed {
    name: &'static str,
    kind: ErrorKind,
    code: &'static str,
    structure: &'static str,
    offset: u64,
    file: MemoryStorage,
}

fn malformed() -> Vec<Malformed> {
    use ErrorKind::{Corrupt, LogInvalid, NotVhdx, Truncated, Unsupported};
    let base = |kind, log, change: &dyn Fn(&mut Base)| {
        let mut base = Base::new(kind, log, 512);
        change(&mut base);
        base.build()
    };
    let clean = |change: &dyn Fn(&mut Base)| base(Kind::Dynamic, LogKind::Clean, change);
    let dirty = |change: &dyn Fn(&mut Base)| base(Kind::Dynamic, LogKind::Dirty, change);
    let child = |change: &dyn Fn(&mut Base)| base(Kind::Differencing, LogKind::Clean, change);
    let patched = |patches: &[(u64, &[u8])]| {
        let file = clean(&|_| {});
        patches.iter().for_each(|(at, bytes)| file.write_at(*at, bytes).unwrap());
        file
    };
    let cut = |file: MemoryStorage, length| {
        file.set_len(length).unwrap();
        file
    };
    let item = |number: usize, data: &[u8]| {
        let data = data.to_vec();
        clean(&move |base| base.items[number].data = data.clone())
    };
    let extra =
        |id, flags| clean(&move |base| base.items.push(Item { id, flags, data: vec![1; 4] }));
    let item_at = |number: usize| METADATA_AT + ITEM_AT[number];
    // The last header written, in the second copy, is the current one.
    let (header, table) = (0x2_0000, 0x3_0000);
    let entry = |number: u64| METADATA_AT + 32 + 32 * number;
    let region = |number: u64| table + 16 + 32 * number;
    let unknown = Guid::from_u128(0xBAD);
    let row = |name, kind, code, structure, offset, file| Malformed {
        name,
        kind,
        code,
        structure,
        offset,
        file,
    };
    vec![
        row("another format", NotVhdx, "V1", "file identifier", 0, patched(&[(0, b"conectix")])),
        row("empty", NotVhdx, "V1", "file identifier", 0, MemoryStorage::empty()),
        row("too short", NotVhdx, "V1", "file identifier", 1 << 19, cut(clean(&|_| {}), 1 << 19)),
        row(
            "both headers bad",
            Corrupt,
            "V2",
            "header",
            0x1_0000,
            patched(&[(0x1_0008, &[99]), (0x2_0000, b"HEAD")]),
        ),
        row(
            "version 2",
            Unsupported,
            "V5",
            "header",
            header + 0x42,
            clean(&|b| b.header.version = U16::new(2)),
        ),
        row(
            "log version 1",
            Unsupported,
            "V6",
            "header",
            header + 0x40,
            dirty(&|b| b.header.log_version = U16::new(1)),
        ),
        row(
            "log not aligned",
            Corrupt,
            "V7",
            "header",
            header + 0x44,
            dirty(&|b| b.header.log_offset = U64::new(LOG_AT + 4096)),
        ),
        row(
            "log without length",
            Corrupt,
            "V7",
            "header",
            header + 0x44,
            dirty(&|b| b.header.log_length = U32::ZERO),
        ),
        row(
            "log outside",
            Corrupt,
            "V7",
            "header",
            header + 0x44,
            dirty(&|b| b.header.log_offset = U64::new(1 << 62)),
        ),
        row(
            "no active sequence",
            LogInvalid,
            "V8",
            "log",
            LOG_AT,
            dirty(&|b| b.header.log_guid = unknown),
        ),
        row(
            "cut off",
            Truncated,
            "V9",
            "log",
            LOG_AT + 2 * 4096 + 0x30,
            cut(dirty(&|_| {}), 5 * MIB - 512),
        ),
        row(
            "both region tables bad",
            Corrupt,
            "V11",
            "region table",
            table,
            patched(&[(table, b"R"), (0x4_0010, &[0])]),
        ),
        row(
            "region not aligned",
            Corrupt,
            "V12",
            "region table",
            region(1),
            clean(&|b| b.regions[1].file_offset = U64::new(METADATA_AT + 512)),
        ),
        row(
            "region twice",
            Corrupt,
            "V12",
            "region table",
            region(2),
            clean(&|b| b.regions.push(region_at(BAT_REGION, FIRST_AT))),
        ),
        row(
            "region over region",
            Corrupt,
            "V13",
            "region table",
            region(1),
            clean(&|b| b.regions[1].length = U32::new(2 << 20)),
        ),
        row(
            "region over the log",
            Corrupt,
            "V13",
            "region table",
            region(0),
            clean(&|b| b.regions[0].file_offset = U64::new(LOG_AT)),
        ),
        row(
            "region outside",
            Corrupt,
            "V14",
            "region table",
            region(0),
            clean(&|b| b.regions[0].file_offset = U64::new(1 << 40)),
        ),
        row(
            "no BAT region",
            Corrupt,
            "V15",
            "region table",
            table,
            clean(&|b| b.regions.retain(|r| r.guid != BAT_REGION)),
        ),
        row(
            "no metadata region",
            Corrupt,
            "V15",
            "region table",
            table,
            clean(&|b| b.regions.retain(|r| r.guid != METADATA_REGION)),
        ),
        row(
            "unknown required region",
            Unsupported,
            "V16",
            "region table",
            region(2) + 28,
            clean(&|b| b.regions.push(region_at(unknown, FIRST_AT))),
        ),
        row(
            "metadata signature",
            Corrupt,
            "V17",
            "metadata table",
            METADATA_AT,
            patched(&[(METADATA_AT, b"M")]),
        ),
        row(
            "too many items",
            Corrupt,
            "V17",
            "metadata table",
            METADATA_AT + 10,
            patched(&[(METADATA_AT + 10, &[0, 8])]),
        ),
        row(
            "item inside the table",
            Corrupt,
            "V18",
            "metadata table",
            entry(1),
            patched(&[(entry(1) + 16, &[0, 255, 0, 0])]),
        ),
        row(
            "item twice",
            Corrupt,
            "V18",
            "metadata table",
            entry(5),
            extra(metadata::FILE_PARAMETERS, 0),
        ),
        row(
            "unknown required item",
            Unsupported,
            "V19",
            "metadata table",
            entry(5),
            extra(unknown, metadata::IS_REQUIRED),
        ),
        row(
            "incomplete file",
            Corrupt,
            "V19",
            "metadata table",
            entry(5),
            extra(metadata::INCOMPLETE_FILE, 0),
        ),
        row(
            "item missing",
            Corrupt,
            "V20",
            "metadata table",
            METADATA_AT,
            clean(&|b| drop(b.items.remove(1))),
        ),
        row("item length", Corrupt, "V20", "metadata table", entry(1) + 20, item(1, &[0; 4])),
        row(
            "blocks of 3 MiB",
            Corrupt,
            "V21",
            "file parameters",
            item_at(0),
            item(0, &[0, 0, 0x30, 0, 0, 0, 0, 0]),
        ),
        row(
            "blocks of 512 MiB",
            Corrupt,
            "V21",
            "file parameters",
            item_at(0),
            item(0, &[0, 0, 0, 0x20, 0, 0, 0, 0]),
        ),
        row("sectors of 1024", Corrupt, "V22", "metadata item", item_at(2), item(2, &[0, 4, 0, 0])),
        row(
            "more than 64 TiB",
            Corrupt,
            "V23",
            "metadata item",
            item_at(1),
            item(1, &((64u64 << 40) + 512).to_le_bytes()),
        ),
        row("no sectors", Corrupt, "V23", "metadata item", item_at(1), item(1, &[0; 8])),
        row(
            "half a sector",
            Corrupt,
            "V23",
            "metadata item",
            item_at(1),
            item(1, &(MIB + 256).to_le_bytes()),
        ),
        row(
            "BAT too small",
            Corrupt,
            "V25",
            "BAT",
            region(0) + 24,
            item(1, &(1u64 << 40).to_le_bytes()),
        ),
        row(
            "no parent locator",
            Corrupt,
            "V24",
            "parent locator",
            METADATA_AT,
            child(&|b| drop(b.items.pop())),
        ),
        row(
            "parent locator cut",
            Corrupt,
            "V24",
            "parent locator",
            item_at(5),
            child(&|b| b.items[5].data.truncate(60)),
        ),
        row(
            "parent locator of another type",
            Unsupported,
            "V24",
            "parent locator",
            item_at(5),
            child(&|b| b.items[5].data[0] ^= 1),
        ),
        row(
            "parent locator without linkage",
            Corrupt,
            "V24",
            "parent locator",
            item_at(5),
            child(&|b| b.items[5].data[44] ^= 1),
        ),
    ]
}

#[test]
fn every_malformed_file_has_its_own_clear_error() {
    let mut wrong = Vec::new();
    for Malformed { name, kind, code, structure, offset, file } in malformed() {
        let file: Arc<dyn Storage> = Arc::new(file);
        let Err(error) = OpenOptions::new().open_storage(Arc::clone(&file)) else {
            wrong.push(format!("{name}: opens"));
            continue;
        };
        let defect = explained(&error).defect().unwrap().clone();
        let found = (error.kind(), defect.code(), defect.structure(), defect.offset());
        let expected = (kind, code, structure, Some(offset));
        if found != expected {
            wrong.push(format!("{name}: {found:x?} instead of {expected:x?}: {error}"));
        }
        let found = check(file, &mut ()).expect("a check goes on to the end");
        if !found.list().contains(&defect) {
            wrong.push(format!("{name}: check does not list {defect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
