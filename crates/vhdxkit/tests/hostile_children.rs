//! Children that come from anybody: what their parent locators say must not make us open, wait for, or
//! tell of a file that the caller's policy does not allow.
//!
//! Which files are opened is not asked of the library but of the kernel (inotify): it tells of every open
//! in the folders of a test. Every open is given some seconds, so that waiting for a pipe is a failure.

// inotify is Linux's; the rules are the same elsewhere.
#![cfg(target_os = "linux")]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use vhdxkit::format::locator::{LocatorEntry, LocatorHeader, VHDX_LOCATOR, encode};
use vhdxkit::format::metadata::{FileParameters, HAS_PARENT, IS_REQUIRED, Item, PARENT_LOCATOR};
use vhdxkit::format::{Guid, limits};
use vhdxkit::{ErrorKind, Image, OpenOptions, ParentPolicy};
use vhdxkit_testkit::{self as kit, Contents};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

const MIB: u64 = 1 << 20;
/// The identity that the children want their parent to have.
const WANTED: Guid = Guid::from_u128(0xABCD);

/// `home/` with the child, `outside/` with a parent that would fit, as an image (`secret.vhdx`) and under
/// a name that no image has (`passwd`).
struct World {
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("home/sub")).unwrap();
        std::fs::create_dir(root.join("outside")).unwrap();
        let world = Self { root, _dir: dir };
        world.parent("outside/secret.vhdx");
        world.parent("outside/passwd");
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn child(&self) -> PathBuf {
        self.at("home/child.avhdx")
    }

    /// The disk that the child was made from.
    fn parent(&self, name: &str) {
        parent().build_file(&self.at(name));
    }

    fn link(&self, name: &str, to: &str) {
        std::os::unix::fs::symlink(to, self.at(name)).unwrap();
    }

    /// Starts to look at what is opened.
    fn watch(&self) -> Watch {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let folders = ["home", "home/sub", "outside"].into_iter();
        let folders = folders
            .map(|name| (inotify.add_watch(&self.at(name), AddWatchFlags::IN_OPEN).unwrap(), name));
        Watch { folders: folders.collect(), inotify }
    }
}

fn parent() -> kit::Image {
    kit::Image::dynamic(4 * MIB).with_data_write_guid(WANTED).block(1, Contents::Pattern(7))
}

fn child() -> kit::Image {
    kit::Image::differencing(4 * MIB, WANTED).seed(2)
}

/// Tells what was opened: files, and folders with a stroke at the end.
struct Watch {
    folders: HashMap<WatchDescriptor, &'static str>,
    inotify: Inotify,
}

impl Watch {
    fn opened(&self) -> BTreeSet<String> {
        let mut opened = BTreeSet::new();
        while let Ok(events) = self.inotify.read_events() {
            opened.extend(events.into_iter().map(|event| {
                let folder = self.folders[&event.wd];
                let folder_itself = event.mask.contains(AddWatchFlags::IN_ISDIR);
                let name = event.name.map(|name| name.into_string().unwrap()).unwrap_or_default();
                match (name.as_str(), folder_itself) {
                    ("", _) => format!("{folder}/"),
                    (name, true) => format!("{folder}/{name}/"),
                    (name, false) => format!("{folder}/{name}"),
                }
            }));
        }
        opened
    }
}

/// Runs what may wait for ever, and does not.
fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(what()));
    wait.recv_timeout(Duration::from_secs(60)).expect("it waits for something, or has panicked")
}

