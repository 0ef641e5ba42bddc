//! Chains that we made are read by others as we read them: by 7-Zip, which follows `relative_path`, and by
//! libvhdi, which is told the parents. A reader and a writer of ours may share a mistake: a bitmap that is
//! counted from the wrong end looks right to both.
//!
//! What the others do not do, and what they do wrongly, stands in `docs/comparison.md`. Each such case is a
//! test here, which says when that has changed.

// Programs that mount need a Unix.
#![cfg(unix)]

mod common;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use vhdxkit::format::Guid;
use vhdxkit::{CreateOptions, Image, OpenOptions, ParentPolicy, Shrink};
use vhdxkit_testkit::random::Random;
use vhdxkit_testkit::{self as kit, Contents};

const MIB: u64 = 1 << 20;

/// How a chain is made: bytes of a sector, of the disk, and of the blocks of each image, base first.
struct Shape {
    sector: u64,
    size: u64,
    blocks: &'static [u64],
    fixed: bool,
}

/// No size is one or three sectors above whole mebibytes: 7-Zip refuses such disks, QEMU's as well.
const SHAPES: [Shape; 6] = [
    Shape { sector: 512, size: 9 * MIB + 0x10000, blocks: &[1, 2], fixed: false },
    Shape { sector: 512, size: 40 * MIB, blocks: &[32, 1, 2], fixed: false },
    Shape { sector: 512, size: 13 * MIB + 0x10000, blocks: &[4, 1, 1, 1, 1], fixed: true },
    Shape { sector: 4096, size: 11 * MIB + 0x10000, blocks: &[2, 1, 2, 4], fixed: false },
    Shape { sector: 4096, size: 37 * MIB, blocks: &[1, 32, 1, 2, 1], fixed: true },
    Shape { sector: 4096, size: 6 * MIB, blocks: &[1, 1], fixed: false },
];

/// A chain on the disk, and what the guest of each of its images has seen last.
struct Chain {
    layers: Vec<(PathBuf, Vec<u8>)>,
}

impl Chain {
    fn new(shape: &Shape, seed: u64, dir: &Path) -> Self {
        let mut random = Random::new(seed);
        let mut layers: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let mut guest = vec![0; usize::try_from(shape.size).unwrap()];
        for (number, blocks) in shape.blocks.iter().enumerate() {
            let block = blocks * MIB;
            let path = match layers.last() {
                None => {
                    let path = dir.join("base.vhdx");
                    let options = CreateOptions::new(shape.size).fixed(shape.fixed);
                    let options = options.logical_sector_size(shape.sector as u32);
                    options.block_size(block as u32).create(&path).unwrap();
                    path
                }
                Some((parent, _)) => {
                    let path = dir.join(format!("child{number}.avhdx"));
                    let parent = follow(parent);
                    let options = CreateOptions::child_of(&parent).unwrap();
                    options.block_size(block as u32).create(&path).unwrap();
                    path
                }
            };
            let writing = OpenOptions::new().write(true).parents(ParentPolicy::Follow);
            let image = writing.open(&path).unwrap();
            work(&image, &mut guest, &mut random, block, shape.sector);
            image.close().unwrap();
            layers.push((path, guest.clone()));
        }
        Self { layers }
    }
}

fn follow(path: &Path) -> Image {
    OpenOptions::new().parents(ParentPolicy::Follow).open(path).unwrap()
}

