//! Boots, lets the guest work, kills, looks at what is left; and again on the same disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vhdxkit::log::LogState;
use vhdxkit::{CreateOptions, Image};
use vhdxkit_testkit::random::Random;

use super::console::{Boot, Machine, Next, Process, serve};
use super::initramfs::{blob, build};
use super::memory::Memory;
use super::parts::Parts;
use super::report::Report;
use super::{DISK, PAGE};

/// A stage of a boot takes a few seconds; on a busy computer, more.
const PATIENCE: Duration = Duration::from_secs(240);
/// Orders that the guest has ahead of it, so that it does not wait for the host.
const AHEAD: usize = 4;

/// How much to do, and with what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kills.
    pub rounds: u64,
    /// Seed of what the guest is told and of the moments of the kills.
    pub seed: u64,
    /// The command `vhdx`.
    pub vhdx: PathBuf,
    /// What `scripts/install-guest` has fetched.
    pub parts: PathBuf,
    /// Where to work.
    pub folder: PathBuf,
}

impl Plan {
    /// What is not there that a guest needs.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        match self.vhdx.exists() {
            true => Parts::find(&self.parts).err(),
            false => Some(format!("the command vhdx ({})", self.vhdx.display())),
        }
    }
}

/// How a round ends.
#[derive(Debug, Clone, Copy)]
enum Way {
    MachineThenServer,
    ServerThenMachine,
    ServerLongBefore,
    MachineOnly,
}

impl Way {
    /// In turn.
    const ALL: [Self; 6] = [
        Self::MachineThenServer,
        Self::ServerThenMachine,
        Self::MachineOnly,
        Self::ServerThenMachine,
        Self::ServerLongBefore,
        Self::MachineThenServer,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::MachineThenServer => "the machine and at once the server",
            Self::ServerThenMachine => "the server and at once the machine",
            Self::ServerLongBefore => "the server, and later the machine that had lost its disk",
            Self::MachineOnly => "the machine only; the server is asked to end",
        }
    }
}

/// A run on one disk.
struct Run<'a> {
    plan: &'a Plan,
    parts: Parts,
    blob: Vec<u8>,
    image: PathBuf,
    memory: Memory,
    random: Random,
    report: Report,
    /// No file system is known to be there.
    fresh: bool,
}

/// Kills so many times, then boots once more to look. Stops at the first failure, and leaves its evidence
/// in the folder.
///
/// # Errors
/// The work itself cannot be done; see [`Plan::missing`].
pub fn run(plan: &Plan) -> Result<Report, String> {
    let since = Instant::now();
    let parts = Parts::find(&plan.parts).map_err(|what| format!("MISSING: {what}"))?;
    let archive = build(&parts).map_err(|e| format!("cannot put the guest together: {e}"))?;
    std::fs::write(plan.folder.join("initramfs"), archive).map_err(|e| e.to_string())?;
    let image = plan.folder.join("disk.vhdx");
    CreateOptions::new(DISK).block_size(1 << 20).create(&image).map_err(|e| e.to_string())?;
    let mut run = Run {
        plan,
        parts,
        blob: blob(),
        image,
        memory: Memory::default(),
        random: Random::new(plan.seed),
        report: Report::default(),
        fresh: true,
    };
    for number in 0..=plan.rounds {
        let result = match number == plan.rounds {
            true => run.last(number),
            false => run.round(number),
        };
        if let Err(error) = result {
            run.report.failure = Some(format!("round {number}, seed {}: {error}", plan.seed));
            break;
        }
    }
    run.report.time = since.elapsed();
    Ok(run.report)
}