/// What comes of opening a child.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    /// It opens, and shows its parent, which lies there.
    Opens(String),
    /// It opens alone.
    Alone,
    /// It does not open for want of a parent. The places that were looked at, and words of what was there.
    NoParent(Vec<(String, &'static str)>),
    /// It is refused as damaged, whatever is asked for.
    Damaged,
}

/// What a policy is to do with a child.
struct Expected {
    outcome: Outcome,
    /// Besides the child.
    opened: Vec<&'static str>,
}

fn opens(name: &str, opened: &[&'static str]) -> Expected {
    Expected { outcome: Outcome::Opens(name.to_owned()), opened: opened.to_vec() }
}

fn no_parent(looked: &[(&str, &'static str)], opened: &[&'static str]) -> Expected {
    let looked = looked.iter().map(|(path, found)| ((*path).to_owned(), *found)).collect();
    Expected { outcome: Outcome::NoParent(looked), opened: opened.to_vec() }
}

fn damaged() -> Expected {
    Expected { outcome: Outcome::Damaged, opened: Vec::new() }
}

fn open(path: PathBuf, policy: ParentPolicy) -> vhdxkit::Result<Image> {
    in_time(move || OpenOptions::new().parents(policy).open(path))
}

/// Opens the child by every policy and holds what happens against what has to.
fn try_policies(world: &World, follow: &Expected, beneath: &Expected) {
    let refused = follow.outcome == Outcome::Damaged;
    let outcome = if refused { Outcome::Damaged } else { Outcome::Alone };
    try_policy(world, ParentPolicy::Deny, &Expected { outcome, opened: Vec::new() });
    try_policy(world, ParentPolicy::Beneath(world.at("home")), beneath);
    try_policy(world, ParentPolicy::Follow, follow);
}

fn try_policy(world: &World, policy: ParentPolicy, expected: &Expected) {
    let _name = common::NamedOnFailure(format!("{policy:?}"));
    let watch = world.watch();
    let result = open(world.child(), policy);
    let opened = watch.opened();
    let all: BTreeSet<String> =
        expected.opened.iter().copied().chain(["home/child.avhdx"]).map(str::to_owned).collect();
    assert_eq!(opened, all, "what was opened");
    match (result, &expected.outcome) {
        (Ok(image), Outcome::Opens(name)) => {
            let mut bytes = [0; 512];
            image.read_at(MIB, &mut bytes).unwrap();
            assert_eq!(bytes, [7; 512]);
            let parent = image.parent().and_then(Image::path).unwrap();
            assert_eq!(parent.canonicalize().unwrap(), world.at(name));
        }
        (Ok(image), Outcome::Alone) => {
            assert!(image.parent().is_none());
            let error = image.read_at(MIB, &mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ParentNeeded);
            let watched = watch.opened();
            assert!(watched.is_empty(), "reading opened {watched:?}");
        }
        (Err(error), Outcome::NoParent(places)) => {
            assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
            let problem = error.parent_problem().unwrap();
            assert_eq!(problem.child, world.child());
            assert_eq!(problem.expected, [WANTED]);
            let looked: Vec<&Path> = problem.looked.iter().map(|l| l.path.as_path()).collect();
            // A place that two keys lead to is looked at once.
            let mut places = places.clone();
            places.dedup();
            let expected: Vec<PathBuf> = places.iter().map(|(name, _)| world.at(name)).collect();
            assert_eq!(looked, expected, "{error}");
            for (place, (_, found)) in problem.looked.iter().zip(&places) {
                assert!(place.found.contains(found), "{place:?} instead of {found}");
            }
            let text = error.to_string();
            let parts = looked.iter().map(|path| path.display().to_string());
            for part in parts.chain([world.child().display().to_string(), WANTED.to_string()]) {
                assert!(text.contains(&part), "{part} is missing in {text}");
            }
        }
        (Err(error), Outcome::Damaged) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("child.avhdx"), "{error}");
        }
        (result, expected) => {
            panic!("{expected:?} instead of {:?}", result.map(|_| "it opens"))
        }
    }
}

/// What is said of a place where there is nothing, or nothing that may be told of.
const NONE: &str = "no such file";
/// What is said of a place that is no image.
const NO_IMAGE: &str = "not followed";
/// What is said of a place does not matter.
const ANYTHING: &str = "";
/// The child's own folder is searched for images, to name one in the error.
const SEARCHED: &[&str] = &["home/"];
/// The folder that everything has to lie beneath is opened to start from there.
const STARTED: &[&str] = &["home/"];

/// Without hostility: the child finds its parent beside it, and above where that is allowed.
#[test]
fn a_parent_is_found_where_the_policy_allows_it() {
    let world = World::new();
    world.parent("home/sub/parent.vhdx");
    child().parent_path("relative_path", r".\sub\parent.vhdx").build_file(&world.child());
    let found = "home/sub/parent.vhdx";
    try_policies(&world, &opens(found, &[found]), &opens(found, &["home/", found]));
    child().parent_path("relative_path", r"..\outside\secret.vhdx").build_file(&world.child());
    let places = [("home/../outside/secret.vhdx", NONE), ("home/secret.vhdx", NONE)];
    let found = "outside/secret.vhdx";
    try_policies(&world, &opens(found, &[found]), &no_parent(&places, STARTED));
}

/// A child in a folder where nobody may look finds nothing, whatever lies beside it.
#[test]
fn a_child_outside_of_the_folder_gets_no_parent_at_all() {
    let world = World::new();
    world.parent("outside/parent.vhdx");
    child().build_file(&world.at("outside/child.avhdx"));
    let watch = world.watch();
    let error = open(world.at("outside/child.avhdx"), ParentPolicy::Beneath(world.at("home")));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Parent);
    assert_eq!(watch.opened(), BTreeSet::from(["outside/child.avhdx".to_owned()]));
}

