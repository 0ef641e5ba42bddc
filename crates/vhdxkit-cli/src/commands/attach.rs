//! The partitions of a disk that is served: which one is meant, and what to type next to reach its files.

use std::path::Path;

use anyhow::bail;
use vhdxkit::ops::partitions::{FileSystem, Partition, PartitionType};

use crate::console::quoted;

/// What is known of a served file.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub(super) kind: Option<PartitionType>,
    /// The name that a GPT gives it, or nothing.
    pub(super) label: String,
    pub(super) file_system: Option<FileSystem>,
    pub(super) writable: bool,
}

impl Contents {
    /// In a few words; empty when nothing is known.
    pub(super) fn describe(&self) -> String {
        let kind = self.kind.map(|kind| kind.to_string());
        let file_system = self.file_system.map(|found| found.name.to_owned());
        let file_system = file_system.filter(|name| Some(name) != kind.as_ref());
        let label = (!self.label.is_empty()).then(|| format!("\"{}\"", self.label));
        let words: Vec<String> = [kind, file_system, label].into_iter().flatten().collect();
        words.join(", ")
    }

    /// The command that attaches the file at `file` to `target`, with `sudo` before what takes root's rights;
    /// `None` when nothing is known in it that could be.
    pub(super) fn attach(&self, file: &Path, target: &str, sudo: &str) -> Option<String> {
        let file = quoted(file);
        let read_only = |option: &'static str| if self.writable { "" } else { option };
        Some(match self.file_system?.name {
            "swap" | "ReFS" | "ext journal" => return None,
            "NTFS" if !kernel_has("ntfs3") => {
                format!("{sudo}ntfs-3g {}{file} {target}", read_only("-o ro "))
            }
            "LVM" => {
                let option = read_only("-r ");
                format!("{sudo}losetup {option}-f --show {file} && {sudo}vgchange -ay")
            }
            encrypted @ ("BitLocker" | "LUKS") => format!(
                "{sudo}cryptsetup open {}{}{file} disk && {sudo}mount {}/dev/mapper/disk {target}",
                read_only("--readonly "),
                if encrypted == "BitLocker" { "--type bitlk " } else { "" },
                read_only("-o ro "),
            ),
            _ => format!("{sudo}mount -o {} {file} {target}", self.mount_options()),
        })
    }

    /// Whether that command shows a file system without its journal, where its newest changes are.
    pub(super) fn leaves_journal_out(&self) -> bool {
        ["loop,ro,noload", "loop,ro,norecovery"].contains(&self.mount_options())
    }

    /// A journal cannot be replayed on a read-only device: what crashed with the disk has to be mounted
    /// without.
    fn mount_options(&self) -> &'static str {
        let name = self.file_system.map(|found| found.name);
        let crashed = self.file_system.is_some_and(|found| found.needs_recovery);
        match (self.writable, name) {
            (true, _) => "loop",
            (false, Some("ext4")) if crashed => "loop,ro,noload",
            (false, Some("XFS")) => "loop,ro,norecovery",
            (false, _) => "loop,ro",
        }
    }
}

/// What is put before a command that takes root's rights: nothing, for root.
pub(super) fn sudo() -> &'static str {
    if rustix::process::geteuid().is_root() { "" } else { "sudo " }
}

fn kernel_has(file_system: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.split_whitespace().any(|word| word == file_system)
}

/// The partition of a number, or which ones there are.
pub(super) fn find(partitions: &[Partition], number: u32) -> anyhow::Result<&Partition> {
    let numbers: Vec<String> = partitions.iter().map(|p| p.number.to_string()).collect();
    match partitions.iter().find(|partition| partition.number == number) {
        Some(found) => Ok(found),
        None if numbers.is_empty() => {
            bail!(
                "there is no partition {number}: the disk has no partition table that can be read"
            )
        }
        None => bail!("there is no partition {number}; the disk has {}", numbers.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(name: &'static str, needs_recovery: bool, writable: bool) -> Contents {
        let file_system = Some(FileSystem { name, end: 0, needs_recovery });
        Contents {
            kind: Some(PartitionType::Mbr(0x83)),
            file_system,
            writable,
            ..Contents::default()
        }
    }

    /// A crashed guest's file system has to be reached by the command as it is printed.
    #[test]
    fn commands_fit_what_they_attach() {
        let attach = |contents: Contents| contents.attach("/d/p.raw".as_ref(), "/mnt", "sudo ");
        let is = |contents, command: &str| assert_eq!(attach(contents).as_deref(), Some(command));
        is(contents("ext4", true, true), "sudo mount -o loop /d/p.raw /mnt");
        is(contents("ext4", true, false), "sudo mount -o loop,ro,noload /d/p.raw /mnt");
        is(contents("ext4", false, false), "sudo mount -o loop,ro /d/p.raw /mnt");
        is(contents("XFS", false, false), "sudo mount -o loop,ro,norecovery /d/p.raw /mnt");
        is(
            contents("BitLocker", false, false),
            "sudo cryptsetup open --readonly --type bitlk /d/p.raw disk && sudo mount -o ro /dev/mapper/disk /mnt",
        );
        assert_eq!(attach(contents("swap", false, true)), None);
        for (name, crashed, writable, expected) in [
            ("ext4", true, false, true),
            ("ext4", false, false, false),
            ("ext4", true, true, false),
            ("XFS", false, false, true),
        ] {
            assert_eq!(contents(name, crashed, writable).leaves_journal_out(), expected, "{name}");
        }
        assert_eq!(attach(Contents::default()), None);
    }
}
