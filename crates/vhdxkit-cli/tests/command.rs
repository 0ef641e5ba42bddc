//! The command's contract: what it prints, how it exits, what it leaves behind.
//!
//! Every test runs the built binary on images from `testdata/`, as a person would.

mod common;

use common::{Run, Workdir, json, vhdx};
use serde_json::Value;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn info_tells_the_keys_of_the_contract_and_leaves_the_image_alone() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let before = dir.fingerprint(&image);
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    for key in [
        "path",
        "type",
        "virtual_size",
        "file_size",
        "block_size",
        "logical_sector_size",
        "physical_sector_size",
        "creator",
        "virtual_disk_id",
        "file_write_guid",
        "data_write_guid",
        "blocks",
        "log",
        "parent",
    ] {
        assert!(keys(&info).contains(&key), "{key} is missing");
    }
    assert_eq!(keys(&info["log"]), ["state", "guid", "offset", "length", "active_entries"]);
    assert_eq!(info["log"]["state"], "dirty");
    assert_eq!(info["type"], "dynamic");
    assert_eq!(info["parent"], Value::Null);
    let text = vhdx(&["info", &image]).succeeds();
    assert!(text.contains("dirty"), "{text}");
    assert_eq!(dir.fingerprint(&image), before, "reading changed the image");
}

#[test]
fn a_crashed_image_converts_in_memory_and_in_place_to_the_same_bytes() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let before = dir.fingerprint(&image);
    let first = dir.path("in-memory.raw");
    vhdx(&["convert", &image, &first]).succeeds();
    assert_eq!(dir.fingerprint(&image), before, "convert changed the image");

    let replayed = json(&vhdx(&["log", "replay", "--json", &image]).succeeds());
    assert_eq!(replayed["changed"], true);
    assert!(replayed["bytes_after"].as_u64() >= replayed["bytes_before"].as_u64());
    let clean = dir.fingerprint(&image);
    let again = json(&vhdx(&["log", "replay", "--json", &image]).succeeds());
    assert_eq!(again["changed"], false);
    assert_eq!(dir.fingerprint(&image), clean, "a second replay changed the image");

    let second = dir.path("in-place.raw");
    vhdx(&["convert", &image, &second]).succeeds();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!(info["log"]["state"], "clean");
}

/// Hyper-V's change tracking does not see what we write: whoever has it must be told.
#[test]
fn writing_beside_change_tracking_files_warns() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let tracking = format!("{image}.rct");
    std::fs::write(&tracking, "").unwrap();
    let output = Run::command(&["log", "replay", "--json", &image]).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(&tracking));
    let report = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(report["change_tracking"], Value::Array(vec![tracking.clone().into()]));
    // A dry run says the same of what would follow.
    let dry = json(&vhdx(&["compact", "--json", "-n", &image]).succeeds());
    assert_eq!(dry["change_tracking"], Value::Array(vec![tracking.into()]));
}

#[test]
fn a_stream_carries_the_same_bytes_as_a_file() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let raw = dir.path("disk.raw");
    vhdx(&["convert", &image, &raw]).succeeds();
    let streamed = vhdx(&["convert", &image, "-"]).succeeds_with_bytes();
    assert_eq!(streamed, std::fs::read(&raw).unwrap());
    let read = vhdx(&["read", &image]).succeeds_with_bytes();
    assert_eq!(read, streamed);
    let part = vhdx(&["read", &image, "--offset", "1M", "--length", "1024"]).succeeds_with_bytes();
    assert_eq!(part, streamed[1 << 20..][..1024]);
}