/// `/etc/passwd`, by as many steps upwards as there may be, by its absolute name, and a file of the
/// same contents as a parent: its name is no image's, so it is not even looked at.
#[test]
fn files_that_are_not_named_like_images_are_never_opened() {
    let world = World::new();
    let up = r"..\".repeat(40) + r"etc\passwd";
    child().parent_path("relative_path", &up).build_file(&world.child());
    let etc = format!("home/{}etc/passwd", "../".repeat(40));
    let places = [(etc.as_str(), NO_IMAGE), ("home/passwd", NONE)];
    let beneath = [(etc.as_str(), NONE), ("home/passwd", NONE)];
    try_policies(&world, &no_parent(&places, SEARCHED), &no_parent(&beneath, &[]));

    child().parent_path("relative_path", r"..\outside\passwd").build_file(&world.child());
    let places = [("home/../outside/passwd", NO_IMAGE), ("home/passwd", NONE)];
    let beneath = [("home/../outside/passwd", NONE), ("home/passwd", NONE)];
    try_policies(&world, &no_parent(&places, SEARCHED), &no_parent(&beneath, &[]));

    for key in ["relative_path", "absolute_win32_path", "volume_path"] {
        child().parent_path(key, "/etc/passwd").build_file(&world.child());
        let places = [("home/passwd", NONE)];
        try_policies(&world, &no_parent(&places, SEARCHED), &no_parent(&places, &[]));
    }
}

/// What is no image, in the child's folder, some of it with an image's name.
fn no_images(world: &World) -> [&'static str; 4] {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mkfifo(&world.at("home/pipe.vhdx"), mode).unwrap();
    std::fs::create_dir(world.at("home/folder.vhdx")).unwrap();
    world.link("home/linked.vhdx", "pipe.vhdx");
    world.link("home/device.vhdx", "/dev/zero");
    ["pipe.vhdx", "folder.vhdx", "linked.vhdx", "device.vhdx"]
}

