//! `vhdx log replay`.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::PendingReplay;
use vhdxkit::log::ReplayReport;
use vhdxkit::storage::{FileStorage, OpenMode, Storage};

use super::Context;
use super::write::warn_of_change_tracking;
use crate::args::ReplayArgs;
use crate::console::{count, named, print_json, size};
use crate::failure::begin;

pub(crate) fn run(args: &ReplayArgs, context: Context) -> anyhow::Result<()> {
    let path = named(&args.image);
    let named = || format!("cannot replay the log of {path}");
    let file = FileStorage::open(&args.image, OpenMode::ReadWrite).with_context(named)?;
    let length = file.len()?;
    let file: Arc<dyn Storage> = Arc::new(file);
    let tracking = warn_of_change_tracking(&args.image);
    let pending = PendingReplay::read(&file).with_context(named)?;
    // A damaged entry in the middle of the log is no crash: what comes after it may be had otherwise.
    if let Some(finding) = pending.log().unreachable_entries().filter(|_| !args.force) {
        bail!(
            "{finding}; replay a copy, or take a backup first (--force replays what can be replayed)"
        );
    }
    let found = pending.was_found();
    begin();
    let report = pending.carry_out(&*file).with_context(named)?;
    if context.json {
        let done = report.unwrap_or(ReplayReport {
            bytes_before: length,
            bytes_after: length,
            ..ReplayReport::default()
        });
        return print_json(&json!({
            "changed": report.is_some(),
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "entries": done.entries,
            "sectors": done.sectors,
            "zeroed": done.zeroed,
            "log_found": found,
            "change_tracking": tracking,
        }));
    }
    let mut out = io::stdout().lock();
    match report {
        None => writeln!(out, "{path}: nothing to replay; the file was not changed")?,
        Some(done) => {
            let entries = count(done.entries, "log entry", "log entries");
            let sectors = count(done.sectors, "sector", "sectors");
            writeln!(
                out,
                "{path}: {entries} applied ({sectors} of 4 KiB written, {} zeroed)",
                size(done.zeroed)
            )?;
            if found {
                writeln!(
                    out,
                    "  the header that named this log was damaged; both copies are written anew"
                )?;
            }
            if done.bytes_after != done.bytes_before {
                writeln!(
                    out,
                    "  the file grew from {} to {}",
                    size(done.bytes_before),
                    size(done.bytes_after)
                )?;
            }
            writeln!(out, "  the image is clean")?;
        }
    }
    Ok(())
}
