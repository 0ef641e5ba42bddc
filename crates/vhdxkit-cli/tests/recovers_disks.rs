//! `vhdx recover`, as somebody uses it who has just lost a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

fn vhdx(arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_vhdx")).args(arguments).output().unwrap()
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

/// A copy of a sample with a part of it overwritten.
fn wiped(name: &str, into: &Path, range: std::ops::Range<usize>) -> PathBuf {
    let mut bytes = fs::read(sample(name)).unwrap();
    let end = range.end.min(bytes.len());
    bytes[range.start..end].fill(0xA5);
    let path = into.join(format!("broken-{name}"));
    fs::write(&path, bytes).unwrap();
    path
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first mebibyte of a crashed disk is gone: all of it is had, what only the log knew included. The damaged
/// file is not changed, and an existing target is not replaced.
#[test]
fn a_disk_without_its_first_mebibyte_is_had_whole() {
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("crashed.vhdx", dir.path(), 0..1 << 20);
    let before = fs::read(&broken).unwrap();
    let to = dir.path().join("new.vhdx");

    let looked = vhdx(&["recover", path(&broken)]);
    assert_eq!(looked.status.code(), Some(0), "{}", text(&looked));
    assert!(text(&looked).contains("everything was had"), "{}", text(&looked));
    assert!(!to.exists());

    let opened = vhdx(&["info", path(&broken)]);
    assert_eq!(opened.status.code(), Some(1));
    assert!(text(&opened).contains("vhdx recover"), "{}", text(&opened));

    let had = vhdx(&["recover", path(&broken), "--to", path(&to)]);
    assert_eq!(had.status.code(), Some(0), "{}", text(&had));
    let same = vhdx(&["compare", path(&to), path(&sample("crashed.vhdx"))]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same));
    let checked = vhdx(&["check", path(&to)]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert_eq!(fs::read(&broken).unwrap(), before);

    let again = vhdx(&["recover", path(&broken), "--to", path(&to)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("--force"), "{}", text(&again));
    let itself = vhdx(&["recover", path(&broken), "--to", path(&broken), "--force"]);
    assert_eq!(itself.status.code(), Some(1));
    assert_eq!(fs::read(&broken).unwrap(), before);
}

/// The report is read in a terminal, by somebody who is frightened enough.
#[test]
fn the_report_fits_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("crashed.vhdx", dir.path(), 0..1 << 20);
    fs::rename(&broken, dir.path().join("b")).unwrap();
    let looked = std::process::Command::new(env!("CARGO_BIN_EXE_vhdx"))
        .args(["recover", "b"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let report = String::from_utf8(looked.stdout).unwrap();
    assert!(report.contains("  note      "), "{report}");
    let long: Vec<&str> = report.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Force is a word about the result of an earlier try. A slip of the hand must not cost another disk.
#[test]
fn a_recovered_image_replaces_nothing_but_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("crashed.vhdx", dir.path(), 0..1 << 20);
    let to = dir.path().join("target");
    for old in [&b"QFI\xfb"[..], b"conectix", b"vhdxfil", &[0; 4096]] {
        fs::write(&to, old).unwrap();
        let refused = vhdx(&["recover", path(&broken), "--to", path(&to), "--force"]);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains("is not a VHDX file"), "{}", text(&refused));
        assert_eq!(fs::read(&to).unwrap(), old);
    }
    for old in [&b""[..], b"vhdxfile, of an earlier try"] {
        fs::write(&to, old).unwrap();
        let had = vhdx(&["recover", path(&broken), "--to", path(&to), "--force"]);
        assert_eq!(had.status.code(), Some(0), "{}", text(&had));
        let same = vhdx(&["compare", path(&to), path(&sample("crashed.vhdx"))]);
        assert_eq!(same.status.code(), Some(0), "{}", text(&same));
    }
}

/// A table that nothing tells of any more: status 3, the losses listed, and the data nobody names written out.
#[test]
fn what_is_lost_is_listed_and_what_nobody_names_is_written_out() {
    let dir = tempfile::tempdir().unwrap();
    // Its table lies behind log and metadata, and its log is empty.
    let broken = wiped("clean.vhdx", dir.path(), 3 << 20..4 << 20);
    let (to, orphans) = (dir.path().join("new.vhdx"), dir.path().join("orphans"));
    let output =
        vhdx(&["--json", "recover", path(&broken), "--to", path(&to), "--orphans", path(&orphans)]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["whole"], false);
    assert_eq!(json["blocks"]["lost"], 10);
    assert_eq!(json["lost"][0]["offset"], 0);
    assert_eq!(json["share_percent"], 0.0);
    let files: Vec<_> = fs::read_dir(&orphans).unwrap().map(|file| file.unwrap().path()).collect();
    let found: u64 =
        json["orphans"].as_array().unwrap().iter().map(|o| o["length"].as_u64().unwrap()).sum();
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!((files.len(), bytes), (json["orphans"].as_array().unwrap().len(), found));
    let whole: Vec<u8> = files.iter().flat_map(|file| fs::read(file).unwrap()).collect();
    let part = b"clean, block 0, fully present";
    assert!(whole.windows(part.len()).any(|window| window == part));
    assert_eq!(vhdx(&["check", path(&to)]).status.code(), Some(0));
}

/// A file that somebody writes is not read but on the user's word.
#[cfg(target_os = "linux")]
#[test]
fn a_file_in_use_is_read_only_on_the_users_word() {
    use vhdxkit::storage::{FileStorage, OpenMode};
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("crashed.vhdx", dir.path(), 64 << 10..192 << 10);
    let held = FileStorage::open(&broken, OpenMode::ReadWrite).unwrap();
    let refused = vhdx(&["recover", path(&broken)]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    let shared = vhdx(&["recover", path(&broken), "--force-share"]);
    assert_eq!(shared.status.code(), Some(0), "{}", text(&shared));
    drop(held);
}

/// A checkpoint whose metadata is gone does not name its parent any more: that has to be given, and is status 5
/// without.
#[test]
fn a_checkpoint_that_has_lost_its_parents_name_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("child.vhdx", dir.path(), 2 << 20..3 << 20);
    let to = dir.path().join("new.vhdx");
    let asked = vhdx(&["recover", path(&broken), "--to", path(&to)]);
    assert_eq!(asked.status.code(), Some(5), "{}", text(&asked));
    assert!(text(&asked).contains("--parent") && !to.exists(), "{}", text(&asked));
    let parent = sample("clean.vhdx");
    let arguments = ["recover", path(&broken), "--to", path(&to), "--parent", path(&parent)];
    let had = vhdx(&arguments);
    assert_eq!(had.status.code(), Some(3), "{}", text(&had));
    let child = sample("child.vhdx");
    let over = ["compare", path(&to), path(&child), "--parent", path(&parent)];
    let same = vhdx(&over);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same));
}

/// Makes a disk, a checkpoint of it and one of that, and takes the last one's headers.
fn broken_chain(dir: &Path) -> [PathBuf; 3] {
    let names = ["base.vhdx", "mid.avhdx", "top.avhdx"].map(|name| dir.join(name));
    let [base, mid, top] = &names;
    let made = |arguments: &[&str]| {
        let made = vhdx(arguments);
        assert!(made.status.success(), "{}", text(&made));
    };
    made(&["create", path(base), "20M", "--block-size", "1M"]);
    made(&["create", path(mid), "--parent", path(base)]);
    made(&["create", path(top), "--parent", path(mid)]);
    let mut bytes = fs::read(top).unwrap();
    bytes[64 << 10..192 << 10].fill(0);
    fs::write(top, bytes).unwrap();
    names
}

/// Whatever is forced: what a damaged checkpoint stands on is not replaced by what is had of it, for that is in no other
/// file. Neither by the parent's name, nor by another name of it, nor a parent's parent.
#[test]
fn no_salvage_takes_the_place_of_a_parent() {
    let dir = tempfile::tempdir().unwrap();
    let [base, mid, top] = broken_chain(dir.path());
    let moved = dir.path().join("elsewhere");
    fs::create_dir(&moved).unwrap();
    let copy = moved.join("kept.avhdx");
    fs::copy(&mid, &copy).unwrap();
    let before = [&base, &mid, &copy].map(|file| fs::read(file).unwrap());
    for to in [&base, &mid, &copy] {
        for parent in [&[][..], &["--parent", path(&mid)]] {
            let arguments = ["recover", path(&top), "--to", path(to), "--force"];
            let refused = vhdx(&[&arguments[..], parent].concat());
            assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
            let why = text(&refused);
            assert!(why.contains("parent") || why.contains("builds on"), "{why}");
        }
    }
    assert!([&base, &mid, &copy].map(|file| fs::read(file).unwrap()) == before);
    let to = dir.path().join("new.avhdx");
    let had = vhdx(&["recover", path(&top), "--to", path(&to)]);
    assert!(to.exists(), "{}", text(&had));
}

/// A parent that somebody gives to a disk that has none is not passed over in silence.
#[test]
fn a_parent_that_is_not_used_is_told() {
    let parent = sample("clean.vhdx");
    let looked = vhdx(&["recover", path(&sample("crashed.vhdx")), "--parent", path(&parent)]);
    let errors = String::from_utf8_lossy(&looked.stderr).into_owned();
    assert!(errors.contains("is not used"), "{errors}");
}

/// Somebody who gives a wrong size, or a parent that is another disk, is told so, and by the exit status, too.
#[test]
fn words_that_contradict_the_file_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for option in [["--size", "4M"], ["--block-size", "2M"]] {
        let looked = vhdx(&[&["recover", path(&sample("clean.vhdx"))][..], &option].concat());
        assert_eq!(looked.status.code(), Some(3), "{}", text(&looked));
        assert!(text(&looked).contains("as given; the file itself says"), "{}", text(&looked));
    }
    let other = dir.path().join("other.vhdx");
    fs::copy(sample("clean.vhdx"), &other).unwrap();
    let sector = dir.path().join("sector");
    fs::write(&sector, [0xEE; 512]).unwrap();
    let written = std::process::Command::new(env!("CARGO_BIN_EXE_vhdx"))
        .args(["write", path(&other), "--offset", "0"])
        .stdin(fs::File::open(&sector).unwrap())
        .output()
        .unwrap();
    assert!(written.status.success(), "{}", text(&written));
    let parent = ["--parent", path(&other), "--ignore-parent-id"];
    let looked = vhdx(&[&["recover", path(&sample("child.vhdx"))][..], &parent].concat());
    assert_eq!(looked.status.code(), Some(3), "{}", text(&looked));
    assert!(text(&looked).contains("the disk names"), "{}", text(&looked));
}

/// An image of another format is named, with the command for it, and not asked for sizes.
#[test]
fn an_image_of_another_format_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let vhd = dir.path().join("disk.vhd");
    let made = vhdx(&["create", path(&vhd), "8M"]);
    assert!(made.status.success(), "{}", text(&made));
    let looked = vhdx(&["recover", path(&vhd)]);
    assert_eq!(looked.status.code(), Some(1), "{}", text(&looked));
    assert!(text(&looked).contains("VHD image") && text(&looked).contains("vhdx convert"));
}

/// What an earlier try has written out stays, and one is told what to do.
#[test]
fn orphans_of_an_earlier_try_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let broken = wiped("clean.vhdx", dir.path(), 3 << 20..4 << 20);
    let arguments = ["recover", path(&broken), "--orphans", path(dir.path())];
    assert_eq!(vhdx(&arguments).status.code(), Some(3));
    let again = vhdx(&arguments);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again));
    assert!(text(&again).contains("another folder"), "{}", text(&again));
}
