//! Logs of every shape, written by a program that shares no code with this library and that knows
//! what replay must lead to: wraps at every kind of place, hundreds of descriptors, zero
//! descriptors, extension, 64 MiB logs, superseded, foreign and torn entries.
//!
//! Each is replayed in place, where the oracle judges the result, and in memory, where the view must
//! equal the replayed file byte for byte while the file stays as it was.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use vhdxkit::log::{Log, replay_in_place};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{Image, OpenOptions};

/// The rows of the oracle's matrix: a name and arguments.
fn rows(script: &Path) -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(script).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("t "))
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().unwrap(), words.collect())
        })
        .collect()
}

const READ: OpenMode = OpenMode::ReadOnly { force_share: false };

fn judge_row(oracle: &Path, name: &str, arguments: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.vhdx");
    let made = Command::new("python3").arg(oracle).arg("make").arg(&path).args(arguments).output();
    assert!(made.unwrap().status.success(), "{name}: the oracle made nothing");
    let before = std::fs::read(&path).unwrap();

    let image = Image::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(std::fs::read(&path).unwrap() == before, "{name}: opening changed the file");
    let in_memory = image.storage().clone();

    let log = Log::read(&FileStorage::open(&path, READ).unwrap()).unwrap();
    let sectors = u64::from(log.place().unwrap().length / 4096);
    assert!(log.sectors_judged() <= 2 * sectors, "{name}: {} judged", log.sectors_judged());

    let copy = dir.path().join("copy.vhdx");
    std::fs::write(&copy, &before).unwrap();
    let file = FileStorage::open(&copy, OpenMode::ReadWrite).unwrap();
    replay_in_place(&file).unwrap_or_else(|e| panic!("{name}: {e}")).expect("something to do");
    assert_eq!(replay_in_place(&file).unwrap(), None, "{name}: a second replay");
    assert_eq!(in_memory.len().unwrap(), file.len().unwrap(), "{name}: lengths differ");
    // All but the headers, which only the replay in place has written.
    let length = usize::try_from(file.len().unwrap()).unwrap();
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 192 << 10;
    while at < length {
        let a = in_memory.read_at(at as u64, &mut ours).unwrap();
        let b = file.read_at(at as u64, &mut theirs).unwrap();
        assert!(a == b && ours[..a] == theirs[..b], "{name}: memory and file differ near {at:#x}");
        at += a;
    }
    drop(file);
    assert!(std::fs::read(&path).unwrap() == before, "{name}: reading changed the file");
    std::fs::copy(path.with_extension("vhdx.expect"), copy.with_extension("vhdx.expect")).unwrap();
    let verdict = Command::new("python3").arg(oracle).arg("check").arg(&copy).output().unwrap();
    let verdict = String::from_utf8_lossy(&verdict.stdout).into_owned();
    assert!(verdict.starts_with("OK"), "{name}: {verdict}");
    OpenOptions::new().open(&copy).unwrap();
}

#[test]
fn every_row_of_the_oracles_matrix_is_replayed_right_in_place_and_in_memory() {
    let (Some(oracle), Some(script)) =
        (common::shared("tools/mkdirty.py"), common::shared("tools/replay_matrix.sh"))
    else {
        return;
    };
    if !common::have("python3") {
        return;
    }
    let rows = rows(&script);
    assert!(rows.len() >= 39, "{} rows were read", rows.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, arguments)) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    judge_row(&oracle, name, arguments);
                }
            });
        }
    });
    println!("{} of {} rows", rows.len(), rows.len());
}
