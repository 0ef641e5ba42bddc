//! Arguments about the parents of a child.

use std::path::PathBuf;

use clap::Args;
use vhdxkit::{Error, ErrorKind, Image, OpenOptions, ParentPolicy};

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
    /// A folder to look in for a parent that is not where the child says; repeatable. It is named, not
    /// used.
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

fn parse_policy(text: &str) -> Result<ParentPolicy, String> {
    match (text, text.strip_prefix("beneath=")) {
        ("follow", _) => Ok(ParentPolicy::Follow),
        ("deny", _) => Ok(ParentPolicy::Deny),
        (_, Some(folder)) if !folder.is_empty() => Ok(ParentPolicy::Beneath(folder.into())),
        _ => Err("write follow, deny, or beneath=DIR".to_owned()),
    }
}
