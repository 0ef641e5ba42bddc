//! What `check` found, child first.

use vhdxkit::defect::Severity;

use super::Facts;
use super::markup::{Html, cut};

/// Images of a chain whose findings are listed.
const MOST_IMAGES: usize = 16;

pub(super) fn write(html: &mut Html, facts: &Facts) {
    let many = facts.checked.len() > 1;
    for image in facts.checked.iter().take(MOST_IMAGES) {
        if many {
            html.element("h3", &[], |html| {
                html.line("code", &[], cut(&image.path.display().to_string(), 300));
            });
        }
        if image.findings.list().is_empty() {
            html.line("p", &[], "Nothing.");
            continue;
        }
        html.table(&["Severity", "Code", "Where", "What", "What a repair would do"], |html| {
            let mut list: Vec<_> = image.findings.list().iter().collect();
            list.sort_by_key(|found| std::cmp::Reverse(found.severity()));
            for found in list {
                let severity = found.severity();
                html.element("tr", &[("class", &severity.name())], |html| {
                    html.line("td", &[], sign(severity));
                    html.line("td", &[], found.code());
                    html.element("td", &[], |html| {
                        html.text(found.structure());
                        if let Some(at) = found.offset() {
                            html.empty("br", &[]);
                            html.line("code", &[], format_args!("{at:#x}"));
                        }
                    });
                    html.line("td", &[], cut(&found.to_string(), 1000));
                    html.line("td", &[], found.repair().unwrap_or("–"));
                });
            }
            for (code, rest) in image.findings.left_out() {
                html.element("tr", &[], |html| {
                    html.line("td", &[], "");
                    html.line("td", &[], code);
                    html.line("td", &[("colspan", &3)], format_args!("and {rest} more"));
                });
            }
        });
    }
    if facts.checked.len() > MOST_IMAGES {
        let more = facts.checked.len() - MOST_IMAGES;
        html.line(
            "p",
            &[],
            format_args!("{more} more images of the chain are not listed; vhdx check lists all."),
        );
    }
}

/// Severities can be told apart in black and white.
fn sign(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "✗ error",
        Severity::Warning => "! warning",
        Severity::Info => "· info",
    }
}
