//! A picture counts every byte once.
//!
//! People judge by it where their space went. Its cells are sums over millions of blocks that nobody can
//! check by eye, so they are checked here: against the extents of random chains, against what `check`
//! calls leaked, and on disks whose tables are damaged, where extents end and a picture must not.

use std::sync::Arc;

use vhdxkit::defect::Defect;
use vhdxkit::ops::check::check;
use vhdxkit::ops::partitions::volumes;
use vhdxkit::ops::picture::{Detail, DiskState, FileOwner, Picture, picture};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, ErrorKind, ExtentState, Image, OpenOptions};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{Contents, Image as Kit};

const MIB: u64 = 1 << 20;

fn detail(random: &mut Random) -> Detail {
    Detail {
        disk_cells: 1 + random.below(5000),
        file_cells: 1 + random.below(40),
        scatter: (1 + random.below(60) as u32, 1 + random.below(60) as u32),
    }
}

fn some_detail() -> Detail {
    Detail { disk_cells: 4096, file_cells: 512, scatter: (64, 64) }
}

fn open(kit: &Kit) -> Image {
    OpenOptions::new().open_storage(Arc::new(MemoryStorage::new(kit.build_vec()))).unwrap()
}

fn state_of(state: ExtentState, depth: u32) -> DiskState {
    match state {
        ExtentState::Data => {
            [DiskState::Data, DiskState::Parent, DiskState::Grandparent, DiskState::Ancestor]
                [depth.min(3) as usize]
        }
        ExtentState::Zero => DiskState::Zero,
        ExtentState::NotPresent => DiskState::NotPresent,
        ExtentState::Unmapped => DiskState::Unmapped,
        ExtentState::Undefined => DiskState::Undefined,
        ExtentState::ParentMissing => DiskState::ParentMissing,
    }
}

/// Every cell, byte for byte, as the extents have it; and the file's cells as long as the file.
fn require_sums(image: &Image, picture: &Picture) {
    let disk = &picture.disk;
    let mut cells = vec![[0u64; 10]; disk.cells.len()];
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent.unwrap();
        let state = state_of(extent.state, extent.depth);
        for (number, cell) in cells.iter_mut().enumerate() {
            let start = number as u64 * disk.cell_bytes;
            let (from, to) = (extent.start.max(start), extent.end().min(start + disk.cell_bytes));
            cell[state as usize] += to.saturating_sub(from);
        }
    }
    for (number, (cell, expected)) in disk.cells.iter().zip(&cells).enumerate() {
        assert_eq!(DiskState::ALL.map(|state| cell.of(state)), *expected, "cell {number}");
    }
    assert_eq!(disk.totals.sum(), image.virtual_size());
    let file = &picture.file;
    assert_eq!(file.length, image.storage().len().unwrap());
    assert_eq!(file.totals.sum(), file.length);
    for owner in FileOwner::ALL {
        let sum: u64 = file.cells.iter().map(|cell| cell.of(owner)).sum();
        assert_eq!(sum, file.totals.of(owner), "{owner:?}");
    }
    let last = file.cells.len() as u64 - 1;
    for (number, cell) in (0u64..).zip(&file.cells) {
        let expected =
            if number < last { file.cell_bytes } else { file.length - last * file.cell_bytes };
        assert_eq!(cell.sum(), expected, "cell {number} of the file");
    }
    let order = file.order;
    assert_eq!(order.runs + order.in_order, order.blocks);
    assert!(order.in_order <= order.neighbours);
    let stored: u64 = file.scatter.bytes.iter().sum();
    let (used, blocks) =
        (image.virtual_size(), order.blocks * u64::from(image.geometry().block_size()));
    assert!(stored <= used && stored <= blocks, "{stored}");
}

fn write_here_and_there(image: &Image, random: &mut Random) {
    let (size, sector) = (image.virtual_size(), u64::from(image.geometry().logical_sector_size()));
    for _ in 0..12 {
        let start = random.below(size / sector) * sector;
        let length = random.one_of(&[sector, 9 * sector, MIB, 3 * MIB]).min(size - start);
        match random.below(4) {
            0 => image.write_zeroes(start..start + length).unwrap(),
            1 => image.discard(start..start + length).unwrap(),
            _ => image.write_at(start, &vec![7; length as usize]).unwrap(),
        }
    }
}

