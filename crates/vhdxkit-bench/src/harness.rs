//! Side by side: one run of each in turn, medians, ratios.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};

/// One way of doing a piece of work; a run gives its figure.
pub(crate) struct Side<'a> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// The figures of one side.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) name: String,
    sorted: Vec<f64>,
}

impl Figures {
    pub(crate) fn median(&self) -> f64 {
        self.sorted[self.sorted.len() / 2]
    }

    fn shown(&self, unit: Unit) -> String {
        let (low, high) = (self.sorted[0], self.sorted[self.sorted.len() - 1]);
        format!("{} ({}–{})", unit.shown(self.median()), unit.shown(low), unit.shown(high))
    }
}

/// What the figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds: less is better.
    Seconds,
    /// Operations a second: more is better.
    Rate,
}

impl Unit {
    fn shown(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 0.1 => format!("{:.1} ms", value * 1000.0),
            Self::Seconds => format!("{value:.2} s"),
            Self::Rate => format!("{value:.0}/s"),
        }
    }
}

/// Runs every side in turn, `rounds` times.
pub(crate) fn interleave(rounds: usize, mut sides: Vec<Side<'_>>) -> anyhow::Result<Vec<Figures>> {
    let mut figures: Vec<Vec<f64>> = sides.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (side, figures) in sides.iter_mut().zip(&mut figures) {
            figures.push((side.run)().with_context(|| side.name.clone())?);
        }
    }
    Ok(sides
        .into_iter()
        .zip(figures)
        .map(|(side, mut sorted)| {
            sorted.sort_by(f64::total_cmp);
            Figures { name: side.name, sorted }
        })
        .collect())
}

/// A demand on the ratio of our figure (the first) to another's.
pub(crate) struct Target {
    pub(crate) against: usize,
    /// At least this for rates, at most this for seconds.
    pub(crate) ratio: f64,
}

/// The table as it grows.
#[derive(Default)]
pub(crate) struct Table {
    text: String,
    pub(crate) missed: usize,
}

impl Table {
    /// One piece of work: our figures first.
    pub(crate) fn row(
        &mut self,
        number: &str,
        work: &str,
        unit: Unit,
        figures: &[Figures],
        targets: &[Target],
    ) {
        let ours = &figures[0];
        for (at, other) in figures.iter().enumerate().skip(1) {
            let ratio = ours.median() / other.median();
            let target = targets.iter().find(|target| target.against == at);
            let verdict = match target {
                None => "–".to_owned(),
                Some(target) => {
                    let (met, sign) = match unit {
                        Unit::Rate => (ratio >= target.ratio, "≥"),
                        Unit::Seconds => (ratio <= target.ratio, "≤"),
                    };
                    self.missed += usize::from(!met);
                    let word = if met { "met" } else { "**missed**" };
                    let demanded = match target.ratio {
                        small if small < 0.1 => format!("1/{:.0}", 1.0 / small),
                        ratio => ratio.to_string(),
                    };
                    format!("{sign} {demanded}: {word}")
                }
            };
            let shown = if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") };
            self.line(&[
                number,
                work,
                &ours.shown(unit),
                &format!("{}: {}", other.name, other.shown(unit)),
                &shown,
                &verdict,
            ]);
        }
    }

    /// A line that is no comparison of times.
    pub(crate) fn line(&mut self, cells: &[&str]) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        eprintln!("| {} |", cells.join(" | "));
    }

    /// A figure that must not be exceeded.
    pub(crate) fn bound(&mut self, number: &str, work: &str, found: f64, most: f64, unit: &str) {
        let met = found <= most;
        self.missed += usize::from(!met);
        let word = if met { "met" } else { "**missed**" };
        let verdict = format!("≤ {most}{unit}: {word}");
        self.line(&[number, work, &format!("{found:.1}{unit}"), "–", "–", &verdict]);
    }

    pub(crate) fn markdown(&self) -> String {
        format!(
            "| row | work | vhdxkit, median (least–most) | against | ratio | target |\n\
             |---|---|---|---|---:|---|\n{}",
            self.text
        )
    }
}

/// Seconds that a program takes.
pub(crate) fn timed(program: &str, arguments: &[&str]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(seconds)
}

/// Whether a program is there.
pub(crate) fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the folder's name is text")
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}
