//! `vhdx recover`: what can be had of a damaged image, into a new file.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use vhdxkit::format::HEADER_SECTION_LENGTH;
use vhdxkit::ops::import::ImportReport;
use vhdxkit::ops::recover::{Fate, Report, Salvage, SalvageOptions, Statement};
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::view::geometry::{DiskType, Geometry};
use vhdxkit::{Image, OpenOptions, ParentPolicy};

use super::new_file::same_file;
use super::{Context, foreign, new_file};
use crate::args::RecoverArgs;
use crate::console::{Bar, count, named, print_json, size, stop_on_signal};
use crate::failure::{NoParent, begin, exit};

/// Runs of blocks that are printed for people, of each fate.
const MOST_RUNS: usize = 12;
/// Columns of a terminal.
const WIDTH: usize = 80;

pub(crate) fn run(args: &RecoverArgs, context: Context) -> anyhow::Result<ExitCode> {
    let to = args.to.as_deref().filter(|_| !args.dry_run);
    let existing = match to {
        Some(to) if same_file(&args.image, to) => bail!("source and target are the same file"),
        Some(to) if args.parents.iter().any(|parent| same_file(parent, to)) => {
            bail!("{} is the parent", to.display())
        }
        Some(to) => judge(to, args.force)?,
        None => None,
    };
    stop_on_signal();
    let parent_options = OpenOptions::new()
        .force_share(args.open.force_share)
        .parents(ParentPolicy::Follow)
        .ignore_parent_id(args.ignore_parent_id);
    let parent = open_parent(args, &parent_options)?;
    let failed = || format!("cannot recover {}", args.image.display());
    let mode = OpenMode::ReadOnly { force_share: args.open.force_share };
    let file = Arc::new(FileStorage::open(&args.image, mode).with_context(failed)?);
    let mut bar = Bar::new("looking", 0, context.quiet);
    let salvage =
        Salvage::read(file, &options(args, parent.as_ref()), &mut bar).with_context(failed)?;
    drop(bar);
    let report = salvage.report();
    if let Some(foreign) = foreign::recognise(&args.image).filter(|_| report.geometry.is_none())
        && let Some(refusal) = foreign.refusal()
    {
        bail!("{}: {refusal}", failed());
    }
    if let Some(to) = to.filter(|_| existing.is_some()) {
        refuse_parents(&args.image, to, parent.as_ref(), &salvage)?;
    }
    let is_child = |geometry: Geometry| geometry.disk_type() == DiskType::Differencing;
    if parent.is_some() && report.geometry.is_some_and(|geometry| !is_child(geometry)) {
        eprintln!("the disk is no checkpoint: the parent that was given is not used");
    }
    if !context.json {
        print_report(&args.image, report)?;
    }
    if let Some(folder) = args.orphans.as_deref().filter(|_| !args.dry_run) {
        begin();
        extract_orphans(&salvage, folder, context)?;
    }
    let written = match to {
        None => None,
        Some(_) if report.geometry.is_none() => {
            bail!("{}: no image was made, since the sizes of the disk are not known", failed())
        }
        Some(_) if salvage.needs_parent() && parent.is_none() => {
            let text = "the disk is a checkpoint, and the name of its parent is lost: give the parent with --parent";
            return Err(NoParent(format!("{}: {text}", failed())).into());
        }
        Some(to) => {
            let total = report.geometry.map_or(0, |geometry| geometry.virtual_size());
            let mut bar = Bar::new("recovering", total, context.quiet);
            let parent = parent.map(|parent| (parent, &parent_options));
            begin();
            let made = new_file::make(to, args.force, existing.as_ref(), |file| {
                salvage.write(file, parent, &mut bar)
            });
            Some(made.with_context(failed)?)
        }
    };
    let unreadable = salvage.unreadable();
    let whole = report.is_whole() && unreadable.is_empty();
    if context.json {
        print_json(&as_json(report, &unreadable, written.as_ref(), whole))?;
    } else {
        print_end(args, report, &unreadable, written.as_ref(), whole)?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

/// A recovered image may replace an image, such as that of an earlier try, and nothing else.
fn judge(to: &Path, force: bool) -> anyhow::Result<Option<Metadata>> {
    let existing = new_file::judge_target(to, force)?;
    if existing.is_some() {
        new_file::replaces_only(to, "a VHDX file", 8, |start| start == b"vhdxfile")?;
    }
    Ok(existing)
}

/// Whatever is forced: a disk that the damaged one stands on is not replaced by what is had of that one.
fn refuse_parents(
    image: &Path,
    to: &Path,
    parent: Option<&Image>,
    salvage: &Salvage,
) -> anyhow::Result<()> {
    let found = salvage.image()?;
    let locator = found.as_ref().and_then(Image::parent_locator);
    let named = locator.and_then(|locator| locator.get("relative_path"));
    let beside = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let named = named.map(|name| {
        beside.parent().unwrap_or_else(|| Path::new(".")).join(name.replace('\\', "/"))
    });
    let lenient = OpenOptions::new().force_share(true).without_log(true).ignore_parent_id(true);
    let chain = named.as_ref().and_then(|path| {
        let all = lenient.clone().parents(ParentPolicy::Follow).open(path);
        all.or_else(|_| lenient.clone().without_parents().open(path)).ok()
    });
    let opened = parent.into_iter().chain(&chain).flat_map(Image::layers);
    let mut layers = opened.filter_map(Image::path).chain(named.as_deref());
    let is_layer = layers.any(|layer| same_file(layer, to));
    let is_named = || {
        let target = lenient.clone().without_parents().open(to).ok()?;
        let identity = Some(target.headers().current().data_write_guid);
        let locator = locator?;
        Some(locator.linkage() == identity || locator.linkage2() == identity)
    };
    if is_layer || is_named().unwrap_or_default() {
        bail!(
            "{} is a parent of the damaged disk, which cannot be had without it: it is not replaced; choose another \
             name for --to",
            to.display()
        );
    }
    Ok(())
}

fn open_parent(args: &RecoverArgs, options: &OpenOptions) -> anyhow::Result<Option<Image>> {
    let Some((first, rest)) = args.parents.split_first() else { return Ok(None) };
    let options = rest.iter().fold(options.clone(), |options, path| options.parent(path));
    Ok(Some(options.open(first)?))
}

fn options(args: &RecoverArgs, parent: Option<&Image>) -> SalvageOptions {
    let mut options = SalvageOptions::new().guess_order(args.guess_order);
    if let Some(bytes) = args.size {
        options = options.virtual_size(bytes);
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    if let Some(bytes) = args.logical_sector_size {
        options = options.logical_sector_size(bytes);
    }
    match parent {
        Some(parent) => options.parent(parent),
        None => options,
    }
}

fn extract_orphans(salvage: &Salvage, folder: &Path, context: Context) -> anyhow::Result<()> {
    let orphans = &salvage.report().orphans;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let total = orphans.iter().map(|run| run.end - run.start).sum();
    let mut bar = Bar::new("extracting", total, context.quiet);
    for run in orphans {
        let path = folder.join(format!("orphan-{:#014x}.raw", run.start));
        let failed = || format!("cannot write {}", path.display());
        if path.exists() {
            bail!(
                "{}: it is there already; give --orphans another folder, or remove what an earlier try has left in \
                 this one",
                failed()
            );
        }
        let file = File::options().write(true).create_new(true).open(&path);
        let mut out = BufWriter::new(file.with_context(failed)?);
        salvage.extract(run.clone(), &mut out, &mut bar).with_context(failed)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(failed)?;
        file.sync_all().with_context(failed)?;
    }
    Ok(())
}

fn print_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}: {} ({} bytes)", named(path), size(report.file_size), report.file_size)?;
    for Statement { what, trust, offset, text } in &report.found {
        let place = offset.map(|at| format!(" at {at:#x}")).unwrap_or_default();
        print_wrapped(
            &mut out,
            &format!("  {:<9} ", trust.name()),
            &format!("{what}{place}: {text}"),
        )?;
    }
    for doubt in &report.doubts {
        print_wrapped(&mut out, "  doubt     ", doubt)?;
    }
    for remark in &report.remarks {
        print_wrapped(&mut out, "  note      ", remark)?;
    }
    let Some(geometry) = report.geometry else { return Ok(()) };
    let kind = geometry.disk_type().name();
    writeln!(
        out,
        "disk: {}, {kind}, {} of {}",
        size(geometry.virtual_size()),
        count(geometry.blocks(), "block", "blocks"),
        size(u64::from(geometry.block_size())),
    )?;
    for fate in Fate::ALL.into_iter().filter(|fate| report.fates.count(*fate) > 0) {
        print_fate(&mut out, report, fate)?;
    }
    if report.fates.unlisted > 0 {
        let blocks = count(report.fates.unlisted, "block", "blocks");
        writeln!(out, "  the last {blocks} are counted, and not listed one by one")?;
    }
    Ok(())
}

/// A text in lines of at most 80 columns, those after the first below its start.
fn print_wrapped(out: &mut impl Write, first: &str, text: &str) -> io::Result<()> {
    let indent = first.chars().count();
    let (mut line, mut column) = (first.to_owned(), indent);
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > indent && column + 1 + width > WIDTH {
            line.push('\n');
            line.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > indent {
            line.push(' ');
            column += 1;
        }
        line.push_str(word);
        column += width;
    }
    writeln!(out, "{line}")
}

/// The blocks of one fate: the number of all, then runs, those with the same reason together.
fn print_fate(out: &mut impl Write, report: &Report, fate: Fate) -> io::Result<()> {
    writeln!(out, "  {:<8} {}", fate.name(), count(report.fates.count(fate), "block", "blocks"))?;
    let runs: Vec<_> = report.fates.runs.iter().filter(|run| run.fate == fate).collect();
    let mut rest = &runs[..];
    let mut printed = 0;
    while let Some(first) = rest.first() {
        let key = (first.why, first.log_entry);
        let same = rest.iter().take_while(|run| (run.why, run.log_entry) == key).count();
        let (now, later) = rest.split_at(same);
        let names: Vec<String> = now
            .iter()
            .take(MOST_RUNS)
            .map(|run| match run.blocks.end - run.blocks.start {
                1 => run.blocks.start.to_string(),
                _ => format!("{}-{}", run.blocks.start, run.blocks.end - 1),
            })
            .collect();
        let more = match now.len().saturating_sub(MOST_RUNS) {
            0 => String::new(),
            more => format!(" and {more} more runs (--json lists them)"),
        };
        let entry = first.log_entry.map(|entry| format!(", log entry {entry}")).unwrap_or_default();
        let why = if first.why.is_empty() { String::new() } else { format!(": {}", first.why) };
        print_wrapped(out, &" ".repeat(11), &format!("{}{more}{why}{entry}", names.join(", ")))?;
        printed += 1;
        rest = later;
        if printed == MOST_RUNS && !rest.is_empty() {
            writeln!(out, "           and {} more runs (--json lists them)", rest.len())?;
            break;
        }
    }
    Ok(())
}

fn percent(report: &Report) -> String {
    format!("{}.{:02} %", report.share() / 100, report.share() % 100)
}

fn print_end(
    args: &RecoverArgs,
    report: &Report,
    unreadable: &[Range<u64>],
    written: Option<&ImportReport>,
    whole: bool,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if !unreadable.is_empty() {
        let bytes = unreadable.iter().map(|run| run.end - run.start).sum();
        let runs = count(unreadable.len() as u64, "place", "places");
        writeln!(
            out,
            "the file cannot be read in {runs}, {} in all: zeros were taken",
            size(bytes)
        )?;
    }
    let orphans: u64 = report.orphans.iter().map(|run| run.end - run.start).sum();
    if orphans > 0 {
        let hint = if args.orphans.is_some() { "" } else { " (--orphans DIR writes it out)" };
        writeln!(out, "the file holds {} that nothing names{hint}", size(orphans))?;
    }
    writeln!(
        out,
        "data: {} of {} known to have been there, {}",
        size(report.recovered),
        size(report.known),
        percent(report)
    )?;
    if let (Some(written), Some(to)) = (written, &args.to) {
        writeln!(out, "{}: made, {}", named(to), size(written.file_size))?;
    }
    let text = match (whole, report.geometry.is_some()) {
        (true, _) => "everything was had",
        (false, true) => "not everything was had for certain: see above",
        // No block can lie there: nothing that could be given helps.
        (false, false) if report.file_size <= HEADER_SECTION_LENGTH => {
            "no disk was had: nothing of its contents is in this file"
        }
        (false, false) => "no disk was had: see above what to give",
    };
    writeln!(out, "{text}")?;
    Ok(())
}

fn as_json(
    report: &Report,
    unreadable: &[Range<u64>],
    written: Option<&ImportReport>,
    whole: bool,
) -> Value {
    let ranges = |ranges: &[Range<u64>]| -> Vec<Value> {
        let json = |run: &Range<u64>| json!({"offset": run.start, "length": run.end - run.start});
        ranges.iter().map(json).collect()
    };
    let disk = report.geometry.map(|geometry| {
        json!({
            "type": geometry.disk_type().name(),
            "virtual_size": geometry.virtual_size(),
            "block_size": geometry.block_size(),
            "logical_sector_size": geometry.logical_sector_size(),
            "physical_sector_size": geometry.physical_sector_size(),
        })
    });
    let found: Vec<Value> = report
        .found
        .iter()
        .map(|found| {
            json!({
                "what": found.what,
                "trust": found.trust.name(),
                "offset": found.offset,
                "text": found.text,
            })
        })
        .collect();
    let blocks: serde_json::Map<String, Value> = Fate::ALL
        .into_iter()
        .map(|fate| (fate.name().to_owned(), json!(report.fates.count(fate))))
        .collect();
    let runs: Vec<Value> = report
        .fates
        .runs
        .iter()
        .map(|run| {
            json!({
                "first": run.blocks.start,
                "count": run.blocks.end - run.blocks.start,
                "fate": run.fate.name(),
                "log_entry": run.log_entry,
                "why": run.why,
            })
        })
        .collect();
    let lost: Vec<Range<u64>> = report.lost().collect();
    json!({
        "whole": whole,
        "file_size": report.file_size,
        "found": found,
        "doubts": report.doubts,
        "remarks": report.remarks,
        "disk": disk,
        "blocks": blocks,
        "runs": runs,
        // `runs` and `lost` end before the last blocks of the disk, so many of them.
        "runs_complete": report.fates.unlisted == 0,
        "unlisted": report.fates.unlisted,
        "lost": ranges(&lost),
        "recovered_bytes": report.recovered,
        "known_bytes": report.known,
        "share_percent": report.share() as f64 / 100.0,
        "orphans": ranges(&report.orphans),
        "unreadable": ranges(unreadable),
        "written": written.map(|written| json!({
            "virtual_size": written.virtual_size,
            "file_size": written.file_size,
            "bytes_read": written.read,
            "bytes_written": written.written,
        })),
    })
}
