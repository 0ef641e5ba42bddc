//! `vhdx dump`: the structures of the file, decoded.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};
use vhdxkit::Image;
use vhdxkit::format::bat::PayloadState;
use vhdxkit::format::{HEADER_OFFSETS, metadata};
use vhdxkit::ops::inspect::inspect_storage;
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::view::geometry::BatSlot;
use vhdxkit::view::headers::HeaderPair;

use super::Context;
use crate::args::{DumpArgs, DumpWhat};
use crate::console::print_json;

pub(crate) fn run(args: &DumpArgs, context: Context) -> anyhow::Result<()> {
    let path = &args.image.image;
    let named = || format!("cannot decode {}", path.display());
    let mode = OpenMode::ReadOnly { force_share: args.image.open.force_share };
    let file: Arc<dyn Storage> = Arc::new(FileStorage::open(path, mode).with_context(named)?);
    if let DumpWhat::Header = args.what {
        let headers = HeaderPair::inspect(&*file).with_context(named)?;
        return show(header_rows(&headers), context);
    }
    let image = inspect_storage(file).with_context(named)?;
    match args.what {
        DumpWhat::Header => Ok(()),
        DumpWhat::Regions => show(region_rows(&image), context),
        DumpWhat::Metadata => show(metadata_rows(&image)?, context),
        DumpWhat::Bat => dump_bat(&image, context),
        DumpWhat::Bitmap => show(bitmap_rows(&image)?, context),
    }
}

/// Prints a list of objects: as JSON, or one block of `key value` lines each.
fn show(rows: Vec<Value>, context: Context) -> anyhow::Result<()> {
    if context.json {
        return print_json(&Value::Array(rows));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    for (number, row) in rows.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        for (key, value) in row.as_object().into_iter().flatten() {
            writeln!(out, "{key:<22}{}", plain(key, value))?;
        }
    }
    out.flush()?;
    Ok(())
}

