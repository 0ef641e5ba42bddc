//! Checkpoints, as a person meets them: make, look, read, merge, repair.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{Run, Workdir, json, vhdx};

const MIB: u64 = 1 << 20;

fn write(image: &str, offset: u64, byte: u8, length: usize) {
    // At the user's word: some are parents.
    let mut child = Run::command(&["write", "--force", image, "--offset", &offset.to_string()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&vec![byte; length]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn contents(dir: &Workdir, image: &str) -> Vec<u8> {
    let raw = dir.path("contents.raw");
    vhdx(&["convert", "--force", image, &raw]).succeeds();
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

fn identity(image: &str) -> String {
    json(&vhdx(&["info", "--json", image]).succeeds())["data_write_guid"].to_string()
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// base.vhdx <- one.avhdx <- two.avhdx, each with bytes of its own.
fn chain(dir: &Workdir) -> [String; 3] {
    let [base, one, two] = ["base.vhdx", "one.avhdx", "two.avhdx"].map(|name| dir.path(name));
    vhdx(&["create", &base, "20M", "--block-size", "1M"]).succeeds();
    write(&base, 0, 1, 4 << 20);
    vhdx(&["create", &one, "--parent", &base]).succeeds();
    write(&one, MIB, 2, 4096);
    write(&one, 8 * MIB, 2, 2 << 20);
    vhdx(&["create", &two, "--parent", &one]).succeeds();
    write(&two, MIB + 512, 3, 512);
    write(&two, 16 * MIB, 3, 512);
    [base, one, two]
}

/// Whatever is forced: the disk that others stand on is not replaced by a copy of one of them.
#[test]
fn no_copy_takes_the_place_of_a_parent() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let before = [&base, &one].map(|path| std::fs::read(path).unwrap());
    for command in [
        &["convert", "--force", &two, &base][..],
        &["recover", &two, "--to", &one, "--force"],
        &["recover", &two, "--to", &base, "--force", "--parent", &one],
        &["create", "--force", &base, "20M"],
    ] {
        let refused = vhdx(command).fails_with(1);
        assert!(refused.contains("builds on") || refused.contains("parent"), "{refused}");
    }
    assert!(before == [&base, &one].map(|path| std::fs::read(path).unwrap()));
    // The newest is nobody's parent.
    vhdx(&["create", "--force", &two, "20M"]).succeeds();
}

#[test]
fn a_chain_is_made_looked_at_and_flattened() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let mut expected = vec![0; 20 << 20];
    expected[..4 << 20].fill(1);
    assert!(contents(&dir, &base) == expected);
    expected[1 << 20..(1 << 20) + 4096].fill(2);
    expected[8 << 20..10 << 20].fill(2);
    assert!(contents(&dir, &one) == expected);
    expected[(1 << 20) + 512..(1 << 20) + 1024].fill(3);
    expected[16 << 20..(16 << 20) + 512].fill(3);
    assert!(contents(&dir, &two) == expected);

    let info = json(&vhdx(&["info", "--chain", "--json", &two]).succeeds());
    let paths: Vec<_> =
        info["chain"].as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
    assert_eq!(paths, [&two, &one, &base]);
    assert_eq!(info["parent"]["resolved"], one.as_str());
    assert_eq!(info["parent"]["relative_path"], r".\one.avhdx");
    let map = json(&vhdx(&["map", "--json", &two]).succeeds());
    let at = |offset: u64| {
        let extents = map.as_array().unwrap();
        let found = extents.iter().rev().find(|e| e["start"].as_u64().unwrap() <= offset).unwrap();
        (found["state"].as_str().unwrap().to_owned(), found["depth"].as_u64().unwrap())
    };
    assert_eq!(at(0), ("data".to_owned(), 2));
    assert_eq!(at(MIB), ("data".to_owned(), 1));
    assert_eq!(at(MIB + 512), ("data".to_owned(), 0));
    assert_eq!(at(12 * MIB).0, "not_present");

    let flat = dir.path("flat.vhdx");
    vhdx(&["convert", &two, &flat]).succeeds();
    assert_eq!(json(&vhdx(&["info", "--json", &flat]).succeeds())["type"], "dynamic");
    vhdx(&["compare", &two, &flat]).succeeds();
    for image in [&base, &one, &two, &flat] {
        vhdx(&["check", image]).succeeds();
    }
}

#[test]
fn merging_into_the_parent_deletes_the_child_and_keeps_the_grandchild() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let (before_one, before_two) = (contents(&dir, &one), contents(&dir, &two));
    let report = json(&vhdx(&["merge", "--json", &one]).succeeds());
    assert_eq!(report["target"], base.as_str());
    assert_eq!(report["deleted"], serde_json::json!([one]));
    assert_eq!(report["repointed"], serde_json::json!([two]));
    assert!(!exists(&one));
    assert!(contents(&dir, &base) == before_one);
    assert!(contents(&dir, &two) == before_two);
    vhdx(&["merge", &two]).succeeds();
    assert!(contents(&dir, &base) == before_two);
    assert_eq!(dir.names(), ["base.vhdx"]);
    vhdx(&["check", &base]).succeeds();
}

#[test]
fn a_whole_chain_is_merged_into_its_base_at_once() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let before = contents(&dir, &two);
    let refused = vhdx(&["merge", &two, "--into", &dir.path("none.vhdx")]).fails_with(1);
    assert!(refused.contains("none of the child's parents"), "{refused}");
    vhdx(&["merge", &two, "--into", &base]).succeeds();
    assert!(contents(&dir, &base) == before);
    assert_eq!(dir.names(), ["base.vhdx"]);
    assert!(!exists(&one));
}

/// What is kept shows what it showed, or nothing: never a checkpoint's blocks over another disk.
#[test]
fn what_a_merge_keeps_is_read_as_before_or_not_at_all() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let before = contents(&dir, &two);
    let merge = || vhdx(&["merge", "--json", "--keep", &two, "--into", &base]).succeeds();
    let report = json(&merge());
    assert_eq!(report["orphaned"], serde_json::json!([one]));
    assert_eq!(report["deleted"], serde_json::json!([]));
    assert!(contents(&dir, &base) == before && contents(&dir, &two) == before);
    vhdx(&["read", &one, "--length", "512"]).fails_with(5);
    // The base changes again: whoever was made from it in between must not be read over that.
    let known = identity(&base);
    write(&two, 5 * MIB, 7, 4096);
    let again = contents(&dir, &two);
    merge();
    assert_ne!(identity(&base), known);
    assert!(contents(&dir, &base) == again && contents(&dir, &two) == again);
    vhdx(&["merge", &two]).succeeds();
    assert!(contents(&dir, &base) == again);
    assert_eq!(dir.names(), ["base.vhdx", "one.avhdx"]);
    vhdx(&["check", &base]).succeeds();
}

