//! Every medium against the plainest model of it: a vector of bytes.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{DataRuns, FileStorage, MemoryStorage, Overlay, Storage};

/// More than two pages of [`MemoryStorage`].
const LENGTH: u64 = 150_000;

#[derive(Debug, Clone)]
enum Op {
    Write { offset: u64, len: usize, seed: u8 },
    Vectored { offset: u64, lens: Vec<usize>, seed: u8 },
    Punch(Range<u64>),
    SetLen(u64),
    Read { offset: u64, len: usize },
    Data { offset: u64 },
}

fn offset() -> impl Strategy<Value = u64> {
    // Borders of pages and cells are where mistakes live.
    prop_oneof![
        0..LENGTH,
        (0..LENGTH / 4096, 0u64..5).prop_map(|(cell, near)| (cell * 4096 + near).saturating_sub(2))
    ]
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (offset(), offset()).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![0..20usize, 0..20_000usize]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (offset(), len(), 0..9u8).prop_map(|(offset, len, seed)| Op::Write { offset, len, seed }),
        1 => (offset(), vec(0..3000usize, 0..5), 0..9u8)
            .prop_map(|(offset, lens, seed)| Op::Vectored { offset, lens, seed }),
        3 => range().prop_map(Op::Punch),
        1 => offset().prop_map(Op::SetLen),
        1 => (offset(), len()).prop_map(|(offset, len)| Op::Read { offset, len }),
        1 => offset().prop_map(|offset| Op::Data { offset }),
    ]
}

fn filling(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_mul(((i / 3) as u8) | 1)).collect()
}

fn apply(model: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if !bytes.is_empty() {
        if model.len() < end {
            model.resize(end, 0);
        }
        model[start..end].copy_from_slice(bytes);
    }
}

fn step(storage: &dyn Storage, model: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, len, seed } => {
            let bytes = filling(*seed, *len);
            storage.write_at(*offset, &bytes).unwrap();
            apply(model, *offset, &bytes);
        }
        Op::Vectored { offset, lens, seed } => {
            let parts: Vec<Vec<u8>> = lens.iter().map(|len| filling(*seed, *len)).collect();
            let slices: Vec<_> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
            storage.write_vectored_at(*offset, &slices).unwrap();
            apply(model, *offset, &parts.concat());
        }
        Op::Punch(range) => {
            storage.punch(range.clone()).unwrap();
            let end = (range.end as usize).min(model.len());
            model[(range.start as usize).min(end)..end].fill(0);
        }
        Op::SetLen(length) => {
            storage.set_len(*length).unwrap();
            model.resize(*length as usize, 0);
        }
        Op::Read { offset, len } => same_bytes(storage, model, *offset, *len),
        Op::Data { offset } => no_data_is_missed(storage, model, *offset),
    }
    assert_eq!(storage.len().unwrap(), model.len() as u64);
}

fn same_bytes(storage: &dyn Storage, model: &[u8], offset: u64, len: usize) {
    let start = (offset as usize).min(model.len());
    let expected = &model[start..(offset as usize + len).clamp(start, model.len())];
    let mut buf = vec![0xee; len];
    assert_eq!(storage.read_at(offset, &mut buf).unwrap(), expected.len());
    assert!(buf[..expected.len()] == *expected, "bytes at {offset}");
    assert!(buf[expected.len()..].iter().all(|byte| *byte == 0xee), "written beyond what was read");

    let mut buf = vec![0xee; len];
    let (left, right) = buf.split_at_mut(len / 3);
    let mut slices = [io::IoSliceMut::new(left), io::IoSliceMut::new(right)];
    assert_eq!(storage.read_vectored_at(offset, &mut slices).unwrap(), expected.len());
    assert!(buf[..expected.len()] == *expected, "vectored bytes at {offset}");
}

fn no_data_is_missed(storage: &dyn Storage, model: &[u8], offset: u64) {
    let found = storage.next_data(offset).unwrap();
    if let Some(found) = &found {
        assert!(found.start >= offset && found.start < found.end, "{found:?}");
        assert!(found.end <= model.len() as u64, "{found:?} beyond {}", model.len());
    }
    let from = (offset as usize).min(model.len());
    let to = found.map_or(model.len(), |found| found.start as usize);
    assert!(model[from..to].iter().all(|byte| *byte == 0), "data between {from} and {to}");
}

fn runs_cover(storage: &dyn Storage, model: &[u8], range: Range<u64>) {
    let mut at = range.start;
    let mut last = None;
    for run in DataRuns::new(storage, range.clone()) {
        let run = run.unwrap();
        assert!(run.range.start == at && run.range.end > at && run.range.end <= range.end);
        assert_ne!(last, Some(run.data), "runs do not take turns");
        if !run.data {
            let end = (run.range.end as usize).min(model.len());
            let hole = &model[(at as usize).min(end)..end];
            assert!(hole.iter().all(|byte| *byte == 0), "data in the hole {:?}", run.range);
        }
        (at, last) = (run.range.end, Some(run.data));
    }
    assert_eq!(at, range.end.max(range.start));
}

fn same(storage: &dyn Storage, model: &[u8]) {
    same_bytes(storage, model, 0, model.len() + 5);
    no_data_is_missed(storage, model, 0);
    runs_cover(storage, model, 0..LENGTH * 2);
    runs_cover(storage, model, LENGTH / 3..LENGTH / 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_keeps_what_a_vector_keeps(ops in vec(op(), 0..40)) {
        let (storage, mut model) = (MemoryStorage::empty(), Vec::new());
        for op in &ops {
            step(&storage, &mut model, op);
        }
        same(&storage, &model);
        assert!(storage.to_vec() == model);
        assert!(MemoryStorage::new(model.clone()).to_vec() == model);
    }

    #[test]
    fn an_overlay_keeps_what_a_vector_keeps_and_its_base_untouched(
        below in vec(op(), 0..10),
        ops in vec(op(), 0..60),
    ) {
        let (base, mut model) = (Arc::new(MemoryStorage::empty()), Vec::new());
        for op in &below {
            step(&*base, &mut model, op);
        }
        let before = base.to_vec();
        let overlay = Overlay::new(Arc::clone(&base) as Arc<dyn Storage>).unwrap();
        same(&overlay, &model);
        for op in &ops {
            step(&overlay, &mut model, op);
        }
        same(&overlay, &model);
        same(&overlay.freeze(), &model);
        assert!(base.to_vec() == before);
    }

    #[test]
    fn a_file_keeps_what_a_vector_keeps(ops in vec(op(), 0..30)) {
        let storage = FileStorage::from_file(tempfile::tempfile().unwrap());
        let mut model = Vec::new();
        for op in &ops {
            step(&storage, &mut model, op);
        }
        same(&storage, &model);
    }
}
