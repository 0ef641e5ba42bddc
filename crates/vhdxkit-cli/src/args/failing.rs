//! What is said of a command that has failed.

use std::path::Path;

use super::{Command, LogCommand};

impl Command {
    /// What a failure of this command has certainly not touched.
    pub(crate) fn untouched(&self) -> &'static str {
        match self {
            Self::Log(LogCommand::Replay(_)) => "the guest's data; replaying again completes it",
            Self::Log(LogCommand::Extract(_)) => "the image; no unfinished file was left behind",
            Self::Convert(_) => "the image; no unfinished copy was left behind",
            Self::Recover(args) if args.orphans.is_some() => {
                "the damaged file; no unfinished image was left behind, but the newest file of --orphans may be one"
            }
            Self::Recover(_) => "the damaged file; no unfinished image was left behind",
            Self::Create(_) => "any file; no unfinished image was left behind",
            Self::Write(_) => {
                "anything outside of the range; what earlier flushes made durable is safe"
            }
            Self::Compact(_) => {
                "what the guest has stored; the disk is whole, and compacting again goes on"
            }
            Self::Resize(_) => "what both sizes keep; the disk has its old size or the new one",
            Self::Merge(_) => {
                "what the child shows: it finds its parent, and merging again goes on where this stopped"
            }
            Self::Check(args) if args.mend.undo.is_some() => {
                "any other file; if the image was changed at all, the same command goes on where this stopped"
            }
            Self::Check(args) if args.mend.no_undo => {
                "anything that was not named; repairing again completes it"
            }
            Self::Check(args) if args.mend.repair && !args.mend.dry_run => {
                "anything that was not named; repairing again completes it, and its undo file restores it"
            }
            Self::Relink(_) | Self::Set(_) => "the guest's data",
            #[cfg(target_os = "linux")]
            Self::Serve(_) => "anything but what clients wrote; what was flushed for them is safe",
            #[cfg(target_os = "linux")]
            Self::Mount(_) | Self::Unmount(_) => {
                "the image, but for what was written through the mount; what was synced is safe"
            }
            Self::Completions { .. } | Self::Man { .. } => "any image",
            _ => "the image; nothing was written",
        }
    }

    /// The same as long as the command has not begun to change files; `None` where it does not tell when it does.
    pub(crate) fn untouched_before(&self) -> Option<&'static str> {
        match self {
            Self::Check(args) if args.mend.undo.is_some() => None,
            Self::Log(LogCommand::Replay(_))
            | Self::Write(_)
            | Self::Resize(_)
            | Self::Compact(_)
            | Self::Check(_) => Some("the image; nothing was changed"),
            Self::Recover(_) => Some("the damaged file; nothing was written"),
            _ => None,
        }
    }

    /// The file that this command is about: what is advised names it where an error does not.
    pub(crate) fn image(&self) -> Option<&Path> {
        Some(match self {
            Self::Info(args) => &args.image.image,
            Self::Check(args) => &args.image.image,
            Self::Log(LogCommand::Show(args)) => &args.image,
            Self::Log(LogCommand::Replay(args)) => &args.image,
            Self::Log(LogCommand::Extract(args)) => &args.image.image,
            Self::Map(args) => &args.image,
            Self::Dump(args) => &args.image.image,
            Self::Read(args) => &args.image,
            Self::Ls(args) => &args.image,
            Self::Convert(args) => &args.source,
            Self::Recover(args) => &args.image,
            Self::Write(args) => &args.image,
            Self::Resize(args) => &args.image,
            Self::Compact(args) => &args.image,
            _ => return None,
        })
    }

    /// How little room this command needs on a file system that is full; `None` where it needs what it makes.
    pub(crate) fn room(&self) -> Option<&'static str> {
        match self {
            Self::Compact(_) => Some(
                "delete something small on that file system: a compaction needs room for the image's log (mostly 1 MiB) \
                 and, where the image has holes, for what is moved into them; then run this again",
            ),
            _ => None,
        }
    }

    /// The options by which this command reads an image that another process has open; `None` where it has none.
    pub(crate) fn to_share(&self) -> Option<&'static str> {
        let plain = Some("--force-share");
        match self {
            Self::Check(args) if args.mend.undo.is_some() => None,
            Self::Check(args) if args.mend.repair && !args.mend.dry_run => None,
            Self::Info(_)
            | Self::Check(_)
            | Self::Log(LogCommand::Show(_) | LogCommand::Extract(_))
            | Self::Map(_)
            | Self::Dump(_)
            | Self::Read(_)
            | Self::Ls(_)
            | Self::Convert(_)
            | Self::Measure(_)
            | Self::Compare(_)
            | Self::Recover(_) => plain,
            #[cfg(target_os = "linux")]
            Self::Serve(_) | Self::Mount(_) => Some("--read-only --force-share"),
            #[cfg(target_os = "linux")]
            Self::Unmount(_) => None,
            Self::Log(LogCommand::Replay(_))
            | Self::Create(_)
            | Self::Write(_)
            | Self::Resize(_)
            | Self::Compact(_)
            | Self::Merge(_)
            | Self::Relink(_)
            | Self::Set(_)
            | Self::Completions { .. }
            | Self::Man { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;

    /// Advice to type an option that the command does not take sends people in a circle.
    #[test]
    fn sharing_is_advised_where_the_option_exists() {
        let definition = Cli::command();
        for (words, shares) in [
            (&["info", "a"][..], true),
            (&["check", "a"], true),
            (&["check", "a", "--repair", "--dry-run"], true),
            (&["log", "show", "a"], true),
            (&["log", "extract", "a", "--entry", "1"], true),
            (&["map", "a"], true),
            (&["dump", "a", "bat"], true),
            (&["read", "a"], true),
            (&["ls", "a"], true),
            (&["convert", "a", "b"], true),
            (&["measure", "a"], true),
            (&["compare", "a", "b"], true),
            (&["recover", "a"], true),
            (&["log", "replay", "a"], false),
            (&["create", "a", "1G"], false),
            (&["write", "a"], false),
            (&["resize", "a", "1G"], false),
            (&["compact", "a"], false),
            (&["merge", "a"], false),
            (&["relink", "a", "--parent", "b"], false),
            (&["set", "a", "--new-disk-id"], false),
        ] {
            let cli = Cli::try_parse_from(["vhdx"].iter().chain(words)).unwrap();
            assert_eq!(cli.command.to_share().is_some(), shares, "{words:?}");
            let mut named = definition.find_subcommand(words[0]).unwrap();
            if words[0] == "log" {
                named = named.find_subcommand(words[1]).unwrap();
            }
            let has = named.get_arguments().any(|arg| arg.get_long() == Some("force-share"));
            assert_eq!(has, shares, "{words:?}");
        }
        // It has the option, for checking; a repair and an undo write.
        for words in [&["check", "a", "--repair"][..], &["check", "a", "--undo", "b"]] {
            let cli = Cli::try_parse_from(["vhdx"].iter().chain(words)).unwrap();
            assert_eq!(cli.command.to_share(), None, "{words:?}");
        }
    }
}
