//! Arguments about what lies on a disk, and about giving space back.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ContentsArgs, ParentArgs};

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
}

/// Arguments of `compact`.
#[derive(Debug, Args)]
pub(crate) struct CompactArgs {
    /// The VHDX file. It is changed in place.
    pub(crate) image: PathBuf,
    /// Tell what would be given back, and change nothing.
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Whose word counts for what is free: `auto`, the file systems on the disk that were left in good
    /// order; `none`, nobody's: then only zeros and trimmed blocks go.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub(crate) free_space: FreeSpaceName,
    /// Believe file systems that were not unmounted cleanly, too. What their journal or a hibernating guest
    /// still has to write is lost if they are not in order.
    #[arg(long)]
    pub(crate) assume_clean: bool,
    /// Give up data that no entry of the block table names, however much it is. A damaged table leaves such data,
    /// too: have a copy first (`vhdx recover IMAGE --orphans DIR`).
    #[arg(long)]
    pub(crate) allow_data_loss: bool,
    /// Compact although other images build on this one. They cannot be read any more when free blocks go.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// Whose word counts for what is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FreeSpaceName {
    /// File systems that were left in good order.
    Auto,
    /// Nobody's.
    None,
}
