//! The head of the page: what this is, how it is, what to do about it. And its foot.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use vhdxkit::defect::Severity;
use vhdxkit::findings::Findings;
use vhdxkit::log::LogState;
use vhdxkit::ops::picture::{DiskState, FileOwner, Picture};
use vhdxkit::{Error, Image};

use super::markup::{Html, cut};
use super::{Facts, Mapped, percent};
use crate::commands::blocks::Blocks;
use crate::commands::findings::number_of;
use crate::commands::outlook::Outlook;
use crate::commands::verdict::{what_happened, what_is_safe};
use crate::console::{count, quoted, quoted_word, size};

/// What is worth giving back: this much, or a tenth of the file.
const WORTH_COMPACTING: u64 = 256 << 20;

/// The file's own name.
pub(super) fn name(path: &str) -> String {
    let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    cut(&name.unwrap_or_else(|| path.to_owned()), 120)
}

pub(super) fn write(html: &mut Html, facts: &Facts) {
    html.line("h1", &[], name(&facts.path));
    if let Ok(mapped) = &facts.mapped {
        let geometry = mapped.image.geometry();
        html.element("p", &[("class", &"what")], |html| {
            html.text(format_args!(
                "A {} disk of {} in a file of {}",
                geometry.disk_type().name(),
                size(geometry.virtual_size()),
                size(mapped.image.file_size())
            ));
        });
    }
    verdict(html, facts);
    match &facts.mapped {
        Ok(mapped) => key_facts(html, facts, mapped),
        Err(_) => headers(html, facts),
    }
}

