//! What can be had of damaged images: real ones, our own, QEMU's; each with every part of it destroyed in turn,
//! by zeros and by junk.
//!
//! What must hold: all of the disk where only the first mebibyte, or one copy of something, is lost; else every
//! block that the log or what is left of the table names; never a wrong byte under a fate that claims certainty.
//! The damaged file is never written (the medium panics). The shares are printed, and kept as floors.

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::sync::Arc;

use damage::{Damage, Had, file, judge, salvage};
use vhdxkit::ops::check::check;
use vhdxkit::ops::recover::SalvageOptions;
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, OpenOptions};
use vhdxkit_testkit::random::{Random, mix};
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

/// What is had at least of what is still in the file, in hundredths of a per cent, where that is not all of it:
/// by image (a part of its name) and damage. A table without a log that has ever named its blocks is gone for
/// good; and what only a lost log knew is lost.
const FLOORS: [(&str, &str, u64); 11] = [
    ("iotest-dirtylog", "log", 9444),
    ("iotest-dirtylog", "first MiB and log", 9444),
    ("crashed.vhdx", "log", 3333),
    ("crashed.vhdx", "first MiB and log", 3333),
    ("test-disk2vhd", "BAT", 0),
    ("fattools", "BAT", 0),
    ("clean.vhdx", "BAT", 0),
    ("sectors-4k.vhdx", "BAT", 0),
    ("QEMU", "BAT", 0),
    ("seed", "log", 0),
    ("seed", "BAT", 0),
];

fn floor(image: &str, damage: &Damage) -> u64 {
    let last = damage.name.rsplit(" and ").next().unwrap();
    let found = FLOORS
        .iter()
        .find(|(name, what, _)| image.contains(name) && (*what == damage.name || *what == last));
    found.map_or(10_000, |(.., share)| *share)
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
            // What was trimmed, or is not had, still lies in the view.
            let known = ["V35", "W-NAMELESS"];
            let problems = findings.list().iter().filter(|d| !known.contains(&d.code()));
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

fn hold_floors(name: &str, shares: &[(Damage, Had)]) {
    for (damage, had) in shares {
        let floor = floor(name, damage);
        assert!(had.share() >= floor, "{name}, {}: {had:?}, floor {floor}", damage.title());
    }
}

#[test]
fn real_images_are_had_in_spite_of_every_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = 0;
    for packed in REAL {
        let Some(path) = common::unpack(packed, dir.path()) else { continue };
        hold_floors(packed, &every_damage(packed, &file(&path)));
        std::fs::remove_file(path).unwrap();
        images += 1;
    }
    println!("{images} of {} images", REAL.len());
}

#[test]
fn our_samples_are_had_in_spite_of_every_damage() {
    for sample in samples::all().into_iter().filter(|sample| sample.parent.is_none()) {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(sample.image.build_vec()));
        hold_floors(sample.name, &every_damage(sample.name, &storage));
    }
}

/// Sessions of our own writer, the last one broken off: blocks written, trimmed, zeroed, their space given to
/// others, logs full several times. The ring holds several sessions, and often only the log knows the last
/// state.
fn written_by_us(seed: u64) -> Arc<dyn Storage> {
    let mut random = Random::new(seed);
    let file = Arc::new(MemoryStorage::empty());
    let block = random.one_of(&[1u64, 2, 4]) << 20;
    let size = block * (8 + random.below(40)) + 512 * random.below(3);
    let fixed = random.below(6) == 0;
    CreateOptions::new(size)
        .block_size(block as u32)
        .fixed(fixed)
        .reproducible(seed)
        .create_storage(&*file)
        .unwrap();
    let sessions = 1 + random.below(4);
    for session in 0..sessions {
        let options = OpenOptions::new().write(true).reproducible(mix(seed * 100 + session));
        let disk = options.open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
        for _ in 0..random.below(30) {
            let start = random.below(size / 512) * 512;
            let length = (512 * (1 + random.below(64))).min(size - start);
            let whole = start / block * block;
            let whole = whole..(whole + block).min(size);
            match random.below(8) {
                0 => disk.discard(whole).unwrap(),
                1 => disk.write_zeroes(whole).unwrap(),
                2 | 3 => disk.flush().unwrap(),
                _ => {
                    let bytes = vec![(1 + random.below(255)) as u8; length as usize];
                    disk.write_at(start, &bytes).unwrap();
                }
            }
        }
        if session + 1 == sessions && random.below(3) > 0 {
            disk.flush().unwrap();
            // What the file holds now is what a crash leaves.
            let crashed = MemoryStorage::new(file.to_vec());
            drop(disk);
            return Arc::new(crashed);
        }
        disk.close().unwrap();
    }
    file
}

#[test]
fn what_our_writer_leaves_is_had_in_spite_of_every_damage() {
    let mut sum = Had::default();
    let first: u64 = std::env::var("RECOVER_SEED").map_or(1, |seed| seed.parse().unwrap());
    let count: u64 = std::env::var("RECOVER_SEEDS").map_or(10, |count| count.parse().unwrap());
    for seed in first..first + count {
        let file = written_by_us(seed);
        let name = format!("seed {seed}");
        let shares = every_damage(&name, &file);
        hold_floors(&name, &shares);
        for (_, had) in shares.iter().filter(|(damage, _)| damage.name.ends_with("BAT")) {
            sum.left += had.left;
            sum.right += had.right;
        }
    }
    println!("without their tables: {} of {} MiB", sum.right, sum.left);
    assert!(sum.share() >= 8_000, "the log names less than it did: {sum:?}");
}

/// QEMU's images: their regions in another order, no Required flags, fixed ones cut off at their last block,
/// zero blocks everywhere.
#[test]
fn images_by_qemu_are_had_in_spite_of_every_damage() {
    if !common::have("qemu-img") || !common::have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..=6u64 {
        let mut random = Random::new(mix(seed));
        let path = dir.path().join(format!("{seed}.vhdx"));
        let block = [1u64, 2, 8, 32][seed as usize % 4] << 20;
        let fixed = seed % 3 == 0;
        let size = match fixed {
            true => (40 << 20) + 3 * 512,
            false => random.one_of(&[200u64 << 20, 5 << 30, 9 << 30]),
        };
        let options = format!(
            "subformat={},block_size={block},block_state_zero={}",
            if fixed { "fixed" } else { "dynamic" },
            if fixed || seed % 2 == 0 { "off" } else { "on" },
        );
        let text = path.to_str().unwrap();
        let create = ["create", "-q", "-f", "vhdx", "-o", &options, text, &size.to_string()];
        common::run("qemu-img", &create);
        for _ in 0..2 {
            let writes: Vec<String> = (0..6)
                .map(|_| {
                    let start = random.below(size - (1 << 20)) / 512 * 512;
                    format!("write -P {} {start} {}", 1 + random.below(255), 512 * 600)
                })
                .collect();
            let mut arguments = vec!["-f", "vhdx"];
            arguments.extend(writes.iter().flat_map(|write| ["-c", write]));
            arguments.push(text);
            common::run("qemu-io", &arguments);
        }
        let name = format!("QEMU {seed}: {options}");
        hold_floors(&name, &every_damage(&name, &file(&path)));
        std::fs::remove_file(path).unwrap();
    }
}
