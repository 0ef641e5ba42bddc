//! Arguments of the commands that show an image and what is in it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ContentsArgs, FormatName, ImageArgs, ParentArgs, parse_size};

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
    /// Tell of the parents, too, child first.
    #[arg(long)]
    pub(crate) chain: bool,
    /// Format of the file; recognised without this.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<FormatName>,
    /// Count the blocks even where that means reading a very large table.
    #[arg(long)]
    pub(crate) count_blocks: bool,
}

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// Which structure.
    #[arg(value_name = "header|regions|metadata|bat|bitmap")]
    pub(crate) what: DumpWhat,
}

/// What `dump` can decode.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DumpWhat {
    /// The file identifier and both header copies.
    Header,
    /// The region table.
    Regions,
    /// The metadata table and its items.
    Metadata,
    /// Every entry of the BAT that is not zero.
    Bat,
    /// The sector bitmaps of a differencing disk.
    Bitmap,
}

/// Arguments of `read`.
#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
    /// First byte: a multiple of the disk's logical sector size.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    pub(crate) offset: u64,
    /// Bytes, a multiple of the sector size; without it up to the end of the disk.
    #[arg(long, value_parser = parse_size)]
    pub(crate) length: Option<u64>,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The first disk.
    pub(crate) a: PathBuf,
    /// The second disk.
    pub(crate) b: PathBuf,
    /// Format of the first; recognised without this.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format_a: Option<FormatName>,
    /// Format of the second; recognised without this.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format_b: Option<FormatName>,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
}