#[test]
fn cells_add_up_to_the_extents_of_random_chains() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let sector = random.one_of(&[512, 4096]);
        let size = (3 + random.below(9)) * MIB + random.below(40) * sector;
        let mut files: Vec<Arc<dyn Storage>> = Vec::new();
        for depth in 0..1 + random.below(5) {
            let file: Arc<dyn Storage> = Arc::new(MemoryStorage::empty());
            let options = match depth {
                0 => CreateOptions::new(size)
                    .logical_sector_size(sector as u32)
                    .fixed(random.below(3) == 0),
                _ => CreateOptions::child_of(&open_chain(&files, false)).unwrap(),
            };
            let block = 1 << 20 << random.below(3);
            options.block_size(block).reproducible(seed).create_storage(&*file).unwrap();
            files.push(file);
            let image = open_chain(&files, true);
            write_here_and_there(&image, &mut random);
            image.close().unwrap();
        }
        let image = open_chain(&files, false);
        let picture = picture(&image, &[], detail(&mut random), &mut ()).unwrap();
        require_sums(&image, &picture);
    }
}

fn open_chain(files: &[Arc<dyn Storage>], write: bool) -> Image {
    let mut chain: Option<Image> = None;
    for (depth, file) in files.iter().enumerate() {
        let options = OpenOptions::new().write(write && depth + 1 == files.len());
        let file = Arc::clone(file);
        chain = Some(match chain {
            None => options.open_storage(file).unwrap(),
            Some(parent) => options.open_child(file, parent).unwrap(),
        });
    }
    chain.unwrap()
}

/// The child of `testdata/` without its parent: what is not its own is missing, and says so.
#[test]
fn a_child_alone_shows_what_is_missing() {
    let file = std::fs::read("../../testdata/child.vhdx").unwrap();
    let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new(file));
    let image = OpenOptions::new().without_parents().open_storage(file).unwrap();
    let picture = picture(&image, &[], some_detail(), &mut ()).unwrap();
    require_sums(&image, &picture);
    assert!(picture.disk.totals.of(DiskState::ParentMissing) > 0);
    assert!(picture.disk.totals.of(DiskState::Data) > 0);
    assert!(picture.file.totals.of(FileOwner::SectorBitmap) > 0);
}

/// Extents end at the first block that cannot be read. Whoever looks at a damaged disk wants the rest.
#[test]
fn a_damaged_block_is_one_colour_among_others() {
    let kit = Kit::dynamic(8 * MIB).block(0, Contents::Pattern(1)).block(7, Contents::Pattern(7));
    let layout = kit.layout();
    // A state that does not exist; a place behind the end; a present block without a place.
    let kit = kit
        .bat_entry(layout.bat_index(2), 4)
        .bat_entry(layout.bat_index(4), (4096 << 20) | 6)
        .bat_entry(layout.bat_index(5), 6);
    let image = open(&kit);
    assert!(image.extents(0..image.virtual_size()).any(|extent| extent.is_err()));
    let picture = picture(&image, &[], some_detail(), &mut ()).unwrap();
    let totals = picture.disk.totals;
    assert_eq!(totals.of(DiskState::Damaged), 3 * MIB);
    assert_eq!(totals.of(DiskState::Data), 2 * MIB);
    assert_eq!(totals.of(DiskState::NotPresent), 3 * MIB);
    for (number, cell) in (0u64..).zip(&picture.disk.cells) {
        let block = number * picture.disk.cell_bytes / MIB;
        let damaged = matches!(block, 2 | 4 | 5);
        assert_eq!(cell.of(DiskState::Damaged) > 0, damaged, "block {block}");
    }
    assert_eq!(picture.file.totals.sum(), picture.file.length);
}

#[test]
fn damage_in_a_parent_is_seen_through_its_child() {
    let parent = Kit::dynamic(4 * MIB).block(0, Contents::Pattern(1));
    let damaged = parent.clone().bat_entry(parent.layout().bat_index(2), 4);
    let child = Kit::differencing(4 * MIB, parent.data_write_guid())
        .block_size(2 << 20)
        .partial_block(1, 0..8, vec![9; 4096]);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(child.build_vec()));
    let image = OpenOptions::new().open_child(storage, open(&damaged)).unwrap();
    let totals = picture(&image, &[], some_detail(), &mut ()).unwrap().disk.totals;
    assert_eq!(totals.sum(), image.virtual_size());
    assert_eq!(totals.of(DiskState::Data), 4096);
    assert_eq!(totals.of(DiskState::Parent), MIB);
    assert_eq!(totals.of(DiskState::Damaged), MIB - 4096);
    assert_eq!(totals.of(DiskState::NotPresent), 2 * MIB);
}