/// A device never ends, and a pipe makes its reader wait. A link with an image's name changes nothing.
#[test]
fn devices_pipes_and_folders_are_not_opened_and_nobody_waits() {
    let world = World::new();
    for name in no_images(&world) {
        let _name = common::NamedOnFailure(name.to_owned());
        child().parent_path("relative_path", &format!(r".\{name}")).build_file(&world.child());
        let place = format!("home/{name}");
        let follow = no_parent(&[(&place, NO_IMAGE)], SEARCHED);
        try_policy(&world, ParentPolicy::Follow, &follow);
        let error = open(world.child(), ParentPolicy::Beneath(world.at("home"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
        let alone = Expected { outcome: Outcome::Alone, opened: Vec::new() };
        try_policy(&world, ParentPolicy::Deny, &alone);
    }
    mkfifo(&world.at("outside/pipe.vhdx"), Mode::S_IRUSR).unwrap();
    child().parent_path("relative_path", r"..\outside\pipe.vhdx").build_file(&world.child());
    let places = [("home/../outside/pipe.vhdx", NO_IMAGE), ("home/pipe.vhdx", NO_IMAGE)];
    try_policy(&world, ParentPolicy::Follow, &no_parent(&places, SEARCHED));
}

/// Opening a pipe wakes who waits at its other end, and a device may act on it.
#[test]
fn pipes_beneath_the_folder_are_not_even_opened() {
    let world = World::new();
    for name in no_images(&world) {
        let _name = common::NamedOnFailure(name.to_owned());
        child().parent_path("relative_path", &format!(r".\{name}")).build_file(&world.child());
        let place = format!("home/{name}");
        let expected = no_parent(&[(&place, ANYTHING), (&place, ANYTHING)], STARTED);
        try_policy(&world, ParentPolicy::Beneath(world.at("home")), &expected);
    }
}

/// The real name decides: a link may lead to an image, for a person who follows; a server follows none.
#[test]
fn a_link_is_judged_by_where_it_leads() {
    links(ANYTHING);
}

/// Whoever is served learns nothing of what lies there: every other file is "not there".
#[test]
fn a_link_beneath_the_folder_is_as_good_as_nothing() {
    links(NONE);
}

/// `told`: what is said of a link by who follows none.
fn links(told: &'static str) {
    let world = World::new();
    world.link("home/good.vhdx", "../outside/secret.vhdx");
    world.link("home/bad.vhdx", "../outside/passwd");
    world.link("home/folder", "../outside");
    let found = "outside/secret.vhdx";
    child().parent_path("relative_path", r".\good.vhdx").build_file(&world.child());
    let places = [("home/good.vhdx", told), ("home/good.vhdx", told)];
    try_policies(&world, &opens(found, &[found]), &no_parent(&places, STARTED));
    child().parent_path("relative_path", r".\folder\secret.vhdx").build_file(&world.child());
    let places = [("home/folder/secret.vhdx", told), ("home/secret.vhdx", NONE)];
    try_policies(&world, &opens(found, &[found]), &no_parent(&places, STARTED));
    child().parent_path("relative_path", r".\bad.vhdx").build_file(&world.child());
    let follow = no_parent(&[("home/bad.vhdx", NO_IMAGE)], SEARCHED);
    let places = [("home/bad.vhdx", told), ("home/bad.vhdx", told)];
    try_policies(&world, &follow, &no_parent(&places, STARTED));
}

const CIRCLE: &str = "the chain runs in a circle";

#[test]
fn a_child_that_is_its_own_parent_is_a_circle() {
    let world = World::new();
    let own = child().with_data_write_guid(WANTED);
    own.parent_path("relative_path", r".\child.avhdx").build_file(&world.child());
    let follow = no_parent(&[("home/child.avhdx", CIRCLE)], SEARCHED);
    let places = [("home/child.avhdx", CIRCLE), ("home/child.avhdx", CIRCLE)];
    try_policies(&world, &follow, &no_parent(&places, STARTED));
    // Under another name, too.
    own_under_another_name(&world);
}

fn own_under_another_name(world: &World) {
    let own = child().with_data_write_guid(WANTED);
    own.parent_path("relative_path", r".\other.vhdx").build_file(&world.child());
    std::fs::hard_link(world.child(), world.at("home/other.vhdx")).unwrap();
    let follow = no_parent(&[("home/other.vhdx", CIRCLE)], &["home/", "home/other.vhdx"]);
    let places = [("home/other.vhdx", CIRCLE), ("home/other.vhdx", CIRCLE)];
    try_policies(world, &follow, &no_parent(&places, &["home/", "home/other.vhdx"]));
}

#[test]
fn a_circle_of_two_ends_and_names_the_second() {
    let world = World::new();
    let (one, two) = (Guid::from_u128(1), Guid::from_u128(2));
    let make = |name: &str, own: Guid, above: Guid, path: &str| {
        let image = kit::Image::differencing(4 * MIB, above).with_data_write_guid(own);
        image.parent_path("relative_path", path).build_file(&world.at(name));
    };
    make("home/one.avhdx", one, two, r".\two.avhdx");
    make("home/two.avhdx", two, one, r".\one.avhdx");
    for policy in [ParentPolicy::Follow, ParentPolicy::Beneath(world.at("home"))] {
        let error = open(world.at("home/one.avhdx"), policy).unwrap_err();
        let problem = error.parent_problem().unwrap();
        assert_eq!(problem.child, world.at("home/two.avhdx"));
        assert_eq!(problem.expected, [one]);
        assert!(problem.looked.iter().all(|place| place.found.contains(CIRCLE)), "{error}");
        assert!(!problem.looked.is_empty());
    }
}

/// A chain may be long, and has an end. Each level costs memory and a level of calls.
#[test]
fn a_chain_may_have_256_images_and_no_more() {
    let world = World::new();
    let last = 299u128;
    let guid = |number: u128| Guid::from_u128(1000 + number);
    for number in 0..=last {
        let image = match number {
            0 => kit::Image::dynamic(4 * MIB).block(1, Contents::Pattern(7)),
            _ => kit::Image::differencing(4 * MIB, guid(number - 1))
                .parent_path("relative_path", &format!(r".\{}.vhdx", number - 1)),
        };
        let image = image.with_data_write_guid(guid(number));
        image.build_file(&world.at(&format!("home/{number}.vhdx")));
    }
    let begun = Instant::now();
    for policy in [ParentPolicy::Follow, ParentPolicy::Beneath(world.at("home"))] {
        let most = limits::MAX_CHAIN_LENGTH;
        let path = world.at(&format!("home/{}.vhdx", most - 1));
        let image = open(path, policy.clone()).unwrap();
        assert_eq!(image.layers().count(), most);
        let mut bytes = [0; 512];
        image.read_at(MIB, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 512]);
        drop(image);
        for start in [most as u128, last] {
            let error = open(world.at(&format!("home/{start}.vhdx")), policy.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Parent);
            assert!(error.to_string().contains("more than 256 images"), "{error}");
            let problem = error.parent_problem().unwrap();
            let end = start + 1 - most as u128;
            assert_eq!(problem.child, world.at(&format!("home/{end}.vhdx")));
            assert_eq!(problem.expected, [guid(end - 1)]);
        }
    }
    println!("six chains of 256 images: {:.1?}", begun.elapsed());
}

/// A child whose locator item has these bytes.
fn child_with(locator: Vec<u8>) -> kit::Image {
    let flags = U32::new(HAS_PARENT);
    let parameters = FileParameters { block_size: U32::new(1 << 20), flags };
    let mut items = Item::mandatory(parameters, 4 * MIB, 512, 4096, Guid::from_u128(9));
    items.push(Item { id: PARENT_LOCATOR, flags: IS_REQUIRED, data: locator });
    child().replace_metadata(items)
}

/// A locator of pairs of UTF-16, or of what somebody takes for that.
fn locator(pairs: &[(&[u16], &[u16])]) -> Vec<u8> {
    let mut table = header(pairs.len() as u16);
    let mut strings = Vec::new();
    let start = table.len() + pairs.len() * size_of::<LocatorEntry>();
    for (key, value) in pairs {
        let [key, value] = [key, value].map(|text| {
            let offset = start + strings.len();
            strings.extend(text.iter().flat_map(|unit| unit.to_le_bytes()));
            (offset as u32, text.len() as u16 * 2)
        });
        table.extend_from_slice(entry(key, value).as_bytes());
    }
    [table, strings].concat()
}

fn header(pairs: u16) -> Vec<u8> {
    let (reserved, key_value_count) = (U16::ZERO, U16::new(pairs));
    LocatorHeader { locator_type: VHDX_LOCATOR, reserved, key_value_count }.as_bytes().to_vec()
}

fn entry(key: (u32, u16), value: (u32, u16)) -> LocatorEntry {
    LocatorEntry {
        key_offset: U32::new(key.0),
        value_offset: U32::new(value.0),
        key_length: U16::new(key.1),
        value_length: U16::new(value.1),
    }
}

fn utf16(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

/// No NUL may cut a path short (a check would see another name than the kernel), and no half letter may be
/// turned into something else.
#[test]
fn strings_with_nul_or_half_letters_are_no_locator() {
    let world = World::new();
    world.parent("home/parent.vhdx");
    let (linkage, path) = (utf16("parent_linkage"), utf16("relative_path"));
    let guid = utf16(&format!("{{{WANTED}}}"));
    let good = utf16(r".\parent.vhdx");
    let nul = utf16("..\\outside\\passwd\0.vhdx");
    let high = [&good[..], &[0xD83D]].concat();
    let low = [&[0xDC00], &good[..]].concat();
    let swapped = [&good[..], &[0xDC00, 0xD83D]].concat();
    let odd_key = [&path[..], &[0xD800]].concat();
    child_with(locator(&[(&linkage, &guid), (&path, &good)])).build_file(&world.child());
    let found = "home/parent.vhdx";
    try_policies(&world, &opens(found, &[found]), &opens(found, &["home/", found]));
    for bad in [&nul, &high, &low, &swapped] {
        child_with(locator(&[(&linkage, &guid), (&path, bad)])).build_file(&world.child());
        try_policies(&world, &damaged(), &damaged());
    }
    let with_key = locator(&[(&linkage, &guid), (&path, &good), (&odd_key, &good)]);
    child_with(with_key).build_file(&world.child());
    try_policies(&world, &damaged(), &damaged());
}

/// As many pairs as the count can say, and pairs that all have the same long string: little in the file,
/// much in memory. They are refused before anything is made of them.
#[test]
fn locators_that_are_all_pairs_or_share_their_strings_are_refused_at_once() {
    let world = World::new();
    let begun = Instant::now();
    let pairs = u16::MAX;
    let strings = 20 + u32::from(pairs) * 12;
    let mut many = header(pairs);
    for number in 0..u32::from(pairs) {
        many.extend_from_slice(entry((strings + number * 2, 2), (strings, 2)).as_bytes());
    }
    many.extend((1..=pairs).flat_map(u16::to_le_bytes));
    assert!(many.len() < 1 << 20, "it fits an item");
    child_with(many).build_file(&world.child());
    try_policies(&world, &damaged(), &damaged());

    let mut shared = header(250);
    let strings = 20 + 250 * 12;
    for number in 0..250u32 {
        shared.extend_from_slice(entry((strings + number * 2, 2), (strings, 60_000)).as_bytes());
    }
    shared.extend((1..=30_000u16).flat_map(u16::to_le_bytes));
    child_with(shared).build_file(&world.child());
    try_policies(&world, &damaged(), &damaged());
    println!("both, by three policies: {:.1?}", begun.elapsed());
}

/// Strings that overlap and do not multiply are odd, and can be read.
#[test]
fn strings_may_overlap_while_they_do_not_multiply() {
    let world = World::new();
    world.parent("home/parent.vhdx");
    let (linkage, path) = ("parent_linkage", r".\parent.vhdx");
    let volume = r"\\?\Volume{0}\parent.vhdx";
    let guid = format!("{{{WANTED}}}");
    let pairs = [(linkage, guid.as_str()), ("relative_path", path), ("volume_path", volume)];
    let mut bytes = encode(&pairs).unwrap();
    // The relative path becomes the end of the other one: "\parent.vhdx" behind a dot that was a brace.
    let at = |pair: usize, field: usize| 20 + pair * 12 + field;
    let u32_at =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let end = u32_at(&bytes, at(2, 4)) + 2 * volume.len() as u32;
    let name = "parent.vhdx".len() as u32 * 2;
    bytes[at(1, 4)..at(1, 8)].copy_from_slice(&(end - name).to_le_bytes());
    bytes[at(1, 10)..at(1, 12)].copy_from_slice(&(name as u16).to_le_bytes());
    child_with(bytes).build_file(&world.child());
    let found = "home/parent.vhdx";
    try_policies(&world, &opens(found, &[found]), &opens(found, &["home/", found]));
}

/// Paths to another machine make a Windows machine sign on there, and tell it who is asking. Nobody goes
/// there; only a file of that name beside the child is thought of.
#[test]
fn absolute_paths_and_paths_to_other_machines_lead_nowhere() {
    let world = World::new();
    let secret = world.at("outside/secret.vhdx").display().to_string();
    let paths = [
        r"\\server\share\secret.vhdx",
        r"\\?\UNC\server\share\secret.vhdx",
        r"\\?\server\share\secret.vhdx",
        r"\\.\pipe\secret.vhdx",
        r"\\?\GLOBALROOT\Device\Mup\server\share\secret.vhdx",
        "//server/share/secret.vhdx",
        r"C:\outside\secret.vhdx",
        r"C:secret.vhdx",
        r"\\?\C:\outside\secret.vhdx",
        r"\outside\secret.vhdx",
        "file:///outside/secret.vhdx",
        &secret,
    ];
    let places = [("home/secret.vhdx", NONE)];
    for path in paths {
        for key in ["relative_path", "absolute_win32_path", "volume_path"] {
            let _name = common::NamedOnFailure(format!("{key} {path}"));
            child().parent_path(key, path).build_file(&world.child());
            try_policies(&world, &no_parent(&places, SEARCHED), &no_parent(&places, STARTED));
        }
    }
    world.parent("home/secret.vhdx");
    let found = "home/secret.vhdx";
    child().parent_path("absolute_win32_path", paths[0]).build_file(&world.child());
    try_policies(&world, &opens(found, &[found]), &opens(found, &["home/", found]));
}

/// Names that are no names.
#[test]
fn paths_without_a_name_lead_nowhere() {
    let world = World::new();
    for path in [".", "..", r".\", r"..\", r"\", "/", r".\.\.", r".\..\home\.."] {
        let _name = common::NamedOnFailure(path.to_owned());
        child().parent_path("relative_path", path).build_file(&world.child());
        let error = open(world.child(), ParentPolicy::Follow).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
        let error = open(world.child(), ParentPolicy::Beneath(world.at("home"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
    }
    let long = format!(r".\{}.vhdx", "x".repeat(20_000));
    child().parent_path("relative_path", &long).build_file(&world.child());
    let error = open(world.child(), ParentPolicy::Follow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
}

#[test]
fn a_parent_with_other_sectors_is_refused_even_with_the_right_identity() {
    let world = World::new();
    parent().sectors(4096, 4096).build_file(&world.at("home/parent.vhdx"));
    child().build_file(&world.child());
    let words = "its sectors have 4096 bytes, those of the child 512";
    let found = "home/parent.vhdx";
    let follow = no_parent(&[(found, words)], &["home/", found]);
    try_policies(&world, &follow, &no_parent(&[(found, words), (found, words)], &["home/", found]));
    let careless = OpenOptions::new().parents(ParentPolicy::Follow).ignore_parent_id(true);
    assert_eq!(careless.open(world.child()).unwrap_err().kind(), ErrorKind::Parent);
}

#[test]
fn a_disk_of_another_identity_is_refused_and_the_right_one_is_named() {
    let world = World::new();
    let other = Guid::from_u128(0xBAD);
    parent().with_data_write_guid(other).build_file(&world.at("home/parent.vhdx"));
    child().build_file(&world.child());
    let words = "is not the disk that the child was made from";
    let found = "home/parent.vhdx";
    let follow = no_parent(&[(found, words)], &["home/", found]);
    try_policies(&world, &follow, &no_parent(&[(found, words), (found, words)], &["home/", found]));
    world.parent("home/renamed.vhdx");
    let error = open(world.child(), ParentPolicy::Follow).unwrap_err();
    assert_eq!(error.parent_problem().unwrap().found, [world.at("home/renamed.vhdx")]);
    let careless = OpenOptions::new().parents(ParentPolicy::Follow).ignore_parent_id(true);
    let image = careless.open(world.child()).unwrap();
    assert_eq!(image.parent().unwrap().path(), Some(world.at(found).as_path()));
}

/// A parent that is being written is no parent: nobody knows what it will be.
#[test]
fn a_parent_in_a_writers_hands_is_refused_and_the_writer_is_named() {
    let world = World::new();
    world.parent("home/parent.vhdx");
    child().build_file(&world.child());
    let writer = OpenOptions::new().write(true).open(world.at("home/parent.vhdx")).unwrap();
    let words = "in use by";
    let found = "home/parent.vhdx";
    let follow = no_parent(&[(found, words)], &["home/", found]);
    try_policies(&world, &follow, &no_parent(&[(found, words), (found, words)], &["home/", found]));
    let sharing = OpenOptions::new().parents(ParentPolicy::Follow).force_share(true);
    sharing.open(world.child()).unwrap();
    drop(writer);
    try_policies(&world, &opens(found, &[found]), &opens(found, &["home/", found]));
}

/// A child says where its parent is, or it is damaged: the format wants a path, and a locator.
#[test]
fn a_child_without_a_path_names_no_place_and_one_without_a_locator_is_damaged() {
    let world = World::new();
    world.parent("home/parent.vhdx");
    let guid = format!("{{{WANTED}}}");
    child_with(encode(&[("parent_linkage", &guid)]).unwrap()).build_file(&world.child());
    let nowhere = || Expected { outcome: Outcome::NoParent(Vec::new()), opened: Vec::new() };
    // Having looked nowhere it looks around, to name what it finds.
    let around = Expected { opened: vec!["home/", "home/parent.vhdx"], ..nowhere() };
    try_policies(&world, &around, &nowhere());
    let named = OpenOptions::new().parent(world.at("home/parent.vhdx")).open(world.child());
    assert_eq!(named.unwrap().parent().unwrap().headers().current().data_write_guid, WANTED);
    let flags = U32::new(HAS_PARENT);
    let parameters = FileParameters { block_size: U32::new(1 << 20), flags };
    let items = Item::mandatory(parameters, 4 * MIB, 512, 4096, Guid::from_u128(9));
    child().replace_metadata(items).build_file(&world.child());
    try_policies(&world, &damaged(), &damaged());
}

/// A parent that the caller has named may be any file, and is no reason to wait for ever.
#[test]
fn a_pipe_that_was_named_as_the_parent_is_refused_at_once() {
    let world = World::new();
    child().build_file(&world.child());
    let pipe = world.at("home/pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let path = world.child();
    let error = in_time(move || OpenOptions::new().parent(pipe).open(path)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(error.to_string().contains("neither a file nor a block device"), "{error}");
}
