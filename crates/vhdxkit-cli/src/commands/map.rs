//! `vhdx map`.

use std::io::{self, BufWriter, Write};

use anyhow::Context as _;
use serde_json::json;
use vhdxkit::{Extent, Image};

use super::Context;
use crate::args::{MapArgs, open_as_far_as_possible, warn};

pub(crate) fn run(args: &MapArgs, context: Context) -> anyhow::Result<()> {
    let (image, alone) = open_as_far_as_possible(args.open.options(), &args.image)?;
    warn(&args.image, &image);
    if let Some(problem) = alone {
        eprintln!("warning: mapped without its parent: {problem}");
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed =
        if context.json { print_json(&image, &mut out) } else { print_text(&image, &mut out) };
    printed.with_context(|| format!("cannot map {}", args.image.display()))?;
    out.flush()?;
    Ok(())
}

/// One line per extent, written as it is found: the list may be long.
fn print_json(image: &Image, out: &mut impl Write) -> anyhow::Result<()> {
    let mut separator = "[\n";
    for extent in image.extents(0..image.virtual_size()) {
        let Extent { start, length, state, depth, file_offset } = extent?;
        let value = json!({
            "start": start,
            "length": length,
            "state": state.name(),
            "depth": depth,
            "file_offset": file_offset,
        });
        write!(out, "{separator}  {value}")?;
        separator = ",\n";
    }
    writeln!(out, "\n]")?;
    Ok(())
}

fn print_text(image: &Image, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:>16} {:>16}  {:<14} {:>5} {:>16}",
        "start", "length", "state", "depth", "file offset"
    )?;
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent?;
        let place = extent.file_offset.map_or_else(|| "-".to_owned(), |at| format!("{at:#x}"));
        writeln!(
            out,
            "{:>#16x} {:>#16x}  {:<14} {:>5} {place:>16}",
            extent.start,
            extent.length,
            extent.state.name(),
            extent.depth
        )?;
    }
    Ok(())
}
