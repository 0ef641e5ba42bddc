//! Opening a file that must lie beneath a folder, whatever links lie on the way.
//!
//! On Linux the kernel does it in one step (`openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`), so
//! that nobody can slip a link in between. Elsewhere, and on kernels without that, each step is looked at
//! before it is taken.

use std::fs::File;
use std::io;
use std::path::Path;

/// Opens the regular file at `relative`, a path without dots, for reading.
pub(super) fn open(folder: &Path, relative: &Path) -> io::Result<File> {
    let file = match in_one_step(folder, relative) {
        Some(result) => result?,
        None => step_by_step(folder, relative)?,
    };
    // Also of what was opened: a name may have changed its meaning in between.
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(target_os = "linux")]
fn in_one_step(folder: &Path, relative: &Path) -> Option<io::Result<File>> {
    use nix::errno::Errno;
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

    let folder = match File::open(folder) {
        Ok(folder) => folder,
        Err(error) => return Some(Err(error)),
    };
    let open = |flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&folder, relative, how).map(File::from)
    };
    // Looked at before it is opened: opening a pipe wakes whoever waits at its other end.
    let seen = match open(OFlag::O_PATH) {
        Ok(seen) => seen,
        Err(Errno::ENOSYS | Errno::EPERM) => return None,
        Err(error) => return Some(Err(error.into())),
    };
    Some(open_as_seen(&seen, || open(OFlag::O_RDONLY | OFlag::O_NONBLOCK)))
}

/// Opens what was seen to be a regular file, if it still is the same one.
#[cfg(target_os = "linux")]
fn open_as_seen(seen: &File, open: impl FnOnce() -> nix::Result<File>) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt;

    let seen = seen.metadata()?;
    if !seen.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = open()?;
    let opened = file.metadata()?;
    match (opened.dev(), opened.ino()) == (seen.dev(), seen.ino()) {
        true => Ok(file),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn in_one_step(_: &Path, _: &Path) -> Option<io::Result<File>> {
    None
}

fn step_by_step(folder: &Path, relative: &Path) -> io::Result<File> {
    let mut path = folder.to_path_buf();
    for part in relative.components() {
        path.push(part);
        if path.symlink_metadata()?.is_symlink() {
            return Err(io::ErrorKind::NotFound.into());
        }
    }
    match path.metadata()?.is_file() {
        true => File::open(path),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_and_devices_are_not_opened_in_one_step_or_in_many() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir_all(inside.join("deep")).unwrap();
        std::fs::write(dir.path().join("secret.vhdx"), "s").unwrap();
        std::fs::write(inside.join("deep/good.vhdx"), "g").unwrap();
        let link =
            |from: &str, to: &str| std::os::unix::fs::symlink(from, inside.join(to)).unwrap();
        link("../secret.vhdx", "out.vhdx");
        link("deep/good.vhdx", "in.vhdx");
        link("deep", "folder");
        link("/dev/zero", "device.vhdx");
        for opened in [open, step_by_step] {
            assert!(opened(&inside, Path::new("deep/good.vhdx")).is_ok());
            for bad in ["out.vhdx", "in.vhdx", "folder/good.vhdx", "device.vhdx", "deep", "none"] {
                assert!(opened(&inside, Path::new(bad)).is_err(), "{bad}");
            }
        }
        assert!(open(&inside, Path::new("../secret.vhdx")).is_err());
    }
}
