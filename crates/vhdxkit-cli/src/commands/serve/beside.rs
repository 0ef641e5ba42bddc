//! A command that runs as long as the server does (`--run`).

use std::io;
use std::process::{Child, Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use vhdxkit_serve::nbd::Stopper;

use super::disks::Served;
use super::places::Address;

/// A command that was told to end has so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command, if there is one. Its number stays its own until it is reaped, and it is reaped by
/// [`finish`](Self::finish) only.
#[derive(Clone, Default)]
pub(super) struct Beside(Arc<Mutex<Option<Child>>>);

impl Beside {
    /// Starts the command; when it ends, so does the server.
    pub(super) fn start(
        &self,
        command: &str,
        disks: &[Served],
        place: &Address,
        stopper: Stopper,
    ) -> anyhow::Result<()> {
        let name = disks.first().map_or("", |served| &served.name);
        let uri = match place.has_client_certificate {
            true => place.uri_for_clients(name),
            false => place.uri(name),
        };
        let uri = uri.unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).env("uri", &uri).env("nbd", &uri).env("exportname", name);
        shell.env("unixsocket", place.socket.clone().unwrap_or_default());
        shell.env("port", place.port.map_or_else(String::new, |port| port.to_string()));
        let child = shell.spawn()?;
        let pid = pid_of(&child);
        *self.child() = Some(child);
        std::thread::spawn(move || {
            if let Some(pid) = pid {
                while let Err(rustix::io::Errno::INTR) = wait_without_reaping(pid) {}
            }
            stopper.stop();
        });
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        if let Some(pid) = self.child().as_ref().and_then(pid_of) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Its status. When it still runs, it has lost its disk: it is told to end, and made to.
    pub(super) fn finish(&self) -> io::Result<Option<ExitCode>> {
        let mut child = self.child();
        let Some(child) = &mut *child else { return Ok(None) };
        let begun = Instant::now();
        let mut told = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                break child.wait()?;
            }
            if let Some(pid) = pid_of(child).filter(|_| !std::mem::replace(&mut told, true)) {
                let _ = kill_process(pid, Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // As shells tell it: a command that a signal has ended.
        let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
        let code = status.code().unwrap_or(128 + signal);
        Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1))))
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn wait_without_reaping(pid: Pid) -> rustix::io::Result<()> {
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).map(drop)
}