/// A judgement in plain words.
struct Verdict {
    /// `good`, `fair` or `bad`: the class; and a sign that can be told without colours.
    class: &'static str,
    sign: &'static str,
    words: String,
    /// Commands to type, and what each is for.
    next: Vec<(String, &'static str)>,
}

fn verdict(html: &mut Html, facts: &Facts) {
    let Verdict { class, sign, words, next } = judge(facts);
    html.element(
        "div",
        &[("class", &format_args!("verdict {class}")), ("role", &"status")],
        |html| {
            html.element("p", &[], |html| {
                html.line("span", &[("class", &"sign"), ("aria-hidden", &"true")], sign);
                html.text(words);
            });
            if !next.is_empty() {
                html.element("ul", &[("class", &"next")], |html| {
                    for (command, purpose) in next {
                        html.element("li", &[], |html| {
                            html.line("code", &[], command);
                            html.line("span", &[], purpose);
                        });
                    }
                });
            }
        },
    );
}

fn bad(words: String, next: Vec<(String, &'static str)>) -> Verdict {
    Verdict { class: "bad", sign: "✗", words, next }
}

/// The gist of an error; the page has all of it further down.
fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn keep(image: &str) -> (String, &'static str) {
    (format!("cp --sparse=always {image} COPY"), "keep a copy before anything tries to mend it")
}

fn judge(facts: &Facts) -> Verdict {
    let image = quoted(Path::new(&facts.path));
    let of = |severity| facts.checked.iter().map(|c| number_of(&c.findings, severity)).sum::<u64>();
    let mapped = match &facts.mapped {
        Ok(mapped) => mapped,
        Err(error) => {
            let words = format!(
                "This image cannot be opened: {}. Below is what can be read of it.",
                first_line(error)
            );
            return judge_damaged(facts, &image, words);
        }
    };
    if let Some(verdict) = judge_chain(mapped, &image) {
        return verdict;
    }
    match of(Severity::Error) {
        0 => judge_readable(mapped, &image, of(Severity::Warning)),
        errors => {
            let errors = count(errors, "error was", "errors were");
            let damaged =
                mapped.picture.as_ref().map_or(0, |p| p.disk.totals.of(DiskState::Damaged));
            let words = match damaged {
                0 => format!("{errors} found."),
                bytes => {
                    let more = in_doubt(facts) > bytes;
                    let more = if more { ", and more of it may not be what it was" } else { "" };
                    format!("{errors} found: {} of the disk cannot be read{more}.", size(bytes))
                }
            };
            judge_damaged(facts, &image, words)
        }
    }
}

/// Bytes of the disk's blocks that are in doubt.
fn in_doubt(facts: &Facts) -> u64 {
    let Some(checked) = facts.checked.first() else { return 0 };
    let blocks = Blocks::of(&checked.path);
    blocks.map_or(0, |blocks| blocks.bytes(&checked.findings.doubtful_blocks()))
}

/// What is wrong, what is safe, what to type: as `check` has it.
fn judge_damaged(facts: &Facts, image: &str, words: String) -> Verdict {
    let findings = || facts.checked.iter().map(|checked| &checked.findings);
    let bad_ones =
        || findings().flat_map(Findings::list).filter(|found| found.severity() > Severity::Info);
    let mut next = vec![keep(image)];
    if Outlook::of(Path::new(&facts.path), true).mends {
        let command = format!("vhdx check {image} --repair --dry-run");
        next.push((command, "tells what a repair would do, and changes nothing"));
    }
    let command = format!("vhdx recover {image} --to NEW.vhdx");
    next.push((command, "gets everything that can be had, into another file"));
    let worst = findings().find(|findings| findings.has_problems());
    let blocks = Blocks::of(Path::new(&facts.path));
    let safe =
        worst.map_or_else(|| "the file".to_owned(), |findings| what_is_safe(findings, blocks));
    let overwritten = findings().any(Findings::is_table_overwritten);
    let happened = what_happened(bad_ones(), overwritten);
    let log = match facts.mapped.as_ref().map(|mapped| mapped.image.log().state()) {
        Ok(LogState::Invalid) => " Everything below is as it lies on disk, without its log.",
        _ => "",
    };
    bad(
        format!(
            "{words} What happened: {happened}. What is safe: {safe}; the file was not changed.{log}"
        ),
        next,
    )
}

/// A child whose parent is not there.
fn judge_chain(mapped: &Mapped, image: &str) -> Option<Verdict> {
    if let Some(problem) = &mapped.alone {
        let words = format!(
            "Its parent cannot be had, and what it holds of this disk is missing here: {}.",
            first_line(problem)
        );
        let next = vec![
            (format!("vhdx info --chain {image}"), "which parent it looks for, and where"),
            (
                format!("vhdx map --html PAGE --parent FILE {image}"),
                "this page, with the parent that you name",
            ),
            (format!("vhdx relink {image} --parent FILE"), "tell the image for good"),
        ];
        return Some(bad(words, next));
    }
    if mapped.image.geometry().is_differencing() && mapped.image.parent().is_none() {
        let words =
            "Shown without its parent, as it was asked for: what the parent holds is missing here.";
        let words = words.to_owned();
        return Some(Verdict { class: "fair", sign: "!", words, next: Vec::new() });
    }
    None
}

/// Every byte can be read: what is left to say.
fn judge_readable(mapped: &Mapped, image: &str, warnings: u64) -> Verdict {
    let (mut words, mut next) = (Vec::new(), Vec::new());
    let dirty = mapped.image.log().state() == LogState::Dirty;
    if dirty {
        let entries = mapped.image.log().active().map_or(0, |active| active.entries().len());
        let entries = count(entries as u64, "log entry waits", "log entries wait");
        words.push(format!(
            "The last writer did not finish: {entries} to be applied. Nothing is lost, every byte can be read; \
             this page shows the disk with them applied."
        ));
        next.push((format!("vhdx log replay {image}"), "apply them in the file"));
    }
    if warnings > 0 {
        let warnings = count(warnings, "warning", "warnings");
        words.push(format!("{warnings}; every byte can be read."));
        next.push((format!("vhdx check {image}"), "what breaks the format"));
    } else if !dirty {
        words.push("In order: no problem found, every byte can be read.".to_owned());
    }
    if let Some(waste) = mapped.picture.as_ref().ok().and_then(waste) {
        words.push(waste);
        next.push((
            format!("vhdx compact --dry-run {image}"),
            "how much of it would be given back",
        ));
    }
    let (class, sign) = if dirty || warnings > 0 { ("fair", "!") } else { ("good", "✓") };
    Verdict { class, sign, words: words.join(" "), next }
}

/// What the file holds without need, if it is worth a word.
fn waste(picture: &Picture) -> Option<String> {
    let free = picture.disk.totals.stored_free;
    let file = &picture.file;
    let unowned = file.totals.of(FileOwner::Gap)
        + file.totals.of(FileOwner::Tail)
        + file.totals.of(FileOwner::Retained);
    let worth = |bytes: u64| bytes >= WORTH_COMPACTING || bytes > 0 && bytes >= file.length / 10;
    let mut parts = Vec::new();
    if worth(free) {
        parts.push(format!("{} that the file systems on it call free", size(free)));
    }
    if worth(unowned) {
        parts.push(format!("{} that nothing on the disk needs", size(unowned)));
    }
    (!parts.is_empty()).then(|| format!("The file holds {}.", parts.join(", and ")))
}

fn key_facts(html: &mut Html, facts: &Facts, mapped: &Mapped) {
    let image = &mapped.image;
    let (geometry, header) = (image.geometry(), image.headers().current());
    let bytes = |number: u64| format!("{} ({number} bytes)", size(number));
    html.element("dl", &[("class", &"facts")], |html| {
        let mut fact = |name: &'static str, value: String| {
            html.element("div", &[], |html| {
                html.line("dt", &[], name);
                html.line("dd", &[], value);
            });
        };
        fact("Disk", bytes(geometry.virtual_size()));
        fact("File", bytes(image.file_size()));
        if let Some(allocated) = allocated(&facts.path) {
            fact("Takes on the host", bytes(allocated));
        }
        if let Ok(picture) = &mapped.picture {
            let stored = picture.disk.totals.of(DiskState::Data);
            fact(
                "Stored in this file",
                format!(
                    "{} ({} of the disk)",
                    size(stored),
                    percent(stored, geometry.virtual_size())
                ),
            );
        }
        fact("Blocks", format!("{} of {}", geometry.blocks(), size(geometry.block_size().into())));
        let (logical, physical) = (geometry.logical_sector_size(), geometry.physical_sector_size());
        fact("Sectors", format!("{logical} logical, {physical} physical"));
        fact("Log", log_state(image));
        fact("Made by", or_none(image.headers().creator()));
        fact("Disk identity", geometry.disk_id().to_string());
        fact("Data identity", header.data_write_guid.to_string());
    });
    chain(html, mapped);
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "(not given)".to_owned() } else { cut(text, 200) }
}

