//! The children of an image: they know it by its contents, and are lost when those change.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use vhdxkit::OpenOptions;
use vhdxkit::chain::{images_in, vhds_in};
use vhdxkit::format::Guid;

/// Refuses an image that images beside it build on; `refusal` puts their names into a sentence.
pub(super) fn require_no_children(
    path: &Path,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let image = OpenOptions::new().without_parents().open(path)?;
    let identity = image.headers().current().data_write_guid;
    drop(image);
    require_none_builds_on(path, identity, refusal)
}

/// Likewise for an image of this identity.
pub(super) fn require_none_builds_on(
    path: &Path,
    identity: Guid,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let found = images_in(&folder_of(path)?).context(UNKNOWN)?;
    let children = found.into_iter().filter(|image| image.is_child_of(identity));
    refuse(children.map(|image| image.path), refusal)
}

/// Likewise for a VHD of this unique id.
pub(super) fn require_no_vhd_builds_on(
    path: &Path,
    unique_id: Guid,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let found = vhds_in(&folder_of(path)?).context(UNKNOWN)?;
    let children = found.into_iter().filter(|disk| disk.is_child_of(unique_id));
    refuse(children.map(|disk| disk.path), refusal)
}

const UNKNOWN: &str = "cannot tell whether others build on it; --force does not ask";

/// Where the children of an image are looked for: behind a link they lie where the image itself does.
fn folder_of(path: &Path) -> anyhow::Result<PathBuf> {
    let path = if path.is_symlink() { path.canonicalize()? } else { path.to_owned() };
    Ok(path.parent().unwrap_or_else(|| Path::new(".")).to_owned())
}

fn refuse(
    children: impl Iterator<Item = PathBuf>,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let children: Vec<String> = children.map(|path| path.display().to_string()).collect();
    match children.is_empty() {
        true => Ok(()),
        false => bail!(refusal(&children.join(", "))),
    }
}

/// The sentence for a server that would let a guest write. Serving changes what the children stand on.
#[cfg(target_os = "linux")]
pub(super) fn writing_would_lose(children: &str) -> String {
    let (verb, them) = match children.contains(", ") {
        true => ("build", "them"),
        false => ("builds", children),
    };
    format!(
        "{children} {verb} on it: writing to it would make {them} unreadable; --read-only or --snapshot shows \
         it, --force writes all the same"
    )
}
