//! Chains that are broken, and what the command says: which child, which disk it wants, every place that was
//! looked at, and what to type.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use common::{Run, Workdir, json, vhdx};
use vhdxkit::ops::relink::relink_storage;
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::{Image, OpenOptions, ParentPolicy};

fn write(image: &str, offset: u64, bytes: &[u8]) {
    let mut child = Run::command(&["write", image, "--offset", &offset.to_string()])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success());
}

/// base.vhdx <- one.avhdx
fn pair(dir: &Workdir) -> [String; 2] {
    let [base, one] = ["base.vhdx", "one.avhdx"].map(|name| dir.path(name));
    vhdx(&["create", &base, "20M", "--block-size", "1M"]).succeeds();
    write(&base, 0, &[1; 4096]);
    vhdx(&["create", &one, "--parent", &base]).succeeds();
    write(&one, 8192, &[2; 4096]);
    [base, one]
}

fn identity(image: &str) -> String {
    let info = json(&vhdx(&["info", "--json", image]).succeeds());
    info["data_write_guid"].as_str().unwrap().to_owned()
}

/// Reading fails with status 5 and says all of this.
fn read_says(image: &str, more: &[&str], parts: &[&str]) {
    let arguments = [&["read", image, "--length", "512"], more].concat();
    let error = vhdx(&arguments).fails_with(5);
    for part in parts {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
}

#[test]
fn a_missing_parent() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let wanted = identity(&base);
    std::fs::rename(&base, dir.path("other.vhdx")).unwrap();
    let repair = format!("vhdx relink {one} --parent {}", dir.path("other.vhdx"));
    read_says(&one, &[], &[&one, &wanted, &base, "no such file", &repair]);
}

#[test]
fn a_parent_that_was_written_to() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let wanted = identity(&base);
    write(&base, 0, &[9; 512]);
    let found = identity(&base);
    read_says(&one, &[], &[&one, &wanted, &found, &base, "--ignore-parent-id"]);
}

#[test]
fn a_parent_with_other_sectors() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let other = dir.path("other.vhdx");
    vhdx(&["create", &other, "20M", "--logical-sector-size", "4096"]).succeeds();
    let more = ["--parent", &other, "--ignore-parent-id"];
    read_says(&one, &more, &[&one, &identity(&base), &other, "its sectors have 4096 bytes"]);
}

#[test]
fn a_parent_that_somebody_writes() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let wanted = identity(&base);
    let writer = OpenOptions::new().write(true).open(&base).unwrap();
    read_says(&one, &[], &[&one, &wanted, &base, "in use"]);
    drop(writer);
    vhdx(&["read", &one, "--length", "512"]).succeeds();
}

#[test]
fn a_child_that_is_its_own_parent() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    std::fs::rename(&one, &base).unwrap();
    read_says(&base, &["--ignore-parent-id"], &[&base, "circle"]);
}

#[test]
fn a_locator_without_paths() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let wanted = identity(&base);
    let file = FileStorage::open(Path::new(&one), OpenMode::ReadWrite).unwrap();
    relink_storage(Arc::new(file), &Image::open(&base).unwrap(), None, false, None).unwrap();
    std::fs::create_dir(dir.path("deep")).unwrap();
    let hidden = dir.path("deep/base.vhdx");
    std::fs::rename(&base, &hidden).unwrap();
    read_says(&one, &[], &[&one, &wanted, "nothing says where its parent is", "--parent"]);
    std::fs::rename(&hidden, &base).unwrap();
    let repair = format!("vhdx relink {one} --parent {base}");
    read_says(&one, &[], &[&one, &wanted, &base, &repair]);
    let checked = json(&vhdx(&["check", "--json", &one]).exits_with(3));
    assert!(checked["findings"].to_string().contains("no path in the parent locator"));
    vhdx(&["relink", &one, "--parent", &base]).succeeds();
    vhdx(&["read", &one, "--length", "512"]).succeeds();
    vhdx(&["check", &one]).succeeds();
}

