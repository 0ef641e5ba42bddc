//! `vhdx unmount`: ends a mount, and returns when the image is closed.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use vhdxkit::log::LogState;
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_serve::fuse::{self, MountPoint, Standing};

use super::Context;
use super::busy::users_in_words;
use crate::args::UnmountArgs;
use crate::console::{print_json, quoted};

/// Something that looks at each new device is waited for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// What has not been closed by now hangs at its medium.
const CLOSING: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(595)];

/// Who serves a mount.
enum Server {
    /// This process, held so that no other one can be taken for it.
    Process(u32, OwnedFd),
    /// Another user's does not answer root.
    Unknown,
    /// It answers nobody.
    Died,
}

pub(crate) fn run(args: &UnmountArgs, context: Context) -> anyhow::Result<()> {
    let directory = resolve(&args.directory)?;
    let mount = find(&directory)?;
    require_owner(&mount)?;
    let server = server_of(&directory);
    let first = unmount(&mount)?;
    match &server {
        Server::Process(pid, process) => wait_for(*pid, process, &mount)?,
        Server::Unknown | Server::Died => wait_for_lock(&mount)?,
    }
    let died = matches!(server, Server::Died);
    if mount.writable && !mount.is_snapshot() && !died {
        require_clean(&mount)?;
    }
    let state = log_state(&mount);
    if context.json {
        return print_json(&json!({
            "image": mount.source,
            "directory": directory,
            "server_had_died": died,
            "log": state.map(|state| if state == LogState::Clean { "clean" } else { "dirty" }),
        }));
    }
    let (name, image) = (directory.display(), &mount.source);
    let words = match died {
        true => format!("cleared away: its server had died; {}", after_death(&mount, state)),
        false if mount.is_snapshot() => {
            format!("unmounted; what was written is forgotten, {image} is as it was")
        }
        false if !first => format!("somebody else has unmounted it meanwhile; {image} is closed"),
        false => format!("unmounted; {image} is closed"),
    };
    writeln!(io::stdout(), "{name}: {words}")?;
    Ok(())
}

fn after_death(mount: &MountPoint, state: Option<LogState>) -> String {
    let image = &mount.source;
    match state {
        _ if mount.is_snapshot() => format!("what was written is forgotten, {image} is as it was"),
        Some(LogState::Clean) => format!("{image} is clean"),
        Some(_) => format!(
            "{image} is dirty, and opens with everything that was synced (`vhdx log show {}`)",
            quoted(Path::new(image))
        ),
        None => format!("{image} cannot be looked at from here"),
    }
}

/// Only root may unmount what somebody else has mounted.
fn require_owner(mount: &MountPoint) -> anyhow::Result<()> {
    let user = rustix::process::geteuid();
    let Some(owner) = mount.owner.filter(|owner| !user.is_root() && *owner != user.as_raw()) else {
        return Ok(());
    };
    let name = if owner == 0 { "root".to_owned() } else { format!("user {owner}") };
    bail!("{name} mounted it: `sudo vhdx unmount {}`", quoted(&mount.directory))
}

/// Asked and held before unmounting: afterwards its number may be another process's.
fn server_of(directory: &Path) -> Server {
    let pid = match fuse::server_of(directory) {
        Ok(pid) => pid,
        Err(e) if e.kind() == io::ErrorKind::NotConnected => return Server::Died,
        Err(_) => return Server::Unknown,
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match process.map(|process| pidfd_open(process, PidfdFlags::empty())) {
        Some(Ok(held)) => Server::Process(pid, held),
        _ => Server::Unknown,
    }
}

/// Unmounts; `false` when somebody else has done that at the same time.
fn unmount(mount: &MountPoint) -> anyhow::Result<bool> {
    let directory = &mount.directory;
    let Err(error) = fuse::unmount(directory, PATIENCE) else { return Ok(true) };
    if fuse::standing(mount.id).is_ok_and(|standing| standing == Standing::Gone) {
        return Ok(false);
    }
    Err(match error.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow!("{} is in use: {}", directory.display(), users_in_words(directory))
        }
        _ => anyhow!("cannot unmount {}: {error}", directory.display()),
    })
}

/// The path as the table of mounts has it, even if its server has died.
fn resolve(directory: &Path) -> anyhow::Result<PathBuf> {
    let failed = || format!("cannot find {}", directory.display());
    match directory.canonicalize() {
        // Its server has died, or is another user's.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotConnected
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
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
        Some(mount) if mount.is_ours() => Ok(mount),
        Some(mount) => bail!(
            "{} has {} ({}) mounted, which is none of ours: use `umount {}`",
            directory.display(),
            mount.source,
            mount.kind,
            quoted(directory)
        ),
        None => bail!(
            "nothing is mounted on {}; `findmnt -t {},{}` lists what is",
            directory.display(),
            fuse::TYPE,
            fuse::SNAPSHOT_TYPE
        ),
    }
}

/// Waits for the server to end: then the image is closed and its lock is free.
fn wait_for(pid: u32, process: &OwnedFd, mount: &MountPoint) -> anyhow::Result<()> {
    for (turn, time) in CLOSING.iter().enumerate() {
        if turn > 0 {
            eprintln!("process {pid} is still writing {}", mount.source);
        }
        let mut ended = [PollFd::new(process, PollFlags::IN)];
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
    match log_state(mount) {
        None | Some(LogState::Clean) => Ok(()),
        Some(_) => bail!(
            "unmounted, but {} could not be closed cleanly: everything that was synced is in its log and \
             will be there when it is opened again; see to the medium (full? failing?), unless its server \
             was killed",
            mount.source
        ),
    }
}

/// `None` when it is in use again, or lies where we cannot read.
fn log_state(mount: &MountPoint) -> Option<LogState> {
    let image = OpenOptions::new().without_parents().open(&mount.source).ok()?;
    Some(image.log().state())
}
