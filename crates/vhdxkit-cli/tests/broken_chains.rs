//! Chains that are broken, and what the command says: which child, which disk it wants, every place that was
//! looked at, and what to type.

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use common::{Run, Workdir, json, vhdx};
use vhdxkit::ops::relink::relink_storage;
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::{Image, OpenOptions, ParentPolicy};

fn write(image: &str, offset: u64, bytes: &[u8]) {
    let (status, errors) = try_write(image, &["--offset", &offset.to_string()], bytes);
    assert_eq!(status, 0, "{errors}");
}

/// The exit status, and what was said.
fn try_write(image: &str, more: &[&str], bytes: &[u8]) -> (i32, String) {
    let input = tempfile::tempfile().unwrap();
    (&input).write_all(bytes).unwrap();
    (&input).rewind().unwrap();
    let mut command = Run::command(&["write", image]);
    let output = command.args(more).stdin(input).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Zeros over both region tables: no part of the image is found any more, and all of it can be recovered.
fn lose_region_tables(image: &str) {
    let mut file = File::options().write(true).open(image).unwrap();
    file.seek(SeekFrom::Start(0x3_0000)).unwrap();
    file.write_all(&[0; 0x2_0000]).unwrap();
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
    try_write(&base, &["--force"], &[9; 512]);
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

/// `write` and `resize` took the parent away from a checkpoint beside the image, and ended with status 0.
#[test]
fn a_disk_with_checkpoints_is_written_and_resized_at_the_users_word_only() {
    let dir = Workdir::new();
    // Its log waits: not even that is replayed.
    let base = dir.copy("crashed.vhdx");
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    let before = dir.fingerprint(&base);
    let (status, said) = try_write(&base, &[], &[7; 4096]);
    assert_eq!(status, 1, "{said}");
    for part in ["child.avhdx builds on it", "--force writes all the same", "nothing was changed"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    let said = vhdx(&["resize", &base, "+1G"]).fails_with(1);
    assert!(said.contains("child.avhdx builds on it") && said.contains("--force"), "{said}");
    assert!(!said.contains("cuts off"), "{said}");
    // The word is the one that cuts off data: that is said before anything else is.
    let said = vhdx(&["resize", &base, "1M"]).fails_with(1);
    assert!(said.contains("child.avhdx builds on it") && said.contains("cuts off"), "{said}");
    assert!(dir.fingerprint(&base) == before, "the parent was changed");
    vhdx(&["read", &child, "--length", "512"]).succeeds();
    // The newest is written as before, and the disk by force. What is lost by `resize` is named.
    write(&child, 0, &[7; 4096]);
    vhdx(&["resize", &child, "+1G"]).succeeds();
    let (_, said) = vhdx(&["resize", "--force", &base, "+1G"]).succeeds_with_errors();
    let again = format!("vhdx relink {child} --parent {base} --ignore-parent-id");
    assert!(said.contains(&again), "{said}");
    read_says(&child, &[], &["was written to since"]);
    vhdx(&["relink", &child, "--parent", &base, "--ignore-parent-id"]).succeeds();
    // The size that it has changes nothing.
    let size = json(&vhdx(&["info", "--json", &base]).succeeds())["virtual_size"].to_string();
    vhdx(&["resize", &base, &size]).succeeds();
    vhdx(&["read", &child, "--length", "512"]).succeeds();
    let (status, said) = try_write(&base, &["--force"], &[7; 4096]);
    assert_eq!(status, 0, "{said}");
    read_says(&child, &[], &["was written to since"]);
}

/// A damaged checkpoint counted as none: its disk was changed, and what could have been recovered of it had no
/// parent any more.
#[test]
fn a_checkpoint_that_cannot_be_read_may_be_a_child() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    lose_region_tables(&one);
    let refuses = |child: &str| {
        let before = dir.fingerprint(&base);
        let (status, said) = try_write(&base, &[], &[7; 512]);
        assert_eq!(status, 1, "{said}");
        let set = ["set", &base, "--physical-sector-size", "512"];
        let mut all = vec![said];
        all.push(vhdx(&set).fails_with(1));
        all.push(vhdx(&["resize", &base, "30M"]).fails_with(1));
        let said = vhdx(&["resize", &base, "1M"]).fails_with(1);
        assert!(said.contains("cuts off"), "{said}");
        all.push(said);
        #[cfg(target_os = "linux")]
        all.push(vhdx(&["serve", &base, "--run", "true"]).fails_with(1));
        let tell = format!("cannot tell whether {child} builds on it");
        for said in all {
            assert!(said.contains(&tell) && said.contains("--force"), "{said}");
        }
        assert!(dir.fingerprint(&base) == before, "the parent was changed");
    };
    refuses(&one);
    // A name like that of a disk, too, while it has anything of a VHDX; like a checkpoint's, even if it has not.
    let renamed = dir.path("one.vhdx");
    std::fs::rename(&one, &renamed).unwrap();
    refuses(&renamed);
    std::fs::remove_file(&renamed).unwrap();
    std::fs::write(&one, [0xAB; 4096]).unwrap();
    refuses(&one);
    // What is plainly something else does not count.
    std::fs::remove_file(&one).unwrap();
    std::fs::write(dir.path("empty.avhdx"), []).unwrap();
    std::fs::write(dir.path("other.avhdx"), [b"QFI\xfb".as_slice(), &[0; 600]].concat()).unwrap();
    std::fs::write(dir.path("notes.vhdx"), "to be made").unwrap();
    write(&base, 0, &[7; 512]);
    // Force does not ask.
    std::fs::write(&one, [0xAB; 4096]).unwrap();
    let (status, said) = try_write(&base, &["--force"], &[7; 512]);
    assert_eq!(status, 0, "{said}");
    vhdx(&["set", &base, "--physical-sector-size", "512", "--force"]).succeeds();
}

/// A damaged disk that builds on nothing, and a damaged checkpoint of another one, lie beside many: they hinder nobody.
#[test]
fn what_names_another_parent_or_none_is_no_child() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    lose_region_tables(&base);
    lose_region_tables(&one);
    let fresh = dir.path("fresh.vhdx");
    vhdx(&["create", &fresh, "16M"]).succeeds();
    write(&fresh, 0, &[7; 512]);
}

/// An image's own parents are not its children, however damaged: what is said is that they are missing.
#[test]
fn a_parent_that_cannot_be_read_is_no_child() {
    let dir = Workdir::new();
    let [base, one] = pair(&dir);
    let two = dir.path("two.avhdx");
    vhdx(&["create", &two, "--parent", &one]).succeeds();
    lose_region_tables(&base);
    for image in [&one, &two] {
        if image == &one {
            std::fs::rename(&two, dir.path("two.elsewhere")).unwrap();
        } else {
            std::fs::rename(dir.path("two.elsewhere"), &two).unwrap();
        }
        let (status, said) = try_write(image, &[], &[7; 512]);
        assert_eq!(status, 5, "{said}");
        for arguments in [&["set", image, "--new-disk-id"][..], &["resize", image, "30M"]] {
            let said = vhdx(arguments).fails_with(5);
            assert!(!said.contains("cannot tell"), "{said}");
        }
    }
}