#[test]
fn an_existing_target_is_refused_without_force_and_kept_when_the_work_fails() {
    let dir = Workdir::new();
    let (image, child) = (dir.copy("clean.vhdx"), dir.copy("child.vhdx"));
    let raw = dir.path("disk.raw");
    std::fs::write(&raw, "precious").unwrap();
    let refused = vhdx(&["convert", &image, &raw]).fails_with(1);
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(std::fs::read(&raw).unwrap(), b"precious");

    // A child cannot be read without its parent: the old file stays, nothing half-made does.
    vhdx(&["convert", "--force", "--parents", "deny", &child, &raw]).fails_with(5);
    assert_eq!(std::fs::read(&raw).unwrap(), b"precious");
    assert_eq!(dir.names(), ["child.vhdx", "clean.vhdx", "disk.raw"]);

    vhdx(&["convert", "--force", &image, &raw]).succeeds();
    assert_ne!(std::fs::read(&raw).unwrap(), b"precious");
    let same = vhdx(&["convert", "--force", "--to", "raw", &image, &image]).fails_with(1);
    assert!(same.contains("same file"), "{same}");
}

#[test]
fn a_failed_convert_leaves_nothing_behind() {
    let dir = Workdir::new();
    let child = dir.copy("child.vhdx");
    let text = vhdx(&["convert", &child, &dir.path("x.raw")]).fails_with(5);
    assert!(text.contains("parent"), "{text}");
    assert_eq!(dir.names(), ["child.vhdx"]);
    let into = dir.path("no-such-folder/x.raw");
    vhdx(&["convert", &dir.copy("clean.vhdx"), &into]).fails_with(1);
}

#[test]
fn a_child_is_described_and_mapped_without_its_parent() {
    let dir = Workdir::new();
    let child = dir.copy("child.vhdx");
    let info = json(&vhdx(&["info", "--json", &child]).succeeds());
    assert_eq!(info["type"], "differencing");
    for key in ["linkage", "relative_path", "absolute_win32_path", "volume_path", "resolved"] {
        assert!(keys(&info["parent"]).contains(&key), "{key} is missing");
    }
    let map = json(&vhdx(&["map", "--json", &child]).succeeds());
    let map = map.as_array().unwrap();
    let mut at = 0;
    for extent in map {
        assert_eq!(keys(extent), ["start", "length", "state", "depth", "file_offset"]);
        assert_eq!(extent["start"], at, "the map has a gap");
        at += extent["length"].as_u64().unwrap();
    }
    assert_eq!(info["virtual_size"], at);
    let states: Vec<&str> = map.iter().filter_map(|extent| extent["state"].as_str()).collect();
    assert!(states.contains(&"data") && states.contains(&"parent_missing"), "{states:?}");
    vhdx(&["read", &child]).fails_with(5);
}

#[test]
fn compare_works_both_ways_round_and_names_the_first_difference() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let raw = dir.path("disk.raw");
    vhdx(&["convert", &image, &raw]).succeeds();
    vhdx(&["compare", &image, &raw]).succeeds();
    vhdx(&["compare", &raw, &image]).succeeds();
    let mut bytes = std::fs::read(&raw).unwrap();
    bytes[3_000_001] ^= 1;
    std::fs::write(&raw, &bytes).unwrap();
    for pair in [[&image, &raw], [&raw, &image]] {
        let found = vhdx(&["compare", "--json", pair[0], pair[1]]).exits_with(3);
        assert_eq!(json(&found)["first_difference"], 3_000_001);
    }
    bytes[3_000_001] ^= 1;
    bytes.truncate(bytes.len() - 512);
    std::fs::write(&raw, &bytes).unwrap();
    let found = json(&vhdx(&["compare", "--json", &image, &raw]).exits_with(3));
    assert_eq!(
        (&found["identical"], &found["first_difference"]),
        (&Value::Bool(false), &Value::Null)
    );
}

#[test]
fn check_finds_nothing_in_good_images_and_exits_with_3_for_bad_ones() {
    let dir = Workdir::new();
    for name in ["clean.vhdx", "crashed.vhdx", "sectors-4k.vhdx", "child.vhdx"] {
        let report = json(&vhdx(&["check", "--json", &dir.copy(name)]).succeeds());
        assert_eq!(report["result"], "ok", "{name}");
    }
    let image = dir.copy("clean.vhdx");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[0x1_0100] ^= 1; // the first header copy
    std::fs::write(&image, &bytes).unwrap();
    let report = json(&vhdx(&["check", "--json", &image]).exits_with(3));
    assert_eq!(report["result"], "problems");
    let finding = &report["findings"][0];
    assert_eq!(
        keys(finding),
        ["code", "severity", "structure", "offset", "message", "repair", "path"]
    );
    assert_eq!((&finding["code"], &finding["severity"]), (&"V3".into(), &"warning".into()));
    assert_eq!(report["repaired"], Value::Array(vec![]));

    // What cannot be opened at all is still reported.
    std::fs::write(&image, vec![0; 2 << 20]).unwrap();
    let report = json(&vhdx(&["check", "--json", &image]).exits_with(3));
    assert_eq!(report["findings"][0]["code"], "V1");
    vhdx(&["check", &dir.path("not-there.vhdx")]).fails_with(1);
}

