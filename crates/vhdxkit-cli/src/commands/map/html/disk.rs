//! The virtual disk: a grid of cells, row by row, with what lies on it.

use vhdxkit::ops::partitions::Volume;
use vhdxkit::ops::picture::{DiskCell, DiskPicture, DiskState};

use super::markup::{Html, cut};
use super::{Facts, missing, percent, range_text, swatch};
use crate::commands::ls;
use crate::console::{count, size};

/// Cells of a row: with cells of a power of two, a row begins at a round offset.
const COLUMNS: usize = 128;
/// Bytes of the page's width for a cell, and for its row with the band of partitions under it.
const CELL: usize = 9;
const BAND: usize = 3;
/// Where the grid begins; left of it stand the offsets.
const LEFT: usize = 70;
/// Volumes that are drawn and listed.
const MOST_VOLUMES: usize = 64;

/// State, class, name in the legend, and the word in a cell's own text.
const STATES: [(DiskState, &str, &str, &str); 10] = [
    (DiskState::Data, "s-data", "data, stored in this file", "stored here"),
    (DiskState::Parent, "s-parent", "data, stored in the parent", "in the parent"),
    (
        DiskState::Grandparent,
        "s-grandparent",
        "data, stored in the parent's parent",
        "in the parent's parent",
    ),
    (
        DiskState::Ancestor,
        "s-ancestor",
        "data, stored further down the chain",
        "further down the chain",
    ),
    (DiskState::Zero, "s-zero", "zeros, by the guest's word", "zeros"),
    (
        DiskState::Unmapped,
        "s-unmapped",
        "trimmed: given back by the guest, reads as zeros",
        "trimmed",
    ),
    (
        DiskState::Undefined,
        "s-undefined",
        "undefined: contents do not matter, reads as zeros",
        "undefined",
    ),
    (
        DiskState::NotPresent,
        "s-none",
        "not present: never written, reads as zeros",
        "never written",
    ),
    (
        DiskState::ParentMissing,
        "s-missing",
        "the parent's, which is not at hand",
        "the missing parent's",
    ),
    (DiskState::Damaged, "s-damaged", "damaged: cannot be read", "DAMAGED"),
];

pub(super) fn write(html: &mut Html, facts: &Facts) {
    let mapped = match &facts.mapped {
        Ok(mapped) => mapped,
        Err(error) => return missing(html, "The map of the disk cannot be shown.", error),
    };
    let volumes = mapped.volumes.as_deref().unwrap_or_default();
    match &mapped.picture {
        Ok(picture) => {
            let disk = &picture.disk;
            html.line(
                "p",
                &[],
                format_args!(
                    "Row by row from the first byte to the last; a cell is {}, a row {}. Fuller cells are stronger in colour. Point at a cell to see its exact range.",
                    size(disk.cell_bytes),
                    size(disk.cell_bytes.saturating_mul(COLUMNS as u64))
                ),
            );
            if !volumes.is_empty() {
                bar(html, volumes, mapped.image.virtual_size());
            }
            grid(html, disk, volumes, mapped.image.virtual_size());
            legend(html, disk);
        }
        Err(error) => missing(html, "The map of the disk cannot be shown.", error),
    }
    html.line("h3", &[], "Partitions and file systems");
    match &mapped.volumes {
        Ok(volumes) => table(html, volumes),
        Err(error) => missing(html, "They cannot be read.", error),
    }
}

/// How a cell is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    class: &'static str,
    /// 1 to 4: how full.
    level: u64,
}

/// Damage is never hidden by what lies around it, and data only by damage.
fn look(cell: &DiskCell) -> Look {
    let class_of =
        |state| STATES.iter().find(|(known, ..)| *known == state).map_or("s-none", |found| found.1);
    let most =
        |states: &mut dyn Iterator<Item = DiskState>| states.max_by_key(|state| cell.of(*state));
    let level = |bytes: u64| {
        (u128::from(bytes) * 4).div_ceil(u128::from(cell.sum().max(1))).clamp(1, 4) as u64
    };
    if cell.of(DiskState::Damaged) > 0 {
        return Look { class: class_of(DiskState::Damaged), level: 4 };
    }
    let stored = cell.stored();
    if stored > 0 {
        let state = most(&mut DiskState::ALL.into_iter().filter(|state| state.is_stored()));
        return Look { class: class_of(state.unwrap_or(DiskState::Data)), level: level(stored) };
    }
    let state = most(&mut DiskState::ALL.into_iter()).unwrap_or(DiskState::NotPresent);
    Look { class: class_of(state), level: level(cell.of(state)) }
}

