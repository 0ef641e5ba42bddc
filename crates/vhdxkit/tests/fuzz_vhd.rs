//! Replays the corpus of the fuzz target `vhd`: what a fuzzer once found stays fixed, without a fuzzer at hand.
//!
//! `REWRITE_SEEDS=1 cargo test -p vhdxkit --test fuzz_vhd` writes the seeds anew.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

#[path = "../../../fuzz/src/vhd.rs"]
pub mod target;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/vhd")
}

#[test]
fn every_input_is_survived() {
    let (mut failed, mut count) = (Vec::new(), 0);
    for (name, bytes) in target::seeds() {
        let path = folder().join(&name);
        if std::env::var_os("REWRITE_SEEDS").is_some() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|kept| kept == bytes), "{}", path.display());
    }
    for file in fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let input = fs::read(&path).unwrap();
        assert!(input.len() <= 4096, "{} is no small input", path.display());
        count += 1;
        if catch_unwind(|| target::vhd(&input)).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(count >= 24, "only {count} inputs");
}