fn by_us(path: &Path) -> Vec<u8> {
    let image = follow(path);
    let mut bytes = vec![0x55; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Everything that a guest can do to a block: whole, in part, over its border, zeros, trims.
fn work(image: &Image, guest: &mut [u8], random: &mut Random, block: u64, sector: u64) {
    let size = guest.len() as u64;
    let inside = |start: u64, length: u64| start.min(size - sector)..(start + length).min(size);
    for round in 0..3u64 {
        let block_at = |random: &mut Random| random.below(size.div_ceil(block)) * block;
        let sector_at = |random: &mut Random| random.below(size / sector) * sector;
        let pieces = [
            inside(block_at(random), block),
            inside(block_at(random), sector),
            inside(block_at(random) + block - sector, sector),
            inside(block_at(random) + block - 3 * sector, 7 * sector),
            inside(sector_at(random), (1 + random.below(40)) * sector),
            inside(sector_at(random), sector),
        ];
        for piece in pieces {
            let stamp = random.below(255) as u8 + 1;
            let data: Vec<u8> = piece.clone().map(|at| stamp ^ (at / sector % 251) as u8).collect();
            image.write_at(piece.start, &data).unwrap();
            guest[range(&piece)].copy_from_slice(&data);
        }
        let zeros = match round {
            0 => inside(block_at(random), block),
            _ => inside(sector_at(random), (1 + random.below(3000)) * sector),
        };
        image.write_zeroes(zeros.clone()).unwrap();
        guest[range(&zeros)].fill(0);
        let trimmed = match round {
            0 => inside(sector_at(random), (1 + random.below(3000)) * sector),
            _ => inside(block_at(random), block),
        };
        image.discard(trimmed.clone()).unwrap();
        // What was discarded may read as before, or as zeros; from now on it stays that.
        image.read_at(trimmed.start, &mut guest[range(&trimmed)]).unwrap();
    }
}

fn range(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The first byte at which two disks differ.
fn difference(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    match ours.iter().zip(theirs).position(|(a, b)| a != b) {
        None if ours.len() != theirs.len() => Some(ours.len().min(theirs.len())),
        found => found,
    }
}

fn seeds() -> u64 {
    if std::env::var_os("VHDXKIT_LONG").is_some() { 40 } else { 1 }
}

/// Calls back with every image of every chain.
fn every_chain(mut look: impl FnMut(&Chain, &Path)) {
    for seed in 0..seeds() {
        for (number, shape) in SHAPES.iter().enumerate() {
            let _name = common::NamedOnFailure(format!("shape {number}, seed {seed}"));
            let dir = tempfile::tempdir().unwrap();
            let chain = Chain::new(shape, seed * 100 + number as u64, dir.path());
            look(&chain, dir.path());
        }
    }
}

#[test]
fn seven_zip_reads_every_image_of_our_chains_as_we_do() {
    let Some(program) = common::seven_zip() else { return };
    every_chain(|chain, dir| {
        for (number, (path, guest)) in chain.layers.iter().enumerate() {
            assert_eq!(difference(&by_us(path), guest), None, "we, image {number}");
            let out = dir.join(format!("by-7-zip-{number}"));
            let theirs = common::by_seven_zip(program, path, &out);
            assert_eq!(difference(guest, &theirs), None, "7-Zip, image {number}");
        }
    });
}

/// What libvhdi 20210425 shows of a child, as far as it was understood, over what it shows of the parent.
///
/// It looks at a block's state to see whether that is fully present, and otherwise at the sector bitmap.
/// But the bitmap says nothing of blocks that are zeros or trimmed (states 1, 2 and 3): where its bits are
/// 0 libvhdi shows the parent, and where bits of an earlier life are 1 it reads the file at the offset that
/// such a block does not have, 0. A chunk without a bitmap it reads as if that lay at the file's start.
fn as_libvhdi_has_it(child: &Path, guest: &[u8], below: &[u8]) -> Vec<u8> {
    let (image, file) = (follow(child), std::fs::read(child).unwrap());
    let (geometry, sector) = (image.geometry(), image.geometry().logical_sector_size() as usize);
    assert!(geometry.blocks() <= geometry.chunk_ratio(), "one chunk is enough here");
    let bitmap = image.sector_bitmap(0).unwrap().unwrap_or_default() as usize;
    let mut shown = below.to_vec();
    for number in 0..guest.len() / sector {
        let at = number * sector..(number + 1) * sector;
        let block = geometry.block_of(at.start as u64);
        let entry = image.bat_entry(geometry.payload_index(block)).unwrap();
        let within = at.start - geometry.block_start(block) as usize;
        let from = entry.file_offset() as usize + within;
        if entry.state() == 6 {
            shown[at.clone()].copy_from_slice(&guest[at]);
        } else if file[bitmap + number / 8] >> (number % 8) & 1 == 1 {
            shown[at].copy_from_slice(&file[from..from + sector]);
        }
    }
    shown
}

#[test]
fn libvhdi_reads_every_image_of_our_chains_as_we_do_but_for_zeros_over_a_parent() {
    let Some(python) = common::python_with_libvhdi() else { return };
    every_chain(|chain, dir| {
        let paths: Vec<&Path> = chain.layers.iter().map(|(path, _)| path.as_path()).collect();
        let mut below: Option<Vec<u8>> = None;
        for (number, (path, guest)) in chain.layers.iter().enumerate() {
            let out = dir.join("by-libvhdi");
            let theirs = common::by_libvhdi(python, &paths[..=number], &out).unwrap();
            if theirs != *guest {
                let below = below.expect("the base has no parent to show");
                let expected = as_libvhdi_has_it(path, guest, &below);
                assert_eq!(difference(&expected, &theirs), None, "libvhdi, image {number}");
            }
            below = Some(theirs);
        }
    });
}

/// A base and a child with data of both in one block.
fn small_chain(base: &Path, child: &Path) -> Image {
    CreateOptions::new(4 * MIB).block_size(1 << 20).create(base).unwrap();
    let image = OpenOptions::new().write(true).open(base).unwrap();
    image.write_at(MIB, &[1; 8192]).unwrap();
    image.close().unwrap();
    drop(image);
    CreateOptions::child_of(&follow(base)).unwrap().create(child).unwrap();
    let image = OpenOptions::new().write(true).parents(ParentPolicy::Follow).open(child).unwrap();
    image.write_at(MIB + 512, &[2; 512]).unwrap();
    image
}

/// The disk as 7-Zip unpacks it, or what it says instead.
fn by_seven_zip(program: &str, image: &Path, dir: &Path) -> Result<Vec<u8>, String> {
    let out = dir.join("by-7-zip");
    let to = format!("-o{}", out.display());
    let arguments = ["x", "-y", "-tVHDX", &to];
    let output = Command::new(program).args(arguments).arg(image).output().unwrap();
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        return Err(String::from_utf8_lossy(&text).into_owned());
    }
    let file = out.read_dir().unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    Ok(bytes)
}

/// A mistake or a lack of another reader, as `docs/comparison.md` has it: it refuses with these words, or
/// by now it reads as we do.
fn refuses_or_is_right(who: &str, theirs: Result<Vec<u8>, String>, words: &str, ours: &[u8]) {
    match theirs {
        Err(text) => assert!(text.contains(words), "{who}: {text}"),
        Ok(bytes) => {
            assert_eq!(difference(ours, &bytes), None, "{who}");
            println!("{who} reads this now: docs/comparison.md has to be changed");
        }
    }
}

/// A parent in another folder: the path starts at the child's folder. 7-Zip 26.02 opens no path that
/// leads upwards (it calls that unsafe), and elsewhere than on Windows none with a folder in it, since it
/// takes `\` for a letter there. So it has nothing to say about these.
#[test]
fn a_parent_in_another_folder_is_found_by_us_and_not_by_seven_zip() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a b/deep")).unwrap();
    std::fs::create_dir_all(dir.path().join("other/below")).unwrap();
    let child = dir.path().join("other/child.avhdx");
    for (base, path) in [
        ("a b/deep/base.vhdx", r"..\a b\deep\base.vhdx"),
        ("other/below/base.vhdx", r".\below\base.vhdx"),
    ] {
        let image = small_chain(&dir.path().join(base), &child);
        assert_eq!(image.parent_locator().unwrap().get("relative_path"), Some(path));
        image.close().unwrap();
        drop(image);
        let ours = by_us(&child);
        assert_eq!((ours[MIB as usize], ours[MIB as usize + 512]), (1, 2));
        if let Some(program) = common::seven_zip() {
            let theirs = by_seven_zip(program, &child, dir.path());
            refuses_or_is_right("7-Zip", theirs, "Missing parent VHDX file", &ours);
        }
        std::fs::remove_file(&child).unwrap();
    }
}

/// A name that is no ASCII, in the child's own folder.
#[test]
fn seven_zip_finds_a_parent_by_a_name_with_letters_of_other_alphabets() {
    let Some(program) = common::seven_zip() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("ä日 💾.vhdx"), dir.path().join("c.avhdx"));
    small_chain(&base, &child).close().unwrap();
    let theirs = common::by_seven_zip(program, &child, dir.path());
    assert_eq!(difference(&by_us(&child), &theirs), None);
}

