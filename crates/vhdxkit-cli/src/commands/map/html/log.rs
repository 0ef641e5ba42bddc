//! The log: its ring as a strip, and its entries as a story.

use std::collections::VecDeque;
use std::sync::Arc;

use vhdxkit::Result;
use vhdxkit::log::{EntryStatus, Log, LogEntry, LogState};
use vhdxkit::ops::inspect::inspect_storage;
use vhdxkit::ops::timeline::for_each_entry;
use vhdxkit::storage::Storage;
use vhdxkit::view::headers::HeaderPair;

use super::markup::{Html, cut};
use super::{Facts, missing};
use crate::commands::log_words;
use crate::console::{count, size};

/// Entries that are told: the newest.
const MOST_ENTRIES: usize = 200;
/// Lines per entry.
const MOST_LINES: usize = 12;
/// Parts of the ring's strip.
const COLUMNS: u64 = 600;

/// What the page tells of a log.
pub(super) struct Story {
    log: Log,
    /// The newest entries, oldest first.
    told: VecDeque<Told>,
    /// Why blocks have no names.
    nameless: Option<vhdxkit::Error>,
}

struct Told {
    entry: LogEntry,
    lines: Vec<String>,
    more_lines: usize,
}

impl Story {
    pub(super) fn read(file: &Arc<dyn Storage>, headers: &HeaderPair) -> Result<Self> {
        let log = Log::read_ring(&**file, headers)?;
        let image = inspect_storage(Arc::clone(file));
        let mut told = VecDeque::new();
        for_each_entry(&**file, &log, image.as_ref().ok(), |entry| {
            if told.len() == MOST_ENTRIES {
                told.pop_front();
            }
            let mut lines = log_words::changes(&entry);
            let kept: Vec<String> = lines.by_ref().take(MOST_LINES).collect();
            let more_lines = lines.count();
            told.push_back(Told { lines: kept, more_lines, entry: entry.entry.clone() });
            Ok(())
        })?;
        Ok(Self { log, told, nameless: image.err() })
    }
}

pub(super) fn write(html: &mut Html, facts: &Facts) {
    let story = match &facts.story {
        Some(Ok(story)) => story,
        Some(Err(error)) => return missing(html, "The log cannot be read.", error),
        None => {
            return html.line(
                "p",
                &[("class", &"missing")],
                "No header can be read, and it alone tells where the log lies.",
            );
        }
    };
    let Some(place) = story.log.place() else {
        return html.line("p", &[], "The header names no place for a log that could be used.");
    };
    let place_text = format!("{} at {:#x}.", size(place.length.into()), place.offset);
    html.element("p", &[], |html| {
        html.text(place_text);
        html.text(" ");
        html.text(state(&story.log));
    });
    if story.log.entries().is_empty() {
        return;
    }
    if let Some(error) = &story.nameless {
        missing(html, "Offsets only: the tables behind the log cannot be read.", error);
    }
    strip(html, &story.log, place.length);
    entries(html, story);
}

fn state(log: &Log) -> String {
    match (log.state(), log.active()) {
        (LogState::Dirty, Some(active)) => {
            let entries = count(active.entries().len() as u64, "entry has", "entries have");
            format!("The last writer did not finish: {entries} still to be applied.")
        }
        (LogState::Invalid, _) => format!(
            "The header names session {}, but no complete sequence of entries belongs to it.",
            log.guid()
        ),
        _ if log.entries().is_empty() => "It is empty.".to_owned(),
        _ => "Nothing is pending: what follows is history.".to_owned(),
    }
}

/// The statuses as they are drawn: class, name in the legend, and who covers whom.
const STATUSES: [(EntryStatus, &str, &str); 4] = [
    (EntryStatus::Foreign, "l-foreign", "history: an earlier session"),
    (EntryStatus::Superseded, "l-superseded", "superseded, or in place already"),
    (EntryStatus::Torn, "l-torn", "torn: does not count"),
    (EntryStatus::Active, "l-active", "active: to be applied"),
];

