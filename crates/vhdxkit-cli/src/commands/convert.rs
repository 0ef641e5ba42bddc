//! `vhdx convert`: VHDX, VHD, qcow2 and raw, any way round.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::Image;
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::ops::export::{ExportReport, Target, to_storage, to_stream};
use vhdxkit::ops::import::{ImportReport, options_for, to_vhdx};
use vhdxkit::ops::import_vhd::to_vhd;
use vhdxkit::storage::FileStorage;
use vhdxkit::vhd::{Vhd, VhdOptions};
use vhdxkit::view::geometry::DiskType;

use super::{Context, new_file};
use crate::args::{ConvertArgs, TargetFormat, warn_of_disk, warn_of_sectors};
use crate::console::{Bar, named, print_json, size, stop_on_signal};
use crate::failure::wrong_usage;

/// What every conversion can tell.
struct Done {
    virtual_size: u64,
    file_size: u64,
    read: u64,
    written: u64,
    /// A fixed VHD was made.
    is_fixed_vhd: bool,
}

pub(crate) fn run(args: &ConvertArgs, context: Context) -> anyhow::Result<()> {
    let to_stdout = args.target.as_os_str() == "-";
    let format = target_format(args)?;
    let existing = if to_stdout { None } else { judge(args)? };
    let source = open_source(args)?;
    warn_of_sectors(&args.source, &source, format);
    // A device has no length of its own.
    let file = std::fs::metadata(&args.source).ok().filter(Metadata::is_file);
    let before = file.map_or(source.size(), |meta| meta.len());
    stop_on_signal();
    let mut bar = Bar::new("converting", source.size(), context.quiet);
    let failed = || format!("cannot convert {}", args.source.display());
    let done = match format {
        TargetFormat::Vhdx => to_image(&source, args, existing.as_ref(), &mut bar),
        TargetFormat::Raw => to_raw(&source, args, existing.as_ref(), &mut bar),
        TargetFormat::Vhd => to_version_1(&source, args, existing.as_ref(), &mut bar),
        TargetFormat::Qcow2 => to_qcow2(&source, args, existing.as_ref(), &mut bar),
    };
    let done = done.with_context(failed)?;
    drop(bar);
    if to_stdout {
        return Ok(());
    }
    if context.json {
        return print_json(&json!({
            "changed": true,
            "format": format.name(),
            "source_size": source.size(),
            "bytes_before": before,
            "bytes_after": done.file_size,
            "virtual_size": done.virtual_size,
            "bytes_read": done.read,
            "bytes_written": done.written,
        }));
    }
    let name = named(&args.target);
    let (file, stored) = (size(done.file_size), size(done.written));
    match format {
        TargetFormat::Raw => writeln!(io::stdout(), "{name}: {file} raw, {stored} of it stored")?,
        _ => {
            let (disk, more) = (size(done.virtual_size), done.virtual_size - source.size());
            let mut out = io::stdout().lock();
            writeln!(out, "{name}: a disk of {disk} in a file of {file}, {stored} stored")?;
            if more > 0 {
                let unit = match format {
                    TargetFormat::Vhd
                        if done.is_fixed_vhd && done.virtual_size % (1 << 20) == 0 =>
                    {
                        "mebibytes, as Azure wants them"
                    }
                    _ => "sectors",
                };
                writeln!(out, "  {more} bytes longer than its source, to make whole {unit}")?;
            }
            if was_fixed(&source) && format == TargetFormat::Vhd && !done.is_fixed_vhd {
                writeln!(
                    out,
                    "  its source is a fixed disk, and this a dynamic one; --fixed makes a fixed one"
                )?;
            }
        }
    }
    Ok(())
}

fn target_format(args: &ConvertArgs) -> anyhow::Result<TargetFormat> {
    let extension = args.target.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let format = match (args.to, extension.as_deref()) {
        (Some(format), _) => format,
        (None, Some("vhdx")) => TargetFormat::Vhdx,
        (None, Some("vhd")) => TargetFormat::Vhd,
        (None, Some("qcow2")) => TargetFormat::Qcow2,
        (None, Some("avhdx" | "avhd")) => {
            wrong_usage!(
                "a checkpoint (.avhdx, .avhd) cannot be the target of a copy; name it .vhdx or .vhd"
            )
        }
        (None, Some(other @ ("vmdk" | "vdi"))) => {
            wrong_usage!(
                "this version writes VHDX, VHD, qcow2 and raw, not {other}; pass --to to use that name anyway"
            )
        }
        (None, Some("raw" | "img" | "bin" | "dd" | "iso") | None) => TargetFormat::Raw,
        // Devices, pipes and /dev/null take bytes whatever their name is.
        (None, Some(_)) if std::fs::metadata(&args.target).is_ok_and(|meta| !meta.is_file()) => {
            TargetFormat::Raw
        }
        (None, Some(other)) => wrong_usage!(
            "the name .{other} does not say which format the copy is to have; pass --to vhdx, vhd, qcow2 or raw"
        ),
    };
    if args.target.as_os_str() == "-" && format != TargetFormat::Raw {
        wrong_usage!("only raw bytes can be streamed: an image is not written from front to back");
    }
    args.make.judge(format)?;
    args.make.judge_shape(format)?;
    Ok(format)
}

fn judge(args: &ConvertArgs) -> anyhow::Result<Option<Metadata>> {
    if new_file::same_file(&args.source, &args.target) {
        bail!("source and target are the same file");
    }
    new_file::judge_target(&args.target, args.force)
}

