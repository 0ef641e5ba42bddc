//! The table: one line for each side of each piece of work, in Markdown.

use std::fmt::Write as _;

use crate::harness::{Line, Outcome, Spread, Told, Unit, Want};

/// Outcomes as they come in. Each is shown on stderr at once.
#[derive(Default)]
pub(crate) struct Table {
    outcomes: Vec<Outcome>,
    /// Rows of which nothing could be measured, and why.
    missing: Vec<(u32, String)>,
}

impl Table {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        eprint!("{}", lines(&outcome));
        self.outcomes.push(outcome);
    }

    pub(crate) fn missing(&mut self, row: u32, why: impl Into<String>) {
        let why = why.into();
        eprintln!("| {row} | missing: {why} |");
        self.missing.push((row, why));
    }

    /// How many targets were met, the table, and what was missed.
    pub(crate) fn markdown(&self) -> String {
        let margins: Vec<f64> = self.all().filter_map(|(_, line)| line.margin()).collect();
        let met = margins.iter().filter(|margin| **margin >= 1.0).count();
        let mut text = format!("{met} of {} targets met.\n\n", margins.len());
        text += "| row | work | side | median (least – most) | vhdxkit against it | target | |\n\
                 |---:|---|---|---|---|---|---|\n";
        let mut rows: Vec<(u32, String)> =
            self.outcomes.iter().map(|outcome| (outcome.row, lines(outcome))).collect();
        rows.extend(self.missing.iter().map(|(row, why)| {
            let line = format!("| {row} | | | missing: {} | | | |\n", why.replace('\n', " "));
            (*row, line)
        }));
        rows.sort_by_key(|(row, _)| *row);
        text.extend(rows.into_iter().map(|(_, lines)| lines));
        for (outcome, line) in self.all() {
            if let Some(margin) = line.margin().filter(|margin| *margin < 1.0) {
                let (row, work, side) = (outcome.row, &outcome.work, &line.side);
                let missed = missed(line.want, margin);
                let _ = write!(text, "\nRow {row} {missed}: {work}; {side}.\n");
            }
        }
        text
    }

    fn all(&self) -> impl Iterator<Item = (&Outcome, &Line)> {
        self.outcomes
            .iter()
            .flat_map(|outcome| outcome.lines.iter().map(move |line| (outcome, line)))
    }
}

fn lines(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (at, line) in outcome.lines.iter().enumerate() {
        let (row, work) = match at {
            0 => (outcome.row.to_string(), outcome.work.as_str()),
            _ => (String::new(), ""),
        };
        let (figure, against) = match &line.told {
            Told::Ours(figures) => (spread(*figures, |f| shown(outcome.unit, f)), String::new()),
            Told::Other(figures, ratio) => {
                let figure = spread(*figures, |f| shown(outcome.unit, f));
                let share = matches!(line.want, Some(Want::Time(_)));
                let what = match (share, outcome.unit) {
                    (true, _) => " of its time",
                    (false, Unit::Bytes) => " less",
                    (false, _) => " as fast",
                };
                let against = ratio.map(|ratio| format!("{}{what}", spread(ratio, times)));
                (figure, against.unwrap_or_default())
            }
            Told::Missing(why) => (format!("missing: {why}"), String::new()),
        };
        let want = line.want.map(|want| demanded(outcome.unit, want)).unwrap_or_default();
        let verdict = line.margin().map(|margin| verdict(line.want, margin)).unwrap_or_default();
        let side = &line.side;
        let _ = writeln!(
            text,
            "| {row} | {work} | {side} | {figure} | {against} | {want} | {verdict} |"
        );
    }
    text
}

/// The median, with the least and the most where they differ.
fn spread(figures: Spread, show: impl Fn(f64) -> String) -> String {
    let (median, least, most) = (show(figures.median), show(figures.least), show(figures.most));
    if least == most { median } else { format!("{median} ({least} – {most})") }
}

fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1000.0),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Rate => format!("{value:.0}/s"),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::Count => format!("{value:.1}").trim_end_matches(".0").to_owned(),
    }
}

fn times(ratio: f64) -> String {
    match ratio {
        small if small < 9.95 => format!("{small:.2} ×"),
        large => format!("{large:.0} ×"),
    }
}

fn demanded(unit: Unit, want: Want) -> String {
    match want {
        Want::Speed(least) => format!("≥ {least} ×"),
        Want::Time(most) => format!("≤ {most} ×"),
        Want::Most(most) => format!("≤ {}", shown(unit, most)),
    }
}

fn verdict(want: Option<Want>, margin: f64) -> String {
    match margin {
        short if short < 1.0 => format!("**{}**", missed(want, short)),
        amply if amply >= 2.0 => format!("met {amply:.1} times over"),
        met => format!("met by {}", percent(met - 1.0)),
    }
}

fn missed(want: Option<Want>, margin: f64) -> String {
    match want {
        Some(Want::Speed(_)) => format!("missed, {} short", percent(1.0 - margin)),
        _ => format!("missed, {} over", percent(1.0 / margin - 1.0)),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Case, Side};

    fn table(ours: f64, theirs: f64, want: Want) -> String {
        let mut table = Table::default();
        let case = Case::new(8, "a copy", Unit::Seconds, Side::new("vhdxkit", || Ok(ours)));
        let theirs = Side::new("dd", || Ok(theirs)).want(want);
        table.add(case.against(theirs).run(1).unwrap());
        table.markdown()
    }

    #[test]
    fn a_missed_target_says_by_how_much() {
        let text = table(1.21, 1.0, Want::Time(1.1));
        assert!(text.starts_with("0 of 1 targets met."), "{text}");
        assert!(
            text.contains("| 1.21 × of its time | ≤ 1.1 × | **missed, 10 % over** |"),
            "{text}"
        );
        assert!(text.ends_with("\nRow 8 missed, 10 % over: a copy; dd.\n"), "{text}");
        assert!(table(1.0, 10.0, Want::Speed(20.0)).contains("**missed, 50 % short**"));
        assert!(table(1.0, 1.0, Want::Time(1.1)).contains("met by 10 %"));
        assert!(
            table(0.1, 8.0, Want::Speed(20.0)).contains("| 80 × as fast | ≥ 20 × | met 4.0 times")
        );
    }

    #[test]
    fn a_row_that_could_not_be_measured_stands_in_its_place() {
        let mut table = Table::default();
        table.missing(12, "no XFS");
        let case = Case::new(4, "syncs", Unit::Count, Side::new("vhdxkit", || Ok(2.0)));
        table.add(case.run(1).unwrap());
        let text = table.markdown();
        assert!(text.find("| 4 | syncs | vhdxkit | 2 |") < text.find("| 12 | | | missing: no XFS"));
    }
}
