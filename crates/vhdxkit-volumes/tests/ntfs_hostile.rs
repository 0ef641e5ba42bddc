//! NTFS volumes that no formatter makes: metadata in pieces and in extension records, which NTFS-3G's tools
//! read with us; and damage of every kind, of which nothing may be released.

#[path = "common/clusters.rs"]
mod clusters;
mod common;
#[path = "common/ntfs.rs"]
mod ntfs;

use std::fs;

use clusters::{MemoryDisk, empty, free_units, number_behind, ranges, refusal, survey_bytes};
use common::{have, sh};
use ntfs::*;
use proptest::prelude::*;
use vhdxkit_volumes::{Survey, Trouble};

/// 16 MiB in clusters of 512 bytes: the bitmap takes eight of them.
fn sample() -> Option<Volume> {
    if !["mkfs.ntfs", "ntfsinfo", "ntfscat"].into_iter().all(have) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "ntfs.img", 16 << 20);
    sh(&format!("mkfs.ntfs -F -q -f -c 512 {} 2>&1", path.display()));
    let mut volume = Volume { bytes: fs::read(&path).unwrap() };
    // A pattern, so that no part of the bitmap is like another one.
    for n in (1000..30000).filter(|n| n % 7 == 3 || n % 1009 < 50) {
        volume.set_bits(n..n + 1, true);
    }
    compare(&volume);
    Some(volume)
}

/// With what ntfsinfo counts and ntfscat reads of the same volume.
fn compare(volume: &Volume) -> Survey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ntfs.img");
    fs::write(&path, &volume.bytes).unwrap();
    let ours = survey_bytes(&volume.bytes).unwrap();
    assert_eq!(ours.unclean, None);
    let info = sh(&format!("ntfsinfo -m {} 2>&1", path.display()));
    assert_eq!(free_units(&ours), number_behind(&info, "Free Clusters:"));
    sh(&format!("ntfscat {0} '$Bitmap' > {0}.bitmap", path.display()));
    let bitmap = fs::read(folder.path().join("ntfs.img.bitmap")).unwrap();
    let is_free = |n: u64| bitmap[(n / 8) as usize] >> (n % 8) & 1 == 0;
    let clusters = number_behind(&info, "Volume Size in Clusters:");
    assert_eq!(ours.free.ranges(), ranges(clusters, 0, ours.unit, is_free));
    ours
}

/// Where the three pieces of a bitmap lie whose middle has moved to the end of the volume.
fn move_middle(volume: &mut Volume) -> [(Option<usize>, usize); 3] {
    let (first, away) = (volume.first_cluster(6, DATA), 31000);
    for n in 0..2 {
        volume.copy_cluster(first + 3 + n, away + n);
        volume.set_bits(first + 3 + n..first + 4 + n, false);
        volume.set_bits(away + n..away + n + 1, true);
    }
    // The bits were set in the old place: what moved is copied again.
    (0..2).for_each(|n| volume.copy_cluster(first + 3 + n, away + n));
    [(Some(first), 3), (Some(away), 2), (Some(first + 5), 3)]
}

fn data_of(volume: &Volume, record: usize) -> Vec<u8> {
    volume.attributes(record).into_iter().find(|a| u32_at(a, 0) == DATA as usize).unwrap()
}

#[test]
fn a_bitmap_in_pieces_is_read_in_order() {
    let Some(mut volume) = sample() else { return };
    let before = free_units(&compare(&volume));
    let pieces = move_middle(&mut volume);
    volume.change_attribute(6, DATA, |data| *data = extent(data, 0, &pieces));
    assert_eq!(free_units(&compare(&volume)), before);
}

/// Puts the extents of a file's data into records 16, 17… and makes a list of them.
fn spread(volume: &mut Volume, file: usize, pieces: &[(Option<usize>, usize)]) {
    let data = data_of(volume, file);
    let own = u16_at(&volume.record(file), 0x10);
    let mut kept: Vec<Vec<u8>> = volume.attributes(file);
    kept.retain(|attribute| u32_at(attribute, 0) != DATA as usize);
    let entry = |a: &Vec<u8>| (u32_at(a, 0) as u32, 0, file, own, u16_at(a, 14));
    let mut entries: Vec<_> = kept.iter().map(entry).collect();
    let mut lowest = 0;
    for (n, piece) in pieces.iter().enumerate() {
        let part = extent(&data, lowest, &[*piece]);
        // The MFT's own first extent stays where it can be found.
        if file == 0 && n == 0 {
            entries.push((DATA, lowest, file, own, u16_at(&part, 14)));
            kept.push(part);
        } else {
            volume.write_extension(16 + n, file, std::slice::from_ref(&part));
            entries.push((DATA, lowest, 16 + n, 1, u16_at(&part, 14)));
        }
        lowest += piece.1;
    }
    entries.sort();
    kept.push(attribute_list(&entries));
    kept.sort_by_key(|attribute| u32_at(attribute, 0));
    volume.set_attributes(file, &kept);
}

