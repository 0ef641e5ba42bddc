//! What fuzzing found, one test for each failure. The inputs themselves are in the corpus.

use std::sync::Arc;

use vhdxkit::ops::check::check;
use vhdxkit::storage::Storage;

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