fn grid(html: &mut Html, disk: &DiskPicture, volumes: &[Volume], disk_size: u64) {
    let partitioned = volumes.iter().any(|volume| volume.partition.is_some());
    let pitch = CELL + if partitioned { BAND + 1 } else { 1 };
    let rows = disk.cells.len().div_ceil(COLUMNS);
    let view = format!("0 0 {} {}", LEFT + COLUMNS * CELL, rows * pitch);
    let label = "The map of the disk; the table below has the numbers";
    let attributes: super::markup::Attributes<'_> =
        &[("class", &"grid"), ("viewBox", &view), ("role", &"img"), ("aria-label", &label)];
    html.element("div", &[("class", &"wide")], |html| {
        html.element("svg", attributes, |html| {
            for (row, cells) in disk.cells.chunks(COLUMNS).enumerate() {
                let y = row * pitch;
                if row % 4 == 0 {
                    let start = (row * COLUMNS) as u64 * disk.cell_bytes;
                    let at = exactly(start);
                    html.line(
                        "text",
                        &[("x", &(LEFT - 6)), ("y", &(y + CELL - 1)), ("text-anchor", &"end")],
                        at,
                    );
                }
                draw_row(html, disk, disk_size, row, cells, y);
            }
            html.empty("path", &[("class", &"free"), ("d", &free_cells(disk, pitch))]);
            lines(html, disk.cells.len(), pitch);
            if partitioned {
                for row in 0..rows {
                    band(html, volumes, disk, row, row * pitch + CELL);
                }
            }
        });
    });
}

/// A round offset in the largest unit that it is a multiple of.
fn exactly(offset: u64) -> String {
    let shift = [40, 30, 20, 10].into_iter().find(|shift| offset >> shift << shift == offset);
    if offset == 0 { "0".to_owned() } else { size_in(offset, shift.unwrap_or(0)) }
}

fn size_in(bytes: u64, shift: u32) -> String {
    let unit = match shift {
        40 => "TiB",
        30 => "GiB",
        20 => "MiB",
        10 => "KiB",
        _ => "bytes",
    };
    format!("{} {unit}", bytes >> shift)
}

/// Neighbours that look the same are one rectangle; its text tells their range together.
fn draw_row(
    html: &mut Html,
    disk: &DiskPicture,
    disk_size: u64,
    row: usize,
    cells: &[DiskCell],
    y: usize,
) {
    let mut at = 0;
    for run in cells.chunk_by(|a, b| look(a) == look(b)) {
        let Look { class, level } = look(&run[0]);
        let start = (row * COLUMNS + at) as u64 * disk.cell_bytes;
        let end = (start + run.len() as u64 * disk.cell_bytes).min(disk_size);
        let class = format!("{class} q{level}");
        let (x, width) = (LEFT + at * CELL, run.len() * CELL);
        if class != "s-none q4" && level < 4 {
            html.empty(
                "rect",
                &[("class", &"s-none"), ("x", &x), ("y", &y), ("width", &width), ("height", &CELL)],
            );
        }
        html.element(
            "rect",
            &[("class", &class), ("x", &x), ("y", &y), ("width", &width), ("height", &CELL)],
            |html| {
                html.line("title", &[], format_args!("{}: {}", range_text(start, end), words(run)));
            },
        );
        at += run.len();
    }
}

fn words(run: &[DiskCell]) -> String {
    let of = |bytes: &dyn Fn(&DiskCell) -> u64| run.iter().map(bytes).sum::<u64>();
    let mut parts: Vec<String> = STATES
        .iter()
        .map(|(state, _, _, word)| (of(&|cell| cell.of(*state)), word))
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, word)| format!("{} {word}", size(bytes)))
        .collect();
    let free = of(&|cell| cell.free);
    if free > 0 {
        parts.push(format!("{} free in its file system", size(free)));
    }
    parts.join(", ")
}

