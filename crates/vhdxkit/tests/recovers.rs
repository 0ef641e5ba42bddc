//! What comes out of a recovery: a clean image that shows what was had, at bounded cost, and nothing called certain
//! that is not. `recovers_every_damage.rs` says how much is had.

#![allow(clippy::single_range_in_vec_init)] // Lists of ranges that happen to hold one.

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::sync::Arc;

use damage::{Damage, Damaged, Instead, file, judge, no_damage, salvage, wiped};
use proptest::prelude::*;
use vhdxkit::defect::Severity;
use vhdxkit::format::metadata::{INCOMPLETE_FILE, IS_REQUIRED, IS_USER, Item};
use vhdxkit::ops::check::check;
use vhdxkit::ops::recover::{Fate, Salvage, SalvageOptions, Trust};
use vhdxkit::storage::{FileStorage, MemoryStorage, Storage};
use vhdxkit::{CreateOptions, Image, OpenOptions};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{guid, samples};

/// What is written is a clean image that we and QEMU find nothing wrong with, and it shows what the salvage showed.
/// Contents that are all there keep the identity by which children know them; others do not.
#[test]
fn the_result_is_a_clean_image_that_shows_what_was_had() {
    let dir = tempfile::tempdir().unwrap();
    for packed in ["iotest-dynamic-1G.vhdx.bz2", "fixed.vhdx.gz", "fattools-base4k.vhdx.gz", DIRTY]
    {
        let Some(path) = common::unpack(packed, dir.path()) else { continue };
        let original = Image::open(&path).unwrap();
        for damage in damage::all(&original) {
            let chosen = ["header 1", "first mebibyte", "metadata", "last third cut"];
            if !chosen.contains(&damage.name) || damage.with == Instead::Junk {
                continue;
            }
            let _named = common::NamedOnFailure(format!("{packed}, {}", damage.title()));
            let salvage = salvage(&file(&path), &damage, &SalvageOptions::new());
            let to = dir.path().join("result.vhdx");
            let target = std::fs::File::options().read(true).write(true).create_new(true).open(&to);
            let target = FileStorage::from_file(target.unwrap());
            salvage.write(&target, None, &mut ()).unwrap();
            drop(target);
            let findings = vhdxkit::ops::check::check_file(&to, false, &mut ()).unwrap();
            assert!(!findings.has_problems(), "{:?}", findings.list());
            let result = Image::open(&to).unwrap();
            let had = judge(&original, &salvage, Some(&result), &damage);
            assert_eq!(had.share(), 10_000, "{had:?}");
            let id = |image: &Image| image.geometry().disk_id();
            let kept = damage.name != "metadata";
            assert_eq!(id(&result) == id(&original), kept, "the disk's identity");
            let data = |image: &Image| image.headers().current().data_write_guid;
            assert_ne!(data(&result), data(&original), "a header is missing or data is");
            if kept {
                assert_eq!(result.geometry().disk_type(), original.geometry().disk_type());
                assert_eq!(result.geometry().block_size(), original.geometry().block_size());
            }
            drop(result);
            if common::have("qemu-img") && original.geometry().logical_sector_size() == 512 {
                let text = common::run("qemu-img", &["check", "-f", "vhdx", to.to_str().unwrap()]);
                assert!(text.contains("No errors"), "{text}");
            }
            std::fs::remove_file(&to).unwrap();
        }
        // Of a file that is only reported to be damaged nothing is lost.
        let salvage = salvage(&file(&path), &no_damage(), &SalvageOptions::new());
        assert!(salvage.report().is_whole(), "{:#?}", salvage.report());
        let target = Arc::new(MemoryStorage::empty());
        salvage.write(&*target, None, &mut ()).unwrap();
        let result = OpenOptions::new().open_storage(target).unwrap();
        let data = |image: &Image| image.headers().current().data_write_guid;
        assert_eq!(data(&result), data(&original), "contents that children know");
        std::fs::remove_file(path).unwrap();
    }
}

const MIB: u64 = 1 << 20;
const DIRTY: &str = "iotest-dirtylog-10G-4M.vhdx.bz2";

