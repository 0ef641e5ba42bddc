//! `vhdx write`: stdin to the disk, like a guest.

use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::log::LogState;
use vhdxkit::storage::change_tracking_beside;
use vhdxkit::{Image, OpenOptions};

use super::Context;
use super::children::{changing_would_lose, require_no_children_of};
use crate::args::WriteArgs;
use crate::console::{named, print_json, shown, size};
use crate::failure::begin;

const CHUNK: usize = 1 << 20;

pub(crate) fn run(args: &WriteArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot write to {}", args.image.display());
    // Looked at first: an image that cannot take these bytes is not even replayed.
    let looked_at = Image::open(&args.image)?;
    judge(&looked_at, args.offset).with_context(failed)?;
    if !args.force {
        let identity = looked_at.headers().current().data_write_guid;
        let force = "--force writes all the same";
        let refusal = |children: &str| changing_would_lose("writing to it", force, children);
        require_no_children_of(&args.image, identity, force, refusal).with_context(failed)?;
    }
    if is_replayed_to_write(&looked_at) {
        begin();
    }
    drop(looked_at);
    let image = args.parents.over(OpenOptions::new().write(true)).open(&args.image)?;
    begin();
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
    } else {
        let (name, from) = (named(&args.image), args.offset);
        writeln!(io::stdout(), "{name}: {} written from byte {from} on", size(written))?;
    }
    Ok(())
}

/// Whether opening this image for writing changes its file: its log is replayed there then.
pub(crate) fn is_replayed_to_write(image: &Image) -> bool {
    // Behind a damaged entry nothing is replayed but at the user's word.
    image.log().state() == LogState::Dirty && image.log().unreachable_entries().is_none()
}

/// Refuses what can be told before anything is written.
fn judge(image: &Image, offset: u64) -> anyhow::Result<()> {
    let sector = u64::from(image.geometry().logical_sector_size());
    if !offset.is_multiple_of(sector) {
        bail!("the offset must be a multiple of the disk's sector size, {sector} bytes");
    }
    if offset > image.virtual_size() {
        bail!("the offset lies beyond the end of the disk, {} bytes", image.virtual_size());
    }
    match length_of_stdin() {
        Some(length) => require_fits(image, offset, length),
        None => Ok(()),
    }
}

/// Refuses `length` bytes that are no whole sectors, or too many.
fn require_fits(image: &Image, offset: u64, length: u64) -> anyhow::Result<()> {
    let sector = u64::from(image.geometry().logical_sector_size());
    let room = image.virtual_size().saturating_sub(offset);
    if length > room {
        bail!("stdin has more bytes than the disk: only {room} follow from {offset} on");
    }
    if !length.is_multiple_of(sector) {
        let rest = length % sector;
        bail!("stdin ends within a sector of {sector} bytes: it has {rest} bytes of the last one");
    }
    Ok(())
}

/// What is left of stdin when that is a file, not a pipe.
#[cfg(unix)]
fn length_of_stdin() -> Option<u64> {
    use std::io::Seek;
    use std::os::fd::AsFd;
    let mut file = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    meta.len().checked_sub(file.stream_position().ok()?)
}

#[cfg(not(unix))]
fn length_of_stdin() -> Option<u64> {
    None
}

/// Writes all of stdin; returns how much that was. A piece that does not fit is not begun.
fn copy(image: &Image, offset: u64) -> anyhow::Result<u64> {
    let mut stdin = io::stdin().lock();
    let mut buf = vec![0; CHUNK];
    let mut at = offset;
    loop {
        let got = fill(&mut stdin, &mut buf).context("cannot read stdin")?;
        if got == 0 {
            return Ok(at - offset);
        }
        let written = || format!("stopped after {} bytes were written", at - offset);
        require_fits(image, at, got as u64).with_context(written)?;
        image.write_at(at, &buf[..got]).with_context(written)?;
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

/// The files beside an image by which its host knows what has changed.
pub(crate) fn change_tracking(image: &Path) -> Vec<String> {
    change_tracking_beside(image).iter().map(|p| p.display().to_string()).collect()
}

/// Names the files beside an image whose host will not see what is written here.
pub(crate) fn warn_of_change_tracking(image: &Path) -> Vec<String> {
    let tracking = change_tracking(image);
    for file in &tracking {
        eprintln!(
            "warning: {} tracks this image's changes for its host, which does not see this one: \
             delete it before the host uses it again",
            shown(file)
        );
    }
    tracking
}
