//! `vhdx check`.
//!
//! What a frightened person needs is at the end, where the terminal stands still: what happened, what is safe,
//! what to type. The findings themselves come before it.

use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Remedy, Severity};
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::{CheckedImage, check_chain};
use vhdxkit::ops::repair::{Left, Plan, RepairOptions, Word, plan_file};

use super::{Context, foreign, repair};
use crate::args::CheckArgs;
use crate::console::{Bar, count, is_hidden, named, print_json, shown, stop_on_signal, wrapped};
use crate::failure::exit;

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    if let Some(undo) = &args.mend.undo {
        return repair::undo(&args.image.image, undo, args.mend.force, context);
    }
    if !context.json
        && let Some(foreign) = foreign::recognise(&args.image.image)
    {
        foreign.print(&mut io::stdout().lock(), &args.image.image, args.mend.repair)?;
        return Ok(exit_code(true));
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
            let outlook = match image.findings.has_problems() {
                true => Outlook::of(&image.path, args.image.open.force_share),
                false => Outlook::default(),
            };
            let outlook = outlook.with_link(image, args);
            print_findings(&mut out, &image.path, &image.findings, &outlook)?;
            print_verdict(&mut out, image, &outlook)?;
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
            print_remedy(out, path, finding, outlook)?;
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
fn print_remedy(
    out: &mut impl Write,
    path: &Path,
    finding: &Defect,
    outlook: &Outlook,
) -> io::Result<()> {
    let left = outlook.left_of(finding.code());
    let text = match finding.remedy() {
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
fn print_verdict(
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

/// What a repair would do or has done, as far as the last lines of an answer depend on it.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// It has written the file.
    pub(super) written: bool,
    /// It would do something without any word of the user's.
    pub(super) mends: bool,
    /// Words on which it would do something, or more.
    pub(super) words: Vec<Word>,
    /// What it would leave, or has left.
    left: Vec<Left>,
    /// Codes of findings of which it would mend some, or has mended them.
    mended: Vec<&'static str>,
    /// A child whose link is wrong, and its parent where that was found.
    pub(super) relink: Option<(PathBuf, Option<PathBuf>)>,
}

impl Outlook {
    /// Of a file that nobody has tried to repair.
    pub(super) fn of(path: &Path, force_share: bool) -> Self {
        match plan_file(path, &RepairOptions::default(), force_share, &mut ()) {
            Ok(plan) => Self::before(&plan),
            // What cannot be thought out cannot be offered either.
            Err(_) => Self::default(),
        }
    }

    /// Why a repair does nothing about any finding of this code that is there; `None` where it does, or nobody knows.
    fn left_of(&self, code: &str) -> Option<&Left> {
        let mends = !self.written && self.mended.contains(&code);
        self.left.iter().find(|left| left.code == code && !mends)
    }

    /// With the link to a parent that a person has to mend.
    pub(super) fn with_link(self, image: &CheckedImage, args: &CheckArgs) -> Self {
        Self { relink: to_relink(image, args), ..self }
    }

    /// As long as a plan is one.
    pub(super) fn before(plan: &Plan) -> Self {
        Self { written: false, mends: !plan.is_empty(), ..Self::after(plan) }
    }

    /// Once a plan has been carried out.
    pub(super) fn after(plan: &Plan) -> Self {
        let mut words = Vec::new();
        for word in plan.left().iter().filter_map(|left| left.word) {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let mended = if plan.is_empty() { Vec::new() } else { plan.codes() };
        let left = plan.left().to_vec();
        Self { written: !plan.is_empty(), words, left, mended, ..Self::default() }
    }
}

/// Which child of the chain has to be told its parent, and which that is. One in a folder that the user has named
/// comes before one that lies there by chance.
fn to_relink(image: &CheckedImage, args: &CheckArgs) -> Option<(PathBuf, Option<PathBuf>)> {
    let own = || image.path.clone();
    let stale = |finding: &Defect| match finding {
        Defect::ParentPathStale { found } => Some(PathBuf::from(found)),
        _ => None,
    };
    if let Some(parent) = image.findings.list().iter().find_map(stale) {
        return Some((own(), Some(parent)));
    }
    let relinked = |finding: &Defect| {
        finding.severity() > Severity::Info
            && matches!(finding.remedy(), Remedy::Elsewhere(what) if what.contains("relink"))
    };
    if !image.findings.list().iter().any(relinked) {
        return None;
    }
    let options = OpenOptions::new().force_share(args.image.open.force_share).without_log(true);
    let Err(error) = args.parents.over(options).open(&image.path) else {
        return Some((own(), None));
    };
    let Some(problem) = error.parent_problem() else { return Some((own(), None)) };
    let searched =
        |path: &&PathBuf| args.parents.search.iter().any(|folder| path.starts_with(folder));
    let found = problem.found.iter().find(searched).or_else(|| problem.found.first());
    // A link further up may be the one that is wrong.
    let child = Some(&problem.child).filter(|child| !child.as_os_str().is_empty());
    Some((child.cloned().unwrap_or_else(own), found.cloned()))
}

/// A word on the command line, and what it means.
fn word_and_meaning(word: Word) -> (&'static str, &'static str) {
    match word {
        Word::DiscardLog => ("--discard-log", "what a repair would do if the log is given up"),
        Word::UseHeader => ("--use-header 1", "what a repair would do if header 1 is right; or 2"),
        _ => ("--allow-data-loss", "what it would do if what the file lacks may be zeros"),
    }
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
    let mut safe = what_is_safe(findings);
    if !outlook.written {
        safe.push_str("; the file was not changed");
    }
    writeln!(out)?;
    wrapped(out, "  What happened   ", 18, happened)?;
    wrapped(out, "  What is safe    ", 18, &safe)?;
    let mut start = "  What to type    ";
    for (command, why) in what_to_type(path, findings, outlook) {
        writeln!(out, "{start}{command}")?;
        if !why.is_empty() {
            writeln!(out, "                      {why}")?;
        }
        start = "                  ";
    }
    Ok(())
}

/// Whole commands, the first ones first, and what each is for.
fn what_to_type(
    path: &Path,
    findings: &Findings,
    outlook: &Outlook,
) -> Vec<(String, &'static str)> {
    let file = quoted(path);
    let bad = || findings.list().iter().filter(|finding| finding.severity() > Severity::Info);
    let mut lines = Vec::new();
    if !outlook.written {
        let copy = format!("cp --sparse=always {file} COPY");
        lines.push((copy, "keeps the file as it is: do that first"));
    }
    if let Some(Defect::UnreachableEntries { first, .. }) =
        bad().find(|found| matches!(found, Defect::UnreachableEntries { .. }))
    {
        let save = format!("vhdx log extract {file} --entry {first} -o entry-{first}.bin");
        lines.push((save, "saves a log entry that a repair would give up"));
    }
    if let Some((child, parent)) = &outlook.relink {
        let (child, why) = (quoted(child), "tells the child where its parent lies");
        match parent {
            Some(parent) => {
                lines.push((format!("vhdx relink {child} --parent {}", quoted(parent)), why));
            }
            None => lines.push((format!("vhdx relink {child} --parent PARENT"), why)),
        }
    }
    let dry = format!("vhdx check {file} --repair --dry-run");
    if outlook.mends {
        lines.push((dry.clone(), "tells what a repair would do, and changes nothing"));
    }
    // Before anything is given up.
    if bad().any(|finding| finding.severity() == Severity::Error) {
        let recover = format!("vhdx recover {file} --to NEW.vhdx");
        lines.push((recover, "gets everything that can be had, into another file"));
    }
    for word in &outlook.words {
        let (word, meaning) = word_and_meaning(*word);
        lines.push((format!("{dry} {word}"), meaning));
    }
    lines
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
            _ => (1, "a table of the file breaks the format, in a way that costs nothing yet"),
        };
        if worse > rank {
            (rank, told) = (worse, text);
        }
    }
    told
}

/// Which of the disk's bytes are sound. Every block that is in doubt is named, or counted in a range.
pub(super) fn what_is_safe(findings: &Findings) -> String {
    let has = |which: fn(&Defect) -> bool| findings.list().iter().any(which);
    let doubtful = findings.doubtful_blocks();
    let but = match &doubtful[..] {
        [] => String::new(),
        [one] if one.end - one.start == 1 => format!(" but block {}", one.start),
        many => format!(" but blocks {}", compact(many)),
    };
    let errors = number_of(findings, Severity::Error);
    if errors == 0 && doubtful.is_empty() {
        "every byte of the disk: it can be read as it is".to_owned()
    } else if has(|f| matches!(f, Defect::NoActiveSequence { .. } | Defect::Truncated { .. })) {
        format!("everything that was in place before{but}")
    } else if !doubtful.is_empty() {
        format!("everything{but}")
    } else {
        "nothing can be told of the disk's bytes yet".to_owned()
    }
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

/// A path as a shell takes it, and the command behind it: one that begins with a dash is no option.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    match text.starts_with('-') {
        true => quoted_word(&format!("./{text}")),
        false => quoted_word(&text),
    }
}

/// Any text as a shell takes it.
pub(super) fn quoted_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        return text.to_owned();
    }
    if !text.contains(is_hidden) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    // As bash, zsh and ksh spell what is not to be seen by a terminal.
    let mut word = "$'".to_owned();
    for character in text.chars() {
        match character {
            '\'' | '\\' => word.extend(['\\', character]),
            hidden if is_hidden(hidden) => {
                word.extend([format!("\\U{:08x}", u32::from(hidden))]);
            }
            other => word.push(other),
        }
    }
    word.push('\'');
    word
}