fn open_over(file: Arc<dyn Storage>, parent: Arc<dyn Storage>) -> Image {
    let parent = OpenOptions::new().open_storage(parent).unwrap();
    OpenOptions::new().open_child(file, parent).unwrap()
}

fn whole_disk(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A child stays a child of its parent, sectors of both kinds included; over its parent it becomes a disk of its
/// own. When its sector bitmap is gone, what it holds in part is lost: the parent must not show in its place.
#[test]
fn a_child_is_had_as_a_child_and_over_its_parent() {
    let samples = samples::all();
    let sample = |name| samples.iter().find(|sample| sample.name == name).unwrap();
    let parent: Arc<dyn Storage> =
        Arc::new(MemoryStorage::new(sample("clean.vhdx").image.build_vec()));
    let child: Arc<dyn Storage> =
        Arc::new(MemoryStorage::new(sample("child.vhdx").image.build_vec()));
    let original = open_over(Arc::clone(&child), Arc::clone(&parent));
    let expected = whole_disk(&original);
    let bitmap = original.sector_bitmap(0).unwrap().unwrap();
    let harmless = [
        no_damage(),
        wiped("first mebibyte", &[0..1 << 20]),
        wiped("headers", &[64 << 10..192 << 10]),
        wiped("region tables", &[192 << 10..320 << 10]),
    ];
    for damage in &harmless {
        let _named = common::NamedOnFailure(damage.name.to_owned());
        let salvage = salvage(&child, damage, &SalvageOptions::new());
        let target = Arc::new(MemoryStorage::empty());
        salvage.write(&*target, None, &mut ()).unwrap();
        let findings = check(Arc::clone(&target) as _, &mut ()).unwrap();
        assert!(!findings.has_problems(), "{:?}", findings.list());
        let result = open_over(target, Arc::clone(&parent));
        assert!(whole_disk(&result) == expected, "the child over its parent");
        assert_eq!(
            result.parent_locator().unwrap().pairs(),
            original.parent_locator().unwrap().pairs()
        );
        let flat = Arc::new(MemoryStorage::empty());
        let over = OpenOptions::new().open_storage(Arc::clone(&parent)).unwrap();
        salvage.write(&*flat, Some((over, &OpenOptions::new())), &mut ()).unwrap();
        let flat = OpenOptions::new().open_storage(flat).unwrap();
        assert!(!flat.geometry().is_differencing());
        assert!(whole_disk(&flat) == expected, "one disk of both");
    }

    // Its metadata lost: the name of the parent cannot be had. Given the parent, the disk can.
    let metadata = original.regions().metadata();
    let damage = wiped("metadata", &[metadata.offset..metadata.end()]);
    let alone = salvage(&child, &damage, &SalvageOptions::new());
    assert!(alone.needs_parent());
    assert!(alone.write(&MemoryStorage::empty(), None, &mut ()).is_err());
    let over = OpenOptions::new().open_storage(Arc::clone(&parent)).unwrap();
    let given = salvage(&child, &damage, &SalvageOptions::new().parent(&over));
    let flat = Arc::new(MemoryStorage::empty());
    given.write(&*flat, Some((over, &OpenOptions::new())), &mut ()).unwrap();
    assert!(whole_disk(&OpenOptions::new().open_storage(flat).unwrap()) == expected);
    let said =
        |what| given.report().found.iter().any(|s| s.what == what && s.trust == Trust::Given);
    assert!(said("parent"), "{:#?}", given.report().found);

    // The entry of the bitmap lost.
    let geometry = original.geometry();
    let entry = original.regions().bat().offset + geometry.bitmap_index(0) * 8;
    let cut_off = wiped("bitmap entry", &[entry..entry + 8]);
    let salvage = salvage(&child, &cut_off, &SalvageOptions::new());
    let target = Arc::new(MemoryStorage::empty());
    salvage.write(&*target, None, &mut ()).unwrap();
    let result = open_over(target, Arc::clone(&parent));
    let mut lost = 0;
    for block in 0..geometry.blocks() {
        let start = block << 20;
        let end = (start + (1 << 20)).min(expected.len() as u64);
        let (start, end) = (start as usize, end as usize);
        let mut bytes = vec![0; end - start];
        result.read_at(start as u64, &mut bytes).unwrap();
        match damage::fate_at(salvage.report(), start as u64) {
            Fate::Lost => {
                lost += 1;
                assert!(bytes.iter().all(|byte| *byte == 0), "block {block} shows its parent");
            }
            fate => {
                assert!(fate.is_certain());
                assert!(bytes == expected[start..end], "block {block}");
            }
        }
    }
    assert_eq!(lost, 2, "bitmap at {bitmap:#x}");
}

/// What the result cannot have is told: an item of the metadata without which its maker wants nobody to open the disk,
/// and the mark of a file that was never finished.
#[test]
fn metadata_that_is_not_copied_is_told() {
    let unknown = guid(0xabcd, 1);
    let item = |id, flags| Item { id, flags, data: vec![7; 16] };
    let plain = item(guid(0xabcd, 2), 0);
    for (item, said) in [
        (item(unknown, IS_REQUIRED), unknown.to_string()),
        (item(unknown, IS_REQUIRED | IS_USER), unknown.to_string()),
        (Item { data: Vec::new(), ..item(INCOMPLETE_FILE, IS_REQUIRED) }, "never finished".into()),
    ] {
        let image = samples::clean().metadata_item(plain.clone()).metadata_item(item);
        let file = Arc::new(MemoryStorage::new(image.build_vec()));
        let salvage = Salvage::read(file, &SalvageOptions::new(), &mut ()).unwrap();
        let remarks = &salvage.report().remarks;
        assert!(remarks.len() == 1 && remarks[0].contains(&said), "{remarks:?}");
        let result = salvage.image().unwrap().unwrap();
        assert!(result.metadata().items().iter().any(|item| item.id == plain.id));
    }
}

/// The table of a fixed disk that was filled in order is gone, and no log tells: only the order is left, and it is
/// taken only when asked for, as a guess.
#[test]
fn an_order_is_guessed_only_when_asked_for() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(20 << 20).block_size(1 << 20).fixed(true).create_storage(&*file).unwrap();
    let disk = OpenOptions::new().open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
    for extent in disk.extents(0..disk.virtual_size()) {
        let extent = extent.unwrap();
        for (at, place) in
            (extent.start..extent.end()).zip(extent.file_offset.unwrap()..).step_by(4096)
        {
            file.write_at(place, &(at + 1).to_le_bytes()).unwrap();
        }
    }
    let inner = file as Arc<dyn Storage>;
    let original = OpenOptions::new().open_storage(Arc::clone(&inner)).unwrap();
    let bat = original.regions().bat();
    let damage = wiped("BAT", &[bat.offset..bat.end()]);
    let plain = salvage(&inner, &damage, &SalvageOptions::new());
    assert_eq!((plain.report().fates.count(Fate::Lost), plain.report().share()), (20, 0));
    assert_eq!(plain.report().orphans, [bat.end()..bat.end() + (20 << 20)]);
    let guess = salvage(&inner, &damage, &SalvageOptions::new().guess_order(true));
    assert_eq!(guess.report().fates.count(Fate::Guessed), 20);
    assert!(!guess.report().is_whole());
    let result = guess.image().unwrap().unwrap();
    assert!(whole_disk(&result) == whole_disk(&original));
    let mut out = Vec::new();
    plain.extract(bat.end()..bat.end() + (1 << 20), &mut out, &mut ()).unwrap();
    assert!(out == whole_disk(&original)[..1 << 20]);
}

