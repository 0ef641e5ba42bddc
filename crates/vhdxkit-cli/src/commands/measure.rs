//! `vhdx measure`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::CreateOptions;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::ops::import::options_for;
use vhdxkit::ops::measure::measure;

use super::Context;
use crate::args::{MeasureArgs, parse_size};
use crate::console::{print_json, size};

pub(crate) fn run(args: &MeasureArgs, context: Context) -> anyhow::Result<()> {
    let as_size = args.source.to_str().and_then(|text| parse_size(text).ok());
    let failed = || format!("cannot measure {}", args.source.display());
    let (options, source) = match as_size.filter(|_| !args.source.exists()) {
        Some(bytes) => (CreateOptions::new(bytes), None),
        None if !args.source.exists() => {
            bail!(
                "{} is neither a file nor a size; write 64G, 10M or bytes",
                args.source.display()
            );
        }
        None => {
            let format = args.from.map(DiskFormat::from);
            let disk = Disk::open_with(&args.source, format, &args.open.options())?;
            (options_for(&disk), Some(disk))
        }
    };
    let measured = measure(&args.make.over(options), source.as_ref()).with_context(failed)?;
    if context.json {
        return print_json(&json!({
            "required": measured.required,
            "fully_allocated": measured.fully_allocated,
        }));
    }
    let mut out = io::stdout().lock();
    let exactly = |bytes: u64| format!("{} ({bytes} bytes)", size(bytes));
    writeln!(out, "when made        {}", exactly(measured.required))?;
    writeln!(out, "fully allocated  {}", exactly(measured.fully_allocated))?;
    Ok(())
}