#[test]
fn a_bitmap_in_extension_records_is_read_in_order() {
    let Some(mut volume) = sample() else { return };
    let before = free_units(&compare(&volume));
    let pieces = move_middle(&mut volume);
    spread(&mut volume, 6, &pieces);
    assert_eq!(free_units(&compare(&volume)), before);

    let refused = |why: &str, change: &dyn Fn(&mut Volume)| refuse(&volume, why, change);
    let list_entry = |n: usize| 24 + 32 * n;
    let count = u32_at(&volume.attributes(6)[1], 4) / 32;
    assert_eq!(u32_at(&volume.attributes(6)[1], 0), ATTRIBUTE_LIST as usize);
    let change = |volume: &mut Volume, at: usize, value: u64, size: usize| {
        volume.change_attribute(6, ATTRIBUTE_LIST, |list| put(list, at, value, size));
    };
    let last = list_entry(count - 1);
    refused("damaged attribute list", &|v| change(v, last, ATTRIBUTE_LIST.into(), 4));
    refused("damaged attribute list", &|v| change(v, last + 4, 0, 2));
    refused("damaged attribute list", &|v| change(v, last + 4, 0xFFFF, 2));
    refused("another file's", &|v| change(v, last + 16, 5 | 5 << 48, 8)); // the root directory
    refused("another file's", &|v| change(v, last + 22, 9, 2)); // the record has another sequence
    refused("lacks an attribute", &|v| change(v, last + 8, 1, 8));
    refused("lacks an attribute", &|v| change(v, last + 16, 17 | 1 << 48, 8));
    refused("begins at its cluster 3", &|v| {
        change(v, last + 8, 3, 8);
        v.change_attribute(18, DATA, |data| put(data, 0x10, 3, 8));
    });
    refused("not whole", &|v| change(v, last, 0x90, 4)); // the last extent is not named
    refused("not in use", &|v| v.change_record(17, |record| record[0x16] = 0));
    refused("says it is", &|v| v.change_record(17, |record| record[0x2C] = 3));
    refused("another file's", &|v| v.change_record(17, |record| record[0x20] = 7));
    refused("another file's", &|v| v.change_record(17, |record| record[0x26] ^= 1));
    refused("behind", &|v| change(v, last + 16, 1 << 40, 8));
}

/// The MFT's first extent names the record where its second one stands, and the record where the third one
/// stands lies in the second.
#[test]
fn an_mft_in_pieces_is_found_by_itself() {
    let Some(mut volume) = sample() else { return };
    let first = volume.first_cluster(0, DATA);
    let clusters = u32_at(&data_of(&volume, 0), 0x18) + 1;
    // Records 0 to 17, 18 to 21, and the others, two clusters each.
    let (head, middle, away) = (36, 8, 31000);
    let pieces =
        [(Some(first), head), (Some(away + 100), middle), (Some(away), clusters - head - middle)];
    spread(&mut volume, 0, &pieces);
    for n in head..clusters {
        let to = if n < head + middle { away + 100 + n - head } else { away + n - head - middle };
        volume.copy_cluster(first + n, to);
        volume.set_bits(to..to + 1, true);
    }
    volume.set_bits(first + head..first + clusters, false);
    compare(&volume);
    // In a part that is only known with it: nobody can find it.
    let list = |v: &mut Volume| {
        let last = 24 + 32 * (u32_at(&v.attributes(0)[1], 4) / 32 - 1);
        v.change_attribute(0, ATTRIBUTE_LIST, |list| {
            let mut entries = (24..=last).step_by(32);
            let entry = entries.find(|at| u32_at(list, at + 16) == 17).unwrap();
            put(list, entry + 16, 22 | 1 << 48, 8);
        });
    };
    refuse(&volume, "no cluster", &list);
}