#[test]
fn the_logs_story_names_entries_blocks_and_what_to_type() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let story = vhdx(&["log", "show", &image]).succeeds();
    for part in ["TO BE APPLIED", "TORN", "earlier session", "fully present at", "vhdx log replay"]
    {
        assert!(story.contains(part), "{part} is missing:\n{story}");
    }
    let log = json(&vhdx(&["log", "show", "--json", &image]).succeeds());
    assert_eq!(keys(&log), ["state", "guid", "length", "active", "entries"]);
    assert_eq!(keys(&log["active"]), ["first_sequence", "last_sequence", "tail_offset", "entries"]);
    let entries = log["entries"].as_array().unwrap();
    let status = |name: &str| entries.iter().filter(|entry| entry["status"] == name).count() as u64;
    assert_eq!(Some(status("active")), log["active"]["entries"].as_u64());
    assert!(status("torn") > 0 && status("foreign") > 0 && status("superseded") > 0);
    let change = entries
        .iter()
        .filter(|entry| entry["status"] == "active")
        .flat_map(|entry| entry["descriptors"].as_array().unwrap())
        .find(|descriptor| descriptor["target"] == "bat")
        .expect("an active entry changes the BAT");
    assert_eq!(keys(&change["changes"][0]), ["bat_index", "block", "before", "after"]);
    assert_eq!(keys(&change["changes"][0]["after"]), ["state", "file_offset"]);
}

#[test]
fn an_entry_is_extracted_raw_or_as_the_sectors_it_writes() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let log = json(&vhdx(&["log", "show", "--json", &image]).succeeds());
    let sequence = log["active"]["last_sequence"].to_string();
    let entry = vhdx(&["log", "extract", &image, "--entry", &sequence]).succeeds_with_bytes();
    assert_eq!(&entry[..4], b"loge");
    let out = dir.path("entry.bin");
    vhdx(&["log", "extract", &image, "--entry", &sequence, "-o", &out]).succeeds();
    assert_eq!(std::fs::read(&out).unwrap(), entry);
    vhdx(&["log", "extract", &image, "--entry", &sequence, "-o", &out]).fails_with(1);
    let arguments = ["log", "extract", &image, "--entry", &sequence, "--sectors"];
    assert_eq!(vhdx(&arguments).succeeds_with_bytes().len() % 4096, 0);
    vhdx(&["log", "extract", &image, "--entry", "424242"]).fails_with(1);
}

/// An entry was written over whatever had the name, in place: the image itself, a disk on which others build, one that
/// a guest has open. It is a file like any other that is made here.
#[test]
fn an_extracted_entry_replaces_nothing_that_is_needed() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let log = json(&vhdx(&["log", "show", "--json", &image]).succeeds());
    let sequence = log["active"]["last_sequence"].to_string();
    let extract =
        |out: &str| vhdx(&["log", "extract", &image, "--entry", &sequence, "--force", "-o", out]);
    let [base, child, held] = ["base.vhdx", "child.avhdx", "held.vhdx"].map(|name| dir.path(name));
    vhdx(&["create", &base, "8M"]).succeeds();
    vhdx(&["create", &child, "--parent", &base]).succeeds();
    std::fs::copy(&child, &held).unwrap();
    let guest =
        vhdxkit::storage::FileStorage::open(held.as_ref(), vhdxkit::storage::OpenMode::ReadWrite);
    let guest = guest.unwrap();
    for (out, status, why) in
        [(&image, 1, "same file"), (&base, 1, "builds on"), (&held, 4, "in use")]
    {
        let before = dir.fingerprint(out);
        let refused = extract(out).fails_with(status);
        assert!(refused.contains(why), "{refused}");
        assert!(dir.fingerprint(out) == before, "{out} was written to");
    }
    drop(guest);
    // What is replaced is the name; whoever else has the old file keeps it.
    let (old, out) = (dir.path("old.bin"), dir.path("entry.bin"));
    std::fs::write(&old, "precious").unwrap();
    std::fs::hard_link(&old, &out).unwrap();
    extract(&out).succeeds();
    assert_eq!(std::fs::read(&old).unwrap(), b"precious");
    assert_eq!(&std::fs::read(&out).unwrap()[..4], b"loge");
}

