//! The hardest judgement on a map of free space: every byte that is called free is overwritten, in a copy,
//! and the file system must not miss any of them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vhdxkit_volumes::Survey;

use crate::common::{Mounted, sh, survey_of};

/// Overwrites all that a survey calls free, in a copy of the image beside it, and surveys that once more: it
/// must find the same. For a copy that is not needed any more the caller removes the file.
pub fn overwritten(image: &Path, found: &Survey) -> PathBuf {
    let copy = image.with_extension("overwritten");
    sh(&format!("cp --sparse=always {} {}", image.display(), copy.display()));
    let file = OpenOptions::new().write(true).open(&copy).unwrap();
    let junk = vec![0xEE; 1 << 20];
    for range in found.free.ranges() {
        let mut at = range.start;
        while at < range.end {
            let length = junk.len().min((range.end - at) as usize);
            file.write_all_at(&junk[..length], at).unwrap();
            at += length as u64;
        }
    }
    drop(file);
    assert_eq!(&survey_of(&copy).unwrap(), found, "a free byte was believed");
    copy
}

/// Hashes of all files that a mounted file system holds, with their names; all other kinds of entries too.
pub fn contents(mounted: &Path) -> String {
    sh(&format!(
        "cd {}; find . -type f -print0 | sort -z | xargs -0 -r sha256sum; find . -printf '%p %y %s %l\\n' | sort",
        mounted.display()
    ))
}

/// The same of an image that is mounted for it, read-only.
pub fn contents_of(image: &Path) -> String {
    let mounted = Mounted::with(image, "ro");
    contents(mounted.path())
}

/// Overwrites what is free; `judge`, a shell line that finds the copy as `$img`, must be content with it, and
/// all files must be as they were.
pub fn nothing_is_missed(image: &Path, found: &Survey, judge: &str) {
    assert_eq!(found.unclean, None);
    assert!(found.free.bytes() > 0, "nothing to overwrite");
    let before = contents_of(image);
    let copy = overwritten(image, found);
    sh(&format!("img={}; {judge}", copy.display()));
    assert_eq!(contents_of(&copy), before);
    std::fs::remove_file(copy).unwrap();
}
