//! Rows 5 to 7: servers of NBD over a Unix socket. One client, fio, takes turns with all of them; each
//! is started once, and what it serves lies in the page cache or in its memory.
//!
//! Row 18: the same disk mounted by FUSE, where fio finds nothing cached by the kernel in front of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::harness::{Case, Side, Unit, Want};
use crate::process::{have, seconds, text, timed};
use crate::servers::Server;
use crate::setup::{Setup, fresh_copy, incompressible, remove};
use crate::table::Table;

/// The threads that nbdkit has for a client unless it is told otherwise.
const MANY: &str = "16";

/// What fio asks for.
#[derive(Debug, Clone, Copy)]
struct Job {
    way: &'static str,
    block: &'static str,
    depth: u32,
}

/// A disk of noise: as raw bytes, as an image for us, and as another one for QEMU.
struct Disks<'a> {
    setup: &'a Setup,
    raw: PathBuf,
    ours: PathBuf,
    theirs: PathBuf,
    mebibytes: u64,
}

impl<'a> Disks<'a> {
    fn new(setup: &'a Setup) -> anyhow::Result<Self> {
        let mebibytes = if setup.quick { 64 } else { 256 };
        let [raw, ours, theirs] =
            ["served.raw", "served.vhdx", "served.qemu.vhdx"].map(|name| setup.file(name));
        incompressible(&raw, mebibytes)?;
        remove(&ours)?;
        let convert = ["convert", "-q", "--to", "vhdx", "--block-size", "1M"];
        timed(text(&setup.vhdx), &[&convert[..], &[text(&raw), text(&ours)]].concat())?;
        fresh_copy(&ours, &theirs)?;
        Ok(Self { setup, raw, ours, theirs, mebibytes })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.setup.file(&format!("{name}.sock"))
    }

    fn vhdxkit(&self) -> anyhow::Result<Server> {
        let socket = self.socket("vhdxkit");
        let mut command = Command::new(&self.setup.vhdx);
        Server::start(command.arg("serve").arg(&self.ours).arg("--unix").arg(&socket), &socket)
    }

    fn qemu(&self) -> anyhow::Result<Server> {
        let socket = self.socket("qemu");
        let mut command = Command::new("qemu-nbd");
        command.args(["-f", "vhdx", "-t", "--cache=writeback", "-k"]).arg(&socket);
        Server::start(command.arg(&self.theirs), &socket)
    }

    /// nbdkit with one of its plugins. With one thread nothing is handed from thread to thread, which is
    /// faster for a client that waits for each reply.
    fn nbdkit(&self, threads: &str, plugin: &str, what: &str) -> anyhow::Result<Server> {
        let socket = self.socket(&format!("{plugin}.{threads}"));
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-t", threads, "-U", text(&socket), plugin, what]);
        let server = Server::start(&mut command, &socket)?;
        if plugin == "memory" {
            // Memory that nobody has written would be read from a single page of zeros.
            let mut fill = Command::new("nbdcopy");
            seconds(fill.arg(&self.raw).arg(server.uri()))?;
        }
        Ok(server)
    }

    /// A side whose server is started when its turn comes for the first time, and ends with the case.
    fn side<'b>(
        &self,
        name: &str,
        job: Job,
        start: impl Fn() -> anyhow::Result<Server> + 'b,
    ) -> Side<'b> {
        let (mut server, mebibytes) = (None, self.mebibytes);
        Side::new(name, move || {
            let server = match &server {
                Some(server) => server,
                None => server.insert(start()?),
            };
            over_nbd(job, server, mebibytes)
        })
    }
}

impl Drop for Disks<'_> {
    fn drop(&mut self) {
        for path in [&self.raw, &self.ours, &self.theirs] {
            let _ = remove(path);
        }
    }
}