/// MS-VHDX lets a child be larger than its parent, and does not say what it shows beyond the parent's end.
/// We show zeros, as for everything that was never written.
#[test]
fn what_lies_beyond_the_parent_is_zeros_to_us_and_an_error_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vhdx"), dir.path().join("child.avhdx"));
    let mut image = small_chain(&base, &child);
    image.resize(7 * MIB, Shrink::ZerosOnly).unwrap();
    image.write_at(6 * MIB, &[3; 512]).unwrap();
    image.close().unwrap();
    drop(image);
    let ours = by_us(&child);
    assert_eq!((ours.len() as u64, ours[6 * MIB as usize]), (7 * MIB, 3));
    assert!(ours[4 * MIB as usize..6 * MIB as usize].iter().all(|byte| *byte == 0));
    if let Some(program) = common::seven_zip() {
        let theirs = by_seven_zip(program, &child, dir.path());
        refuses_or_is_right("7-Zip", theirs, "Unexpected end of data", &ours);
    }
    if let Some(python) = common::python_with_libvhdi() {
        let theirs = common::by_libvhdi(python, &[&base, &child], &dir.path().join("by-libvhdi"));
        refuses_or_is_right("libvhdi", theirs, "unable to read data from parent file", &ours);
    }
}

/// A child is smaller than its parent after it was cut: nobody may show more of the parent.
#[test]
fn a_child_that_was_cut_ends_where_it_ends_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vhdx"), dir.path().join("child.avhdx"));
    let mut image = small_chain(&base, &child);
    image.resize(2 * MIB + 0x10000, Shrink::Anything).unwrap();
    image.close().unwrap();
    drop(image);
    let ours = by_us(&child);
    assert_eq!(ours.len() as u64, 2 * MIB + 0x10000);
    if let Some(program) = common::seven_zip() {
        let theirs = common::by_seven_zip(program, &child, dir.path());
        assert_eq!(difference(&ours, &theirs), None, "7-Zip");
    }
    if let Some(python) = common::python_with_libvhdi() {
        let out = dir.path().join("by-libvhdi");
        let theirs = common::by_libvhdi(python, &[&base, &child], &out).unwrap();
        assert_eq!(difference(&ours, &theirs), None, "libvhdi");
    }
}

