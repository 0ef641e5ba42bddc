//! What entries of a log did, in words.

use vhdxkit::format::bat::{PayloadState, RawEntry};
use vhdxkit::log::{EntryStatus, Log, LogEntry};
use vhdxkit::ops::timeline::{BatChange, LogChange, LogTarget, TimelineEntry};
use vhdxkit::view::geometry::BatSlot;

use crate::console::{count, size};

/// What an entry is to the file.
pub(super) fn status(log: &Log, entry: &LogEntry) -> String {
    match (entry.status, &entry.fault) {
        (EntryStatus::Active, _) => "TO BE APPLIED".to_owned(),
        (EntryStatus::Superseded, _) if is_retired(log, entry.info.sequence) => {
            "already in place".to_owned()
        }
        (EntryStatus::Superseded, _) => "superseded, not replayed".to_owned(),
        (EntryStatus::Foreign, _) => "history".to_owned(),
        (EntryStatus::Torn, Some(fault)) => format!("TORN, does not count: {fault}"),
        (EntryStatus::Torn, None) => "TORN, does not count".to_owned(),
    }
}

/// What it changed, line by line, as the lines are asked for.
pub(super) fn changes(told: &TimelineEntry) -> impl Iterator<Item = String> + '_ {
    let empty = told.entry.status != EntryStatus::Torn && told.changes.is_empty();
    let empty = empty.then(|| "empty: opens a session or moves its tail on".to_owned());
    empty.into_iter().chain(told.changes.iter().flat_map(change))
}

fn change(change: &LogChange) -> Box<dyn Iterator<Item = String> + '_> {
    let LogChange { zero, file_offset, length, target, bat_changes, left_out } = change;
    let target = match target {
        LogTarget::Bat => "block table",
        LogTarget::SectorBitmap => "sector bitmap",
        LogTarget::Metadata => "metadata",
        LogTarget::RegionTable => "region table",
        LogTarget::Other => "file",
    };
    if *zero {
        let line = format!("zeroes {} of the {target} at {file_offset:#x}", size(*length));
        return Box::new(std::iter::once(line));
    }
    let more = (*left_out > 0).then(|| format!("and {left_out} more changes"));
    match bat_changes.as_slice() {
        [] => {
            let line = format!("writes 4 KiB of the {target} at {file_offset:#x}");
            Box::new(std::iter::once(line).chain(more))
        }
        changes if changes.len() > 4 && changes.iter().all(|c| c.before.is_none()) => {
            let used = count(changes.len() as u64, "entry", "entries");
            let line = format!(
                "writes 4 KiB of the {target} at {file_offset:#x}: {used} in use, what changed is not known"
            );
            Box::new(std::iter::once(line).chain(more))
        }
        changes => Box::new(changes.iter().map(bat_text).chain(more)),
    }
}

/// Whether the newest entry says that this one of its session was in place before.
fn is_retired(log: &Log, sequence: u64) -> bool {
    let first = log.active().and_then(|active| active.entries().first());
    first.is_some_and(|first| sequence < first.sequence)
}

/// The name of a block's state.
pub(super) fn state_name(raw: RawEntry) -> &'static str {
    PayloadState::from_raw(raw.state()).map_or("reserved", PayloadState::name)
}

fn bat_text(change: &BatChange) -> String {
    let who = match change.slot {
        BatSlot::Payload(block) => format!("block {block}"),
        BatSlot::Bitmap(chunk) => format!("sector bitmap of chunk {chunk}"),
        BatSlot::Padding => format!("entry {}", change.bat_index),
    };
    let put = |raw: RawEntry| match raw.file_offset() {
        0 => state_name(raw).replace('_', " "),
        at => format!("{} at {at:#x}", state_name(raw).replace('_', " ")),
    };
    match change.before {
        Some(before) => format!("{who}: {} -> {}", put(before), put(change.after)),
        None => format!("{who}: now {}", put(change.after)),
    }
}
