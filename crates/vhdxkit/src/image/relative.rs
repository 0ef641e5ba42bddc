//! The way from a child to its parent, as a parent locator writes it.

use std::path::{Path, PathBuf};

use crate::view::locator::ParentPaths;
use crate::{Error, Result};

/// What a locator says of a parent's place: the relative path, and on Windows the absolute one. Both files
/// exist; the way begins where the child really lies, whatever link it was opened by.
///
/// # Errors
/// As [`paths_from`].
pub(crate) fn paths(child: &Path, parent: &Path) -> Result<ParentPaths> {
    paths_from(&folder_of(child), parent)
}

/// The same, for a child in this folder.
///
/// # Errors
/// A name cannot be written in a locator (it is not Unicode, or holds a backslash or a colon); a folder
/// cannot be found; the two lie on different drives.
pub(crate) fn paths_from(folder: &Path, parent: &Path) -> Result<ParentPaths> {
    let absolute = parent.canonicalize().ok().filter(|_| cfg!(windows));
    let absolute_win32 = absolute.and_then(|path| path.to_str().map(str::to_owned));
    match relative_path(folder, parent) {
        Err(error) if absolute_win32.is_none() => Err(error),
        relative => Ok(ParentPaths { relative: relative.ok(), absolute_win32, volume: None }),
    }
}

/// The folder that a file really lies in: relative paths start there.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    let folder = |path: &Path| path.parent().map(Path::to_path_buf);
    match file.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => {
            file.canonicalize().ok().as_deref().and_then(folder).unwrap_or_default()
        }
        _ => folder(file).unwrap_or_default(),
    }
}

/// The `relative_path` that leads from a child's folder to its parent, with `\` between the names as Windows
/// has it.
fn relative_path(folder: &Path, parent: &Path) -> Result<String> {
    let failed = |error| Error::io_whole("cannot find the folder", error);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = folder.canonicalize().map_err(|e| failed(e).in_file(folder))?;
    let parent = parent.canonicalize().map_err(|e| failed(e).in_file(parent))?;
    let common = folder.components().zip(parent.components()).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return Err(Error::invalid("no relative path leads from the child to its parent"));
    }
    let ups = folder.components().skip(common).count();
    let mut parts = vec![if ups == 0 { "." } else { ".." }; ups.max(1)];
    for part in parent.components().skip(common) {
        let name = part.as_os_str().to_str().filter(|name| !name.contains(['\\', ':']));
        parts.push(name.ok_or_else(|| {
            let text =
                format!("the name {:?} cannot be written in a parent locator", part.as_os_str());
            Error::invalid(text)
        })?);
    }
    Ok(parts.join("\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_lead_from_the_childs_folder_to_the_parent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("base.vhdx"), "").unwrap();
        std::fs::write(dir.path().join("a/b/mid.vhdx"), "").unwrap();
        let path = |child: &str, parent: &str| {
            relative_path(&folder_of(&dir.path().join(child)), &dir.path().join(parent)).unwrap()
        };
        assert_eq!(path("child.avhdx", "base.vhdx"), r".\base.vhdx");
        assert_eq!(path("a/b/child.avhdx", "base.vhdx"), r"..\..\base.vhdx");
        assert_eq!(path("child.avhdx", "a/b/mid.vhdx"), r".\a\b\mid.vhdx");
    }
}
