//! `vhdx relink`.

use std::io::{self, Write};

use anyhow::Context as _;
use serde_json::json;
use vhdxkit::ops::relink::relink;

use super::Context;
use crate::args::RelinkArgs;
use crate::console::{named, print_json};

pub(crate) fn run(args: &RelinkArgs, context: Context) -> anyhow::Result<()> {
    let report = relink(&args.child, &args.parent, args.ignore_parent_id)
        .with_context(|| format!("cannot relink {}", args.child.display()))?;
    if context.json {
        return print_json(&json!({
            "changed": report.changed,
            "other_identity": report.other_identity,
        }));
    }
    let (child, parent) = (named(&args.child), named(&args.parent));
    let mut out = io::stdout().lock();
    match report.changed {
        true => writeln!(out, "{child}: a child of {parent} now")?,
        false => writeln!(out, "{child}: said so already; it was not changed")?,
    }
    if report.other_identity {
        writeln!(
            out,
            "  that disk has another identity than the one the child was made from: check what it shows"
        )?;
    }
    Ok(())
}