/// A few bytes over the start of a short table: the entries behind them still say where their blocks lie, however
/// many of their neighbours are junk. They are had, and not called certain where most of what is left is junk.
#[test]
fn entries_beside_junk_still_name_their_blocks() {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(64 << 20).block_size(1 << 20).fixed(true).create_storage(&*file).unwrap();
    let inner = Arc::clone(&file) as Arc<dyn Storage>;
    let original = OpenOptions::new().open_storage(Arc::clone(&inner)).unwrap();
    let bat = original.regions().bat();
    for mib in bat.end() >> 20..file.len().unwrap() >> 20 {
        file.write_at(mib << 20, &(mib + 1).to_le_bytes()).unwrap();
    }
    for bytes in [1, 8, 32, 48, 64, 72, 256, 504] {
        let ranges = vec![bat.offset..bat.offset + bytes];
        let damage = Damage { with: Instead::Junk, ..wiped("start of BAT", &ranges) };
        let salvage = salvage(&inner, &damage, &SalvageOptions::new());
        let had = judge(&original, &salvage, salvage.image().unwrap().as_ref(), &damage);
        assert_eq!(had.right, 64 - bytes.div_ceil(8), "{bytes} bytes of junk: {had:?}");
        assert!(!salvage.report().is_whole());
        if bytes > 64 {
            assert_eq!(had.certain, 0, "{bytes} bytes of junk: {had:?}");
        }
    }
}

