//! Mounting, waiting, unmounting.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;

use super::ServedFile;
use super::filesystem::{Files, PID_ATTRIBUTE};
use super::mounts::mounts;
use crate::Disk;

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Not only the user who mounts may look at the files, root among the others. Without root's rights
    /// this takes `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// What the system's table of mounts names as the source.
    pub source: String,
    /// What is written is forgotten in the end: the disk keeps it elsewhere than in its image, which is not to
    /// be closed.
    pub fleeting: bool,
}

/// A mounted disk. When it is dropped without [`wait`](Self::wait), it is unmounted, and the image is left
/// to be closed.
#[derive(Debug)]
pub struct Mount {
    session: BackgroundSession,
    disk: Arc<Disk>,
    directory: PathBuf,
    id: Option<u64>,
    fleeting: bool,
}

impl Mount {
    /// Mounts files of a disk on an empty directory; they can be used when this returns.
    ///
    /// # Errors
    /// The system does not let this process mount, or there is no FUSE.
    pub fn start(
        disk: Arc<Disk>,
        files: Vec<ServedFile>,
        directory: &Path,
        options: &MountOptions,
    ) -> io::Result<Self> {
        let directory = directory.canonicalize()?;
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let subtype = if options.fleeting { "subtype=vhdx-snapshot" } else { "subtype=vhdx" };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(source_name(&options.source)),
            MountOption::CUSTOM(subtype.to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
            if disk.image().is_writable() { MountOption::RW } else { MountOption::RO },
        ];
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(threads());
        config.clone_fd = true;
        let files = Files::new(files, (user.as_raw(), group.as_raw()), options.allow_other);
        let session = Session::new(files, &directory, &config)?.spawn()?;
        let mut table = mounts().unwrap_or_default().into_iter().rev();
        let id = table.find(|mount| mount.directory == directory && mount.is_ours());
        let id = id.map(|mount| mount.id);
        Ok(Self { session, disk, directory, id, fleeting: options.fleeting })
    }

    /// Its number, for [`standing`](super::standing); `None` where the system did not tell.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// Where it is mounted: an absolute path.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Serves until somebody unmounts, then closes the image, unless all of it was fleeting.
    ///
    /// # Errors
    /// As [`Disk::close`]: the image is left dirty, and opens with everything that was synced.
    pub fn wait(self) -> vhdxkit::Result<()> {
        // However the session ends, nobody can reach the disk any more.
        let _ = self.session.join();
        match self.fleeting {
            true => Ok(()),
            false => self.disk.close(),
        }
    }
}

/// Threads wait for the medium, so there are more of them than processors.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors * 2).clamp(4, 16)
}

/// The source as an option of fusermount3, which splits at commas; the system call does not.
fn source_name(source: &str) -> String {
    match rustix::process::geteuid().is_root() {
        true => source.to_owned(),
        false => source.replace('\\', "\\\\").replace(',', "\\,"),
    }
}

/// The process that serves the mount on this directory. It is asked itself.
///
/// # Errors
/// [`io::ErrorKind::NotConnected`] when it has died; others when this is none of ours, or this user may not
/// ask.
pub fn server_of(directory: &Path) -> io::Result<u32> {
    let mut buf = [0; 16];
    let length = match rustix::fs::getxattr(directory, PID_ATTRIBUTE, &mut buf[..]) {
        // It died while it was being asked.
        Err(rustix::io::Errno::CONNABORTED) => Err(rustix::io::Errno::NOTCONN),
        result => result,
    }?;
    let text = buf.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Unmounts a directory that nobody uses. What uses it for a moment only, as whatever looks at each new
/// device does, is waited for up to `patience`. The server then closes the image, which may take longer than
/// this call.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] when it is used ([`users_of`](super::users_of) tells by whom); or this user
/// may not unmount it.
pub fn unmount(directory: &Path, patience: Duration) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match unmount_once(directory, UnmountFlags::empty()) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// Takes the mount away although it is used: whoever does gets errors once the server has ended. For a
/// server that must end at once; what was not synced is lost.
///
/// # Errors
/// This user may not unmount it.
pub fn abandon(directory: &Path) -> io::Result<()> {
    unmount_once(directory, UnmountFlags::DETACH)
}

fn unmount_once(directory: &Path, how: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(directory, how | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => unmount_as_user(directory, how),
        Err(e) => Err(e.into()),
    }
}

fn unmount_as_user(directory: &Path, how: UnmountFlags) -> io::Result<()> {
    let option = if how.contains(UnmountFlags::DETACH) { "-uz" } else { "-u" };
    let run = Command::new("fusermount3").args([option, "--"]).arg(directory).output();
    let output = run.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot run fusermount3 (package fuse3): {e}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = match words.contains("busy") {
        true => io::ErrorKind::ResourceBusy,
        false => io::ErrorKind::Other,
    };
    Err(io::Error::new(kind, words))
}
