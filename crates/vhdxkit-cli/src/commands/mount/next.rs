//! What is mounted, and what to type next.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use vhdxkit::ParentPolicy;
use vhdxkit_serve::fuse::{Mount, ServedFile};

use super::super::Context;
use super::super::attach::{Contents, sudo};
use crate::args::MountArgs;
use crate::console::{print_json, quoted, size};
use crate::detach;

/// A file, and the commands for it.
struct Shown<'a> {
    file: &'a ServedFile,
    contents: &'a Contents,
    path: PathBuf,
    attach: Option<String>,
    /// What shows its newest changes, which `attach` cannot.
    recover: Option<[String; 3]>,
}

pub(super) fn print(
    args: &MountArgs,
    mount: &Mount,
    served: &[(ServedFile, Contents)],
    context: Context,
) -> anyhow::Result<()> {
    let directory = mount.directory();
    let unmount = format!("vhdx unmount {}", quoted(directory));
    let shown: Vec<Shown> = served.iter().map(|entry| show(args, directory, entry)).collect();
    if context.json {
        let files = shown.iter().map(|shown| {
            json!({
                "name": shown.file.name,
                "path": shown.path,
                "size": shown.file.export.size(),
                "type": shown.contents.kind.map(|kind| kind.to_string()),
                "label": shown.contents.label,
                "file_system": shown.contents.file_system.map(|found| found.name),
                "attach": shown.attach,
                "recover": shown.recover,
            })
        });
        let files: Vec<_> = files.collect();
        return print_json(&json!({
            "image": canonical(&args.image),
            "directory": directory,
            "writable": !args.read_only,
            "snapshot": args.snapshot,
            "pid": std::process::id(),
            "files": files,
            "unmount": unmount,
        }));
    }
    let mut out = io::stdout().lock();
    let how = match (args.read_only, args.snapshot) {
        (true, _) => "read-only",
        (_, true) => "as a snapshot",
        _ => "for writing",
    };
    writeln!(out, "{} is mounted on {}, {how}:", args.image.display(), directory.display())?;
    for Shown { file, contents, .. } in &shown {
        let (size, words) = (size(file.export.size()), contents.describe());
        writeln!(out, "{}", format!("  {:<18} {size:>10}  {words}", file.name).trim_end())?;
    }
    if args.snapshot {
        let room = size(args.snapshot_memory);
        writeln!(out, "What is written stays in memory, up to {room}, and is forgotten.")?;
    }
    print_commands(&mut out, args, &shown)?;
    writeln!(out, "\nTo end, after unmounting what was attached:\n  {unmount}")?;
    if !detach::is_detached() {
        writeln!(out, "or Ctrl-C here.")?;
    }
    Ok(out.flush()?)
}

fn show<'a>(
    args: &MountArgs,
    directory: &Path,
    (file, contents): &'a (ServedFile, Contents),
) -> Shown<'a> {
    let target = if directory.starts_with("/mnt") { "/media" } else { "/mnt" };
    let path = directory.join(&file.name);
    let attach = contents.attach(&path, target, sudo());
    // What is shown without its log, or changes meanwhile, cannot be recovered.
    let recoverable = contents.leaves_journal_out() && !args.without_log && !args.force_share;
    let recover = recoverable.then(|| {
        let later = Contents { writable: true, ..contents.clone() };
        Some([
            format!("vhdx unmount {}", quoted(directory)),
            snapshot_command(args, directory),
            later.attach(&path, target, sudo())?,
        ])
    });
    Shown { file, contents, attach, path, recover: recover.flatten() }
}

/// The command that was given, for a snapshot.
fn snapshot_command(args: &MountArgs, directory: &Path) -> String {
    let full = |path: &Path| quoted(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let mut words = vec!["vhdx mount --snapshot".to_owned(), full(&args.image), quoted(directory)];
    words.push("--detach".to_owned());
    words.extend(args.partition.map(|number| format!("--partition {number}")));
    words.extend(args.allow_other.then(|| "--allow-other".to_owned()));
    words.extend(args.parents.named.iter().map(|path| format!("--parent {}", full(path))));
    match &args.parents.parents {
        ParentPolicy::Deny => words.push("--parents deny".to_owned()),
        ParentPolicy::Beneath(folder) => words.push(format!("--parents beneath={}", full(folder))),
        _ => {}
    }
    words.extend(args.parents.ignore_parent_id.then(|| "--ignore-parent-id".to_owned()));
    words.join(" ")
}

fn print_commands(out: &mut impl Write, args: &MountArgs, all: &[Shown]) -> io::Result<()> {
    match all.iter().filter(|shown| shown.attach.is_some()).count() {
        0 => return print_without_file_systems(out, args, all),
        1 => writeln!(out, "\nTo reach the files in it:")?,
        _ => writeln!(out, "\nTo reach the files in them, one of:")?,
    }
    for shown in all {
        let Some(attach) = &shown.attach else { continue };
        writeln!(out, "  {attach}")?;
        if let Some(commands) = &shown.recover {
            let known = shown.contents.file_system.is_some_and(|found| found.needs_recovery);
            let holds = if known { "holds" } else { "may hold" };
            writeln!(
                out,
                "    Its journal {holds} the newest changes, which a read-only mount cannot show.\n    To see \
                 them, with the image staying as it is:"
            )?;
            for command in commands {
                writeln!(out, "      {command}")?;
            }
        }
    }
    if !rustix::process::geteuid().is_root() && !args.allow_other {
        writeln!(
            out,
            "(root may not look into a user's mount: for these, mount as root, or with --allow-other, which \
             takes `user_allow_other` in /etc/fuse.conf)"
        )?;
    }
    Ok(())
}

fn print_without_file_systems(
    out: &mut impl Write,
    args: &MountArgs,
    all: &[Shown],
) -> io::Result<()> {
    writeln!(out, "\nNo file system that is known here. To make a disk of a file:")?;
    let option = if args.read_only { "-r " } else { "" };
    for shown in all {
        writeln!(out, "  {}losetup -f --show {option}{}", sudo(), quoted(&shown.path))?;
    }
    match all {
        [Shown { path, contents, .. }] if !args.read_only && contents.file_system.is_none() => {
            writeln!(out, "To make a file system, over all that is there:")?;
            writeln!(out, "  mkfs.ext4 {}", quoted(path))
        }
        _ => Ok(()),
    }
}

/// A path that means the same everywhere.
pub(super) fn canonical(path: &Path) -> String {
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}
