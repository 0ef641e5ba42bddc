//! Arguments of `mount` and `unmount`.

use std::path::PathBuf;

use clap::Args;
use vhdxkit::OpenOptions;

use super::{ParentArgs, parse_size};

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    /// An empty directory.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Change nothing. The log of a crashed image is replayed in memory.
    #[arg(long, short)]
    pub(crate) read_only: bool,
    /// Let it be written, and leave the image as it is: what is written is kept in memory, and forgotten in
    /// the end. A crashed file system can so be recovered, and looked at.
    #[arg(long, conflicts_with_all = ["read_only", "force"])]
    pub(crate) snapshot: bool,
    /// Memory for what is written to a snapshot.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) snapshot_memory: u64,
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
    /// Whether what is written goes into the image.
    pub(crate) fn changes_the_image(&self) -> bool {
        !self.read_only && !self.snapshot
    }

    /// The library's options to look at the image.
    pub(crate) fn to_read(&self) -> OpenOptions {
        let options = OpenOptions::new().force_share(self.force_share);
        self.parents.over(options.without_log(self.without_log))
    }

    /// The library's options to serve it. A snapshot is read, and written elsewhere.
    pub(crate) fn to_serve(&self) -> OpenOptions {
        match self.changes_the_image() {
            false => self.to_read(),
            true => self.parents.over(OpenOptions::new().write(true)),
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
