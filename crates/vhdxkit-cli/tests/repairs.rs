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

fn check_text(dir: &Workdir, bytes: &[u8]) -> String {
    let image = dir.path("disk.vhdx");
    std::fs::write(&image, bytes).unwrap();
    vhdx(&["check", &image]).exits_with(3)
}

/// Which of all is the first thing to type decides what somebody loses.
#[test]
fn a_repair_that_would_do_nothing_is_not_offered_and_recover_comes_first() {
    let dir = Workdir::new();
    let text = check_text(&dir, &fault("a block lies behind the end of the file").bytes);
    let recover = text.find("vhdx recover").expect(&text);
    let repair = text.find("--repair --dry-run --allow-data-loss").expect(&text);
    assert!(recover < repair, "{text}");
    assert!(!text.contains("--repair --dry-run\n"), "{text}");
    assert!(text.contains("the file was not changed") && text.contains("but block "), "{text}");
}

/// A repair that has written says so, and does not tell anybody to keep a copy first.
#[test]
fn a_repair_in_part_does_not_say_that_the_file_was_not_changed() {
    let dir = Workdir::new();
    let mut bytes = fault("a block lies behind the end of the file").bytes;
    // State 5 of the draft, which is mended without a word.
    bytes[(3 << 20) + 8 * 7..][..8].copy_from_slice(&5u64.to_le_bytes());
    let image = dir.path("disk.vhdx");
    std::fs::write(&image, &bytes).unwrap();
    let text = vhdx(&["check", &image, "--repair"]).exits_with(3);
    assert!(text.contains("repaired in part") && text.contains("--undo"), "{text}");
    for wrong in ["was not changed", "a backup", "--repair --dry-run\n"] {
        assert!(!text.contains(wrong), "{wrong}:\n{text}");
    }
}

#[test]
fn an_overwritten_table_is_called_one_and_its_blocks_are_named_in_ranges() {
    let dir = Workdir::new();
    let mut bytes = vhdxkit_testkit::faults::sound().build_vec();
    for (number, byte) in bytes[(3 << 20) + 8..(3 << 20) + 8 * 9].iter_mut().enumerate() {
        *byte = (number as u8).wrapping_mul(73) ^ 0xa5;
    }
    let text = check_text(&dir, &bytes);
    assert!(text.contains("the block table was overwritten"), "{text}");
    assert!(!text.contains("end of the file is missing"), "{text}");
    assert!(text.contains("but blocks 1-8"), "{text}");
}

/// Blocks behind the end, one after another, are one line; JSON has each.
#[test]
fn neighbours_behind_the_end_are_one_line() {
    let dir = Workdir::new();
    let mut bytes = vhdxkit_testkit::faults::sound().build_vec();
    let end = bytes.len() as u64;
    for block in 6..12u64 {
        let at = (3 << 20) + 8 * block as usize;
        bytes[at..at + 8].copy_from_slice(&((end + (block << 20)) | 6).to_le_bytes());
    }
    let text = check_text(&dir, &bytes);
    let lines = text.lines().filter(|line| line.contains("V29")).count();
    assert!(lines == 1 && text.contains("blocks 6 to 11 lie at"), "{text}");
    let told = json(&vhdx(&["check", "--json", &dir.path("disk.vhdx")]).exits_with(3));
    let each = told["findings"].as_array().unwrap().iter().filter(|found| found["code"] == "V29");
    assert_eq!(each.count(), 6);
    assert_eq!(told["doubtful_blocks"][0]["count"], 6);
}

/// A program that reads a dry run must not take a list that was cut for the whole, nor miss the blocks in doubt.
#[test]
fn a_dry_run_counts_what_it_does_not_list() {
    let dir = Workdir::new();
    let mut bytes = vhdxkit_testkit::faults::sound().build_vec();
    let end = bytes.len() as u64;
    for block in 6..12u64 {
        let at = (3 << 20) + 8 * block as usize;
        bytes[at..at + 8].copy_from_slice(&((end + (block << 20)) | 6).to_le_bytes());
    }
    // Reserved bits of more entries than are listed.
    let image = dir.path("many.vhdx");
    vhdx(&["create", &image, "256M", "--block-size", "1M"]).succeeds();
    let mut many = std::fs::read(&image).unwrap();
    for entry in 0..200 {
        many[(3 << 20) + 8 * entry + 1] = 0x10;
    }
    std::fs::write(&image, &many).unwrap();
    let disk = dir.path("disk.vhdx");
    std::fs::write(&disk, &bytes).unwrap();
    for image in [&image, &disk] {
        let checked = json(&vhdx(&["check", "--json", image]).exits_with(3));
        let dry = json(&vhdx(&["check", "--json", image, "--repair", "--dry-run"]).exits_with(3));
        for member in ["result", "findings", "left_out", "doubtful_blocks"] {
            assert_eq!(dry[member], checked[member], "{member}");
        }
        let expected = if image == &disk { 0 } else { 1 };
        assert_eq!(dry["left_out"].as_object().unwrap().len(), expected, "{dry}");
    }
}