/// Cells that are free by half or more, as one path.
fn free_cells(disk: &DiskPicture, pitch: usize) -> String {
    let mut path = String::new();
    for (row, cells) in disk.cells.chunks(COLUMNS).enumerate() {
        let mut at = 0;
        for run in cells.chunk_by(|a, b| is_free(a) == is_free(b)) {
            if is_free(&run[0]) {
                let (x, y, width) = (LEFT + at * CELL, row * pitch, run.len() * CELL);
                path.push_str(&format!("M{x} {y}h{width}v{CELL}h-{width}z"));
            }
            at += run.len();
        }
    }
    path
}

fn is_free(cell: &DiskCell) -> bool {
    cell.free > 0 && cell.free >= cell.sum() / 2
}

/// The lines between the cells: over the rectangles, so that a long one is still so many cells.
fn lines(html: &mut Html, cells: usize, pitch: usize) {
    let (columns, rows) = (cells.min(COLUMNS), cells.div_ceil(COLUMNS));
    let height = rows.saturating_sub(1) * pitch + CELL;
    let path: String =
        (1..columns).map(|column| format!("M{} 0v{height}", LEFT + column * CELL)).collect();
    html.empty("path", &[("class", &"lines"), ("d", &path)]);
}

/// The partitions under a row.
fn band(html: &mut Html, volumes: &[Volume], disk: &DiskPicture, row: usize, y: usize) {
    let row_bytes = disk.cell_bytes * COLUMNS as u64;
    let (start, end) = (row as u64 * row_bytes, (row as u64 + 1) * row_bytes);
    let across =
        |bytes: u64| (u128::from(bytes) * (COLUMNS * CELL) as u128 / u128::from(row_bytes)) as u64;
    for (number, volume) in volumes.iter().take(MOST_VOLUMES).enumerate() {
        let (from, to) = (volume.range.start.max(start), volume.range.end.min(end));
        if from >= to {
            continue;
        }
        let (x, stop) = (across(from - start), across(to - start));
        html.element(
            "rect",
            &[
                ("class", &shade(number)),
                ("x", &(LEFT as u64 + x)),
                ("y", &y),
                ("width", &(stop - x).max(2)),
                ("height", &(BAND - 1)),
            ],
            |html| html.line("title", &[], name(volume)),
        );
    }
}

/// Neighbours differ, without colours too.
fn shade(number: usize) -> &'static str {
    ["p-one", "p-two", "p-three"][number % 3]
}

fn name(volume: &Volume) -> String {
    cut(&format!("{}: {}", ls::place(volume), ls::contents(volume)), 120)
}

/// The partitions to scale, with their names.
fn bar(html: &mut Html, volumes: &[Volume], disk_size: u64) {
    const HEIGHT: u64 = 24;
    let (left, width) = (LEFT as u64, (COLUMNS * CELL) as u64);
    let view = format!("0 0 {} {}", left + width, HEIGHT + 4);
    let across =
        |bytes: u64| (u128::from(bytes) * u128::from(width) / u128::from(disk_size.max(1))) as u64;
    let label = "The partitions of the disk, to scale; the table below lists them";
    html.element("div", &[("class", &"wide")], |html| {
        html.element(
            "svg",
            &[("class", &"bar"), ("viewBox", &view), ("role", &"img"), ("aria-label", &label)],
            |html| {
                html.empty(
                    "rect",
                    &[("class", &"frame"), ("x", &left), ("width", &width), ("height", &HEIGHT)],
                );
                for (number, volume) in volumes.iter().take(MOST_VOLUMES).enumerate() {
                    let (x, end) =
                        (left + across(volume.range.start), left + across(volume.range.end));
                    let width = (end.saturating_sub(x)).max(2);
                    let class = format!("part {}", shade(number));
                    html.element(
                        "rect",
                        &[("class", &class), ("x", &x), ("width", &width), ("height", &HEIGHT)],
                        |html| html.line("title", &[], name(volume)),
                    );
                    // A letter takes about seven units.
                    let room = (width / 8) as usize;
                    if room >= 2 {
                        let text = match &volume.partition {
                            Some(partition) => {
                                format!("{} {}", partition.number, ls::contents(volume))
                            }
                            None => ls::contents(volume),
                        };
                        let class = format!("on-{}", shade(number));
                        html.line(
                            "text",
                            &[("class", &class), ("x", &(x + 5)), ("y", &16)],
                            cut(&text, room.saturating_sub(1)),
                        );
                    }
                }
            },
        );
    });
}

