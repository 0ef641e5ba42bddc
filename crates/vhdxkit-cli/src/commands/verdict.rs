//! The last lines of a check or a repair.
//!
//! What a frightened person needs is at the end, where the terminal stands still: what happened, what is safe,
//! what to type. The findings themselves come before it.

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use vhdxkit::defect::{Defect, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::CheckedImage;
use vhdxkit::ops::repair::Word;

use super::blocks::Blocks;
use super::findings::number_of;
use super::outlook::Outlook;
use crate::console::{count, named, quoted, size, wrapped};

/// What happened, what is safe, what to type.
pub(super) fn print_verdict(
    out: &mut impl Write,
    image: &CheckedImage,
    outlook: &Outlook,
) -> anyhow::Result<()> {
    let CheckedImage { path, findings, .. } = image;
    let name = named(path);
    let of = |severity| number_of(findings, severity);
    let errors = count(of(Severity::Error), "error", "errors");
    let warnings = count(of(Severity::Warning), "warning", "warnings");
    match (of(Severity::Error), of(Severity::Warning)) {
        (0, 0) => {
            writeln!(out, "{name}: no problem found")?;
            return Ok(());
        }
        (0, _) if !findings.doubtful_blocks().is_empty() => writeln!(out, "{name}: {warnings}")?,
        (0, _) => writeln!(out, "{name}: {warnings}; every byte of the disk can be read")?,
        (_, 0) => writeln!(out, "{name}: {errors}")?,
        _ => writeln!(out, "{name}: {errors}, {warnings}")?,
    }
    print_advice(out, path, findings, outlook)
}

/// The last lines of a bad answer.
pub(super) fn print_advice(
    out: &mut impl Write,
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> anyhow::Result<()> {
    let bad = || findings.list().iter().filter(|finding| finding.severity() > Severity::Info);
    let happened = what_happened(bad(), findings.is_table_overwritten());
    writeln!(out)?;
    wrapped(out, "  What happened   ", 18, happened)?;
    print_rest(out, path, findings, outlook)
}

/// What a repair has given up, of a file in which a check finds nothing any more.
pub(super) fn print_aftermath(
    out: &mut impl Write,
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> anyhow::Result<()> {
    writeln!(out)?;
    print_rest(out, path, findings, outlook)
}

/// What is safe, what to type.
fn print_rest(
    out: &mut impl Write,
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> anyhow::Result<()> {
    let mut safe = safe_after(findings, outlook, Blocks::of(path));
    if !outlook.written {
        safe.push_str("; the file was not changed");
    }
    wrapped(out, "  What is safe    ", 18, &safe)?;
    let mut start = "  What to type    ";
    for (command, why) in what_to_type(path, findings, outlook) {
        writeln!(out, "{start}{command}")?;
        wrapped(out, "                      ", 22, &why)?;
        start = "                  ";
    }
    Ok(())
}

/// Whole commands, the first ones first, and what each is for.
fn what_to_type(
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> Vec<(String, Cow<'static, str>)> {
    let file = quoted(path);
    let bad = || findings.list().iter().filter(|finding| finding.severity() > Severity::Info);
    let mut lines: Vec<(String, Cow<'static, str>)> = Vec::new();
    if !outlook.written {
        let copy = format!("cp --sparse=always {file} COPY");
        lines.push((copy, "a backup: do that first; what follows is for the file itself".into()));
    }
    if let Some(Defect::UnreachableEntries { first, .. }) =
        bad().find(|found| matches!(found, Defect::UnreachableEntries { .. }))
    {
        let save = format!("vhdx log extract {file} --entry {first} -o entry-{first}.bin");
        lines.push((save, "saves a log entry that a repair would give up".into()));
    }
    if let Some((child, parent)) = &outlook.relink {
        let (child, why) = (quoted(child), "tells the child where its parent lies".into());
        match parent {
            Some(parent) => {
                lines.push((format!("vhdx relink {child} --parent {}", quoted(parent)), why));
            }
            None => lines.push((format!("vhdx relink {child} --parent PARENT"), why)),
        }
    }
    let dry = format!("vhdx check {file} --repair --dry-run");
    if outlook.mends {
        lines.push((dry.clone(), "tells what a repair would do, and changes nothing".into()));
    }
    if outlook.nameless > 0 {
        let orphans = format!("vhdx recover {file} --orphans DIR");
        let why = format!(
            "copies out {} of the file that nothing names: what those blocks held may be among it; do that before \
             compacting",
            size(outlook.nameless)
        );
        lines.push((orphans, why.into()));
    }
    if outlook.nameless == 0 && bad().any(|found| matches!(found, Defect::NamelessData { .. })) {
        // New blocks are put where none is known.
        let why = "if anything is missing: copies out what nothing names. Do not compact before, nor write to the disk, \
                   nor start its machine: that takes the space, too";
        lines.push((format!("vhdx recover {file} --orphans DIR"), why.into()));
        let why = "tries to find the lost entries, too: the log may still tell them".into();
        lines.push((format!("vhdx recover {file} --to NEW.vhdx"), why));
    }
    // Before anything is given up.
    if bad().any(|finding| finding.severity() == Severity::Error) {
        let recover = format!("vhdx recover {file} --to NEW.vhdx");
        let why = match outlook.written && !outlook.doubtful.is_empty() {
            true => "gets what this file still tells; more, once the repair is taken back",
            false => "gets everything that can be had, into another file",
        };
        lines.push((recover, why.into()));
    }
    for word in &outlook.words {
        let (word, meaning) = word_and_meaning(*word);
        lines.push((format!("{dry} {word}"), meaning.into()));
    }
    lines
}

/// A word on the command line, and what it means.
fn word_and_meaning(word: Word) -> (&'static str, &'static str) {
    match word {
        Word::DiscardLog => ("--discard-log", "what a repair would do if the log is given up"),
        Word::UseHeader => ("--use-header 1", "what a repair would do if header 1 is right; or 2"),
        _ => ("--allow-data-loss", "what it would do if what the file lacks may be zeros"),
    }
}

/// The worst of it, as one would say it.
pub(super) fn what_happened<'a>(
    bad: impl Iterator<Item = &'a Defect>,
    overwritten: bool,
) -> &'static str {
    let mut told = "a table of the file breaks the format, in a way that costs nothing yet";
    let mut rank = 0;
    if overwritten {
        (rank, told) =
            (6, "the block table was overwritten: part of it holds what no writer of VHDX writes");
    }
    for finding in bad {
        let (worse, text) = match finding {
            Defect::FileTooShort { .. } => (9, "all but the beginning of the file was cut off"),
            Defect::NotVhdx { .. } => (9, "this is no VHDX file, or its beginning was overwritten"),
            Defect::NoValidHeader { .. } | Defect::NoRegionTable { .. } => {
                (8, "both copies of what leads to everything else are damaged")
            }
            Defect::NoActiveSequence { .. } => {
                (7, "the last writer ended in the middle, and its log cannot be replayed")
            }
            Defect::Truncated { .. } => (7, "the end of the file was cut off"),
            Defect::BlockOutside { .. } | Defect::RegionOutside { .. } => {
                (6, "the end of the file is missing: an unfinished copy, or it was cut off")
            }
            Defect::BlockOverlap { .. } => {
                (5, "two blocks claim the same place, so one of them shows the other's bytes")
            }
            Defect::ShiftedPage { .. } => (5, "an old QEMU has shifted a page of the block table"),
            Defect::ParentUnusable { .. } => (4, "the disk's parent is missing or was changed"),
            Defect::NamelessData { .. } => (
                4,
                "entries of the block table may be lost, or a crash cut off much writing: the file holds data that none of \
                 them names",
            ),
            other if other.severity() == Severity::Error => {
                (3, "a table that tells where the disk's bytes are is damaged")
            }
            Defect::HeaderCopyInvalid { .. }
            | Defect::HeaderReservedDamaged { .. }
            | Defect::RegionTableCopyInvalid { .. } => {
                (2, "one of two copies is damaged; the other one is whole")
            }
            _ => (1, "a table of the file breaks the format, in a way that costs nothing yet"),
        };
        if worse > rank {
            (rank, told) = (worse, text);
        }
    }
    told
}

/// Which of the disk's bytes are sound. Every block that is in doubt is named, or counted in a range.
pub(super) fn what_is_safe(findings: &Findings, blocks: Option<Blocks>) -> String {
    safe_after(findings, &Outlook::default(), blocks)
}

/// The same, when a repair may have given something up, of which a check knows nothing any more.
fn safe_after(findings: &Findings, outlook: &Outlook, blocks: Option<Blocks>) -> String {
    let has = |which: fn(&Defect) -> bool| findings.list().iter().any(which);
    let doubtful = joined([findings.doubtful_blocks(), outlook.doubtful.clone()].concat());
    if blocks.is_some_and(|blocks| blocks.are_all(&doubtful)) {
        return "nothing for certain: every block of the disk is in doubt".to_owned();
    }
    let place = blocks.map(|blocks| format!(" ({})", blocks.mebibytes(&doubtful, MOST_RANGES)));
    let place = place.unwrap_or_default();
    let but = match &doubtful[..] {
        [] => String::new(),
        [one] if one.end - one.start == 1 => format!(" but block {}{place}", one.start),
        many => format!(" but blocks {}{place}", compact(many)),
    };
    let errors = number_of(findings, Severity::Error);
    if outlook.log_given_up {
        format!("everything{but}, as it was before what the log held")
    } else if has(|f| matches!(f, Defect::NamelessData { .. })) {
        format!("what is not zeros{but}; blocks that read as zeros may be the ones that were lost")
    } else if errors == 0 && doubtful.is_empty() {
        "every byte of the disk: it can be read as it is".to_owned()
    } else if has(|f| matches!(f, Defect::NoActiveSequence { .. } | Defect::Truncated { .. })) {
        format!("everything that was in place before{but}")
    } else if !doubtful.is_empty() {
        format!("everything{but}")
    } else {
        "nothing can be told of the disk's bytes yet".to_owned()
    }
}

/// Ranges in order, none touching another.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Ranges that are printed.
const MOST_RANGES: usize = 12;

/// Blocks as `3, 7-12 and 4 more ranges, 40 blocks in all`.
fn compact(ranges: &[Range<u64>]) -> String {
    let names: Vec<String> = ranges
        .iter()
        .take(MOST_RANGES)
        .map(|run| match run.end - run.start {
            1 => run.start.to_string(),
            _ => format!("{}-{}", run.start, run.end - 1),
        })
        .collect();
    let all: u64 = ranges.iter().map(|run| run.end - run.start).sum();
    match ranges.len().saturating_sub(MOST_RANGES) as u64 {
        0 => names.join(", "),
        more => format!(
            "{} and {}, {all} blocks in all (--json lists them)",
            names.join(", "),
            count(more, "more range", "more ranges")
        ),
    }
}
