//! What must hold for whatever lies on a disk.

use std::ops::Range;

use vhdxkit_volumes::{Disk, end_of_last, recognise};

/// A survey ends, without a panic (the disk itself counts what is read), and says nothing impossible.
pub fn survey(disk: &dyn Disk, range: Range<u64>) {
    let Ok(survey) = vhdxkit_volumes::survey(disk, range.clone()) else { return };
    let room = range.end.min(disk.size()).saturating_sub(range.start);
    assert!(survey.length <= room, "{} bytes in a room of {room}", survey.length);
    let (mut end, mut bytes) = (None, 0);
    for range in survey.free.ranges() {
        assert!(range.start < range.end, "{range:?} is empty");
        assert!(end.is_none_or(|end| end < range.start), "{range:?} follows {end:?}");
        assert!(range.end <= survey.length, "{range:?} in {} bytes", survey.length);
        end = Some(range.end);
        bytes += range.end - range.start;
    }
    // Small ranges would be left out only when there are millions of them.
    assert_eq!(bytes, survey.free.bytes(), "the sum of {} ranges", survey.free.ranges().len());
    // What tells which file system this is can never be free.
    let start = survey.free.ranges().first().map(|range| range.start);
    assert!(start != Some(0), "the beginning is free");
    let found = recognise(disk, range).expect("it was read before");
    assert!(found.is_some(), "surveyed, and not recognised");
    assert!(!survey.name.is_empty() && survey.unit > 0);
    assert!(!survey.label.chars().any(char::is_control), "{:?} rings bells", survey.label);
}

/// Partitions lie on the disk, and what lies in them can be surveyed.
pub fn partitions(disk: &dyn Disk) {
    let all = vhdxkit_volumes::partitions(disk).expect("reads stay on the disk");
    let last = end_of_last(disk).expect("reads stay on the disk");
    for partition in &all {
        let range = partition.range.clone();
        assert!(range.start < range.end && range.end <= disk.size(), "{range:?}");
        assert!(last.is_some_and(|last| range.end <= last), "{range:?} behind {last:?}");
        assert!(!partition.name.chars().any(char::is_control));
    }
    // Some of them; each may take what a whole disk may take.
    for partition in all.iter().take(8) {
        survey(disk, partition.range.clone());
    }
    survey(disk, 0..disk.size());
}