fn legend(html: &mut Html, disk: &DiskPicture) {
    let whole = disk.totals.sum();
    html.table(&["Colour", "State", "Cells", "Size", "Bytes", "Share"], |html| {
        let mut row = |classes: &[&str], words: &str, bytes: u64, cells: usize| {
            html.element("tr", &[], |html| {
                html.element("td", &[], |html| swatch(html, classes));
                html.line("td", &[], words);
                html.line("td", &[("class", &"number")], cells);
                html.line("td", &[("class", &"number")], size(bytes));
                html.line("td", &[("class", &"number")], bytes);
                html.line("td", &[("class", &"number")], percent(bytes, whole));
            });
        };
        let cells = |bytes: &dyn Fn(&DiskCell) -> u64| {
            disk.cells.iter().filter(|cell| bytes(cell) > 0).count()
        };
        for (state, class, words, _) in STATES {
            let bytes = disk.totals.of(state);
            if bytes > 0 {
                row(&[class], words, bytes, cells(&|cell| cell.of(state)));
            }
        }
        if disk.totals.free > 0 {
            row(
                &["free"],
                "free, say the file systems on the disk",
                disk.totals.free,
                cells(&|cell| cell.free),
            );
        }
        if disk.totals.stored_free > 0 {
            let words = "of that, stored in this file: compaction may give it back";
            row(
                &["s-data", "free"],
                words,
                disk.totals.stored_free,
                cells(&|cell| cell.stored_free),
            );
        }
    });
    html.element("p", &[("class", &"levels")], |html| {
        html.text("How full a cell is:");
        for (class, words) in [
            ("s-data q1", "up to a quarter"),
            ("s-data q2", "half"),
            ("s-data q3", "three quarters"),
            ("s-data q4", "all of it"),
        ] {
            swatch(html, &[class]);
            html.text(words);
        }
    });
}

fn table(html: &mut Html, volumes: &[Volume]) {
    let heads = ["Colour", "Place", "Contents", "Range on the disk", "Used", "Free", "State"];
    html.table(&heads, |html| {
        for (number, volume) in volumes.iter().take(MOST_VOLUMES).enumerate() {
            html.element("tr", &[], |html| {
                html.element("td", &[], |html| swatch(html, &[shade(number)]));
                html.element("td", &[], |html| {
                    html.text(ls::place(volume));
                    if let Some(partition) = &volume.partition {
                        html.empty("br", &[]);
                        let kind = partition.kind.to_string();
                        let label = if partition.name.is_empty() {
                            kind
                        } else {
                            format!("{kind}, “{}”", partition.name)
                        };
                        html.line("small", &[], cut(&label, 120));
                    }
                });
                html.line("td", &[], cut(&ls::contents(volume), 120));
                html.line("td", &[], range_text(volume.range.start, volume.range.end));
                match &volume.space {
                    Ok(survey) => {
                        let free = survey.free.bytes();
                        html.line(
                            "td",
                            &[("class", &"number")],
                            size(survey.length.saturating_sub(free)),
                        );
                        html.line("td", &[("class", &"number")], size(free));
                        let state = survey.unclean.as_deref();
                        let state = state
                            .map_or_else(|| "clean".to_owned(), |why| format!("not clean: {why}"));
                        html.line("td", &[], cut(&state, 300));
                    }
                    Err(trouble) => {
                        html.line(
                            "td",
                            &[("class", &"number"), ("colspan", &2)],
                            "all counts as used",
                        );
                        html.line("td", &[], cut(&trouble.to_string(), 300));
                    }
                }
            });
        }
    });
    if volumes.len() > MOST_VOLUMES {
        let more = count(
            (volumes.len() - MOST_VOLUMES) as u64,
            "more partition is",
            "more partitions are",
        );
        html.line("p", &[], format_args!("{more} not shown; vhdx ls lists all."));
    }
}
