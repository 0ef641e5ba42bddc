//! What clients of others make of our server: libnbd's tools, QEMU's, fio, nbdkit. Bytes are compared
//! with a copy that never went through it.
//!
//! Each test names the program that it misses, and then proves nothing.
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use common::server::{
    Server, assert_clean, assert_same, guest_bytes, noise, python, sample, sample_image,
};
use common::{Run, Workdir, json, peer, testdata, vhdx};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Offset, length and type of the runs in a list of nbdinfo's or qemu-img's.
fn runs(list: &Value, names: [&str; 3]) -> Vec<(u64, u64, u64)> {
    let number = |value: &Value| match value {
        Value::Bool(yes) => u64::from(*yes),
        value => value.as_u64().unwrap(),
    };
    let run = |run: &Value| {
        let [start, length, kind] = names.map(|name| number(&run[name]));
        (start, length, kind)
    };
    list.as_array().unwrap().iter().map(run).collect()
}

/// The whole [`sample`] in runs: of data, and of what lies between.
fn sample_runs(data: u64, hole: u64) -> Vec<(u64, u64, u64)> {
    let mut all = Vec::new();
    let mut told = 0;
    for (start, end) in sample().1.map(|(start, end)| (start as u64, end as u64)) {
        if told < start {
            all.push((told, start - told, hole));
        }
        all.push((start, end - start, data));
        told = end;
    }
    all
}

#[test]
fn nbdinfo_is_told_what_the_disk_is() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "4096");
    let server = Server::start(&[&image, "--unix", &dir.path("a b.sock")]);
    let Some(told) = peer("nbdinfo", &["--json", server.uri()]) else { return };
    let told = json(&told.succeeds());
    assert_eq!(told["structured"], true, "{told}");
    let export = &told["exports"][0];
    for (name, value) in [
        ("export-size", Value::from(bytes.len())),
        ("is_read_only", false.into()),
        ("can_multi_conn", true.into()),
        ("can_fua", true.into()),
        ("can_flush", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("can_df", true.into()),
        ("block_size_minimum", 4096.into()),
        ("block_size_maximum", (32u64 << 20).into()),
    ] {
        assert_eq!(export[name], value, "{name} of {export}");
    }
    let contexts: Vec<&str> =
        export["contexts"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(contexts, ["base:allocation", "vhdx:state", "vhdx:depth"]);
    let size = peer("nbdinfo", &["--size", server.uri()]).unwrap().succeeds();
    assert_eq!(size.trim(), bytes.len().to_string());
    server.stop();
}

#[test]
fn nbdinfo_is_told_where_the_holes_are() {
    let dir = Workdir::new();
    let (image, ..) = sample_image(&dir, "512");
    let server = Server::start(&[&image]);
    // 3 is a hole that reads as zeros; 2, for us, a block that was never written.
    for (map, hole) in [("--map", 3), ("--map=vhdx:state", 2)] {
        let Some(told) = peer("nbdinfo", &["--json", map, server.uri()]) else { return };
        let told = json(&told.succeeds());
        assert_eq!(runs(&told, ["offset", "length", "type"]), sample_runs(0, hole), "{map}");
    }
    server.stop();
}

/// Who serves a checkpoint wants to know what is new in it.
#[test]
fn nbdinfo_is_told_which_image_of_a_chain_decides() {
    let dir = Workdir::new();
    let (base, raw, mut bytes) = sample_image(&dir, "512");
    let child = dir.path("child.vhdx");
    vhdx(&["create", "-q", &child, "--parent", &base]).succeeds();
    let changed = noise(9, 2 * MIB as usize);
    std::fs::write(dir.path("changed"), &changed).unwrap();
    let mut write = Run::command(&["write", "-q", &child, "--offset", "4M"]);
    let written = write.stdin(File::open(dir.path("changed")).unwrap()).output();
    assert!(written.unwrap().status.success());
    bytes[4 << 20..6 << 20].copy_from_slice(&changed);

    let server = Server::start(&[&child, "--parent", &base, "--read-only"]);
    let Some(told) = peer("nbdinfo", &["--json", "--map=vhdx:depth", server.uri()]) else { return };
    let told = runs(&json(&told.succeeds()), ["offset", "length", "type"]);
    let own: Vec<_> = told.iter().filter(|run| run.2 == 0).map(|run| (run.0, run.1)).collect();
    assert_eq!(own, [(4 * MIB, 2 * MIB)], "{told:?}");
    peer("nbdcopy", &[server.uri(), &raw]).map(Run::succeeds);
    assert_same(&std::fs::read(raw).unwrap(), &bytes, "the chain");
    server.stop();
}

#[test]
fn several_images_are_several_exports() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let other = dir.copy("sectors-4k.vhdx");
    let server = Server::start(&[&image, &other, "-x", "", "-x", "vier k/ä"]);
    let Some(list) = peer("nbdinfo", &["--list", "--json", server.uri()]) else { return };
    let list = json(&list.succeeds());
    let exports = list["exports"].as_array().unwrap();
    let told: Vec<_> = exports
        .iter()
        .map(|export| (export["export-name"].as_str().unwrap(), export["export-size"].as_u64()))
        .collect();
    assert_eq!(told, [("", Some(bytes.len() as u64)), ("vier k/ä", Some(5_255_168))]);
    let wanted = dir.path("wanted.raw");
    vhdx(&["convert", "-q", "--to", "raw", testdata("sectors-4k.vhdx").to_str().unwrap(), &wanted])
        .succeeds();
    // Each URI leads to its own disk.
    let out = dir.path("out.raw");
    peer("nbdcopy", &[&server.uris[1], &out]).unwrap().succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &std::fs::read(wanted).unwrap(), "the second");
    // A name that is not there is told with those that are.
    let wrong = server.uris[1].replace("vier", "fuenf");
    if let Some(told) = peer("qemu-img", &["info", &wrong]).map(Run::fails) {
        assert!(told.contains("vier k/ä"), "{told}");
    }
    server.stop();
}

