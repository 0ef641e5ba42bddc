//! The children of an image: they know it by its contents, and are lost when those change.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use vhdxkit::chain::{Searched, UnreadFile, search_folder, vhds_in};
use vhdxkit::format::Guid;
use vhdxkit::{OpenOptions, ParentPolicy};

use super::foreign::{is_named_checkpoint, is_plainly_none};
use crate::console::{named, quoted};

/// What `--force` mostly does.
pub(super) const NOT_ASKED: &str = "--force does not ask";

/// Refuses an image that images beside it build on, or may build on; `refusal` puts their names into a sentence.
pub(super) fn require_no_children(
    path: &Path,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let image = OpenOptions::new().without_parents().open(path)?;
    let identity = image.headers().current().data_write_guid;
    drop(image);
    require_no_children_of(path, identity, NOT_ASKED, refusal)
}

/// Likewise for an image of this identity. `force` says what that option does where nobody can tell.
pub(super) fn require_no_children_of(
    path: &Path,
    identity: Guid,
    force: &str,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let (path, found) = beside(path, force)?;
    refuse(children_of(&found, identity), refusal)?;
    // An image that is damaged may be repaired, or recovered, as long as its parent stays as it is.
    let mut doubtful: Vec<&UnreadFile> = found
        .unread
        .iter()
        .filter(|file| file.path.file_name() != path.file_name() && !is_plainly_none(&file.path))
        .filter(|file| may_build_on(&file.path, identity))
        .collect();
    if !doubtful.is_empty() {
        let parents = unread_parents(&path);
        doubtful.retain(|file| !parents.contains(&real(&file.path)));
    }
    let Some(first) = doubtful.first() else { return Ok(()) };
    // Each of them is told of when the one before is out of the way.
    let others = match doubtful.len() {
        1 => String::new(),
        files => format!(" (nor of {} more)", files.saturating_sub(1)),
    };
    bail!(
        "cannot tell whether {} builds on it{others}, since it cannot be read ({}): `vhdx check {}` tells what is \
         wrong with it; move it elsewhere if it does not; {force}",
        first.path.display(),
        first.why,
        quoted(&first.path)
    )
}

/// Refuses an image of this identity that images beside it are known to build on. Before it is replaced: what
/// cannot be read there may be the very source of what replaces it.
pub(super) fn require_none_builds_on(
    path: &Path,
    identity: Guid,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    refuse(children_of(&beside(path, NOT_ASKED)?.1, identity), refusal)
}

/// Likewise for a VHD of this unique id.
pub(super) fn require_no_vhd_builds_on(
    path: &Path,
    unique_id: Guid,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let found = vhds_in(folder_of(&behind_links(path)?)).with_context(|| unknown(NOT_ASKED))?;
    let children = found.iter().filter(|disk| disk.is_child_of(unique_id));
    refuse(children.map(|disk| disk.path.as_path()), refusal)
}

/// What lies beside an image, and where that is: behind a link, where the image itself does.
fn beside(path: &Path, force: &str) -> anyhow::Result<(PathBuf, Searched)> {
    let path = behind_links(path)?;
    let found = search_folder(folder_of(&path)).with_context(|| unknown(force))?;
    Ok((path, found))
}

fn behind_links(path: &Path) -> anyhow::Result<PathBuf> {
    Ok(if path.is_symlink() { path.canonicalize()? } else { path.to_owned() })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

fn unknown(force: &str) -> String {
    format!("cannot tell whether others build on it; {force}")
}

fn refuse<'a>(
    children: impl Iterator<Item = &'a Path>,
    refusal: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    let children: Vec<String> = children.map(|path| path.display().to_string()).collect();
    match children.is_empty() {
        true => Ok(()),
        false => bail!(refusal(&children.join(", "))),
    }
}

fn children_of(found: &Searched, identity: Guid) -> impl Iterator<Item = &Path> {
    let images = found.images.iter().filter(move |image| image.is_child_of(identity));
    images.map(|image| image.path.as_path())
}

/// So much of a damaged file is searched for the name of its parent: tables and metadata lie at its start.
const SEARCHED: u64 = 16 << 20;

/// Whether a file that cannot be read may be a child of the image with that identity: it names it, in a parent locator
/// that nobody finds any more; or it is called a checkpoint, and names nobody.
fn may_build_on(path: &Path, identity: Guid) -> bool {
    let mut start = Vec::new();
    match File::open(path).and_then(|file| file.take(SEARCHED).read_to_end(&mut start)) {
        Ok(_) if holds_utf16(&start, &identity.to_string()) => true,
        Ok(_) => is_named_checkpoint(path) && !holds_utf16(&start, "parent_linkage"),
        Err(_) => true,
    }
}

fn holds_utf16(bytes: &[u8], text: &str) -> bool {
    let wanted: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.windows(wanted.len()).any(|found| found.eq_ignore_ascii_case(&wanted))
}

/// Where an image's own parents should lie and cannot be read: whatever else they are, they are not its children.
fn unread_parents(path: &Path) -> Vec<PathBuf> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    // None elsewhere is opened: this asks of files that lie beside the image only.
    let options = OpenOptions::new()
        .parents(ParentPolicy::Beneath(folder))
        .ignore_parent_id(true)
        .force_share(true)
        .without_log(true);
    let Err(error) = options.open(path) else { return Vec::new() };
    let looked = error.parent_problem().into_iter().flat_map(|problem| &problem.looked);
    looked.map(|looked| looked.path.as_path()).chain(error.file()).map(real).collect()
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Names the children that an image is about to lose, at its user's word.
pub(super) fn warn_of_children(path: &Path, identity: Guid) {
    let Ok((_, found)) = beside(path, NOT_ASKED) else { return };
    for child in children_of(&found, identity) {
        eprintln!(
            "warning: {} builds on it, and does not know it any more: `vhdx relink {} --parent {} \
             --ignore-parent-id` joins them again, at your word",
            named(child),
            quoted(child),
            quoted(path)
        );
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

/// The sentence for a command that changes the image itself. `what`, as in "writing to it"; `force`, what it does.
pub(super) fn changing_would_lose(what: &str, force: &str, children: &str) -> String {
    let (verb, them) = match children.contains(", ") {
        true => ("build", "them"),
        false => ("builds", children),
    };
    format!(
        "{children} {verb} on it: {what} would make {them} unreadable; take the newest checkpoint instead; {force}"
    )
}
