//! The children of an image: they know it by its contents, and are lost when those change.

use std::path::Path;

use anyhow::{Context as _, bail};
use vhdxkit::OpenOptions;
use vhdxkit::chain::images_in;
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
    // Behind a link they lie where the image itself does.
    let path = if path.is_symlink() { path.canonicalize()? } else { path.to_owned() };
    let found = images_in(path.parent().unwrap_or_else(|| Path::new(".")));
    let found = found.context("cannot tell whether others build on it; --force does not ask")?;
    let children: Vec<String> = found
        .iter()
        .filter(|image| image.is_child_of(identity))
        .map(|image| image.path.display().to_string())
        .collect();
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
