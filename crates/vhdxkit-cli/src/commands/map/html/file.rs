//! The file: who owns what of it, and how far it lies in the order of the disk.

use vhdxkit::ops::picture::{FileCell, FileOwner, FilePicture, Order, Scatter};

use super::markup::Html;
use super::{Facts, Mapped, missing, percent, range_text, swatch};
use crate::console::{count, size};

const WIDTH: u64 = 1200;
const HEIGHT: u64 = 56;
/// What is there at all shows with at least this height, of [`HEIGHT`].
const LEAST_HEIGHT: u64 = 8;
/// Regions that are listed.
const MOST_REGIONS: usize = 32;

const OWNERS: [(FileOwner, &str, &str); 10] = [
    (FileOwner::Header, "o-header", "headers and region tables"),
    (FileOwner::Log, "o-log", "log"),
    (FileOwner::Bat, "o-bat", "block allocation table (BAT)"),
    (FileOwner::Metadata, "o-metadata", "metadata"),
    (FileOwner::OtherRegion, "o-other", "other regions"),
    (
        FileOwner::SectorBitmap,
        "o-bitmap",
        "sector bitmaps: which sectors of partly stored blocks are here",
    ),
    (FileOwner::Payload, "o-payload", "payload: blocks with data"),
    (FileOwner::Retained, "o-retained", "kept by trimmed blocks, reads as zeros"),
    (FileOwner::Gap, "o-gap", "gaps: nobody's"),
    (FileOwner::Tail, "o-tail", "tail: nobody's, up to the end of the file"),
];

pub(super) fn write(html: &mut Html, facts: &Facts) {
    let mapped = match &facts.mapped {
        Ok(mapped) => mapped,
        Err(error) => return missing(html, "What lies where in the file cannot be shown.", error),
    };
    let picture = match &mapped.picture {
        Ok(picture) => &picture.file,
        Err(error) => return missing(html, "What lies where in the file cannot be shown.", error),
    };
    html.line(
        "p",
        &[],
        format_args!("From its first byte to its last, {} in all.", size(picture.length)),
    );
    strip(html, picture);
    owners(html, picture);
    structures(html, mapped);
    html.line("h3", &[], "Fragmentation");
    order(html, &picture.order, u64::from(mapped.image.geometry().block_size()));
    if picture.order.blocks > 0 {
        scatter(html, &picture.scatter, mapped.image.virtual_size(), picture.length);
    }
}

/// Each column is a part of the file, split by its owners; what is small stays visible.
fn strip(html: &mut Html, picture: &FilePicture) {
    let label = "The file from its first byte to its last, each part coloured by who owns it; the table below has the numbers";
    let cells = picture.cells.len().max(1) as u64;
    let view = format!("0 0 {WIDTH} {HEIGHT}");
    html.element(
        "svg",
        &[
            ("class", &"strip"),
            ("viewBox", &view),
            ("preserveAspectRatio", &"none"),
            ("role", &"img"),
            ("aria-label", &label),
        ],
        |html| {
            let mut at = 0u64;
            for run in picture.cells.chunk_by(|a, b| heights(a) == heights(b)) {
                let (first, last) = (at, at + run.len() as u64);
                at = last;
                let (x, end) = (first * WIDTH / cells, last * WIDTH / cells);
                let start = first * picture.cell_bytes;
                let stop = (last * picture.cell_bytes).min(picture.length);
                html.element("g", &[], |html| {
                    column(html, &heights(&run[0]), x, end - x);
                    html.line(
                        "title",
                        &[],
                        format_args!("{}: {}", range_text(start, stop), words(run)),
                    );
                });
            }
        },
    );
    html.element("p", &[("class", &"scale"), ("aria-hidden", &"true")], |html| {
        for quarter in 0..=4 {
            html.line(
                "span",
                &[],
                size(
                    picture.length / 4 * quarter
                        + if quarter == 4 { picture.length % 4 } else { 0 },
                ),
            );
        }
    });
}

/// How much of a column each owner gets.
fn heights(cell: &FileCell) -> [u64; OWNERS.len()] {
    let sum = cell.sum().max(1);
    let mut heights = OWNERS.map(|(owner, ..)| match cell.of(owner) {
        0 => 0,
        bytes => {
            ((u128::from(bytes) * u128::from(HEIGHT) / u128::from(sum)) as u64).max(LEAST_HEIGHT)
        }
    });
    // The largest makes room for what was made visible.
    let total: u64 = heights.iter().sum();
    if let Some(largest) = heights.iter_mut().max() {
        *largest = (*largest + HEIGHT).saturating_sub(total);
    }
    heights
}

fn column(html: &mut Html, heights: &[u64], x: u64, width: u64) {
    let mut y = 0;
    for ((_, class, _), height) in OWNERS.iter().zip(heights).filter(|(_, height)| **height > 0) {
        html.empty(
            "rect",
            &[("class", class), ("x", &x), ("y", &y), ("width", &width), ("height", height)],
        );
        y += height;
    }
}

fn words(run: &[FileCell]) -> String {
    let of = |owner| run.iter().map(|cell| cell.of(owner)).sum::<u64>();
    let parts: Vec<String> = OWNERS
        .iter()
        .map(|(owner, _, words)| (of(*owner), words.split(':').next().unwrap_or(words)))
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, words)| format!("{words} {}", size(bytes)))
        .collect();
    parts.join(", ")
}

