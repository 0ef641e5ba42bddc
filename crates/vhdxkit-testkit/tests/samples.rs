//! The images in `testdata/` are the ones this crate builds, and they are what they claim to be.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vhdxkit_testkit::samples::{self, story_part};

/// Says so where the test runner does not swallow it.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn testdata_is_what_the_samples_build() {
    for sample in samples::all() {
        let kept = std::fs::read(root().join("testdata").join(sample.name)).unwrap_or_default();
        assert!(
            kept == sample.image.build_vec(),
            "testdata/{} differs; run: cargo run -p vhdxkit-testkit -- testdata",
            sample.name
        );
    }
}

#[test]
fn the_readme_has_the_guests_checksums() {
    let readme = std::fs::read_to_string(root().join("testdata/README.md")).unwrap();
    for sample in samples::all() {
        let guest = sample.guest();
        let Some(sum) = sha256sum(&guest) else {
            skipped("there is no sha256sum here");
            return;
        };
        let mut row =
            readme.lines().filter(|line| line.starts_with(&format!("| `{}`", sample.name)));
        let row = row.next().unwrap_or_else(|| panic!("{} has no row", sample.name));
        assert!(row.contains(&sum), "{}: the guest's SHA-256 is {sum}", sample.name);
        assert!(row.contains(&format!("| {} |", guest.len())), "{}: {}", sample.name, guest.len());
    }
}

#[test]
fn replay_completes_the_crashed_disk() {
    let image = samples::crashed();
    assert_eq!(image.active_entries().len(), 3);
    let replayed = image.expected_guest();
    let stale = image.dirty(vhdxkit::format::Guid::ZERO).expected_guest();
    let shows =
        |guest: &[u8], block: usize, text: &str| guest[block << 20..].starts_with(text.as_bytes());
    for part in 0..3 {
        assert!(shows(&replayed, part, story_part(part)));
        assert_eq!(shows(&stale, part, story_part(part)), part == 0);
    }
    assert!(shows(&stale, 9, story_part(1)), "the space of block 9 is block 1's by now");
    let text: usize = (0..3).map(|part| story_part(part).len()).sum();
    assert_eq!(replayed.iter().filter(|byte| **byte != 0).count(), text);
}

/// Lints what was built with the linter of the folder `shared` beside the repository, if there.
#[test]
fn the_linter_finds_no_error() {
    let lint = root().join("../shared/tools/vhdxlint.py");
    if !lint.exists() {
        skipped("../shared not there");
        return;
    }
    for sample in samples::all() {
        let mut command = Command::new("python3");
        command.arg(&lint).arg("--replay");
        if let Some(parent) = sample.parent {
            command.arg("--parent").arg(root().join("testdata").join(parent));
        }
        let output = match command.arg(root().join("testdata").join(sample.name)).output() {
            Ok(output) => output,
            Err(error) => {
                skipped(&format!("python3: {error}"));
                return;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(" 0 errors, 0 warnings"), "{text}");
    }
}

/// The checksum by the system's own program, which knows nothing of ours.
fn sha256sum(bytes: &[u8]) -> Option<String> {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(bytes).ok()?;
    let output = child.wait_with_output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.split_whitespace().next()?.to_owned())
}