fn log_state(image: &Image) -> String {
    match image.log().state() {
        LogState::Clean => "clean".to_owned(),
        LogState::Dirty => "dirty: changes wait to be applied".to_owned(),
        LogState::Invalid => "invalid: cannot be applied".to_owned(),
    }
}

/// The parents, as far as they are known.
fn chain(html: &mut Html, mapped: &Mapped) {
    let Some(locator) = mapped.image.parent_locator() else { return };
    html.line("h2", &[], "Chain");
    html.element("ol", &[("class", &"chain")], |html| {
        for layer in mapped.image.layers().take(32) {
            let path = layer.path().map(|path| path.display().to_string()).unwrap_or_default();
            html.element("li", &[], |html| {
                html.line("code", &[], cut(&path, 300));
                let (kind, id) =
                    (layer.geometry().disk_type(), layer.headers().current().data_write_guid);
                html.text(format_args!(
                    " {}, {}, data identity {id}",
                    kind.name(),
                    size(layer.file_size())
                ));
            });
        }
        if let Some(problem) = &mapped.alone {
            html.element("li", &[], |html| {
                html.line("strong", &[], "Missing: ");
                html.text(problem);
                for key in ["relative_path", "absolute_win32_path", "volume_path"] {
                    if let Some(path) = locator.get(key) {
                        html.empty("br", &[]);
                        html.line("code", &[], cut(path, 300));
                        html.text(format_args!(" ({key})"));
                    }
                }
                if let Some(linkage) = locator.linkage() {
                    html.empty("br", &[]);
                    html.text(format_args!("known by its data identity {linkage}"));
                }
            });
        }
    });
    let layers = mapped.image.layers().count();
    if layers > 32 {
        html.line("p", &[], format_args!("and {} more", layers - 32));
    }
}

/// Both headers, for a file of which nothing else may be left.
fn headers(html: &mut Html, facts: &Facts) {
    html.line("h2", &[], "Headers");
    let pair = match &facts.headers {
        Ok(pair) => pair,
        Err(error) => return super::missing(html, "No header can be read.", error),
    };
    html.table(&["Copy", "State", "Sequence", "Data identity", "Log", "Log at"], |html| {
        for (number, copy) in pair.copies().iter().enumerate() {
            html.element("tr", &[], |html| {
                html.line("th", &[("scope", &"row")], number + 1);
                match copy {
                    Ok(header) => {
                        let current = number == pair.current_copy();
                        html.line("td", &[], if current { "current" } else { "older" });
                        html.line("td", &[("class", &"number")], header.sequence_number.get());
                        html.line("td", &[], header.data_write_guid);
                        html.line("td", &[], header.log_guid);
                        let (at, length) = (header.log_offset.get(), header.log_length.get());
                        html.line("td", &[], format_args!("{at:#x}, {}", size(length.into())));
                    }
                    Err(fault) => {
                        html.line("td", &[("colspan", &5)], format_args!("damaged: {fault}"));
                    }
                }
            });
        }
    });
}

/// Bytes that the host's file system has allocated to the file.
#[cfg(unix)]
fn allocated(path: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(path).ok()?.blocks() * 512)
}

#[cfg(not(unix))]
fn allocated(_: &str) -> Option<u64> {
    None
}

/// How the page was made.
pub(super) fn made(html: &mut Html, now: SystemTime) {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| quoted_argument(&argument.to_string_lossy()))
        .collect();
    html.element("p", &[], |html| {
        html.text(format_args!("vhdx {} · ", env!("CARGO_PKG_VERSION")));
        html.line("code", &[], cut(&format!("vhdx {}", arguments.join(" ")), 2000));
        html.text(format_args!(" · {}", utc(now)));
    });
}

fn quoted_argument(argument: &str) -> String {
    match argument.starts_with('-') {
        true if !argument.contains(char::is_whitespace) => argument.to_owned(),
        _ => quoted_word(argument),
    }
}

/// `2026-01-31 12:00 UTC`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut days, minutes) = (seconds / 86400, seconds / 60 % 1440);
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
