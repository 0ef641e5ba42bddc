//! `vhdx check --repair` and `--undo`: says first what it does, and does it only then.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use vhdxkit::chain::images_in;
use vhdxkit::defect::Severity;
use vhdxkit::ops::check::CheckedImage;
use vhdxkit::ops::repair::{KeepUndo, Plan, Repair, RepairOptions, Word, plan_file, undo_file};

use super::Context;
use super::findings::{
    as_json, bar, check, exit_code, finding_as_json, findings_as_json, has_problems, number_of,
    print_findings,
};
use super::outlook::Outlook;
use super::verdict::{print_advice, print_aftermath};
use super::write::warn_of_change_tracking;
use crate::args::CheckArgs;
use crate::console::{count, named, print_json, quoted, size, stop_on_signal, wrapped};
use crate::failure::{NoUndoFile, begin};

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    let path = &args.image.image;
    stop_on_signal();
    let options = RepairOptions {
        discard_log: args.mend.discard_log,
        allow_data_loss: args.mend.allow_data_loss,
        header: args.mend.use_header,
        seed: None,
    };
    match args.mend.dry_run {
        true => {
            let mut bar = bar("thinking it out", path, context);
            let plan = plan_file(path, &options, args.image.open.force_share, &mut bar)?;
            drop(bar);
            tell_dry_run(path, &plan, &options, context)
        }
        false => repair(args, &options, context),
    }
}

fn tell_dry_run(
    path: &Path,
    plan: &Plan,
    options: &RepairOptions,
    context: Context,
) -> anyhow::Result<ExitCode> {
    let problems = plan.before().has_problems();
    if context.json {
        let mut answer = findings_as_json(&[(path, plan.before())], &[]);
        add(&mut answer, path, plan, None, true);
        print_json(&answer)?;
        return Ok(exit_code(problems));
    }
    let mut out = io::stdout().lock();
    print_findings(&mut out, path, plan.before(), &Outlook::before(plan))?;
    print_plan(&mut out, path, plan, "would be done")?;
    if options.allow_data_loss && plan.lost_bytes() > 0 {
        recover_first(&mut out, path)?;
    }
    if !plan.is_empty() {
        writeln!(out, "\n{}: nothing was changed; without --dry-run this is done", named(path))?;
        writeln!(out, "  an undo file is written first, and takes it all back")?;
    }
    Ok(exit_code(problems))
}

fn findings(path: &Path, plan: &Plan) -> Vec<Value> {
    plan.before().list().iter().map(|finding| finding_as_json(path, finding)).collect()
}

fn repair(args: &CheckArgs, options: &RepairOptions, context: Context) -> anyhow::Result<ExitCode> {
    let path = &args.image.image;
    let mut progress = bar("thinking it out", path, context);
    let repair = Repair::open(path, options, &mut progress)?;
    drop(progress);
    let plan = repair.plan();
    if !context.json {
        let mut out = io::stdout().lock();
        print_findings(&mut out, path, plan.before(), &Outlook::before(plan))?;
        let when = match args.mend.no_undo {
            true => "is done now",
            false => "is done as soon as its undo file is written",
        };
        print_plan(&mut out, path, plan, when)?;
    }
    let mut undo = None;
    let plan = match plan.is_empty() {
        true => repair.carry_out(&mut ())?,
        false => {
            warn_of_change_tracking(path);
            warn_of_children(path, plan);
            let keep = if args.mend.no_undo { KeepUndo::No } else { KeepUndo::Beside };
            undo = repair.save_undo(keep).with_context(|| NoUndoFile(path.clone()))?;
            let mut progress = bar("repairing", path, context);
            let told = || match &undo {
                Some(undo) => format!(
                    "the repair stopped; the same command completes it, or `vhdx check {} --undo {}` takes it \
                     back",
                    quoted(path),
                    quoted(undo)
                ),
                None => "the repair stopped; the same command completes it".to_owned(),
            };
            begin();
            repair.carry_out(&mut progress).with_context(told)?
        }
    };
    let undo = undo.map(|undo| as_given(path, undo));
    let undo = undo.as_deref();
    let images = check(args, context)?;
    let problems = has_problems(&images);
    if context.json {
        let mut answer = as_json(&images, &plan.codes());
        add(&mut answer, path, &plan, undo, false);
        print_json(&answer)?;
        return Ok(exit_code(problems));
    }
    tell_end(args, options, &plan, undo, &images)?;
    Ok(exit_code(problems))
}

