//! `vhdx create` of a VHD, version 1.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::OpenOptions;
use vhdxkit::ops::measure::measure_vhd;
use vhdxkit::vhd::VhdOptions;

use super::{Context, new_file};
use crate::args::{CreateArgs, TargetFormat};
use crate::console::{named, print_json, size, stop_on_signal};
use crate::failure::by_options;

pub(crate) fn run(args: &CreateArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot create {}", args.image.display());
    args.make.judge(TargetFormat::Vhd)?;
    let options = match &args.parent {
        Some(parent) => {
            new_file::refuse_parent(parent, &args.image)?;
            let parent = OpenOptions::new().open_vhd(parent)?;
            VhdOptions::child_of(&parent, &args.image).with_context(failed)?
        }
        None => VhdOptions::new(args.size.unwrap_or_default()).fixed(args.make.fixed),
    };
    let options = args.make.over_vhd(options);
    // Bad options are told before the file is looked at.
    let file_size = measure_vhd(&options, None).map_err(by_options).with_context(failed)?.required;
    let existing = new_file::judge_target(&args.image, args.force)?;
    if existing.as_ref().is_some_and(|meta| !meta.is_file()) {
        bail!("{} is no file", args.image.display());
    }
    stop_on_signal();
    new_file::make(&args.image, args.force, existing.as_ref(), |file| options.create_storage(file))
        .with_context(failed)?;
    if context.json {
        return print_json(&json!({
            "path": args.image.display().to_string(),
            "format": "vhd",
            "virtual_size": options.virtual_size(),
            "file_size": file_size,
        }));
    }
    let kind = match (&args.parent, options.is_fixed()) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    let (name, disk, file) = (named(&args.image), size(options.virtual_size()), size(file_size));
    let mut out = io::stdout().lock();
    writeln!(out, "{name}: a {kind} VHD (version 1) of {disk} in a file of {file}")?;
    if let Some(parent) = &args.parent {
        writeln!(
            out,
            "  do not write to {} from now on: its child would show a mixture, and nobody could tell",
            named(parent)
        )?;
    }
    if options.is_fixed() && !options.virtual_size().is_multiple_of(1 << 20) {
        writeln!(out, "  Azure does not take it: its size is no multiple of 1 MiB")?;
    }
    Ok(())
}