/// Rows 5 to 7.
pub(crate) fn row(row: u32, setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    if let Err(error) = seconds(Command::new("fio").arg("--enghelp=nbd")) {
        table.missing(row, format!("fio with its engine for NBD: {error:#}"));
        return Ok(());
    }
    let disks = Disks::new(setup)?;
    let read = |depth| Job { way: "randread", block: "4k", depth };
    match row {
        5 => {
            for depth in [1, 16] {
                let work = format!("NBD: random reads of 4 KiB, cached, depth {depth}");
                small(row, work, &disks, read(depth), 1.3, table)?;
            }
        }
        6 => {
            let work = "NBD: random writes of 4 KiB to blocks that are there, depth 16".to_owned();
            small(row, work, &disks, Job { way: "randwrite", ..read(16) }, 1.2, table)?;
        }
        _ => large(&disks, table)?,
    }
    Ok(())
}

/// Many small requests. The plugin that does nothing shows what the client and the sockets can do at most.
fn small(
    row: u32,
    work: String,
    disks: &Disks<'_>,
    job: Job,
    qemu: f64,
    table: &mut Table,
) -> anyhow::Result<()> {
    let size = format!("{}M", disks.mebibytes);
    let memory = |name: &str, threads: &'static str| {
        let side = disks.side(name, job, || disks.nbdkit(threads, "memory", &size));
        side.needs("nbdkit").needs("nbdcopy").want(Want::Speed(0.8))
    };
    let nothing = "nbdkit null, one thread: no work at all";
    let nothing = disks.side(nothing, job, || disks.nbdkit("1", "null", &size));
    let theirs = disks.side("qemu-nbd, the same VHDX", job, || disks.qemu());
    let case = Case::new(row, work, Unit::Rate, disks.side("vhdxkit", job, || disks.vhdxkit()))
        .against(memory("nbdkit memory", MANY))
        .against(memory("nbdkit memory, one thread", "1"))
        .against(theirs.needs("qemu-nbd").want(Want::Speed(qemu)))
        .against(nothing.needs("nbdkit"));
    // Memory is never written back; what that costs a file shows with another server of one.
    let raw = text(&disks.raw).to_owned();
    let file = disks.side("nbdkit file, the raw bytes", job, || disks.nbdkit(MANY, "file", &raw));
    table.add(case.against(file.needs("nbdkit")).run(disks.setup.rounds)?);
    Ok(())
}

/// Row 7.
fn large(disks: &Disks<'_>, table: &mut Table) -> anyhow::Result<()> {
    let job = Job { way: "read", block: "1M", depth: 4 };
    let raw = text(&disks.raw).to_owned();
    let file = disks.side("nbdkit file, the raw bytes", job, || disks.nbdkit(MANY, "file", &raw));
    let theirs = disks.side("qemu-nbd, the same VHDX", job, || disks.qemu());
    let work = "NBD: sequential reads of 1 MiB, depth 4";
    let case = Case::new(7, work, Unit::Rate, disks.side("vhdxkit", job, || disks.vhdxkit()))
        .against(file.needs("nbdkit").want(Want::Speed(0.95)))
        .against(theirs.needs("qemu-nbd"));
    table.add(case.run(disks.setup.rounds)?);
    Ok(())
}

/// Row 18.
pub(crate) fn mounted(setup: &Setup, table: &mut Table) -> anyhow::Result<()> {
    if !have("fio") || !Path::new("/dev/fuse").exists() {
        table.missing(18, "fio, or FUSE");
        return Ok(());
    }
    let disks = Disks::new(setup)?;
    for (what, job) in [
        ("sequential reads of 1 MiB", Job { way: "read", block: "1M", depth: 1 }),
        ("random reads of 4 KiB", Job { way: "randread", block: "4k", depth: 1 }),
    ] {
        let mib = if job.block == "1M" { disks.mebibytes } else { disks.mebibytes / 16 };
        let side = |name: &str, start: fn(&Disks<'_>) -> anyhow::Result<Server>| {
            let (mut server, disks) = (None, &disks);
            Side::new(name, move || {
                let server = match &server {
                    Some(server) => server,
                    None => server.insert(start(disks)?),
                };
                over_fuse(job, server.place(), mib, disks.mebibytes)
            })
        };
        let work = format!("FUSE: {what}, none of them cached by the mount");
        let case = Case::new(18, work, Unit::Rate, side("vhdxkit mount", our_mount))
            .against(
                side("nbdfuse and nbdkit file, the raw bytes", nbdfuse)
                    .needs("nbdfuse")
                    .needs("nbdkit")
                    .want(Want::Speed(1.0)),
            )
            .against(
                side("qemu-storage-daemon, the raw bytes", qemu_fuse).needs("qemu-storage-daemon"),
            );
        table.add(case.run(setup.rounds)?);
    }
    Ok(())
}

