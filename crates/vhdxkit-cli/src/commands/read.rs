//! `vhdx read`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};

use crate::args::ReadArgs;

const CHUNK: u64 = 256 << 10;

pub(crate) fn run(args: &ReadArgs) -> anyhow::Result<()> {
    let image = args.open.open(&args.image)?;
    let sector = u64::from(image.geometry().logical_sector_size());
    let size = image.virtual_size();
    let length = args.length.unwrap_or_else(|| size.saturating_sub(args.offset));
    if !args.offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
        bail!("offset and length must be multiples of the disk's sector size, {sector} bytes");
    }
    let end = match args.offset.checked_add(length) {
        Some(end) if end <= size && args.offset <= size => end,
        _ => bail!("the range reaches beyond the end of the disk, {size} bytes"),
    };
    let mut out = io::stdout().lock();
    let mut buf = vec![0; CHUNK as usize];
    let mut at = args.offset;
    while at < end {
        let now = CHUNK.min(end - at);
        let piece = &mut buf[..now as usize];
        image
            .read_at(at, piece)
            .with_context(|| format!("cannot read {}", args.image.display()))?;
        out.write_all(piece)?;
        at += now;
    }
    out.flush()?;
    Ok(())
}
