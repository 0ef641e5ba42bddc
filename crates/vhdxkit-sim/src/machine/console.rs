//! The two processes of a round: the server, and the machine with its console.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A process that does not outlive its owner.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn start(command: &mut Command, what: &str) -> Result<Self, String> {
        command.spawn().map(Self).map_err(|e| format!("cannot start {what}: {e}"))
    }

    /// `kill -9`, and waits for its end.
    pub(super) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Asks it to end, and waits for it.
    ///
    /// # Errors
    /// It does not end in time, or not well.
    pub(super) fn end(&mut self) -> Result<(), String> {
        let mut asking = Command::new("sh");
        asking.args(["-c", "kill -TERM \"$0\"", &self.0.id().to_string()]);
        asking.status().map_err(|e| format!("kill: {e}"))?;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) {
            match self.0.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the server ends with {status}")),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err("the server does not end".to_owned())
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

/// The lines that a process writes, as they come.
#[derive(Debug)]
struct Lines(Receiver<String>);

impl Lines {
    /// Reads in a thread of its own until the process has gone; a copy of everything goes to a file.
    fn of(from: impl Read + Send + 'static, copy: &Path) -> Result<Self, String> {
        let mut copy = File::options().create(true).append(true).open(copy);
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if let Ok(copy) = &mut copy {
                    let _ = copy.write_all(&line);
                }
                // The last line may have been cut off by the kill.
                if line.ends_with(b"\n") {
                    let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                line.clear();
            }
        });
        Ok(Self(receiver))
    }

    fn next(&self, until: Instant) -> Next {
        match self.0.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Timeout) => Next::Silence,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// A line.
    Line(String),
    /// Nothing, in the time given.
    Silence,
    /// Nothing any more.
    End,
}

/// Serves the image at a socket, and returns once it listens.
///
/// # Errors
/// It does not.
pub(super) fn serve(vhdx: &Path, image: &Path, socket: &Path) -> Result<Process, String> {
    let _ = std::fs::remove_file(socket);
    let folder = socket.parent().unwrap_or(Path::new("."));
    let words = File::options().create(true).append(true).open(folder.join("server.txt"));
    let words = words.map_err(|e| format!("server.txt: {e}"))?;
    let mut command = Command::new(vhdx);
    command.arg("serve").arg(image).arg("--unix").arg(socket);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(words);
    let mut process = Process::start(&mut command, "vhdx serve")?;
    let output = process.0.stdout.take().ok_or("no output")?;
    let lines = Lines::of(output, &folder.join("server.txt"))?;
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match lines.next(until) {
            Next::Line(line) if line.contains("nbd+unix:") => return Ok(process),
            Next::Line(_) => {}
            Next::Silence => return Err("vhdx serve does not say where it listens".to_owned()),
            Next::End => {
                let said = std::fs::read_to_string(folder.join("server.txt")).unwrap_or_default();
                let last = said.lines().last().unwrap_or_default().to_owned();
                return Err(format!("vhdx serve ends at once: {last}"));
            }
        }
    }
}

/// A machine, with what comes from its console and what goes to it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) process: Process,
    input: ChildStdin,
    lines: Lines,
}

/// How to boot.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) socket: &'a Path,
    /// For QEMU's drive.
    pub(super) drive: &'a str,
    /// For the kernel's command line: these reach the guest's program as variables.
    pub(super) variables: &'a str,
    /// Where everything goes that the console says.
    pub(super) copy: &'a Path,
}

impl Machine {
    /// Starts one.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub(super) fn boot(boot: &Boot<'_>) -> Result<Self, String> {
        let drive = format!(
            "file=nbd+unix:///?socket={},format=raw,if=virtio,discard=unmap,{}",
            boot.socket.display(),
            boot.drive
        );
        let kernel = format!("console=ttyS0 loglevel=1 panic=-1 {}", boot.variables);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "256", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(boot.initramfs);
        command.args(["-append", &kernel, "-drive", &drive]);
        let words = File::options().create(true).append(true).open(boot.copy);
        command.stderr(words.map_err(|e| format!("{}: {e}", boot.copy.display()))?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command, "qemu-system-x86_64")?;
        let (input, output) = (process.0.stdin.take(), process.0.stdout.take());
        let lines = Lines::of(output.ok_or("no output")?, boot.copy)?;
        Ok(Self { process, input: input.ok_or("no input")?, lines })
    }

    /// The next line that is for us, without its mark.
    pub(super) fn next(&self, until: Instant) -> Next {
        loop {
            match self.lines.next(until) {
                Next::Line(line) => {
                    if let Some(rest) = line.strip_prefix('@') {
                        return Next::Line(rest.to_owned());
                    }
                }
                other => return other,
            }
        }
    }

    /// Types.
    ///
    /// # Errors
    /// The machine has gone.
    pub(super) fn type_line(&mut self, line: &str) -> Result<(), String> {
        let sent = self.input.write_all(line.as_bytes()).and_then(|()| self.input.flush());
        sent.map_err(|e| format!("the machine has gone: {e}"))
    }
}
