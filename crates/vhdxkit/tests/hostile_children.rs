//! Children from strangers: whatever their locators say, only files that the caller's policy allows are
//! opened, and the error names every place that was looked at.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use vhdxkit::format::Guid;
use vhdxkit::{CreateOptions, Error, ErrorKind, Image, OpenOptions, ParentPolicy};
use vhdxkit_testkit as kit;

const MIB: u64 = 1 << 20;
const PARENT: Guid = Guid::from_u128(0xA);
const CHILD: Guid = Guid::from_u128(0xC);

/// A folder with a child in it; files of its own lie above.
struct Scene {
    _dir: tempfile::TempDir,
    /// Where nothing may be opened by a policy that stays beneath `inside`.
    outside: PathBuf,
    inside: PathBuf,
    child: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().canonicalize().unwrap();
        let inside = outside.join("inside");
        std::fs::create_dir(&inside).unwrap();
        let child = inside.join("child.avhdx");
        Self { _dir: dir, outside, inside, child }
    }

    fn child(&self, key: &str, path: &str) {
        child(&self.child, PARENT, CHILD, key, path);
    }

    fn open(&self, policy: ParentPolicy) -> Result<Image, Error> {
        let (sender, receiver) = mpsc::channel();
        let path = self.child.clone();
        // A pipe that is opened makes whoever does it wait for ever.
        std::thread::spawn(move || {
            let opened = OpenOptions::new().parents(policy).open(path);
            sender.send(Box::new(opened)).is_ok()
        });
        *receiver.recv_timeout(Duration::from_secs(20)).expect("opening hangs")
    }

    fn beneath(&self) -> ParentPolicy {
        ParentPolicy::Beneath(self.inside.clone())
    }
}

fn child(path: &Path, parent: Guid, own: Guid, key: &str, value: &str) {
    let image = kit::Image::differencing(16 * MIB, parent).with_data_write_guid(own);
    image.parent_path(key, value).build_file(path);
}

fn parent(path: &Path) {
    kit::Image::dynamic(16 * MIB).with_data_write_guid(PARENT).build_file(path);
}

fn require_refused(image: Result<Image, Error>, child: &Path) -> String {
    let error = image.expect_err("a parent was taken that must not be");
    assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
    let text = error.to_string();
    assert!(text.contains(&child.display().to_string()), "{text}");
    assert!(text.contains(&PARENT.to_string()), "{text}");
    text
}

#[test]
fn by_default_no_parent_is_opened() {
    let scene = Scene::new();
    parent(&scene.inside.join("parent.vhdx"));
    scene.child("relative_path", r".\parent.vhdx");
    let image = scene.open(ParentPolicy::Deny).unwrap();
    assert!(image.parent().is_none());
    let error = image.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNeeded);
    drop(image);
    let error = OpenOptions::new().write(true).open(&scene.child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentNeeded);
}

#[test]
fn what_is_no_image_by_its_name_is_never_opened() {
    let scene = Scene::new();
    let pipe = scene.inside.join("pipe.vhdx");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, scene.inside.join(name)).unwrap();
    };
    link("/dev/zero", "device.vhdx");
    link("/etc/passwd", "users.vhdx");
    link("pipe.vhdx", "to-pipe.vhdx");
    std::fs::create_dir(scene.inside.join("folder.vhdx")).unwrap();
    let up = r"..\".repeat(40);
    for path in [
        format!(r"{up}etc\passwd"),
        format!(r"{up}dev\zero"),
        format!("{up}dev/tty"),
        r".\pipe.vhdx".to_owned(),
        r".\to-pipe.vhdx".to_owned(),
        r".\device.vhdx".to_owned(),
        r".\users.vhdx".to_owned(),
        r".\folder.vhdx".to_owned(),
        r".\none.vhdx".to_owned(),
    ] {
        scene.child("relative_path", &path);
        let text = require_refused(scene.open(ParentPolicy::Follow), &scene.child);
        assert!(text.contains("not followed") || text.contains("no such file"), "{path}: {text}");
        let text = require_refused(scene.open(scene.beneath()), &scene.child);
        assert!(!text.contains("not followed"), "{path}: {text}");
    }
}

