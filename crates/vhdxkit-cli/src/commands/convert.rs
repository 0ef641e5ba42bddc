//! `vhdx convert`: VHDX to raw.
//!
//! A copy is made under a temporary name beside its target and takes the target's name when it is
//! complete and durable; whatever stops the work before leaves the old state.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::Image;
use vhdxkit::ops::export::{ExportReport, Target, to_storage, to_stream};
use vhdxkit::storage::FileStorage;

use super::Context;
use crate::args::{ConvertArgs, TargetFormat};
use crate::console::{Bar, print_json, size, stop_on_signal};

pub(crate) fn run(args: &ConvertArgs, context: Context) -> anyhow::Result<()> {
    require_raw(args)?;
    let to_stdout = args.target.as_os_str() == "-";
    let existing = if to_stdout { None } else { judge_target(args)? };
    let image = args.open.open(&args.source)?;
    stop_on_signal();
    let mut bar = Bar::new("converting", image.virtual_size(), context.quiet);
    let failed = || format!("cannot convert {}", args.source.display());
    let report = match existing {
        _ if to_stdout => {
            if io::stdout().is_terminal() {
                bail!("the disk is binary; send it into a pipe or a file");
            }
            to_stream(&image, &mut BufWriter::with_capacity(1 << 18, io::stdout().lock()), &mut bar)
                .with_context(failed)?
        }
        Some(meta) if !meta.is_file() => {
            to_device(&image, args, &meta, &mut bar).with_context(failed)?
        }
        existing => to_new_file(&image, args, existing.as_ref(), &mut bar).with_context(failed)?,
    };
    drop(bar);
    match (to_stdout, context.json) {
        (true, _) => Ok(()),
        (false, true) => print_json(&json!({
            "changed": true,
            "bytes_before": image.file_size(),
            "bytes_after": report.virtual_size,
            "bytes_read": report.read,
            "bytes_written": report.written,
        })),
        (false, false) => {
            let Some(name) = args.target.to_str() else { return Ok(()) };
            let (all, written) = (size(report.virtual_size), size(report.written));
            writeln!(io::stdout(), "{name}: {all} raw, {written} of it stored")?;
            Ok(())
        }
    }
}

fn require_raw(args: &ConvertArgs) -> anyhow::Result<()> {
    let extension = args.target.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match (args.to, extension.as_deref()) {
        (Some(TargetFormat::Raw), _) => Ok(()),
        (None, Some(other @ ("vhdx" | "avhdx" | "vhd" | "qcow2" | "vmdk" | "vdi"))) => {
            bail!(
                "this version writes raw images only, not {other}; pass --to raw to use that name anyway"
            )
        }
        (None, _) => Ok(()),
    }
}

/// Refuses a target that must not be written. Gives what is there already.
fn judge_target(args: &ConvertArgs) -> anyhow::Result<Option<Metadata>> {
    let path = &args.target;
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    };
    if meta.is_dir() {
        bail!("{} is a directory", path.display());
    }
    if same_file(&args.source, path) {
        bail!("source and target are the same file");
    }
    if !args.force && path != Path::new("/dev/null") {
        bail!("{} exists; --force replaces it", path.display());
    }
    Ok(Some(meta))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => true,
        _ => same_inode(a, b),
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}

fn to_new_file(
    image: &Image,
    args: &ConvertArgs,
    existing: Option<&Metadata>,
    bar: &mut Bar,
) -> anyhow::Result<ExportReport> {
    // The name may be a link: what it stands for is replaced, not the link.
    let target = args.target.canonicalize().unwrap_or_else(|_| args.target.clone());
    let folder = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let failed = || format!("cannot make {}", target.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vhdx-").suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(&folder).with_context(failed)?;
    let file = FileStorage::from_file(temporary.as_file().try_clone().with_context(failed)?);
    let report = to_storage(image, &file, Target::Empty, bar)?;
    if let Some(meta) = existing {
        temporary.as_file().set_permissions(meta.permissions()).with_context(failed)?;
    }
    let kept = if args.force {
        temporary.persist(&target).map_err(|e| e.error)
    } else {
        temporary.persist_noclobber(&target).map_err(|e| e.error)
    };
    kept.with_context(failed)?;
    sync_folder(&folder);
    Ok(report)
}

/// Makes the new name durable where the system can; the data already is.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// A device takes the bytes as they come; pipes and /dev/null as a stream.
fn to_device(
    image: &Image,
    args: &ConvertArgs,
    meta: &Metadata,
    bar: &mut Bar,
) -> anyhow::Result<ExportReport> {
    let failed = || format!("cannot write to {}", args.target.display());
    let mut file = File::options().write(true).open(&args.target).with_context(failed)?;
    if is_block_device(meta) {
        return Ok(to_storage(image, &FileStorage::from_file(file), Target::InUse, bar)?);
    }
    Ok(to_stream(image, &mut file, bar)?)
}

#[cfg(unix)]
fn is_block_device(meta: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type())
}

#[cfg(not(unix))]
fn is_block_device(_: &Metadata) -> bool {
    false
}
