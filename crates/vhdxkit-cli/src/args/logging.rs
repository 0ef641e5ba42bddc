//! Arguments of the commands about the log.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ImageArgs, parse_size};

/// The sub-commands of `log`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Tell what every entry of the log is and what it changed.
    #[command(before_help = "\
Examples:
  vhdx log show disk.vhdx
  vhdx log show --json disk.vhdx | jq .active")]
    Show(ImageArgs),
    /// Apply the pending entries in the file itself, as a hypervisor would on attach.
    #[command(before_help = "\
Examples:
  cp --sparse=always disk.vhdx copy.vhdx && vhdx log replay copy.vhdx

Reading commands do not need this: they replay in memory.")]
    Replay(ReplayArgs),
    /// Write one entry's bytes to a file or to stdout.
    #[command(before_help = "\
Examples:
  vhdx log extract disk.vhdx --entry 1004 -o entry.bin
  vhdx log extract disk.vhdx --entry 1004 --sectors | xxd | less")]
    Extract(ExtractArgs),
}

/// Arguments of `log replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The VHDX file. It will be changed.
    pub(crate) image: PathBuf,
    /// Replay although a damaged entry keeps newer ones from being replayed, which are lost then.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `log extract`.
#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// The sequence number of the entry.
    #[arg(long, value_name = "SEQ")]
    pub(crate) entry: u64,
    /// Where in the log it starts, in bytes, when the number alone is ambiguous.
    #[arg(long, value_name = "LOG_OFFSET", value_parser = parse_size)]
    pub(crate) at: Option<u64>,
    /// Write the 4 KiB sectors that the entry would put in place, one after another, instead of its
    /// raw bytes.
    #[arg(long)]
    pub(crate) sectors: bool,
    /// Write to this file instead of stdout.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}