fn open_source(args: &ConvertArgs) -> anyhow::Result<Disk> {
    let format = args.from.map(DiskFormat::from);
    let disk = Disk::open_with(&args.source, format, &args.open.options())?;
    warn_of_disk(&args.source, &disk);
    // A copy in the place of a parent would be the end of both.
    let is_target = |path: &Path| new_file::same_file(path, &args.target);
    let replaces_parent = match &disk {
        Disk::Vhdx(image) => image.layers().filter_map(Image::path).any(is_target),
        Disk::Vhd(disk) => disk.layers().filter_map(Vhd::path).any(is_target),
        _ => false,
    };
    if replaces_parent {
        bail!("{} is a parent of the source", args.target.display());
    }
    Ok(disk)
}

fn was_fixed(source: &Disk) -> bool {
    matches!(source, Disk::Vhdx(image) if image.geometry().disk_type() == DiskType::Fixed)
}

/// Whether a VHD is a fixed one.
pub(super) fn is_fixed(disk: &Vhd) -> bool {
    disk.disk_type() == DiskType::Fixed
}

fn to_image(
    source: &Disk,
    args: &ConvertArgs,
    existing: Option<&Metadata>,
    bar: &mut Bar,
) -> anyhow::Result<Done> {
    if existing.is_some_and(|meta| !meta.is_file()) {
        bail!("{} is no file", args.target.display());
    }
    let mut options = args.make.over(options_for(source));
    // Sectors larger than those of the source may need a few bytes more.
    if let Some(sector) = args.make.logical_sector_size.map(u64::from).filter(|size| *size > 0) {
        options = options.virtual_size_of(source.size().next_multiple_of(sector));
    }
    let report = new_file::make(&args.target, args.force, existing, |file| {
        to_vhdx(source, file, &options, bar)
    })?;
    Ok(report.into())
}

fn to_version_1(
    source: &Disk,
    args: &ConvertArgs,
    existing: Option<&Metadata>,
    bar: &mut Bar,
) -> anyhow::Result<Done> {
    if existing.is_some_and(|meta| !meta.is_file()) {
        bail!("{} is no file", args.target.display());
    }
    // A fixed disk is as long as its source where that is allowed, and a VHD stays what it is.
    let fixed = args.make.fixed || matches!(source, Disk::Vhd(disk) if is_fixed(disk));
    let options = args.make.over_vhd(VhdOptions::for_copy(source.size(), fixed));
    let report = new_file::make(&args.target, args.force, existing, |file| {
        to_vhd(source, file, &options, bar)
    })?;
    Ok(Done { is_fixed_vhd: options.is_fixed(), ..report.into() })
}

#[cfg(feature = "qcow2")]
fn to_qcow2(
    source: &Disk,
    args: &ConvertArgs,
    existing: Option<&Metadata>,
    bar: &mut Bar,
) -> anyhow::Result<Done> {
    use vhdxkit::ops::import_qcow2::{DEFAULT_CLUSTER_SIZE, to_qcow2};

    if existing.is_some_and(|meta| !meta.is_file()) {
        bail!("{} is no file", args.target.display());
    }
    let cluster = args.make.block_size.unwrap_or(DEFAULT_CLUSTER_SIZE);
    let report = new_file::make(&args.target, args.force, existing, |file| {
        to_qcow2(source, file, cluster, bar)
    })?;
    Ok(report.into())
}

#[cfg(not(feature = "qcow2"))]
fn to_qcow2(_: &Disk, _: &ConvertArgs, _: Option<&Metadata>, _: &mut Bar) -> anyhow::Result<Done> {
    bail!("this program was built without qcow2")
}

impl From<ImportReport> for Done {
    fn from(report: ImportReport) -> Self {
        Self {
            virtual_size: report.virtual_size,
            file_size: report.file_size,
            read: report.read,
            written: report.written,
            is_fixed_vhd: false,
        }
    }
}

fn to_raw(
    source: &Disk,
    args: &ConvertArgs,
    existing: Option<&Metadata>,
    bar: &mut Bar,
) -> anyhow::Result<Done> {
    let report = if args.target.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            bail!("the disk is binary; send it into a pipe or a file");
        }
        let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
        to_stream(source, &mut out, bar)?
    } else if let Some(meta) = existing.filter(|meta| !meta.is_file()) {
        to_device(source, args, meta, bar)?
    } else {
        new_file::make(&args.target, args.force, existing, |file| {
            to_storage(source, file, Target::Empty, bar)
        })?
    };
    Ok(Done {
        virtual_size: report.virtual_size,
        file_size: report.virtual_size,
        read: report.read,
        written: report.written,
        is_fixed_vhd: false,
    })
}

/// A device takes the bytes as they come; pipes and /dev/null as a stream.
fn to_device(
    source: &Disk,
    args: &ConvertArgs,
    meta: &Metadata,
    bar: &mut Bar,
) -> anyhow::Result<ExportReport> {
    let failed = || format!("cannot write to {}", args.target.display());
    let mut file = File::options().write(true).open(&args.target).with_context(failed)?;
    if is_block_device(meta) {
        return Ok(to_storage(source, &FileStorage::from_file(file), Target::InUse, bar)?);
    }
    Ok(to_stream(source, &mut file, bar)?)
}

#[cfg(unix)]
fn is_block_device(meta: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type())
}

#[cfg(not(unix))]
fn is_block_device(_: &Metadata) -> bool {
    false
}
