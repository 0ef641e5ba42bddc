use super::*;

const BASE: u64 = 1 << 40;

fn map() -> RangeMap {
    RangeMap::new(BASE)
}

fn nines(_: u64, buf: &mut [u8]) -> io::Result<usize> {
    buf.fill(9);
    Ok(buf.len())
}

fn read(map: &RangeMap, range: Range<u64>) -> Vec<u8> {
    let mut buf = vec![0xee; to_usize(range.end - range.start)];
    map.read(range.start, &mut buf, nines).unwrap();
    buf
}

#[test]
fn later_patches_override_earlier_ones() {
    let mut map = map();
    map.write(2, &[1; 6]).unwrap();
    map.zero(4..6).unwrap();
    map.write(5, &[2]).unwrap();
    assert_eq!(read(&map, 0..10), [9, 9, 1, 1, 0, 2, 1, 1, 9, 9]);
    assert_eq!((map.stored(), map.pieces()), (5, 3));
}

#[test]
fn small_writes_join_and_zeros_merge() {
    let mut map = map();
    for at in (0..4096).rev().chain(8192..3 * 4096) {
        map.write(at, &[7]).unwrap();
    }
    assert_eq!((map.stored(), map.pieces()), (8192, 2));
    for at in [5, 3, 4, 0, 2, 1] {
        map.zero(at << 30..(at + 1) << 30).unwrap();
    }
    assert_eq!((map.stored(), map.pieces()), (0, 1));
}

#[test]
fn zeros_of_any_length_take_no_space_and_none_beyond_the_base() {
    let mut map = map();
    map.zero(0..u64::MAX).unwrap();
    assert_eq!((map.stored(), map.pieces()), (0, 1));
    map.write(BASE + 5, &[1, 2, 3]).unwrap();
    map.zero(BASE + 6..BASE + 7).unwrap();
    assert_eq!(read(&map, BASE + 4..BASE + 9), [0, 1, 0, 3, 0]);
    map.zero(BASE..u64::MAX).unwrap();
    assert_eq!((map.stored(), map.pieces()), (0, 1));
}

#[test]
fn what_was_cut_off_stays_away() {
    let mut map = map();
    map.write(10, &[1; 20]).unwrap();
    map.cut(15);
    assert_eq!(read(&map, 13..18), [1, 1, 0, 0, 0]);
    assert_eq!(read(&map, BASE - 1..BASE + 1), [0, 0]);
    assert_eq!((map.stored(), map.pieces()), (5, 2));
}

#[test]
fn a_full_map_refuses_and_stays_as_it_was() {
    let mut map = RangeMap { max_bytes: 100, max_pieces: 5, ..map() };
    map.write(0, &[1; 90]).unwrap();
    let error = map.write(80, &[2; 30]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("100 bytes"), "{error}");
    assert_eq!(read(&map, 78..92), [[1; 12].as_slice(), &[9; 2]].concat());
    map.write(80, &[2; 20]).unwrap();
    map.zero(1000..1001).unwrap();
    map.zero(2000..2001).unwrap();
    map.zero(3000..3001).unwrap();
    let error = map.zero(4000..4001).unwrap_err();
    assert!(error.to_string().contains("5 separate ranges"), "{error}");
    map.zero(1000..4001).unwrap();
    assert_eq!(map.pieces(), 2);
}

#[test]
fn the_end_of_all_offsets_is_refused() {
    let error = map().write(u64::MAX, &[1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn data_is_the_union_of_patches_and_what_the_base_shows() {
    let base = |at: u64| {
        Ok([100..200, 300..400].into_iter().find(|r| r.end > at).map(|r| r.start.max(at)..r.end))
    };
    let next = |map: &RangeMap, at| map.next_data(at, 1000, base).unwrap();
    let mut map = RangeMap::new(350);
    map.zero(150..310).unwrap();
    map.write(500, &[0; 10]).unwrap();
    map.write(90, &[0; 10]).unwrap();
    assert_eq!(next(&map, 0), Some(90..150));
    assert_eq!(next(&map, 120), Some(120..150));
    assert_eq!(next(&map, 150), Some(310..350));
    assert_eq!(next(&map, 350), Some(500..510));
    assert_eq!(next(&map, 510), None);
    assert_eq!(next(&map, 2000), None);
    // A hole between two kinds of data, and data of the base that is hidden to its last byte.
    let mut map = RangeMap::new(350);
    map.write(200, &[0; 10]).unwrap();
    assert_eq!(next(&map, 150), Some(150..210));
    map.zero(100..200).unwrap();
    assert_eq!(next(&map, 0), Some(200..210));
    map.zero(200..210).unwrap();
    assert_eq!(next(&map, 0), Some(300..350));
    let mut map = RangeMap::new(350);
    map.zero(100..200).unwrap();
    assert_eq!(next(&map, 0), Some(300..350));
}

#[test]
fn many_patches_do_not_cost_their_square() {
    let mut map = map();
    for at in 0..200_000u64 {
        map.zero(at * 20..at * 20 + 10).unwrap();
    }
    for at in 0..100_000u64 {
        map.write(at * 40, &[1; 20]).unwrap();
    }
    for _ in 0..1000 {
        map.next_data(0, BASE, |at| Ok(Some(at..BASE))).unwrap();
    }
    map.zero(0..BASE).unwrap();
    assert_eq!((map.stored(), map.pieces()), (0, 1));
}
