use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::super::super::FileStorage;
use super::{FORCED, READ, WRITE, assert_locked_by, image};

const PATIENCE: Duration = Duration::from_secs(20);

/// A program that is ended, whatever the test comes to.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Whether it ended well, and what it said; it is ended when its time is up.
    fn finish(mut self) -> (bool, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "still running after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.success(), said)
    }
}

fn start(program: &str, arguments: &[&str], image: Option<&Path>) -> Option<Running> {
    let mut command = Command::new(program);
    command.args(arguments).args(image);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match command.spawn() {
        Ok(child) => Some(Running(child)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} missing");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Starts `qemu-io` and waits until it has answered, so that it holds the image.
fn hold(arguments: &[&str], image: &Path) -> Option<Running> {
    let mut running = start("qemu-io", arguments, Some(image))?;
    running.0.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
    let (tell, told) = mpsc::channel();
    let answers = BufReader::new(running.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in answers.lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = told.recv_timeout(left).expect("qemu-io did not answer");
        if line.contains("read 512/512") {
            return Some(running);
        }
    }
}

#[test]
fn an_image_that_qemu_writes_is_refused_and_qemu_is_named() {
    let image = image();
    let Some(qemu) = hold(&["-f", "raw"], image.path()) else { return };
    let pid = qemu.0.id();
    assert_locked_by(FileStorage::open(image.path(), WRITE), pid, Some("qemu-io"));
    assert_locked_by(FileStorage::open(image.path(), READ), pid, Some("qemu-io"));
    FileStorage::open(image.path(), FORCED).unwrap();
    drop(qemu);
    FileStorage::open(image.path(), WRITE).unwrap();
}

/// An image of QEMU's making: of a raw one it would share what it reads with a writer.
fn vhdx() -> Option<tempfile::NamedTempFile> {
    let image = image();
    let arguments = ["create", "-q", "-f", "vhdx", image.path().to_str()?, "8M"];
    let (well, said) = start("qemu-img", &arguments, None)?.finish();
    assert!(well, "{said}");
    Some(image)
}

#[test]
fn a_vhdx_that_qemu_reads_can_be_read_but_not_written() {
    let Some(image) = vhdx() else { return };
    let Some(qemu) = hold(&["-r", "-f", "vhdx"], image.path()) else { return };
    FileStorage::open(image.path(), READ).unwrap();
    assert_locked_by(FileStorage::open(image.path(), WRITE), qemu.0.id(), Some("qemu-io"));
}

#[test]
fn qemu_neither_writes_nor_reads_an_image_that_we_write() {
    let Some(image) = vhdx() else { return };
    let write = ["-f", "vhdx", "-c", "write 0 512"];
    let writer = FileStorage::open(image.path(), WRITE).unwrap();
    for arguments in [
        ["-f", "raw", "-c", "write 0 512"].as_slice(),
        &write,
        &["-r", "-f", "vhdx", "-c", "read 0 512"],
    ] {
        let Some(qemu) = start("qemu-io", arguments, Some(image.path())) else { return };
        let (well, said) = qemu.finish();
        assert!(!well && said.contains("lock"), "{arguments:?}: {said}");
    }
    drop(writer);
    let Some(qemu) = start("qemu-io", &write, Some(image.path())) else { return };
    let (well, said) = qemu.finish();
    assert!(well, "{said}");
}

#[test]
fn qemu_reads_but_does_not_write_an_image_that_we_read() {
    let Some(image) = vhdx() else { return };
    let _reader = FileStorage::open(image.path(), READ).unwrap();
    for (format, write) in [("raw", false), ("vhdx", false), ("raw", true), ("vhdx", true)] {
        let reading = ["-r", "-f", format, "-c", "read 0 512"];
        let writing = ["-f", format, "-c", "write 0 512"];
        let arguments = if write { writing.as_slice() } else { &reading };
        let Some(qemu) = start("qemu-io", arguments, Some(image.path())) else { return };
        let (well, said) = qemu.finish();
        assert!(well != write && said.contains("lock") == write, "{arguments:?}: {said}");
    }
}
