//! Arguments of `recover`.

use std::path::PathBuf;

use clap::Args;

use super::making::parse_size32;
use super::{OpenArgs, parse_size};

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The damaged VHDX file. It is only read.
    pub(crate) image: PathBuf,
    /// The new image to make. Without it, only the report is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
    /// Print the report, make nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace the target if it exists and is a VHDX file, or empty. Nothing else is replaced.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Size of the disk, whatever the file says.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "What you know of the disk")]
    pub(crate) size: Option<u64>,
    /// Bytes of its blocks, whatever the file says. Windows takes 32M for dynamic, 2M for fixed disks and
    /// checkpoints.
    #[arg(long, value_name = "SIZE", value_parser = parse_size32, help_heading = "What you know of the disk")]
    pub(crate) block_size: Option<u32>,
    /// Its sector size, 512 or 4096, whatever the file says.
    #[arg(long, value_name = "BYTES", value_parser = parse_size32, help_heading = "What you know of the disk")]
    pub(crate) logical_sector_size: Option<u32>,
    /// It is a checkpoint of this disk: make one disk of both. Again for the parent's parent. Without it the
    /// result is a checkpoint of the same parent.
    #[arg(long = "parent", value_name = "FILE", help_heading = "What you know of the disk")]
    pub(crate) parents: Vec<PathBuf>,
    /// Take that parent although it was changed since, or is another disk.
    #[arg(long, help_heading = "What you know of the disk")]
    pub(crate) ignore_parent_id: bool,
    /// When nothing says any more where any block lies: take them in order, up to the file's end. Right for a
    /// fixed disk, a gamble for others.
    #[arg(long)]
    pub(crate) guess_order: bool,
    /// Write what the file holds and nothing names into this folder, one raw file for each run, named by its
    /// offset.
    #[arg(long, value_name = "DIR")]
    pub(crate) orphans: Option<PathBuf>,
}
