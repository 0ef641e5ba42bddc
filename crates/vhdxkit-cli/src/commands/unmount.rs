//! `vhdx unmount`: ends a mount, and returns when the image is closed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use vhdxkit::log::LogState;
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_serve::fuse::{self, MountPoint};

use super::Context;
use super::attach::quoted;
use super::busy::users_in_words;
use crate::args::UnmountArgs;
use crate::console::print_json;

/// Something that looks at each new device is waited for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// What has not been closed by now hangs at its medium.
const CLOSING: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(595)];

pub(crate) fn run(args: &UnmountArgs, context: Context) -> anyhow::Result<()> {
    let directory = resolve(&args.directory)?;
    let mount = find(&directory)?;
    let server = fuse::server_of(&directory);
    fuse::unmount(&directory, PATIENCE).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow!("{} is in use: {}", directory.display(), users_in_words(&directory))
        }
        _ => anyhow!("cannot unmount {}: {e}", directory.display()),
    })?;
    match server {
        Some(pid) => wait_for(pid, &mount)?,
        // Another user's server does not answer root, and one that has died answers nobody.
        None => wait_for_lock(&mount)?,
    }
    if mount.writable {
        require_clean(&mount)?;
    }
    if context.json {
        print_json(&json!({ "image": mount.source, "directory": directory }))?;
    } else {
        writeln!(io::stdout(), "{}: unmounted; {} is closed", directory.display(), mount.source)?;
    }
    Ok(())
}

/// The path as the table of mounts has it, even if its server has died.
fn resolve(directory: &Path) -> anyhow::Result<PathBuf> {
    let failed = || format!("cannot find {}", directory.display());
    match directory.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => {
            let path = std::path::absolute(directory).with_context(failed)?;
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(e).with_context(failed);
            };
            Ok(parent.canonicalize().with_context(failed)?.join(name))
        }
        result => result.with_context(failed),
    }
}

/// The mount on a directory, which must be one of ours.
fn find(directory: &Path) -> anyhow::Result<MountPoint> {
    let table = fuse::mounts().context("cannot read the table of mounts")?;
    // The last one hides those before it.
    let on_top = table.into_iter().rev().find(|mount| mount.directory == directory);
    match on_top {
        Some(mount) if mount.kind == fuse::TYPE => Ok(mount),
        Some(mount) => bail!(
            "{} has {} ({}) mounted, which is none of ours: use `umount {}`",
            directory.display(),
            mount.source,
            mount.kind,
            quoted(directory)
        ),
        None => bail!(
            "nothing is mounted on {}; `findmnt -t {}` lists what is",
            directory.display(),
            fuse::TYPE
        ),
    }
}

/// Waits for the server to end: then the image is closed and its lock is free.
fn wait_for(pid: u32, mount: &MountPoint) -> anyhow::Result<()> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let opened = process.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(process)) = opened else { return Ok(()) };
    for (turn, time) in CLOSING.iter().enumerate() {
        if turn > 0 {
            eprintln!("process {pid} is still writing {}", mount.source);
        }
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let limit = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut ended, Some(&limit)).context("cannot wait for the server")? > 0 {
            return Ok(());
        }
    }
    bail!(
        "unmounted, but process {pid} has not closed {} yet: the image is not clean before it has ended; \
         what was synced is safe",
        mount.source
    )
}

/// Waits for the lock of a server that is not known.
fn wait_for_lock(mount: &MountPoint) -> anyhow::Result<()> {
    let begun = Instant::now();
    let options = OpenOptions::new().without_parents();
    while let Err(error) = options.open(&mount.source) {
        if error.kind() != ErrorKind::Locked {
            break;
        }
        if begun.elapsed() > CLOSING[0] {
            return Err(error).context("unmounted, but the image is not closed yet");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A server that cannot close the image has nobody left to tell; whoever unmounts must know.
fn require_clean(mount: &MountPoint) -> anyhow::Result<()> {
    let options = OpenOptions::new().without_parents();
    // It may be in use again, or lie where we cannot read.
    let Ok(image) = options.open(&mount.source) else { return Ok(()) };
    match image.log().state() {
        LogState::Clean => Ok(()),
        _ => bail!(
            "unmounted, but {} could not be closed cleanly: everything that was synced is in its log and \
             will be there when it is opened again; see to the medium (full? failing?)",
            mount.source
        ),
    }
}
