//! `vhdx map`: the extents as a list, or all of the image as a page.

mod html;

use std::fs::Metadata;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::storage::Storage as _;
use vhdxkit::{Extent, Image};

use super::{Context, foreign, new_file};
use crate::args::{MapArgs, open_as_far_as_possible, warn};
use crate::commands::new_file::same_file;
use crate::console::{self, size, stop_on_signal};
use crate::failure::{exit, wrong_usage};
use html::Facts;

/// How every page begins, in any case.
const PAGE_START: &[u8] = b"<!doctype html";

pub(crate) fn run(args: &MapArgs, context: Context) -> anyhow::Result<ExitCode> {
    if let Some(target) = &args.html {
        return run_html(args, target, context);
    }
    let (image, alone) = open_as_far_as_possible(args.open.options(), &args.image)?;
    warn(&args.image, &image);
    if let Some(problem) = alone {
        eprintln!("warning: mapped without its parent: {problem}");
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed =
        if context.json { print_json(&image, &mut out) } else { print_text(&image, &mut out) };
    printed.with_context(|| format!("cannot map {}", args.image.display()))?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The page shows what `check` finds, so its exit status is that of `check`.
fn run_html(args: &MapArgs, target: &Path, context: Context) -> anyhow::Result<ExitCode> {
    let existing = judge_page(&args.image, target, args.force)?;
    foreign::refuse_other_formats(&args.image)?;
    stop_on_signal();
    let share = args.open.open.force_share;
    let facts = Facts::gather(&args.image, &args.open.options(), share, context.quiet)
        .with_context(|| format!("cannot map {}", args.image.display()))?;
    let page = html::page(&facts);
    new_file::make(target, args.force, existing.as_ref(), |file| {
        file.write_at(0, &page)
            .and_then(|()| file.sync())
            .map_err(|e| vhdxkit::Error::io("cannot write the page", 0, e))
    })?;
    let problems = facts.has_problems();
    if context.json {
        console::print_json(&json!({
            "page": target.display().to_string(),
            "bytes": page.len(),
            "mapped": facts.has_picture(),
            "result": if problems { "problems" } else { "ok" },
        }))?;
    } else {
        let without = if facts.has_picture() { "" } else { ", without a map of the disk" };
        let found = if problems { "; problems were found, the page lists them" } else { "" };
        let (name, bytes) = (console::named(target), size(page.len() as u64));
        writeln!(io::stdout(), "{name}: {bytes}{without}{found}")?;
    }
    Ok(if problems { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}

/// A page must not take the place of anything but a page, whatever the user's slip: not even by force.
fn judge_page(image: &Path, target: &Path, force: bool) -> anyhow::Result<Option<Metadata>> {
    if target.as_os_str() == "-" {
        wrong_usage!("the page goes into a file, not to stdout (./- is a file of that name)");
    }
    if same_file(image, target) {
        bail!("the page and the image are the same file");
    }
    let existing = new_file::judge_target(target, force)?;
    if existing.is_some() {
        let is_page = |start: &[u8]| start.eq_ignore_ascii_case(PAGE_START);
        new_file::replaces_only(target, "a page", PAGE_START.len(), is_page)?;
    }
    Ok(existing)
}

/// One line per extent, written as it is found: the list may be long.
fn print_json(image: &Image, out: &mut impl Write) -> anyhow::Result<()> {
    let mut separator = "[\n";
    for extent in image.extents(0..image.virtual_size()) {
        let Extent { start, length, state, depth, file_offset } = extent?;
        let value = json!({
            "start": start,
            "length": length,
            "state": state.name(),
            "depth": depth,
            "file_offset": file_offset,
        });
        write!(out, "{separator}  {value}")?;
        separator = ",\n";
    }
    writeln!(out, "\n]")?;
    Ok(())
}

fn print_text(image: &Image, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:>16} {:>16}  {:<14} {:>5} {:>16}",
        "start", "length", "state", "depth", "file offset"
    )?;
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent?;
        let place = extent.file_offset.map_or_else(|| "-".to_owned(), |at| format!("{at:#x}"));
        writeln!(
            out,
            "{:>#16x} {:>#16x}  {:<14} {:>5} {place:>16}",
            extent.start,
            extent.length,
            extent.state.name(),
            extent.depth
        )?;
    }
    Ok(())
}
