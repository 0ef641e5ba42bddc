//! `vhdx write`: stdin to the disk, like a guest.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::storage::change_tracking_beside;
use vhdxkit::{Image, OpenOptions};

use super::Context;
use crate::args::WriteArgs;
use crate::console::print_json;

const CHUNK: usize = 1 << 20;

pub(crate) fn run(args: &WriteArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot write to {}", args.image.display());
    let image = OpenOptions::new().write(true).open(&args.image)?;
    let sector = u64::from(image.geometry().logical_sector_size());
    if !args.offset.is_multiple_of(sector) {
        bail!("the offset must be a multiple of the disk's sector size, {sector} bytes");
    }
    if args.offset > image.virtual_size() {
        bail!("the offset lies beyond the end of the disk, {} bytes", image.virtual_size());
    }
    let tracking = warn_of_change_tracking(&args.image);
    let before = image.file_size();
    let copied = copy(&image, args.offset);
    // What was written before something went wrong is kept all the same.
    let closed = image.close();
    let written = copied.with_context(failed)?;
    closed.with_context(failed)?;
    drop(image);
    if context.json {
        let after = std::fs::metadata(&args.image)?.len();
        print_json(&json!({
            "changed": written > 0,
            "bytes_before": before,
            "bytes_after": after,
            "bytes_written": written,
            "change_tracking": tracking,
        }))?;
    }
    Ok(())
}

/// Writes all of stdin; returns how much that was.
fn copy(image: &Image, offset: u64) -> anyhow::Result<u64> {
    let sector = u64::from(image.geometry().logical_sector_size());
    let mut stdin = io::stdin().lock();
    let mut buf = vec![0; CHUNK];
    let mut at = offset;
    loop {
        let got = fill(&mut stdin, &mut buf).context("cannot read stdin")?;
        let bytes = &buf[..got];
        if !(got as u64).is_multiple_of(sector) {
            let whole = got - got % sector as usize;
            image.write_at(at, &bytes[..whole])?;
            bail!(
                "stdin ends within a sector of {sector} bytes: its last {} bytes were not written",
                got - whole
            );
        }
        if got == 0 {
            return Ok(at - offset);
        }
        image.write_at(at, bytes)?;
        at += got as u64;
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Names the files beside an image whose host will not see what is written here.
pub(crate) fn warn_of_change_tracking(image: &Path) -> Vec<String> {
    let tracking: Vec<String> =
        change_tracking_beside(image).iter().map(|p| p.display().to_string()).collect();
    for file in &tracking {
        eprintln!(
            "warning: {file} tracks this image's changes for its host, which does not see this one: \
             delete it before the host uses it again"
        );
    }
    tracking
}
