//! Undo files that lie beside their images.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::storage::{FileStorage, OpenMode, Storage};
use crate::{Error, ErrorKind, Result};

use super::{Undo, UndoReport};

/// Between the name of the image and the time.
const UNDO: &str = ".undo-";
/// Undo files of one image that are read, the newest first, to find the one that fits.
const MOST_LOOKED_AT: usize = 16;

/// Writes an undo file beside an image: under a temporary name first, and never over another file.
pub(in super::super) fn save(
    image: &Path,
    fill: impl FnOnce(&str, &dyn Storage) -> Result<()>,
) -> Result<PathBuf> {
    // Behind a link the image itself lies elsewhere, and so does what belongs to it.
    let image = image.canonicalize().map_err(|e| Error::io_whole("cannot find the image", e))?;
    let name =
        image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let failed = |e| Error::io_whole("cannot write the undo file", e);
    let mut number = 1u32;
    let path = loop {
        let mut path = image.clone().into_os_string();
        path.push(format!("{UNDO}{}", utc(SystemTime::now())));
        if number > 1 {
            path.push(format!("-{number}"));
        }
        let path = PathBuf::from(path);
        // The name is taken first, so that nothing is ever replaced.
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => break path,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < 1000 => {
                number = number.saturating_add(1);
            }
            Err(e) => return Err(failed(e).in_file(path)),
        }
    };
    let mut temporary = path.clone().into_os_string();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let written = make(&temporary, &path, |to| fill(&name, to));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
        let _ = std::fs::remove_file(&path);
    }
    written.map_err(|error| error.in_file(&path))?;
    Ok(path)
}

fn make(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&dyn Storage) -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::io_whole("cannot write the undo file", e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(temporary)
        .map_err(failed)?;
    fill(&FileStorage::from_file(file.try_clone().map_err(failed)?))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(temporary, path).map_err(failed)?;
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        // Not every file system can; then the name becomes durable when it does.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Restores the image at `path` from an undo file.
///
/// # Errors
/// As [`Undo::read`] and [`Undo::restore`]; the image is in use.
pub fn undo_file(path: &Path, undo: &Path, force: bool) -> Result<UndoReport> {
    let image = FileStorage::open(path, OpenMode::ReadWrite).map_err(|e| e.in_file(path))?;
    let file = FileStorage::open(undo, OpenMode::ReadOnly { force_share: false });
    let file = file.map_err(|e| e.in_file(undo))?;
    let read = Undo::read(&file).map_err(|e| e.in_file(undo))?;
    let restored = read.restore(&image, force).map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => match later(path, undo, &image) {
            Some(later) => Error::invalid(format!("{error}: {} is one that fits", later.display())),
            None => error,
        },
        _ => error,
    });
    restored.map_err(|e| e.in_file(path))
}

/// The undo file beside an image, other than the one that does not fit, that fits it as it is now: of the repair
/// that came last.
fn later(image: &Path, other: &Path, storage: &dyn Storage) -> Option<PathBuf> {
    let image = image.canonicalize().ok()?;
    let other = other.canonicalize().ok()?;
    let mut start = image.file_name()?.to_os_string();
    start.push(UNDO);
    let folder = std::fs::read_dir(image.parent()?).ok()?;
    let named = folder.filter_map(|entry| entry.ok()).filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().starts_with(start.as_encoded_bytes()) && entry.path() != other
    });
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    // The names have the time in them.
    found.sort();
    found.into_iter().rev().take(MOST_LOOKED_AT).find(|path| {
        let Ok(file) = FileStorage::open(path, OpenMode::ReadOnly { force_share: false }) else {
            return false;
        };
        Undo::read(&file).is_ok_and(|undo| undo.is_next(storage).unwrap_or(false))
    })
}

/// A moment as `20260131T235959Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01.
fn date_of(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970u64;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length || year > 9999 {
            break;
        }
        days = days.saturating_sub(length);
        year = year.saturating_add(1);
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1u64;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days = days.saturating_sub(length);
        month = month.saturating_add(1);
    }
    (year, month, days.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(date_of(0), (1970, 1, 1));
        assert_eq!(date_of(59), (1970, 3, 1));
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(date_of(20_783), (2026, 11, 26));
        assert_eq!(
            utc(UNIX_EPOCH + std::time::Duration::from_secs(951_868_799)),
            "20000229T235959Z"
        );
    }
}
