//! Disks of 4096-byte sectors, which QEMU cannot read: 7-Zip and libvhdi must show the same bytes.
//!
//! Such a disk has chunks eight times as large (32 GiB), so that a reader which takes the chunk of
//! 512-byte sectors for granted is right on a small disk and wrong on a large one.

// Programs that mount need a Unix.
#![cfg(unix)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vhdxkit::Image;
use vhdxkit_testkit::{Contents, Image as Built};

const MIB: u64 = 1 << 20;

fn by_us(path: &Path) -> Vec<u8> {
    let image = Image::open(path).unwrap();
    assert_eq!(image.geometry().logical_sector_size(), 4096);
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A disk that libvhdi shows as a file, until this is dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// `None`, visibly, where libvhdi is missing or may not mount.
    fn new(image: &Path, at: PathBuf) -> Option<Self> {
        if !common::have_with("vhdimount", "-V") {
            return None;
        }
        std::fs::create_dir(&at).unwrap();
        let done = Command::new("vhdimount").arg(image).arg(&at).output().unwrap();
        let mounted = Self { at };
        if done.status.success() && mounted.disk().exists() {
            return Some(mounted);
        }
        eprintln!("skipped: vhdimount cannot mount here");
        None
    }

    fn disk(&self) -> PathBuf {
        self.at.join("vhdi1")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = |program: &str, option: &[&str]| {
            let run = Command::new(program).args(option).arg(&self.at).output();
            run.is_ok_and(|output| output.status.success())
        };
        if !done("fusermount3", &["-u"]) && !done("fusermount", &["-u"]) {
            done("umount", &[]);
        }
    }
}

#[test]
fn seven_zip_reads_a_real_disk_of_4096_byte_sectors_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = common::unpack("fattools-base4k.vhdx.gz", dir.path()) else { return };
    let Some(program) = common::seven_zip() else { return };
    assert!(
        common::by_seven_zip(program, &path, dir.path()) == by_us(&path),
        "7-Zip reads something else"
    );
}

#[test]
fn seven_zip_reads_a_built_disk_of_4096_byte_sectors_as_we_do() {
    let Some(program) = common::seven_zip() else { return };
    for block_size in [1u32 << 20, 2 << 20, 32 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("built.vhdx");
        // Out of order, with gaps, and a last block that reaches beyond the end of the disk. 7-Zip
        // refuses a disk that is one or three sectors longer than whole mebibytes, QEMU's as well.
        let size = 3 * u64::from(block_size) + (64 << 10);
        let built = Built::dynamic(size).block_size(block_size).sectors(4096, 4096);
        let built = built.block(3, Contents::Pattern(3)).block(0, Contents::Pattern(1));
        built.block(1, Contents::State(2, 0)).build_file(&path);
        let theirs = common::by_seven_zip(program, &path, dir.path());
        assert_eq!(theirs.len() as u64, size, "blocks of {block_size}");
        assert!(theirs == by_us(&path), "blocks of {block_size}: 7-Zip reads something else");
    }
}

/// What we write with sectors of 4096 bytes, others read; and a guest of such a disk cannot write half
/// a sector.
#[test]
fn seven_zip_reads_what_we_wrote_to_a_disk_of_4096_byte_sectors() {
    use vhdxkit::{CreateOptions, OpenOptions, Shrink};
    for (shift, fixed) in [(0u32, false), (1, true), (5, false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ours.vhdx");
        let block = 1u64 << 20 << shift;
        let size = 3 * block + (64 << 10);
        let options = CreateOptions::new(2 * block).block_size(1 << 20 << shift).fixed(fixed);
        options.logical_sector_size(4096).create(&path).unwrap();
        let mut image = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(image.write_at(512, &[1; 4096]).is_err() && image.write_at(0, &[1; 512]).is_err());
        image.resize(size, Shrink::ZerosOnly).unwrap();
        for (at, value) in [(0, 1u8), (block - 4096, 2), (block + 8192, 3), (size - 4096, 4)] {
            image.write_at(at, &[value; 4096]).unwrap();
        }
        image.write_at(2 * block, &vec![9; 1 << 20]).unwrap();
        image.discard(2 * block..3 * block).unwrap();
        image.flush().unwrap();
        image.close().unwrap();
        drop(image);
        if let Some(linter) = common::shared("tools/vhdxlint.py") {
            common::run("python3", &[linter.to_str().unwrap(), path.to_str().unwrap()]);
        }
        let Some(program) = common::seven_zip() else { return };
        let theirs = common::by_seven_zip(program, &path, dir.path());
        assert!(theirs == by_us(&path), "blocks of {block}: 7-Zip reads something else");
    }
}

#[test]
fn libvhdi_reads_both_sides_of_the_borders_of_32_gib_chunks_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.vhdx");
    // 32768 blocks make a chunk; 4096 would, with sectors of 512 bytes.
    let blocks = [0u64, 4095, 4096, 32767, 32768, 32769, 65535, 65536, 69999];
    let built = Built::dynamic(70000 * MIB).sectors(4096, 4096);
    let built = blocks
        .iter()
        .zip(1..)
        .fold(built, |built, (&block, byte)| built.block(block, Contents::Pattern(byte)));
    built.build_file(&path);
    let image = Image::open(&path).unwrap();
    assert_eq!(image.geometry().chunk_ratio(), 32768);
    let Some(mounted) = Mounted::new(&path, dir.path().join("mounted")) else { return };
    let theirs = File::open(mounted.disk()).unwrap();
    assert_eq!(theirs.metadata().unwrap().len(), image.virtual_size());
    for (&block, byte) in blocks.iter().zip(1u8..) {
        for near in block.saturating_sub(2)..(block + 3).min(70000) {
            let (mut ours, mut other) = (vec![0xAA; MIB as usize], vec![0x55; MIB as usize]);
            image.read_at(near * MIB, &mut ours).unwrap();
            theirs.read_exact_at(&mut other, near * MIB).unwrap();
            assert!(ours == other, "block {near}: {} and {}", ours[0], other[0]);
            assert!(near != block || ours[0] == byte, "block {block} is another one's");
        }
    }
}
