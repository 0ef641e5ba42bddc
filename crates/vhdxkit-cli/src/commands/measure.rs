//! `vhdx measure`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::CreateOptions;
use vhdxkit::ops::disk::{Disk, DiskFormat, Source};
use vhdxkit::ops::import::options_for;
use vhdxkit::ops::measure::{Measure, measure, measure_qcow2, measure_vhd};
use vhdxkit::vhd::VhdOptions;

use super::Context;
use super::convert::is_fixed;
use crate::args::{MeasureArgs, TargetFormat, parse_size, warn_of_disk, warn_of_sectors};
use crate::console::{print_json, size};

pub(crate) fn run(args: &MeasureArgs, context: Context) -> anyhow::Result<()> {
    let as_size = args.source.to_str().and_then(|text| parse_size(text).ok());
    let failed = || format!("cannot measure {}", args.source.display());
    args.make.judge(args.to)?;
    args.make.judge_shape(args.to)?;
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
            warn_of_disk(&args.source, &disk);
            warn_of_sectors(&args.source, &disk, args.to);
            (options_for(&disk), Some(disk))
        }
    };
    let bytes = source.as_ref().map_or(options.virtual_size(), Disk::size);
    let disk = source.as_ref().map(|disk| disk as &dyn Source);
    let measured = match args.to {
        TargetFormat::Vhdx => measure(&args.make.over(options), disk),
        TargetFormat::Raw => Ok(Measure { required: bytes, fully_allocated: bytes }),
        TargetFormat::Vhd => {
            let fixed =
                args.make.fixed || matches!(&source, Some(Disk::Vhd(disk)) if is_fixed(disk));
            measure_vhd(&args.make.over_vhd(VhdOptions::for_copy(bytes, fixed)), disk)
        }
        TargetFormat::Qcow2 => {
            let cluster = args.make.block_size.unwrap_or(64 << 10);
            let whole = bytes.checked_next_multiple_of(512).unwrap_or(u64::MAX);
            measure_qcow2(whole, cluster, disk)
        }
    };
    let measured = measured.with_context(failed)?;
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
