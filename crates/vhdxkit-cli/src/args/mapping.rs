//! Arguments of `map`.

use std::path::PathBuf;

use clap::Args;

use super::ContentsArgs;

/// Arguments of `map`.
#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    /// Write a page that shows the image: its disk, its file, its log, its problems.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Replace the page if it exists. Nothing else is replaced but an empty file.
    #[arg(long, requires = "html")]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
}
