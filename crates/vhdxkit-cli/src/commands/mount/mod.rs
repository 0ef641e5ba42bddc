//! `vhdx mount`: a disk and its partitions as files, until somebody unmounts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::ops::partitions::{Partition, file_system, partitions, whole_disk_file_system};
use vhdxkit::{ErrorKind, Image};
use vhdxkit_serve::Disk;
use vhdxkit_serve::fuse::{self, Mount, MountOptions, ServedFile};

use super::Context;
use super::attach::{Contents, find, quoted};
use super::busy::users_in_words;
use super::children::{require_no_children, writing_would_lose};
use super::write::warn_of_change_tracking;
use crate::args::{MountArgs, warn};
use crate::console::{print_json, size};
use crate::detach::{self, tell};

/// What uses the mount for a moment only is waited for so long before an unmount gives up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The exit status of a server that was told twice to end.
const STOPPED: i32 = 130;

pub(crate) fn run(args: &MountArgs, context: Context) -> anyhow::Result<ExitCode> {
    if detach::is_detached() {
        detach::leave_session();
    }
    require_empty(&args.directory)?;
    require_fuse()?;
    if args.detach && !detach::is_detached() {
        return detach::launch();
    }
    if let Some(number) = args.partition {
        // Looked at first: an image without that partition is not even replayed.
        find(&partitions(&args.to_read().open(&args.image)?)?, number)?;
    }
    let disk = Disk::new(open(args)?, Arc::new(tell));
    let served = served(&disk, args.partition)?;
    let options = MountOptions { allow_other: args.allow_other, source: absolute(&args.image) };
    let files = served.iter().map(|(file, _)| file.clone()).collect();
    let mount = Mount::start(Arc::clone(&disk), files, &args.directory, &options)
        .with_context(|| format!("cannot mount on {}", args.directory.display()))?;
    end_on_signal(mount.directory());
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
    print(args, mount, served, context)?;
    match detach::is_detached() {
        true => detach::serve_now().context("the command that started this has gone"),
        false => Ok(()),
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
    if fuse::server_of(directory).is_some() {
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
    if !args.read_only && !args.force {
        require_no_children(&args.image, writing_would_lose)
            .with_context(|| format!("cannot mount {} for writing", args.image.display()))?;
    }
    // A server in the background leaves this directory, and a relative path means nothing there.
    let path = std::path::absolute(&args.image).unwrap_or_else(|_| args.image.clone());
    let image = args.to_serve().open(path).map_err(|error| {
        let kind = error.io_error().map(io::Error::kind);
        let refused = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        let unwritable = error.kind() == ErrorKind::Io
            && !args.read_only
            && kind.is_some_and(|kind| refused.contains(&kind));
        let error = anyhow::Error::from(error);
        match unwritable {
            true => error.context(
                "the image cannot be opened for writing: --read-only shows it all the same",
            ),
            false => error,
        }
    })?;
    match args.read_only {
        true => warn(&args.image, &image),
        false => drop(warn_of_change_tracking(&args.image)),
    }
    Ok(image)
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

fn absolute(path: &Path) -> String {
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Ctrl-C and SIGTERM unmount. A mount that is in use goes on, so that nothing is lost, until they come
/// again.
fn end_on_signal(directory: &Path) {
    let directory = directory.to_owned();
    let mut again = false;
    // A handler that cannot be set leaves the system's: then the image is left dirty, but good.
    let _ = ctrlc::set_handler(move || {
        end(&directory, std::mem::replace(&mut again, true));
    });
}

fn end(directory: &Path, again: bool) {
    let mounted = fuse::server_of(directory) == Some(std::process::id());
    let result = match mounted {
        true => fuse::unmount(directory, if again { Duration::ZERO } else { PATIENCE }),
        // That has been done, and the image is being closed.
        false if again => Err(io::ErrorKind::ResourceBusy.into()),
        false => Ok(()),
    };
    match result {
        Ok(()) => {}
        Err(_) if again => {
            tell("ends without closing the image: it opens with everything that was synced");
            if mounted {
                let _ = fuse::abandon(directory);
            }
            std::process::exit(STOPPED);
        }
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => tell(&format!(
            "{} is in use and goes on being served: {}; then stop this again (a second time while it is in \
             use ends it at once, and what was not synced is lost)",
            directory.display(),
            users_in_words(directory)
        )),
        Err(e) => tell(&format!("cannot unmount {}: {e}", directory.display())),
    }
}

/// What is there, and what to type next.
fn print(
    args: &MountArgs,
    mount: &Mount,
    served: &[(ServedFile, Contents)],
    context: Context,
) -> anyhow::Result<()> {
    let directory = mount.directory();
    let target = if directory.starts_with("/mnt") { "/media" } else { "/mnt" };
    let path = |file: &ServedFile| directory.join(&file.name);
    let attach = |(file, contents): &(ServedFile, Contents)| contents.attach(&path(file), target);
    let unmount = format!("vhdx unmount {}", quoted(directory));
    if context.json {
        let files = served.iter().map(|entry| {
            let (file, contents) = entry;
            json!({
                "name": file.name,
                "path": path(file),
                "size": file.export.size(),
                "type": contents.kind.map(|kind| kind.to_string()),
                "label": contents.label,
                "file_system": contents.file_system.map(|found| found.name),
                "attach": attach(entry),
            })
        });
        let files: Vec<_> = files.collect();
        return print_json(&json!({
            "image": absolute(&args.image),
            "directory": directory,
            "writable": !args.read_only,
            "pid": std::process::id(),
            "files": files,
            "unmount": unmount,
        }));
    }
    let mut out = io::stdout().lock();
    let how = if args.read_only { "read-only" } else { "for writing" };
    writeln!(out, "{} is mounted on {}, {how}:", args.image.display(), directory.display())?;
    for (file, contents) in served {
        let line = format!(
            "  {:<18} {:>10}  {}",
            file.name,
            size(file.export.size()),
            contents.describe()
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    print_next(&mut out, args, &served.iter().filter_map(attach).collect::<Vec<_>>())?;
    writeln!(out, "\nTo end, after unmounting what was attached:\n  {unmount}")?;
    if !detach::is_detached() {
        writeln!(out, "or Ctrl-C here.")?;
    }
    Ok(out.flush()?)
}

fn print_next(out: &mut impl Write, args: &MountArgs, attach: &[String]) -> io::Result<()> {
    match attach.len() {
        0 => writeln!(
            out,
            "\nNo file system that is known here; `sudo losetup -f --show` makes a disk of a file."
        )?,
        1 => writeln!(out, "\nTo reach the files in it:")?,
        _ => writeln!(out, "\nTo reach the files in them, one of:")?,
    }
    for command in attach {
        writeln!(out, "  {command}")?;
    }
    if !rustix::process::geteuid().is_root() && !args.allow_other && !attach.is_empty() {
        writeln!(
            out,
            "(root may not look into a user's mount: for these, mount as root, or with --allow-other, which \
             takes `user_allow_other` in /etc/fuse.conf)"
        )?;
    }
    Ok(())
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
