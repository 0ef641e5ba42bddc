//! A server of ours that is running, and what clients are compared with.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Run, Workdir, peer, vhdx};

/// Nothing here takes so long, however busy the machine is.
const LONG: Duration = Duration::from_secs(30);

/// `vhdx serve`, ended by its process id when this is dropped.
pub(crate) struct Server {
    child: Child,
    errors: File,
    /// Of each export, in their order.
    pub(crate) uris: Vec<String>,
}

impl Server {
    /// Starts it, and waits until clients can connect.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(Run::command(&[&["serve"], arguments].concat()))
    }

    /// [`Server::start`] for a command that becomes a server.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let errors = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone().unwrap());
        let mut child = command.spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        let (lines, heard) = mpsc::channel();
        // It goes on reading: a server that cannot print must not be what a test is about.
        std::thread::spawn(move || {
            told.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        let mut server = Self { child, errors, uris: Vec::new() };
        loop {
            match heard.recv_timeout(LONG) {
                Ok(line) if line.starts_with("  nbd") && line.contains("://") => {
                    // The lines with examples begin with a program's name.
                    server.uris.extend(line.split_whitespace().next().map(str::to_owned));
                }
                Ok(line) if line.starts_with("end it with") => return server,
                Ok(_) => {}
                Err(_) => panic!("the server did not start: {}", server.errors()),
            }
        }
    }

    /// The URI of the first export.
    pub(crate) fn uri(&self) -> &str {
        &self.uris[0]
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr so far.
    pub(crate) fn errors(&mut self) -> String {
        let mut text = String::new();
        self.errors.rewind().unwrap();
        self.errors.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; its exit status.
    pub(crate) fn ends(&mut self) -> i32 {
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server does not end: {}", self.errors());
    }

    /// Ends it as a user would; it must be content.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        let status = self.ends();
        assert_eq!(status, 0, "{}", self.errors());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script with libnbd's module of Python; `None`, visibly, without it.
pub(crate) fn python(script: &str, arguments: &[&str]) -> Option<Run> {
    // The module belongs to the system's Python, which need not be the first one.
    let python = "/usr/bin/python3";
    if peer(python, &["-c", "import nbd"])?.0.status.success() {
        return peer(python, &[&["-c", script], arguments].concat());
    }
    eprintln!("skipped: libnbd's module for Python is not installed");
    None
}

/// Bytes without zeros among them, so that none of them is taken for a hole.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    (0..length).map(|_| next()).collect()
}

const MIB: usize = 1 << 20;

/// A disk with data and holes whose end is not that of a block: its bytes, and the runs of data.
pub(crate) fn sample() -> (Vec<u8>, [(usize, usize); 3]) {
    let runs = [(0, 3 * MIB), (10 * MIB, 15 * MIB), (23 * MIB, 24 * MIB + 12288)];
    let mut bytes = vec![0; 24 * MIB + 12288];
    for (start, end) in runs {
        bytes[start..end].copy_from_slice(&noise(start as u64 + 1, end - start));
    }
    (bytes, runs)
}

/// [`sample`] as an image with blocks of 1 MiB and such sectors, and as a raw file beside it.
pub(crate) fn sample_image(dir: &Workdir, sector: &str) -> (String, String, Vec<u8>) {
    let (bytes, _) = sample();
    let (raw, image) = (dir.path("sample.raw"), dir.path("sample.vhdx"));
    std::fs::write(&raw, &bytes).unwrap();
    let options = ["--block-size", "1M", "--logical-sector-size", sector];
    vhdx(&[&["convert", "-q", "--to", "vhdx", &*raw, &image], &options[..]].concat()).succeeds();
    (image, raw, bytes)
}

/// What the guest of an image sees.
pub(crate) fn guest_bytes(dir: &Workdir, image: &str) -> Vec<u8> {
    let raw = dir.path("guest.raw");
    vhdx(&["convert", "-q", "--force", "--to", "raw", image, &raw]).succeeds();
    std::fs::read(raw).unwrap()
}

/// Compares without printing megabytes.
pub(crate) fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: the lengths");
    if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        panic!("{what}: byte {at} is {}, not {}", found[at], wanted[at]);
    }
}

/// A sound image, cleanly closed.
pub(crate) fn assert_clean(image: &str) {
    let info = super::json(&vhdx(&["info", "--json", image]).succeeds());
    assert_eq!(info["log"]["state"], "clean", "{image}");
    vhdx(&["check", image]).succeeds();
}
