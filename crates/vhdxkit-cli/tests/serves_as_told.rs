//! `vhdx serve` does what it was told and nothing else: who may write and where that goes, how it is
//! started by others, how long it lives, what it says when it cannot.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::server::{Server, assert_clean, assert_same, guest_bytes, python, sample_image};
use common::{Run, Workdir, json, peer, testdata, vhdx};

const VHDX: &str = env!("CARGO_BIN_EXE_vhdx");

/// Writes 64 KiB of `w` at 1 MiB, flushes, and reads them back over another connection.
const WRITE: &str = "
import nbd, sys
a, b = nbd.NBD(), nbd.NBD()
for h in (a, b):
    h.connect_uri(sys.argv[1])
a.pwrite(b'w' * 65536, 1 << 20)
a.flush()
assert b.pread(65536, 1 << 20) == b'w' * 65536
assert b.pread(512, 0) != b'w' * 512
a.shutdown()
b.shutdown()
";

fn written(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[1 << 20..(1 << 20) + 65536].fill(b'w');
    bytes
}

/// What a failed start says; it must fail by itself, and soon.
fn refused(arguments: &[&str]) -> String {
    peer(VHDX, &[&["serve"], arguments].concat()).unwrap().fails()
}

#[test]
fn a_dirty_image_is_read_as_if_replayed_and_stays_dirty() {
    let dir = Workdir::new();
    let image = dir.copy("crashed.vhdx");
    let wanted = guest_bytes(&dir, &image);
    let before = dir.fingerprint(&image);
    let server = Server::start(&[&image, "--read-only"]);
    let out = dir.path("out.raw");
    let Some(copied) = peer("nbdcopy", &[server.uri(), &out]) else { return };
    copied.succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &wanted, "the crashed disk");
    let script = "
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
for call in [lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)]:
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == errno.EPERM, e
    else:
        raise SystemExit('written to a read-only export')
";
    python(script, &[server.uri()]).map(Run::succeeds);
    server.stop();
    assert!(dir.fingerprint(&image) == before, "the file has changed");
    assert_eq!(vhdx(&["info", "--json", &image]).succeeds().matches("dirty").count(), 1);
}

#[test]
fn a_snapshot_in_memory_is_gone_afterwards() {
    let dir = Workdir::new();
    // A dirty one and a clean one: the replay must not reach the file either.
    for image in [dir.copy("crashed.vhdx"), sample_image(&dir, "512").0] {
        let before = dir.fingerprint(&image);
        let server = Server::start(&[&image, "--snapshot"]);
        let Some(done) = python(WRITE, &[server.uri()]) else { return };
        done.succeeds();
        assert!(dir.fingerprint(&image) == before, "{image} has changed while it was served");
        server.stop();
        assert!(dir.fingerprint(&image) == before, "{image} has changed");
    }
}

#[test]
fn a_snapshot_that_is_full_refuses_and_goes_on() {
    let dir = Workdir::new();
    let (image, ..) = sample_image(&dir, "512");
    let before = dir.fingerprint(&image);
    let mut server = Server::start(&[&image, "--snapshot", "--snapshot-memory", "4M"]);
    let script = "
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
told = None
for at in range(16):
    try:
        h.pwrite(b'x' * (1 << 20), at << 20)
    except nbd.Error as e:
        told = e.errnum
        break
assert told == errno.ENOSPC, told
assert h.pread(1 << 20, 0) == b'x' * (1 << 20)
assert len(h.pread(1 << 20, 23 << 20)) == 1 << 20
";
    let Some(done) = python(script, &[server.uri()]) else { return };
    done.succeeds();
    assert!(server.errors().contains("memory"), "{}", server.errors());
    server.stop();
    assert!(dir.fingerprint(&image) == before, "the file has changed");
}

#[test]
fn a_snapshot_in_a_child_stays_in_the_child() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let child = dir.path("snapshot.avhdx");
    let before = dir.fingerprint(&image);
    let option = format!("--snapshot={child}");
    let server = Server::start(&[&image, &option]);
    let Some(done) = python(WRITE, &[server.uri()]) else { return };
    done.succeeds();
    server.stop();
    assert!(dir.fingerprint(&image) == before, "the base has changed");
    assert_clean(&child);
    assert_same(&guest_bytes(&dir, &child), &written(bytes), "the child");
    // A second one must not take the first one's place.
    let kept = dir.fingerprint(&child);
    let text = refused(&[&image, &option]);
    assert!(text.contains("exist"), "{text}");
    assert!(dir.fingerprint(&child) == kept, "the child has changed");
}

