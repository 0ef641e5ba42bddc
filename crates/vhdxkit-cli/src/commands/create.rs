//! `vhdx create`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::ops::measure::measure;
use vhdxkit::{CreateOptions, Error, ErrorKind, Image};

use super::{Context, new_file};
use crate::args::CreateArgs;
use crate::console::{named, print_json, quoted, size, stop_on_signal};
use crate::failure::{Usage, by_options, wrong_usage};

/// So few bytes are gigabytes to whoever types them.
const FEW: u64 = 1 << 16;

pub(crate) fn run(args: &CreateArgs, context: Context) -> anyhow::Result<()> {
    let extension = args.image.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if ["vhd", "avhd"].iter().any(|name| extension.eq_ignore_ascii_case(name)) {
        return super::create_vhd::run(args, context);
    }
    judge_name(args, extension)?;
    let failed = || format!("cannot create {}", args.image.display());
    let options = match &args.parent {
        Some(parent) => {
            new_file::refuse_parent(parent, &args.image)?;
            CreateOptions::child_of(&Image::open(parent)?).with_context(failed)?
        }
        None => CreateOptions::new(args.size.unwrap_or_default()),
    };
    let options = args.make.over(options);
    // Bad options are told before the file is looked at.
    let wrong = |error: Error| match args.size {
        Some(size) if size <= FEW && error.kind() == ErrorKind::InvalidInput => {
            Usage(format!("{error}; did you mean {size}G?")).into()
        }
        _ => by_options(error),
    };
    let file_size = measure(&options, None).map_err(wrong).with_context(failed)?.required;
    let existing = new_file::judge_target(&args.image, args.force)?;
    if existing.as_ref().is_some_and(|meta| !meta.is_file()) {
        bail!("{} is no file", args.image.display());
    }
    stop_on_signal();
    new_file::make(&args.image, args.force, existing.as_ref(), |file| {
        options.create_storage_at(file, &args.image)
    })
    .with_context(failed)?;
    if context.json {
        return print_json(&json!({
            "path": args.image.display().to_string(),
            "virtual_size": options.virtual_size(),
            "file_size": file_size,
        }));
    }
    let kind = match (&args.parent, args.make.fixed) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    let (name, disk, file) = (named(&args.image), size(options.virtual_size()), size(file_size));
    let mut out = io::stdout().lock();
    writeln!(out, "{name}: a {kind} disk of {disk} in a file of {file}")?;
    if let Some(parent) = &args.parent {
        writeln!(out, "  do not write to {} from now on: its child would be lost", named(parent))?;
    }
    Ok(())
}

/// Refuses a name that says another format than what would be made: who opens the file by it gets garbage.
fn judge_name(args: &CreateArgs, extension: &str) -> anyhow::Result<()> {
    let image = &args.image;
    let vhdx = quoted(&image.with_extension("vhdx"));
    let name = quoted(image);
    let bytes = args.size.unwrap_or_default();
    let other = match extension.to_ascii_lowercase().as_str() {
        format @ ("qcow2" | "qcow" | "qed" | "vmdk" | "vdi") => {
            format!("`qemu-img create -f {format} {name} {bytes}` makes one of that format")
        }
        "raw" | "img" | "bin" | "dd" | "iso" => {
            format!("`truncate -s {bytes} {name}` makes a raw disk")
        }
        _ => return Ok(()),
    };
    match &args.parent {
        None => wrong_usage!(
            "{name}: create makes VHDX and VHD, and no .{extension}: name it {vhdx} for a VHDX; {other}"
        ),
        Some(_) => wrong_usage!(
            "{name}: create makes VHDX and VHD, and no .{extension}: name it {vhdx} for a VHDX"
        ),
    }
}