fn refuse(volume: &Volume, why: &str, change: &dyn Fn(&mut Volume)) {
    let mut changed = volume.clone();
    change(&mut changed);
    let disk = MemoryDisk::new(&changed.bytes, changed.bytes.len() as u64);
    let found = refusal(disk.survey());
    assert!(found.contains(why), "{why}: {found}");
    assert!(disk.read.into_inner() < 2 << 20);
}

#[test]
fn a_damaged_boot_sector_is_refused() {
    let Some(volume) = sample() else { return };
    for (at, value, why) in [
        (0x0C, 3, "sectors of"),
        (0x0D, 0, "clusters of an impossible size"),
        (0x0D, 3, "clusters of an impossible size"),
        (0x0D, 0xF0, "clusters of an impossible size"),
        (0x0E, 1, "fields of FAT"),
        (0x16, 1, "fields of FAT"),
        (0x2F, 1, "sectors of 512 bytes, in a place"),
        (0x2A, 1, "sectors of 512 bytes, in a place"),
        (0x40, 0x7F, "records of an impossible size"),
        (0x40, 0x00, "records of an impossible size"),
        (0x40, 0xE0, "records of an impossible size"),
        (0x40, 0xF4, "update sequence"), // of 4 KiB
        (0x36, 1, "the MFT is at"),
        (0x3E, 1, "its mirror at"),
        (0x30, 0x99, "MFT record 0 does not begin"),
        (0x38, 0x01, "$MFTMirr does not begin"),
        (0x1FE, 0, "signature"),
    ] {
        refuse(&volume, why, &|v| v.bytes[at] = value);
    }
}

#[test]
fn damaged_records_are_refused() {
    let Some(volume) = sample() else { return };
    let refused = |why: &str, change: &dyn Fn(&mut Volume)| refuse(&volume, why, change);
    let record = |number: usize| volume.mft() + number * 1024;
    for number in [0, 1, 2, 3, 5, 6] {
        refused("torn", &|v| v.bytes[record(number) + 1022] ^= 1);
        refused("torn", &|v| v.bytes[record(number) + 510] ^= 1);
        refused("does not begin", &|v| v.bytes[record(number)..][..4].copy_from_slice(b"BAAD"));
        refused("filled with", &|v| v.change_record(number, |r| put(r, 0x18, 2000, 4)));
        refused("filled with", &|v| v.change_record(number, |r| put(r, 0x18, 8, 4)));
        refused("not in use", &|v| v.change_record(number, |r| r[0x16] = 0));
        refused("damaged attribute", &|v| v.change_record(number, |r| put(r, 0x14, 0xFFF0, 2)));
        refused("damaged attribute", &|v| v.change_record(number, |r| put(r, 0x3C, 0, 4)));
        refused("damaged attribute", &|v| {
            v.change_record(number, |r| put(r, 0x3C, 0xFFFF_FFF8, 4));
        });
        refused("belongs to another", &|v| v.change_record(number, |r| r[0x20] = 9));
    }
    for number in 0..4 {
        refused("differs from its mirror", &|v| {
            let before = v.clone();
            v.change_record(number, |r| r[0x12] ^= 1);
            let mirror = v.mirror() + number * 1024..v.mirror() + number * 1024 + 1024;
            v.bytes[mirror.clone()].copy_from_slice(&before.bytes[mirror]);
        });
    }
}

