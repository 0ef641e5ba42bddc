//! `vhdx check`.
//!
//! Who does what: this file says which of the command's tasks is meant, `repair.rs` mends and takes back,
//! `findings.rs` and `verdict.rs` print what both have to say, by the `outlook.rs` on a repair.

use std::io;
use std::process::ExitCode;

use super::findings::{as_json, check, exit_code, has_problems, print_findings};
use super::outlook::Outlook;
use super::verdict::print_verdict;
use super::{Context, foreign, repair};
use crate::args::CheckArgs;
use crate::console::print_json;

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    if let Some(undo) = &args.mend.undo {
        return repair::undo(&args.image.image, undo, args.mend.force, context);
    }
    if !context.json
        && let Some(foreign) = foreign::recognise(&args.image.image)
    {
        foreign.print(&mut io::stdout().lock(), &args.image.image, args.mend.repair)?;
        return Ok(exit_code(true));
    }
    if args.mend.repair {
        return repair::run(args, context);
    }
    let images = check(args, context)?;
    let problems = has_problems(&images);
    if context.json {
        print_json(&as_json(&images, &[]))?;
    } else {
        let mut out = io::stdout().lock();
        for image in &images {
            let outlook = match image.findings.has_problems() {
                true => Outlook::of(&image.path, args.image.open.force_share),
                false => Outlook::default(),
            };
            let outlook = outlook.with_link(image, args);
            print_findings(&mut out, &image.path, &image.findings, &outlook)?;
            print_verdict(&mut out, image, &outlook)?;
        }
    }
    Ok(exit_code(problems))
}
