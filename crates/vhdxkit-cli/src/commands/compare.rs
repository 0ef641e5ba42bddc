//! `vhdx compare`.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;
use vhdxkit::ops::compare::compare;
use vhdxkit::ops::disk::{Disk, DiskFormat};

use super::Context;
use crate::args::{CompareArgs, warn_of_disk};
use crate::console::{Bar, print_json, size, stop_on_signal};
use crate::failure::exit;

pub(crate) fn run(args: &CompareArgs, context: Context) -> anyhow::Result<ExitCode> {
    let options = args.open.options();
    let a = Disk::open_with(&args.a, args.format_a.map(DiskFormat::from), &options)?;
    let b = Disk::open_with(&args.b, args.format_b.map(DiskFormat::from), &options)?;
    for (path, disk) in [(&args.a, &a), (&args.b, &b)] {
        warn_of_disk(path, disk);
    }
    stop_on_signal();
    let mut bar = Bar::new("comparing", a.size().min(b.size()), context.quiet);
    let result = compare(&a, &b, &mut bar)?;
    drop(bar);
    if context.json {
        print_json(&json!({
            "identical": result.identical(),
            "first_difference": result.first_difference,
            "size_a": result.size_a,
            "size_b": result.size_b,
        }))?;
    } else {
        let mut out = io::stdout().lock();
        match result.first_difference {
            Some(at) => writeln!(out, "different: first difference at byte {at} ({at:#x})")?,
            None if result.identical() => {
                writeln!(out, "identical: {} ({} bytes)", size(result.size_a), result.size_a)?;
            }
            None => writeln!(
                out,
                "different sizes: {} and {} bytes; the same up to the end of the shorter",
                result.size_a, result.size_b
            )?,
        }
    }
    Ok(if result.identical() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}