#[test]
fn a_command_is_run_and_its_status_passed_on() {
    let dir = Workdir::new();
    let (image, raw, _) = sample_image(&dir, "512");
    let run = |command: &str| peer(VHDX, &["serve", &image, "--run", command]).unwrap();
    run("exit 0").succeeds();
    run("exit 7").exits_with(7);
    run("kill -KILL $$").exits_with(137);
    let told = run("echo \"$uri|$unixsocket|$port|$exportname\"; test -S \"$unixsocket\"");
    let told = told.succeeds();
    let (uri, rest) = told.trim().split_once('|').unwrap();
    let socket = rest.strip_suffix("||").unwrap();
    assert_eq!(uri, format!("nbd+unix:///?socket={socket}"));
    assert!(!Path::new(socket).exists(), "{socket} is left behind");
    assert!(!Path::new(socket).parent().unwrap().exists(), "its folder is left behind");
    let port = ["serve", &image, "--tcp", "127.0.0.1:0", "-x", "a", "--run", "echo $port $uri"];
    let told = peer(VHDX, &port).unwrap().succeeds();
    let (port, uri) = told.trim().split_once(' ').unwrap();
    assert_eq!(uri, format!("nbd://127.0.0.1:{port}/a"));
    // The client whose copy is what counts, and its failure ours.
    if peer("qemu-img", &["--version"]).is_some() {
        run(&format!("qemu-img compare -f raw -F raw \"$uri\" '{raw}'")).succeeds();
        run("qemu-img info \"$uri\"; qemu-img info nosuchfile").exits_with(1);
    }
    assert_clean(&image);
}

/// Whoever ends the server means the command too: it must not be left running without its disk.
#[test]
fn a_signal_ends_the_command_as_well() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let started = dir.path("started");
    let command = format!("echo $$ > '{started}'; exec sleep 300");
    let mut child = Run::command(&["serve", &image, "--run", &command]).spawn().unwrap();
    let begun = Instant::now();
    let pid = loop {
        assert!(begun.elapsed() < Duration::from_secs(20), "the command was not started");
        if let Ok(pid) = std::fs::read_to_string(&started)
            && pid.ends_with('\n')
        {
            break pid.trim().to_owned();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let is_there = || Path::new("/proc").join(&pid).exists();
    assert!(is_there());
    let kill = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > Duration::from_secs(10) {
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let left = is_there();
    let _ = child.kill();
    let _ = Command::new("kill").args(["-s", "KILL", &pid]).output();
    assert!(status.is_some(), "the server waits for its command");
    assert!(!left, "the command runs on");
    assert_clean(&image);
}

#[test]
fn the_process_id_is_in_a_file_as_long_as_it_runs() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let file = dir.path("pid");
    let server = Server::start(&[&image, "--pid-file", &file, "--unix", &dir.path("s")]);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), server.pid().to_string());
    server.stop();
    assert_eq!(dir.names(), ["clean.vhdx"], "something is left behind");
}

#[test]
fn a_socket_that_is_handed_over_is_served() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let socket = dir.path("handed.sock");
    let script = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(8)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ['LISTEN_FDS'] = '1'
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
";
    if peer("python3", &["--version"]).is_none() {
        return;
    }
    let mut command = Command::new("python3");
    command.args(["-c", script, &socket, VHDX, "serve", &image]);
    let server = Server::spawn(command);
    assert_eq!(server.uri(), format!("nbd+unix:///?socket={socket}"));
    let out = dir.path("out.raw");
    let Some(copied) = peer("nbdcopy", &[server.uri(), &out]) else { return };
    copied.succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &bytes, "the copy");
    server.stop();
    assert!(Path::new(&socket).exists(), "the socket belongs to whoever made it");
    assert_clean(&image);
}

/// libnbd starts a server in brackets by itself, and hands it a socket.
#[test]
fn libnbd_starts_us_as_it_starts_others() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let out = dir.path("out.raw");
    let copy = ["--", "[", VHDX, "serve", "--read-only", &image, "]", &out];
    let Some(copied) = peer("nbdcopy", &copy) else { return };
    copied.succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &bytes, "the copy");
}

#[test]
fn once_means_until_the_last_client_has_gone() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let mut server = Server::start(&[&image, "--once"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.is_running(), "nobody has come yet");
    let script = "
import nbd, os, sys, time
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1])
b.connect_uri(sys.argv[1])
a.shutdown()
time.sleep(0.3)
os.kill(int(sys.argv[2]), 0)
b.pwrite(b'z' * 512, 0)
b.shutdown()
";
    let Some(done) = python(script, &[server.uri(), &server.pid().to_string()]) else { return };
    done.succeeds();
    assert_eq!(server.ends(), 0, "{}", server.errors());
    assert_clean(&image);
    assert_eq!(guest_bytes(&dir, &image)[..512], [b'z'; 512]);
}

