//! What a server leaves behind when something goes wrong at its end, or beside it.
#![cfg(target_os = "linux")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::server::{Server, assert_clean, guest_bytes, python};
use common::{Run, Workdir, vhdx};

const WRITES: &str = "
import nbd, sys
for uri in sys.argv[1:]:
    h = nbd.NBD()
    h.connect_uri(uri)
    for at in range(8):
        h.pwrite(b'k' * 4096, at << 20)
    h.shutdown()
";

fn images(dir: &Workdir, names: &[&str]) -> Vec<String> {
    let paths = names.iter().map(|name| dir.path(name));
    paths
        .inspect(|path| drop(vhdx(&["create", path, "32M", "--block-size", "1M"]).succeeds()))
        .collect()
}

/// One image that cannot be closed, since somebody has cut its file: all others are closed nevertheless.
#[test]
fn one_image_that_fails_takes_no_other_with_it() {
    let dir = Workdir::new();
    let paths = images(&dir, &["a.vhdx", "b.vhdx", "c.vhdx"]);
    let mut server = Server::start(&[&paths[0], &paths[1], &paths[2]]);
    let uris: Vec<&str> = server.uris[..3].iter().map(String::as_str).collect();
    let Some(done) = python(WRITES, &uris) else { return };
    done.succeeds();
    std::fs::File::options().write(true).open(&paths[0]).unwrap().set_len(5 << 20).unwrap();
    server.signal("TERM");
    assert_eq!(server.ends(), 1);
    assert!(server.errors().contains("a.vhdx is left dirty"), "{}", server.errors());
    for path in &paths[1..] {
        assert_clean(path);
        let bytes = guest_bytes(&dir, path);
        assert!((0..8).all(|at| bytes[at << 20..][..4096] == [b'k'; 4096]), "{path}");
    }
}

/// A command that does not want to end: the image is closed before it is waited for.
#[test]
fn a_stubborn_command_does_not_keep_the_image_open() {
    let dir = Workdir::new();
    let paths = images(&dir, &["a.vhdx"]);
    let (ready, python) = (dir.path("ready"), "/usr/bin/python3");
    if common::server::python("", &[]).is_none() {
        return;
    }
    let script = format!(
        "trap '' TERM; {python} -c \"{}\" \"$uri\" && touch {ready}; while :; do sleep 0.1; done",
        WRITES.replace('"', "\\\"")
    );
    let mut server = Run::command(&["serve", &paths[0], "--run", &script]);
    let mut server = server.stdin(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !std::path::Path::new(&ready).exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the command did not write");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").arg(server.id().to_string()).status().unwrap();
    assert!(killed.success());
    // Long before the command is made to end.
    let begun = Instant::now();
    while vhdx(&["info", &paths[0]]).status() != Some(0) {
        assert!(begun.elapsed() < Duration::from_secs(5), "the image is not closed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_clean(&paths[0]);
    assert!(server.try_wait().unwrap().is_none(), "it does not wait for its command");
    let status = server.wait().unwrap();
    assert_eq!(status.code(), Some(137), "{:?}", begun.elapsed());
}

/// Whoever writes to a disk that checkpoints build on loses the checkpoints.
#[test]
fn a_disk_with_children_is_served_for_writing_at_the_users_word_only() {
    let dir = Workdir::new();
    let paths = images(&dir, &["base.vhdx"]);
    let child = dir.path("child.avhdx");
    vhdx(&["create", &child, "--parent", &paths[0]]).succeeds();
    let text = vhdx(&["serve", &paths[0], "--run", "true"]).fails_with(1);
    assert!(text.contains("child.avhdx") && text.contains("--force"), "{text}");
    for how in ["--read-only", "--snapshot", "--force"] {
        vhdx(&["serve", &paths[0], how, "--run", "true"]).succeeds();
    }
    // And a child alone is not served at all: its parent has to be named.
    let text = vhdx(&["serve", &child, "--run", "true"]).fails_with(5);
    assert!(text.contains("--parent"), "{text}");
    vhdx(&["serve", &child, "--parent", &paths[0], "--run", "true"]).succeeds();
}

#[test]
fn in_the_background_it_serves_until_it_is_told_to_end() {
    let dir = Workdir::new();
    let paths = images(&dir, &["a.vhdx"]);
    let (socket, pid) = (dir.path("s"), dir.path("pid"));
    let serve = ["serve", &paths[0], "--unix", &socket, "--pid-file", &pid, "--detach"];
    let told = vhdx(&serve).succeeds();
    assert!(told.contains("nbd+unix://") && !told.contains("Ctrl-C"), "{told}");
    let id = std::fs::read_to_string(&pid).unwrap();
    // A second one finds the image in use and leaves everything alone.
    let other = dir.path("other");
    vhdx(&["serve", &paths[0], "--unix", &other, "--pid-file", &pid]).fails_with(4);
    assert_eq!(std::fs::read_to_string(&pid).unwrap(), id);
    let uri = format!("nbd+unix:///?socket={socket}");
    if let Some(done) = python(WRITES, &[&uri]) {
        done.succeeds();
    }
    assert!(Command::new("kill").arg(id.trim()).status().unwrap().success());
    let begun = Instant::now();
    while std::path::Path::new(&pid).exists() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its process id is given up only when the image is closed.
    assert_clean(&paths[0]);
    assert!(!std::path::Path::new(&socket).exists());
}
