//! What can be had of damaged images: real ones, our own, QEMU's; each with every part of it destroyed in turn,
//! by zeros and by junk.
//!
//! What must hold: all of the disk where only the first mebibyte, or one copy of something, is lost; else every
//! block that the log or what is left of the table names; never a wrong byte under a fate that claims certainty.
//! The damaged file is never written (the medium panics). The shares are printed, and kept as floors.

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use damage::{Damage, Damaged, Had, Instead, judge};
use vhdxkit::ops::check::check;
use vhdxkit::ops::recover::{Fate, Salvage, SalvageOptions, Trust};
use vhdxkit::storage::{FileStorage, MemoryStorage, OpenMode, Storage};
use vhdxkit::{Image, OpenOptions, ParentPolicy};
use vhdxkit_testkit::samples;

const REAL: [&str; 9] = [
    "iotest-dirtylog-10G-4M.vhdx.bz2",
    "iotest-dynamic-1G.vhdx.bz2",
    "test-disk2vhd.vhdx.bz2",
    "swap.vhdx.gz",
    "btrfs.vhdx.gz",
    "fixed.vhdx.gz",
    "dynamic.vhdx.gz",
    "fattools-base512.vhdx.gz",
    "fattools-base4k.vhdx.gz",
];

fn file(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, OpenMode::ReadOnly { force_share: true }).unwrap())
}

fn salvage(inner: &Arc<dyn Storage>, damage: &Damage, options: &SalvageOptions) -> Salvage {
    let damaged = Damaged { inner: Arc::clone(inner), damage: damage.clone() };
    Salvage::read(Arc::new(damaged), options, &mut ()).unwrap()
}

/// Damages an image in every way; prints what was had, and gives it.
fn every_damage(name: &str, inner: &Arc<dyn Storage>) -> Vec<(Damage, Had)> {
    let original = OpenOptions::new().open_storage(Arc::clone(inner)).unwrap();
    let mut shares = Vec::new();
    for damage in damage::all(&original) {
        let _named = common::NamedOnFailure(format!("{name}, {}", damage.title()));
        let salvage = salvage(inner, &damage, &SalvageOptions::new());
        let result = salvage.image().unwrap();
        let had = judge(&original, &salvage, result.as_ref(), &damage);
        let report = salvage.report();
        println!(
            "{name:32} {:28} {:3}.{:02} % of {:4} MiB left of {:4}, certain {:4}{}",
            damage.title(),
            had.share() / 100,
            had.share() % 100,
            had.left,
            had.data,
            had.certain,
            if report.is_whole() { ", whole" } else { "" },
        );
        if damage.harmless {
            assert_eq!(had.share(), 10_000, "{:#?}", salvage.report());
        }
        if let Some(result) = &result {
            let view = Arc::clone(result.storage());
            let findings = check(view, &mut ()).unwrap();
            let problems = findings.list().iter().filter(|d| d.code() != "V35");
            let problems: Vec<String> = problems
                .filter(|d| d.severity() > vhdxkit::defect::Severity::Info)
                .map(|d| format!("{} {d}", d.code()))
                .collect();
            // Blocks that reach behind the file's old end do so in the view.
            assert!(problems.is_empty(), "{problems:?}");
        }
        shares.push((damage, had));
    }
    shares
}

#[test]
fn real_images_are_had_in_spite_of_every_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = 0;
    for packed in REAL {
        let Some(path) = common::unpack(packed, dir.path()) else { continue };
        every_damage(packed, &file(&path));
        std::fs::remove_file(path).unwrap();
        images += 1;
    }
    println!("{images} of {} images", REAL.len());
}

#[test]
fn our_samples_are_had_in_spite_of_every_damage() {
    for sample in samples::all().into_iter().filter(|sample| sample.parent.is_none()) {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(sample.image.build_vec()));
        every_damage(sample.name, &storage);
    }
}
