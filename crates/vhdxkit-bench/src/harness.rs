//! Side by side: every side does its work once, in turn, and again; medians; ratios of pairs.
//!
//! A shared machine is slow for a second here and fast for another there. Two sides that took turns met
//! the same weather, so each of our runs is divided by the other side's run of the same round, and the
//! median of those ratios is what targets speak of. Their spread is the noise.

use anyhow::{Context as _, bail};

use crate::process::{have, interrupted};

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds: fewer are better.
    Seconds,
    /// Operations a second: more are better.
    Rate,
    /// Bytes: fewer are better.
    Bytes,
    /// Calls, or whatever is counted: exact, the same each time.
    Count,
}

/// What is demanded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Want {
    /// We are at least so many times as fast as the other side.
    Speed(f64),
    /// We take at most so many times as long as the other side.
    Time(f64),
    /// Our figure is at most this.
    Most(f64),
}

/// One way of doing a piece of work. A run gives its figure; what it prepares is not in it.
pub(crate) struct Side<'a> {
    name: String,
    needs: Vec<&'static str>,
    want: Option<Want>,
    run: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        Self { name: name.into(), needs: Vec::new(), want: None, run: Box::new(run) }
    }

    /// A program without which this side is named as missing.
    pub(crate) fn needs(mut self, program: &'static str) -> Self {
        self.needs.push(program);
        self
    }

    /// What is demanded: of its figure, or of our ratio to it.
    pub(crate) fn want(mut self, want: Want) -> Self {
        self.want = Some(want);
        self
    }
}

/// Median, least and most of a side's figures, or of ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        // Of an even number the two in the middle count half each.
        let median = (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0;
        Self { median, least: sorted[0], most: sorted[last] }
    }
}

/// One side's line of the table.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) side: String,
    pub(crate) told: Told,
    pub(crate) want: Option<Want>,
}

/// What there is to tell of a side.
#[derive(Debug)]
pub(crate) enum Told {
    /// Our own figures.
    Ours(Spread),
    /// Another side's figures, and how we compare: as times as fast, or as a share of its time where
    /// that is what is demanded. Counts are not compared.
    Other(Spread, Option<Spread>),
    /// Why there is nothing.
    Missing(String),
}

impl Line {
    /// How the demand was met: above 1 is met, by that factor.
    pub(crate) fn margin(&self) -> Option<f64> {
        match (self.want?, &self.told) {
            (Want::Most(most), Told::Ours(found) | Told::Other(found, _)) => {
                Some(most / found.median)
            }
            (Want::Speed(least), Told::Other(_, Some(ratio))) => Some(ratio.median / least),
            (Want::Time(most), Told::Other(_, Some(ratio))) => Some(most / ratio.median),
            _ => None,
        }
    }
}

/// One piece of work that several sides do; ours is the first.
pub(crate) struct Case<'a> {
    pub(crate) row: u32,
    pub(crate) work: String,
    pub(crate) unit: Unit,
    sides: Vec<Side<'a>>,
}

/// What came of a [`Case`].
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) row: u32,
    pub(crate) work: String,
    pub(crate) unit: Unit,
    pub(crate) lines: Vec<Line>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(row: u32, work: impl Into<String>, unit: Unit, ours: Side<'a>) -> Self {
        Self { row, work: work.into(), unit, sides: vec![ours] }
    }

    /// Another side.
    pub(crate) fn against(mut self, side: Side<'a>) -> Self {
        self.sides.push(side);
        self
    }

    /// Runs every side in turn, so many times.
    pub(crate) fn run(mut self, rounds: usize) -> anyhow::Result<Outcome> {
        let missing: Vec<Option<&str>> = self
            .sides
            .iter()
            .map(|side| side.needs.iter().copied().find(|program| !have(program)))
            .collect();
        let mut figures: Vec<Vec<f64>> = self.sides.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (at, side) in
                self.sides.iter_mut().enumerate().filter(|(at, _)| missing[*at].is_none())
            {
                if interrupted() {
                    bail!("interrupted");
                }
                let figure = (side.run)();
                figures[at].push(figure.with_context(|| format!("{}: {}", self.work, side.name))?);
            }
        }
        let unit = self.unit;
        let lines = self.sides.into_iter().enumerate().map(|(at, side)| {
            let told = match (at, missing[at]) {
                (_, Some(program)) => Told::Missing(format!("{program} is not installed")),
                (0, None) => Told::Ours(Spread::of(figures[0].iter().copied())),
                (at, None) => {
                    let ratio = ratio(unit, side.want, &figures[0], &figures[at]);
                    Told::Other(Spread::of(figures[at].iter().copied()), ratio)
                }
            };
            Line { side: side.name, told, want: side.want }
        });
        Ok(Outcome { row: self.row, work: self.work, unit, lines: lines.collect() })
    }
}

fn ratio(unit: Unit, want: Option<Want>, ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    if unit == Unit::Count {
        return None;
    }
    // Ours to theirs, except where that would be slowness and speed is what is asked for.
    let inverse = unit != Unit::Rate && !matches!(want, Some(Want::Time(_)));
    let pairs = ours.iter().zip(theirs);
    Some(Spread::of(
        pairs.map(|(ours, theirs)| if inverse { theirs / ours } else { ours / theirs }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(unit: Unit, want: Want, ours: [f64; 3], theirs: [f64; 3]) -> Outcome {
        let (mut ours, mut theirs) = (ours.into_iter(), theirs.into_iter());
        let ours = Side::new("we", || ours.next().context("too many runs"));
        let theirs = Side::new("they", || theirs.next().context("too many runs"));
        Case::new(1, "work", unit, ours).against(theirs.want(want)).run(3).unwrap()
    }

    /// The machine was three times as slow in the second round: the ratio of pairs does not care.
    #[test]
    fn a_slow_round_changes_no_ratio() {
        let ours = [1.0, 3.0, 1.0];
        for (unit, want, margin) in [
            (Unit::Seconds, Want::Time(1.0), 2.0),
            (Unit::Seconds, Want::Speed(4.0), 0.5),
            (Unit::Rate, Want::Speed(0.25), 2.0),
        ] {
            let outcome = outcome(unit, want, ours, [2.0, 6.0, 2.0]);
            assert_eq!(outcome.lines[1].margin(), Some(margin), "{unit:?} {want:?}");
        }
    }

    #[test]
    fn sides_take_turns() {
        let turns = std::cell::RefCell::new(String::new());
        let side = |name: &'static str| {
            let turns = &turns;
            Side::new(name, move || {
                turns.borrow_mut().push_str(name);
                Ok(1.0)
            })
        };
        Case::new(1, "work", Unit::Rate, side("a")).against(side("b")).run(3).unwrap();
        assert_eq!(*turns.borrow(), "ababab");
    }

    #[test]
    fn a_side_that_is_not_installed_is_named() {
        let ours = Side::new("we", || Ok(1.0));
        let theirs = Side::new("they", || panic!("must not run")).needs("no-such-program");
        let outcome = Case::new(1, "work", Unit::Rate, ours).against(theirs).run(1).unwrap();
        assert!(
            matches!(&outcome.lines[1].told, Told::Missing(why) if why.contains("no-such-program"))
        );
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }
}
