//! `vhdx log show`: the log as a story.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use serde_json::{Value, json};
use vhdxkit::format::Guid;
use vhdxkit::format::bat::RawEntry;
use vhdxkit::log::{Log, LogState};
use vhdxkit::ops::inspect::inspect_storage;
use vhdxkit::ops::timeline::{LogChange, LogTarget, TimelineEntry, for_each_entry};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::view::geometry::BatSlot;
use vhdxkit::view::headers::HeaderPair;

use super::Context;
use super::log_words::{self, state_name};
use crate::args::ImageArgs;
use crate::console::{count, named, quoted, size};
use anyhow::Context as _;

pub(crate) fn run(args: &ImageArgs, context: Context) -> anyhow::Result<()> {
    let named = || format!("cannot read the log of {}", args.image.display());
    let mode = OpenMode::ReadOnly { force_share: args.open.force_share };
    let file: Arc<dyn Storage> =
        Arc::new(FileStorage::open(&args.image, mode).with_context(named)?);
    let headers = HeaderPair::inspect(&*file).with_context(named)?;
    let log = Log::read_ring(&*file, &headers).with_context(named)?;
    // Names of blocks need the tables behind the log; a damaged file has its story told without.
    let image = inspect_storage(Arc::clone(&file));
    let mut out = BufWriter::new(io::stdout().lock());
    let mut teller = Teller { out: &mut out, json: context.json, first: true, session: None };
    teller.begin(args, &log)?;
    if let (Err(error), false) = (&image, context.json) {
        writeln!(teller.out, "(offsets only, the tables behind the log cannot be read: {error})")?;
    }
    let mut failure = None;
    for_each_entry(&*file, &log, image.as_ref().ok(), |entry| {
        if failure.is_none() {
            failure = teller.entry(&log, &entry).err();
        }
        Ok(())
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    teller.end(args, &log)?;
    out.flush()?;
    Ok(())
}

struct Teller<'a, W: Write> {
    out: &'a mut W,
    json: bool,
    first: bool,
    session: Option<Guid>,
}

impl<W: Write> Teller<'_, W> {
    fn begin(&mut self, args: &ImageArgs, log: &Log) -> anyhow::Result<()> {
        let length = log.place().map_or(0, |place| place.length);
        if self.json {
            let active = log.active().map(|active| {
                json!({
                    "first_sequence": active.entries().first().map(|e| e.sequence),
                    "last_sequence": active.head().map(|e| e.sequence),
                    "tail_offset": active.entries().first().map(|e| e.log_offset),
                    "entries": active.entries().len(),
                })
            });
            // Entries are written one by one: their list may be long.
            write!(
                self.out,
                "{{\n  \"state\": {},\n  \"guid\": {},\n  \"length\": {length},\n  \"active\": {},\n  \"entries\": [",
                json!(log.state().name()),
                json!(log.guid().to_string()),
                active.unwrap_or(Value::Null),
            )?;
            return Ok(());
        }
        let name = named(&args.image);
        match log.place() {
            Some(place) => {
                writeln!(
                    self.out,
                    "{name}: log of {} at {:#x}",
                    size(length.into()),
                    place.offset
                )?;
            }
            None => writeln!(self.out, "{name}: no log")?,
        }
        match (log.state(), log.active()) {
            (LogState::Dirty, Some(active)) => {
                let entries = active.entries().len() as u64;
                let entries = count(entries, "entry has", "entries have");
                writeln!(
                    self.out,
                    "The last writer did not finish: {entries} still to be applied."
                )?;
            }
            (LogState::Invalid, _) => writeln!(
                self.out,
                "The header names session {}, but no complete sequence of entries belongs to it.",
                log.guid()
            )?,
            _ if log.entries().is_empty() => writeln!(self.out, "The log is empty.")?,
            _ => writeln!(self.out, "Nothing is pending: what follows is history.")?,
        }
        Ok(())
    }

    fn entry(&mut self, log: &Log, told: &TimelineEntry) -> anyhow::Result<()> {
        if self.json {
            let separator = if self.first { "\n    " } else { ",\n    " };
            self.first = false;
            write!(self.out, "{separator}{}", entry_json(told))?;
            return Ok(());
        }
        let info = &told.entry.info;
        if self.session != Some(info.log_guid) {
            self.session = Some(info.log_guid);
            let current = !log.guid().is_zero() && info.log_guid == log.guid();
            let which = if current { "This session" } else { "An earlier session" };
            writeln!(self.out, "\n{which}, {}", info.log_guid)?;
        }
        let what = log_words::status(log, &told.entry);
        let place = format!("at {:#x}", info.log_offset);
        writeln!(
            self.out,
            "  entry {:<20} {place:<12} {:>9}  {what}",
            info.sequence,
            size(info.length.into())
        )?;
        for change in log_words::changes(told) {
            writeln!(self.out, "      {change}")?;
        }
        Ok(())
    }

    fn end(&mut self, args: &ImageArgs, log: &Log) -> anyhow::Result<()> {
        if self.json {
            let end = if self.first { "]\n}" } else { "\n  ]\n}" };
            writeln!(self.out, "{end}")?;
        } else if log.state() == LogState::Dirty {
            let name = quoted(&args.image);
            writeln!(
                self.out,
                "\nReading commands apply the pending entries in memory. To apply them in the file:\n  vhdx log replay {name}"
            )?;
        }
        Ok(())
    }
}

fn raw_json(raw: RawEntry) -> Value {
    let place = (raw.file_offset() != 0).then(|| raw.file_offset());
    json!({ "state": state_name(raw), "file_offset": place })
}

fn entry_json(told: &TimelineEntry) -> Value {
    let info = &told.entry.info;
    let descriptors: Vec<Value> = told.changes.iter().map(change_json).collect();
    json!({
        "offset": info.log_offset,
        "length": info.length,
        "sequence": info.sequence,
        "tail": info.tail,
        "guid": info.log_guid.to_string(),
        "flushed_file_offset": info.flushed_file_offset,
        "last_file_offset": info.last_file_offset,
        "status": told.entry.status.name(),
        "fault": told.entry.fault.as_ref().map(ToString::to_string),
        "descriptors": descriptors,
    })
}

fn change_json(change: &LogChange) -> Value {
    let mut value = json!({
        "kind": if change.zero { "zero" } else { "data" },
        "file_offset": change.file_offset,
        "length": change.length,
        "target": change.target.name(),
    });
    if change.target == LogTarget::Bat && !change.zero {
        let changes: Vec<Value> = change
            .bat_changes
            .iter()
            .map(|change| {
                let block = match change.slot {
                    BatSlot::Payload(block) => Some(block),
                    _ => None,
                };
                json!({
                    "bat_index": change.bat_index,
                    "block": block,
                    "before": change.before.map(raw_json),
                    "after": raw_json(change.after),
                })
            })
            .collect();
        value["changes"] = Value::Array(changes);
        if change.left_out > 0 {
            value["changes_left_out"] = json!(change.left_out);
        }
    }
    value
}
