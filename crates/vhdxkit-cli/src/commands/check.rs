//! `vhdx check`.
//!
//! What a frightened person needs is at the end, where the terminal stands still: what happened, what is safe,
//! what to type. The findings themselves come before it.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Remedy, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::{CheckedImage, check_chain};

use super::{Context, repair};
use crate::args::CheckArgs;
use crate::console::{Bar, count, print_json, stop_on_signal, wrapped};
use crate::failure::exit;

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    if let Some(undo) = &args.mend.undo {
        return repair::undo(&args.image.image, undo, args.mend.force, context);
    }
    if args.mend.repair {
        return repair::run(args, context);
    }
    let images = check(args, context)?;
    let problems = has_problems(&images);
    if context.json {
        print_json(&as_json(&images, &[]))?;
    } else {
        let mut out = io::stdout().lock();
        for image in &images {
            print_findings(&mut out, &image.findings)?;
            print_verdict(&mut out, &image.path, &image.findings)?;
        }
    }
    Ok(exit_code(problems))
}

pub(super) fn exit_code(problems: bool) -> ExitCode {
    if problems { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS }
}

pub(super) fn has_problems(images: &[CheckedImage]) -> bool {
    images.iter().any(|image| image.findings.has_problems())
}

/// A bar for reading the image as often as it takes.
pub(super) fn bar(what: &'static str, path: &Path, context: Context) -> Bar {
    let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
    Bar::new(what, length.min(1 << 29), context.quiet)
}

/// Checks the image and its parents.
pub(super) fn check(args: &CheckArgs, context: Context) -> anyhow::Result<Vec<CheckedImage>> {
    let path = &args.image.image;
    stop_on_signal();
    let mut bar = bar("checking", path, context);
    let options = OpenOptions::new().force_share(args.image.open.force_share);
    Ok(check_chain(path, &args.parents.over(options), &mut bar)?)
}

/// One finding as JSON.
pub(super) fn finding_as_json(path: &Path, finding: &Defect) -> Value {
    json!({
        "code": finding.code(),
        "severity": finding.severity().name(),
        "structure": finding.structure(),
        "offset": finding.offset(),
        "message": finding.to_string(),
        "repair": finding.repair(),
        "path": path.display().to_string(),
    })
}

/// The stable core of the answer, `repaired` having been mended.
pub(super) fn as_json(images: &[CheckedImage], repaired: &[&str]) -> Value {
    let mut list = Vec::new();
    let mut left_out = serde_json::Map::new();
    for CheckedImage { path, findings, .. } in images {
        list.extend(findings.list().iter().map(|finding| finding_as_json(path, finding)));
        for (code, rest) in findings.left_out() {
            let sum = left_out.get(code).and_then(Value::as_u64).unwrap_or(0) + rest as u64;
            left_out.insert(code.to_owned(), json!(sum));
        }
    }
    json!({
        "result": if has_problems(images) { "problems" } else { "ok" },
        "findings": list,
        "left_out": left_out,
        "repaired": repaired,
    })
}

/// The findings, one after another, the worst last: that is what stays on the screen. A line each for those who
/// search; on a terminal they are broken so that they can be read.
pub(super) fn print_findings(out: &mut impl Write, findings: &Findings) -> io::Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut list: Vec<&Defect> = findings.list().iter().collect();
    list.sort_by_key(|finding| finding.severity());
    let mut told: Vec<&str> = Vec::new();
    for finding in list {
        let place = finding.offset().map(|at| format!(" at {at:#x}")).unwrap_or_default();
        let (severity, code) = (finding.severity().name(), finding.code());
        let start = format!("{severity:<8}{code:<11}");
        let text = format!("{}{place}: {finding}", finding.structure());
        match terminal {
            true => wrapped(out, &start, 19, &text)?,
            false => writeln!(out, "{start}{text}")?,
        }
        if finding.severity() > Severity::Info && !told.contains(&code) {
            told.push(code);
            print_remedy(out, finding)?;
        }
    }
    for (code, rest) in findings.left_out() {
        writeln!(out, "{:<8}{code:<11}and {rest} more", "")?;
    }
    Ok(())
}

fn print_remedy(out: &mut impl Write, finding: &Defect) -> io::Result<()> {
    let text = match finding.remedy() {
        Remedy::Repair(what) => format!("--repair: {what}"),
        Remedy::OnYourWord(word, what) => format!("--repair {word}: {what}"),
        Remedy::Elsewhere(what) => format!("not by --repair: {what}"),
        _ => return Ok(()),
    };
    wrapped(out, &" ".repeat(19), 21, &text)
}

