//! What is said of a command that has failed.

use super::{Command, LogCommand};

impl Command {
    /// What a failure of this command has certainly not touched.
    pub(crate) fn untouched(&self) -> &'static str {
        match self {
            Self::Log(LogCommand::Replay(_)) => {
                "the guest's data; if the file was changed at all, replaying again completes it"
            }
            Self::Convert(_) => "the image; no unfinished copy was left behind",
            Self::Recover(_) => "the damaged file; no unfinished image was left behind",
            Self::Create(_) => "any file; no unfinished image was left behind",
            Self::Write(_) => {
                "anything outside of the range; what earlier flushes made durable is safe"
            }
            Self::Compact(_) => {
                "what the guest has stored; the disk is whole, and compacting again goes on"
            }
            Self::Resize(_) => "the guest's data; the disk has its old size or the new one",
            Self::Merge(_) => {
                "what the child shows: it finds its parent, and merging again goes on where this stopped"
            }
            Self::Check(args) if args.mend.undo.is_some() => {
                "any other file; if the image was changed at all, the same command goes on where this stopped"
            }
            Self::Check(args) if args.mend.repair && !args.mend.dry_run => {
                "anything that was not named; if the image was changed at all, repairing again completes it, and \
                 its undo file restores it"
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
}
