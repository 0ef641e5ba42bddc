//! `vhdx compact`.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use vhdxkit::defect::Defect;
use vhdxkit::format::Guid;
use vhdxkit::ops::Progress;
use vhdxkit::ops::compact::{CompactOptions, Observer, Plan, Tally, compact, plan};
use vhdxkit::{ErrorKind, OpenOptions};

use super::Context;
use super::children::{NOT_ASKED, require_no_children_of};
use super::ls;
use super::small_blocks::LargeBlocks;
use super::write::{change_tracking, is_replayed_to_write, warn_of_change_tracking};
use crate::args::{CompactArgs, FreeSpaceName};
use crate::console::{Bar, Lines, count, named, print_json, quoted, size, stop_on_signal};
use crate::failure::{begin, has_begun, wrong_usage};

pub(crate) fn run(args: &CompactArgs, context: Context) -> anyhow::Result<()> {
    let path = &args.image;
    let name = named(path);
    let failed = || format!("cannot compact {name}");
    let options = CompactOptions::default()
        .free_space(args.free_space == FreeSpaceName::Auto)
        .assume_clean(args.assume_clean)
        .allow_data_loss(args.allow_data_loss);
    if args.parents.ignore_parent_id && !args.dry_run {
        wrong_usage!(
            "{name}: with a parent that may be another disk, what equals it must not go; `vhdx relink` tells the \
             child its true parent first"
        );
    }
    stop_on_signal();
    if args.dry_run {
        let image = args.parents.over(OpenOptions::new()).open(path)?;
        let large = LargeBlocks::of(&image).with_context(failed)?;
        let mut bar = Bar::new("looking", image.file_size(), context.quiet);
        let plan = plan(&image, &options, &mut bar).with_context(failed)?;
        drop(bar);
        let identity = image.headers().current().data_write_guid;
        match context.json {
            true => {
                let tracking = change_tracking(path);
                print_json(&as_json(&plan, plan.file_size, None, &tracking))?;
            }
            false => {
                let mut out = Lines::to(io::stdout().lock());
                print_plan(&mut out, path, &plan)?;
                print_hint(&mut out, path, large.as_ref(), &plan, args.assume_clean)?;
            }
        }
        require_no_children(path, identity, &plan, args.force).with_context(failed)?;
        return require_no_obstacle(path, &plan, &options).with_context(failed);
    }
    // Looked at first: what cannot be opened is told before anything is changed.
    let replays = is_replayed_to_write(&args.parents.over(OpenOptions::new()).open(path)?);
    if replays {
        begin();
    }
    let image = args.parents.over(OpenOptions::new().write(true)).open(path)?;
    let identity = image.headers().current().data_write_guid;
    let large = LargeBlocks::of(&image).with_context(failed)?;
    let tracking = warn_of_change_tracking(path);
    let mut watch = Watch {
        path,
        options: &options,
        assume_clean: args.assume_clean,
        large,
        identity,
        force: args.force,
        context,
        bar: Bar::new("looking", image.file_size(), context.quiet),
        refused: None,
    };
    let done = compact(image, options.clone(), &mut watch);
    let Watch { bar, refused, .. } = watch;
    drop(bar);
    if let Some(refusal) = refused {
        return Err(refusal.context(failed()));
    }
    let report = done.map_err(|error| {
        let stopped = error.kind() == ErrorKind::Cancelled;
        let error = anyhow::Error::new(error).context(failed());
        if stopped {
            error.context(match has_begun() {
                true => "stopped; the same command goes on with the rest",
                false => "stopped before anything was changed",
            })
        } else {
            error
        }
    })?;
    if context.json {
        let after = report.bytes_after;
        let mut answer = as_json(&report.plan, report.bytes_before, Some(after), &tracking);
        answer["changed"] = json!(replays || report.plan.has_work());
        return print_json(&answer);
    }
    let mut out = io::stdout().lock();
    let (before, after) = (report.bytes_before, report.bytes_after);
    match before.saturating_sub(after) {
        0 if !report.plan.has_work() => {
            let log =
                if replays { "only its log was replayed" } else { "the file was not changed" };
            writeln!(out, "{name}: nothing to give back; {log}")?;
        }
        0 => {
            let inside = size(report.plan.released_bytes());
            writeln!(out, "{name}: {inside} freed inside; the file is as long as before")?;
        }
        given => writeln!(
            out,
            "{name}: {} given back: {} before, {} now",
            size(given),
            size(before),
            size(after)
        )?,
    }
    Ok(())
}

