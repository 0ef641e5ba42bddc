//! For each fault that a repair can mend: an image with exactly that fault, repaired, is clean in our eyes and in
//! QEMU's, the guest sees what it should, and the undo file restores the file byte for byte.

mod common;

use std::path::Path;
use std::sync::Arc;

use vhdxkit::defect::{Defect, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::check;
use vhdxkit::ops::repair::{Plan, RepairOptions, Undo, plan};
use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit_testkit::faults::{Fault, repairable};

fn options(fault: &Fault) -> RepairOptions {
    RepairOptions {
        discard_log: fault.discard_log,
        allow_data_loss: fault.allow_data_loss,
        header: fault.header,
        seed: Some(7),
    }
}

fn codes(findings: &Findings) -> Vec<&'static str> {
    findings.list().iter().map(Defect::code).collect()
}

/// What a check must not find any more: everything but what nobody claims to mend here.
fn rest(fault: &Fault, findings: &Findings) -> Vec<String> {
    let worth = |found: &&Defect| {
        let left = fault.code == found.code() && found.severity() == Severity::Info;
        found.severity() > Severity::Info || left
    };
    findings.list().iter().filter(worth).map(ToString::to_string).collect()
}

struct Done {
    file: Arc<MemoryStorage>,
    plan: Plan,
    undo: MemoryStorage,
}

fn repair(bytes: &[u8], options: &RepairOptions) -> Done {
    let file = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let plan = plan(file.clone(), options, &mut ()).unwrap();
    assert!(file.to_vec() == bytes, "thinking about it has changed the file");
    let undo = MemoryStorage::empty();
    plan.write_undo(&*file, "disk.vhdx", &undo).unwrap();
    assert!(file.to_vec() == bytes, "the undo file has changed the image");
    plan.carry_out(&*file, &mut ()).unwrap();
    Done { file, plan, undo }
}

fn shows(fault: &Fault, file: &Arc<MemoryStorage>) {
    let storage: Arc<dyn Storage> = file.clone();
    let image = vhdxkit::OpenOptions::new().without_parents().open_storage(storage).unwrap();
    for (offset, bytes) in &fault.guest {
        let mut seen = vec![0; bytes.len()];
        image.read_at(*offset, &mut seen).unwrap();
        let first = seen.iter().zip(bytes).position(|(a, b)| a != b);
        assert_eq!(first, None, "bytes of the disk from {offset}");
    }
}

fn in_qemus_eyes(bytes: &[u8], dir: &Path) {
    if common::have("qemu-img") {
        let path = dir.join("repaired.vhdx");
        std::fs::write(&path, bytes).unwrap();
        common::run("qemu-img", &["check", "-q", "-f", "vhdx", path.to_str().unwrap()]);
    }
}

#[test]
fn every_fault_that_can_be_mended_is() {
    let dir = tempfile::tempdir().unwrap();
    for fault in repairable() {
        let _named = common::NamedOnFailure(format!("{} {}", fault.code, fault.name));
        let before = check(Arc::new(MemoryStorage::new(fault.bytes.clone())), &mut ()).unwrap();
        assert!(codes(&before).contains(&fault.code), "{:?}", before.list());
        let old = HeaderPair::inspect(&MemoryStorage::new(fault.bytes.clone())).ok();
        let Done { file, plan, .. } = repair(&fault.bytes, &options(&fault));
        assert!(plan.codes().contains(&fault.code), "{plan:?}");
        let after = check(file.clone(), &mut ()).unwrap();
        assert_eq!(rest(&fault, &after), Vec::<String>::new(), "{plan:?}");
        assert_eq!(codes(&after), codes(plan.after()), "what was promised is something else");
        shows(&fault, &file);
        let new = HeaderPair::inspect(&*file).unwrap();
        assert!(!new.is_dirty());
        assert_eq!(plan.changes_contents(), fault.new_identity);
        assert_eq!(plan.lengths().1, file.len().unwrap());
        if let (Some(old), None) = (old, fault.header) {
            let same = old.current().data_write_guid == new.current().data_write_guid;
            assert_eq!(same, !fault.new_identity, "the identity that children know");
            assert_ne!(old.current().file_write_guid, new.current().file_write_guid);
        }
        if !fault.child {
            in_qemus_eyes(&file.to_vec(), dir.path());
        }
        // A second repair has nothing to do but to give back zeros.
        let again = repair(&file.to_vec(), &options(&fault));
        assert!(again.plan.codes().iter().all(|code| *code == "V35"), "{:?}", again.plan);
        let (kept, cut) = (again.file.to_vec(), file.to_vec());
        let cut = cut.get(kept.len()..).unwrap_or_default();
        assert!(cut.iter().all(|byte| *byte == 0), "the second repair has cut off data");
    }
}

