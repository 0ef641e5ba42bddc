//! A whole guest, with its disk from `vhdx serve`: both are killed while files are written, and the next
//! boot finds every file that was answered for, on a file system that is sound.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};

use vhdxkit_sim::machine::{Plan, run};

#[test]
fn a_killed_guest_finds_every_synced_file() {
    let folder = tempfile::tempdir().unwrap();
    let vhdx = PathBuf::from(env!("CARGO_BIN_EXE_vhdx"));
    let parts = vhdx.parent().map(|beside| beside.join("../guest")).unwrap();
    let plan = Plan { rounds: 1, seed: 1, vhdx, parts, folder: folder.path().to_path_buf() };
    if let Some(what) = plan.missing() {
        println!("skipped: MISSING: {what}");
        return;
    }
    let report = run(&plan).unwrap();
    println!("{}", report.table());
    if let Some(failure) = report.failure {
        panic!("{failure}\n{}", consoles(folder.path()));
    }
    assert!(report.synced > 0, "no file was written");
}

/// What the guest has said: the folder will be gone.
fn consoles(folder: &Path) -> String {
    let names = ["server.txt", "console0.txt", "console1.txt"];
    names.map(|name| std::fs::read_to_string(folder.join(name)).unwrap_or_default()).join("\n")
}
