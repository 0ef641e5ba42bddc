//! The guest's first and only file system: an archive in the format that the kernel unpacks ("newc").

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use vhdxkit_testkit::random::Random;

use super::parts::{Parts, name};
use super::{PAGE, PAGES};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive that grows.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    number: u32,
}

impl Archive {
    /// Adds a file, and before it the folders that it lies in.
    fn file(&mut self, path: &str, contents: &[u8]) {
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).map(Path::to_path_buf).collect();
        for folder in parents.into_iter().rev().filter(|folder| folder.parent().is_some()) {
            if self.folders.insert(folder.clone()) {
                self.entry(&folder.to_string_lossy(), FOLDER, &[]);
            }
        }
        self.entry(path, PROGRAM, contents);
    }

    /// Thirteen numbers in hexadecimal, the name, the contents, both padded to four bytes.
    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.number += 1;
        let path = path.trim_start_matches('/');
        let (length, name) = (contents.len() as u32, path.len() as u32 + 1);
        let numbers = [self.number, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name, 0];
        let mut header = String::from("070701");
        for number in numbers {
            let _ = write!(header, "{number:08X}");
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The pages that the guest's files are made of: the same in each run, no two alike.
pub(super) fn blob() -> Vec<u8> {
    let mut random = Random::new(0x0062_6C6F_6221);
    (0..PAGES as usize * PAGE / 8).flat_map(|_| random.any().to_le_bytes()).collect()
}

/// Puts the guest together.
///
/// # Errors
/// A part cannot be read.
pub(super) fn build(parts: &Parts) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("/init", include_bytes!("init.sh"));
    archive.file("/bin/busybox", &std::fs::read(&parts.busybox)?);
    let mut order = String::new();
    for module in &parts.modules {
        let name = name(module);
        archive.file(&format!("/modules/{name}"), &std::fs::read(module)?);
        let _ = writeln!(order, "{name}");
    }
    archive.file("/modules/order", order.as_bytes());
    for tool in &parts.tools {
        archive.file(&tool.to_string_lossy(), &std::fs::read(tool)?);
    }
    // Which features an ext4 gets; mkfs has ideas of its own without it.
    if let Ok(settings) = std::fs::read("/etc/mke2fs.conf") {
        archive.file("/etc/mke2fs.conf", &settings);
    }
    archive.file("/blob", &blob());
    archive.entry("TRAILER!!!", 0, &[]);
    Ok(archive.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_lies_in_them_and_only_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", b"12345");
        archive.file("/a/b/d", b"");
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        let names: Vec<_> = text.split("070701").skip(1).map(|e| e[104..].to_owned()).collect();
        assert!(names[0].starts_with("a\0") && names[1].starts_with("a/b\0"), "{names:?}");
        assert!(names[2].starts_with("a/b/c\0") && names[2].ends_with("12345\0\0\0"), "{names:?}");
        assert!(names[3].starts_with("a/b/d\0") && names.len() == 4, "{names:?}");
        assert_eq!(archive.bytes.len() % 4, 0);
    }
}