#[test]
fn gaps_and_the_tail_are_what_check_calls_leaked() {
    let kit = Kit::dynamic(8 * MIB)
        .block(0, Contents::Pattern(1))
        .place_block(1, 20, Contents::Pattern(2))
        .block(3, Contents::Retained(3, vec![3; 5000]))
        .extra_tail(5 * MIB);
    let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new(kit.build_vec()));
    let findings = check(Arc::clone(&file), &mut ()).unwrap();
    let leaked = findings.list().iter().find_map(|defect| match defect {
        Defect::LeakedSpace { bytes } => Some(*bytes),
        _ => None,
    });
    let image = OpenOptions::new().open_storage(file).unwrap();
    let totals = picture(&image, &[], some_detail(), &mut ()).unwrap().file.totals;
    assert_eq!(totals.of(FileOwner::Tail), 5 * MIB);
    assert!(totals.of(FileOwner::Gap) > MIB);
    assert_eq!(Some(totals.of(FileOwner::Gap) + totals.of(FileOwner::Tail)), leaked);
    assert_eq!(totals.of(FileOwner::Payload), 2 * MIB);
    assert_eq!(totals.of(FileOwner::Retained), MIB);
}

/// Two blocks in one place: damage. The bytes are counted once all the same.
#[test]
fn a_place_with_two_owners_is_counted_once() {
    let kit = Kit::dynamic(8 * MIB).place_block(0, 5, Contents::Pattern(1)).place_block(
        1,
        5,
        Contents::Pattern(1),
    );
    let file = picture(&open(&kit), &[], some_detail(), &mut ()).unwrap().file;
    assert_eq!((file.shared_blocks, file.totals.of(FileOwner::Payload)), (1, MIB));
    assert_eq!(file.totals.sum(), file.length);
}

#[test]
fn fragmentation_counts_runs_and_blocks_in_order() {
    // On the disk 0 1 2 _ 4 5; in the file 0 1, then 5, then 4, then 2.
    let kit = Kit::dynamic(8 * MIB)
        .place_block(0, 10, Contents::Pattern(1))
        .place_block(1, 11, Contents::Pattern(1))
        .place_block(5, 12, Contents::Pattern(1))
        .place_block(4, 13, Contents::Pattern(1))
        .place_block(2, 14, Contents::Pattern(1));
    let file = picture(&open(&kit), &[], some_detail(), &mut ()).unwrap().file;
    let order = file.order;
    assert_eq!((order.blocks, order.runs, order.neighbours, order.in_order), (5, 4, 3, 1));
    // Block 5 lies in column 40 of 64 (8 MiB), its file offset of 12 MiB in row 51 of 64 (15 MiB).
    assert_eq!(file.length, 15 * MIB);
    assert!(file.scatter.at(40, 51) > 0);
    assert_eq!(file.scatter.at(24, 51), 0);
}

/// Free bytes of a file system, and those of them that the file stores nevertheless.
#[test]
fn free_bytes_are_set_against_what_is_stored() {
    let mut first = vec![0u8; 4096];
    // A swap area of 2 MiB: one page of header; all the rest is free.
    first[1024] = 1;
    first[1028..1032].copy_from_slice(&511u32.to_le_bytes());
    first[4086..4096].copy_from_slice(b"SWAPSPACE2");
    let kit = Kit::dynamic(2 * MIB).block(0, Contents::Data(first));
    let image = open(&kit);
    let found = volumes(&image).unwrap();
    assert!(found[0].space.is_ok(), "{:?}", found[0].space);
    let disk = picture(&image, &found, some_detail(), &mut ()).unwrap().disk;
    assert_eq!(disk.totals.free, 2 * MIB - 4096);
    assert_eq!(disk.totals.stored_free, MIB - 4096);
    assert_eq!((disk.cells[0].free, disk.cells[1].free), (0, disk.cell_bytes));
    assert_eq!(disk.cells[256].stored_free, 0);
}

#[test]
fn an_image_that_is_written_is_refused() {
    let file: Arc<dyn Storage> = Arc::new(MemoryStorage::empty());
    CreateOptions::new(MIB).create_storage(&*file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(file).unwrap();
    let error = picture(&image, &[], some_detail(), &mut ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
