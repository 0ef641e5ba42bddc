//! Arguments of `mount` and `unmount`.

use std::path::PathBuf;

use clap::Args;
use vhdxkit::OpenOptions;

use super::ParentArgs;

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    /// An empty directory.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Change nothing. The log of a crashed image is replayed in memory.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Show this partition alone, by its number, and not the whole disk.
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// Return as soon as the files are there, and serve in the background.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Let other users read the files, root among them.
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Let it be written although other images build on it: they will be unreadable.
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) force: bool,
    /// Mount although another process may be writing the image. What is read may be half-changed.
    #[arg(long, requires = "read_only")]
    pub(crate) force_share: bool,
    /// Show the file as it lies on disk when its log cannot be replayed. The last changes may be
    /// missing or half done.
    #[arg(long, requires = "read_only")]
    pub(crate) without_log: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

impl MountArgs {
    /// The library's options to look at the image.
    pub(crate) fn to_read(&self) -> OpenOptions {
        let options = OpenOptions::new().force_share(self.force_share);
        self.parents.over(options.without_log(self.without_log))
    }

    /// The library's options to serve it.
    pub(crate) fn to_serve(&self) -> OpenOptions {
        match self.read_only {
            true => self.to_read(),
            false => self.parents.over(OpenOptions::new().write(true)),
        }
    }
}

/// Arguments of `unmount`.
#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// The directory that a disk is mounted on.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}