#[test]
fn runs_that_lie_are_refused() {
    let Some(volume) = sample() else { return };
    let first = volume.first_cluster(6, DATA);
    let bitmap = |runs: &'static [(isize, usize)]| {
        move |v: &mut Volume| {
            let runs: Vec<_> =
                runs.iter().map(|(at, n)| (Some((first as isize + at) as usize), *n)).collect();
            v.change_attribute(6, DATA, |data| *data = extent(data, 0, &runs));
        }
    };
    let refused = |why: &str, change: &dyn Fn(&mut Volume)| refuse(&volume, why, change);
    refused("both lie", &bitmap(&[(0, 4), (0, 4)])); // in a circle
    refused("both lie", &bitmap(&[(0, 4), (3, 4)]));
    refused("run of 8 clusters", &bitmap(&[(40000, 8)]));
    refused("run of 8 clusters", &bitmap(&[(-40000, 8)]));
    refused("not whole", &bitmap(&[(0, 7)]));
    let mft = volume.first_cluster(0, DATA);
    let attribute = |runs: Vec<(Option<usize>, usize)>| {
        move |v: &mut Volume| v.change_attribute(6, DATA, |data| *data = extent(data, 0, &runs))
    };
    refused("both lie", &attribute(vec![(Some(mft), 8)]));
    refused("both lie", &attribute(vec![(Some(0), 8)]));
    refused("not whole", &attribute(vec![(Some(first), 4), (None, 4)]));
    refused("do not fit", &|v| v.change_attribute(6, DATA, |data| put(data, 0x18, 6, 8)));
    refused("do not fit", &|v| v.change_attribute(6, DATA, |data| put(data, 0x18, u64::MAX, 8)));
    refused("no data", &|v| v.change_attribute(6, DATA, |data| put(data, 0x10, 1, 8)));
    refused("needs 4096", &|v| v.change_attribute(6, DATA, |data| put(data, 0x30, 4095, 8)));
    refused("not whole", &|v| v.change_attribute(6, DATA, |data| put(data, 0x38, 4088, 8)));
    refused("not whole", &|v| v.change_attribute(6, DATA, |data| put(data, 0x30, 1 << 40, 8)));
    refused("not whole", &|v| v.change_attribute(6, DATA, |data| put(data, 0x0C, 0x8000, 2)));
    // Volumes whose bitmap gives themselves away.
    let log = volume.first_cluster(2, DATA);
    for own in [0, mft, mft + 1, volume.mirror() / 512, log + 7, first, first + 7] {
        refused("said to be free", &|v| v.set_bits(own..own + 1, false));
    }
}

#[test]
fn a_volume_that_is_not_at_rest_says_why() {
    let Some(volume) = sample() else { return };
    let refused = |why: &str, change: &dyn Fn(&mut Volume)| refuse(&volume, why, change);
    let flags = |flags: u64| {
        move |v: &mut Volume| {
            v.change_attribute(3, VOLUME_INFORMATION, |value| put(value, 24 + 10, flags, 2));
        }
    };
    refused("marked dirty", &flags(1));
    refused("chkdsk", &flags(0x8000));
    refused("unknown flags", &flags(0x100));
    let mut harmless = volume.clone();
    flags(0x88)(&mut harmless);
    assert_eq!(survey_bytes(&harmless.bytes).unwrap(), compare(&volume));
    refused("NTFS 9.1", &|v| v.change_attribute(3, VOLUME_INFORMATION, |value| value[24 + 8] = 9));

    let log = volume.first_cluster(2, DATA) * 512;
    let end = log + (u32_at(&data_of(&volume, 2), 0x30));
    refused("restart page", &|v| v.bytes[log] = 0);
    refused("emptied to its end", &|v| v.bytes[log + 5000] = 0);
    refused("emptied to its end", &|v| v.bytes[end - 4096..end - 4092].copy_from_slice(b"RCRD"));
    refused("chkdsk", &|v| v.bytes[log..log + 4].copy_from_slice(b"CHKD"));

    let shadow = |catalog: u64| {
        move |v: &mut Volume| {
            let identifier = 0x52C7_6C6E_0404_AEB7_4E48_C176_3808_876B_u128.to_le_bytes();
            v.bytes[0x1E00..0x1E10].copy_from_slice(&identifier);
            put(&mut v.bytes, 0x1E30, catalog, 8);
        }
    };
    // Not even for those who say that it is clean.
    let mut copies = volume.clone();
    shadow(0x4000)(&mut copies);
    let found = survey_bytes(&copies.bytes).unwrap_err();
    assert!(matches!(&found, Trouble::NotKnown(why) if why.contains("shadow copies")), "{found}");
    let mut none = volume.clone();
    shadow(0)(&mut none);
    assert_eq!(survey_bytes(&none.bytes).unwrap().unclean, None);
}