/// The log of a child holds what a flush promised. We read the chain as if it had been replayed.
#[test]
fn what_waits_in_the_log_of_a_child_is_seen_by_us_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vhdx"), dir.path().join("child.avhdx"));
    let image = small_chain(&base, &child);
    image.flush().unwrap();
    // Left as by a crash.
    drop(image);
    let ours = by_us(&child);
    assert_eq!((ours[MIB as usize], ours[MIB as usize + 512]), (1, 2));
    if let Some(program) = common::seven_zip() {
        let theirs = by_seven_zip(program, &child, dir.path());
        refuses_or_is_right("7-Zip", theirs, "non-empty LOG was not replayed", &ours);
    }
    if let Some(python) = common::python_with_libvhdi() {
        let theirs = common::by_libvhdi(python, &[&base, &child], &dir.path().join("by-libvhdi"));
        // It says nothing of the log.
        assert!(
            theirs.unwrap() != ours,
            "libvhdi replays logs: docs/comparison.md has to be changed"
        );
    }
}

/// While a merge is under way a child accepts two identities (`parent_linkage2`).
#[test]
fn a_parent_that_has_the_second_identity_is_accepted_by_us_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("parent.vhdx"), dir.path().join("child.avhdx"));
    let (old, new) = (Guid::from_u128(0x01D), Guid::from_u128(0x2E3));
    let parent = kit::Image::dynamic(4 * MIB).with_data_write_guid(new);
    parent.block(1, Contents::Pattern(7)).build_file(&base);
    kit::Image::differencing(4 * MIB, old)
        .seed(2)
        .parent_path("relative_path", r".\parent.vhdx")
        .parent_path("parent_linkage2", &format!("{{{new}}}"))
        .build_file(&child);
    let ours = by_us(&child);
    assert_eq!((ours[0], ours[MIB as usize]), (0, 7));
    if let Some(program) = common::seven_zip() {
        let theirs = by_seven_zip(program, &child, dir.path());
        refuses_or_is_right("7-Zip", theirs, "Unsupported Method", &ours);
    }
    if let Some(python) = common::python_with_libvhdi() {
        let theirs = common::by_libvhdi(python, &[&base, &child], &dir.path().join("by-libvhdi"));
        refuses_or_is_right("libvhdi", theirs, "mismatch in identifier", &ours);
    }
}

