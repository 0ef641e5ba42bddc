//! What a check finds: how it is had, counted, printed, and told in JSON.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Remedy, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::{CheckedImage, check_chain};

use super::Context;
use super::outlook::Outlook;
use crate::args::CheckArgs;
use crate::console::{Bar, quoted, shown, stop_on_signal, wrapped};
use crate::failure::exit;

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
    let images: Vec<_> = images.iter().map(|image| (&*image.path, &image.findings)).collect();
    findings_as_json(&images, repaired)
}

/// The same of findings, child first.
pub(super) fn findings_as_json(images: &[(&Path, &Findings)], repaired: &[&str]) -> Value {
    let mut list = Vec::new();
    let mut left_out = serde_json::Map::new();
    for (path, findings) in images {
        list.extend(findings.list().iter().map(|finding| finding_as_json(path, finding)));
        for (code, rest) in findings.left_out() {
            let sum = left_out.get(code).and_then(Value::as_u64).unwrap_or(0) + rest as u64;
            left_out.insert(code.to_owned(), json!(sum));
        }
    }
    let doubtful = images.first().map_or_else(Vec::new, |(_, found)| found.doubtful_blocks());
    let doubtful: Vec<Value> = doubtful
        .iter()
        .map(|run| json!({ "first": run.start, "count": run.end - run.start }))
        .collect();
    let problems = images.iter().any(|(_, findings)| findings.has_problems());
    json!({
        "result": if problems { "problems" } else { "ok" },
        "findings": list,
        "left_out": left_out,
        "doubtful_blocks": doubtful,
        "repaired": repaired,
    })
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

/// The findings, one after another, the worst last: that is what stays on the screen. A line each for those who
/// search; on a terminal they are broken so that they can be read.
pub(super) fn print_findings(
    out: &mut impl Write,
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> io::Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut list: Vec<&Defect> = findings.list().iter().collect();
    list.sort_by_key(|finding| finding.severity());
    let mut told: Vec<&str> = Vec::new();
    let mut remedy = String::new();
    let mut rest = &list[..];
    while let Some((finding, _)) = rest.split_first() {
        let (alike, text) = folded(rest);
        rest = &rest[alike..];
        let place = finding.offset().map(|at| format!(" at {at:#x}")).unwrap_or_default();
        let (severity, code) = (finding.severity().name(), finding.code());
        let start = format!("{severity:<8}{code:<11}");
        // A child says what it likes of its parent's place.
        let text =
            format!("{}{place}: {}", finding.structure(), shown(&text.replace("\n  ", "; ")));
        match terminal {
            true => wrapped(out, &start, 19, &text)?,
            false => writeln!(out, "{start}{text}")?,
        }
        if finding.severity() > Severity::Info && !told.contains(&code) {
            told.push(code);
            let text = remedy_of(path, finding, outlook);
            match text.as_deref() {
                None => {}
                Some(same) if same == remedy => writeln!(out, "{:<19}as above", "")?,
                Some(text) => wrapped(out, &" ".repeat(19), 21, text)?,
            }
            remedy = text.unwrap_or(remedy);
        }
    }
    for (code, rest) in findings.left_out() {
        writeln!(out, "{:<8}{code:<11}and {rest} more", "")?;
    }
    Ok(())
}

/// The first finding, with those that follow and say the same of the next block; and how many these are.
fn folded(list: &[&Defect]) -> (usize, String) {
    let parts = |finding: &Defect| match finding {
        Defect::BlockOutside { block, file_offset, end, .. } => Some((*block, *file_offset, *end)),
        _ => None,
    };
    let outside = list.iter().map_while(|finding| parts(finding));
    let run: Vec<_> = (0u64..)
        .zip(outside)
        .scan(None, |first, (number, part)| {
            let first = *first.get_or_insert(part.0);
            (part.0 == first + number).then_some(part)
        })
        .collect();
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return (1, list.first().map(ToString::to_string).unwrap_or_default());
    };
    if run.len() == 1 {
        return (1, list[0].to_string());
    }
    let lowest = run.iter().map(|part| part.1).min().unwrap_or_default();
    let highest = run.iter().map(|part| part.2).max().unwrap_or_default();
    let file_size = match list[0] {
        Defect::BlockOutside { file_size, .. } => *file_size,
        _ => 0,
    };
    let text = format!(
        "blocks {} to {} lie at {lowest:#x} to {highest:#x}, the file ends at {file_size:#x}",
        first.0, last.0
    );
    (run.len(), text)
}

/// What helps against a finding: what a repair of this very file would do, where it is known to do nothing.
fn remedy_of(path: &Path, finding: &Defect, outlook: &Outlook) -> Option<String> {
    let left = outlook.left_of(finding.code());
    Some(match finding.remedy() {
        Remedy::Repair(_) if let Some(left) = left => {
            let why = left.why.replace("IMAGE", &quoted(path));
            match left.word {
                Some(word) => format!("--repair {}: {why}", word.option()),
                None => format!("not by --repair: {why}"),
            }
        }
        Remedy::Repair(what) => format!("--repair: {what}"),
        Remedy::OnYourWord(word, what) => format!("--repair {word}: {what}"),
        Remedy::Elsewhere(what) => format!("not by --repair: {what}"),
        _ => return None,
    })
}