#[test]
fn every_structure_can_be_dumped() {
    let dir = Workdir::new();
    for name in ["crashed.vhdx", "child.vhdx"] {
        let image = dir.copy(name);
        for what in ["header", "regions", "metadata", "bat", "bitmap"] {
            vhdx(&["dump", &image, what]).succeeds();
            json(&vhdx(&["dump", "--json", &image, what]).succeeds());
        }
    }
}

#[test]
fn failures_say_what_where_and_what_was_not_touched() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[0x3_0000..0x3_0004].copy_from_slice(b"xxxx");
    bytes[0x4_0000..0x4_0004].copy_from_slice(b"yyyy");
    std::fs::write(&image, &bytes).unwrap();
    let text = vhdx(&["convert", &image, &dir.path("x.raw")]).fails_with(1);
    for part in ["region table", "0x30000", "not touched", "what to do", "vhdx check"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let text = vhdx(&["info", &dir.path("not-there.vhdx")]).fails_with(1);
    assert!(text.contains("not-there.vhdx"), "{text}");
    vhdx(&["read", &dir.copy("crashed.vhdx"), "--offset", "1"]).fails_with(1);
    vhdx(&["read", &dir.copy("crashed.vhdx"), "--offset", "1T"]).fails_with(1);
}

/// "The disk is whole, and compacting again goes on" about a file that is not even there frightens people, and "an
/// undo file restores it" sends them looking for one. As long as nothing has begun, that is what is said.
#[test]
fn what_has_not_begun_is_not_said_to_be_half_done() {
    let dir = Workdir::new();
    let missing = dir.path("not-there.vhdx");
    for command in [
        &["compact", &missing][..],
        &["compact", "-n", &missing],
        &["resize", &missing, "1G"],
        &["write", &missing],
        &["log", "replay", &missing],
        &["check", &missing, "--repair"],
        &["recover", &missing],
        &["recover", &missing, "--to", &dir.path("new.vhdx"), "--orphans", &dir.path("o")],
    ] {
        let text = vhdx(command).fails_with(1);
        let untouched = text.lines().find(|line| line.contains("not touched")).expect(&text);
        assert!(untouched.contains("; nothing was"), "{command:?}: {text}");
        for word in ["again", "undo", "unfinished", "old size"] {
            assert!(!untouched.contains(word), "{command:?}: {text}");
        }
    }
    // Nothing was to be changed by a check, so it need not say so; of a repair one wants to know.
    let letter = dir.path("letter");
    std::fs::write(&letter, "hello").unwrap();
    let text = vhdx(&["check", &letter]).exits_with(3);
    assert!(!text.contains("nothing was changed"), "{text}");
    let text = vhdx(&["check", &letter, "--repair"]).exits_with(3);
    assert!(text.contains("nothing was changed"), "{text}");
}

