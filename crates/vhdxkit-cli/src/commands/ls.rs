//! `vhdx ls`: partitions and file systems.

use std::io::{self, Write};

use serde_json::{Value, json};
use vhdxkit::ops::inspect::unreadable_bytes;
use vhdxkit::ops::partitions::{Volume, volumes};

use super::Context;
use crate::args::LsArgs;
use crate::console::{named, print_json, quoted, size};

pub(crate) fn run(args: &LsArgs, context: Context) -> anyhow::Result<()> {
    let image = args.open.open(&args.image)?;
    let found = volumes(&image)?;
    if context.json {
        return print_json(&Value::Array(found.iter().map(as_json).collect()));
    }
    print_text(&named(&args.image), image.virtual_size(), &found)?;
    match unreadable_bytes(&image)? {
        0 => {}
        bytes => writeln!(
            io::stdout(),
            "  {} of this disk cannot be read: vhdx check {}",
            size(bytes),
            quoted(&args.image)
        )?,
    }
    Ok(())
}

/// What is known of a volume, for programs.
pub(super) fn as_json(volume: &Volume) -> Value {
    let partition = volume.partition.as_ref();
    let survey = volume.space.as_ref().ok();
    json!({
        "partition": partition.map(|partition| partition.number),
        "start": volume.range.start,
        "length": volume.range.end - volume.range.start,
        "table": partition.map(|partition| partition.kind.table()),
        "partition_type": partition.map(|partition| partition.kind.to_string()),
        "partition_name": partition.map(|partition| partition.name.clone()),
        "file_system": volume.name(),
        "label": survey.map(|survey| survey.label.clone()),
        "file_system_length": survey.map(|survey| survey.length),
        "cluster_size": survey.map(|survey| survey.unit),
        "used": survey.map(|survey| survey.length.saturating_sub(survey.free.bytes())),
        "free": survey.map(|survey| survey.free.bytes()),
        "clean": survey.map(|survey| survey.unclean.is_none()),
        "reason": volume.kept_because(),
    })
}

/// What people call a volume: `partition 2` or `whole disk`.
pub(super) fn place(volume: &Volume) -> String {
    match &volume.partition {
        Some(partition) => format!("partition {}", partition.number),
        None => "whole disk".to_owned(),
    }
}

/// Its contents in a few words: `ext4 "root"`.
pub(super) fn contents(volume: &Volume) -> String {
    let name = volume.name().unwrap_or("unknown");
    match &volume.space {
        Ok(survey) if !survey.label.is_empty() => format!("{name} \"{}\"", survey.label),
        _ => name.to_owned(),
    }
}

fn print_text(name: &str, disk: u64, found: &[Volume]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{name}: a disk of {}", size(disk))?;
    let width = found.iter().map(|v| contents(v).chars().count()).max().unwrap_or(0);
    for volume in found {
        let (start, length) = (volume.range.start, volume.range.end - volume.range.start);
        write!(out, "  {:<13}{:<width$}  {:>9}", place(volume), contents(volume), size(length))?;
        match &volume.space {
            Ok(survey) => {
                let used = survey.length.saturating_sub(survey.free.bytes());
                write!(out, "  {:>9} used  {:>9} free", size(used), size(survey.free.bytes()))?;
                match &survey.unclean {
                    None => writeln!(out, "  clean")?,
                    Some(why) => writeln!(out, "\n{:<15}not clean: {why}", "")?,
                }
            }
            Err(trouble) => writeln!(out, "  {:>9}\n{:<15}{trouble}", "all used", "")?,
        }
        let partition = volume.partition.as_ref();
        if let Some(partition) = partition {
            let label = match partition.name.is_empty() {
                true => String::new(),
                false => format!(" \"{}\"", partition.name),
            };
            writeln!(out, "{:<15}{}{label}, from byte {start}", "", partition.kind)?;
        }
    }
    Ok(())
}
