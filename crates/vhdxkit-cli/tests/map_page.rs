//! The page of `map --html`: it may be posted in a bug report by somebody who has just lost a disk.
//!
//! So it must be whole, must load nothing from anywhere, must not run what a hostile disk wrote into its labels, must
//! stay small for the largest disk there is, and must exist for an image that nothing else opens.

mod common;

use std::time::{Duration, Instant};

use common::{Run, Workdir, json, peer, testdata, vhdx};
use vhdxkit_testkit::{Contents, Image};

const MIB: u64 = 1 << 20;

/// Makes the page of an image, checks it, gives it.
fn page(dir: &Workdir, image: &str, status: i32) -> String {
    let target = dir.path("page.html");
    let told = vhdx(&["map", "--force", "--html", &target, image]).exits_with(status);
    assert!(told.contains("page.html"), "{told}");
    let page = std::fs::read_to_string(&target).unwrap();
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
    require_whole(&page);
    require_alone(&page);
    page
}

/// Every element is closed where it must be, attributes are quoted, ids are unique, references to them lead
/// somewhere, and no character that begins markup stands for itself. (All of the page is XML, too.)
fn require_whole(page: &str) {
    let mut rest = page.strip_prefix("<!DOCTYPE html>\n").expect("a document type");
    let (mut open, mut ids, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(start) = rest.find('<') {
        require_text(&rest[..start]);
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed by </{name}>");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{name}>");
        while !attributes.is_empty() {
            let (key, more) = attributes.split_once("=\"").expect("a quoted attribute");
            let (value, more) = more.split_once('"').expect("the attribute ends");
            require_text(value);
            assert!(!key.starts_with("on") && !["src", "href", "style"].contains(&key), "{key}");
            match key {
                "id" => ids.push(value),
                "aria-labelledby" => wanted.push(value),
                _ => {}
            }
            attributes = more.strip_prefix(' ').unwrap_or(more);
        }
        if name == "style" {
            let (css, more) = rest.split_once("</style>").expect("the style ends");
            let urls = css.split("url(#").skip(1).map(|url| url.split(')').next().unwrap());
            wanted.extend(urls);
            rest = more;
        } else if !closed {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new(), "left open");
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id twice");
    for id in wanted {
        assert!(ids.contains(&id), "#{id} leads nowhere");
    }
}

fn require_text(text: &str) {
    assert!(!text.contains('<') && !text.contains('>'), "{text}");
    for reference in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
        assert!(known.iter().any(|known| reference.starts_with(known)), "&{reference}");
    }
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

fn require_alone(page: &str) {
    for outside in [
        "http:",
        "https:",
        "//",
        "@import",
        "<script",
        "<link",
        "<img",
        "<iframe",
        "data:image",
        "data:text",
    ] {
        // Paths and rules of the format may say anything in text; these pages' do not.
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn pages_are_whole_load_nothing_and_say_what_the_image_is() {
    let dir = Workdir::new();
    dir.copy("clean.vhdx");
    for (name, words) in [
        (
            "clean.vhdx",
            &["A dynamic disk of 9.0 MiB", "In order", "trimmed", "kept by trimmed blocks"][..],
        ),
        ("child.vhdx", &["A differencing disk", "data, stored in the parent", "sector bitmaps"]),
        ("crashed.vhdx", &["vhdx log replay", "TO BE APPLIED", "block 1: ", "torn", "I-DIRTY"]),
        ("sectors-4k.vhdx", &["4096 logical"]),
    ] {
        let image = dir.copy(name);
        let before = dir.fingerprint(&image);
        let page = page(&dir, &image, 0);
        for word in words {
            assert!(page.contains(word), "{name}: {word}");
        }
        assert_eq!(dir.fingerprint(&image), before, "{name} was changed");
    }
    // A program that others wrote reads it as XML, too.
    let target = dir.path("page.html");
    if let Some(run) =
        peer("python3", &["-c", "import sys,xml.dom.minidom as m; m.parse(sys.argv[1])", &target])
    {
        run.succeeds();
    }
}

/// The name of the file, the label of a file system, the maker, the paths of a parent: all of it is anybody's.
#[test]
fn hostile_names_stay_text() {
    let dir = Workdir::new();
    let hostile = "</title><script>alert(1)</script>\"'&";
    let mut swap = vec![0u8; 4096];
    swap[1024] = 1;
    swap[1028..1032].copy_from_slice(&511u32.to_le_bytes());
    swap[1052..1052 + 15].copy_from_slice(b"<b onload=x>&\"'");
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    let parent = Image::dynamic(2 * MIB);
    let kits = [
        Image::dynamic(2 * MIB).creator(hostile).block(0, Contents::Data(swap)),
        Image::differencing(2 * MIB, parent.data_write_guid())
            .parent_path("relative_path", hostile)
            .parent_path("absolute_win32_path", &format!("C:\\{hostile}")),
    ];
    for (number, (kit, status)) in kits.iter().zip([0, 3]).enumerate() {
        // A name in a folder has no slash, an element that is closed by itself needs none.
        let image = dir.path(&format!("<img onerror='x' id=\"{number}\">&.vhdx"));
        kit.build_file(image.as_ref());
        let page = page(&dir, &image, status);
        assert!(!page.contains("<img") && !page.contains("alert(1)</script>"));
        assert!(page.contains("&lt;img onerror=&#39;x&#39;"));
        assert!(
            page.contains("&lt;script&gt;alert(1)")
                || number == 0 && page.contains("&lt;b onload=x&gt;&amp;")
        );
    }
}

/// What a page takes the place of is gone. Nothing is worth less than a page but an older page: a raw disk, a
/// file system, a qcow2 or VHD image, a letter.
#[test]
fn a_page_replaces_nothing_but_a_page_and_that_only_by_force() {
    let dir = Workdir::new();
    let (image, other) = (dir.copy("clean.vhdx"), dir.copy("crashed.vhdx"));
    let mut gpt = vec![0; 4096];
    gpt[512..520].copy_from_slice(b"EFI PART");
    let mut precious = vec![image.clone(), other];
    for (name, bytes) in [
        ("disk.raw", &gpt[..]),
        ("disk.qcow2", b"QFI\xfb\0\0\0\x03"),
        ("disk.vhd", b"conectix"),
        ("zeros.raw", &[0; 4096]),
        ("short", b"<!doctype"),
        ("later.html", b"\n<!doctype html>"),
    ] {
        let path = dir.path(name);
        std::fs::write(&path, bytes).unwrap();
        precious.push(path);
    }
    for path in &precious {
        let before = dir.fingerprint(path);
        let refused = vhdx(&["map", "--force", "--html", path, &image]).fails_with(1);
        assert!(refused.contains("same file") || refused.contains("is not a page"), "{refused}");
        assert!(dir.fingerprint(path) == before, "{path} was changed");
    }
    let names = dir.names();
    let target = dir.path("page.html");
    for old in [&b""[..], b"<!doctype HTML><p>old"] {
        std::fs::write(&target, old).unwrap();
        let refused = vhdx(&["map", "--html", &target, &image]).fails_with(1);
        assert!(refused.contains("--force"), "{refused}");
        // An image that cannot be read leaves the old page.
        vhdx(&["map", "--force", "--html", &target, &dir.path("none.vhdx")]).fails_with(1);
        assert_eq!(std::fs::read(&target).unwrap(), old);
        vhdx(&["map", "--force", "--html", &target, &image]).succeeds();
        assert!(std::fs::read(&target).unwrap().starts_with(b"<!DOCTYPE html>"));
    }
    vhdx(&["map", "--html", &dir.path("no/such/page.html"), &image]).fails_with(1);
    vhdx(&["map", "--html", "-", &image]).fails_with(2);
    std::fs::remove_file(&target).unwrap();
    assert_eq!(dir.names(), names);
    let usage = Run::command(&["map", "--force", &image]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// The one who needs the page most has an image that nothing opens.
#[test]
fn an_image_that_cannot_be_opened_still_shows_what_can_be_read() {
    let dir = Workdir::new();
    let sick = |name: &str, places: &[usize]| {
        let mut bytes = std::fs::read(testdata("crashed.vhdx")).unwrap();
        places.iter().for_each(|at| bytes[*at..*at + 8].fill(b'X'));
        let path = dir.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    // Both region tables are gone: headers and log are left.
    let found = page(&dir, &sick("tables.vhdx", &[0x30000, 0x40000]), 3);
    for word in
        ["cannot be opened", "map of the disk cannot be shown", "V11", "TO BE APPLIED", "current"]
    {
        assert!(found.contains(word), "{word}");
    }
    // Both headers are gone, too.
    let found = page(&dir, &sick("headers.vhdx", &[0x10000, 0x20000]), 3);
    assert!(found.contains("V2") && found.contains("No header can be read"));
    let told = vhdx(&[
        "map",
        "--json",
        "--force",
        "--html",
        &dir.path("p.html"),
        &dir.path("headers.vhdx"),
    ]);
    let told = json(&told.exits_with(3));
    assert_eq!((&told["mapped"], &told["result"]), (&false.into(), &"problems".into()));
    // A log that cannot be replayed: the disk as it lies, and so it says.
    let image = dir.path("log.vhdx");
    let kit = Image::dynamic(4 * MIB).block(1, Contents::Pattern(1));
    kit.clone().dirty(kit.session(3)).build_file(image.as_ref());
    let found = page(&dir, &image, 3);
    assert!(
        found.contains("its log cannot be replayed") && found.contains("data, stored in this file")
    );
    // A child without its parent.
    let image = dir.copy("child.vhdx");
    let found = page(&dir, &image, 3);
    assert!(found.contains("Its parent cannot be had") && found.contains("not at hand"));
    // Blocks that cannot be read, and the rest of the disk around them.
    let image = dir.path("blocks.vhdx");
    let kit = Image::dynamic(8 * MIB).block(1, Contents::Pattern(1));
    let at = kit.layout().bat_index(5);
    kit.bat_entry(at, 4).build_file(image.as_ref());
    let found = page(&dir, &image, 3);
    assert!(
        found.contains("1 MiB of the disk cannot be read") && found.contains(": 512 KiB DAMAGED")
    );
}

#[test]
fn the_largest_disk_makes_a_small_page_quickly() {
    let dir = Workdir::new();
    let image = dir.path("large.vhdx");
    vhdx(&["create", "--block-size", "1M", &image, "64T"]).succeeds();
    let began = Instant::now();
    let page = page(&dir, &image, 0);
    assert!(page.len() < 200_000, "{} bytes", page.len());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(page.contains("a cell is 16 GiB"));
}

/// A disk in which no cell is like its neighbour, with a log that is full: as much page as there can be.
#[test]
fn the_busiest_image_stays_within_its_bound() {
    let dir = Workdir::new();
    let states = [6u64, 2, 3, 1, 0];
    let mut kit = Image::dynamic(4096 * MIB).log_length(4 << 20);
    for block in 0..4096u64 {
        let raw = states[(block * 7 % 5) as usize];
        // Every block at its own place in a sparse file, in the wildest order.
        let place = if raw == 6 { 16 + block * 2731 % 4096 } else { 0 };
        kit = kit.bat_entry(block + block / 4096, raw | place << 20);
    }
    for _ in 0..300 {
        let entry = vhdxkit_testkit::LogEntry::new().guid(kit.session(9)).tail_self();
        kit = kit.log_entry(
            (0..20).fold(entry, |entry, block| entry.allocate(block, Contents::State(2, 0))),
        );
    }
    let image = dir.path("busy.vhdx");
    kit.file_length(5000 * MIB).build_file(image.as_ref());
    let page = page(&dir, &image, 0);
    assert!(page.contains("earlier ones are not listed"));
    assert!(page.len() > 300_000, "not busy at all: {}", page.len());
}
