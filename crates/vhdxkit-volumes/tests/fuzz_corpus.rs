//! Replays the corpora of the fuzz targets for file systems and partition tables: what they once found
//! stays fixed, without a fuzzer at hand.
//!
//! `REWRITE_SEEDS=1 cargo test -p vhdxkit-volumes --test fuzz_corpus` writes the seeds anew.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use vhdxkit_volumes::{Disk, partitions, recognise};

#[path = "../../../fuzz/src/volumes/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod volumes;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

#[test]
fn every_input_is_survived() {
    let mut failed = Vec::new();
    for target in volumes::TARGETS {
        let mut count = 0;
        for file in fs::read_dir(folder(target.name)).unwrap() {
            let path = file.unwrap().path();
            let input = fs::read(&path).unwrap();
            assert!(input.len() <= 4096, "{} is no small input", path.display());
            count += 1;
            if catch_unwind(|| target.run(&input)).is_err() {
                failed.push(path);
            }
        }
        assert!(count >= 14, "only {count} inputs of {}", target.name);
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn the_seeds_are_in_the_corpus() {
    for target in volumes::TARGETS {
        for (name, bytes) in volumes::seeds::of(target) {
            let path = folder(target.name).join(&name);
            if std::env::var_os("REWRITE_SEEDS").is_some() {
                fs::create_dir_all(folder(target.name)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            assert!(bytes.len() < 1024, "{name}");
            assert!(fs::read(&path).is_ok_and(|kept| kept == bytes), "{}", path.display());
        }
    }
}

/// The inputs are worth something only if the disks they start from are good ones.
#[test]
fn every_base_is_what_it_is_called() {
    for target in volumes::TARGETS {
        for ((name, _), map) in target.bases.iter().zip(target.maps()) {
            let sector = if name.contains("4k") { 4096 } else { 512 };
            let disk = volumes::map::Changed::new(Arc::clone(map), map.size, sector);
            if target.name == "partitions" {
                assert!(partitions(&disk).unwrap().len() >= 2, "{name}");
                continue;
            }
            let found = recognise(&disk, 0..map.size).unwrap().map(|found| found.name);
            let found = found.unwrap_or_default().to_lowercase();
            assert!(found.starts_with(target.name), "{name} is {found}");
        }
    }
}

/// Checksums that are made right must be those that the file systems' own tools wrote.
#[test]
fn an_unchanged_disk_is_not_changed_by_making_its_checksums_right() {
    for target in volumes::TARGETS {
        for ((name, _), map) in target.bases.iter().zip(target.maps()) {
            let plain = volumes::map::Changed::new(Arc::clone(map), map.size, 512);
            let mut fixed = volumes::map::Changed::new(Arc::clone(map), map.size, 512);
            volumes::sums::fix(&mut fixed);
            for page in fixed.pages() {
                let length = map.size.saturating_sub(page).min(4096) as usize;
                let (one, other) = (plain.get(page, length), fixed.get(page, length));
                assert!(one == other, "{}/{name} differs at {page:#x}", target.name);
            }
            assert_eq!(fixed.size(), plain.size());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    /// What the fuzzers do for minutes, for seconds: some bytes of a base changed, mostly where numbers are, and
    /// the checksums right again.
    #[test]
    fn random_changes_are_survived(
        target in 0..volumes::TARGETS.len(),
        base in any::<u8>(),
        fix in prop::bool::weighted(0.9),
        records in prop::collection::vec(
            (0..2000u16, 0..160u16, prop_oneof![
                prop::collection::vec(any::<u8>(), 1..9),
                prop::sample::select(vec![vec![0; 4], vec![0; 8], vec![0xFF; 8], vec![1], vec![0x80]]),
            ]),
            1..6,
        ),
    ) {
        let mut input = vec![base, u8::from(fix)];
        for (piece, offset, bytes) in records {
            input.extend(piece.to_le_bytes());
            input.extend(offset.to_le_bytes());
            input.push(bytes.len() as u8);
            input.extend(bytes);
        }
        volumes::TARGETS[target].run(&input);
    }
}
