//! The page of `map --html` in a real browser.
//!
//! Markup can be right and show nothing: a pattern that is not found paints black, a style that does not apply leaves
//! a blank. Here Chromium, without a network, paints a disk of known stripes, and the picture is read.

mod common;

use std::io::Read as _;

use common::{Workdir, peer, vhdx};
use vhdxkit_testkit::{Contents, Image};

const MIB: u64 = 1 << 20;
const WIDTH: usize = 1280;

/// Base colours of the page (light): data, zeros, trimmed, damaged, not present.
const COLOURS: [[u8; 3]; 5] = [
    [0x1f, 0x5f, 0xbf],
    [0xe3, 0xd9, 0xa8],
    [0xef, 0xb8, 0xcd],
    [0xd0, 0x20, 0x2f],
    [0xed, 0xf0, 0xf3],
];

/// 64 MiB in five stripes: data, zeros, trimmed, damaged, never written.
fn stripes() -> Image {
    let mut kit = Image::dynamic(64 * MIB);
    for block in 0..16 {
        kit = kit.block(block, Contents::Pattern(7));
    }
    for (blocks, state) in [(16..32, 2), (32..44, 3), (44..52, 4)] {
        for block in blocks {
            kit = kit.bat_entry(block, state);
        }
    }
    kit
}

/// A page as the browser paints it. `None`, visibly, where there is no browser.
fn paint(dir: &Workdir, page: &str, more: &[&str]) -> Option<Screen> {
    let picture = dir.path("page.png");
    let _ = std::fs::remove_file(&picture);
    let profile = format!("--user-data-dir={}", dir.path("profile"));
    let shot = format!("--screenshot={picture}");
    let window = format!("--window-size={WIDTH},1400");
    let address = format!("file://{page}");
    let mut arguments = vec![
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        &profile,
        &shot,
        &window,
    ];
    arguments.extend(more);
    arguments.push(&address);
    peer("chromium", &arguments)?.succeeds();
    Some(Screen::decode(&std::fs::read(&picture).unwrap()))
}

#[test]
fn the_picture_shows_each_state_where_it_lies() {
    let dir = Workdir::new();
    let (image, page) = (dir.path("stripes.vhdx"), dir.path("page.html"));
    stripes().build_file(image.as_ref());
    vhdx(&["map", "--html", &page, &image]).exits_with(3);
    let Some(screen) = paint(&dir, &page, &[]) else { return };
    assert_eq!(screen.width(), WIDTH);
    // A row of the grid is a row of one colour, but for its pattern and the lines between cells.
    let rows = |colour: [u8; 3]| -> Vec<usize> {
        (0..screen.rows.len()).filter(|y| screen.share(*y, colour) > 0.25).collect()
    };
    let found = COLOURS.map(rows);
    for (colour, rows) in COLOURS.iter().zip(&found) {
        assert!(rows.len() >= 12, "{colour:02x?}: {rows:?}");
    }
    for pair in found[..4].windows(2) {
        // The stripe of one state ends before that of the next begins: the strip of the file, further down, is
        // data again.
        let end_of_first = pair[0].iter().take_while(|y| **y < pair[1][0]).last().unwrap();
        assert!(pair[0][0] < pair[1][0] && *end_of_first < pair[1][0], "{found:?}");
    }
    let grid = found[0][0];
    let last = *found[3].last().unwrap();
    assert!(found[4].iter().any(|y| *y > last && *y < last + 300), "nothing behind the damage");
    // Two blocks are a row of cells: the heights are to scale.
    let height = |from: usize, to: usize| found[to][0] - found[from][0];
    let per_block = |pixels: usize, blocks: usize| pixels as f64 / blocks as f64;
    let (data, zero, trimmed) = (
        per_block(found[1][0] - grid, 16),
        per_block(height(1, 2), 16),
        per_block(height(2, 3), 12),
    );
    assert!((data - zero).abs() < 0.5 && (zero - trimmed).abs() < 0.5, "{data} {zero} {trimmed}");
}

/// At night the page is dark, and the states still differ.
#[test]
fn the_page_follows_the_readers_colour_scheme() {
    let dir = Workdir::new();
    let (image, page) = (dir.path("stripes.vhdx"), dir.path("page.html"));
    stripes().build_file(image.as_ref());
    vhdx(&["map", "--html", &page, &image]).exits_with(3);
    let dark = "--blink-settings=preferredColorScheme=0";
    let Some(screen) = paint(&dir, &page, &[dark]) else { return };
    let corner = screen.rows[2][2];
    assert!(corner.iter().all(|part| *part < 0x40), "the page is not dark: {corner:02x?}");
    let blue = [0x5b, 0x9b, 0xf5];
    assert!((0..screen.rows.len()).any(|y| screen.share(y, blue) > 0.4), "no data is drawn");
}

/// A decoded picture.
struct Screen {
    rows: Vec<Vec<[u8; 3]>>,
}

impl Screen {
    fn width(&self) -> usize {
        self.rows[0].len()
    }

    /// The share of a row that has (nearly) this colour.
    fn share(&self, y: usize, colour: [u8; 3]) -> f64 {
        let near = |pixel: &[u8; 3]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 6);
        self.rows[y].iter().filter(|pixel| near(pixel)).count() as f64 / self.width() as f64
    }

    /// Reads the PNG that Chromium writes: 8 bits a channel, RGB or RGBA, not interlaced.
    fn decode(png: &[u8]) -> Self {
        let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n").expect("a PNG");
        let (mut header, mut packed) = (Vec::new(), Vec::new());
        while rest.len() >= 12 {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            match &rest[4..8] {
                b"IHDR" => header = rest[8..8 + length].to_vec(),
                b"IDAT" => packed.extend_from_slice(&rest[8..8 + length]),
                _ => {}
            }
            rest = &rest[12 + length..];
        }
        let number =
            |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap()) as usize;
        let (width, height) = (number(0), number(4));
        assert_eq!((header[8], header[12]), (8, 0), "depth and interlacing");
        let channels = match header[9] {
            2 => 3,
            6 => 4,
            other => panic!("colour type {other}"),
        };
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), height * (width * channels + 1));
        let mut above = vec![0u8; width * channels];
        let mut rows = Vec::new();
        for line in bytes.chunks(width * channels + 1) {
            above = unfilter(line[0], &line[1..], &above, channels);
            rows.push(above.chunks(channels).map(|p| [p[0], p[1], p[2]]).collect());
        }
        Self { rows }
    }
}

/// Undoes the filter of a row (PNG, section 9).
fn unfilter(kind: u8, line: &[u8], above: &[u8], channels: usize) -> Vec<u8> {
    let mut row: Vec<u8> = Vec::with_capacity(line.len());
    for (at, byte) in line.iter().enumerate() {
        let left = if at < channels { 0 } else { row[at - channels] };
        let corner = if at < channels { 0 } else { above[at - channels] };
        let up = above[at];
        let guess = match kind {
            0 => 0,
            1 => left,
            2 => up,
            3 => ((u16::from(left) + u16::from(up)) / 2) as u8,
            4 => {
                let estimate = i16::from(left) + i16::from(up) - i16::from(corner);
                let distance = |value: u8| (estimate - i16::from(value)).abs();
                [left, up, corner].into_iter().min_by_key(|value| distance(*value)).unwrap()
            }
            other => panic!("filter {other}"),
        };
        row.push(byte.wrapping_add(guess));
    }
    row
}