/// An image whose log is replayed on the way has changed, though there was nothing to do otherwise.
#[test]
fn a_log_that_was_replayed_is_not_called_no_change() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let before = std::fs::read(&image).unwrap();
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    let size = info["virtual_size"].to_string();
    let again = || std::fs::write(&image, &before).unwrap();
    let text = vhdx(&["resize", &image, &size]).succeeds();
    assert!(text.contains("only its log was replayed"), "{text}");
    assert!(std::fs::read(&image).unwrap() != before);
    let text = vhdx(&["resize", &image, &size]).succeeds();
    assert!(text.contains("the file was not changed"), "{text}");
    again();
    let told = json(&vhdx(&["resize", "--json", &image, &size]).succeeds());
    assert_eq!(told["changed"], true, "{told}");
    // A disk that has been compacted gives nothing back, and has nothing to replay.
    vhdx(&["compact", &image]).succeeds();
    let told = json(&vhdx(&["compact", "--json", &image]).succeeds());
    assert_eq!(told["changed"], false, "{told}");
}

/// A log that cannot be replayed: reading takes the user's word, and says so.
#[test]
fn an_image_with_an_invalid_log_is_read_only_on_the_users_word() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[1 << 20..2 << 20].fill(0); // the whole ring, as a QEMU that was killed early leaves it
    std::fs::write(&image, &bytes).unwrap();
    let before = dir.fingerprint(&image);
    let raw = dir.path("disk.raw");
    let text = vhdx(&["convert", &image, &raw]).fails_with(1);
    assert!(text.contains("--without-log") && text.contains("no entry of it"), "{text}");
    assert_eq!(json(&vhdx(&["info", "--json", &image]).succeeds())["log"]["state"], "invalid");
    vhdx(&["log", "replay", &image]).fails_with(1);

    let output = Run::command(&["convert", "--without-log", &image, &raw]).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("read without its log"));
    vhdx(&["compare", "--without-log", &image, &raw]).succeeds();
    assert_eq!(dir.fingerprint(&image), before, "the image was changed");

    // Where the log can be replayed the option changes nothing.
    let crashed = dir.copy("crashed.vhdx");
    let read = |arguments: &[&str]| vhdx(arguments).succeeds_with_bytes();
    assert_eq!(read(&["read", "--without-log", &crashed]), read(&["read", &crashed]));
}

/// A script that tells wrong usage (2) from a disk that failed (1) must be able to rely on it, whoever finds the
/// mistake: the parser, or the command that puts two options together. The files are never looked at.
#[test]
fn wrong_usage_exits_with_2() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let before = dir.fingerprint(&image);
    for arguments in [
        &["frobnicate"][..],
        &["info"],
        &["read", "x", "--offset", "1.5Q"],
        &["resize", &image, "mini"],
        &["resize", &image, "--", "-5Q"],
        &["compact", &image, "--ignore-parent-id"],
        &["create", &dir.path("new.vhdx"), "1G", "--block-size", "3M"],
        &["create", &dir.path("new.vhd"), "1G", "--log-size", "1M"],
        &["convert", &image, &dir.path("new.unknown")],
        &["convert", &image, "-", "--to", "vhdx"],
        &["measure", &image, "--to", "raw", "--fixed"],
        &["map", "--html", "-", &image],
    ] {
        let text = vhdx(arguments).fails_with(2);
        assert!(!text.contains("not touched"), "{arguments:?}: {text}");
    }
    let text = vhdx(&["resize", &image, "mini"]).fails_with(2);
    assert!(text.contains("'mini'") && text.contains("+20G") && text.contains("min"), "{text}");
    assert_eq!(dir.fingerprint(&image), before);
    assert_eq!(dir.names(), ["clean.vhdx"]);
}

#[test]
fn help_begins_with_examples_and_generated_pages_exist() {
    let dir = Workdir::new();
    for command in [&["--help"][..], &["convert", "--help"], &["log", "show", "--help"]] {
        let help = vhdx(command).succeeds();
        assert!(help.starts_with("Examples:"), "{help}");
    }
    let resize = vhdx(&["resize", "--help"]).succeeds();
    let size = resize.split("Arguments:").nth(1).and_then(|rest| rest.split("Options:").next());
    assert!(size.expect("arguments").contains("`min`"), "{resize}");
    vhdx(&["man", &dir.path("share/man")]).succeeds();
    let pages = std::fs::read_dir(dir.path("share/man")).unwrap();
    let names: Vec<_> = pages.map(|page| page.unwrap().file_name()).collect();
    for page in ["vhdx.1", "vhdx-convert.1", "vhdx-log-show.1"] {
        assert!(names.iter().any(|name| name == page), "{page} is missing: {names:?}");
    }
    let page = std::fs::read_to_string(dir.path("share/man/vhdx-convert.1")).unwrap();
    assert!(page.contains("disk.raw"), "the page has no examples");
    for shell in ["bash", "zsh", "fish"] {
        assert!(vhdx(&["completions", shell]).succeeds().contains("vhdx"));
    }
}

