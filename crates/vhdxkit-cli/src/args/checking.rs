//! Arguments of `check`, and of the repair it offers.

use std::path::PathBuf;

use clap::Args;

use super::{ImageArgs, ParentArgs};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
    #[command(flatten)]
    pub(crate) mend: MendArgs,
}

/// How `check` mends an image, and takes it back.
#[derive(Debug, Args)]
pub(crate) struct MendArgs {
    /// Mend what can be mended without a guess, in this image only, not in its parents.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Only say what a repair would do.
    #[arg(long, requires = "repair")]
    pub(crate) dry_run: bool,
    /// Give up a log that cannot be replayed, if the file is consistent without it.
    #[arg(long, requires = "repair")]
    pub(crate) discard_log: bool,
    /// Let blocks read as zeros whose contents are not in the file any more; give up log entries that
    /// cannot be reached.
    #[arg(long, requires = "repair")]
    pub(crate) allow_data_loss: bool,
    /// Which of two headers counts that contradict each other.
    #[arg(long, value_name = "1|2", requires = "repair", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) use_header: Option<u8>,
    /// Write no undo file. What is written over is gone for good.
    #[arg(long, requires = "repair")]
    pub(crate) no_undo: bool,
    /// Take a repair back: the undo file that it has written.
    #[arg(long, value_name = "FILE", conflicts_with = "repair")]
    pub(crate) undo: Option<PathBuf>,
    /// Take it back although the image was written since. What was written then is lost.
    #[arg(long, requires = "undo")]
    pub(crate) force: bool,
}
