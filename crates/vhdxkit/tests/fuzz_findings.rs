//! What fuzzing, and reading the code for it, found: one test for each failure. Inputs are in the corpus.

use std::sync::Arc;

use vhdxkit::ErrorKind;
use vhdxkit::format::MIB;
use vhdxkit::format::bat::RawEntry;
use vhdxkit::log::replay_in_place;
use vhdxkit::ops::check::check;
use vhdxkit::storage::Storage;
use zerocopy::little_endian::{U32, U64};

#[path = "../../../fuzz/src/harness/base.rs"]
pub mod base;

use base::{Base, Kind, LogKind, METADATA_AT, SECOND_AT};

/// The check ended with "unexpected end of file" instead of naming the region.
#[test]
fn a_file_cut_inside_its_metadata_is_checked_to_the_end() {
    for (kind, length) in
        [(Kind::Dynamic, METADATA_AT + 0x1_0000), (Kind::Differencing, METADATA_AT + 0x1_0030)]
    {
        let file = Base::new(kind, LogKind::Clean, 512).build();
        file.set_len(length).unwrap();
        let found = check(Arc::new(file), &mut ()).unwrap();
        assert!(found.list().iter().any(|defect| defect.code() == "V14"), "{:?}", found.list());
    }
}

/// The log was applied, and then no header could be written that says so: dirty for ever.
#[test]
fn a_replay_without_room_for_its_headers_changes_nothing() {
    for (from_end, kind) in [(4, None), (3, Some(ErrorKind::LimitExceeded))] {
        let mut base = Base::new(Kind::Dynamic, LogKind::Dirty, 512);
        // The second copy is one higher.
        base.header.sequence_number = U64::new(u64::MAX - from_end);
        let (file, untouched) = (base.build(), base.build().to_vec());
        let error = replay_in_place(&file).err();
        assert_eq!(error.map(|error| error.kind()), kind);
        assert_eq!(file.to_vec() == untouched, kind.is_some());
    }
}

/// A sector bitmap whose own chunk holds no block hid the bitmap of the chunk before: its partial
/// blocks were said to have none.
#[test]
fn a_bitmap_of_an_idle_chunk_does_not_hide_the_one_before() {
    let mut base = Base::new(Kind::Differencing, LogKind::Clean, 512);
    base.items[1].data = (8u64 << 30).to_le_bytes().to_vec();
    base.bat.push((2 * 4097 - 1, RawEntry::new(6, SECOND_AT + MIB)));
    base.length += MIB;
    let found = check(Arc::new(base.build()), &mut ()).unwrap();
    assert!(found.list().is_empty(), "{:?}", found.list());
}

/// The search for missing bitmaps read on behind a BAT that is too small, into the next region.
#[test]
fn entries_behind_a_small_bat_are_not_judged() {
    let mut base = Base::new(Kind::Differencing, LogKind::Clean, 512);
    // One chunk more than fits: its first entry lies just behind the region, in the first block.
    base.items[1].data = (128u64 << 30).to_le_bytes().to_vec();
    base.payload.push((4 << 20, RawEntry::new(7, SECOND_AT).0.to_le_bytes().to_vec()));
    base.regions[0].length = U32::new(1 << 20);
    let found = check(Arc::new(base.build()), &mut ()).unwrap();
    let codes: Vec<_> = found.list().iter().map(|defect| defect.code()).collect();
    assert_eq!(codes, ["V25"]);
}