#[test]
fn other_children_stop_a_merge_and_are_named() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let sibling = dir.path("sibling.avhdx");
    std::fs::create_dir(dir.path("elsewhere")).unwrap();
    vhdx(&["create", &sibling, "--parent", &base]).succeeds();
    let before = std::fs::read(&base).unwrap();
    let refused = vhdx(&["merge", &one]).fails_with(1);
    assert!(refused.contains("sibling.avhdx"), "{refused}");
    assert!(std::fs::read(&base).unwrap() == before, "the parent was changed");
    // One in another folder is found when that is named.
    let moved = dir.path("elsewhere/sibling.avhdx");
    std::fs::rename(&sibling, &moved).unwrap();
    let folder = dir.path("elsewhere");
    let refused = vhdx(&["merge", &one, "--search", &folder]).fails_with(1);
    assert!(refused.contains("sibling.avhdx"), "{refused}");
    // A child of an image between is harmed as well.
    let cousin = dir.path("cousin.avhdx");
    vhdx(&["create", &cousin, "--parent", &one]).succeeds();
    let refused = vhdx(&["merge", &two, "--into", &base]).fails_with(1);
    assert!(refused.contains("cousin.avhdx"), "{refused}");
    let expected = contents(&dir, &two);
    let report = json(&vhdx(&["merge", "--json", "--force", &two, "--into", &base]).succeeds());
    assert_eq!(report["orphaned"], serde_json::json!([cousin]));
    assert_eq!(report["deleted"], serde_json::json!([two]), "{one} is what the cousin needs");
    assert!(contents(&dir, &base) == expected);
    // Rather an error than the bytes of another disk.
    vhdx(&["read", &cousin, "--length", "512"]).fails_with(5);
    vhdx(&["read", &moved, "--length", "512", "--parent", &base]).fails_with(5);
}