/// What happens while a disk is compacted: told, and stopped where others would be lost.
struct Watch<'a> {
    path: &'a Path,
    options: &'a CompactOptions,
    assume_clean: bool,
    large: Option<LargeBlocks>,
    identity: Guid,
    force: bool,
    context: Context,
    bar: Bar,
    refused: Option<anyhow::Error>,
}

impl Progress for Watch<'_> {
    fn advance(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bar.advance(bytes)
    }
}

impl Observer for Watch<'_> {
    fn planned(&mut self, plan: &Plan) -> ControlFlow<()> {
        if let Err(refusal) = self.judge(plan) {
            self.refused = Some(refusal);
            return ControlFlow::Break(());
        }
        if plan.has_work() {
            begin();
        }
        let work = plan.released_bytes().saturating_add(plan.to_move);
        self.bar = Bar::new("giving back", work, self.context.quiet);
        ControlFlow::Continue(())
    }
}

impl Watch<'_> {
    fn judge(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if !self.context.json {
            let mut out = Lines::to(io::stderr().lock());
            print_plan(&mut out, self.path, plan)?;
            print_hint(&mut out, self.path, self.large.as_ref(), plan, self.assume_clean)?;
        }
        require_no_children(self.path, self.identity, plan, self.force)?;
        require_no_obstacle(self.path, plan, self.options)
    }
}

/// Refuses a plan of an image whose table is damaged, or seems to have lost entries.
fn require_no_obstacle(path: &Path, plan: &Plan, options: &CompactOptions) -> anyhow::Result<()> {
    let Some(defect) = plan.obstacle(options) else { return Ok(()) };
    let path = quoted(path);
    let advice = match &defect {
        Defect::NamelessData { .. } => format!(
            "nothing was given back: that data would be gone. If anything is missing on the disk, `vhdx recover {path} \
             --orphans DIR` copies it out; if nothing is, `vhdx compact {path} --allow-data-loss` gives it up"
        ),
        _ => format!("nothing was given back: `vhdx check {path}` tells what to do about it first"),
    };
    Err(anyhow::Error::new(vhdxkit::Error::from(defect)).context(advice))
}

/// What smaller blocks would give back besides.
fn print_hint(
    out: &mut dyn Write,
    path: &Path,
    large: Option<&LargeBlocks>,
    plan: &Plan,
    assume_clean: bool,
) -> io::Result<()> {
    let Some(large) = large else { return Ok(()) };
    let Some(kept) = large.kept(plan, assume_clean) else { return Ok(()) };
    writeln!(
        out,
        "  at least {} more are free, in blocks of {} that hold other things, too: smaller ones give it back\n    \
         vhdx convert --block-size 1M {} NEW.vhdx && vhdx compact NEW.vhdx",
        size(kept),
        size(large.size),
        quoted(path)
    )
}

/// Refuses a plan after which images beside this one would not know it any more.
fn require_no_children(
    path: &Path,
    identity: Guid,
    plan: &Plan,
    force: bool,
) -> anyhow::Result<()> {
    if !plan.is_visible() || force {
        return Ok(());
    }
    require_no_children_of(path, identity, NOT_ASKED, |children| {
        format!(
            "{children}, made of this disk or of a copy of it, would not know it any more when free blocks go: \
             compact the newest checkpoint instead, or give back zeros only (--free-space none); --force does it \
             all the same"
        )
    })
}

