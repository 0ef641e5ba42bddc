//! `vhdx resize`.

use std::io::{self, Write};

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use vhdxkit::ops::partitions::{Partition, end_of_last, partitions, whole_disk_file_system};
use vhdxkit::ops::smallest::smallest_size;
use vhdxkit::{Image, OpenOptions, Shrink};

use super::Context;
use super::children::{changing_would_lose, require_no_children_of, warn_of_children};
use super::second_gpt::{self, SecondGpt};
use super::write::{is_replayed_to_write, warn_of_change_tracking};
use crate::args::{NewSize, ResizeArgs};
use crate::console::{named, print_json, quoted, shown, size};
use crate::failure::begin;

pub(crate) fn run(args: &ResizeArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot resize {}", args.image.display());
    // Looked at first: a size that cannot be does not even replay the log.
    let image = args.parents.over(OpenOptions::new()).open(&args.image)?;
    let new = wanted(args.size, &image).with_context(failed)?;
    // Before anything else is refused: the same word, --force, goes on there, and would lose the children.
    require_no_children(&image, new, args).with_context(failed)?;
    judge(&image, new, args).with_context(failed)?;
    let replays = is_replayed_to_write(&image);
    drop(image);
    if replays {
        begin();
    }
    let mut image = args.parents.over(OpenOptions::new().write(true)).open(&args.image)?;
    let old = image.virtual_size();
    let new = wanted(args.size, &image).with_context(failed)?;
    judge(&image, new, args).with_context(failed)?;
    let second_gpt = SecondGpt::in_the_way(&image).with_context(failed)?;
    let was_gone = second_gpt::is_gone(&image).with_context(failed)?;
    let cut = cut_by(&image, new).with_context(failed)?;
    let tracking = warn_of_change_tracking(&args.image);
    let before = image.file_size();
    let shrink = if args.force { Shrink::Anything } else { Shrink::ZerosOnly };
    if new != old {
        warn_of_children(&args.image, image.headers().current().data_write_guid);
        begin();
    }
    let report = image.resize(new, shrink).with_context(failed);
    let closed = image.close();
    let report = report?;
    closed.with_context(failed)?;
    drop(image);
    let after = std::fs::metadata(&args.image)?.len();
    if context.json {
        return print_json(&json!({
            "changed": replays || report.size_before != report.size_after,
            "bytes_before": before,
            "bytes_after": after,
            "virtual_size_before": report.size_before,
            "virtual_size_after": report.size_after,
            "table_moved": report.table_moved,
            "change_tracking": tracking,
        }));
    }
    let name = named(&args.image);
    let mut out = io::stdout().lock();
    if report.size_before == report.size_after {
        let log = if replays { "only its log was replayed" } else { "the file was not changed" };
        writeln!(out, "{name}: has that size already; {log}")?;
    } else {
        writeln!(out, "{name}: {} before, {} now", size(old), size(new))?;
        if new > old {
            writeln!(out, "  enlarge the partition and its file system inside the guest")?;
        }
    }
    for lost in &cut {
        writeln!(out, "  {lost}")?;
    }
    match second_gpt {
        // `sgdisk` refuses a partition that reaches behind the end.
        Some(second) if new < second.end && !cut.is_empty() => {
            writeln!(out, "  the second copy of its GPT was cut off, too")?;
        }
        Some(second) if new < second.end => {
            writeln!(out, "  the second copy of its GPT was cut off; {}", new_second_gpt(args))?;
        }
        _ if was_gone && cut.is_empty() => {
            writeln!(out, "  the second copy of its GPT is missing; {}", new_second_gpt(args))?;
        }
        Some(second) if args.size == NewSize::Smallest => {
            writeln!(out, "  {}", way_around(args, second.least))?;
        }
        _ => {}
    }
    Ok(())
}

/// Refuses a disk that others build on: with another size it is another disk to them.
fn require_no_children(image: &Image, new: u64, args: &ResizeArgs) -> anyhow::Result<()> {
    let old = image.virtual_size();
    if args.force || new == old {
        return Ok(());
    }
    let identity = image.headers().current().data_write_guid;
    let force = match new < old {
        true => "--force resizes all the same, and cuts off what lies behind the new end",
        false => "--force resizes all the same",
    };
    require_no_children_of(&args.image, identity, force, |children| {
        changing_would_lose("resizing it", force, children)
    })
}

/// Refuses a size that cuts a partition.
fn judge(image: &Image, new: u64, args: &ResizeArgs) -> anyhow::Result<()> {
    let old = image.virtual_size();
    if new < old && !args.force {
        require_whole_partitions(image, new)?;
        if let Some(second) = SecondGpt::in_the_way(image)?.filter(|second| new < second.end) {
            bail!("{}", way_around(args, new.max(second.least)));
        }
    }
    Ok(())
}

/// What a smaller disk has lost of its partitions, or of a file system without one: a line each.
fn cut_by(image: &Image, new: u64) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    if let Some(found) = whole_disk_file_system(image)?.filter(|found| found.end > new) {
        let reached = size(found.end);
        let name = found.name;
        lines.push(format!("its file system ({name}) was cut: it reached to {reached}"));
    }
    for Partition { number, range, name, .. } in partitions(image)? {
        let name = if name.is_empty() { name } else { format!(" \"{}\"", shown(&name)) };
        let whole = size(range.end.saturating_sub(range.start));
        match new.saturating_sub(range.start) {
            _ if range.end <= new => {}
            0 => lines.push(format!("partition {number}{name}, all {whole} of it, was cut off")),
            left => lines.push(format!(
                "partition {number}{name} was cut: of its {whole}, the first {} are left",
                size(left)
            )),
        }
    }
    Ok(lines)
}

fn wanted(wish: NewSize, image: &Image) -> anyhow::Result<u64> {
    let old = image.virtual_size();
    let (size, sign, difference) = match wish {
        NewSize::Smallest => return Ok(smallest_size(image, &mut ())?),
        NewSize::To(size) => return Ok(size),
        NewSize::More(more) => (old.checked_add(more), '+', more),
        NewSize::Less(less) => (old.checked_sub(less), '-', less),
    };
    size.ok_or_else(|| anyhow!("{sign}{difference} from {old} bytes leaves no size"))
}

/// How to give a disk a second GPT again: a guest may not take the first one alone, whose numbers are those of the
/// larger disk.
fn new_second_gpt(args: &ResizeArgs) -> String {
    format!(
        "a new one, before its guest starts: `vhdx mount --detach {} DIR && sgdisk -e DIR/disk.raw && vhdx unmount DIR`",
        quoted(&args.image)
    )
}

/// How to make a disk smaller that has nothing at its end but the second copy of its GPT.
fn way_around(args: &ResizeArgs, size: u64) -> String {
    format!(
        "the second copy of its GPT lies at the end of the disk, behind nothing but zeros: `vhdx resize --force {} \
         {size}` cuts it off and keeps every partition; {}",
        quoted(&args.image),
        new_second_gpt(args)
    )
}

fn require_whole_partitions(image: &Image, new: u64) -> anyhow::Result<()> {
    if let Some(found) = whole_disk_file_system(image)?
        && found.end > new
    {
        bail!(
            "the disk holds a file system ({}) that reaches to byte {}, behind the new end at {new}: shrink it in the guest first (--force cuts it off)",
            found.name,
            found.end
        );
    }
    match end_of_last(image)? {
        Some(end) if end > new => bail!(
            "a partition of the disk reaches to byte {end}, behind the new end at {new}: shrink it in the guest first (--force cuts it off)"
        ),
        _ => Ok(()),
    }
}
