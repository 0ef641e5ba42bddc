//! `vhdx set`: what a disk tells its guest about itself.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhdxkit::chain::images_in;
use vhdxkit::format::Guid;
use vhdxkit::{Image, OpenOptions, ParentPolicy};

use super::Context;
use super::write::warn_of_change_tracking;
use crate::args::SetArgs;
use crate::console::print_json;

pub(crate) fn run(args: &SetArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot change {}", args.image.display());
    if !args.force {
        require_no_children(&args.image).with_context(failed)?;
    }
    let mut image =
        OpenOptions::new().write(true).parents(ParentPolicy::Follow).open(&args.image)?;
    let tracking = warn_of_change_tracking(&args.image);
    let changed = change(&mut image, args);
    let closed = image.close();
    changed.and(closed).with_context(failed)?;
    let geometry = image.geometry();
    if context.json {
        return print_json(&json!({
            "changed": true,
            "virtual_disk_id": geometry.disk_id().to_string(),
            "physical_sector_size": geometry.physical_sector_size(),
            "change_tracking": tracking,
        }));
    }
    let (name, id) = (args.image.display(), geometry.disk_id());
    let sectors = geometry.physical_sector_size();
    writeln!(io::stdout(), "{name}: disk id {id}, physical sectors of {sectors} bytes")?;
    Ok(())
}

fn change(image: &mut Image, args: &SetArgs) -> vhdxkit::Result<()> {
    let id = match args.what.new_disk_id {
        true => Some(Guid::random()),
        false => args.what.disk_id,
    };
    if let Some(bytes) = args.what.physical_sector_size {
        image.set_physical_sector_size(bytes)?;
    }
    id.map_or(Ok(()), |id| image.set_disk_id(id))
}

/// Children know a disk by its contents: what is changed here belongs to them.
fn require_no_children(path: &Path) -> anyhow::Result<()> {
    let identity = Image::open(path)?.headers().current().data_write_guid;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let children: Vec<String> = images_in(folder)?
        .iter()
        .filter(|image| image.is_child_of(identity))
        .map(|image| image.path.display().to_string())
        .collect();
    if !children.is_empty() {
        bail!(
            "it has children, which would not know it any more: {} (--force changes it all the same; \
             `vhdx relink --ignore-parent-id` links them again)",
            children.join(", ")
        );
    }
    Ok(())
}