/// Every state a block of a child can have, over a parent that has data everywhere: what reads as zeros
/// must not show the parent.
#[test]
fn every_state_of_a_block_hides_or_shows_the_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("parent.vhdx"), dir.path().join("child.avhdx"));
    let id = Guid::from_u128(0x1D);
    let parent = kit::Image::dynamic(8 * MIB).with_data_write_guid(id);
    let parent = (0..8).fold(parent, |parent, block| parent.block(block, Contents::Pattern(9)));
    parent.build_file(&base);
    let zeros = (1..=3).fold(kit::Image::differencing(8 * MIB, id), |child, state| {
        child.block(u64::from(state), Contents::State(state, 0))
    });
    zeros
        .parent_path("relative_path", r".\parent.vhdx")
        .block(4, Contents::Pattern(5))
        .partial_block(5, [0, 3, 7, 8, 2047], vec![6; MIB as usize])
        .block(6, Contents::Retained(3, vec![8; 4096]))
        .build_file(&child);
    let ours = by_us(&child);
    let first_bytes =
        |bytes: &[u8]| -> Vec<u8> { (0..8).map(|block| bytes[block * MIB as usize]).collect() };
    assert_eq!(first_bytes(&ours), [9, 0, 0, 0, 5, 6, 0, 9]);
    if let Some(program) = common::seven_zip() {
        let theirs = common::by_seven_zip(program, &child, dir.path());
        assert_eq!(difference(&ours, &theirs), None, "7-Zip");
    }
    if let Some(python) = common::python_with_libvhdi() {
        let theirs = common::by_libvhdi(python, &[&base, &child], &dir.path().join("by-libvhdi"));
        let theirs = first_bytes(&theirs.unwrap());
        assert!(theirs == [9, 9, 9, 9, 5, 6, 9, 9] || theirs == first_bytes(&ours), "{theirs:?}");
    }
}

/// A new child shows its parent, byte for byte. To libvhdi the name "vhdxfile" at its start is a bitmap.
#[test]
fn a_child_without_a_sector_bitmap_shows_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vhdx"), dir.path().join("child.avhdx"));
    drop(small_chain(&base, &child));
    std::fs::remove_file(&child).unwrap();
    CreateOptions::child_of(&follow(&base)).unwrap().create(&child).unwrap();
    let ours = by_us(&child);
    assert_eq!(difference(&by_us(&base), &ours), None);
    if let Some(program) = common::seven_zip() {
        let theirs = common::by_seven_zip(program, &child, dir.path());
        assert_eq!(difference(&ours, &theirs), None, "7-Zip");
    }
    if let Some(python) = common::python_with_libvhdi() {
        let out = dir.path().join("by-libvhdi");
        let theirs = common::by_libvhdi(python, &[&base, &child], &out).unwrap();
        let expected = as_libvhdi_has_it(&child, &ours, &ours);
        assert!(theirs == ours || theirs == expected, "libvhdi: {:?}", difference(&ours, &theirs));
    }
}

/// A child that was made by others, with its published sum; not opened without its parent.
#[test]
fn a_real_child_shows_what_its_author_published() {
    const EXPECTED: &str = "4e517be0f15fb03bec9c4422eef5a69da09fdbe0e9ce7a2e1d3bd018d05ef936";
    let dir = tempfile::tempdir().unwrap();
    let Some(base) = common::unpack("fattools-base512.vhdx.gz", dir.path()) else { return };
    let child = common::unpack("fattools-child512p.vhdx.gz", dir.path()).unwrap();
    let parent = dir.path().join("base512.vhdx");
    std::fs::rename(base, &parent).unwrap();
    let ours = by_us(&child);
    let sum: String = Sha256::digest(&ours).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sum, EXPECTED);
    let Some(program) = common::seven_zip() else { return };
    let theirs = common::by_seven_zip(program, &child, dir.path());
    assert_eq!(difference(&ours, &theirs), None, "7-Zip");
    let Some(python) = common::python_with_libvhdi() else { return };
    let out = dir.path().join("by-libvhdi");
    let theirs = common::by_libvhdi(python, &[&parent, &child], &out).unwrap();
    assert_eq!(difference(&ours, &theirs), None, "libvhdi");
}
