//! The end of a server under load: what clients were promised is there, and the image is good.
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::server::{Server, assert_clean, python};
use common::{Workdir, json, vhdx};

/// Writes numbered blocks over several connections, and prints the number of each one that was answered;
/// every 64th is followed by a flush, and printed with an F when that is answered.
const WRITER: &str = "
import nbd, struct, sys
count, hs = 4, []
for at in range(count):
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    hs.append(h)
print('go', flush=True)
number = 0
try:
    while True:
        h = hs[number % count]
        h.pwrite(struct.pack('<Q', number + 1) * 512, number * 4096)
        print(number)
        number += 1
        if number % 64 == 0:
            h.flush()
            print('F', number, flush=True)
except nbd.Error:
    pass
sys.stdout.flush()
";

/// A client that writes until it cannot; ended by its process id when this is dropped.
struct Writer(Child);

impl Writer {
    /// Waits until it has begun; `None`, visibly, without libnbd's module.
    fn start(uri: &str) -> Option<(Self, BufReader<std::process::ChildStdout>)> {
        python("", &[])?;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", WRITER, uri]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert_eq!(line, "go\n");
        Some((Self(child), told))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many blocks were answered, and how many of them before the last flush was.
fn promises(mut told: BufReader<std::process::ChildStdout>) -> (usize, usize) {
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    let flushed = text.lines().rev().find_map(|line| line.strip_prefix("F ")?.parse().ok());
    (text.lines().filter(|line| !line.starts_with('F')).count(), flushed.unwrap_or(0))
}

fn assert_kept(image: &str, promised: usize) {
    let length = (promised * 4096).to_string();
    let bytes = vhdx(&["read", image, "--length", &length]).succeeds_with_bytes();
    for number in 0..promised {
        let word = (number as u64 + 1).to_le_bytes();
        let block = &bytes[number * 4096..][..4096];
        assert!(block.chunks(8).all(|found| found == word), "block {number} of {promised}");
    }
}

fn new_image(dir: &Workdir) -> String {
    let image = dir.path("written.vhdx");
    vhdx(&["create", "-q", &image, "4G", "--block-size", "1M"]).succeeds();
    image
}

#[test]
fn a_signal_under_load_leaves_a_clean_image_with_all_that_was_answered() {
    for signal in ["TERM", "INT"] {
        let dir = Workdir::new();
        let image = new_image(&dir);
        let mut server = Server::start(&[&image]);
        let Some((writer, told)) = Writer::start(server.uri()) else { return };
        std::thread::sleep(Duration::from_millis(400));
        server.signal(signal);
        assert_eq!(server.ends(), 0, "{}", server.errors());
        let (answered, _) = promises(told);
        drop(writer);
        assert!(answered > 100, "{answered} blocks are no load");
        assert_clean(&image);
        assert_kept(&image, answered);
    }
}

/// What was flushed is promised even then.
#[test]
fn a_killed_server_leaves_what_was_flushed() {
    let dir = Workdir::new();
    let image = new_image(&dir);
    let mut server = Server::start(&[&image]);
    let Some((writer, told)) = Writer::start(server.uri()) else { return };
    std::thread::sleep(Duration::from_millis(400));
    server.signal("KILL");
    assert_eq!(server.ends(), -1);
    let (answered, flushed) = promises(told);
    drop(writer);
    assert!(flushed >= 64, "{answered} blocks, {flushed} of them flushed, are no load");
    assert_kept(&image, flushed);
    let state = &json(&vhdx(&["info", "--json", &image]).succeeds())["log"]["state"];
    assert_eq!(state, "dirty");
    vhdx(&["check", &image]).succeeds();
    vhdx(&["log", "replay", &image]).succeeds();
    assert_clean(&image);
    assert_kept(&image, flushed);
}

/// A client that asks for much and takes nothing: its last replies are waited for.
fn stuck_client(socket: &str) -> UnixStream {
    let mut client = UnixStream::connect(socket).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    // Fixed newstyle without padding, then the export of the empty name.
    client.write_all(&[0, 0, 0, 3]).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    for number in 0..8 {
        let mut request = [0; 28];
        request[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        request[15] = number;
        request[24..].copy_from_slice(&(16u32 << 20).to_be_bytes());
        client.write_all(&request).unwrap();
    }
    client
}

#[test]
fn a_second_signal_ends_it_at_once_and_the_image_is_good() {
    let dir = Workdir::new();
    let image = new_image(&dir);
    let socket = dir.path("s");
    let mut server = Server::start(&[&image, "--unix", &socket]);
    let Some((writer, told)) = Writer::start(server.uri()) else { return };
    let stuck = stuck_client(&socket);
    std::thread::sleep(Duration::from_millis(400));
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.is_running(), "it should wait for the client that is stuck");
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.ends(), 130, "{}", server.errors());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let (_, flushed) = promises(told);
    drop((writer, stuck));
    assert_kept(&image, flushed);
    vhdx(&["log", "replay", &image]).succeeds();
    assert_clean(&image);
    assert_kept(&image, flushed);
}

/// A client that does not take its replies must not keep the server from ending, nor the image from being
/// closed.
#[test]
fn a_client_that_is_stuck_is_waited_for_ten_seconds_and_no_longer() {
    let dir = Workdir::new();
    let image = new_image(&dir);
    let socket = dir.path("s");
    let mut server = Server::start(&[&image, "--unix", &socket]);
    let stuck = stuck_client(&socket);
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.ends(), 0, "{}", server.errors());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drop(stuck);
    assert_clean(&image);
}
