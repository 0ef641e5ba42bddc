//! `vhdx merge`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;
use vhdxkit::OpenOptions;
use vhdxkit::ops::merge::{MergeOptions, MergeReport, merge};

use super::Context;
use super::write::warn_of_change_tracking;
use crate::args::MergeArgs;
use crate::console::{Bar, named, print_json, size, stop_on_signal};

pub(crate) fn run(args: &MergeArgs, context: Context) -> anyhow::Result<()> {
    let open = args.parents.over(OpenOptions::new());
    let mut options = MergeOptions::new(open).keep(args.keep).force(args.force);
    if let Some(target) = &args.into {
        options = options.into(target);
    }
    for folder in &args.parents.search {
        options = options.search_in(folder);
    }
    stop_on_signal();
    let length = std::fs::metadata(&args.child).map_or(0, |meta| meta.len());
    let mut bar = Bar::new("merging", length, context.quiet);
    let report = merge(&args.child, &options, &mut bar)
        .with_context(|| format!("cannot merge {}", args.child.display()))?;
    drop(bar);
    let tracking = warn_of_change_tracking(&report.target);
    if context.json {
        return print_json(&as_json(&report, &tracking));
    }
    print_text(args, &report)
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

fn as_json(report: &MergeReport, tracking: &[String]) -> serde_json::Value {
    json!({
        "changed": true,
        "target": report.target.display().to_string(),
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "bytes_copied": report.copied,
        "bytes_zeroed": report.zeroed,
        "repointed": names(&report.repointed),
        "deleted": names(&report.deleted),
        "orphaned": names(&report.orphaned),
        "change_tracking": tracking,
    })
}

fn print_text(args: &MergeArgs, report: &MergeReport) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let (child, target) = (named(&args.child), named(&report.target));
    writeln!(out, "{target}: has everything of {child} now, {} copied", size(report.copied))?;
    for (paths, what) in [
        (&report.deleted, "deleted"),
        (&report.repointed, "is a child of the merged disk now"),
        (&report.orphaned, "cannot be read any more, its parent has changed"),
    ] {
        for path in paths {
            writeln!(out, "  {}: {what}", named(path))?;
        }
    }
    Ok(())
}
