//! What the tests share: the team's folder, other programs, media that count.
#![allow(dead_code)]

pub(crate) mod failing;
pub(crate) mod repairing;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhdxkit::storage::Storage;
use vhdxkit::{Image, OpenOptions};

/// A file of the team's folder beside the repository; `None`, visibly, where that is not there.
///
/// A checkout elsewhere (a worktree) names the folder in `VHDXKIT_SHARED`. Whoever does that wants
/// the tests to run: then a missing file fails, because a skipped test looks like a good one.
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

/// Unpacks an image of the team's folder; `None`, visibly, where that is not there.
pub(crate) fn unpack(packed: &str, into: &Path) -> Option<PathBuf> {
    let source = File::open(shared(&format!("data/{packed}"))?).unwrap();
    let (name, extension) = packed.rsplit_once('.').unwrap();
    let target = into.join(name);
    let mut file = File::create(&target).unwrap();
    match extension {
        "gz" => io::copy(&mut flate2::read::MultiGzDecoder::new(source), &mut file).unwrap(),
        "bz2" => io::copy(&mut bzip2::read::MultiBzDecoder::new(source), &mut file).unwrap(),
        other => panic!("{packed}: what is {other}?"),
    };
    Some(target)
}

/// Whether a program can be started; says so where not.
pub(crate) fn have(program: &str) -> bool {
    have_with(program, "--version")
}

/// [`have`] for a program that tells its version in another way.
pub(crate) fn have_with(program: &str, option: &str) -> bool {
    let found = Command::new(program).arg(option).output().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// 7-Zip's command, which has had two names.
pub(crate) fn seven_zip() -> Option<&'static str> {
    let found = ["7zz", "7z"].into_iter().find(|name| Command::new(name).output().is_ok());
    if found.is_none() {
        eprintln!("skipped: 7-Zip is not installed");
    }
    found
}

/// The whole disk as 7-Zip unpacks it.
pub(crate) fn by_seven_zip(program: &str, image: &Path, dir: &Path) -> Vec<u8> {
    let out = dir.join("out");
    let to = format!("-o{}", out.display());
    run(program, &["x", "-y", "-tVHDX", &to, image.to_str().unwrap()]);
    let files: Vec<PathBuf> = out.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "7-Zip unpacked {files:?}");
    std::fs::read(&files[0]).unwrap()
}

/// A Python that has libvhdi's module. Debian has it for its own Python only.
pub(crate) fn python_with_libvhdi() -> Option<&'static str> {
    let has = |name: &&str| {
        let run = Command::new(name).args(["-c", "import pyvhdi"]).output();
        run.is_ok_and(|output| output.status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(has);
    if found.is_none() {
        eprintln!("skipped: libvhdi's Python module (python3-libvhdi) is not installed");
    }
    found
}

/// The whole disk as libvhdi reads it, or what it says instead. It is told the images of the chain, base
/// first, since it finds no parents itself.
pub(crate) fn by_libvhdi(python: &str, chain: &[&Path], out: &Path) -> Result<Vec<u8>, String> {
    const SCRIPT: &str = "
import sys, pyvhdi
images = [] # a child does not hold on to its parent
for path in sys.argv[2:]:
    image = pyvhdi.file()
    image.open(path)
    if images:
        image.set_parent(images[-1])
    images.append(image)
left = image.get_media_size()
with open(sys.argv[1], 'wb') as out:
    while left:
        data = image.read_buffer(min(left, 1 << 20))
        if not data:
            sys.exit('ends %d bytes before its end' % left)
        out.write(data)
        left -= len(data)
";
    let output = Command::new(python).args(["-c", SCRIPT]).arg(out).args(chain).output().unwrap();
    match output.status.success() {
        true => Ok(std::fs::read(out).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Names the case when anything in its scope panics, helpers included.
pub(crate) struct NamedOnFailure(pub(crate) String);

impl Drop for NamedOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}

/// Opens an image on any medium.
pub(crate) fn open(storage: impl Storage + 'static) -> vhdxkit::Result<Image> {
    OpenOptions::new().open_storage(Arc::new(storage))
}

/// A medium that counts what is read of another one, and may have a bad spot.
pub(crate) struct Counting<S> {
    pub(crate) inner: S,
    pub(crate) read: AtomicU64,
    calls: AtomicU64,
    bad: Range<u64>,
}

impl<S> Counting<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self::with_bad_spot(inner, 0..0)
    }

    /// Reads that touch `bad` fail.
    pub(crate) fn with_bad_spot(inner: S, bad: Range<u64>) -> Self {
        Self { inner, read: AtomicU64::new(0), calls: AtomicU64::new(0), bad }
    }

    /// Bytes read so far.
    pub(crate) fn count(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads so far, those that have failed among them.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl<S: Storage> Storage for Counting<S> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if offset < self.bad.end && self.bad.start < offset + buf.len() as u64 {
            return Err(io::Error::other("bad spot"));
        }
        let read = self.inner.read_at(offset, buf)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.punch(range)
    }
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.allocate(range)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }
}