/// An entry of the log is torn, and whole newer ones lie behind it: no replay reaches them, so the table lacks what
/// they and the torn one changed. Nobody may be told that everything was had.
#[test]
fn newer_entries_behind_a_torn_one_leave_nothing_certain() {
    let inner = file("../../testdata/crashed.vhdx".as_ref());
    let original = OpenOptions::new().open_storage(Arc::clone(&inner)).unwrap();
    let damage = Damage { with: Instead::Junk, ..wiped("log entry", &[0x10_8000..0x10_8200]) };
    let damaged = Damaged { inner: Arc::clone(&inner), damage: damage.clone() };
    let gap = vhdxkit::log::Log::read(&damaged).unwrap().unreachable_entries();
    assert!(gap.is_some(), "the damage makes no gap");
    let salvage = salvage(&inner, &damage, &SalvageOptions::new());
    let report = salvage.report();
    let had = judge(&original, &salvage, salvage.image().unwrap().as_ref(), &damage);
    assert!(!report.is_whole(), "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("newer")), "{report:#?}");
    let certain = Fate::ALL.into_iter().filter(|fate| fate.is_certain());
    assert_eq!(certain.map(|fate| report.fates.count(fate)).sum::<u64>(), 0, "{report:#?}");
    assert_eq!(had.share(), 10_000, "the newer images were not taken: {report:#?}");
}

/// Both headers are lost, and with them the entries at the start of the log, where the newest session lay. The older
/// one behind them is then the only one, and not the last: what it left is no certain state of the disk.
#[test]
fn an_old_session_is_not_taken_for_the_last_because_it_is_alone() {
    let inner = file("../../testdata/crashed.vhdx".as_ref());
    let original = OpenOptions::new().open_storage(Arc::clone(&inner)).unwrap();
    for kib in [4, 16, 24, 52, 64] {
        for (with, first) in
            [Instead::Zeros, Instead::Junk].into_iter().flat_map(|w| [(w, 0), (w, 64 << 10)])
        {
            let ranges = [first..192 << 10, MIB..MIB + (kib << 10)];
            let damage = Damage { with, ..wiped("headers and newest entries", &ranges) };
            let _named = common::NamedOnFailure(format!("{kib} KiB of the log: {with:?}"));
            let salvage = salvage(&inner, &damage, &SalvageOptions::new());
            // No wrong byte is called certain.
            judge(&original, &salvage, salvage.image().unwrap().as_ref(), &damage);
            assert!(!salvage.report().is_whole(), "{:#?}", salvage.report());
        }
    }
}

/// A parent tells sizes, and shows where the child has nothing. Whether it is the right one only the child's own word
/// tells: where that is lost, or is another, nobody is told that everything was had, nor that the identity is sound.
#[test]
fn what_a_given_parent_tells_is_not_called_the_disks_own() {
    let samples = samples::all();
    let sample = |name| samples.iter().find(|sample| sample.name == name).unwrap();
    let parent = Arc::new(MemoryStorage::new(sample("clean.vhdx").image.build_vec()));
    let child: Arc<dyn Storage> =
        Arc::new(MemoryStorage::new(sample("child.vhdx").image.build_vec()));
    let open = |file: &Arc<MemoryStorage>| {
        OpenOptions::new().open_storage(Arc::clone(file) as Arc<dyn Storage>).unwrap()
    };
    let statement = |salvage: &Salvage, what| {
        salvage.report().found.iter().find(|found| found.what == what).unwrap().clone()
    };

    // The right one: the disk is had, and what is made of both is neither.
    let right = open(&parent);
    let flat = salvage(&child, &no_damage(), &SalvageOptions::new().parent(&right));
    assert!(flat.report().is_whole(), "{:#?}", flat.report());
    let said = statement(&flat, "DataWriteGuid").text;
    assert!(said.contains("a new one") && !said.contains("kept"), "{said}");
    let target = Arc::new(MemoryStorage::empty());
    flat.write(&*target, Some((right, &OpenOptions::new())), &mut ()).unwrap();
    let childs = open_over(Arc::clone(&child), Arc::clone(&parent) as _);
    let identity = |image: &Image| image.headers().current().data_write_guid;
    assert_ne!(identity(&open(&target)), identity(&childs));

    // The name of the parent is lost, and the sizes are given, so that nothing else is in doubt.
    let metadata = childs.regions().metadata();
    let damage = wiped("metadata", &[metadata.offset..metadata.end()]);
    let options = SalvageOptions::new().parent(&open(&parent)).block_size(1 << 20);
    let unnamed = salvage(&child, &damage, &options);
    assert!(!unnamed.report().is_whole(), "{:#?}", unnamed.report());
    assert_eq!(statement(&unnamed, "virtual disk id").trust, Trust::Given);

    // It was written to since.
    let disk = OpenOptions::new().write(true).open_storage(Arc::clone(&parent) as _).unwrap();
    disk.write_at(0, &[0xEE; 512]).unwrap();
    disk.close().unwrap();
    let other = salvage(&child, &no_damage(), &SalvageOptions::new().parent(&open(&parent)));
    assert!(!other.report().is_whole(), "{:#?}", other.report());
    assert!(other.report().doubts[0].contains("the disk names"), "{:#?}", other.report().doubts);
}

/// A disk of a hundred blocks of which four hold data, all of them named by the log.
fn four_blocks() -> Arc<dyn Storage> {
    let file = Arc::new(MemoryStorage::empty());
    CreateOptions::new(100 << 20).block_size(1 << 20).create_storage(&*file).unwrap();
    let options = OpenOptions::new().write(true);
    let disk = options.open_storage(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
    for block in [0u64, 20, 50, 99] {
        disk.write_at(block << 20, &[block as u8 + 1; 4096]).unwrap();
    }
    disk.close().unwrap();
    file
}

/// A size that somebody gives from memory is not better than the one that the file has: where they differ both are
/// told, and the result is not called the disk.
#[test]
fn sizes_that_contradict_the_files_own_leave_nothing_certain() {
    let inner = four_blocks();
    let salvaged = |options| salvage(&inner, &no_damage(), &options);
    let options = SalvageOptions::new;
    let same = options().virtual_size(100 << 20).block_size(1 << 20).logical_sector_size(512);
    assert!(salvaged(same).report().is_whole());
    for (options, own) in [
        (options().virtual_size(30 << 20), 100 << 20),
        (options().block_size(2 << 20), 1 << 20),
        (options().logical_sector_size(4096), 512),
    ] {
        let salvage = salvaged(options);
        let report = salvage.report();
        assert!(!report.is_whole(), "{report:#?}");
        assert!(report.doubts[0].contains(&own.to_string()), "{:?}", report.doubts);
        let guid = report.found.iter().find(|found| found.what == "DataWriteGuid").unwrap();
        assert_eq!(guid.trust, Trust::Lost);
        assert!(own == 100 << 20 || report.fates.count(Fate::Intact) == 0, "{report:#?}");
    }
}

/// One sector of the disk that a file lies on is 512 bytes: a table can lose that much of a page, and what is left looks
/// like a page of a table. The log still names the blocks. Of a fixed disk it never has: but there every block has
/// a place, and a file that holds data that nothing names.
#[test]
fn a_table_that_lost_one_sector_is_not_taken_at_its_word() {
    let inner = four_blocks();
    let original = OpenOptions::new().open_storage(Arc::clone(&inner)).unwrap();
    let at = original.regions().bat().offset;
    for with in [Instead::Zeros, Instead::Junk] {
        let damage = Damage { with, ..wiped("a sector of the table", &[at..at + 512]) };
        let salvage = salvage(&inner, &damage, &SalvageOptions::new());
        let result = salvage.image().unwrap();
        let had = judge(&original, &salvage, result.as_ref(), &damage);
        assert_eq!((had.right, had.left), (4, 4), "{with:?}: {:#?}", salvage.report());
        assert_eq!(salvage.report().fates.count(Fate::Log), 3, "{:#?}", salvage.report().fates);
    }
    let fixed = Arc::new(MemoryStorage::empty());
    CreateOptions::new(100 << 20).block_size(1 << 20).fixed(true).create_storage(&*fixed).unwrap();
    let disk = OpenOptions::new().open_storage(Arc::clone(&fixed) as Arc<dyn Storage>).unwrap();
    for block in [0u64, 20, 50, 99] {
        let place = disk.extents(block << 20..(block << 20) + 512).next().unwrap().unwrap();
        fixed.write_at(place.file_offset.unwrap(), &[7; 4096]).unwrap();
    }
    let at = disk.regions().bat().offset;
    let inner = fixed as Arc<dyn Storage>;
    let damage = wiped("a sector of the table", &[at..at + 512]);
    let salvage = salvage(&inner, &damage, &SalvageOptions::new());
    assert!(!salvage.report().is_whole(), "{:#?}", salvage.report());
    assert_eq!(salvage.report().fates.count(Fate::Lost), 64);
}

/// A file of random bytes holds nothing, and costs no more than a look.
#[test]
fn junk_gives_nothing_and_does_no_harm() {
    let mut random = Random::new(7);
    let bytes: Vec<u8> = (0..3 << 20).map(|_| random.any() as u8).collect();
    for length in [0, 1, 4096, (1 << 20) - 1, 1 << 20, 3 << 20] {
        let file = Arc::new(MemoryStorage::new(bytes[..length].to_vec()));
        let salvage = Salvage::read(file, &SalvageOptions::new(), &mut ()).unwrap();
        assert!(salvage.report().geometry.is_none() && salvage.image().unwrap().is_none());
        assert!(salvage.write(&MemoryStorage::empty(), None, &mut ()).is_err());
    }
}

/// Holes are passed by: a sparse file of a tebibyte, its structures gone but for some at its end, takes no time.
#[test]
fn a_huge_sparse_file_is_looked_through_without_reading_its_holes() {
    let started = std::time::Instant::now();
    let file = Arc::new(MemoryStorage::empty());
    file.set_len(1 << 40).unwrap();
    let sample = samples::clean().build_vec();
    let at = (1 << 40) - sample.len() as u64;
    file.write_at(at, &sample).unwrap();
    let counted = Arc::new(common::Counting::new(file));
    let medium = Arc::clone(&counted) as Arc<dyn Storage>;
    let salvage = Salvage::read(medium, &SalvageOptions::new(), &mut ()).unwrap();
    // The metadata is found by its signature; the table names places that are holes here.
    assert!(salvage.report().geometry.is_some(), "{:#?}", salvage.report());
    assert!(counted.count() < 200 << 20, "{} bytes were read", counted.count());
    assert!(started.elapsed().as_secs() < 30);
}

/// Claims as large as the format allows, by a file that holds next to nothing; and every block at one place:
/// what comes out is bounded by what the file holds.
#[test]
fn huge_claims_cost_little_and_no_place_is_given_out_twice() {
    let dir = tempfile::tempdir().unwrap();
    for differencing in [false, true] {
        let size = 64u64 << 40;
        let image = match differencing {
            false => vhdxkit_testkit::Image::dynamic(size),
            true => vhdxkit_testkit::Image::differencing(size, vhdxkit_testkit::guid(1, 1))
                .parent_path("relative_path", r".\parent.vhdx"),
        };
        let text = vhdxkit_testkit::Contents::Data(b"one block for all".to_vec());
        let image = image.block_size(32 << 20).bat_length(32 << 20).place_block(0, 100, text);
        let all_at_one =
            |image: vhdxkit_testkit::Image, index| image.bat_entry(index, 100 << 20 | 6);
        let path = dir.path().join("claims.vhdx");
        (1..4000).fold(image, all_at_one).build_file(&path);
        let length = std::fs::metadata(&path).unwrap().len();
        let file = file(&path);
        let started = std::time::Instant::now();
        let salvage = Salvage::read(file, &SalvageOptions::new(), &mut ()).unwrap();
        let report = salvage.report();
        assert!(report.recovered <= length);
        assert!(report.fates.count(Fate::Lost) >= 3800, "{:?}", report.fates.count(Fate::Lost));
        assert_eq!(report.fates.count(Fate::Intact), 0, "the one owner is not certain either");
        assert!(started.elapsed().as_secs() < 60);
    }
}

/// Bad spots of a failing disk read zeros, are told, and end nothing.
#[test]
fn what_cannot_be_read_is_told_and_the_rest_is_had() {
    let sample = samples::clean();
    let bytes = sample.build_vec();
    let original = common::open(MemoryStorage::new(bytes.clone())).unwrap();
    let place = original.extents(0..512).next().unwrap().unwrap().file_offset.unwrap();
    let bad = common::Counting::with_bad_spot(MemoryStorage::new(bytes), place..place + 1);
    let salvage = Salvage::read(Arc::new(bad), &SalvageOptions::new(), &mut ()).unwrap();
    let target = Arc::new(MemoryStorage::empty());
    salvage.write(&*target, None, &mut ()).unwrap();
    assert_eq!(salvage.unreadable(), [place..place + 4096]);
    let result = OpenOptions::new().open_storage(target).unwrap();
    let (mut was, mut is) = (whole_disk(&original), whole_disk(&result));
    assert!(is[..4096].iter().all(|byte| *byte == 0));
    assert!(was.split_off(4096) == is.split_off(4096));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Any part of any sample overwritten with anything: no panic, no write to the source, no result larger than
    /// the file, and the view is an image without errors.
    #[test]
    fn any_damage_is_survived(
        which in 0..4usize,
        places in proptest::collection::vec((0..8u64 << 20, 1..200_000u64, any::<bool>()), 0..5),
        values in proptest::collection::vec((0..0x60_0000u64, any::<u64>()), 0..20),
        cut in proptest::option::of(0..8u64 << 20),
    ) {
        let samples = samples::all();
        let file = MemoryStorage::new(samples[which].image.build_vec());
        let length = file.len().unwrap();
        for (at, value) in values {
            if at * 8 % length + 8 <= length {
                file.write_at(at * 8 % length, &value.to_le_bytes()).unwrap();
            }
        }
        for (start, size, zeros) in places {
            let range = start.min(length)..(start + size).min(length);
            let with = if zeros { Instead::Zeros } else { Instead::Junk };
            let damage = Damage { with, ..wiped("some", &[range]) };
            let inner: Arc<dyn Storage> = Arc::new(MemoryStorage::new(file.to_vec()));
            let mut bytes = vec![0; length as usize];
            Damaged { inner, damage }.read_at(0, &mut bytes).unwrap();
            file.write_at(0, &bytes).unwrap();
        }
        let damage = Damage { cut, ..no_damage() };
        let inner: Arc<dyn Storage> = Arc::new(file);
        let salvage = salvage(&inner, &damage, &SalvageOptions::new());
        prop_assert!(salvage.report().recovered <= length);
        if let Some(view) = salvage.image().unwrap() {
            let findings = check(Arc::clone(view.storage()), &mut ()).unwrap();
            let errors = findings.list().iter().filter(|d| d.severity() == Severity::Error);
            prop_assert_eq!(errors.count(), 0, "{:?}", findings.list());
            prop_assert_eq!(salvage.report().fates.total(), view.geometry().blocks());
        }
    }
}
