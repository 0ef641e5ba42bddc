//! Copies a disk into a sparse raw file by its extents, without reading what is not there.
//!
//! `cargo run --example sparse_copy -- disk.vhdx disk.raw`

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use vhdxkit::{ExtentState, Image};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (source, target) = match (args.next(), args.next()) {
        (Some(source), Some(target)) => (source, target),
        _ => return Err("usage: sparse_copy IMAGE TARGET".into()),
    };
    let image = Image::open(source)?;
    let mut out = File::create_new(target)?;
    out.set_len(image.virtual_size())?;

    let mut buf = vec![0; 256 << 10];
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent?;
        if extent.state != ExtentState::Data {
            continue;
        }
        out.seek(SeekFrom::Start(extent.start))?;
        let mut at = extent.start;
        while at < extent.end() {
            let now = buf.len().min(usize::try_from(extent.end() - at)?);
            image.read_at(at, &mut buf[..now])?;
            out.write_all(&buf[..now])?;
            at += now as u64;
        }
    }
    out.sync_all()?;
    Ok(())
}
