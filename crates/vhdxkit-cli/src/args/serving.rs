//! Arguments of `serve`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use vhdxkit::{OpenOptions, ParentPolicy};

use super::parse_size;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The VHDX files. With several, each is an export of its own, named like its file.
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
    /// The name of an export; repeated for several images, in their order. Without it a single image
    /// has the empty name.
    #[arg(long = "export", short = 'x', value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Nobody may write. A dirty log is replayed in memory, and no file is changed.
    #[arg(long, short)]
    pub(crate) read_only: bool,
    /// Clients may write, and the image stays as it is: what they write is kept in memory until the server
    /// ends, or, with `--snapshot=CHILD`, in a new child image that stays.
    #[arg(
        long, value_name = "CHILD", num_args = 0..=1, require_equals = true,
        default_missing_value = "", conflicts_with = "read_only",
        // The one for paths refuses the empty text, by which we know that no child was named.
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    pub(crate) snapshot: Option<PathBuf>,
    /// Memory for what is written to a snapshot without a child image.
    #[arg(
        long, value_name = "SIZE", default_value = "1G", value_parser = parse_size,
        requires = "snapshot"
    )]
    pub(crate) snapshot_memory: u64,
    /// Serve for writing although other images build on it, which cannot be read any more then.
    #[arg(long, conflicts_with_all = ["read_only", "snapshot"])]
    pub(crate) force: bool,
    /// Serve only this partition of the disk.
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) life: LifeArgs,
    #[command(flatten)]
    pub(crate) open: ServedArgs,
}

/// Where a server can be reached, and by whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where it listens")]
pub(crate) struct PlaceArgs {
    /// On this Unix socket. Without any of these, on one in a new folder of its own.
    #[arg(long, short = 'k', value_name = "PATH", conflicts_with = "tcp")]
    pub(crate) unix: Option<PathBuf>,
    /// On this TCP address and port, 127.0.0.1:10809 where nothing else is said. Every user of a machine can
    /// connect to its loopback address; a Unix socket has an owner.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:10809")]
    pub(crate) tcp: Option<String>,
    /// Talk through TLS only, with ca-cert.pem, server-cert.pem and server-key.pem of this folder. Clients
    /// need client-cert.pem and client-key.pem by the same authority, and its ca-cert.pem.
    #[arg(long, value_name = "DIR", alias = "tls")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Listen where other machines can connect, without TLS: whoever can connect can read, and write.
    #[arg(long, requires = "tcp")]
    pub(crate) insecure: bool,
}

/// How long a server lives.
#[derive(Debug, Args)]
#[command(next_help_heading = "How long it runs")]
pub(crate) struct LifeArgs {
    /// Run this shell command, with $uri, $unixsocket, $port and $exportname set, and end with it and its
    /// status.
    #[arg(long, value_name = "COMMAND", conflicts_with = "detach")]
    pub(crate) run: Option<String>,
    /// End when the last client has gone.
    #[arg(long)]
    pub(crate) once: bool,
    /// Return as soon as clients can connect; the server goes on in the background.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Write the process id into this file once clients can connect.
    #[arg(long, short = 'P', value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
}

/// How the images are opened.
#[derive(Debug, Args)]
#[command(next_help_heading = "How the images are opened")]
pub(crate) struct ServedArgs {
    /// A parent that may be opened, for a checkpoint: its parent, then that one's, and so on. A server opens
    /// no other files than those it is told.
    #[arg(long = "parent", value_name = "FILE")]
    pub(crate) named: Vec<PathBuf>,
    /// Other parents that may be opened: `deny` all, or `beneath=DIR`.
    #[arg(long, value_name = "POLICY", default_value = "deny", value_parser = parse_policy)]
    pub(crate) parents: ParentPolicy,
    /// Take a parent that was changed since, or is another disk. What is read may then be garbage.
    #[arg(long)]
    pub(crate) ignore_parent_id: bool,
    /// Read although another process may be writing the image. What is read may be half-changed.
    #[arg(long, requires = "read_only")]
    pub(crate) force_share: bool,
    /// Read the file as it lies on disk when its log cannot be replayed. The last changes may be missing or
    /// half done.
    #[arg(long, requires = "read_only")]
    pub(crate) without_log: bool,
}

impl ServedArgs {
    /// The library's options.
    pub(crate) fn options(&self) -> OpenOptions {
        let options = OpenOptions::new()
            .force_share(self.force_share)
            .without_log(self.without_log)
            .parents(self.parents.clone())
            .ignore_parent_id(self.ignore_parent_id);
        self.named.iter().fold(options, |options, path| options.parent(path))
    }
}

fn parse_policy(text: &str) -> Result<ParentPolicy, String> {
    let wrong = |_| "write deny, or beneath=DIR".to_owned();
    match super::chain::parse_policy(text).map_err(wrong)? {
        ParentPolicy::Follow => Err(
            "a server does not follow what an image says: name its parents with --parent (`vhdx info \
             --chain` lists them), or write beneath=DIR"
                .to_owned(),
        ),
        policy => Ok(policy),
    }
}