#[test]
fn an_undo_restores_every_byte_and_the_length() {
    for fault in repairable() {
        let _named = common::NamedOnFailure(format!("{} {}", fault.code, fault.name));
        let Done { file, undo, .. } = repair(&fault.bytes, &options(&fault));
        assert!(file.to_vec() != fault.bytes);
        let undo = Undo::read(&undo).unwrap();
        let report = undo.restore(&*file, false).unwrap();
        assert!(report.changed && !report.forced);
        assert!(file.to_vec() == fault.bytes, "not what it was");
        // Once more: it is so already.
        assert!(!undo.restore(&*file, false).unwrap().changed);
        assert!(file.to_vec() == fault.bytes);
    }
}

/// Pages that are moved back change what the guest sees, and no log has to do with it; what a log held may be missing
/// afterwards, and no block moves.
#[test]
fn a_plan_tells_why_the_guest_sees_something_else() {
    let of = |fault: &Fault| repair(&fault.bytes, &options(fault)).plan;
    for fault in repairable().iter().filter(|fault| fault.new_identity) {
        let plan = of(fault);
        let why = (plan.moves_blocks_back(), plan.gives_up_log(), plan.lost_bytes() > 0);
        let expected = match fault.code {
            "M-BATSHIFT" => (true, false, false),
            "V8" | "W-LOGGAP" => (false, true, false),
            _ => (false, false, true),
        };
        assert_eq!(why, expected, "{}: {plan:?}", fault.name);
    }
    let shifted = repairable().into_iter().find(|fault| fault.code == "M-BATSHIFT").unwrap();
    assert!(of(&shifted).moves_blocks_back() && of(&shifted).changes_contents());
}

/// A block that was trimmed keeps a place that a file which was cut off does not have any more. It reads as it did, but
/// the disk is not opened for writing: a check must say so, and a repair drops the place.
#[test]
fn a_trimmed_block_whose_place_is_cut_off_is_found_and_mended() {
    let image = vhdxkit_testkit::faults::sound();
    for state in [1, 3] {
        let mut bytes = image.build_vec();
        let behind = bytes.len() as u64 + (1 << 20);
        let at = image.layout().bat_offset + 8 * 9;
        vhdxkit_testkit::patch::put_u64(&mut bytes, at, behind.next_multiple_of(1 << 20) | state);
        let opens = |file: &Arc<MemoryStorage>| {
            let storage: Arc<dyn Storage> = file.clone();
            let image = vhdxkit::OpenOptions::new().write(true).open_storage(storage);
            image.and_then(|image| image.write_at(0, &[1; 512]))
        };
        let file = Arc::new(MemoryStorage::new(bytes.clone()));
        let found = check(file.clone(), &mut ()).unwrap();
        let [defect] = found.list() else { panic!("{:?}", found.list()) };
        assert_eq!((defect.code(), defect.severity()), ("V29", Severity::Warning));
        assert!(defect.to_string().contains("block 9"), "{defect}");
        assert!(opens(&file).is_err());
        let Done { file, plan, .. } = repair(&bytes, &RepairOptions::default());
        assert_eq!((plan.codes(), plan.lost_bytes()), (vec!["V29"], 0));
        assert!(check(file.clone(), &mut ()).unwrap().list().is_empty());
        opens(&file).unwrap();
    }
}

/// What a repair needs the user's word for is not done without it, and not a byte is changed for it.
#[test]
fn nothing_is_given_up_without_the_users_word() {
    for fault in repairable() {
        if !(fault.discard_log || fault.allow_data_loss || fault.header.is_some()) {
            continue;
        }
        let _named = common::NamedOnFailure(format!("{} {}", fault.code, fault.name));
        let Done { file, plan, .. } = repair(&fault.bytes, &RepairOptions::default());
        assert!(plan.is_empty(), "{plan:?}");
        assert!(file.to_vec() == fault.bytes);
        let left = plan.left().iter().find(|left| left.word.is_some());
        let left = left.unwrap_or_else(|| panic!("{plan:?}"));
        assert!(!left.why.is_empty());
    }
}