#[test]
fn a_lost_parent_is_named_found_and_linked_again() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let expected = contents(&dir, &two);
    std::fs::create_dir(dir.path("moved")).unwrap();
    let new_place = dir.path("moved/disk.vhdx");
    std::fs::rename(&base, &new_place).unwrap();
    let wanted = identity(&new_place).trim_matches('"').to_owned();
    let error = vhdx(&["convert", &two, &dir.path("x.raw")]).fails_with(5);
    for part in [one.as_str(), base.as_str(), "no such file", &wanted, "--search"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    let folder = dir.path("moved");
    let error = vhdx(&["read", &two, "--search", &folder]).fails_with(5);
    let repair = format!("vhdx relink {one} --parent {new_place}");
    assert!(error.contains(&repair), "{error}");
    // Checking tells it, too.
    let checked = json(&vhdx(&["check", "--json", &one]).exits_with(3));
    assert_eq!(checked["findings"][0]["code"], "V33");
    let told = vhdx(&["check", &two, "--search", &folder]).exits_with(3);
    assert!(told.contains(&format!("{repair}\n")), "the link of {one} is wrong: {told}");
    // A copy that lies there by chance is not what was asked for.
    let chance = dir.path("a-copy.vhdx");
    std::fs::copy(&new_place, &chance).unwrap();
    let told = vhdx(&["check", &one]).exits_with(3);
    assert!(told.contains(&format!("vhdx relink {one} --parent {chance}\n")), "{told}");
    let told = vhdx(&["check", &one, "--search", &folder]).exits_with(3);
    assert!(told.contains(&format!("{repair}\n")), "{told}");
    std::fs::remove_file(&chance).unwrap();
    // Looking works without it.
    let info = vhdx(&["info", &two]).succeeds();
    assert!(info.contains("not found"), "{info}");
    let map = json(&vhdx(&["map", "--json", &two]).succeeds());
    assert!(map.as_array().unwrap().iter().any(|e| e["state"] == "parent_missing"));
    let guid = identity(&one);
    vhdx(&["relink", &one, "--parent", &new_place]).succeeds();
    assert_eq!(identity(&one), guid, "its own children would not know it any more");
    assert!(contents(&dir, &two) == expected);
    let info = json(&vhdx(&["info", "--json", &one]).succeeds());
    assert_eq!(info["parent"]["relative_path"], r".\moved\disk.vhdx");
}

#[test]
fn a_parent_that_was_changed_is_refused_until_somebody_takes_the_word_for_it() {
    let dir = Workdir::new();
    let [base, one, _] = chain(&dir);
    write(&base, 0, 9, 512);
    let error = vhdx(&["read", &one, "--length", "512"]).fails_with(5);
    assert!(error.contains("was written to since"), "{error}");
    vhdx(&["read", &one, "--length", "512", "--ignore-parent-id"]).succeeds();
    vhdx(&["relink", &one, "--parent", &base]).fails_with(5);
    let report = json(
        &vhdx(&["relink", "--json", &one, "--parent", &base, "--ignore-parent-id"]).succeeds(),
    );
    assert_eq!(report["other_identity"], true);
    vhdx(&["read", &one, "--length", "512"]).succeeds();
    let circle = vhdx(&["relink", &one, "--parent", &one, "--ignore-parent-id"]).fails_with(5);
    assert!(circle.contains("itself"), "{circle}");
    vhdx(&["relink", &base, "--parent", &one]).fails_with(1);
}

#[test]
fn what_a_disk_tells_its_guest_can_be_changed() {
    let dir = Workdir::new();
    let [base, one, two] = chain(&dir);
    let refused = vhdx(&["set", &base, "--new-disk-id"]).fails_with(1);
    assert!(refused.contains("one.avhdx"), "{refused}");
    let expected = contents(&dir, &two);
    let id = "11223344-5566-4788-99aa-bbccddeeff00";
    let info = || json(&vhdx(&["info", "--json", &two]).succeeds());
    let before = info();
    vhdx(&["set", &two, "--disk-id", id, "--physical-sector-size", "512"]).succeeds();
    assert_eq!(info()["virtual_disk_id"], id);
    assert_eq!(info()["physical_sector_size"], 512);
    assert_ne!(info()["data_write_guid"], before["data_write_guid"]);
    vhdx(&["set", &two, "--physical-sector-size", "1024"]).fails_with(1);
    vhdx(&["set", &two]).fails_with(2);
    assert!(contents(&dir, &two) == expected);
    // They go with the disk when it is merged.
    vhdx(&["merge", &two]).succeeds();
    assert_eq!(json(&vhdx(&["info", "--json", &one]).succeeds())["virtual_disk_id"], id);
    vhdx(&["check", &one]).succeeds();
}

#[test]
fn a_child_grows_and_shrinks_without_showing_what_its_parent_has_there() {
    let dir = Workdir::new();
    let base = dir.path("base.vhdx");
    vhdx(&["create", &base, "20M", "--block-size", "1M"]).succeeds();
    write(&base, 0, 7, 20 << 20);
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    vhdx(&["resize", &child, "9M"]).fails_with(1);
    vhdx(&["resize", "--force", &child, "9M"]).succeeds();
    vhdx(&["resize", &child, "24M"]).succeeds();
    let bytes = contents(&dir, &child);
    assert_eq!(bytes.len(), 24 << 20);
    assert!(bytes[..9 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[9 << 20..].iter().all(|byte| *byte == 0));
    vhdx(&["merge", &child]).succeeds();
    assert!(contents(&dir, &base) == bytes);
}
