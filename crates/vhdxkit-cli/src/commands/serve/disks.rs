//! The images that are served: opened for reading, for writing, or so that they stay as they are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use vhdxkit::ops::partitions::{Partition, partitions};
use vhdxkit::{CreateOptions, Image, OpenOptions};
use vhdxkit_serve::{Disk, Export, Tell};

use super::super::attach::find;
use super::super::children::{require_no_children, writing_would_lose};
use super::super::snapshot::{in_memory, with_parents_of};
use super::super::write::warn_of_change_tracking;
use crate::args::{ServeArgs, warn};
use crate::console::{quoted, size};
use crate::failure::{NoParent, wrong_usage};

/// An image, and how clients see it.
pub(super) struct Served {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) export: Export,
    /// Where writes go, in words.
    pub(super) writes: String,
    /// What was written is gone with the server.
    fleeting: bool,
}

impl Served {
    /// What clients are told of it.
    pub(super) fn description(&self) -> String {
        // The name only: where it lies is nobody's business who connects.
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        format!("{name}, {}", size(self.export.size()))
    }

    /// Leaves the image clean.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        if self.fleeting {
            return Ok(());
        }
        let path = self.path.display();
        self.export.disk().close().with_context(|| {
            format!("{path} is left dirty: it opens with everything that was flushed")
        })
    }
}

/// Opens all images that are to be served.
pub(super) fn open_all(args: &ServeArgs, tell: &Arc<Tell>) -> anyhow::Result<Vec<Served>> {
    let several = args.images.len() > 1;
    if !args.names.is_empty() && args.names.len() != args.images.len() {
        let (images, names) = (args.images.len(), args.names.len());
        wrong_usage!(
            "--export was given {names} times for {images} images: once for each, or not at all"
        );
    }
    if several && !args.open.named.is_empty() {
        wrong_usage!("--parent goes with a single image; --parents beneath=DIR goes with several");
    }
    if several && args.snapshot.as_ref().is_some_and(|child| !child.as_os_str().is_empty()) {
        wrong_usage!(
            "--snapshot=CHILD goes with a single image; --snapshot alone goes with several"
        );
    }
    let mut all = Vec::new();
    for (at, path) in args.images.iter().enumerate() {
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        let name = match args.names.get(at) {
            Some(name) => name.clone(),
            None if several => stem.into_owned(),
            None => String::new(),
        };
        if all.iter().any(|other: &Served| other.name == name) {
            wrong_usage!("two images would be the export '{name}': name all of them with --export");
        }
        all.push(open(args, path, name, tell).with_context(|| cannot_serve(args, path))?);
    }
    Ok(all)
}

fn cannot_serve(args: &ServeArgs, path: &Path) -> String {
    let name = path.display();
    let in_memory = args.snapshot.as_ref().is_some_and(|child| child.as_os_str().is_empty());
    match in_memory && args.images.len() > 1 && !path.exists() {
        true => format!("cannot serve {name} (for writes to go there: --snapshot={name})"),
        false => format!("cannot serve {name}"),
    }
}

fn open(args: &ServeArgs, path: &Path, name: String, tell: &Arc<Tell>) -> anyhow::Result<Served> {
    let (image, writes, fleeting) = open_image(args, path)?;
    warn(path, &image);
    let partition = args.partition.map(|number| the_partition(&image, number)).transpose()?;
    let disk = Disk::named(path.display().to_string(), image, Arc::clone(tell));
    let export = match partition {
        Some(partition) => Export::part(disk, partition.range),
        None => Export::whole(disk),
    };
    Ok(Served { name, path: path.to_path_buf(), export, writes, fleeting })
}

fn the_partition(image: &Image, number: u32) -> anyhow::Result<Partition> {
    find(&partitions(image)?, number).cloned()
}

fn open_image(args: &ServeArgs, path: &Path) -> anyhow::Result<(Image, String, bool)> {
    let options = args.open.options();
    if let Some(number) = args.partition {
        // Looked at first: an image without that partition is not even replayed.
        the_partition(&options.open(path)?, number)?;
    }
    match &args.snapshot {
        _ if args.read_only => Ok((look_at(&options, path)?, "read-only".to_owned(), false)),
        None => {
            // Looked at first: an image that cannot be served is not even replayed.
            drop(look_at(&options, path)?);
            if !args.force {
                require_no_children(path, writing_would_lose)?;
            }
            let image = options.write(true).open(path).map_err(read_only_would_do)?;
            warn_of_change_tracking(path);
            Ok((image, "read and write".to_owned(), false))
        }
        Some(child) if child.as_os_str().is_empty() => {
            let found = look_at(&options, path)?;
            let image = in_memory(options, found, path, args.snapshot_memory)?;
            let room = size(args.snapshot_memory);
            Ok((image, format!("writes stay in memory, up to {room}, and are lost"), true))
        }
        Some(child) => {
            let image = in_child(options, path, child)?;
            let (child, base) = (child.display(), path.display());
            let writes = format!("writes go to {child}; do not write to {base} from now on");
            Ok((image, writes, false))
        }
    }
}

/// The error of an image that may not be written, with what would do all the same.
fn read_only_would_do(error: vhdxkit::Error) -> anyhow::Error {
    let refused = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    let unwritable = error.io_error().is_some_and(|e| refused.contains(&e.kind()));
    let error = anyhow::Error::from(error);
    match unwritable {
        true => {
            error.context("it cannot be opened for writing: --read-only serves it all the same")
        }
        false => error,
    }
}

/// Opens an image for reading. Clients of a child without its parent would meet errors in every other place.
fn look_at(options: &OpenOptions, path: &Path) -> anyhow::Result<Image> {
    let image = options.open(path)?;
    if let Some(orphan) = image.layers().last().filter(|last| last.parent_locator().is_some()) {
        let orphan = orphan.path().unwrap_or(path).display();
        return Err(NoParent(format!(
            "{orphan} is a child, and a server opens no parent that it is not told: name it with \
             --parent (`vhdx info --chain` lists them)"
        ))
        .into());
    }
    Ok(image)
}

/// A new child of the image, open for writing.
fn in_child(options: OpenOptions, path: &Path, child: &Path) -> anyhow::Result<Image> {
    let base = look_at(&options, path)?;
    let options = with_parents_of(options, &base, 0);
    CreateOptions::child_of(&base)?.create(child).map_err(|error| {
        let exists = error.io_error().is_some_and(|e| e.kind() == io::ErrorKind::AlreadyExists);
        let (image, name) = (quoted(path), quoted(child));
        anyhow::Error::from(error).context(match exists {
            true => format!(
                "there is a {name} already; to go on with it: vhdx serve {name} --parent {image}"
            ),
            false => "cannot make the snapshot's child".to_owned(),
        })
    })?;
    drop(base);
    Ok(options.write(true).open(child)?)
}
