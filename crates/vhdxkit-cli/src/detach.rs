//! A server in the background: the command returns when it serves, not before.
//!
//! A process with threads cannot fork, and this program has no unsafe code to do it with. So the command
//! runs itself once more with the same arguments, in a session of its own, and passes on what that one
//! prints. A zero byte on the other one's stdout, which no text has, says that it serves: then both ends of
//! its output are cut and the command ends. When the other one ends instead, its errors have been shown
//! and its exit status is the command's.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;

use anyhow::Context as _;

use crate::failure::exit;

/// Tells a process that it is the other one, by the process id of the first. A variable that was passed on
/// to other children of either is not taken for that.
const VARIABLE: &str = "VHDX_DETACHED_FROM";
/// The end of what is printed before serving.
const READY: u8 = 0;

/// Whether this process is the one in the background. To be asked first while the command still waits.
pub(crate) fn is_detached() -> bool {
    static DETACHED: OnceLock<bool> = OnceLock::new();
    *DETACHED.get_or_init(|| {
        let from = std::env::var(VARIABLE).ok();
        from.is_some_and(|pid| pid == std::os::unix::process::parent_id().to_string())
    })
}

/// Runs this command once more in the background, and returns when that one serves or has failed.
pub(crate) fn launch() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program again")?;
    let errors_can_stay = io::stderr().is_terminal() || is_file(io::stderr());
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A pipe would keep whoever reads it waiting for the server's end.
        .stderr(if errors_can_stay { Stdio::inherit() } else { Stdio::piped() })
        .spawn()
        .context("cannot start the server")?;
    let errors = child.stderr.take();
    let passed_on = errors.map(|mut from| {
        std::thread::spawn(move || io::copy(&mut from, &mut io::stderr()).map(drop))
    });
    let serves = match child.stdout.take() {
        Some(from) => pass_on(from)?,
        None => false,
    };
    if let Some(thread) = passed_on {
        let _ = thread.join();
    }
    if serves {
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(exit::FAILED)))
}

/// Passes on what the other process prints; whether it ended with the sign that it serves.
fn pass_on(mut from: impl Read) -> io::Result<bool> {
    let mut out = io::stdout();
    let mut buf = [0; 4096];
    loop {
        let got = from.read(&mut buf)?;
        let text = &buf[..got];
        match text.iter().position(|byte| *byte == READY) {
            Some(end) => {
                out.write_all(&text[..end])?;
                out.flush()?;
                return Ok(true);
            }
            None if got == 0 => return Ok(false),
            None => out.write_all(text)?,
        }
    }
}

fn is_file(end: impl AsFd) -> bool {
    let file = end.as_fd().try_clone_to_owned().map(File::from);
    let kind = file.and_then(|file| file.metadata()).map(|meta| meta.file_type());
    kind.is_ok_and(|kind| kind.is_file() || kind.is_char_device())
}

/// In the background: leaves the terminal's session, so that closing it or Ctrl-C in it ends nothing here.
pub(crate) fn leave_session() {
    // It fails only for the leader of a session, which needs none.
    let _ = rustix::process::setsid();
}

/// In the background: lets the command return. Nothing may be printed afterwards; [`tell`] has other ways.
///
/// # Errors
/// The command has gone: nobody knows that this process serves, and it should not.
pub(crate) fn serve_now() -> io::Result<()> {
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    if !io::stderr().is_terminal() && !is_file(io::stderr()) {
        rustix::stdio::dup2_stderr(&nowhere)?;
    }
    // A server must not keep the directory's file system from being unmounted.
    std::env::set_current_dir("/")?;
    let mut out = io::stdout();
    out.write_all(&[READY])?;
    out.flush()?;
    Ok(rustix::stdio::dup2_stdout(&nowhere)?)
}

/// Says what a server's owner should know: on stderr, and in the background in the system's log too.
pub(crate) fn tell(words: &str) {
    let _ = writeln!(io::stderr(), "vhdx: {words}");
    if is_detached() {
        // 27: a daemon's error.
        let line = format!("<27>vhdx[{}]: {words}", std::process::id());
        let _ = UnixDatagram::unbound().and_then(|log| log.send_to(line.as_bytes(), "/dev/log"));
    }
}