/// A value for people: offsets and lengths in hexadecimal as well.
fn plain(key: &str, value: &Value) -> String {
    let both = key.ends_with("offset") || key.ends_with("length") || key == "checksum";
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if both => {
            number.as_u64().map_or_else(|| number.to_string(), |n| format!("{n} ({n:#x})"))
        }
        Value::Array(list) => {
            let list: Vec<String> = list.iter().map(|item| plain("", item)).collect();
            list.join(", ")
        }
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn header_rows(headers: &HeaderPair) -> Vec<Value> {
    let mut rows = vec![json!({
        "structure": "file identifier", "offset": 0, "creator": headers.creator(),
    })];
    for (copy, (header, offset)) in headers.copies().iter().zip(HEADER_OFFSETS).enumerate() {
        rows.push(match header {
            Err(fault) => json!({
                "structure": format!("header {}", copy + 1),
                "offset": offset, "current": false, "fault": fault.to_string(),
            }),
            Ok(header) => json!({
                "structure": format!("header {}", copy + 1),
                "offset": offset,
                "current": copy == headers.current_copy(),
                "checksum": header.checksum.get(),
                "sequence_number": header.sequence_number.get(),
                "file_write_guid": header.file_write_guid.to_string(),
                "data_write_guid": header.data_write_guid.to_string(),
                "log_guid": header.log_guid.to_string(),
                "log_version": header.log_version.get(),
                "version": header.version.get(),
                "log_length": header.log_length.get(),
                "log_offset": header.log_offset.get(),
            }),
        });
    }
    rows
}

fn region_rows(image: &Image) -> Vec<Value> {
    let row = |region: &vhdxkit::view::regions::Region| {
        json!({
            "region": region.name(),
            "entry_offset": region.entry_at,
            "guid": region.guid.to_string(),
            "file_offset": region.offset,
            "length": region.length,
            "required": region.required,
        })
    };
    image.regions().all().iter().map(row).collect()
}

fn metadata_rows(image: &Image) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    for item in image.metadata().items() {
        let flags = [
            (item.is_user(), "user"),
            (item.is_virtual_disk(), "virtual disk"),
            (item.is_required(), "required"),
        ];
        let flags: Vec<&str> =
            flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        let mut row = json!({
            "item": item.name(),
            "entry_offset": item.entry_at,
            "guid": item.id.to_string(),
            "file_offset": item.offset,
            "length": item.length,
            "flags": flags,
        });
        if item.id == metadata::PARENT_LOCATOR {
            for (key, value) in image.parent_locator().into_iter().flat_map(|l| l.pairs()) {
                row[key.as_str()] = json!(value);
            }
        } else {
            row["value"] = json!(item_value(image, item)?);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn item_value(
    image: &Image,
    item: &vhdxkit::view::metadata::MetadataItem,
) -> anyhow::Result<String> {
    let geometry = image.geometry();
    Ok(match item.id {
        metadata::FILE_PARAMETERS => {
            format!("block size {}, {}", geometry.block_size(), geometry.disk_type().name())
        }
        metadata::VIRTUAL_DISK_SIZE => geometry.virtual_size().to_string(),
        metadata::VIRTUAL_DISK_ID => geometry.disk_id().to_string(),
        metadata::LOGICAL_SECTOR_SIZE => geometry.logical_sector_size().to_string(),
        metadata::PHYSICAL_SECTOR_SIZE => geometry.physical_sector_size().to_string(),
        _ => {
            let mut bytes = vec![0; item.length.min(64) as usize];
            let read = image.storage().read_at(item.offset, &mut bytes)?;
            let hex: Vec<String> = bytes[..read].iter().map(|byte| format!("{byte:02x}")).collect();
            let more = if item.length > 64 { " …" } else { "" };
            format!("{}{more}", hex.join(" "))
        }
    })
}

/// One line per entry that is not zero, written as it is read: the table may be large.
fn dump_bat(image: &Image, context: Context) -> anyhow::Result<()> {
    let geometry = *image.geometry();
    let mut out = BufWriter::new(io::stdout().lock());
    if context.json {
        write!(out, "[")?;
    } else {
        writeln!(
            out,
            "BAT at {:#x}: {} entries, {} payload blocks of {} bytes, a bitmap entry after every {}",
            image.regions().bat().offset,
            geometry.bat_entries(),
            geometry.blocks(),
            geometry.block_size(),
            geometry.chunk_ratio()
        )?;
    }
    let mut separator = "\n  ";
    for index in 0..geometry.bat_entries() {
        let raw = image.bat_entry(index)?;
        if raw.0 == 0 {
            continue;
        }
        let state = PayloadState::from_raw(raw.state()).map_or("reserved", PayloadState::name);
        let (kind, number) = match geometry.slot(index) {
            BatSlot::Payload(block) => ("payload", Some(block)),
            BatSlot::Bitmap(chunk) => ("bitmap", Some(chunk)),
            BatSlot::Padding => ("padding", None),
        };
        let at = image.regions().bat().offset + index * 8;
        if context.json {
            let value = json!({
                "bat_index": index, "offset": at, "kind": kind, "number": number,
                "raw": format!("{:#018x}", raw.0), "state": state, "file_offset": raw.file_offset(),
            });
            write!(out, "{separator}{value}")?;
            separator = ",\n  ";
        } else {
            let number = number.map_or_else(|| "-".to_owned(), |n| n.to_string());
            writeln!(
                out,
                "{index:>10} at {at:#x}  {kind:<7} {number:>9}  {:#018x}  {state:<17} {:#x}",
                raw.0,
                raw.file_offset()
            )?;
        }
    }
    if context.json {
        writeln!(out, "\n]")?;
    }
    out.flush()?;
    Ok(())
}

fn bitmap_rows(image: &Image) -> anyhow::Result<Vec<Value>> {
    let geometry = *image.geometry();
    let mut rows = Vec::new();
    for chunk in 0..geometry.chunks() {
        let Some(at) = image.sector_bitmap(chunk)? else { continue };
        let mut set = 0u64;
        let mut buf = vec![0; 1 << 20];
        let read = image.storage().read_at(at, &mut buf)?;
        set += buf[..read].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let first = chunk * geometry.chunk_ratio();
        let last = (first + geometry.chunk_ratio()).min(geometry.blocks());
        let mut partial = Vec::new();
        for block in first..last {
            let raw = image.bat_entry(geometry.payload_index(block))?;
            if raw.state() == PayloadState::PartiallyPresent.to_raw() {
                partial.push(json!(block));
            }
        }
        rows.push(json!({
            "chunk": chunk,
            "bat_index": geometry.bitmap_index(chunk),
            "file_offset": at,
            "bits_set": set,
            "partial_blocks": partial,
        }));
    }
    Ok(rows)
}
