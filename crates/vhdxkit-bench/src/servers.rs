//! Servers that run while others are timed.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{text, timed};
use crate::setup::remove;

/// Whoever needs longer to start or to end does neither.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server in the foreground, ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// Its socket, or the file that it shows.
    place: PathBuf,
    mounted: bool,
}

impl Server {
    /// Starts one that listens on a Unix socket.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> anyhow::Result<Self> {
        remove(socket)?;
        let server = Self::spawn(command, socket, false)?;
        // Heard out until the greeting: some complain of those who go without a word.
        let greeted = |mut stream: UnixStream| stream.read_exact(&mut [0; 18]).is_ok();
        server.wait_until(|| UnixStream::connect(socket).is_ok_and(greeted))
    }

    /// Starts one that shows a file, on a mount in whose place another device was before.
    pub(crate) fn mount(command: &mut Command, file: &Path) -> anyhow::Result<Self> {
        let folder = file.parent().context("a file lies somewhere")?;
        let before = folder.metadata()?.dev();
        let server = Self::spawn(command, file, true)?;
        server.wait_until(|| file.metadata().is_ok_and(|m| m.dev() != before && m.len() > 0))
    }

    fn spawn(command: &mut Command, place: &Path, mounted: bool) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, place: place.to_path_buf(), mounted })
    }

    fn wait_until(mut self, ready: impl Fn() -> bool) -> anyhow::Result<Self> {
        let begun = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server of {} ended: {status}", self.place.display());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the server of {} does not start", self.place.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(self)
    }

    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// The URI of its only export.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.place.display())
    }

    /// Whether it has ended by itself in time.
    fn ends(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !self.ends() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if self.mounted {
                // The mount of a dead server is in everybody's way.
                let _ = timed("umount", &["-l", text(&self.place)]);
                let _ = self.place.parent().map(|folder| timed("umount", &["-l", text(folder)]));
            }
        }
    }
}
