//! A file that appears under its name only when it is complete.
//!
//! It is made under a temporary name beside its target and takes the target's name when it is durable;
//! whatever stops the work before leaves the old state.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::{ErrorKind, OpenOptions};

use super::children::{require_no_vhd_builds_on, require_none_builds_on};
use crate::failure::TargetInUse;

/// Refuses to make a child in its parent's place.
pub(super) fn refuse_parent(parent: &Path, image: &Path) -> anyhow::Result<()> {
    match same_file(parent, image) {
        true => bail!("{} would be its own parent: name the child otherwise", image.display()),
        false => Ok(()),
    }
}

/// Refuses a target that must not be written. Gives what is there already.
pub(crate) fn judge_target(path: &Path, force: bool) -> anyhow::Result<Option<Metadata>> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    };
    if meta.is_dir() {
        bail!("{} is a directory", path.display());
    }
    if !force && path != Path::new("/dev/null") {
        bail!("{} exists; --force replaces it", path.display());
    }
    if meta.is_file() {
        refuse_in_use(path)?;
        refuse_with_children(path)?;
    }
    Ok(Some(meta))
}

/// A disk that a guest is writing must not lose its name. Only locks speak against it here: a file that
/// cannot be read may be replaced.
fn refuse_in_use(path: &Path) -> anyhow::Result<()> {
    match FileStorage::open(path, OpenMode::ReadOnly { force_share: false }) {
        Err(e) if e.kind() == ErrorKind::Locked => {
            Err(e).with_context(|| TargetInUse(format!("cannot replace {}", path.display())))
        }
        _ => Ok(()),
    }
}

/// An image on which others build must not be replaced: they would be lost with it. What is no image that can
/// be opened has none.
fn refuse_with_children(path: &Path) -> anyhow::Result<()> {
    let options = OpenOptions::new().without_parents().force_share(true).without_log(true);
    let name = path.display();
    let refusal = |children: &str| {
        format!("{children} builds on {name}, and would be lost with it: it is not replaced")
    };
    if let Ok(image) = options.open(path) {
        let identity = image.headers().current().data_write_guid;
        return require_none_builds_on(path, identity, refusal);
    }
    match options.open_vhd(path) {
        Ok(disk) => require_no_vhd_builds_on(path, disk.unique_id(), refusal),
        Err(_) => Ok(()),
    }
}

/// Refuses a target that is there and is neither empty nor, by its first `length` bytes, what the new file
/// will be. Force is a word about an older result, not about whatever has the name by a slip of the user.
pub(crate) fn replaces_only(
    path: &Path,
    what: &str,
    length: usize,
    is_such: impl FnOnce(&[u8]) -> bool,
) -> anyhow::Result<()> {
    if !std::fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        bail!("{} is no file", path.display());
    }
    let failed = || format!("cannot look into {}", path.display());
    let mut start = Vec::new();
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    File::open(path)
        .with_context(failed)?
        .take(limit)
        .read_to_end(&mut start)
        .with_context(failed)?;
    if !start.is_empty() && !is_such(&start) {
        bail!("{} is not {what}, and no empty file: --force does not replace it", path.display());
    }
    Ok(())
}

/// Makes a file: `make` fills it and makes it durable. What is there is replaced only by force.
pub(crate) fn make<T>(
    target: &Path,
    force: bool,
    existing: Option<&Metadata>,
    make: impl FnOnce(&FileStorage) -> vhdxkit::Result<T>,
) -> anyhow::Result<T> {
    // The name may be a link: what it stands for is replaced, not the link.
    let target = target.canonicalize().unwrap_or_else(|_| target.to_path_buf());
    let folder = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let failed = || format!("cannot make {}", target.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vhdx-").suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    if !folder.is_dir() {
        bail!("{}: the folder {} does not exist", failed(), folder.display());
    }
    let temporary = builder.tempfile_in(&folder).with_context(failed)?;
    let file = FileStorage::from_file(temporary.as_file().try_clone().with_context(failed)?);
    let report = make(&file)?;
    if let Some(meta) = existing {
        temporary.as_file().set_permissions(meta.permissions()).with_context(failed)?;
    }
    let kept = if force {
        temporary.persist(&target).map_err(|e| e.error)
    } else {
        temporary.persist_noclobber(&target).map_err(|e| e.error)
    };
    kept.with_context(failed)?;
    sync_folder(&folder);
    Ok(report)
}

/// Makes the new name durable where the system can; the data already is.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Whether two names lead to one file.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => true,
        _ => same_inode(a, b),
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}
