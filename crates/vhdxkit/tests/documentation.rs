//! The documentation says the truth where a program can tell: every code that a check can report
//! is explained in `docs/findings.md`, and nothing else is.

use std::collections::BTreeSet;

fn codes(text: &str, find: impl Fn(&str) -> Option<String>) -> BTreeSet<String> {
    text.lines().filter_map(|line| find(line.trim())).collect()
}

#[test]
fn every_code_of_a_finding_is_documented() {
    let table = include_str!("../src/defect.rs");
    let page = include_str!("../../../docs/findings.md");
    // Rows of the table look like `=> "V7", if *dirty …`.
    let known = codes(table, |line| {
        let rest = line.split("=> \"").nth(1)?;
        let code = rest.split('"').next()?;
        code.starts_with(['V', 'M', 'W', 'I']).then(|| code.to_owned())
    });
    let told = codes(page, |line| {
        let code = line.strip_prefix("| ")?.split(" |").next()?;
        code.starts_with(['V', 'M', 'W', 'I']).then(|| code.to_owned())
    });
    assert!(known.len() > 40, "the table was not read: {known:?}");
    assert_eq!(known, told);
}