#[test]
fn absolute_paths_and_other_machines_are_not_asked() {
    let scene = Scene::new();
    let there = scene.outside.join("parent.vhdx");
    parent(&there);
    let there = there.display().to_string();
    for (key, path) in [
        ("relative_path", there.as_str()),
        ("relative_path", r"\\server\share\parent.vhdx"),
        ("relative_path", r"C:\parent.vhdx"),
        ("absolute_win32_path", there.as_str()),
        ("absolute_win32_path", r"\\server\share\parent.vhdx"),
        ("absolute_win32_path", r"\\?\UNC\server\share\parent.vhdx"),
        ("volume_path", r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\parent.vhdx"),
    ] {
        scene.child(key, path);
        let text = require_refused(scene.open(ParentPolicy::Follow), &scene.child);
        // Only a file of that name beside the child was looked for.
        let beside = scene.inside.join("parent.vhdx").display().to_string();
        assert!(text.contains(&beside) && !text.contains("server"), "{text}");
    }
    // A file of that name beside the child is taken, if it is the one.
    parent(&scene.inside.join("parent.vhdx"));
    assert!(scene.open(ParentPolicy::Follow).unwrap().parent().is_some());
}

#[test]
fn beneath_means_beneath() {
    let scene = Scene::new();
    parent(&scene.outside.join("parent.vhdx"));
    std::fs::create_dir(scene.inside.join("deep")).unwrap();
    parent(&scene.inside.join("deep/parent.vhdx"));
    std::os::unix::fs::symlink("../parent.vhdx", scene.inside.join("link.vhdx")).unwrap();
    std::os::unix::fs::symlink("deep", scene.inside.join("other")).unwrap();
    let mut texts = Vec::new();
    for path in
        [r"..\parent.vhdx", r".\link.vhdx", r".\other\parent.vhdx", r"deep\..\..\parent.vhdx"]
    {
        scene.child("relative_path", path);
        texts.push(require_refused(scene.open(scene.beneath()), &scene.child));
    }
    // Whether there is something outside is not told.
    scene.child("relative_path", r"..\nothing.vhdx");
    texts.push(require_refused(scene.open(scene.beneath()), &scene.child));
    assert!(texts.iter().all(|text| text.contains("no such file")), "{texts:#?}");
    scene.child("relative_path", r".\deep\parent.vhdx");
    assert!(scene.open(scene.beneath()).unwrap().parent().is_some());
    // Those who follow may go where the child says.
    scene.child("relative_path", r"..\parent.vhdx");
    assert!(scene.open(ParentPolicy::Follow).unwrap().parent().is_some());
}

#[test]
fn circles_and_endless_chains_end() {
    let scene = Scene::new();
    child(&scene.child, CHILD, CHILD, "relative_path", r".\child.avhdx");
    let error = scene.open(ParentPolicy::Follow).unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
    let other = Guid::from_u128(0xD);
    child(&scene.child, other, CHILD, "relative_path", r".\other.avhdx");
    child(&scene.inside.join("other.avhdx"), CHILD, other, "relative_path", r".\child.avhdx");
    let error = scene.open(ParentPolicy::Follow).unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");

    let guid = |number: u128| Guid::from_u128(0x100 + number);
    for number in 0..300 {
        let path = scene.inside.join(format!("{number}.avhdx"));
        let next = format!(r".\{}.avhdx", number + 1);
        child(&path, guid(number + 1), guid(number), "relative_path", &next);
    }
    let first = scene.inside.join("0.avhdx");
    let error = OpenOptions::new().parents(ParentPolicy::Follow).open(first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(error.to_string().contains("256"), "{error}");
}

#[test]
fn another_disk_other_sectors_and_a_writer_are_refused_and_told() {
    let scene = Scene::new();
    let path = scene.inside.join("parent.vhdx");
    scene.child("relative_path", r".\parent.vhdx");
    CreateOptions::new(16 * MIB).create(&path).unwrap();
    let text = require_refused(scene.open(ParentPolicy::Follow), &scene.child);
    let found = Image::open(&path).unwrap().headers().current().data_write_guid;
    assert!(text.contains(&found.to_string()), "{text}");
    // At the caller's own word it is taken; other sectors never are.
    let ignoring = OpenOptions::new().parents(ParentPolicy::Follow).ignore_parent_id(true);
    ignoring.open(&scene.child).unwrap().read_at(0, &mut [0; 512]).unwrap();
    std::fs::remove_file(&path).unwrap();
    let four = kit::Image::dynamic(16 * MIB).sectors(4096, 4096).with_data_write_guid(PARENT);
    four.build_file(&path);
    for options in [ignoring, OpenOptions::new().parents(ParentPolicy::Follow)] {
        let text = require_refused(options.open(&scene.child), &scene.child);
        assert!(text.contains("4096"), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    parent(&path);
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let text = require_refused(scene.open(ParentPolicy::Follow), &scene.child);
    assert!(text.contains("in use by"), "{text}");
    drop(writer);
    assert!(scene.open(ParentPolicy::Follow).is_ok());
}

#[test]
fn a_parent_that_is_named_must_be_the_right_one_all_the_same() {
    let scene = Scene::new();
    scene.child("relative_path", r".\gone.vhdx");
    let elsewhere = scene.outside.join("kept under another name.bak");
    parent(&elsewhere);
    let named = OpenOptions::new().parent(&elsewhere);
    named.open(&scene.child).unwrap().read_at(0, &mut [1; 512]).unwrap();
    let wrong = scene.outside.join("wrong.vhdx");
    CreateOptions::new(16 * MIB).create(&wrong).unwrap();
    let text = require_refused(OpenOptions::new().parent(&wrong).open(&scene.child), &scene.child);
    assert!(text.contains("wrong.vhdx"), "{text}");
    // A search names the right one and does not open it.
    let found = scene.outside.join("found.vhdx");
    std::fs::rename(&elsewhere, &found).unwrap();
    let options = OpenOptions::new().parents(ParentPolicy::Follow).search_in(&scene.outside);
    let error = options.open(&scene.child).unwrap_err();
    assert_eq!(error.parent_problem().unwrap().found, [found]);
}