/// Whoever opens a chain for writing by another way than the locator says corrects the locator. The disk is
/// the same: its own children go on knowing it.
#[test]
fn a_stale_path_is_corrected_when_the_chain_is_written() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    std::fs::create_dir(dir.path("deep")).unwrap();
    let moved = dir.path("deep/base.vhdx");
    std::fs::rename(&base, &moved).unwrap();
    let guid = identity(&one);
    let path =
        || json(&vhdx(&["info", "--json", &one]).succeeds())["parent"]["relative_path"].clone();
    // Reading changes nothing.
    vhdx(&["read", &one, "--length", "512", "--parent", &moved]).succeeds();
    assert_eq!(path(), r".\base.vhdx");
    let options = || OpenOptions::new().write(true).parents(ParentPolicy::Follow);
    options().parent(&moved).open(&one).unwrap().close().unwrap();
    assert_eq!(path(), r".\deep\base.vhdx");
    assert_eq!(identity(&one), guid);
    let image: Image = options().open(&one).unwrap();
    let mut bytes = [0; 512];
    image.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 512]);
}

/// A path starts where the child really lies, whatever link it was opened by.
#[cfg(unix)]
#[test]
fn a_child_that_is_opened_by_a_link_is_linked_from_where_it_lies() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    for folder in ["vm", "store"] {
        std::fs::create_dir(dir.path(folder)).unwrap();
    }
    let (real, link) = (dir.path("store/one.avhdx"), dir.path("vm/current.avhdx"));
    std::fs::rename(&one, &real).unwrap();
    std::os::unix::fs::symlink("../store/one.avhdx", &link).unwrap();
    vhdx(&["relink", &link, "--parent", &base]).succeeds();
    for path in [&real, &link] {
        vhdx(&["read", path, "--length", "512"]).succeeds();
    }
    // So is one whose path was corrected on the way.
    let moved = dir.path("vm/base.vhdx");
    std::fs::rename(&base, &moved).unwrap();
    let options = OpenOptions::new().write(true).parent(&moved);
    options.open(&link).unwrap().close().unwrap();
    for path in [&real, &link] {
        let info = json(&vhdx(&["info", "--json", path]).succeeds());
        assert_eq!(info["parent"]["relative_path"], r"..\vm\base.vhdx");
        vhdx(&["read", path, "--length", "512"]).succeeds();
    }
    // And what is merged is the image, not the link.
    vhdx(&["merge", &link]).succeeds();
    assert!(!Path::new(&real).exists() && Path::new(&link).symlink_metadata().is_err());
    vhdx(&["read", &moved, "--length", "512"]).succeeds();
}

/// Killed at any moment, a merge leaves a chain that shows what it showed; the same command goes on.
#[cfg(unix)]
#[test]
fn a_merge_that_is_killed_goes_on_where_it_was() {
    let dir = Workdir::new();
    let [base, one, flat] = ["base.vhdx", "one.avhdx", "flat.raw"].map(|name| dir.path(name));
    vhdx(&["create", &base, "100M", "--block-size", "1M"]).succeeds();
    write(&base, 0, &vec![1; 40 << 20]);
    vhdx(&["create", &one, "--parent", &base]).succeeds();
    write(&one, 20 << 20, &vec![2; 60 << 20]);
    write(&one, (3 << 20) + 512, &[3; 512]);
    let shown = |image: &str| {
        vhdx(&["convert", "--force", image, &flat]).succeeds();
        common::sha256(&flat)
    };
    let expected = shown(&one);
    let (mut killed, mut finished) = (0, false);
    for delay in (0..12).map(|step| Duration::from_millis(3 + step * 7)) {
        let mut merging = Run::command(&["merge", &one])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        merging.kill().unwrap();
        killed += usize::from(!merging.wait().unwrap().success());
        let newest = if Path::new(&one).exists() { &one } else { &base };
        assert_eq!(shown(newest), expected, "killed after {delay:?}");
        finished = newest == &base;
        if finished {
            break;
        }
    }
    assert!(killed > 0, "no merge was caught");
    if !finished {
        vhdx(&["merge", &one]).succeeds();
    }
    assert_eq!(shown(&base), expected);
    assert!(!Path::new(&one).exists());
    vhdx(&["check", &base]).succeeds();
}
