//! Replays the fuzzers' corpus: what they once found stays fixed, without a fuzzer at hand.
//!
//! `REWRITE_SEEDS=1 cargo test -p vhdxkit --test fuzz_corpus` writes the seeds anew.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

#[path = "../../../fuzz/src/harness/mod.rs"]
pub mod harness;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn replay(target: &str, property: fn(&[u8])) {
    let mut failed = Vec::new();
    let mut count = 0;
    for file in fs::read_dir(folder(target)).unwrap() {
        let path = file.unwrap().path();
        let input = fs::read(&path).unwrap();
        assert!(input.len() <= 4096, "{} is no small input", path.display());
        count += 1;
        if catch_unwind(|| property(&input)).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(count >= 24, "only {count} inputs");
}

#[test]
fn every_input_of_open_is_survived() {
    replay("open", harness::open);
}

#[test]
fn every_input_of_log_is_survived() {
    replay("log", harness::log);
}

/// The targets share their input format: each one's corpus is also an input of the other.
#[test]
fn every_input_is_survived_by_the_other_target() {
    replay("open", harness::log);
    replay("log", harness::open);
}

#[test]
fn every_input_is_survived_by_a_salvage() {
    replay("open", harness::recover);
    replay("log", harness::recover);
}

#[test]
fn the_seeds_are_in_the_corpus() {
    for (target, seeds) in [("open", harness::seeds::open()), ("log", harness::seeds::log())] {
        for (name, bytes) in seeds {
            let path = folder(target).join(&name);
            if std::env::var_os("REWRITE_SEEDS").is_some() {
                fs::create_dir_all(folder(target)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            assert!(bytes.len() < 1024, "{name}");
            assert!(fs::read(&path).is_ok_and(|kept| kept == bytes), "{}", path.display());
        }
    }
}

/// The inputs are worth something only if the images they start from are good ones.
#[test]
fn every_base_opens_without_findings() {
    use std::sync::Arc;
    use vhdxkit::defect::Severity;
    for number in 0..harness::base::Base::COUNT {
        let file = Arc::new(harness::base::Base::number(number).build());
        let found = vhdxkit::ops::check::check(Arc::clone(&file) as _, &mut ()).unwrap();
        let worst = found.list().iter().filter(|defect| defect.severity() > Severity::Info);
        assert_eq!(worst.collect::<Vec<_>>(), Vec::<&vhdxkit::defect::Defect>::new(), "{number}");
        let image = vhdxkit::OpenOptions::new().open_storage(file).unwrap();
        assert_eq!(image.log().active().is_some(), number / 3 % 3 != 2, "{number}");
    }
}
