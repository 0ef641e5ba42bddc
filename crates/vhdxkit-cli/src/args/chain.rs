//! Arguments about the parents of a child.

use std::path::PathBuf;

use clap::Args;
use vhdxkit::format::Guid;
use vhdxkit::{Error, ErrorKind, Image, OpenOptions, ParentPolicy};

use super::making::parse_size32;

/// Which parents a child is opened with.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Parents of a differencing disk")]
pub(crate) struct ParentArgs {
    /// The parent to use, whatever the child says of its place; again for the parent's parent.
    #[arg(long = "parent", value_name = "FILE")]
    pub(crate) named: Vec<PathBuf>,
    /// Which parents may be opened: `follow` what the child says, `deny`, or `beneath=DIR`.
    #[arg(long, value_name = "POLICY", default_value = "follow", value_parser = parse_policy)]
    pub(crate) parents: ParentPolicy,
    /// Take a parent that was changed since, or is another disk. What is read may then be garbage.
    #[arg(long)]
    pub(crate) ignore_parent_id: bool,
    /// When a parent is missing, look for it in this folder too, and tell where it lies; repeatable. What is
    /// found is not opened: `--parent` does that.
    #[arg(long, value_name = "DIR")]
    pub(crate) search: Vec<PathBuf>,
}

impl ParentArgs {
    /// These on top of other options.
    pub(crate) fn over(&self, options: OpenOptions) -> OpenOptions {
        let options = options.parents(self.parents.clone()).ignore_parent_id(self.ignore_parent_id);
        let options = self.named.iter().fold(options, |options, path| options.parent(path));
        self.search.iter().fold(options, |options, folder| options.search_in(folder))
    }
}

/// Opens an image with its parents, or, where they cannot be had, alone: then the error says why.
pub(crate) fn open_as_far_as_possible(
    options: OpenOptions,
    path: &std::path::Path,
) -> vhdxkit::Result<(Image, Option<Error>)> {
    match options.open(path) {
        Ok(image) => Ok((image, None)),
        Err(error) if error.kind() == ErrorKind::Parent => {
            Ok((options.without_parents().open(path)?, Some(error)))
        }
        Err(error) => Err(error),
    }
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The child whose changes go into its parent. It is deleted when that is done.
    pub(crate) child: PathBuf,
    /// Merge into this one of its parents, with everything between.
    #[arg(long, value_name = "ANCESTOR")]
    pub(crate) into: Option<PathBuf>,
    /// Delete nothing, and leave children of the child where they are. Images between, whose parent is another
    /// disk now, cannot be read any more.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Merge although other children lose their parent by it.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// Arguments of `relink`.
#[derive(Debug, Args)]
pub(crate) struct RelinkArgs {
    /// The child. It will be changed.
    pub(crate) child: PathBuf,
    /// Its parent.
    #[arg(long, value_name = "FILE")]
    pub(crate) parent: PathBuf,
    /// Take a parent that was changed since the child was made, or is another disk. What the child shows
    /// may then be garbage.
    #[arg(long)]
    pub(crate) ignore_parent_id: bool,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The VHDX file. It will be changed.
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) what: SetWhat,
    /// Change the image although it has children, which do not know it any more then.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What `set` can change; at least one.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct SetWhat {
    /// Give the disk a new, random identity towards its guest: for a copy that is to run beside its source.
    #[arg(long, conflicts_with = "disk_id")]
    pub(crate) new_disk_id: bool,
    /// Give the disk this identity towards its guest.
    #[arg(long, value_name = "GUID")]
    pub(crate) disk_id: Option<Guid>,
    /// The sector size that the guest is told the medium has, 512 or 4096.
    #[arg(long, value_name = "BYTES", value_parser = parse_size32)]
    pub(crate) physical_sector_size: Option<u32>,
}

pub(super) fn parse_policy(text: &str) -> Result<ParentPolicy, String> {
    match (text, text.strip_prefix("beneath=")) {
        ("follow", _) => Ok(ParentPolicy::Follow),
        ("deny", _) => Ok(ParentPolicy::Deny),
        (_, Some(folder)) if !folder.is_empty() => Ok(ParentPolicy::Beneath(folder.into())),
        _ => Err("write follow, deny, or beneath=DIR".to_owned()),
    }
}
