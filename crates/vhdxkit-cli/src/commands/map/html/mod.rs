//! `vhdx map --html`: one page that shows an image, for whoever has just lost a disk, or wonders why it grew.
//!
//! First everything is gathered ([`Facts`]), each part on its own: where one cannot be had, the page has the
//! reason in its place. Then the page is written, part by part. It needs no network and no script, and its
//! policy forbids both.

mod disk;
mod file;
mod findings;
mod head;
mod log;
mod markup;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use vhdxkit::ops::check::{CheckedImage, check_chain};
use vhdxkit::ops::partitions::{Volume, volumes};
use vhdxkit::ops::picture::{Detail, Picture, picture};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::view::headers::HeaderPair;
use vhdxkit::{Error, ErrorKind, Image, OpenOptions, Result};

use crate::args::open_as_far_as_possible;
use crate::console::Bar;
use markup::Html;

/// How finely the page draws. Bounds its size, whatever the disk.
const DETAIL: Detail = Detail { disk_cells: 4096, file_cells: 512, scatter: (240, 120) };

/// All that the page shows.
pub(super) struct Facts {
    path: String,
    checked: Vec<CheckedImage>,
    headers: Result<HeaderPair>,
    /// None without a header, which alone tells where the log lies.
    story: Option<Result<log::Story>>,
    mapped: Result<Mapped>,
}

/// What an image shows that can be opened.
struct Mapped {
    image: Image,
    /// Why its parents are missing.
    alone: Option<Error>,
    volumes: Result<Vec<Volume>>,
    picture: Result<Picture>,
}

impl Facts {
    /// Gathers them. A part that cannot be had does not keep the others from being shown.
    ///
    /// # Errors
    /// The file cannot be read, or is in use; or the user stops it.
    pub(super) fn gather(
        path: &Path,
        options: &OpenOptions,
        share: bool,
        quiet: bool,
    ) -> Result<Self> {
        let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let mut bar = Bar::new("checking", length.min(1 << 29), quiet);
        let checked = check_chain(path, options, &mut bar)?;
        drop(bar);
        let file = FileStorage::open(path, OpenMode::ReadOnly { force_share: share })?;
        let file: Arc<dyn Storage> = Arc::new(file);
        let headers = HeaderPair::inspect(&*file);
        let story = headers.as_ref().ok().map(|headers| log::Story::read(&file, headers));
        // A log that cannot be replayed is told, not refused.
        let mapped = open_as_far_as_possible(options.clone().without_log(true), path)
            .and_then(|(image, alone)| Mapped::of(image, alone, quiet));
        let mapped = match mapped {
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            mapped => mapped,
        };
        Ok(Self { path: path.display().to_string(), checked, headers, story, mapped })
    }

    /// Whether `check` found something worse than a remark.
    pub(super) fn has_problems(&self) -> bool {
        self.checked.iter().any(|image| image.findings.has_problems())
    }

    /// Whether there is a picture of the disk.
    pub(super) fn has_picture(&self) -> bool {
        self.mapped.as_ref().is_ok_and(|mapped| mapped.picture.is_ok())
    }
}

impl Mapped {
    fn of(image: Image, alone: Option<Error>, quiet: bool) -> Result<Self> {
        let volumes = volumes(&image);
        let known = volumes.as_deref().unwrap_or_default();
        let mut bar = Bar::new("mapping", image.virtual_size(), quiet);
        let picture = match picture(&image, known, DETAIL, &mut bar) {
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            picture => picture,
        };
        drop(bar);
        Ok(Self { image, alone, volumes, picture })
    }
}

/// The page.
pub(super) fn page(facts: &Facts) -> Vec<u8> {
    let mut html = Html::default();
    html.fixed("<!DOCTYPE html>\n");
    html.element("html", &[("lang", &"en")], |html| {
        html.element("head", &[], |html| {
            html.empty("meta", &[("charset", &"utf-8")]);
            html.fixed(
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
                 <meta name=\"color-scheme\" content=\"light dark\"/>",
            );
            html.line("title", &[], format_args!("{} – vhdx map", head::name(&facts.path)));
            html.fixed(concat!("<style>\n", include_str!("style.css"), "</style>"));
        });
        html.fixed("\n");
        html.element("body", &[], |html| body(html, facts));
    });
    html.fixed("\n");
    html.into_bytes()
}

fn body(html: &mut Html, facts: &Facts) {
    html.fixed(include_str!("patterns.svg"));
    html.element("header", &[], |html| head::write(html, facts));
    html.element("main", &[], |html| {
        section(html, "disk", "The disk, as its guest sees it", |html| disk::write(html, facts));
        section(html, "file", "The file", |html| file::write(html, facts));
        section(html, "log", "The log", |html| log::write(html, facts));
        section(html, "findings", "What check found", |html| findings::write(html, facts));
    });
    html.element("footer", &[], |html| head::made(html, SystemTime::now()));
}

fn section(html: &mut Html, id: &'static str, title: &'static str, inside: impl FnOnce(&mut Html)) {
    let heading = format!("{id}-title");
    html.element("section", &[("id", &id), ("aria-labelledby", &heading)], |html| {
        html.line("h2", &[("id", &heading)], title);
        inside(html);
    });
    html.fixed("\n");
}

/// In the place of a part that cannot be had.
fn missing(html: &mut Html, what: &'static str, why: &Error) {
    html.element("p", &[("class", &"missing")], |html| {
        html.line("strong", &[], what);
        html.text(" ");
        html.text(why);
    });
}

/// A share of a whole: `12.5 %`.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    match tenths {
        0 if part > 0 => "< 0.1 %".to_owned(),
        1000 => "100 %".to_owned(),
        _ => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// A coloured sample for a legend: rectangles of these classes, one over the other.
fn swatch(html: &mut Html, classes: &[&str]) {
    let attributes: markup::Attributes<'_> =
        &[("class", &"swatch"), ("viewBox", &"0 0 18 18"), ("aria-hidden", &"true")];
    html.element("svg", attributes, |html| {
        for class in ["s-none"].iter().chain(classes) {
            html.empty("rect", &[("class", class), ("width", &18), ("height", &18)]);
        }
    });
}

/// `0x0 to 0xfffff (1 MiB)`.
fn range_text(start: u64, end: u64) -> String {
    let (last, length) = (end.saturating_sub(1), crate::console::size(end.saturating_sub(start)));
    format!("{start:#x} to {last:#x} ({length})")
}