fn rank(status: EntryStatus) -> usize {
    STATUSES.iter().position(|(known, ..)| *known == status).unwrap_or_default()
}

/// The ring from its first sector to its last. In a part that several entries share the weightiest shows.
fn strip(html: &mut Html, log: &Log, length: u32) {
    let (length, mut columns) = (u64::from(length).max(1), vec![None; COLUMNS as usize]);
    let mut seen = [0u64; STATUSES.len()];
    for entry in log.entries() {
        let rank = rank(entry.status);
        seen[rank] += 1;
        let start = u64::from(entry.info.log_offset) % length;
        // A torn entry may claim any length.
        let bytes = u64::from(entry.info.length)
            .clamp(1, if entry.fault.is_some() { 4096 } else { length });
        let (first, last) = (start * COLUMNS / length, (start + bytes - 1) * COLUMNS / length);
        for column in first..=last.min(first + COLUMNS - 1) {
            let column = &mut columns[(column % COLUMNS) as usize];
            *column = (*column).max(Some(rank));
        }
    }
    let label = "The ring from its first sector to its last, by the status of what lies there";
    html.element(
        "svg",
        &[
            ("class", &"strip"),
            ("viewBox", &"0 0 1200 40"),
            ("preserveAspectRatio", &"none"),
            ("role", &"img"),
            ("aria-label", &label),
        ],
        |html| {
            html.empty("rect", &[("class", &"s-none"), ("width", &1200), ("height", &40)]);
            let mut at = 0;
            for run in columns.chunk_by(|a, b| a == b) {
                if let Some(rank) = run[0] {
                    let (_, class, words) = STATUSES[rank];
                    html.element(
                        "rect",
                        &[
                            ("class", &class),
                            ("x", &(at * 2)),
                            ("width", &(run.len() * 2)),
                            ("height", &40),
                        ],
                        |html| html.line("title", &[], words),
                    );
                }
                at += run.len();
            }
        },
    );
    html.element("ul", &[("class", &"legend")], |html| {
        for ((_, class, words), seen) in
            STATUSES.iter().zip(seen).rev().filter(|(_, seen)| *seen > 0)
        {
            html.element("li", &[], |html| {
                super::swatch(html, &[class]);
                html.text(format_args!("{words}: {}", count(seen, "entry", "entries")));
            });
        }
    });
}

fn entries(html: &mut Html, story: &Story) {
    let earlier = story.log.entries().len() - story.told.len();
    if earlier > 0 {
        html.line("p", &[], format_args!("The newest {MOST_ENTRIES} entries; {earlier} earlier ones are not listed (vhdx log show lists all)."));
    }
    let current = story.log.guid();
    html.table(&["Sequence", "At", "Length", "Status", "What it changed"], |html| {
        let mut session = None;
        for told in &story.told {
            let info = &told.entry.info;
            if session != Some(info.log_guid) {
                session = Some(info.log_guid);
                let ours = !current.is_zero() && info.log_guid == current;
                let which = if ours { "This session" } else { "An earlier session" };
                html.element("tr", &[("class", &"session")], |html| {
                    html.line(
                        "th",
                        &[("colspan", &5), ("scope", &"rowgroup")],
                        format_args!("{which}, {}", info.log_guid),
                    );
                });
            }
            entry(html, &story.log, told);
        }
    });
}

fn entry(html: &mut Html, log: &Log, told: &Told) {
    let info = &told.entry.info;
    html.element("tr", &[("class", &told.entry.status.name())], |html| {
        html.line("td", &[("class", &"number")], info.sequence);
        html.line("td", &[("class", &"number")], format_args!("{:#x}", info.log_offset));
        html.line("td", &[("class", &"number")], size(info.length.into()));
        html.line("td", &[], cut(&log_words::status(log, &told.entry), 300));
        html.element("td", &[], |html| {
            for (number, line) in told.lines.iter().enumerate() {
                if number > 0 {
                    html.empty("br", &[]);
                }
                html.text(line);
            }
            if told.more_lines > 0 {
                html.empty("br", &[]);
                html.text(format_args!("and {} more", told.more_lines));
            }
        });
    });
}
