//! What fuzzing found, one test for each failure. The inputs themselves are in the corpus.

use std::sync::Arc;

use vhdxkit::ErrorKind;
use vhdxkit::log::replay_in_place;
use vhdxkit::ops::check::check;
use vhdxkit::storage::Storage;
use zerocopy::little_endian::U64;

#[path = "../../../fuzz/src/harness/base.rs"]
pub mod base;

use base::{Base, Kind, LogKind, METADATA_AT};

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
