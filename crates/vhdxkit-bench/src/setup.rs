//! Where the work is done, with what, and how much of it.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process::{first_line, have, seconds, text, timed};

/// What every row is told.
pub(crate) struct Setup {
    folder: tempfile::TempDir,
    /// The command `vhdx` that is timed.
    pub(crate) vhdx: PathBuf,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
}

impl Setup {
    /// Work in a new folder inside of `parent`, or beside this program.
    pub(crate) fn new(parent: Option<PathBuf>, quick: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let beside = program.parent().context("this program lies nowhere")?;
        let vhdx = beside.join("vhdx");
        build_command(beside)?;
        if !vhdx.exists() {
            bail!("the command to be timed is not there: cargo build --release makes it");
        }
        let parent = parent.unwrap_or_else(|| beside.to_path_buf());
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&parent);
        let folder = folder.with_context(|| format!("cannot work in {}", parent.display()))?;
        let setup = Self { folder, vhdx, quick, rounds: if quick { 3 } else { 5 } };
        if setup.file_system() == "tmpfs" {
            bail!("{} is no disk but memory; --folder names another place", parent.display());
        }
        Ok(setup)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How often something is done.
    pub(crate) fn count(&self, usual: u64) -> u64 {
        if self.quick { usual / 4 } else { usual }
    }

    /// How often something is to be done that takes so many seconds for `tried` times: long enough that
    /// the start of a process is little, and no longer where a sync is slow.
    pub(crate) fn calibrated(&self, tried: u64, seconds: f64) -> u64 {
        let wanted = if self.quick { 0.15 } else { 0.4 };
        ((tried as f64 * wanted / seconds) as u64).clamp(tried, 8000)
    }

    /// The size of a large copy.
    pub(crate) fn mebibytes(&self) -> u64 {
        if self.quick { 128 } else { 1024 }
    }

    fn file_system(&self) -> String {
        let told = seconds(Command::new("df").arg("--output=fstype").arg(self.folder.path()));
        // The first line is a heading.
        let told = told.ok().and_then(|(_, told)| told.lines().nth(1).map(str::to_owned));
        told.unwrap_or_else(|| "an unknown file system".to_owned())
    }

    /// When, with what, on what: nothing that tells whose machine it is.
    pub(crate) fn story(&self) -> String {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |file: &str, name: &str| {
            let found = read(file).lines().find(|line| line.starts_with(name)).map(str::to_owned);
            found.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let date = seconds(Command::new("date").args(["-u", "+%Y-%m-%d"]));
        let date = date.map(|(_, date)| date.trim().to_owned()).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = field("/proc/meminfo", "MemTotal")
            .and_then(|kib| Some(kib.split(' ').next()?.parse::<u64>().ok()? >> 20))
            .map_or_else(unknown, |gib| format!("{gib} GiB"));
        let release = read("/proc/sys/kernel/osrelease");
        let kernel = release.split('-').next().unwrap_or_default().trim();
        let mut peers = vec![format!("vhdxkit {}", env!("CARGO_PKG_VERSION"))];
        let mut missing = vec!["OpenVMM (row 3; nobody packages it)"];
        for program in [
            "qemu-img", "qemu-io", "qemu-nbd", "nbdkit", "nbdfuse", "fio", "dd", "cp", "strace",
            "mkfs.xfs",
        ] {
            match first_line(program) {
                Some(version) => peers.push(version),
                None => missing.push(program),
            }
        }
        format!(
            "{date}{}; {cores} cores of {}, {memory} of memory, Linux {kernel}, {}. Here: {}. \
             Missing: {}.\n",
            if self.quick {
                ", a quick run with less work than the targets are meant for"
            } else {
                ""
            },
            field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            self.file_system(),
            peers.join("; "),
            missing.join(", "),
        )
    }
}

/// Makes the command that is timed, when cargo started us: `cargo run` builds this program only.
fn build_command(beside: &Path) -> anyhow::Result<()> {
    let (Some(cargo), Some(target)) = (std::env::var_os("CARGO"), beside.parent()) else {
        return Ok(());
    };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--release", "-p", "vhdxkit-cli", "--manifest-path", manifest]);
    seconds(build.arg("--target-dir").arg(target)).context("cannot build the command")?;
    Ok(())
}

/// Removes a file if it is there, and lets the file system finish with it: giving a gibibyte back to
/// the disk must not be paid by the next one's sync.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    if std::fs::remove_file(path).is_ok()
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A new copy, on the disk: what is timed next must not pay for its writing.
pub(crate) fn fresh_copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    remove(to)?;
    timed("cp", &["--sparse=always", text(from), text(to)])?;
    File::open(to)?.sync_all()?;
    Ok(())
}

/// Bytes that nothing can compress, the same in every run.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// A file of noise.
pub(crate) fn incompressible(path: &Path, mebibytes: u64) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let (mut bytes, mut noise) = (vec![0; 1 << 20], Noise::new(1));
    for _ in 0..mebibytes {
        noise.fill(&mut bytes);
        out.write_all(&bytes)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// An XFS that can share blocks between files, mounted from a file until it is dropped.
pub(crate) struct Xfs {
    volume: PathBuf,
    mount: PathBuf,
}

impl Xfs {
    /// Why it cannot be had, otherwise.
    pub(crate) fn mount(setup: &Setup) -> Result<Self, String> {
        if !have("mkfs.xfs") {
            return Err("mkfs.xfs is not installed".to_owned());
        }
        let (volume, mount) = (setup.file("xfs.volume"), setup.file("xfs"));
        let made = || -> anyhow::Result<()> {
            File::create(&volume)?.set_len(6 << 30)?;
            std::fs::create_dir_all(&mount)?;
            timed("mkfs.xfs", &["-q", "-m", "reflink=1", text(&volume)])?;
            timed("mount", &["-o", "loop", text(&volume), text(&mount)])?;
            Ok(())
        };
        match made() {
            Ok(()) => Ok(Self { volume, mount }),
            Err(_) => {
                let _ = remove(&volume);
                Err("an XFS cannot be mounted here".to_owned())
            }
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        if let Err(error) = timed("umount", &[text(&self.mount)]) {
            eprintln!("vhdxkit-bench: {error:#}");
        }
        let _ = remove(&self.volume);
    }
}
