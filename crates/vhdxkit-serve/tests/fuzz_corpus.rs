//! Replays the corpus of the fuzz target `nbd`: what it once found stays fixed, without a fuzzer at hand.
//!
//! `REWRITE_SEEDS=1 cargo test -p vhdxkit-serve --test fuzz_corpus` writes the seeds anew.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

#[path = "../../../fuzz/src/session.rs"]
#[allow(unreachable_pub)]
mod session;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/nbd")
}

#[test]
fn every_input_is_survived() {
    let rewrite = std::env::var_os("REWRITE_SEEDS").is_some();
    for (name, bytes) in session::seeds() {
        let path = folder().join(&name);
        if rewrite {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|kept| kept == bytes), "{}", path.display());
    }
    let mut failed = Vec::new();
    for file in fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let input = fs::read(&path).unwrap();
        assert!(input.len() <= 4096, "{} is no small input", path.display());
        if catch_unwind(|| session::nbd(&input)).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
