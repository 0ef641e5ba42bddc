use super::super::{FileStorage, OpenMode, Storage};
use super::*;
use crate::ErrorKind;

const READ: OpenMode = OpenMode::ReadOnly { force_share: false };
const FORCED: OpenMode = OpenMode::ReadOnly { force_share: true };
const WRITE: OpenMode = OpenMode::ReadWrite;

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn assert_locked_by(result: crate::Result<FileStorage>, pid: u32, command: Option<&str>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    if cfg!(target_os = "linux") {
        // Not alone perhaps: a process that another test is just starting shares our descriptors
        // for a moment.
        let found = error.holders().iter().find(|holder| holder.pid == pid);
        let named = &found.unwrap_or_else(|| panic!("{pid} is not named: {error}")).command;
        assert!(!named.is_empty() && command.is_none_or(|command| command == named), "{error}");
    }
}

/// Together with the real QEMU.
#[cfg(target_os = "linux")]
mod qemu;

#[test]
fn readers_share() {
    let image = image();
    let _first = FileStorage::open(image.path(), READ).unwrap();
    let _second = FileStorage::open(image.path(), READ).unwrap();
}

#[test]
fn a_writer_is_alone_and_is_named() {
    let image = image();
    let me = std::process::id();
    let writer = FileStorage::open(image.path(), WRITE).unwrap();
    assert_locked_by(FileStorage::open(image.path(), READ), me, None);
    assert_locked_by(FileStorage::open(image.path(), WRITE), me, None);
    drop(writer);
    let reader = FileStorage::open(image.path(), READ).unwrap();
    assert_locked_by(FileStorage::open(image.path(), WRITE), me, None);
    drop(reader);
    FileStorage::open(image.path(), WRITE).unwrap();
}

#[test]
fn a_lock_on_the_whole_file_is_heeded_and_taken() {
    let image = image();
    let other = image.reopen().unwrap();
    other.lock_shared().unwrap();
    assert_locked_by(FileStorage::open(image.path(), WRITE), std::process::id(), None);
    drop(FileStorage::open(image.path(), READ).unwrap());
    other.unlock().unwrap();
    let writer = FileStorage::open(image.path(), WRITE).unwrap();
    assert!(matches!(other.try_lock_shared(), Err(TryLockError::WouldBlock)));
    drop(writer);
    let _reader = FileStorage::open(image.path(), READ).unwrap();
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    other.try_lock_shared().unwrap();
}

#[test]
fn a_refused_attempt_leaves_no_lock_behind() {
    let image = image();
    let reader = FileStorage::open(image.path(), READ).unwrap();
    FileStorage::open(image.path(), WRITE).unwrap_err();
    FileStorage::open(image.path(), READ).unwrap();
    drop(reader);
    FileStorage::open(image.path(), WRITE).unwrap();
}

#[test]
fn a_forced_reader_neither_takes_nor_heeds_locks() {
    let image = image();
    let forced = FileStorage::open(image.path(), FORCED).unwrap();
    let writer = FileStorage::open(image.path(), WRITE).unwrap();
    drop(forced);
    assert_locked_by(FileStorage::open(image.path(), WRITE), std::process::id(), None);
    FileStorage::open(image.path(), FORCED).unwrap();
    writer.write_at(0, b"still writing").unwrap();
}

#[test]
fn locks_end_with_the_storage_even_if_the_file_stays_open() {
    let image = image();
    let storage = FileStorage::open(image.path(), WRITE).unwrap();
    let _file = storage.try_clone_file().unwrap();
    drop(storage);
    FileStorage::open(image.path(), WRITE).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn of_two_who_come_at_once_at_most_one_wins_even_without_the_whole_file_lock() {
    let image = image();
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true);
    let (first, second) =
        (options.open(image.path()).unwrap(), options.open(image.path()).unwrap());
    assert!(ranges::acquire(&first, true).unwrap());
    assert!(!ranges::acquire(&second, true).unwrap());
    // Who lost has not let go yet, and is seen.
    assert!(!ranges::acquire(&first, false).unwrap());
    ranges::release(&second);
    assert!(ranges::acquire(&first, true).unwrap());
}

#[test]
fn change_tracking_files_beside_the_image_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["a.vhdx", "a.vhdx.rct", "a.mrt", "b.vhdx", "c.rct"] {
        std::fs::write(path(name), b"").unwrap();
    }
    std::fs::create_dir(path("b.vhdx.mrt")).unwrap();
    assert_eq!(change_tracking_beside(&path("a.vhdx")), [path("a.mrt"), path("a.vhdx.rct")]);
    assert_eq!(change_tracking_beside(&path("b.vhdx")), [] as [PathBuf; 0]);
    assert_eq!(change_tracking_beside(&path("c.rct")), [] as [PathBuf; 0]);
    assert_eq!(change_tracking_beside(&path("c")), [path("c.rct")]);
}