/// `vhdx map … | head -1` must not end in a panic or a message.
#[test]
fn a_reader_that_goes_away_is_no_drama() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let mut child = Run::command(&["read", &image])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut errors).unwrap();
    child.wait().unwrap();
    assert_eq!(errors, "");
}

/// One damaged sector in the middle of the log: older entries can be replayed, newer ones not, and a replay
/// in the file would lose those for good.
#[test]
fn entries_behind_a_damaged_one_are_not_given_up_in_silence() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[0x10_5000..0x10_6000].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let report = json(&vhdx(&["check", "--json", &image]).exits_with(3));
    let codes = report["findings"].as_array().unwrap();
    assert!(codes.iter().any(|finding| finding["code"] == "W-LOGGAP"), "{report}");
    let refused = vhdx(&["log", "replay", &image]).fails_with(1);
    assert!(refused.contains("1005") && refused.contains("--force"), "{refused}");
    // So does whoever would write: an open for writing replays.
    for command in [
        &["compact", &image][..],
        &["resize", &image, "+64M"],
        &["set", &image, "--new-disk-id"],
        &["serve", &image, "--run", "true"],
    ] {
        let refused = vhdx(command).fails_with(1);
        assert!(refused.contains("1005") && refused.contains("--force"), "{command:?}: {refused}");
    }
    assert!(std::fs::read(&image).unwrap() == bytes, "the file was changed");
    // Who reads hears of it.
    let raw = dir.path("d.raw");
    let (_, told) = vhdx(&["convert", &image, &raw]).succeeds_with_errors();
    assert!(told.contains("newest changes are missing"), "{told}");
    vhdx(&["log", "replay", "--force", &image]).succeeds();
}

/// A disk of another format, under the wrong name or given to a command that takes VHDX only: the error says what it
/// is, and the command that makes a VHDX of it.
#[test]
fn disks_of_other_formats_are_sent_to_what_converts_them() {
    let dir = Workdir::new();
    for (name, start, advice) in [
        ("a.vhdx", &b"QFI\xfb\0\0\0\x03"[..], "vhdx convert --from qcow2 FILE NEW.vhdx"),
        ("b.vhdx", b"conectix", "vhdx convert --from vhd FILE NEW.vhdx"),
        ("c.vhdx", b"KDMV\x01\0\0\0", "qemu-img convert -O vhdx FILE NEW.vhdx"),
        ("d.vhdx", b"<<< Oracle", "qemu-img convert -O vhdx FILE NEW.vhdx"),
        ("e.raw", b"\xEB\x63\x90", "vhdx convert FILE NEW.vhdx"),
    ] {
        let path = dir.path(name);
        let mut bytes = vec![0; 2 << 20];
        bytes[..start.len()].copy_from_slice(start);
        std::fs::write(&path, bytes).unwrap();
        for command in ["ls", "compact", "map"] {
            let refused = vhdx(&[command, &path]).fails_with(1);
            let advice = advice.replace("FILE", &path);
            assert!(refused.contains(&advice), "{command} {name}: {refused}");
        }
    }
    let vmdk = dir.path("f.vmdk");
    std::fs::write(&vmdk, b"KDMV").unwrap();
    let refused = vhdx(&["info", &vmdk]).fails_with(1);
    assert!(refused.contains(&format!("qemu-img convert -O vhdx {vmdk} NEW.vhdx")), "{refused}");
    let letter = dir.path("t.txt");
    std::fs::write(&letter, b"hello\n").unwrap();
    let told = vhdx(&["info", &letter]).succeeds();
    assert!(told.contains("no disk image that is known; as raw it would be a disk of 6 bytes"));
}