fn owners(html: &mut Html, picture: &FilePicture) {
    html.table(&["Colour", "Owner", "Size", "Bytes", "Share"], |html| {
        for (owner, class, words) in OWNERS {
            let bytes = picture.totals.of(owner);
            if bytes == 0 {
                continue;
            }
            html.element("tr", &[], |html| {
                html.element("td", &[], |html| swatch(html, &[class]));
                html.line("td", &[], words);
                html.line("td", &[("class", &"number")], size(bytes));
                html.line("td", &[("class", &"number")], bytes);
                html.line("td", &[("class", &"number")], percent(bytes, picture.length));
            });
        }
    });
    if picture.shared_blocks > 0 {
        let blocks = count(picture.shared_blocks, "block claims", "blocks claim");
        html.line(
            "p",
            &[("class", &"missing")],
            format_args!(
                "{blocks} bytes of the file that another owner has, too: see the findings."
            ),
        );
    }
}

/// The structures of a fixed place.
fn structures(html: &mut Html, mapped: &Mapped) {
    let regions = mapped.image.regions().all();
    html.line("h3", &[], "Structures");
    html.table(&["Structure", "Bytes of the file"], |html| {
        let mut row = |name: &str, start: u64, end: u64| {
            html.element("tr", &[], |html| {
                html.line("td", &[], name);
                html.line("td", &[], range_text(start, end));
            });
        };
        row("file identifier, headers, region tables", 0, 1 << 20);
        if let Some(log) = mapped.image.log().place() {
            row("log", log.offset, log.end());
        }
        for region in regions.iter().take(MOST_REGIONS) {
            row(&format!("{} region", region.name()), region.offset, region.end());
        }
    });
    if regions.len() > MOST_REGIONS {
        html.line("p", &[], format_args!("and {} more regions", regions.len() - MOST_REGIONS));
    }
}

fn order(html: &mut Html, order: &Order, block: u64) {
    if order.blocks == 0 {
        return html.line("p", &[], "No block is stored.");
    }
    let stored = u128::from(order.blocks) * u128::from(block);
    let per_gib = u128::from(order.runs) * 10 * (1 << 30) / stored.max(1);
    let blocks = count(order.blocks, "stored block lies", "stored blocks lie");
    let runs = count(order.runs, "run", "runs");
    let sorted = match order.neighbours {
        0 => String::new(),
        all => format!(
            " Of the blocks that follow a stored one on the disk, {} follow it in the file too ({} of {all}).",
            percent(order.in_order, all),
            order.in_order
        ),
    };
    html.line(
        "p",
        &[],
        format_args!(
            "{blocks} in {runs} of the file: {}.{} runs per GiB.{sorted}",
            per_gib / 10,
            per_gib % 10
        ),
    );
}

/// Disk against file. In order, it is one line that rises.
fn scatter(html: &mut Html, scatter: &Scatter, disk: u64, file: u64) {
    const CELL: u64 = 4;
    let (width, height) = (u64::from(scatter.columns) * CELL, u64::from(scatter.rows) * CELL);
    let view = format!("-90 -10 {} {}", width + 240, height + 50);
    let label =
        "Where the blocks of the disk (from left to right) lie in the file (from bottom to top)";
    html.element("figure", &[], |html| {
        html.element(
            "svg",
            &[("class", &"scatter"), ("viewBox", &view), ("role", &"img"), ("aria-label", &label)],
            |html| {
                html.empty("rect", &[("class", &"frame"), ("width", &width), ("height", &height)]);
                for level in 1..=4 {
                    let class = format!("q{level} dot");
                    html.empty("path", &[("class", &class), ("d", &dots(scatter, level))]);
                }
                let mut label = |x: u64, y: u64, anchor: &'static str, text: String| {
                    html.line("text", &[("x", &x), ("y", &y), ("text-anchor", &anchor)], text);
                };
                label(0, height + 18, "start", "0".to_owned());
                label(width / 2, height + 34, "middle", "offset on the disk".to_owned());
                label(width, height + 18, "end", size(disk));
                html.line("text", &[("x", &-8), ("y", &height), ("text-anchor", &"end")], "0");
                html.line("text", &[("x", &-8), ("y", &12), ("text-anchor", &"end")], size(file));
                html.line("text", &[("x", &-8), ("y", &(height / 2)), ("text-anchor", &"end")], "in the file");
            },
        );
        html.line("figcaption", &[], "Each dot: blocks of that part of the disk lie in that part of the file. One rising line is perfect order; a cloud is fragmentation.");
    });
}

/// The dots of one of four levels of density, as one path.
fn dots(scatter: &Scatter, level: u64) -> String {
    let full = scatter.column_bytes.min(scatter.row_bytes).max(1);
    let level_of = |bytes: u64| match bytes {
        0 => 0,
        bytes => (u128::from(bytes) * 4).div_ceil(u128::from(full)).clamp(1, 4) as u64,
    };
    let mut path = String::new();
    for row in 0..scatter.rows {
        let y = (scatter.rows - 1 - row) * 4;
        let mut column = 0;
        while column < scatter.columns {
            let start = column;
            while column < scatter.columns && level_of(scatter.at(column, row)) == level {
                column += 1;
            }
            match column - start {
                0 => column += 1,
                run => path.push_str(&format!("M{} {y}h{}v4h-{}z", start * 4, run * 4, run * 4)),
            }
        }
    }
    path
}
