//! `vhdx check`.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use vhdxkit::defect::Severity;
use vhdxkit::findings::Findings;
use vhdxkit::ops::check::check_file;

use super::Context;
use crate::args::CheckArgs;
use crate::console::{Bar, count, print_json, stop_on_signal};
use crate::failure::exit;

pub(crate) fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    let path = &args.image.image;
    stop_on_signal();
    let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
    let mut bar = Bar::new("checking", length.min(1 << 29), context.quiet);
    let findings = check_file(path, args.image.open.force_share, &mut bar)?;
    drop(bar);
    if context.json {
        print_json(&as_json(&findings))?;
    } else {
        print_text(&path.display().to_string(), &findings)?;
    }
    Ok(if findings.has_problems() { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}

fn as_json(findings: &Findings) -> Value {
    let list: Vec<Value> = findings
        .list()
        .iter()
        .map(|finding| {
            json!({
                "code": finding.code(),
                "severity": finding.severity().name(),
                "structure": finding.structure(),
                "offset": finding.offset(),
                "message": finding.to_string(),
                "repair": finding.repair(),
            })
        })
        .collect();
    let left_out: serde_json::Map<String, Value> =
        findings.left_out().map(|(code, rest)| (code.to_owned(), json!(rest))).collect();
    json!({
        "result": if findings.has_problems() { "problems" } else { "ok" },
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