/// The last lines: what became of the file, how it is taken back, what is left, what is safe.
fn tell_end(
    args: &CheckArgs,
    options: &RepairOptions,
    plan: &Plan,
    undo: Option<&Path>,
    images: &[CheckedImage],
) -> anyhow::Result<()> {
    let path = &args.image.image;
    let mut out = io::stdout().lock();
    let name = named(path);
    if plan.is_empty() {
        writeln!(out, "\n{name}: nothing was changed")?;
    } else if has_problems(images) {
        writeln!(out, "\n{name}: repaired in part; what is left stands below")?;
    } else {
        writeln!(out, "\n{name}: repaired; a check of the whole file finds no problem any more")?;
    }
    if let Some(undo) = undo {
        writeln!(out, "  to take it back: vhdx check {} --undo {}", quoted(path), quoted(undo))?;
        if options.allow_data_loss && plan.lost_bytes() > 0 {
            let text = format!(
                "only the file as it was tells where to look for what was given up: take the repair back, then `vhdx \
                 recover {} --to NEW.vhdx`",
                quoted(path)
            );
            wrapped(&mut out, "  ", 2, &text)?;
        }
    }
    for image in images {
        let own = image.path == *path;
        let outlook = match own {
            true => Outlook::after(plan).with_words_that_help(path, args.image.open.force_share),
            false if !image.findings.has_problems() => continue,
            false => Outlook::of(&image.path, args.image.open.force_share),
        };
        if !image.findings.has_problems() {
            if outlook.is_worse_than_found() {
                print_aftermath(&mut out, path, &image.findings, &outlook)?;
            }
            continue;
        }
        let outlook = outlook.with_link(image, args);
        if !plan.is_empty() {
            print_findings(&mut out, &image.path, &image.findings, &outlook)?;
        }
        let errors = number_of(&image.findings, Severity::Error);
        if errors > 0 || !plan.is_empty() {
            print_advice(&mut out, &image.path, &image.findings, &outlook)?;
        }
    }
    Ok(())
}

/// A file beside the image, by the folder that the user has named.
fn as_given(image: &Path, beside: PathBuf) -> PathBuf {
    let name = beside.file_name().map(|name| image.with_file_name(name));
    match name {
        Some(name) if name.canonicalize().is_ok_and(|found| found == beside) => name,
        _ => beside,
    }
}

/// Children know the disk by an identity that a repair may have to change.
fn warn_of_children(path: &Path, plan: &Plan) {
    let Some(identity) = plan.identity_given_up() else { return };
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    for child in images_in(folder).unwrap_or_default() {
        if child.is_child_of(identity) {
            eprintln!(
                "warning: {} was made on top of this disk and will not know it any more, since its contents \
                 change: `vhdx relink {} --parent {} --ignore-parent-id` joins them again, at your word",
                named(&child.path),
                quoted(&child.path),
                quoted(path)
            );
        }
    }
}

/// What a repair does and leaves, in JSON.
fn add(answer: &mut Value, path: &Path, plan: &Plan, undo: Option<&Path>, dry_run: bool) {
    let steps = plan.steps().iter().map(|step| {
        json!({ "code": step.code, "what": step.what, "why": step.why, "count": step.count })
    });
    let left = plan.left().iter().map(|left| {
        json!({
            "code": left.code,
            "severity": left.severity.name(),
            "what": left.what,
            "why": left.why,
            "option": left.word.map(|word| word.option()),
            "count": left.count,
        })
    });
    let lost = plan
        .lost()
        .iter()
        .map(|range| json!({ "start": range.start, "length": range.end - range.start }));
    let doubtful = plan.doubtful_blocks().into_iter();
    let doubtful =
        doubtful.map(|blocks| json!({ "first": blocks.start, "count": blocks.end - blocks.start }));
    let (before, after) = plan.lengths();
    let more = json!({
        "changed": !plan.is_empty() && !dry_run,
        "dry_run": dry_run,
        "steps": steps.collect::<Vec<_>>(),
        "left": left.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
        "lost_bytes": plan.lost_bytes(),
        "doubtful_afterwards": doubtful.collect::<Vec<_>>(),
        "nameless_bytes": plan.nameless_bytes(),
        "changed_bytes": plan.changed_bytes(),
        "contents_change": plan.changes_contents(),
        "bytes_before": before,
        "bytes_after": after,
        "undo_file": undo.map(|undo| undo.display().to_string()),
        "found_before": findings(path, plan),
    });
    if let (Value::Object(answer), Value::Object(more)) = (answer, more) {
        answer.extend(more);
    }
}

fn print_plan(out: &mut impl Write, path: &Path, plan: &Plan, when: &str) -> io::Result<()> {
    let name = named(path);
    let words: Vec<Word> = plan.left().iter().filter_map(|left| left.word).collect();
    match (plan.is_empty(), words.is_empty()) {
        (false, _) => writeln!(out, "\n{name}: this {when}")?,
        (true, false) => writeln!(out, "\n{name}: nothing is repaired without your word")?,
        (true, true) => writeln!(out, "\n{name}: there is nothing that a repair can do")?,
    }
    print_steps(out, path, plan)?;
    if !plan.is_empty() {
        print_changes(out, plan)?;
    }
    print_left(out, path, plan)?;
    if words.contains(&Word::AllowDataLoss) {
        recover_first(out, path)?;
    }
    Ok(())
}

