//! What a campaign has found, and its figures as a table.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::class::Class;
use crate::device::Device;

/// What was found of one class.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Workloads carried out.
    pub workloads: usize,
    /// Sync windows taken apart.
    pub windows: usize,
    /// Crash states made.
    pub states: usize,
    /// Different durable images among them.
    pub distinct: HashSet<u64>,
    /// How many of them QEMU has replayed and shown right.
    pub qemu: usize,
    /// Images that were checked: some with several expectations.
    pub checked: HashSet<u64>,
    /// What did not hold, told in full.
    pub failures: Vec<String>,
    /// On a disk that cannot be trusted: all is as promised nevertheless.
    pub held: usize,
    /// Likewise: the image is refused, or a check finds something.
    pub told: usize,
    /// Likewise: nobody is told that what was made durable is older.
    pub older: usize,
    /// Likewise: nobody is told that the guest is shown what it never wrote there.
    pub wrong: usize,
}

/// What a campaign has found, by class.
pub struct Outcome {
    /// In the order of [`Class::ALL`].
    pub tallies: Vec<(Class, Tally)>,
    /// The kind of disk.
    pub device: Device,
    /// How long it took.
    pub time: Duration,
}

/// A column of figures.
type Column = (&'static str, fn(&Tally) -> usize);

impl Outcome {
    /// Everything that did not hold.
    pub fn failures(&self) -> impl Iterator<Item = &String> {
        self.tallies.iter().flat_map(|(_, tally)| &tally.failures)
    }

    /// Different durable images, over all classes.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.sum(|tally| tally.distinct.len())
    }

    fn sum(&self, figure: fn(&Tally) -> usize) -> usize {
        self.tallies.iter().map(|(_, tally)| figure(tally)).sum()
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = vec![
            ("workloads", |t| t.workloads),
            ("sync windows", |t| t.windows),
            ("crash states", |t| t.states),
            ("distinct images", |t| t.distinct.len()),
        ];
        match self.device.is_honest() {
            true => columns.push(("by QEMU", |t| t.qemu)),
            false => columns.extend([
                ("as promised", (|t| t.held) as fn(&Tally) -> usize),
                ("refused or found by check", |t| t.told),
                ("older, nobody told", |t| t.older),
                ("wrong, nobody told", |t| t.wrong),
            ]),
        }
        columns.push(("failures", |t| t.failures.len()));
        columns
    }

    /// The figures, as Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let columns = self.columns();
        let mut text = String::from("| class |");
        columns.iter().for_each(|(name, _)| text.push_str(&format!(" {name} |")));
        let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
        for (class, tally) in self.tallies.iter().filter(|(_, tally)| tally.workloads > 0) {
            let _ = write!(text, "| {} |", class.name());
            columns.iter().for_each(|(_, figure)| text.push_str(&format!(" {} |", figure(tally))));
            text.push('\n');
        }
        text.push_str("| **all** |");
        columns.iter().for_each(|(_, figure)| text.push_str(&format!(" {} |", self.sum(*figure))));
        text.push('\n');
        text
    }
}
