//! `vhdx info` of VHD, qcow2 and raw.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::vhd::{Vhd, VhdBlocks, format as on_disk};
use vhdxkit::{Error, ErrorKind, OpenOptions};

use super::Context;
use crate::args::InfoArgs;
use crate::console::{print_json, size};

pub(crate) fn run(args: &InfoArgs, format: DiskFormat, context: Context) -> anyhow::Result<()> {
    let path = &args.image.image;
    let options = OpenOptions::new().force_share(args.image.open.force_share);
    let (disk, alone) = open(path, format, &args.parents.over(options))?;
    let mut values = match &disk {
        Disk::Vhd(disk) => {
            let layers = if args.chain { usize::MAX } else { 1 };
            disk.layers().take(layers).map(of_vhd).collect::<anyhow::Result<Vec<_>>>()?
        }
        other => vec![of_plain(path, other)?],
    };
    if !context.json {
        // Of a file that is raw for want of anything better, and not even whole sectors, nobody made a disk.
        let bytes = disk.size();
        if args.from.is_none() && format == DiskFormat::Raw && !bytes.is_multiple_of(512) {
            let name = path.display();
            let text = "no disk image that is known; as raw it would be a disk of";
            writeln!(io::stdout(), "{name}: {text} {bytes} bytes")?;
            return Ok(());
        }
        for value in &values {
            print_text(value)?;
        }
        if let Some(problem) = alone {
            writeln!(io::stdout(), "  parent: {problem}")?;
        }
        return Ok(());
    }
    tell_unresolved(&mut values, alone.as_ref());
    let mut first = values.first().cloned().unwrap_or_default();
    if args.chain
        && let Some(object) = first.as_object_mut()
    {
        object.insert("chain".to_owned(), Value::Array(std::mem::take(&mut values)));
    }
    print_json(&first)
}

/// Opens a disk with its parents, or, where they cannot be had, alone: then the error says why.
fn open(
    path: &Path,
    format: DiskFormat,
    options: &OpenOptions,
) -> anyhow::Result<(Disk, Option<Error>)> {
    match Disk::open_with(path, Some(format), options) {
        Ok(disk) => Ok((disk, None)),
        Err(error) if error.kind() == ErrorKind::Parent => {
            let alone = options.clone().without_parents();
            Ok((Disk::open_with(path, Some(format), &alone)?, Some(error)))
        }
        Err(error) => Err(error.into()),
    }
}

fn of_plain(path: &Path, disk: &Disk) -> anyhow::Result<Value> {
    let path = path.display().to_string();
    let format = disk.format().name();
    #[cfg(feature = "qcow2")]
    if let Disk::Qcow2(image) = disk {
        return Ok(json!({
            "path": path,
            "format": format,
            "type": "dynamic",
            "virtual_size": disk.size(),
            "file_size": image.file_size()?,
            "block_size": image.cluster_size(),
            "version": image.version(),
        }));
    }
    Ok(json!({
        "path": path,
        "format": format,
        "type": "fixed",
        "virtual_size": disk.size(),
        "file_size": disk.size(),
    }))
}

fn of_vhd(disk: &Vhd) -> anyhow::Result<Value> {
    let path = |disk: &Vhd| disk.path().map(|path| path.display().to_string());
    let footer = disk.footer();
    let blocks =
        disk.count_blocks()?.map(|VhdBlocks { fully_present, partially_present, not_present }| {
            json!({
                "fully_present": fully_present,
                "partially_present": partially_present,
                "not_present": not_present,
            })
        });
    let parent = disk.parent_link().map(|link| {
        json!({
            "linkage": link.unique_id.to_string(),
            "name": link.name,
            "time_stamp": link.time_stamp,
            "relative_path": link.relative_path(),
            "absolute_win32_path": link.absolute_path(),
            "mac_url": link.mac_url,
            "resolved": disk.parent().and_then(path),
        })
    });
    Ok(json!({
        "path": path(disk),
        "format": "vhd",
        "type": disk.disk_type().name(),
        "virtual_size": disk.virtual_size(),
        "file_size": disk.file_size()?,
        "block_size": disk.block_size(),
        "logical_sector_size": on_disk::SECTOR,
        "creator": String::from_utf8_lossy(&footer.creator_application).trim_end_matches([' ', '\0']),
        "virtual_disk_id": disk.unique_id().to_string(),
        "geometry": {
            "cylinders": footer.cylinders.get(),
            "heads": footer.heads,
            "sectors_per_track": footer.sectors_per_track,
        },
        "saved_state": footer.saved_state != 0,
        "blocks": blocks,
        "parent": parent,
        "remarks": disk.remarks(),
    }))
}

/// The values for people: the same ones, with sizes that can be read.
fn print_text(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let bytes = |key: &str| value[key].as_u64().unwrap_or_default();
    let exactly = |bytes: u64| format!("{} ({bytes} bytes)", size(bytes));
    let format = match text("format").as_str() {
        "vhd" => "VHD (version 1)".to_owned(),
        other => other.to_owned(),
    };
    writeln!(
        out,
        "{}: {format}, {} disk of {}",
        text("path"),
        text("type"),
        size(bytes("virtual_size"))
    )?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<16}{value}");
    line("virtual size", exactly(bytes("virtual_size")))?;
    line("file size", exactly(bytes("file_size")))?;
    if bytes("block_size") > 0 {
        let name = if text("format") == "qcow2" { "clusters" } else { "blocks" };
        let mut told = format!("of {}", size(bytes("block_size")));
        if let Some(blocks) = value["blocks"].as_object() {
            let counts = [
                ("fully_present", "stored"),
                ("partially_present", "partly stored"),
                ("not_present", "not present"),
            ];
            let counts = counts.iter().filter(|(key, _)| blocks[*key] != 0);
            let counts: Vec<String> =
                counts.map(|(key, name)| format!("{} {name}", blocks[*key])).collect();
            told = format!("{told}: {}", counts.join(", "));
        }
        line(name, told)?;
    }
    if value["format"] == "qcow2" {
        line("version", value["version"].to_string())?;
    }
    if value["format"] == "vhd" {
        line("creator", text("creator"))?;
        line("disk id", text("virtual_disk_id"))?;
        let geometry = &value["geometry"];
        let (c, h, s) =
            (&geometry["cylinders"], &geometry["heads"], &geometry["sectors_per_track"]);
        line("geometry", format!("{c} cylinders, {h} heads, {s} sectors per track"))?;
    }
    if let Some(parent) = value["parent"].as_object() {
        let text = |key: &str| parent[key].as_str();
        line("parent", format!("disk id {}", text("linkage").unwrap_or_default()))?;
        for key in ["name", "relative_path", "absolute_win32_path", "mac_url"] {
            if let Some(path) = text(key) {
                line("", format!("{path} ({key})"))?;
            }
        }
        if let Some(path) = text("resolved") {
            line("", format!("found: {path}"))?;
        }
    }
    for remark in value["remarks"].as_array().into_iter().flatten() {
        line("remark", remark.as_str().unwrap_or_default().to_owned())?;
    }
    Ok(())
}

/// Adds to the first of the images why its parent could not be had.
pub(super) fn tell_unresolved(images: &mut [Value], problem: Option<&Error>) {
    if let Some(problem) = problem
        && let Some(parent) = images.first_mut().and_then(|first| first["parent"].as_object_mut())
    {
        parent.insert("unresolved".to_owned(), problem.to_string().into());
    }
}