/// What a repair gives up can be looked for in the file as it is, and not afterwards.
fn recover_first(out: &mut impl Write, path: &Path) -> io::Result<()> {
    let text = format!(
        "before --allow-data-loss: `vhdx recover {} --to NEW.vhdx`; afterwards the file does not tell any more what was \
         given up",
        quoted(path)
    );
    wrapped(out, "  ", 2, &text)
}

fn and_more(count: u64) -> String {
    match count {
        0 | 1 => String::new(),
        more => format!(" (and {} more like it)", more - 1),
    }
}

/// What is done, in order. A reason that several neighbours share is told once.
fn print_steps(out: &mut impl Write, path: &Path, plan: &Plan) -> io::Result<()> {
    let mut steps = plan.steps().iter().zip(1..).peekable();
    while let Some((step, number)) = steps.next() {
        let what = format!("{}{}", step.what, and_more(step.count));
        wrapped(out, &format!("  {number}. "), 5, &what)?;
        if steps.peek().is_none_or(|(next, _)| next.why != step.why) {
            wrapped(out, "     ", 5, &step.why.replace("IMAGE", &quoted(path)))?;
        }
    }
    Ok(())
}

/// What becomes of the file, and what the guest sees of it.
fn print_changes(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let (before, after) = plan.lengths();
    write!(out, "  {} of the file are written over", size(plan.changed_bytes()))?;
    match before == after {
        true => writeln!(out, "; its length stays")?,
        false => writeln!(out, "; its length changes from {} to {}", size(before), size(after))?,
    }
    if plan.moves_blocks_back() {
        writeln!(
            out,
            "  what the guest sees changes: blocks of shifted pages show their own contents again"
        )?;
    }
    if plan.gives_up_log() {
        writeln!(out, "  what the guest sees may lack changes that were in the log")?;
    }
    if !plan.changes_contents() && plan.lost_bytes() == 0 {
        writeln!(out, "  what the guest sees stays as it is")?;
    }
    if plan.lost_bytes() > 0 {
        let shows = match plan.shows_parent_where_lost() {
            true => "read as zeros, or as the parent does",
            false => "read as zeros",
        };
        writeln!(out, "  lost: {} of the disk {shows}:", size(plan.lost_bytes()))?;
        for range in plan.lost().iter().take(8) {
            writeln!(out, "    bytes {} to {}", range.start, range.end)?;
        }
        if plan.lost().len() > 8 {
            let more = plan.lost().len() as u64 - 8;
            writeln!(out, "    and {}", count(more, "more range", "more ranges"))?;
        }
    }
    Ok(())
}

/// What stays as it is. A reason that several neighbours share is told once.
fn print_left(out: &mut impl Write, path: &Path, plan: &Plan) -> io::Result<()> {
    if !plan.left().is_empty() {
        writeln!(out, "  left as it is:")?;
    }
    let mut all = plan.left().iter().peekable();
    while let Some(left) = all.next() {
        let what = format!("{} {}{}", left.code, left.what, and_more(left.count));
        wrapped(out, "  - ", 4, &what)?;
        if all.peek().is_some_and(|next| (&next.why, next.word) == (&left.why, left.word)) {
            continue;
        }
        let why = left.why.replace("IMAGE", &quoted(path));
        match left.word {
            Some(word) => {
                wrapped(out, "    ", 4, &format!("only with {}: {why}", word.option()))?;
            }
            None => wrapped(out, "    ", 4, &why)?,
        }
    }
    Ok(())
}

/// `vhdx check IMAGE --undo FILE`.
pub(crate) fn undo(
    path: &Path,
    undo: &Path,
    force: bool,
    context: Context,
) -> anyhow::Result<ExitCode> {
    let report = undo_file(path, undo, force)
        .with_context(|| format!("cannot take the repair of {} back", path.display()))?;
    if context.json {
        print_json(&json!({
            "changed": report.changed,
            "bytes_after": report.bytes_after,
            "forced": report.forced,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    match report.changed {
        true => writeln!(
            out,
            "{}: the repair is undone; the file is, byte for byte, what it was before",
            named(path)
        )?,
        false => writeln!(out, "{}: it is what it was before the repair already", named(path))?,
    }
    if report.forced {
        writeln!(
            out,
            "  somebody had written it since: what was written then is lost, and it may not be whole"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