#[test]
fn nbdcopy_takes_the_bytes_and_leaves_the_holes() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let server = Server::start(&[&image, "--read-only"]);
    for connections in ["1", "4"] {
        let out = dir.path(&format!("out{connections}.raw"));
        let options = ["--connections", connections, "--requests", "16", server.uri(), &out];
        let Some(copied) = peer("nbdcopy", &options) else { return };
        copied.succeeds();
        assert_same(&std::fs::read(&out).unwrap(), &bytes, "the copy");
        let stored = std::fs::metadata(&out).unwrap().blocks() * 512;
        assert!(stored < 10 * MIB, "9 MiB of data, and {stored} bytes are stored");
    }
    server.stop();
}

#[test]
fn nbdcopy_fills_an_image_and_keeps_the_holes() {
    let dir = Workdir::new();
    let (_, raw, bytes) = sample_image(&dir, "512");
    let image = dir.path("filled.vhdx");
    let size = bytes.len().to_string();
    vhdx(&["create", "-q", &image, &size, "--block-size", "1M"]).succeeds();
    let server = Server::start(&[&image]);
    let options = ["--connections", "4", "--flush", &raw, server.uri()];
    let Some(copied) = peer("nbdcopy", &options) else { return };
    copied.succeeds();
    server.stop();
    assert_clean(&image);
    assert_same(&guest_bytes(&dir, &image), &bytes, "the filled image");
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!(info["blocks"]["fully_present"], 10, "{info}");
}