impl Run<'_> {
    fn round(&mut self, number: u64) -> Result<(), String> {
        let (mut server, mut machine) = self.start(number)?;
        // One in five does not get to work: it dies while it recovers.
        let early = number % 5 == 4;
        if early {
            std::thread::sleep(self.moment(0, 900));
            self.report.early += 1;
        } else {
            self.verify(&machine)?;
            let until = Instant::now() + self.moment(200, 5000);
            self.work(&mut machine, until)?;
        }
        if server.has_ended() || machine.process.has_ended() {
            return Err("a process has ended by itself".to_owned());
        }
        self.kill(number, &mut machine, &mut server)
    }

    /// Boots to look at what the last kill has left, and ends well.
    fn last(&mut self, number: u64) -> Result<(), String> {
        let (mut server, mut machine) = self.start(number)?;
        self.verify(&machine)?;
        machine.process.kill();
        server.end()?;
        self.look_at_image(true)
    }

    fn moment(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.random.below(most - least))
    }

    /// A server, and a machine that has booted and has not looked at its disk yet.
    fn start(&mut self, number: u64) -> Result<(Process, Machine), String> {
        let socket = self.plan.folder.join("socket");
        let server = serve(&self.plan.vhdx, &self.image, &socket)?;
        let drive = ["cache=none", "cache=writeback", "cache=none,detect-zeroes=unmap"];
        let mount = ["rw", "rw,discard"];
        let fresh = u8::from(self.fresh);
        let variables = format!("FRESH={fresh} OPTIONS={}", self.random.one_of(&mount));
        let machine = Machine::boot(&Boot {
            kernel: &self.parts.kernel,
            initramfs: &self.plan.folder.join("initramfs"),
            socket: &socket,
            drive: self.random.one_of(&drive),
            variables: &variables,
            copy: &self.plan.folder.join(format!("console{number}.txt")),
        })?;
        self.report.boots += 1;
        let until = Instant::now() + PATIENCE;
        match self.hear(&machine, until)?.as_deref() {
            Some("READY") => Ok((server, machine)),
            Some(other) => Err(format!("the guest says {other:?} at its start")),
            None => Err("the guest does not boot".to_owned()),
        }
    }

    /// The guest's next line, if there is one until then.
    ///
    /// # Errors
    /// It is one that says that something is broken, or the machine has gone.
    fn hear(&mut self, machine: &Machine, until: Instant) -> Result<Option<String>, String> {
        match machine.next(until) {
            Next::Line(line) if line.starts_with("BROKEN") || line.starts_with("FAILED") => {
                Err(format!("the guest says: {line}"))
            }
            Next::Line(line) => Ok(Some(line)),
            Next::Silence => Ok(None),
            Next::End => Err("the machine has ended by itself".to_owned()),
        }
    }

    /// Takes in what the guest shows, and judges it.
    fn verify(&mut self, machine: &Machine) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        let mut found = BTreeMap::new();
        loop {
            let line = self.hear(machine, until)?.ok_or("the guest does not show its files")?;
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["MADE"] => self.made(),
                ["FOUND", name, sum] => {
                    let file = name.strip_prefix('f').and_then(|number| number.parse().ok());
                    found.insert(file.ok_or(format!("a file {name}"))?, (*sum).to_owned());
                }
                ["FSCK", "0"] => self.report.fsck_clean += 1,
                ["FSCK", code] => return Err(format!("e2fsck ends with {code}")),
                ["VERIFIED"] => break,
                _ => return Err(format!("the guest says {line:?}")),
            }
        }
        let (blob, busybox) = (&self.blob, &self.parts.busybox);
        let shown = self.memory.judge(&found, |pages| sum_of(busybox, blob, pages))?;
        self.report.count_shown(shown);
        Ok(())
    }

    fn made(&mut self) {
        self.fresh = false;
        self.memory.forget();
    }

    /// Gives orders, and remembers the answers.
    fn work(&mut self, machine: &mut Machine, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            while self.memory.waiting() < AHEAD {
                let line = self.memory.order(&mut self.random);
                machine.type_line(&line)?;
            }
            if let Some(line) = self.hear(machine, until)? {
                self.take_answer(&line);
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, line: &str) {
        let id = line.strip_prefix("DONE ").and_then(|id| id.parse().ok());
        if let Some(order) = id.and_then(|id| self.memory.answered(id)) {
            self.report.count_answer(&order);
        } else if line == "MADE" {
            self.made();
        }
    }

    fn kill(
        &mut self,
        number: u64,
        machine: &mut Machine,
        server: &mut Process,
    ) -> Result<(), String> {
        let way = Way::ALL[number as usize % Way::ALL.len()];
        let short = self.moment(0, 30);
        let long = self.moment(300, 2000);
        match way {
            Way::MachineThenServer => {
                machine.process.kill();
                std::thread::sleep(short);
                server.kill();
                self.take_rest(machine);
            }
            Way::ServerThenMachine | Way::ServerLongBefore => {
                // What a guest says that has lost its disk does not count.
                self.take_present(machine);
                server.kill();
                let wait = if matches!(way, Way::ServerLongBefore) { long } else { short };
                std::thread::sleep(wait);
                machine.process.kill();
            }
            Way::MachineOnly => {
                machine.process.kill();
                self.take_rest(machine);
                server.end()?;
                self.report.ended_clean += 1;
            }
        }
        *self.report.kills.entry(way.words()).or_default() += 1;
        self.look_at_image(matches!(way, Way::MachineOnly))
    }

    /// All that a machine had said before it was killed.
    fn take_rest(&mut self, machine: &Machine) {
        let until = Instant::now() + Duration::from_secs(10);
        while let Next::Line(line) = machine.next(until) {
            self.take_answer(&line);
        }
    }

    /// All that it has said so far.
    fn take_present(&mut self, machine: &Machine) {
        while let Next::Line(line) = machine.next(Instant::now()) {
            self.take_answer(&line);
        }
    }

    /// Asks `vhdx check`, which may say no more than that one header copy is torn or behind.
    fn look_at_image(&mut self, must_be_clean: bool) -> Result<(), String> {
        let output = Command::new(&self.plan.vhdx).arg("check").arg(&self.image).output();
        let output = output.map_err(|e| format!("vhdx check: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let problem = |line: &&str| line.starts_with("error") || line.starts_with("warning");
        let header = |line: &&str| matches!(line.split_whitespace().nth(1), Some("V3" | "V4"));
        let mut problems = text.lines().filter(problem);
        let excused =
            !must_be_clean && problems.clone().count() > 0 && problems.all(|l| header(&l));
        if !output.status.success() && !excused {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("vhdx check says: {text}{errors}"));
        }
        self.report.checked += 1;
        let image = Image::open(&self.image).map_err(|e| e.to_string())?;
        let dirty = image.log().state() == LogState::Dirty;
        self.report.dirty += u64::from(dirty);
        match dirty && must_be_clean {
            true => Err("the server has ended well and left the image dirty".to_owned()),
            false => Ok(()),
        }
    }
}

/// The checksum of a file of these pages; by the same program that the guest has.
fn sum_of(busybox: &Path, blob: &[u8], pages: &[u64]) -> Result<String, String> {
    let told = |e: std::io::Error| format!("busybox md5sum: {e}");
    let mut child = Command::new(busybox)
        .arg("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(told)?;
    let mut input = child.stdin.take().ok_or("no input")?;
    for page in pages {
        let start = *page as usize * PAGE;
        input.write_all(&blob[start..start + PAGE]).map_err(told)?;
    }
    drop(input);
    let output = child.wait_with_output().map_err(told)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
