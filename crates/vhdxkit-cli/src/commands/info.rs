//! `vhdx info`.

use std::io::{self, Write};

use serde_json::{Value, json};
use vhdxkit::log::LogState;
use vhdxkit::ops::disk::DiskFormat;
use vhdxkit::ops::inspect::{BlockCounts, count_blocks};
use vhdxkit::{Image, OpenOptions};

use super::{Context, info_other};
use crate::args::{InfoArgs, open_as_far_as_possible};
use crate::console::{count, print_json, size};

pub(crate) fn run(args: &InfoArgs, context: Context) -> anyhow::Result<()> {
    let path = &args.image.image;
    let format = match args.from {
        Some(format) => DiskFormat::from(format),
        None => DiskFormat::recognise(path).map_err(|e| e.named(path))?,
    };
    if format != DiskFormat::Vhdx {
        return info_other::run(args, format, context);
    }
    // A log that cannot be replayed is told, not refused.
    let options = OpenOptions::new().force_share(args.image.open.force_share).without_log(true);
    let (image, alone) = open_as_far_as_possible(args.parents.over(options), path)?;
    let layers = if args.chain { usize::MAX } else { 1 };
    let layers: Vec<&Image> = image.layers().take(layers).collect();
    let counts = |image: &&Image| count_blocks(image, args.count_blocks);
    let counts = layers.iter().map(counts).collect::<vhdxkit::Result<Vec<_>>>()?;
    let each = || layers.iter().zip(&counts).map(|(image, blocks)| (*image, blocks.as_ref()));
    if context.json {
        let mut all: Vec<Value> = each().map(|(image, blocks)| as_json(image, blocks)).collect();
        info_other::tell_unresolved(&mut all, alone.as_ref());
        let mut first = all.first().cloned().unwrap_or_default();
        if args.chain
            && let Some(object) = first.as_object_mut()
        {
            object.insert("chain".to_owned(), Value::Array(std::mem::take(&mut all)));
        }
        return print_json(&first);
    }
    for (image, blocks) in each() {
        print_text(image, blocks)?;
    }
    if let Some(problem) = alone {
        // Also what the parents' part of the chain would have told is missing.
        writeln!(io::stdout(), "  parent: {problem}")?;
    }
    Ok(())
}

fn path_of(image: &Image) -> String {
    image.path().map(|path| path.display().to_string()).unwrap_or_default()
}

fn as_json(image: &Image, blocks: Option<&BlockCounts>) -> Value {
    let path = path_of(image);
    let (geometry, header, log) = (image.geometry(), image.headers().current(), image.log());
    let blocks = blocks.map(|b| {
        json!({
            "fully_present": b.fully_present,
            "partially_present": b.partially_present,
            "not_present": b.not_present,
            "zero": b.zero,
            "unmapped": b.unmapped,
            "undefined": b.undefined,
            "reserved": b.reserved,
        })
    });
    let parent = image.parent_locator().map(|locator| {
        json!({
            "linkage": locator.linkage().map(|guid| guid.to_string()),
            "relative_path": locator.get("relative_path"),
            "absolute_win32_path": locator.get("absolute_win32_path"),
            "volume_path": locator.get("volume_path"),
            "resolved": image.parent().map(path_of),
        })
    });
    json!({
        "path": path,
        "format": "vhdx",
        "type": geometry.disk_type().name(),
        "virtual_size": geometry.virtual_size(),
        "file_size": image.file_size(),
        "block_size": geometry.block_size(),
        "logical_sector_size": geometry.logical_sector_size(),
        "physical_sector_size": geometry.physical_sector_size(),
        "creator": image.headers().creator(),
        "virtual_disk_id": geometry.disk_id().to_string(),
        "file_write_guid": header.file_write_guid.to_string(),
        "data_write_guid": header.data_write_guid.to_string(),
        "blocks": blocks,
        "log": {
            "state": log.state().name(),
            "guid": log.guid().to_string(),
            "offset": header.log_offset.get(),
            "length": header.log_length.get(),
            "active_entries": log.active().map_or(0, |active| active.entries().len()),
        },
        "parent": parent,
    })
}

fn print_text(image: &Image, blocks: Option<&BlockCounts>) -> anyhow::Result<()> {
    let path = path_of(image);
    let (geometry, header) = (image.geometry(), image.headers().current());
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{path}: {} disk of {}",
        geometry.disk_type().name(),
        size(geometry.virtual_size())
    )?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<16}{value}");
    line("state", state(image))?;
    line(
        "virtual size",
        format!("{} ({} bytes)", size(geometry.virtual_size()), geometry.virtual_size()),
    )?;
    line("file size", format!("{} ({} bytes)", size(image.file_size()), image.file_size()))?;
    line(
        "sectors",
        format!(
            "{} logical, {} physical",
            geometry.logical_sector_size(),
            geometry.physical_sector_size()
        ),
    )?;
    line("blocks", block_line(image, blocks))?;
    line("creator", if_empty(image.headers().creator(), "(not given)"))?;
    line("disk id", geometry.disk_id().to_string())?;
    line("file write id", header.file_write_guid.to_string())?;
    line("data write id", header.data_write_guid.to_string())?;
    line(
        "log",
        format!("{} at {:#x}", size(header.log_length.get().into()), header.log_offset.get()),
    )?;
    if let Some(locator) = image.parent_locator() {
        let linkage = locator.linkage().map_or_else(|| "(none)".to_owned(), |id| id.to_string());
        line("parent", format!("data write id {linkage}"))?;
        for key in ["relative_path", "absolute_win32_path", "volume_path"] {
            if let Some(path) = locator.get(key) {
                line("", format!("{path} ({key})"))?;
            }
        }
        if let Some(parent) = image.parent() {
            line("", format!("found: {}", path_of(parent)))?;
        }
    }
    for finding in image.findings().list() {
        if finding.severity() > vhdxkit::defect::Severity::Info {
            line(finding.severity().name(), finding.to_string())?;
        }
    }
    Ok(())
}

fn if_empty(text: &str, instead: &str) -> String {
    if text.is_empty() { instead.to_owned() } else { text.to_owned() }
}

fn state(image: &Image) -> String {
    let log = image.log();
    match log.state() {
        LogState::Clean => "clean".to_owned(),
        LogState::Dirty => {
            let entries = log.active().map_or(0, |active| active.entries().len());
            let entries = count(entries as u64, "log entry waits", "log entries wait");
            format!("dirty: {entries} to be applied (values below are with them applied)")
        }
        LogState::Invalid => {
            "log invalid: the header names a log that cannot be replayed (values below are as on disk)"
                .to_owned()
        }
    }
}

fn block_line(image: &Image, counts: Option<&BlockCounts>) -> String {
    let geometry = image.geometry();
    let total = format!("{} of {}", geometry.blocks(), size(geometry.block_size().into()));
    let Some(c) = counts else {
        return format!("{total} (not counted: large table; --count-blocks does)");
    };
    let parts: Vec<String> = [
        (c.fully_present, "stored"),
        (c.partially_present, "partly stored"),
        (c.zero, "zero"),
        (c.unmapped, "unmapped"),
        (c.undefined, "undefined"),
        (c.not_present, "not present"),
        (c.reserved, "in a reserved state"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, name)| format!("{number} {name}"))
    .collect();
    format!("{total}: {}", parts.join(", "))
}