/// A root directory with index blocks, whose tree goes round, or is cut.
#[test]
fn a_root_directory_that_lies_neither_loops_nor_passes() {
    let Some(_) = sample() else { return };
    if !have("ntfs-3g") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = empty(folder.path(), "ntfs.img", 16 << 20);
    sh(&format!(
        "mkfs.ntfs -F -q -f -c 512 {0} 2>&1; m={1}; mkdir $m; ntfs-3g -o no_detach {0} $m >/dev/null 2>&1 &
         until mountpoint -q {1}; do sleep 0.05; done
         for n in $(seq 300); do : > {1}/a-name-that-is-not-short-$n; done; umount {1}; wait",
        path.display(),
        folder.path().join("m").display()
    ));
    let volume = Volume { bytes: fs::read(&path).unwrap() };
    let clean = compare(&volume);
    let blocks: Vec<usize> = (0..volume.bytes.len())
        .step_by(512)
        .filter(|at| volume.bytes[*at..].starts_with(b"INDX"))
        .collect();
    assert!(blocks.len() > 8);
    // Every link to a node leads to the first block.
    let mut round = volume.clone();
    round.change_attribute(5, INDEX_ROOT, |root| {
        let end = root.len();
        put(root, end - 8, 0, 8);
    });
    assert_eq!(survey_bytes(&round.bytes).unwrap(), clean);
    let refused = |why: &str, change: &dyn Fn(&mut Volume)| refuse(&volume, why, change);
    let in_root = |at: usize, value: u64, size: usize| {
        move |v: &mut Volume| {
            v.change_attribute(5, INDEX_ROOT, |root| {
                let start = u16_at(root, 0x14);
                put(root, start + at, value, size);
            });
        }
    };
    refused("index blocks of 5 bytes", &in_root(8, 5, 4));
    refused("index blocks of", &in_root(8, 1 << 30, 4));
    refused("index of the root directory is damaged", &in_root(0x10, 8, 4));
    refused("index of the root directory is damaged", &in_root(0x14, 1 << 20, 4));
    refused("index of the root directory is damaged", &in_root(0x20 + 8, 0, 2));
    let mut found = 0;
    for block in &blocks {
        let mut torn = volume.clone();
        torn.bytes[block + 510] ^= 1;
        found += usize::from(survey_bytes(&torn.bytes).is_err());
    }
    assert!(found > 8, "{found} of {} index blocks are read", blocks.len());
}

/// Random damage to whatever is read: a survey or an error, never a panic, never much to read, and what the
/// volume itself lies in never free.
#[test]
fn random_damage_gives_an_error_or_a_sound_survey() {
    let Some(mut volume) = sample() else { return };
    let pieces = move_middle(&mut volume);
    spread(&mut volume, 6, &pieces);
    let places = [
        0x0B..0x50,
        volume.mft()..volume.mft() + 1024,
        volume.mft() + 1024..volume.mft() + 7 * 1024,
        volume.mft() + 6 * 1024..volume.mft() + 7 * 1024,
        volume.mft() + 16 * 1024..volume.mft() + 19 * 1024,
        volume.first_cluster(2, DATA) * 512..volume.first_cluster(2, DATA) * 512 + 64,
    ];
    let change = (0..places.len(), any::<usize>(), any::<u8>(), 0..3);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let (mut whole, mft, mirror) = (0, volume.mft() as u64, volume.mirror() as u64);
    let before = volume.bytes.clone();
    let mut bytes = before.clone();
    let changed = std::cell::RefCell::new(&mut bytes);
    let sound = std::cell::RefCell::new(&mut whole);
    let result = runner.run(&prop::collection::vec(change, 1..4), |changes| {
        let mut bytes = changed.borrow_mut();
        let mut touched = Vec::new();
        for (place, at, value, how) in changes {
            let place = places[place].clone();
            let at = place.start + at % place.len();
            bytes[at] = if how == 0 { value } else { bytes[at] ^ 1 << (value % 8) };
            touched.push(at);
        }
        // The mirror follows, or most of it would be seen by that alone.
        bytes.copy_within(mft as usize..mft as usize + 4096, mirror as usize);
        let disk = MemoryDisk::new(&bytes, bytes.len() as u64);
        let found = disk.survey();
        let read = disk.read.into_inner();
        for at in touched {
            bytes[at] = before[at];
        }
        bytes.copy_within(mft as usize..mft as usize + 4096, mirror as usize);
        prop_assert!(read < 4 << 20, "{read}");
        if let Ok(found) = found {
            **sound.borrow_mut() += 1;
            for own in [0, mft, mirror] {
                prop_assert!(!found.free.ranges().iter().any(|range| range.contains(&own)));
            }
        }
        Ok(())
    });
    result.unwrap();
    assert!(whole > 10, "some changes are harmless");
}
