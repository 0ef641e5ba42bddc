//! Errors: what is wrong, where, and what a person can do about it.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::defect::Defect;
use crate::format::Guid;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`kind`](Error::kind) sorts it; [`defect`](Error::defect) has the details of a
/// malformed file; the text names structure and file offset.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Repr>);

/// What a VHDX calls the identity of a parent.
pub(crate) const DATA_WRITE_GUID: &str = "DataWriteGuid";

/// The sorts of [`Error`] a caller may want to treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file is no VHDX file at all.
    NotVhdx,
    /// The file is no image of another format that it was said to be.
    WrongFormat,
    /// A structure of the file breaks the format.
    Corrupt,
    /// The file is shorter than its log says it was.
    Truncated,
    /// The header names a log, but no complete sequence of entries belongs to it.
    LogInvalid,
    /// The file uses something that this version does not know.
    Unsupported,
    /// Another process holds the image.
    Locked,
    /// The disk is a child, and its parent, which was not asked for, is needed to go on.
    ParentNeeded,
    /// A parent cannot be had, or is not the disk that the child was made from.
    /// [`parent_problem`](Error::parent_problem) has the details.
    Parent,
    /// A range reaches beyond the end of the disk.
    OutOfRange,
    /// A smaller disk would lose data.
    CutsData,
    /// An argument makes no sense: not a multiple of the sector size, for example.
    InvalidInput,
    /// A bound of this library was met: see [`limits`](crate::format::limits).
    LimitExceeded,
    /// Somebody else changed the file while we had it open.
    ForeignWriter,
    /// An earlier write of the log or a header, or an earlier sync, has failed: this handle takes no
    /// more changes. Reading goes on, and nothing that a flush made durable is lost.
    Poisoned,
    /// The caller asked to stop.
    Cancelled,
    /// The operating system reported an error.
    Io,
}

/// A process that holds an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub command: String,
}

/// Why a child has no parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ParentProblem {
    /// What is wrong, in words.
    pub what: String,
    /// The child, where it lies in a file.
    pub child: PathBuf,
    /// The identities of which the parent must have one.
    pub expected: Vec<Guid>,
    /// What the format calls them: `DataWriteGuid`, `unique id`.
    pub identity: &'static str,
    /// Every place that was looked at.
    pub looked: Vec<Looked>,
    /// Where an image with that identity lies, if a search found one.
    pub found: Vec<PathBuf>,
}

/// A place where a parent was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Looked {
    /// The place.
    pub path: PathBuf,
    /// What was there.
    pub found: String,
}

impl ParentProblem {
    /// What a person can type next.
    fn advice(&self) -> String {
        let child = as_argument(&self.child);
        match self.found.first() {
            Some(found) => format!(
                "`vhdx relink {child} --parent {}` makes that its parent; --parent alone uses it this once",
                as_argument(found)
            ),
            None => "name the parent with --parent, or a folder to look in with --search; `vhdx info FILE` tells all that the child knows of it; --ignore-parent-id takes a parent that was changed, at your own word".to_owned(),
        }
    }
}

/// A path as a shell takes it for an argument, and a command for no option.
pub(crate) fn as_argument(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    match text.chars().all(plain) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

impl std::fmt::Display for ParentProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.child.as_os_str().is_empty() {
            write!(f, "{}: ", self.child.display())?;
        }
        f.write_str(&self.what)?;
        if let Some(first) = self.expected.first() {
            let name = if self.identity.is_empty() { DATA_WRITE_GUID } else { self.identity };
            write!(f, "\n  wanted: the disk with the {name} {first}")?;
            for other in self.expected.iter().skip(1) {
                write!(f, " or {other}")?;
            }
        }
        for looked in &self.looked {
            write!(f, "\n  looked at {}: {}", looked.path.display(), looked.found)?;
        }
        for found in &self.found {
            write!(f, "\n  an image with that identity is {}", found.display())?;
        }
        Ok(())
    }
}