/// How many of a severity.
pub(super) fn number_of(findings: &Findings, severity: Severity) -> u64 {
    let listed = findings.list().iter().filter(|finding| finding.severity() == severity).count();
    // Those that are counted only are as bad as the ones of their code that are listed.
    let more = findings.left_out().filter(|(code, _)| {
        let worst =
            findings.list().iter().filter(|f| f.code() == *code).map(Defect::severity).max();
        worst == Some(severity)
    });
    (listed + more.map(|(_, rest)| rest).sum::<usize>()) as u64
}

/// What happened, what is safe, what to type.
fn print_verdict(out: &mut impl Write, path: &Path, findings: &Findings) -> anyhow::Result<()> {
    let name = path.display();
    let of = |severity| number_of(findings, severity);
    let errors = count(of(Severity::Error), "error", "errors");
    let warnings = count(of(Severity::Warning), "warning", "warnings");
    match (of(Severity::Error), of(Severity::Warning)) {
        (0, 0) => {
            writeln!(out, "{name}: no problem found")?;
            return Ok(());
        }
        (0, _) => writeln!(out, "{name}: {warnings}; every byte of the disk can be read")?,
        (_, 0) => writeln!(out, "{name}: {errors}")?,
        _ => writeln!(out, "{name}: {errors}, {warnings}")?,
    }
    print_advice(out, path, findings)?;
    Ok(())
}

/// The last lines of a bad answer.
pub(super) fn print_advice(
    out: &mut impl Write,
    path: &Path,
    findings: &Findings,
) -> anyhow::Result<()> {
    let file = quoted(path);
    let bad = || findings.list().iter().filter(|finding| finding.severity() > Severity::Info);
    let happened = what_happened(bad());
    writeln!(out)?;
    wrapped(out, "  What happened   ", 18, happened)?;
    wrapped(out, "  What is safe    ", 18, what_is_safe(findings))?;
    writeln!(out, "  What to type    cp --sparse=always {file} COPY")?;
    writeln!(out, "                      keeps the file as it is: do that first")?;
    let mends = bad().any(|finding| matches!(finding.remedy(), Remedy::Repair(_)));
    let mut words: Vec<&str> = Vec::new();
    for finding in bad() {
        if let Remedy::OnYourWord(word, _) = finding.remedy()
            && !words.contains(&word)
        {
            words.push(word);
        }
    }
    if mends || !words.is_empty() {
        writeln!(out, "                  vhdx check {file} --repair --dry-run")?;
        writeln!(out, "                      tells what a repair would do, and changes nothing")?;
    }
    for word in words {
        let what = match word {
            "--discard-log" => "the log is given up with it",
            "--allow-data-loss" => "what is not in the file any more reads as zeros then",
            _ => "you choose which header is the right one",
        };
        wrapped(out, "                      ", 24, &format!("with {word}: {what}"))?;
    }
    let relink = bad().any(
        |finding| matches!(finding.remedy(), Remedy::Elsewhere(what) if what.contains("relink")),
    );
    if relink {
        writeln!(out, "                  vhdx relink {file} --parent PARENT")?;
    }
    if bad().any(|finding| finding.severity() == Severity::Error) {
        writeln!(out, "                  vhdx recover {file} --to NEW.vhdx")?;
        writeln!(out, "                      gets everything that can be had, into another file")?;
    }
    Ok(())
}

/// The worst of it, as one would say it.
pub(super) fn what_happened<'a>(bad: impl Iterator<Item = &'a Defect>) -> &'static str {
    let mut told = "a table of the file breaks the format, in a way that costs nothing yet";
    let mut rank = 0;
    for finding in bad {
        let (worse, text) = match finding {
            Defect::NotVhdx { .. } | Defect::FileTooShort { .. } => {
                (9, "this is no VHDX file, or its beginning was overwritten")
            }
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
            other if other.severity() == Severity::Error => {
                (3, "a table that tells where the disk's bytes are is damaged")
            }
            Defect::HeaderCopyInvalid { .. } | Defect::RegionTableCopyInvalid { .. } => {
                (2, "one of two copies is damaged; the other one is whole")
            }
            _ => (1, told),
        };
        if worse > rank {
            (rank, told) = (worse, text);
        }
    }
    told
}

pub(super) fn what_is_safe(findings: &Findings) -> &'static str {
    let has = |which: fn(&Defect) -> bool| findings.list().iter().any(which);
    if number_of(findings, Severity::Error) == 0 {
        "every byte of the disk: it can be read as it is; the file was not changed"
    } else if has(|f| matches!(f, Defect::NoActiveSequence { .. } | Defect::Truncated { .. })) {
        "everything that was in place before; the file was not changed"
    } else if has(|f| matches!(f, Defect::BlockOutside { .. } | Defect::BlockOverlap { .. })) {
        "all blocks that are not named above; the file was not changed"
    } else {
        "the file: it was not changed"
    }
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    match text.chars().all(plain) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
