//! `vhdx mount`: a disk and its partitions as files, until somebody unmounts.

mod next;
mod signals;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use vhdxkit::ops::partitions::{Partition, file_system, partitions, whole_disk_file_system};
use vhdxkit::{ErrorKind, Image};
use vhdxkit_serve::Disk;
use vhdxkit_serve::fuse::{self, Mount, MountOptions, ServedFile};

use super::Context;
use super::attach::{Contents, find};
use super::children::{require_no_children, writing_would_lose};
use super::snapshot::in_memory;
use super::write::warn_of_change_tracking;
use crate::args::{MountArgs, warn};
use crate::console::quoted;
use crate::detach::{self, tell};

/// What uses the mount for a moment only is waited for so long before an unmount gives up.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &MountArgs, context: Context) -> anyhow::Result<ExitCode> {
    if detach::is_detached() {
        detach::leave_session();
    }
    require_order(args)?;
    require_empty(&args.directory)?;
    require_fuse()?;
    if args.detach && !detach::is_detached() {
        return detach::launch();
    }
    if let Some(number) = args.partition {
        // Looked at first: an image without that partition is not even replayed.
        find(&partitions(&args.to_read().open(&args.image)?)?, number)?;
    }
    let disk = Disk::named(args.image.display().to_string(), open(args)?, Arc::new(tell));
    let served = served(&disk, args.partition)?;
    let options = MountOptions {
        allow_other: args.allow_other,
        source: next::canonical(&args.image),
        fleeting: args.snapshot,
    };
    let files = served.iter().map(|(file, _)| file.clone()).collect();
    let mount = Mount::start(Arc::clone(&disk), files, &args.directory, &options)
        .with_context(|| format!("cannot mount on {}", args.directory.display()))?;
    signals::end_on_signal(&mount, args.snapshot);
    let announced = announce(args, &mount, &served, context);
    if announced.is_err() {
        // Nobody knows of it, so nobody would end it.
        let ended = fuse::unmount(mount.directory(), PATIENCE);
        let _ = ended.or_else(|_| fuse::abandon(mount.directory()));
    }
    let closed = mount.wait();
    announced?;
    closed.with_context(|| format!("cannot close {}", args.image.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Tells that the files are there, and in the background lets the command return.
fn announce(
    args: &MountArgs,
    mount: &Mount,
    served: &[(ServedFile, Contents)],
    context: Context,
) -> anyhow::Result<()> {
    next::print(args, mount, served, context)?;
    match detach::is_detached() {
        true => detach::serve_now().context("the command that started this has gone"),
        false => Ok(()),
    }
}

/// The two are easily swapped.
fn require_order(args: &MountArgs) -> anyhow::Result<()> {
    let (image, directory) = (&args.image, &args.directory);
    match image.is_dir() && directory.is_file() {
        false => Ok(()),
        true => bail!(
            "{} is a directory: IMAGE first, then DIR: `vhdx mount {} {}`",
            image.display(),
            quoted(directory),
            quoted(image)
        ),
    }
}

/// A mount hides what is in its directory, which nobody wants.
fn require_empty(directory: &Path) -> anyhow::Result<()> {
    let name = directory.display();
    let mut entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound => {
                bail!("there is no directory {name}: `mkdir {}` makes it", quoted(directory))
            }
            io::ErrorKind::NotADirectory => bail!("{name} is no directory: name an empty one"),
            io::ErrorKind::NotConnected => bail!(
                "{name} has a mount whose server has died: `vhdx unmount {}` clears it away",
                quoted(directory)
            ),
            _ => return Err(e).with_context(|| format!("cannot look into {name}")),
        },
    };
    if fuse::server_of(directory).is_ok() {
        bail!("{name} has a disk mounted already: `vhdx unmount {}` ends that", quoted(directory));
    }
    match entries.next() {
        None => Ok(()),
        Some(_) => bail!(
            "{name} is not empty, and a mount would hide what is in it: name an empty directory (`mkdir` makes one)"
        ),
    }
}

/// Says what is missing before anything is opened.
fn require_fuse() -> anyhow::Result<()> {
    const CONTAINER: &str =
        "a container has to be started with `--device /dev/fuse --cap-add SYS_ADMIN`";
    if let Err(e) = File::options().read(true).write(true).open("/dev/fuse") {
        match e.kind() {
            io::ErrorKind::PermissionDenied => {
                bail!("this user may not open /dev/fuse: run this as root, or {CONTAINER}")
            }
            _ => bail!("there is no FUSE here ({e}): `sudo modprobe fuse` loads it; {CONTAINER}"),
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_helper = std::env::split_paths(&path).any(|folder| folder.join("fusermount3").exists());
    match has_helper || rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => bail!(
            "without root's rights mounting takes fusermount3: install the package fuse3, or run this as root"
        ),
    }
}

fn open(args: &MountArgs) -> anyhow::Result<Image> {
    if args.changes_the_image() && !args.force {
        require_no_children(&args.image, writing_would_lose)
            .with_context(|| format!("cannot mount {} for writing", args.image.display()))?;
    }
    // A server in the background leaves this directory, and a relative path means nothing there.
    let path = std::path::absolute(&args.image).unwrap_or_else(|_| args.image.clone());
    let image = args.to_serve().open(&path).map_err(|error| advise(args, error))?;
    if args.snapshot {
        return in_memory(args.to_serve(), image, &path, args.snapshot_memory);
    }
    match args.read_only {
        true => warn(&args.image, &image),
        false => drop(warn_of_change_tracking(&args.image)),
    }
    Ok(image)
}

fn advise(args: &MountArgs, error: vhdxkit::Error) -> anyhow::Error {
    let kind = error.io_error().map(io::Error::kind);
    let refused = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    let unwritable = error.kind() == ErrorKind::Io
        && args.changes_the_image()
        && kind.is_some_and(|kind| refused.contains(&kind));
    let error = anyhow::Error::from(error);
    match unwritable {
        true => error
            .context("the image cannot be opened for writing: --read-only shows it all the same"),
        false => error,
    }
}

/// The files to show, with what is known of them.
fn served(disk: &Arc<Disk>, only: Option<u32>) -> anyhow::Result<Vec<(ServedFile, Contents)>> {
    let image = disk.image();
    let writable = image.is_writable();
    let found = partitions(image)?;
    let mut served = Vec::new();
    if only.is_none() {
        // A disk with partitions is no file system, whatever its first sectors look like.
        let file_system = if found.is_empty() { whole_disk_file_system(image)? } else { None };
        let contents = Contents { file_system, writable, ..Contents::default() };
        served.push((ServedFile::disk(disk), contents));
    }
    let shown: Vec<&Partition> = match only {
        Some(number) => vec![find(&found, number)?],
        None => found.iter().filter(|partition| !partition.kind.is_container()).collect(),
    };
    for partition in shown {
        let file_system = file_system(image, partition.range.clone())?;
        let label = partition.name.clone();
        let contents = Contents { kind: Some(partition.kind), label, file_system, writable };
        served.push((ServedFile::partition(disk, partition), contents));
    }
    Ok(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_would_be_hidden_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        require_empty(folder.path()).unwrap();
        let missing = folder.path().join("a b");
        let text = require_empty(&missing).unwrap_err().to_string();
        assert!(text.contains("mkdir '"), "{text}");
        fs::write(&missing, "").unwrap();
        assert!(require_empty(&missing).unwrap_err().to_string().contains("no directory"));
        let text = require_empty(folder.path()).unwrap_err().to_string();
        assert!(text.contains("not empty"), "{text}");
    }
}