/// What to do with a file that starts otherwise than a VHDX file.
fn not_vhdx(start: &[u8]) -> &'static str {
    match () {
        () if start.starts_with(b"QFI\xfb") => {
            "it is a qcow2 image: `vhdx convert --from qcow2 FILE NEW.vhdx` makes a VHDX of it"
        }
        () if start.starts_with(b"conectix") => {
            "it is a VHD: `vhdx convert --from vhd FILE NEW.vhdx` makes a VHDX of it"
        }
        () if start.starts_with(b"KDMV") || start.starts_with(b"# Disk D") => {
            "it is a VMDK: `qemu-img convert -O vhdx FILE NEW.vhdx` makes a VHDX of it"
        }
        () if start.starts_with(b"<<< ") => {
            "it seems to be a VDI: `qemu-img convert -O vhdx FILE NEW.vhdx` makes a VHDX of it"
        }
        () => {
            "check that this is the right file: `vhdx check FILE` tells what it seems to be; `vhdx convert FILE NEW.vhdx` makes a VHDX of a VHD, qcow2 or raw disk (whatever its name is with --from vhd, --from qcow2, --from raw); of a VHDX whose start was overwritten `vhdx recover FILE --to NEW.vhdx` makes a new image"
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Repr {
    #[error("{structure} at {place}: {defect}", structure = .0.structure(), place = place(.0), defect = .0)]
    Defect(Defect),
    // The cause is part of the text, and so is no `source`: a chain of causes would tell it twice.
    #[error("{action}{}: {cause}", at_offset(*.offset))]
    Io { action: &'static str, offset: Option<u64>, cause: io::Error },
    #[error("the image is in use by {}", name_holders(.holders))]
    Locked { holders: Vec<Holder> },
    #[error("{structure} at file offset {at} ({at:#x}): {what}")]
    Malformed { structure: &'static str, at: u64, what: String },
    #[cfg(feature = "qcow2")]
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    WrongFormat(String),
    #[error("this is not supported: {0}")]
    Unsupported(String),
    #[error("the disk is a child: {what} needs its parent, which is not open{}", wanted(.expected, identity))]
    ParentNeeded { what: &'static str, expected: Vec<Guid>, identity: &'static str },
    #[error("{0}")]
    Parent(ParentProblem),
    #[error("bytes {} to {} reach beyond the end of the disk at {size}", .range.start, .range.end)]
    OutOfRange { range: Range<u64>, size: u64 },
    #[error("the part to be cut off holds data, at byte {at} of the disk")]
    CutsData { at: u64 },
    #[error("{0}")]
    InvalidInput(String),
    #[error("{0}")]
    Limit(String),
    #[error(
        "header at {at:#x}: another program has written it since we read it (sequence {found}, expected {expected})"
    )]
    ForeignWriter { at: u64, found: u64, expected: u64 },
    #[error("the image takes no more changes since this has failed: {why}")]
    Poisoned { why: String },
    #[error("stopped on request")]
    Cancelled,
    #[error("{}: {inner}", .path.display())]
    File { path: PathBuf, inner: Error },
}

fn place(defect: &Defect) -> String {
    match defect.offset() {
        Some(offset) => format!("file offset {offset} ({offset:#x})"),
        None => "no single offset".to_owned(),
    }
}

fn at_offset(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at file offset {offset} ({offset:#x})")).unwrap_or_default()
}

/// Whom a child names.
fn wanted(identities: &[Guid], name: &str) -> String {
    let texts: Vec<String> = identities.iter().map(Guid::to_string).collect();
    match texts.is_empty() {
        true => String::new(),
        false => format!(": the disk with the {name} {}", texts.join(" or ")),
    }
}

fn name_holders(holders: &[Holder]) -> String {
    match holders {
        [] => "another process".to_owned(),
        holders => {
            let names: Vec<String> =
                holders.iter().map(|h| format!("{} (pid {})", h.command, h.pid)).collect();
            names.join(", ")
        }
    }
}

impl Error {
    pub(crate) fn new(repr: Repr) -> Self {
        Self(Box::new(repr))
    }

    /// For those who build on this library: a medium reported an error at an offset of a file, while `action`
    /// was tried (in words such as "cannot read").
    #[must_use]
    pub fn io(action: &'static str, offset: u64, source: io::Error) -> Self {
        Self::new(Repr::Io { action, offset: Some(offset), cause: source })
    }

    pub(crate) fn io_whole(action: &'static str, source: io::Error) -> Self {
        Self::new(Repr::Io { action, offset: None, cause: source })
    }

    /// For those who build on this library: `range` reaches beyond the end of a disk, or part of one, of `size`
    /// bytes.
    #[must_use]
    pub fn out_of_range(range: Range<u64>, size: u64) -> Self {
        Self::new(Repr::OutOfRange { range, size })
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Repr::InvalidInput(message.into()))
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(Repr::Limit(message.into()))
    }

    /// A child was opened without its parent, the disk with one of these identities.
    pub(crate) fn parent_needed(what: &'static str, expected: Vec<Guid>) -> Self {
        Self::new(Repr::ParentNeeded { what, expected, identity: DATA_WRITE_GUID })
    }

    /// The same of a VHD.
    pub(crate) fn vhd_parent_needed(what: &'static str, expected: Option<Guid>) -> Self {
        let expected = expected.into_iter().collect();
        Self::new(Repr::ParentNeeded { what, expected, identity: "unique id" })
    }

    /// A structure of an image that is no VHDX makes no sense.
    pub(crate) fn malformed(structure: &'static str, at: u64, what: impl Into<String>) -> Self {
        Self::new(Repr::Malformed { structure, at, what: what.into() })
    }

    /// An image is damaged; another crate says how.
    #[cfg(feature = "qcow2")]
    pub(crate) fn damaged(what: String) -> Self {
        Self::new(Repr::Damaged(what))
    }

    pub(crate) fn wrong_format(message: impl Into<String>) -> Self {
        Self::new(Repr::WrongFormat(message.into()))
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Repr::Unsupported(what.into()))
    }

    pub(crate) fn poisoned(why: String) -> Self {
        Self::new(Repr::Poisoned { why })
    }

    /// Whether the text begins with the name of a file.
    pub(crate) fn names_a_file(&self) -> bool {
        matches!(&*self.0, Repr::File { .. })
    }

    /// A parent that was given does not fit.
    pub(crate) fn parent_unfit(what: String) -> Self {
        Self::new(Repr::Parent(ParentProblem { what, ..ParentProblem::default() }))
    }

    /// For those who build on this library: the same, with the name of the file it is about.
    #[must_use]
    pub fn named(self, path: &std::path::Path) -> Self {
        self.in_file(path)
    }

    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::new(Repr::File { path: path.into(), inner: self })
    }

    /// What sort of error this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Repr::Defect(defect) => kind_of(defect),
            Repr::Malformed { .. } => ErrorKind::Corrupt,
            #[cfg(feature = "qcow2")]
            Repr::Damaged(_) => ErrorKind::Corrupt,
            Repr::WrongFormat(_) => ErrorKind::WrongFormat,
            Repr::Unsupported(_) => ErrorKind::Unsupported,
            Repr::Io { .. } => ErrorKind::Io,
            Repr::Locked { .. } => ErrorKind::Locked,
            Repr::ParentNeeded { .. } => ErrorKind::ParentNeeded,
            Repr::Parent(_) => ErrorKind::Parent,
            Repr::CutsData { .. } => ErrorKind::CutsData,
            Repr::OutOfRange { .. } => ErrorKind::OutOfRange,
            Repr::InvalidInput(_) => ErrorKind::InvalidInput,
            Repr::Limit(_) => ErrorKind::LimitExceeded,
            Repr::ForeignWriter { .. } => ErrorKind::ForeignWriter,
            Repr::Poisoned { .. } => ErrorKind::Poisoned,
            Repr::Cancelled => ErrorKind::Cancelled,
            Repr::File { inner, .. } => inner.kind(),
        }
    }

    /// The malformation, when the file is at fault.
    #[must_use]
    pub fn defect(&self) -> Option<&Defect> {
        match &*self.0 {
            Repr::Defect(defect) => Some(defect),
            Repr::File { inner, .. } => inner.defect(),
            _ => None,
        }
    }

    /// The operating system's error, when there is one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match &*self.0 {
            Repr::Io { cause, .. } => Some(cause),
            Repr::File { inner, .. } => inner.io_error(),
            _ => None,
        }
    }

    /// What was looked for and found, when a parent is the problem.
    #[must_use]
    pub fn parent_problem(&self) -> Option<&ParentProblem> {
        match &*self.0 {
            Repr::Parent(problem) => Some(problem),
            Repr::File { inner, .. } => inner.parent_problem(),
            _ => None,
        }
    }

    /// The processes that hold the image, when that is the error and they could be seen.
    #[must_use]
    pub fn holders(&self) -> &[Holder] {
        match &*self.0 {
            Repr::Locked { holders } => holders,
            Repr::File { inner, .. } => inner.holders(),
            _ => &[],
        }
    }

    fn unreachable(&self) -> bool {
        matches!(self.defect(), Some(Defect::UnreachableEntries { .. }))
    }

    /// The file that the error is about, when it has a name.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &*self.0 {
            Repr::File { path, inner } => inner.file().or(Some(path)),
            _ => None,
        }
    }

    /// What a person can do next, where there is something to say. `FILE` in it stands for the file, which
    /// [`file`](Error::file) names where it has a name.
    #[must_use]
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        if let Some(problem) = self.parent_problem() {
            return Some(problem.advice().into());
        }
        Some(Cow::Borrowed(match self.kind() {
            ErrorKind::NotVhdx => match self.defect() {
                Some(Defect::NotVhdx { found }) => not_vhdx(found),
                Some(Defect::FileTooShort { .. }) => {
                    "nothing of the disk's contents is in this file, and no program can get it from there: look for a backup, a checkpoint (.avhdx) or another copy of it"
                }
                _ => not_vhdx(&[]),
            },
            ErrorKind::LogInvalid if self.unreachable() => {
                "take a backup of the file; `vhdx log show FILE` tells what the newer entries hold, and `vhdx log replay --force FILE` gives them up: then the disk can be written"
            }
            ErrorKind::LogInvalid => {
                "`vhdx log show FILE` tells what is left of the log; --without-log reads the file as it lies on disk, at your own word; `vhdx check FILE --repair --discard-log` gives the log up if the file is consistent without it: keep a copy of the file as it is"
            }
            ErrorKind::Truncated => {
                "look for a complete copy of the file; do not let another tool write to this one; `vhdx check FILE --repair --dry-run` tells which blocks are lost, `vhdx recover FILE --to NEW.vhdx` makes a new image of what is left"
            }
            ErrorKind::Locked => {
                "stop that program; commands that only read take --force-share (what they read may be half-changed)"
            }
            ErrorKind::ParentNeeded => {
                "name the parent with --parent; `vhdx info FILE` tells what the child knows of it, `vhdx map FILE` lists what this file itself holds"
            }
            ErrorKind::Corrupt if self.defect().is_none() => {
                "look for another copy of the file; --from raw takes its bytes as they are"
            }
            ErrorKind::Corrupt => {
                "`vhdx check FILE` lists everything that is wrong with the file; `vhdx recover FILE --to NEW.vhdx` makes a new image of what can still be had"
            }
            ErrorKind::WrongFormat => {
                "check that this is the right file, or name its format (`--from`)"
            }
            ErrorKind::Poisoned => {
                "see to the medium (is it full, is it failing?), then open the image again: its log brings back everything that was flushed"
            }
            ErrorKind::CutsData => {
                "shrink the partition and its file system in the guest first; --force cuts off whatever is there"
            }
            ErrorKind::ForeignWriter => {
                "make sure that nothing else uses the image, then run this again"
            }
            ErrorKind::Io => match self.io_error().map(io::Error::kind)? {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "make room on the file system, then run this again"
                }
                io::ErrorKind::FileTooLarge => {
                    "put the file where files may be that long (a file system's limit, or `ulimit -f`)"
                }
                io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: work on a copy",
                _ => return None,
            },
            _ => return None,
        }))
    }
}

fn kind_of(defect: &Defect) -> ErrorKind {
    match defect {
        Defect::NotVhdx { .. } | Defect::FileTooShort { .. } => ErrorKind::NotVhdx,
        Defect::NoActiveSequence { .. } | Defect::UnreachableEntries { .. } => {
            ErrorKind::LogInvalid
        }
        Defect::Truncated { .. } => ErrorKind::Truncated,
        Defect::Version { .. }
        | Defect::LogVersion { .. }
        | Defect::UnknownRequiredRegion { .. }
        | Defect::UnknownRequiredItem { .. }
        | Defect::LocatorType { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    }
}

impl From<Defect> for Error {
    fn from(defect: Defect) -> Self {
        Self::new(Repr::Defect(defect))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_structure_offset_and_value() {
        let error = Error::from(Defect::Version { at: 0x1_0042, found: 9 });
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.in_file("a.vhdx").to_string();
        for part in ["a.vhdx", "header", "65602", "0x10042", "version 9"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
