//! Failures as people read them: what, where, what was not touched, what to do. And as exit codes.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use vhdxkit::{Error, ErrorKind};

use crate::console::{quoted, shown};

/// The exit codes of every command.
pub(crate) mod exit {
    /// Something failed; the reason is on stderr.
    pub(crate) const FAILED: u8 = 1;
    /// What was typed makes no sense, whatever the files hold.
    pub(crate) const USAGE: u8 = 2;
    /// `check` found problems, `compare` differences, `recover` losses.
    pub(crate) const FOUND: u8 = 3;
    /// The image is locked by another process.
    pub(crate) const LOCKED: u8 = 4;
    /// A parent is missing, or is not the one the child was made from.
    pub(crate) const PARENT: u8 = 5;
}

/// A parent that is needed was not named: its exit code is that of a parent that is missing.
#[derive(Debug)]
pub(crate) struct NoParent(pub(crate) String);

impl std::fmt::Display for NoParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoParent {}

/// What was typed makes no sense, whatever the files hold: its exit code is the one that a wrong option has.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Ends a function with [`Usage`].
macro_rules! wrong_usage {
    ($($text:tt)*) => {
        return Err($crate::failure::Usage(format!($($text)*)).into())
    };
}
pub(crate) use wrong_usage;

/// Options that the library refuses before any file counts: wrong usage, too.
pub(crate) fn by_options(error: Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::InvalidInput => Usage(error.to_string()).into(),
        _ => error.into(),
    }
}

/// The target of a command is in use: no way of reading helps.
#[derive(Debug)]
pub(crate) struct TargetInUse(pub(crate) String);

impl std::fmt::Display for TargetInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The undo file of a repair cannot be written, and so nothing is repaired.
#[derive(Debug)]
pub(crate) struct NoUndoFile(pub(crate) PathBuf);

impl std::fmt::Display for NoUndoFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the undo file of the repair cannot be written beside the image, so nothing was repaired")
    }
}

static BEGUN: AtomicBool = AtomicBool::new(false);

/// From now on files are changed.
pub(crate) fn begin() {
    BEGUN.store(true, Ordering::Relaxed);
}

/// Whether a command that tells has begun to change files.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::Relaxed)
}

/// What a command says of its failures.
#[derive(Debug)]
pub(crate) struct Said {
    /// The file that it is about, where it is about one.
    pub(crate) file: Option<PathBuf>,
    /// What it has certainly not touched.
    pub(crate) untouched: &'static str,
    /// The same as long as it has not begun to change files, if it tells when it does.
    pub(crate) before: Option<&'static str>,
    /// By which options it reads what another process has open.
    pub(crate) to_share: Option<&'static str>,
    /// How little room is enough for it, where that is less than people would make.
    pub(crate) room: Option<&'static str>,
}

/// What a person can do next. The library does not know which options a command has.
fn advice(error: &anyhow::Error, library: &Error, said: &Said) -> Option<Cow<'static, str>> {
    if let Some(NoUndoFile(image)) = error.downcast_ref::<NoUndoFile>() {
        return Some(without_undo_file(image).into());
    }
    if is_full(library)
        && let Some(room) = said.room
    {
        return Some(room.into());
    }
    if library.kind() != ErrorKind::Locked {
        let advice = library.advice()?;
        return Some(match library.file().or(said.file.as_deref()) {
            Some(file) => advice.replace(" FILE", &format!(" {}", quoted(file))).into(),
            None => advice,
        });
    }
    let readable = said.to_share.filter(|_| error.downcast_ref::<TargetInUse>().is_none());
    Some(match readable {
        Some(options) => format!(
            "stop that program; {options} reads it all the same (what is read may be half-changed)"
        )
        .into(),
        None => "stop that program, then run this again".into(),
    })
}

fn without_undo_file(image: &Path) -> String {
    let image = quoted(image);
    format!(
        "make room there, or let files be made there, and run this again; or repair a copy elsewhere (`cp \
         --sparse=always {image} COPY`); or, when there is a copy, `vhdx check {image} --repair --no-undo` repairs \
         without an undo file, and nothing takes that back"
    )
}

fn is_full(error: &Error) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    error.io_error().is_some_and(|cause| full.contains(&cause.kind()))
}

/// A text of several lines, with what is hidden in each made visible: names of files are in it.
fn lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
}

/// Prints the failure and gives its exit code.
pub(crate) fn report(error: &anyhow::Error, said: &Said) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::from(exit::FAILED);
    }
    eprintln!("vhdx: {}", lines(&error.to_string()));
    for cause in error.chain().skip(1) {
        eprintln!("  because: {}", lines(&cause.to_string()));
    }
    let usage = error.chain().any(|cause| cause.is::<Usage>());
    if !usage {
        eprintln!(
            "  not touched: {}",
            said.before.filter(|_| !has_begun()).unwrap_or(said.untouched)
        );
    }
    let library = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    if let Some(advice) = library.and_then(|library| advice(error, library, said)) {
        eprintln!("  what to do: {}", lines(&advice));
    }
    let no_parent = error.chain().any(|cause| cause.is::<NoParent>());
    ExitCode::from(match library.map(Error::kind) {
        _ if usage => exit::USAGE,
        _ if no_parent => exit::PARENT,
        Some(ErrorKind::Locked) => exit::LOCKED,
        Some(ErrorKind::ParentNeeded | ErrorKind::Parent) => exit::PARENT,
        _ => exit::FAILED,
    })
}

/// Whoever read our output has gone: nobody wants to hear about it.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(broken)
            || cause.downcast_ref::<Error>().and_then(Error::io_error).is_some_and(broken)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Make room" was all that was said to those who compact because there is none; how little is enough was not.
    #[test]
    fn a_compaction_on_a_full_disk_is_told_how_little_room_it_needs() {
        use clap::Parser;
        let said = |words: [&str; 3]| {
            let command = crate::args::Cli::try_parse_from(words).unwrap().command;
            let full = Error::io("cannot write the log", 0, io::ErrorKind::StorageFull.into());
            let said = Said {
                file: None,
                untouched: command.untouched(),
                before: command.untouched_before(),
                to_share: command.to_share(),
                room: command.room(),
            };
            let error = anyhow::Error::msg("");
            advice(&error, &full, &said).unwrap().into_owned()
        };
        assert!(said(["vhdx", "compact", "a"]).contains("1 MiB"));
        assert!(!said(["vhdx", "merge", "a"]).contains("1 MiB"));
    }
}
