//! `vhdx create`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::CreateOptions;
use vhdxkit::ops::measure::measure;

use super::{Context, new_file};
use crate::args::CreateArgs;
use crate::console::{print_json, size, stop_on_signal};

pub(crate) fn run(args: &CreateArgs, context: Context) -> anyhow::Result<()> {
    let options = args.make.over(CreateOptions::new(args.size));
    let failed = || format!("cannot create {}", args.image.display());
    // Bad options are told before the file is looked at.
    let file_size = measure(&options, None).with_context(failed)?.required;
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
            "virtual_size": args.size,
            "file_size": file_size,
        }));
    }
    let kind = if args.make.fixed { "fixed" } else { "dynamic" };
    let (name, disk, file) = (args.image.display(), size(args.size), size(file_size));
    writeln!(io::stdout(), "{name}: a {kind} disk of {disk} in a file of {file}")?;
    Ok(())
}
