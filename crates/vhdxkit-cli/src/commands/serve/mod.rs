//! `vhdx serve`: images to NBD clients, until it is stopped.

mod disks;
mod hints;
mod places;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use vhdxkit_serve::{Tell, nbd};

use super::Context;
use crate::args::ServeArgs;
use crate::console::end_on_signal;
use crate::detach;
use disks::Served;
use places::Place;

pub(crate) fn run(args: &ServeArgs, context: Context) -> anyhow::Result<ExitCode> {
    if args.life.detach && !detach::is_detached() {
        return detach::launch();
    }
    if detach::is_detached() {
        detach::leave_session();
    }
    let tell: Arc<Tell> = Arc::new(detach::tell);
    let tls = args.place.tls_certificates.as_deref().map(nbd::Tls::from_folder).transpose();
    let tls = tls.context("cannot use the certificates")?;
    // Where to listen is settled before an image is touched.
    let place = Place::take(&args.place, tls.is_some())?;
    let disks = disks::open_all(args, &tell)?;
    let mut options = nbd::Options::default()
        .insecure(args.place.insecure)
        .once(args.life.once)
        .tell(Arc::clone(&tell));
    for served in &disks {
        options = options.offer(&served.name, served.description(), served.export.clone());
    }
    if let Some(tls) = tls {
        options = options.tls(tls);
    }
    let server = nbd::Server::new(options)?;
    let stopper = server.stopper();
    end_on_signal(move || stopper.stop());
    let pid_file = args.life.pid_file.as_deref().map(PidFile::write).transpose()?;
    let (listeners, place) = place.split();
    // Clients that connect from now on are queued, and served in a moment.
    let status = match &args.life.run {
        None => {
            hints::print(&disks, &place, context)?;
            if detach::is_detached() {
                detach::serve_now().context("the command that started this has gone")?;
            }
            server.run(listeners).map(|()| ExitCode::SUCCESS)
        }
        Some(command) => run_beside(&server, listeners, command, &disks, &place),
    };
    drop(pid_file);
    let closed: anyhow::Result<Vec<()>> = disks.iter().map(Served::close).collect();
    closed?;
    Ok(status?)
}

/// Serves as long as a command runs, and gives its status.
fn run_beside(
    server: &nbd::Server,
    listeners: Vec<nbd::Listener>,
    command: &str,
    disks: &[Served],
    place: &places::Address,
) -> io::Result<ExitCode> {
    let name = disks.first().map_or("", |served| &served.name);
    let uri = place.uri(name).unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).env("uri", &uri).env("nbd", &uri).env("exportname", name);
    let socket = place.socket.as_deref().unwrap_or(Path::new(""));
    shell.env("unixsocket", socket);
    shell.env("port", place.port.map_or_else(String::new, |port| port.to_string()));
    let mut child = shell.spawn()?;
    let pid = child.id();
    let stopper = server.stopper();
    let waiting = std::thread::spawn(move || {
        let status = child.wait();
        stopper.stop();
        status
    });
    let served = server.run(listeners);
    if !waiting.is_finished() {
        // The server was told to end. What runs beside it has lost its disk, and is told as well.
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    let status =
        waiting.join().map_err(|_| io::Error::other("waiting for the command failed"))??;
    served?;
    // As shells tell it: a command that a signal has ended.
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
    let code = status.code().unwrap_or(128 + signal);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// A file with our process id, which goes with us.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot write the process id to {}", path.display());
        std::fs::write(path, format!("{}\n", std::process::id())).with_context(failed)?;
        // A server in the background leaves this directory.
        Ok(Self(std::path::absolute(path)?))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            let _ = writeln!(io::stderr(), "warning: {}: {error}", self.0.display());
        }
    }
}
