//! What is mounted, and who uses a mount, as the system tells.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A line of the system's table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Where.
    pub directory: PathBuf,
    /// The type of the file system: [`TYPE`](super::TYPE) for ours.
    pub kind: String,
    /// What is mounted: the image of ours.
    pub source: String,
    /// Not mounted read-only.
    pub writable: bool,
}

/// Who keeps a mount from being unmounted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum User {
    /// A loop device on one of its files, and where that is mounted.
    Loop {
        /// The device.
        device: PathBuf,
        /// Where a file system on it, or on a partition of it, is mounted.
        mounted: Vec<PathBuf>,
    },
    /// A process that has a file open, or stands in the directory.
    Process {
        /// Process id.
        pid: u32,
        /// Command name.
        command: String,
    },
}

/// All mounts that this process sees.
///
/// # Errors
/// `/proc` is not mounted.
pub fn mounts() -> io::Result<Vec<MountPoint>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse).collect())
}

/// A line has a variable number of fields up to a lone hyphen.
fn parse(line: &str) -> Option<MountPoint> {
    let (place, what) = line.split_once(" - ")?;
    let (mut place, mut what) = (place.split(' '), what.split(' '));
    Some(MountPoint {
        directory: unescape(place.nth(4)?).into(),
        writable: place.next()?.split(',').any(|option| option == "rw"),
        kind: unescape(what.next()?),
        source: unescape(what.next()?),
    })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, later)) = rest.split_first() {
        let digits = later.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &later[3..];
            }
            None => {
                bytes.push(*first);
                rest = later;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Who uses the mount on `directory`, as far as this user may see.
#[must_use]
pub fn users_of(directory: &Path) -> Vec<User> {
    let mut users = loops_on(directory);
    users.extend(processes_in(directory));
    users
}

fn loops_on(directory: &Path) -> Vec<User> {
    let table = mounts().unwrap_or_default();
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let names = devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let on_it = names.filter(|name| {
        let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        backing.is_ok_and(|file| Path::new(file.trim_end()).starts_with(directory))
    });
    let users = on_it.map(|name| {
        let device = format!("/dev/{name}");
        let partitions = format!("{device}p");
        let is_on =
            |mount: &&MountPoint| mount.source == device || mount.source.starts_with(&partitions);
        let mounted = table.iter().filter(is_on).map(|mount| mount.directory.clone()).collect();
        User::Loop { device: device.into(), mounted }
    });
    users.collect()
}

fn processes_in(directory: &Path) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let inside = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(directory));
    let users = pids.filter(|pid| *pid != std::process::id()).filter(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        ["cwd", "root"].iter().any(|name| inside(&process.join(name)))
            || open.into_iter().any(|file| inside(&file.path()))
    });
    let named = users.map(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        User::Process { pid, command: command.trim_end().to_owned() }
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_understood() {
        let line = "36 35 98:0 / /mnt/my\\040disk rw,noatime master:1 - fuse.vhdx /a\\054b.vhdx rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.directory, Path::new("/mnt/my disk"));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.vhdx", "/a,b.vhdx"));
        assert!(mount.writable);
        assert!(!parse("1 2 0:1 / /a ro - fuse.vhdx /b rw").unwrap().writable);
        assert_eq!(parse("nonsense"), None);
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("\\1\u{e4}"), "\\1\u{e4}");
    }
}