fn tally_json(tally: Tally) -> Value {
    json!({ "blocks": tally.blocks, "bytes": tally.bytes })
}

fn as_json(plan: &Plan, before: u64, after: Option<u64>, tracking: &[String]) -> Value {
    json!({
        "changed": false,
        "dry_run": after.is_none(),
        "bytes_before": before,
        "bytes_after": after.unwrap_or(plan.file_size_after),
        "released": {
            "zero": tally_json(plan.zero),
            "free": tally_json(plan.free),
            "like_parent": tally_json(plan.like_parent),
            "trimmed": tally_json(plan.trimmed),
            "sector_bitmaps": tally_json(plan.sector_bitmaps),
        },
        "unowned": plan.unowned,
        "blocks": tally_json(plan.placed),
        "damaged_blocks": plan.damaged,
        "nameless": plan.nameless,
        "bytes_read": plan.bytes_read,
        "visible_to_guest": plan.is_visible(),
        "volumes": plan.volumes.iter().map(ls::as_json).collect::<Vec<_>>(),
        "change_tracking": tracking,
    })
}

fn print_plan(out: &mut dyn Write, path: &Path, plan: &Plan) -> anyhow::Result<()> {
    let name = named(path);
    let given = plan.file_size.saturating_sub(plan.file_size_after);
    let (now, after) = (size(plan.file_size), size(plan.file_size_after));
    match (plan.has_work(), size(given)) {
        (true, less) => writeln!(out, "{name}: {now} now, about {after} afterwards ({less} less)")?,
        (false, _) => writeln!(out, "{name}: {now}; there is nothing to give back")?,
    }
    for (what, tally) in [
        ("free space of its file systems", plan.free),
        ("zeros", plan.zero),
        ("as its parent shows it", plan.like_parent),
        ("trimmed by the guest", plan.trimmed),
        ("sector bitmaps without use", plan.sector_bitmaps),
    ] {
        if tally.blocks > 0 {
            let blocks = count(tally.blocks, "block", "blocks");
            writeln!(out, "  {what:<32}{:>9}  {blocks}", size(tally.bytes))?;
        }
    }
    if plan.unowned > 0 {
        writeln!(out, "  {:<32}{:>9}", "gaps that belong to nothing", size(plan.unowned))?;
    }
    if plan.nameless > 0 {
        writeln!(out, "  {:<32}{:>9}", "of them data that nothing names", size(plan.nameless))?;
    }
    if plan.is_visible() {
        writeln!(
            out,
            "  it gets a new identity: checkpoints of it in other folders, unseen here, are lost"
        )?;
    }
    if plan.damaged > 0 {
        let blocks =
            count(plan.damaged, "block has a damaged entry", "blocks have damaged entries");
        writeln!(out, "  {blocks} and cannot be judged: vhdx check {}", quoted(path))?;
    }
    for volume in &plan.volumes {
        let (place, contents) = (ls::place(volume), ls::contents(volume));
        match (&volume.space, volume.kept_because()) {
            (Ok(survey), None) => writeln!(
                out,
                "  {place}: {contents}, cleanly unmounted; {} of it free",
                size(survey.free.bytes())
            )?,
            (Ok(survey), Some(why)) => {
                writeln!(out, "  {place}: {contents}: {why}")?;
                let free = size(survey.free.bytes());
                // A sleeping system has it in use: nobody is to be tempted.
                let word = if survey.asleep { "" } else { ", or take --assume-clean" };
                writeln!(
                    out,
                    "    its {free} of free space stay: start its system and shut it down properly first{word}"
                )?;
            }
            (Err(_), why) => {
                let why = why.unwrap_or_default();
                writeln!(out, "  {place}: {contents}: {why}; only its zeros can go")?;
            }
        }
    }
    Ok(())
}
