//! What is mounted, and who uses a mount, as the system tells.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A line of the system's table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Its number, which no other mount has as long as it is there.
    pub id: u64,
    /// The number of the mount that it is mounted on.
    pub beneath: u64,
    /// Where.
    pub directory: PathBuf,
    /// The type of the file system: [`TYPE`](super::TYPE) or [`SNAPSHOT_TYPE`](super::SNAPSHOT_TYPE) for ours.
    pub kind: String,
    /// What is mounted: the image of ours.
    pub source: String,
    /// Not mounted read-only.
    pub writable: bool,
    /// The user who mounted it, when it is a FUSE mount.
    pub owner: Option<u32>,
}

impl MountPoint {
    /// Whether it is a disk that was mounted by this library.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == super::TYPE || self.is_snapshot()
    }

    /// Whether it is one of ours whose image stays as it is.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.kind == super::SNAPSHOT_TYPE
    }
}

/// What has become of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is there, and can be unmounted by this path.
    OnTop(PathBuf),
    /// It is there, and something else was mounted over it.
    Covered(MountPoint),
    /// It was unmounted.
    Gone,
}

/// What has become of a mount. Asks the system only, and not the mount's server.
///
/// # Errors
/// `/proc` is not mounted.
pub fn standing(id: u64) -> io::Result<Standing> {
    let table = mounts()?;
    let Some(mount) = table.iter().find(|mount| mount.id == id) else {
        return Ok(Standing::Gone);
    };
    let over = |other: &&MountPoint| other.beneath == id && other.directory == mount.directory;
    Ok(match table.iter().find(over) {
        Some(other) => Standing::Covered(other.clone()),
        None => Standing::OnTop(mount.directory.clone()),
    })
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
    /// A file system that a process serves from one of its files, as `ntfs-3g` does.
    Mount {
        /// Where it is mounted.
        place: PathBuf,
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
        id: place.next()?.parse().ok()?,
        beneath: place.next()?.parse().ok()?,
        directory: unescape(place.nth(2)?).into(),
        writable: place.next()?.split(',').any(|option| option == "rw"),
        kind: unescape(what.next()?),
        source: unescape(what.next()?),
        owner: what.next().and_then(|options| {
            let mut options = options.split(',');
            options.find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
        }),
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
    let table = mounts().unwrap_or_default();
    let mut users = loops_on(directory, &table);
    let served: Vec<User> = table
        .iter()
        .filter(|mount| mount.owner.is_some() && Path::new(&mount.source).starts_with(directory))
        .map(|mount| User::Mount { place: mount.directory.clone() })
        .collect();
    // Whoever serves them ends with their unmount, and loses what it has not written by a kill.
    users.extend(processes_in(directory, served.is_empty()));
    users.extend(served);
    users
}

fn loops_on(directory: &Path, table: &[MountPoint]) -> Vec<User> {
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

fn processes_in(directory: &Path, with_servers: bool) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let inside = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(directory));
    let users = pids.filter(|pid| *pid != std::process::id()).filter(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let open: Vec<PathBuf> = open.filter_map(|file| fs::read_link(file.path()).ok()).collect();
        let serves = || open.iter().any(|file| file == Path::new("/dev/fuse"));
        ["cwd", "root"].iter().any(|name| inside(&process.join(name)))
            || open.iter().any(|file| file.starts_with(directory)) && (with_servers || !serves())
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
        assert_eq!((mount.id, mount.beneath, mount.owner), (36, 35, None));
        assert!(mount.writable && mount.is_ours() && !mount.is_snapshot());
        let line = "1 2 0:1 / /a ro - fuse.vhdx-snapshot /b rw,user_id=1000,group_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.owner, Some(1000));
        assert!(mount.is_ours() && mount.is_snapshot());
        assert!(!parse("1 2 0:1 / /a ro - fuse.vhdx /b rw").unwrap().writable);
        assert_eq!(parse("nonsense"), None);
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("\\1\u{e4}"), "\\1\u{e4}");
    }
}
