//! `vhdx check --repair` as a person types it: what it says first, what it does, and how it is taken back.

mod common;

use common::{Workdir, json, peer, vhdx};
use vhdxkit::defect::Severity;
use vhdxkit_testkit::faults::{Fault, repairable};

fn write(dir: &Workdir, fault: &Fault) -> String {
    let image = dir.path("disk.vhdx");
    std::fs::write(&image, &fault.bytes).unwrap();
    image
}

fn fault(name: &str) -> Fault {
    repairable().into_iter().find(|fault| fault.name == name).expect(name)
}

fn undo_file(dir: &Workdir) -> String {
    let names = dir.names();
    let name = names.iter().find(|name| name.starts_with("disk.vhdx.undo-")).expect("an undo file");
    dir.path(name)
}

/// Of each fault: the dry run changes nothing and tells what would be done; the repair does it, an undo file
/// beside the image; the check is clean afterwards; the undo brings every byte back.
#[test]
fn a_repair_is_told_done_and_taken_back() {
    for fault in repairable() {
        let dir = Workdir::new();
        let image = write(&dir, &fault);
        let mut words = vec!["check", "--json", &image, "--repair", "--parents", "deny"];
        let header = fault.header.map(|copy| copy.to_string());
        if fault.discard_log {
            words.push("--discard-log");
        }
        if fault.allow_data_loss {
            words.push("--allow-data-loss");
        }
        if let Some(header) = &header {
            words.extend(["--use-header", header]);
        }
        let dry: Vec<&str> = words.iter().copied().chain(["--dry-run"]).collect();
        let before = dir.fingerprint(&image);
        let severity = severity_of(&fault);
        let told = json(&vhdx(&dry).exits_with(if severity > Severity::Info { 3 } else { 0 }));
        assert!(dir.fingerprint(&image) == before, "{}: a dry run has written", fault.name);
        assert_eq!(dir.names(), ["disk.vhdx"]);
        assert_eq!((&told["dry_run"], &told["changed"]), (&true.into(), &false.into()));
        assert_eq!(told["repaired"], serde_json::Value::Array(vec![]));
        let steps = told["steps"].as_array().unwrap();
        assert!(steps.iter().any(|step| step["code"] == fault.code), "{}: {told}", fault.name);

        let done = json(&vhdx(&words).succeeds());
        assert!(done["repaired"].as_array().unwrap().iter().any(|code| *code == *fault.code));
        assert_eq!(done["result"], "ok");
        let findings = done["findings"].as_array().unwrap();
        let bad = findings.iter().find(|finding| finding["severity"] != "info");
        assert_eq!(bad, None, "{}", fault.name);
        if !fault.child
            && let Some(run) = peer("qemu-img", &["check", "-q", "-f", "vhdx", &image])
        {
            run.succeeds();
        }
        let undo = undo_file(&dir);
        assert_eq!(done["undo_file"], *undo);
        vhdx(&["check", &image, "--undo", &undo]).succeeds();
        assert!(std::fs::read(&image).unwrap() == fault.bytes, "{}: not what it was", fault.name);
    }
}

fn severity_of(fault: &Fault) -> Severity {
    let storage = std::sync::Arc::new(vhdxkit::storage::MemoryStorage::new(fault.bytes.clone()));
    let findings = vhdxkit::ops::check::check(storage, &mut ()).unwrap();
    findings.list().iter().map(vhdxkit::defect::Defect::severity).max().unwrap()
}

/// What happened, what is safe, what to type: at the end, in lines that a terminal shows whole.
#[test]
fn a_frightened_person_is_told_what_to_type() {
    let dir = Workdir::new();
    for (name, parts) in [
        ("a log without an entry", &["--repair", "--discard-log", "recover"][..]),
        ("the file ends within a block", &["cut off", "--repair --dry-run", "recover"]),
        ("header copy 1 is damaged", &["every byte of the disk", "--repair --dry-run"]),
    ] {
        let image = write(&dir, &fault(name));
        let text = vhdx(&["check", &image]).exits_with(3);
        for part in ["What happened", "What is safe", "What to type", "cp "].iter().chain(parts) {
            assert!(text.contains(part), "{name}: {part} is missing:\n{text}");
        }
        assert!(text.lines().count() < 24, "{text}");
    }
}

#[test]
fn without_the_word_that_it_takes_nothing_is_done() {
    let dir = Workdir::new();
    for (name, word) in [
        ("a log without an entry", "--discard-log"),
        ("a block lies behind the end of the file", "--allow-data-loss"),
        ("both headers carry the same number and differ", "--use-header"),
    ] {
        let fault = fault(name);
        let image = write(&dir, &fault);
        let text = vhdx(&["check", &image, "--repair"]).exits_with(3);
        assert!(text.contains(word) && text.contains("nothing was changed"), "{text}");
        assert!(std::fs::read(&image).unwrap() == fault.bytes);
        assert_eq!(dir.names(), ["disk.vhdx"]);
    }
}

#[test]
fn without_an_undo_file_there_is_none() {
    let dir = Workdir::new();
    let image = write(&dir, &fault("a block in state 5"));
    vhdx(&["check", &image, "--repair", "--no-undo"]).succeeds();
    assert_eq!(dir.names(), ["disk.vhdx"]);
    // A good image is left alone.
    let before = dir.fingerprint(&image);
    vhdx(&["check", &image, "--repair"]).succeeds();
    assert!(dir.fingerprint(&image) == before);
    assert_eq!(dir.names(), ["disk.vhdx"]);
}

#[test]
fn an_undo_file_that_is_not_this_images_is_refused() {
    let dir = Workdir::new();
    let image = write(&dir, &fault("a block in state 5"));
    vhdx(&["check", &image, "--repair"]).succeeds();
    let undo = undo_file(&dir);
    let other = dir.copy("clean.vhdx");
    let before = dir.fingerprint(&other);
    let text = vhdx(&["check", &other, "--undo", &undo]).fails_with(1);
    assert!(text.contains("disk.vhdx"), "{text}");
    assert!(dir.fingerprint(&other) == before);
    let no_undo = dir.copy("crashed.vhdx");
    vhdx(&["check", &other, "--undo", &no_undo]).fails_with(1);
    vhdx(&["check", &image, "--undo", &undo, "--repair"]).fails_with(2);
    vhdx(&["check", &image, "--dry-run"]).fails_with(2);
}

/// A child knows its parent by an identity that goes with what a repair gives up: that is said.
#[test]
fn children_of_a_disk_that_loses_data_are_named() {
    let dir = Workdir::new();
    let image = dir.path("disk.vhdx");
    vhdx(&["create", &image, "16M", "--block-size", "1M"]).succeeds();
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &image]).succeeds();
    let mut bytes = std::fs::read(&image).unwrap();
    let bat = 3 << 20;
    bytes[bat..bat + 8].copy_from_slice(&6u64.to_le_bytes());
    std::fs::write(&image, bytes).unwrap();
    let (_, warned) =
        vhdx(&["check", &image, "--repair", "--allow-data-loss"]).succeeds_with_errors();
    assert!(warned.contains("child.avhdx") && warned.contains("relink"), "{warned}");
}