/// "--repair: extend the file" below a block that lies gigabytes behind its end was a promise that the repair did not
/// keep: below a finding stands what a repair of this file would do, or on which word.
#[test]
fn below_a_finding_stands_what_a_repair_of_this_file_does() {
    let dir = Workdir::new();
    let text = check_text(&dir, &fault("a block lies behind the end of the file").bytes);
    assert!(text.contains(" --repair --allow-data-loss: "), "{text}");
    assert!(!text.contains(" --repair: "), "{text}");
    // Where it does mend, that is said as before.
    let text = check_text(&dir, &fault("a block in state 5").bytes);
    assert!(text.contains(" --repair: "), "{text}");
    let text = check_text(&dir, &fault("the file ends within a block").bytes);
    assert!(text.contains(" --repair: "), "{text}");
}

/// What is no VHDX is called by its name, whatever its file is called, and nobody is told to repair it.
#[test]
fn a_file_of_another_kind_is_named() {
    let dir = Workdir::new();
    let vmdk = [&b"KDMV"[..], &[0; 4096]].concat();
    let mut vdi = vec![0; 4096];
    vdi[64..68].copy_from_slice(&[0x7F, 0x10, 0xDA, 0xBE]);
    let vhd = [&[0; 4096][..], b"conectix", &[0; 504]].concat();
    let qcow2 = [&b"QFI\xfb"[..], &[0; 4096]].concat();
    for (bytes, words) in [
        (Vec::new(), &["the file is empty"][..]),
        (b"just some text\n".to_vec(), &["no disk image that is known"]),
        (qcow2, &["qcow2 image", "vhdx convert", "--from qcow2"]),
        (vhd, &["VHD image that does not open"]),
        (vmdk, &["VMDK image"]),
        (vdi, &["VDI image"]),
    ] {
        let text = check_text(&dir, &bytes);
        for word in words {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        assert!(!text.contains("--repair"), "{text}");
        let image = dir.path("disk.vhdx");
        vhdx(&["check", &image, "--repair"]).exits_with(3);
        assert!(std::fs::read(&image).unwrap() == bytes);
    }
    // The beginning of a VHDX was overwritten: that is one still.
    let mut bytes = vhdxkit_testkit::faults::sound().build_vec();
    bytes[..1 << 20].fill(0xee);
    assert!(check_text(&dir, &bytes).contains("vhdx recover"));
}

/// A file that somebody has sent can be named so that a terminal clears its screen, or shows another name. The name is
/// made visible, and the command that is printed still takes the file when it is typed.
#[test]
#[cfg(target_os = "linux")]
fn a_name_that_a_terminal_would_obey_is_made_visible() {
    let dir = Workdir::new();
    let image = dir.path("d'\u{1b}[2J\n\u{202e}k.vhdx");
    let bytes = fault("a block in state 5").bytes;
    std::fs::write(&image, &bytes).unwrap();
    let words = ["--repair", "--dry-run"];
    let mut told = vhdx(&["check", &image]).exits_with(3);
    told += &vhdx(&["check", &image, words[0], words[1]]).exits_with(3);
    let done = vhdx(&["check", &image, "--repair"]).succeeds();
    told += &done;
    told += &vhdx(&["check", &format!("{image}.none")]).fails_with(1);
    told += &vhdx(&["info", &dir.path("\u{1b}.vhdx")]).fails_with(1);
    for hidden in ['\u{1b}', '\u{202e}'] {
        assert!(!told.contains(hidden), "{told:?}");
    }
    assert!(told.contains(r"d'\u{1b}[2J\u{a}\u{202e}k.vhdx: repaired"), "{told}");
    let Some((_, undo)) = done.split_once("to take it back: vhdx ") else { panic!("{done}") };
    let typed = format!("{} {}", env!("CARGO_BIN_EXE_vhdx"), undo.lines().next().unwrap());
    let Some(run) = peer("bash", &["-c", &typed]) else { return };
    run.succeeds();
    assert!(std::fs::read(&image).unwrap() == bytes);
}

/// `-disk.vhdx` behind a command would be taken for options.
#[test]
fn a_name_that_begins_with_a_dash_is_printed_as_a_path() {
    let dir = Workdir::new();
    let image = dir.path("-disk.vhdx");
    std::fs::write(&image, fault("a block lies behind the end of the file").bytes).unwrap();
    let folder = std::path::Path::new(&image).parent().unwrap();
    let said = |words: &[&str]| {
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_vhdx"))
            .args(words)
            .current_dir(folder)
            .output()
            .unwrap();
        String::from_utf8(run.stdout).unwrap()
    };
    let text = said(&["check", "--", "-disk.vhdx"]);
    for command in
        ["cp --sparse=always ./-disk.vhdx", "vhdx recover ./-disk.vhdx", "check ./-disk.vhdx"]
    {
        assert!(text.contains(command), "{command}:\n{text}");
    }
    let text = said(&["check", "--repair", "--allow-data-loss", "--", "-disk.vhdx"]);
    assert!(text.contains("vhdx check ./-disk.vhdx --undo ./-disk.vhdx.undo-"), "{text}");
}