#[test]
fn a_place_that_is_taken_is_told_and_left_alone() {
    let dir = Workdir::new();
    let (image, other) = (dir.copy("clean.vhdx"), dir.copy("sectors-4k.vhdx"));
    let socket = dir.path("s");
    let server = Server::start(&[&image, "--unix", &socket]);
    let text = refused(&[&other, "--unix", &socket]);
    assert!(text.contains(&socket) && text.contains("--unix"), "{text}");
    // Its own clients still find it.
    if let Some(size) = peer("nbdinfo", &["--size", server.uri()]) {
        assert_eq!(size.succeeds().trim(), "9438720");
    }
    server.stop();
    let server = Server::start(&[&image, "--tcp", "127.0.0.1:0"]);
    let (_, port) = server.uri().trim_end_matches('/').rsplit_once(':').unwrap();
    let text = refused(&[&other, "--tcp", port]);
    assert!(text.contains(port) && text.contains("--tcp"), "{text}");
    server.stop();
    std::fs::write(dir.path("file"), b"precious").unwrap();
    let text = refused(&[&other, "--unix", &dir.path("file")]);
    assert!(text.contains("there is a file"), "{text}");
    assert_eq!(std::fs::read(dir.path("file")).unwrap(), b"precious");
}

#[test]
fn the_socket_of_a_killed_server_is_replaced() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let socket = dir.path("s");
    let mut killed = Server::start(&[&image, "--unix", &socket]);
    killed.signal("KILL");
    assert_eq!(killed.ends(), -1);
    assert!(Path::new(&socket).exists());
    let server = Server::start(&[&image, "--unix", &socket]);
    peer("nbdinfo", &[server.uri()]).map(Run::succeeds);
    server.stop();
    assert!(!Path::new(&socket).exists());
}

#[test]
fn images_that_cannot_be_served_say_what_to_do() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let server = Server::start(&[&image]);
    let text = peer(VHDX, &["serve", &image]).unwrap().fails_with(4);
    let pid = format!("pid {}", server.pid());
    assert!(text.contains(&image) && text.contains(&pid), "{text}");
    server.stop();

    let text = refused(&[&dir.path("nothing.vhdx")]);
    assert!(text.contains("nothing.vhdx") && text.contains("No such file"), "{text}");

    std::fs::create_dir(dir.path("b")).unwrap();
    let same = dir.path("b/clean.vhdx");
    std::fs::copy(&image, &same).unwrap();
    let text = refused(&[&image, &same]);
    assert!(text.contains("'clean'") && text.contains("--export"), "{text}");
    let text = refused(&[&image, &same, "-x", "one"]);
    assert!(text.contains("--export"), "{text}");

    let child = testdata("child.vhdx").to_str().unwrap().to_owned();
    for how in ["--read-only", "--snapshot"] {
        let text = refused(&[&child, how]);
        assert!(text.contains("child.vhdx is a child") && text.contains("--parent"), "{text}");
    }
    let text = refused(&[&child, "--read-only", "--parents", "follow"]);
    assert!(text.contains("--parent") && text.contains("beneath="), "{text}");

    let text = refused(&[&image, "--tcp", "0.0.0.0:0"]);
    assert!(text.contains("--tls-certificates") && text.contains("--insecure"), "{text}");
    let text = refused(&[&image, "--snapshot", "--read-only"]);
    assert!(text.contains("cannot be used with"), "{text}");
}

/// A program wants to know where the server is before it is told anything else.
#[test]
fn json_tells_a_program_where_it_is() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let out = dir.path("told.json");
    let script = format!(
        "'{VHDX}' serve '{image}' --json --once > '{out}' & \
         for i in 1 2 3 4 5 6 7 8 9 10; do test -s '{out}' && break; sleep 0.2; done; kill $!; wait $!"
    );
    peer("sh", &["-c", &script]).unwrap().succeeds();
    let told = json(&std::fs::read_to_string(out).unwrap());
    assert!(told["pid"].is_u64());
    let export = &told["exports"][0];
    assert_eq!(export["size"], 9_438_720);
    assert_eq!(export["read_only"], false);
    assert!(export["uri"].as_str().unwrap().starts_with("nbd+unix:///?socket=/"), "{export}");
}
