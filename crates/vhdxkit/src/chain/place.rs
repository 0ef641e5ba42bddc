//! The paths of a parent locator: from the file's words to places here, and to open files.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::view::locator::ParentLocator;

/// Names of images that may be followed: a VHDX's parent is a VHDX, a VHD's is a VHD.
pub(crate) type Names = [&'static str; 2];

/// Those of VHDX.
pub(crate) const VHDX_NAMES: Names = ["vhdx", "avhdx"];
/// Those of VHD version 1.
pub(crate) const VHD_NAMES: Names = ["vhd", "avhd"];

/// Whether a file's name is that of a VHDX.
pub(crate) fn is_image_name(path: &Path) -> bool {
    is_named(path, &VHDX_NAMES)
}

/// Whether a file's name is one of these.
pub(crate) fn is_named(path: &Path, names: &Names) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|found| names.iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// Opens what a locator leads to, or a search: a regular file that is named like an image, by its real name.
pub(super) fn open_image(path: &Path, names: &Names) -> io::Result<File> {
    let [one, other] = names;
    let not_followed = || {
        let text = format!("not followed, since it is no file named .{one} or .{other}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let real = path.canonicalize()?;
    if !is_named(&real, names) || !real.metadata()?.is_file() {
        return Err(not_followed());
    }
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use nix::fcntl::OFlag;
        use std::os::unix::fs::OpenOptionsExt;
        // The name may mean something else by now: no link is followed, and no pipe waited for.
        options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    }
    let file = options.open(&real)?;
    match file.metadata()?.is_file() && path.canonicalize()? == real {
        true => Ok(file),
        false => Err(not_followed()),
    }
}

/// The `relative_path` as a path of this system, not yet joined to the child's folder. `None` when it is
/// missing or no relative path.
pub(super) fn relative(locator: &ParentLocator) -> Option<PathBuf> {
    let text = locator.get("relative_path")?;
    if text.starts_with(['\\', '/']) || text.contains(':') {
        return None;
    }
    let parts = text.split(['\\', '/']).filter(|part| !part.is_empty());
    let path: PathBuf = parts.collect();
    (path.components().next().is_some()).then_some(path)
}

/// The parent's file name, as the first of the paths that has one gives it.
pub(super) fn file_name(locator: &ParentLocator) -> Option<PathBuf> {
    ["relative_path", "absolute_win32_path", "volume_path"].iter().find_map(|key| {
        let name = Path::new(locator.get(key)?.rsplit(['\\', '/', ':']).next()?);
        let mut parts = name.components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => Some(PathBuf::from(name)),
            _ => None,
        }
    })
}

/// The absolute paths, where this system has such: those that lead to another machine are left out.
pub(super) fn absolute(locator: &ParentLocator) -> Vec<PathBuf> {
    if !cfg!(windows) {
        return Vec::new();
    }
    let keys = ["volume_path", "absolute_win32_path"];
    keys.iter()
        .filter_map(|key| locator.get(key))
        .filter(|path| is_local(path))
        .map(PathBuf::from)
        .collect()
}

/// `C:\...`, `\\?\C:\...` or `\\?\Volume{...}\...`; not `\\server\share`, in any spelling.
fn is_local(path: &str) -> bool {
    let rest = path.strip_prefix(r"\\?\").unwrap_or(path);
    let mut letters = rest.chars();
    let drive = matches!(
        (letters.next(), letters.next(), letters.next()),
        (Some(letter), Some(':'), Some('\\')) if letter.is_ascii_alphabetic()
    );
    drive || (rest.starts_with("Volume{") && path.starts_with(r"\\?\"))
}

/// A path without `.` and `..`, by its words alone; `None` when it leads above its start.
pub(super) fn without_dots(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::locator::encode;

    fn locator(pairs: &[(&str, &str)]) -> ParentLocator {
        ParentLocator::parse(&encode(pairs).unwrap()).unwrap()
    }

    #[test]
    fn windows_paths_become_paths_of_this_system() {
        let path = |text| relative(&locator(&[("relative_path", text)]));
        assert_eq!(path(r".\base.vhdx"), Some(PathBuf::from("./base.vhdx")));
        assert_eq!(path(r"..\..\a b\base.vhdx"), Some(PathBuf::from("../../a b/base.vhdx")));
        assert_eq!(path("base.vhdx"), Some(PathBuf::from("base.vhdx")));
        for bad in [r"\\server\share\x.vhdx", r"C:\x.vhdx", "/etc/passwd", r"\x.vhdx", r"C:x.vhdx"]
        {
            assert_eq!(path(bad), None, "{bad}");
        }
        let name = |key, text| file_name(&locator(&[(key, text)]));
        assert_eq!(name("relative_path", r"..\x\base.vhdx"), Some("base.vhdx".into()));
        assert_eq!(name("absolute_win32_path", r"\\?\D:\vm\base.vhdx"), Some("base.vhdx".into()));
        assert_eq!(name("absolute_win32_path", r"\\server\share\b.vhdx"), Some("b.vhdx".into()));
        for bad in [r"..\..", r"x\", "."] {
            assert_eq!(name("relative_path", bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_to_other_machines_are_not_local() {
        for good in [r"C:\a.vhdx", r"\\?\d:\a.vhdx", r"\\?\Volume{1234}\a.vhdx"] {
            assert!(is_local(good), "{good}");
        }
        let bad = [
            r"\\s\x\a.vhdx",
            r"\\?\UNC\s\x\a.vhdx",
            r"\\?\server\x\a.vhdx",
            r"\\.\C:\a",
            "a.vhdx",
            "",
        ];
        for bad in bad {
            assert!(!is_local(bad), "{bad}");
        }
    }

    #[test]
    fn dots_lead_nowhere_above_the_start() {
        assert_eq!(without_dots(Path::new("a/./b/../c.vhdx")), Some("a/c.vhdx".into()));
        assert_eq!(without_dots(Path::new("a/../../c.vhdx")), None);
        assert_eq!(without_dots(Path::new("/c.vhdx")), None);
    }
}