/// A new empty folder to mount on.
fn folder(disks: &Disks<'_>, name: &str) -> anyhow::Result<PathBuf> {
    let folder = disks.setup.file(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn our_mount(disks: &Disks<'_>) -> anyhow::Result<Server> {
    let folder = folder(disks, "mounted")?;
    let mut command = Command::new(&disks.setup.vhdx);
    command.arg("mount").arg(&disks.ours).arg(&folder).arg("--read-only");
    Server::mount(&mut command, &folder.join("disk.raw"))
}

fn nbdfuse(disks: &Disks<'_>) -> anyhow::Result<Server> {
    let file = folder(disks, "mounted.nbdfuse")?.join("disk.raw");
    let mut command = Command::new("nbdfuse");
    command.arg(&file).args(["[", "nbdkit", "-r", "file", text(&disks.raw), "]"]);
    // It complains of the signal that ends it.
    Server::mount(command.stderr(Stdio::null()), &file)
}

fn qemu_fuse(disks: &Disks<'_>) -> anyhow::Result<Server> {
    let file = folder(disks, "mounted.qemu")?.join("disk.raw");
    std::fs::File::create(&file)?;
    let (raw, at) = (text(&disks.raw), text(&file));
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &format!("driver=file,node-name=f,filename={raw}"), "--export"]);
    command.arg(format!("type=fuse,id=e,node-name=f,mountpoint={at},writable=off"));
    Server::mount(&mut command, &file)
}

/// Requests a second. Each turn is short, so that many turns meet the same weather.
fn over_nbd(job: Job, server: &Server, mebibytes: u64) -> anyhow::Result<f64> {
    let mut fio = fio(job, mebibytes);
    fio.args(["--ioengine=nbd", "--norandommap", "--time_based", "--runtime=300ms"]);
    rate(fio.arg(format!("--uri={}", server.uri())), job)
}

/// Requests a second to a file. fio has the kernel forget the file first, and asks for nothing twice.
fn over_fuse(job: Job, file: &Path, asked: u64, mebibytes: u64) -> anyhow::Result<f64> {
    let mut fio = fio(job, mebibytes);
    fio.args(["--ioengine=psync", "--invalidate=1", "--readonly"]);
    fio.arg(format!("--io_size={asked}M")).arg(format!("--filename={}", text(file)));
    rate(&mut fio, job)
}

fn fio(job: Job, mebibytes: u64) -> Command {
    let mut command = Command::new("fio");
    command.args(["--name=job", "--randseed=7", "--output-format=json"]);
    command.arg(format!("--rw={}", job.way)).arg(format!("--bs={}", job.block));
    command.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={mebibytes}M"));
    command.stderr(Stdio::piped());
    command
}

fn rate(fio: &mut Command, job: Job) -> anyhow::Result<f64> {
    let (_, told) = seconds(fio)?;
    // Some versions say something before it.
    let start = told.find('{').context("fio has told nothing")?;
    let told: serde_json::Value = serde_json::from_str(&told[start..])?;
    let way = if job.way.contains("write") { "write" } else { "read" };
    let rate = told["jobs"][0][way]["iops"].as_f64().context("fio tells no rate")?;
    ensure!(rate > 0.0, "fio has done nothing");
    Ok(rate)
}
