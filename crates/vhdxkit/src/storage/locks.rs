//! Locks that keep two writers apart.
//!
//! Two kinds at once. Ours covers the whole file (`flock` on Unix) and holds off other users of
//! this library on every system. QEMU does not look at it: its own are byte-range locks at fixed
//! offsets, which we take and check as well on Linux.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Holder, Repr};

/// Takes all locks for reading, or for writing too. On an error none is held.
pub(super) fn acquire(file: &File, write: bool) -> crate::Result<()> {
    let result = whole_file(file, write).and_then(|free| Ok(free && ranges::acquire(file, write)?));
    match result {
        Ok(true) => Ok(()),
        Ok(false) => {
            release(file);
            Err(Error::new(Repr::Locked { holders: holders(file) }))
        }
        Err(error) => {
            release(file);
            Err(Error::io_whole("cannot lock the file", error))
        }
    }
}

/// Gives up all locks.
pub(super) fn release(file: &File) {
    ranges::release(file);
    // Closing the file will do it if this could not.
    let _ = file.unlock();
}

/// Whether the lock could be had. A system without locks has them all free.
fn whole_file(file: &File, write: bool) -> io::Result<bool> {
    let taken = if write { file.try_lock() } else { file.try_lock_shared() };
    match taken {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if is_unsupported(&error) => {
            tracing::warn!(%error, "the file system has no locks: nothing keeps a second writer away");
            Ok(true)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(unix)]
fn is_unsupported(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let Some(code) = error.raw_os_error() else {
        return error.kind() == io::ErrorKind::Unsupported;
    };
    // Not a pattern: two of these are one and the same on some systems.
    [Errno::ENOLCK, Errno::EOPNOTSUPP, Errno::ENOTSUP, Errno::EINVAL, Errno::ENOSYS]
        .contains(&Errno::from_raw(code))
}

#[cfg(not(unix))]
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

/// QEMU's protocol: one byte for every permission that somebody uses, another for every permission
/// that somebody does not share with others. All locks are shared ones; an exclusive one is only
/// ever asked about, to learn whether a byte is locked. Locking comes before asking, so that of two
/// who come at once at least one sees the other.
#[cfg(target_os = "linux")]
mod ranges {
    use std::fs::File;
    use std::io;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{self, c_short, off_t};

    /// Plus the permission: in use.
    const USED: off_t = 100;
    /// Plus the permission: not shared.
    const UNSHARED: off_t = 200;

    const CONSISTENT_READ: off_t = 0;
    const WRITE: off_t = 1;
    const RESIZE: off_t = 3;

    /// What nobody else may do, whether we only read or not.
    const WE_DO_NOT_SHARE: [off_t; 2] = [WRITE, RESIZE];

    fn we_use(write: bool) -> &'static [off_t] {
        if write { &[CONSISTENT_READ, WRITE, RESIZE] } else { &[CONSISTENT_READ] }
    }

    /// Whether the locks could be had. When not, some may be held.
    pub(super) fn acquire(file: &File, write: bool) -> io::Result<bool> {
        match try_acquire(file, write) {
            Ok(free) => Ok(free),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => {
                let error = io::Error::from(error);
                if super::is_unsupported(&error) {
                    tracing::warn!(%error, "no byte-range locks here: QEMU will not see that the file is in use");
                    return Ok(true);
                }
                Err(error)
            }
        }
    }

    fn try_acquire(file: &File, write: bool) -> nix::Result<bool> {
        let used = we_use(write);
        for permission in used {
            set(file, libc::F_RDLCK, USED.saturating_add(*permission))?;
        }
        for permission in WE_DO_NOT_SHARE {
            set(file, libc::F_RDLCK, UNSHARED.saturating_add(permission))?;
        }
        for permission in used {
            if is_locked_by_others(file, UNSHARED.saturating_add(*permission))? {
                return Ok(false);
            }
        }
        for permission in WE_DO_NOT_SHARE {
            if is_locked_by_others(file, USED.saturating_add(permission))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn release(file: &File) {
        for permission in we_use(true) {
            // Closing the file will do it if this could not.
            let _ = set(file, libc::F_UNLCK, USED.saturating_add(*permission));
            let _ = set(file, libc::F_UNLCK, UNSHARED.saturating_add(*permission));
        }
    }

    /// A lock of the open file description, so that it neither ends nor conflicts with others of
    /// this process.
    fn set(file: &File, kind: libc::c_int, byte: off_t) -> nix::Result<()> {
        fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(kind, byte)?)).map(drop)
    }

    fn is_locked_by_others(file: &File, byte: off_t) -> nix::Result<bool> {
        let mut lock = one_byte(libc::F_WRLCK, byte)?;
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(lock.l_type != short(libc::F_UNLCK)?)
    }

    fn one_byte(kind: libc::c_int, byte: off_t) -> nix::Result<libc::flock> {
        Ok(libc::flock {
            l_type: short(kind)?,
            l_whence: short(libc::SEEK_SET)?,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        })
    }

    fn short(value: libc::c_int) -> nix::Result<c_short> {
        c_short::try_from(value).map_err(|_| Errno::EINVAL)
    }
}

#[cfg(not(target_os = "linux"))]
mod ranges {
    pub(super) fn acquire(_: &std::fs::File, _: bool) -> std::io::Result<bool> {
        Ok(true)
    }

    pub(super) fn release(_: &std::fs::File) {}
}

/// Processes seen to hold a lock on the file, by process id. Ours is among them when it holds the
/// file through another descriptor.
#[cfg(target_os = "linux")]
fn holders(file: &File) -> Vec<Holder> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    let Ok(metadata) = file.metadata() else { return Vec::new() };
    let identity = (metadata.dev(), metadata.ino());
    let own = (std::process::id(), u32::try_from(file.as_raw_fd()).ok());
    let mut holders: Vec<Holder> = numbered(Path::new("/proc"))
        .filter(|(pid, process)| {
            numbered(&process.join("fdinfo"))
                .filter(|(number, _)| (*pid, Some(*number)) != own)
                // Locks first: to follow a descriptor into a file system that hangs would hang.
                .filter(|(_, info)| has_lock(info))
                .filter_map(|(number, _)| {
                    std::fs::metadata(process.join("fd").join(number.to_string())).ok()
                })
                .any(|metadata| (metadata.dev(), metadata.ino()) == identity)
        })
        .map(|(pid, process)| {
            let command = std::fs::read(process.join("comm")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).trim_end().to_owned();
            Holder { pid, command }
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

#[cfg(not(target_os = "linux"))]
fn holders(_: &File) -> Vec<Holder> {
    Vec::new()
}

/// The entries of a directory that are named by numbers; none when it cannot be read.
#[cfg(target_os = "linux")]
fn numbered(directory: &Path) -> impl Iterator<Item = (u32, PathBuf)> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

#[cfg(target_os = "linux")]
fn has_lock(info: &Path) -> bool {
    std::fs::read_to_string(info)
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
}

/// Existing files beside an image in which Hyper-V tracks what changed. Writing to the image
/// without Hyper-V makes them wrong.
#[must_use]
pub fn change_tracking_beside(path: &Path) -> Vec<PathBuf> {
    let mut candidates = BTreeSet::new();
    for extension in ["rct", "mrt"] {
        let mut name = OsString::from(path);
        name.push(".");
        name.push(extension);
        candidates.insert(PathBuf::from(name));
        candidates.insert(path.with_extension(extension));
    }
    candidates.into_iter().filter(|candidate| candidate != path && candidate.is_file()).collect()
}

#[cfg(test)]
mod tests;
