//! `vhdx check`.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use vhdxkit::OpenOptions;
use vhdxkit::defect::Severity;
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::{CheckedImage, check_chain};

use super::Context;
use crate::args::CheckArgs;
use crate::console::{Bar, count, print_json, stop_on_signal};
use crate::failure::exit;

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    let path = &args.image.image;
    stop_on_signal();
    let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
    let mut bar = Bar::new("checking", length.min(1 << 29), context.quiet);
    let options = OpenOptions::new().force_share(args.image.open.force_share);
    let images = check_chain(path, &args.parents.over(options), &mut bar)?;
    drop(bar);
    let problems = images.iter().any(|image| image.findings.has_problems());
    if context.json {
        print_json(&as_json(&images, problems))?;
    } else {
        for image in &images {
            print_text(&image.path.display().to_string(), &image.findings)?;
        }
    }
    Ok(if problems { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}

fn as_json(images: &[CheckedImage], problems: bool) -> Value {
    let mut list = Vec::new();
    let mut left_out = serde_json::Map::new();
    for CheckedImage { path, findings, .. } in images {
        let path = path.display().to_string();
        list.extend(findings.list().iter().map(|finding| {
            json!({
                "code": finding.code(),
                "severity": finding.severity().name(),
                "structure": finding.structure(),
                "offset": finding.offset(),
                "message": finding.to_string(),
                "repair": finding.repair(),
                "path": path,
            })
        }));
        for (code, rest) in findings.left_out() {
            let sum = left_out.get(code).and_then(Value::as_u64).unwrap_or(0) + rest as u64;
            left_out.insert(code.to_owned(), json!(sum));
        }
    }
    json!({
        "result": if problems { "problems" } else { "ok" },
        "findings": list,
        "left_out": left_out,
        "repaired": [],
    })
}

fn print_text(path: &str, findings: &Findings) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for finding in findings.list() {
        let place = finding.offset().map(|at| format!(" at {at:#x}")).unwrap_or_default();
        let (severity, code) = (finding.severity().name(), finding.code());
        writeln!(out, "{severity:<8}{code:<11}{}{place}: {finding}", finding.structure())?;
        if let Some(repair) = finding.repair().filter(|_| finding.severity() > Severity::Info) {
            writeln!(out, "{:<19}could be repaired: {repair}", "")?;
        }
    }
    for (code, rest) in findings.left_out() {
        writeln!(out, "{:<8}{code:<11}and {rest} more", "")?;
    }
    let of = |severity| findings.list().iter().filter(|f| f.severity() == severity).count() as u64;
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    match (errors, warnings) {
        (0, 0) => writeln!(out, "{path}: no problem found")?,
        (0, warnings) => {
            let warnings = count(warnings, "warning", "warnings");
            writeln!(out, "{path}: {warnings}; every byte can be read")?;
        }
        (errors, warnings) => {
            let (errors, warnings) =
                (count(errors, "error", "errors"), count(warnings, "warning", "warnings"));
            writeln!(out, "{path}: {errors}, {warnings}; nothing was changed")?;
        }
    }
    Ok(())
}
