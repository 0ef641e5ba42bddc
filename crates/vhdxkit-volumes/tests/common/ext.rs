//! ext2, ext3 and ext4 as e2fsprogs make and read them.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{have, joined, sh, survey_of};

pub fn tools() -> bool {
    have("mke2fs") && have("dumpe2fs") && have("debugfs")
}

/// An image made by `mke2fs` with these options.
pub fn made(dir: &tempfile::TempDir, size: &str, options: &str) -> PathBuf {
    let image = dir.path().join("ext.img");
    let path = image.display();
    sh(&format!("truncate -s {size} {path}; mke2fs -q -F {options} {path}"));
    image
}

/// Many small files, some with holes, of which every third goes again; and a directory of many names.
pub fn fill(at: &Path) {
    let (files, names) = (at.join("files"), at.join("names"));
    fs::create_dir(&files).unwrap();
    fs::create_dir(&names).unwrap();
    for n in 0..300 {
        fs::write(files.join(n.to_string()), vec![7; n * 977 % 50_000]).unwrap();
        fs::write(names.join(format!("a-name-that-takes-some-room-in-a-directory-{n}")), [])
            .unwrap();
    }
    fs::write(at.join("big"), vec![7; 1 << 20]).unwrap();
    sh(&format!("sync -f {}", at.display()));
    for n in (0..300).step_by(3) {
        fs::remove_file(files.join(n.to_string())).unwrap();
    }
    // Block maps, which have no extents, may have no punched holes either.
    sh(&format!("fallocate -p -o 100K -l 300K {}/big || true", at.display()));
}

/// The free bytes as `dumpe2fs` lists them.
pub fn listed(image: &Path) -> Vec<Range<u64>> {
    let text = sh(&format!("dumpe2fs {} 2>/dev/null", image.display()));
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim().parse::<u64>().unwrap())
    };
    let (block, blocks) = (number("Block size:").unwrap(), number("Block count:").unwrap());
    // `dumpe2fs` names the first block of each cluster of a range, and of its last one that first block.
    let cluster = number("Cluster size:").unwrap_or(block) / block;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let Some(list) = line.strip_prefix("  Free blocks: ") else { continue };
        for part in list.split(", ").filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let end = if cluster > 1 { (last / cluster + 1) * cluster } else { last + 1 };
            ranges.push(first * block..end.min(blocks) * block);
        }
    }
    joined(ranges)
}

/// What a shape promises: equal ranges, equal count, clean.
pub fn compare(image: &Path, story: &str) {
    let found = survey_of(image).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(found.unclean, None, "{story}");
    let expected = listed(image);
    assert!(!expected.is_empty(), "{story}: nothing is free");
    assert_eq!(found.free.ranges(), expected, "{story}");
    let text = sh(&format!("dumpe2fs -h {} 2>/dev/null", image.display()));
    let counted = text.lines().find_map(|line| line.strip_prefix("Free blocks:")).unwrap();
    let counted: u64 = counted.trim().parse().unwrap();
    let block = text.lines().find_map(|line| line.strip_prefix("Block size:")).unwrap();
    let block: u64 = block.trim().parse().unwrap();
    let short = found.unit - found.length % found.unit; // a last cluster that is not whole
    let bytes = counted * block;
    assert!(
        found.free.bytes() == bytes || found.free.bytes() + short == bytes,
        "{story}: {} and {bytes}",
        found.free.bytes()
    );
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().replace("<none>", "")
    };
    assert_eq!(found.label, field("Filesystem volume name:"), "{story}");
    let length = field("Block count:").parse::<u64>().unwrap() * block;
    assert_eq!(found.length, length, "{story}");
    let blkid = sh(&format!("blkid -p -s TYPE -o value {}", image.display()));
    assert_eq!(found.name, blkid.trim(), "{story}");
}
