//! `vhdx set`: what a disk tells its guest about itself.

use std::io::{self, Write};

use anyhow::Context as _;
use serde_json::json;
use vhdxkit::format::Guid;
use vhdxkit::{Image, OpenOptions, ParentPolicy};

use super::Context;
use super::children::require_no_children;
use super::write::warn_of_change_tracking;
use crate::args::SetArgs;
use crate::console::{named, print_json};

pub(crate) fn run(args: &SetArgs, context: Context) -> anyhow::Result<()> {
    let failed = || format!("cannot change {}", args.image.display());
    if !args.force {
        require_no_children(&args.image, |children| {
            format!(
                "it has children, which would not know it any more: {children} (--force changes it all the \
                 same; `vhdx relink --ignore-parent-id` links them again)"
            )
        })
        .with_context(failed)?;
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
    let (name, id) = (named(&args.image), geometry.disk_id());
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
