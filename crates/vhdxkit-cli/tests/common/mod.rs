//! Running the built command in a folder of one's own.
#![allow(dead_code)]

pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use vhdxkit::ops::disk::{Disk, DiskFormat};

/// A temporary folder with copies of the repository's images.
pub(crate) struct Workdir(tempfile::TempDir);

impl Workdir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A path in the folder, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A fresh copy of an image of `testdata/`.
    pub(crate) fn copy(&self, name: &str) -> String {
        let target = self.path(name);
        std::fs::copy(testdata(name), &target).unwrap();
        target
    }

    /// The names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Everything that must not change: bytes, size and modification time.
    pub(crate) fn fingerprint(&self, path: &str) -> (Vec<u8>, u64, SystemTime) {
        let meta = std::fs::metadata(path).unwrap();
        (std::fs::read(path).unwrap(), meta.len(), meta.modified().unwrap())
    }
}

/// An image of the repository.
pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

/// A file of the team's folder beside the repository, or of the one that `VHDXKIT_SHARED` names, where
/// nothing may be missing; `None`, visibly, where there is none.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("VHDXKIT_SHARED") {
        let path = Path::new(&folder).join(name);
        assert!(path.exists(), "VHDXKIT_SHARED is set, and {name} is not in it");
        return Some(path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: ../shared/{name} is not there");
    None
}

/// Unpacks an image of the team's folder by a program; `None`, visibly, where one of them is missing.
pub(crate) fn unpack(packed: &str, program: &str, target: &str) -> Option<()> {
    let source = shared(&format!("data/{packed}"))?;
    let unpacked = Command::new(program)
        .arg("-dc")
        .arg(source)
        .stdout(Stdio::from(std::fs::File::create(target).unwrap()))
        .status();
    if unpacked.is_ok_and(|status| status.success()) {
        return Some(());
    }
    eprintln!("skipped: {program} is not installed");
    None
}

/// The SHA-256 of a raw file; its holes are hashed without being read.
pub(crate) fn sha256(raw: &str) -> String {
    let disk = Disk::open(raw.as_ref(), Some(DiskFormat::Raw), false).unwrap();
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    for run in disk.runs() {
        let run = run.unwrap();
        if !run.data {
            buf.fill(0);
        }
        let mut at = run.range.start;
        while at < run.range.end {
            let now = buf.len().min((run.range.end - at) as usize);
            if run.data {
                disk.read_at(at, &mut buf[..now]).unwrap();
            }
            hash.update(&buf[..now]);
            at += now as u64;
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A finished run of the command.
pub(crate) struct Run(Output);

/// Runs the command with these arguments.
pub(crate) fn vhdx(arguments: &[&str]) -> Run {
    Run(Run::command(arguments).output().unwrap())
}

/// Runs another program for a minute at most; `None`, visibly, where it is not installed.
pub(crate) fn peer(program: &str, arguments: &[&str]) -> Option<Run> {
    let output = Command::new("timeout").arg("60").arg(program).args(arguments).output().unwrap();
    if output.status.code() == Some(127) {
        eprintln!("skipped: {program} is not installed");
        return None;
    }
    Some(Run(output))
}

impl Run {
    /// The command, not yet started.
    pub(crate) fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhdx"));
        command.args(arguments);
        command
    }

    /// Its exit status, whatever it is.
    pub(crate) fn status(&self) -> Option<i32> {
        self.0.status.code()
    }

    fn expect(self, code: i32) -> Output {
        let [errors, told] = [&self.0.stderr, &self.0.stdout].map(|b| String::from_utf8_lossy(b));
        assert_eq!(self.0.status.code(), Some(code), "stderr: {errors}\nstdout: {told}");
        self.0
    }

    /// Exit status 0; what was printed.
    pub(crate) fn succeeds(self) -> String {
        self.exits_with(0)
    }

    /// Exit status 0; what was printed on stdout and on stderr.
    pub(crate) fn succeeds_with_errors(self) -> (String, String) {
        let output = self.expect(0);
        let [told, errors] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        (told, errors)
    }

    /// Exit status 0; the bytes that were written.
    pub(crate) fn succeeds_with_bytes(self) -> Vec<u8> {
        self.expect(0).stdout
    }

    /// This exit status; what was printed on stdout.
    pub(crate) fn exits_with(self, code: i32) -> String {
        String::from_utf8(self.expect(code).stdout).unwrap()
    }

    /// Any exit status but 0, and no signal; all that was printed.
    pub(crate) fn fails(self) -> String {
        let text = [&*self.0.stdout, &*self.0.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // 124 is a program that had to be ended.
        assert!(!matches!(self.0.status.code(), Some(0 | 124) | None), "{}: {text}", self.0.status);
        text
    }

    /// This exit status; what was printed on stderr.
    pub(crate) fn fails_with(self, code: i32) -> String {
        String::from_utf8(self.expect(code).stderr).unwrap()
    }
}

/// Reads JSON.
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}:\n{text}"))
}