#[test]
fn qemu_img_reads_it_over_both_kinds_of_sockets() {
    let dir = Workdir::new();
    let (image, raw, bytes) = sample_image(&dir, "512");
    for place in [["--unix", &dir.path("s")], ["--tcp", "127.0.0.1:0"]] {
        let server = Server::start(&[&[&*image][..], &place].concat());
        let uri = server.uri();
        let scheme = if place[0] == "--tcp" { "nbd://127.0.0.1:" } else { "nbd+unix://" };
        assert!(uri.starts_with(scheme) && !uri.contains(":0/"), "{uri}");
        let Some(info) = peer("qemu-img", &["info", "--output=json", uri]) else { return };
        assert_eq!(json(&info.succeeds())["virtual-size"], bytes.len());
        let map = peer("qemu-img", &["map", "--output=json", uri]).unwrap().succeeds();
        let map = runs(&json(&map), ["start", "length", "zero"]);
        assert_eq!(map, sample_runs(0, 1));
        let compared = peer("qemu-img", &["compare", "-f", "raw", "-F", "raw", uri, &raw]);
        compared.unwrap().succeeds();
        let out = dir.path("out.raw");
        peer("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, &out]).unwrap().succeeds();
        assert_same(&std::fs::read(&out).unwrap(), &bytes, "qemu-img's copy");
        server.stop();
    }
}

#[test]
fn qemu_img_fills_an_image() {
    let dir = Workdir::new();
    let (_, raw, bytes) = sample_image(&dir, "512");
    let image = dir.path("filled.vhdx");
    let size = bytes.len().to_string();
    vhdx(&["create", "-q", &image, &size, "--block-size", "1M"]).succeeds();
    let server = Server::start(&[&image, "--tcp", "0"]);
    let options = ["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", &raw, server.uri()];
    let Some(copied) = peer("qemu-img", &options) else { return };
    copied.succeeds();
    server.stop();
    assert_clean(&image);
    assert_same(&guest_bytes(&dir, &image), &bytes, "the filled image");
}

/// What has 4 GiB and more in one piece can be told, cleared and given back with one request only when both
/// sides speak of lengths in 64 bits.
#[test]
fn qemu_asks_for_more_than_four_gibibytes_at_once() {
    let dir = Workdir::new();
    let image = dir.path("large.vhdx");
    vhdx(&["create", "-q", &image, "64G"]).succeeds();
    let server = Server::start(&[&image]);
    let traced = ["-T", "nbd_send_request", "map", "--output=json", server.uri()];
    let Some(map) = peer("qemu-img", &traced) else { return };
    let (told, trace) = map.succeeds_with_errors();
    assert_eq!(runs(&json(&told), ["start", "length", "zero"]), [(0, 64 << 30, 1)]);
    // Where a qemu-img cannot trace it warns of that.
    assert!(trace.contains("len = 68719476736") || trace.contains("warning"), "{trace}");
    let clear =
        ["-T", "nbd_send_request", "-f", "raw", server.uri(), "-c", "write -z -u -n 1G 16G"];
    let (_, trace) = peer("qemu-io", &clear).unwrap().succeeds_with_errors();
    assert!(trace.contains("len = 17179869184") || trace.contains("warning"), "{trace}");
    server.stop();
    assert_clean(&image);
}

/// Writes, clearing with and without giving space back, discards: a model goes with them.
#[test]
fn qemu_io_and_a_model_agree() {
    let dir = Workdir::new();
    let (image, _, mut model) = sample_image(&dir, "512");
    let server = Server::start(&[&image]);
    let mut script: Vec<String> = Vec::new();
    let places = noise(4, 120);
    for (number, place) in places.iter().enumerate() {
        let start = usize::from(*place) * 96 * 1024 + number * 512;
        let length = (number % 7 + 1) * 13 * 512;
        let range = &mut model[start..start + length];
        let pattern = number as u8 | 1;
        script.push(match number % 5 {
            0 | 1 => {
                range.fill(pattern);
                format!("write -P {pattern} {start} {length}")
            }
            2 => {
                range.fill(0);
                format!("write -z -u {start} {length}")
            }
            3 => {
                range.fill(0);
                format!("write -z {start} {length}")
            }
            _ => {
                range.fill(pattern);
                format!("write -f -P {pattern} {start} {length}")
            }
        });
        if number % 5 < 2 {
            script.push(format!("read -P {pattern} {start} {length}"));
        }
    }
    // A whole block: it is given back, and may be cleared without writing.
    for (command, start) in [("discard", 11 << 20), ("write -z -u -n", 12 << 20)] {
        model[start..start + (1 << 20)].fill(0);
        script.push(format!("{command} {start} {}", 1 << 20));
    }
    script.push("flush".to_owned());
    let mut arguments = vec!["-f", "raw", server.uri()];
    script.iter().for_each(|line| arguments.extend(["-c", line]));
    let Some(done) = peer("qemu-io", &arguments) else { return };
    let told = done.succeeds();
    assert!(!told.contains("failed") && !told.contains("error"), "{told}");
    // Quickly, and with the space kept: that there is no way to do so must be told, not waited for.
    let refused = peer("qemu-io", &["-f", "raw", server.uri(), "-c", "write -z -n 0 1M"]);
    assert!(refused.unwrap().fails().contains("not supported"));
    server.stop();
    assert_clean(&image);
    assert_same(&guest_bytes(&dir, &image), &model, "after qemu-io");
    let info = json(&vhdx(&["info", "--json", &image]).succeeds());
    assert_eq!(info["blocks"]["unmapped"], 1, "the discarded block: {info}");
}

/// fio knows what it has written by a sum in each block; here again after the server was started anew.
#[test]
fn fio_finds_what_it_has_written() {
    for sector in ["512", "4096"] {
        let dir = Workdir::new();
        let image = dir.path("fio.vhdx");
        let options = ["--block-size", "1M", "--logical-sector-size", sector];
        vhdx(&[&["create", "-q", &image, "64M"], &options[..]].concat()).succeeds();
        let run = |uri: &str, more: &[&str]| {
            let uri = format!("--uri={uri}");
            let job = "--name=job --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --size=24M \
                       --randseed=7 --verify=crc32c --verify_fatal=1 --verify_state_save=0";
            let job: Vec<&str> = job.split_whitespace().collect();
            peer("fio", &[&job[..], &[&uri], more].concat())
        };
        let server = Server::start(&[&image]);
        let Some(done) = run(server.uri(), &["--fsync=500"]) else { return };
        let told = done.succeeds();
        assert!(told.contains("READ: bw=") && told.contains("WRITE: bw="), "{told}");
        server.stop();
        assert_clean(&image);
        let server = Server::start(&[&image, "--read-only"]);
        run(server.uri(), &["--verify_only=1"]).unwrap().succeeds();
        server.stop();
    }
}

/// The proxy asks us for everything that its own clients ask it for.
#[test]
fn nbdkit_passes_us_on() {
    let dir = Workdir::new();
    let (image, raw, bytes) = sample_image(&dir, "4096");
    let server = Server::start(&[&image]);
    let (out, uri) = (dir.path("out.raw"), format!("uri={}", server.uri()));
    let proxy = |command: &str| {
        peer("nbdkit", &["-U", "-", "--exit-with-parent", "nbd", &uri, "--run", command])
    };
    let Some(copied) = proxy(&format!("nbdcopy \"$uri\" '{out}'")) else { return };
    copied.succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &bytes, "through nbdkit");
    let new = noise(77, bytes.len());
    std::fs::write(&raw, &new).unwrap();
    proxy(&format!("nbdcopy --flush '{raw}' \"$uri\"")).unwrap().succeeds();
    server.stop();
    assert_clean(&image);
    assert_same(&guest_bytes(&dir, &image), &new, "written through nbdkit");
}

#[test]
fn less_than_a_sector_is_refused_and_changes_nothing() {
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "4096");
    let server = Server::start(&[&image]);
    let script = "
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
for offset, length in [(512, 4096), (0, 512), (4096, 6144)]:
    for call in [lambda: h.pwrite(b'x' * length, offset), lambda: h.zero(length, offset),
                 lambda: h.trim(length, offset)]:
        try:
            call()
        except nbd.Error as e:
            assert e.errnum == errno.EINVAL, e
        else:
            raise SystemExit('not refused: %d bytes at %d' % (length, offset))
h.pwrite(b'y' * 4096, 8192)
try:
    h.pwrite(b'x' * 4096, h.get_size())
except nbd.Error as e:
    assert e.errnum == errno.ENOSPC, e
else:
    raise SystemExit('written behind the end')
h.shutdown()
";
    let Some(done) = python(script, &[server.uri()]) else { return };
    done.succeeds();
    server.stop();
    let mut model = bytes;
    model[8192..12288].fill(b'y');
    assert_same(&guest_bytes(&dir, &image), &model, "after refusals");
}
