//! Who judges: an open stops at the first error, a check notes everything and goes on.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Result;
use crate::defect::{Defect, Severity};
use crate::format::limits::MAX_FINDINGS_PER_CODE;
use crate::ops::doubt::Doubt;

/// Collects defects while structures are read.
///
/// The reading code reports each defect here and carries on as well as it can; whether it may
/// carry on is decided in this one place.
#[derive(Debug, Default)]
pub struct Findings {
    keep_going: bool,
    list: Vec<Defect>,
    per_code: BTreeMap<&'static str, usize>,
    pub(crate) doubt: Doubt,
}

impl Findings {
    /// For opening: the first error ends it, the rest is kept as warnings.
    pub(crate) fn strict() -> Self {
        Self::default()
    }

    /// For checking: nothing ends it.
    pub(crate) fn tolerant() -> Self {
        Self { keep_going: true, ..Self::default() }
    }

    /// Notes a defect; fails when it ends the open.
    pub(crate) fn report(&mut self, defect: Defect) -> Result<()> {
        if !self.keep_going && defect.severity() == Severity::Error {
            return Err(defect.into());
        }
        self.note(defect);
        Ok(())
    }

    /// Notes a defect that does not end this open, whatever it is.
    pub(crate) fn note(&mut self, defect: Defect) {
        tracing::debug!(code = defect.code(), %defect, "finding");
        let seen = self.per_code.entry(defect.code()).or_default();
        *seen = seen.saturating_add(1);
        if *seen <= MAX_FINDINGS_PER_CODE {
            self.list.push(defect);
        }
    }

    /// Counts further findings of a kind that is already listed in full.
    pub(crate) fn count_more(&mut self, code: &'static str, more: usize) {
        let seen = self.per_code.entry(code).or_default();
        *seen = seen.saturating_add(more);
    }

    /// What was found, in the order of reading.
    #[must_use]
    pub fn list(&self) -> &[Defect] {
        &self.list
    }

    /// Codes that were found more often than is kept, with how many findings were left out.
    pub fn left_out(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        self.per_code
            .iter()
            .map(|(&code, &seen)| (code, seen.saturating_sub(MAX_FINDINGS_PER_CODE)))
            .filter(|&(_, rest)| rest > 0)
    }

    /// The blocks of the disk whose contents a check cannot vouch for, in order, whether or not a finding that is
    /// listed names them. Of a disk whose tables cannot be read nothing is known: then there are none.
    #[must_use]
    pub fn doubtful_blocks(&self) -> Vec<Range<u64>> {
        self.doubt.clone().ranges()
    }

    /// Whether something has written over the block table: it holds what no writer of the format can have meant.
    #[must_use]
    pub fn is_table_overwritten(&self) -> bool {
        self.doubt.is_overwritten()
    }

    /// Whether anything is worse than a remark.
    #[must_use]
    pub fn has_problems(&self) -> bool {
        self.list.iter().any(|defect| defect.severity() > Severity::Info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_stops_at_the_first_error_and_a_check_does_not() {
        let error = || Defect::Version { at: 0, found: 2 };
        let remark = || Defect::FileSizeUneven { length: 5 };
        let mut open = Findings::strict();
        open.report(remark()).unwrap();
        assert!(open.report(error()).is_err());
        assert_eq!(open.list(), [remark()]);

        let mut check = Findings::tolerant();
        check.report(remark()).unwrap();
        assert!(!check.has_problems());
        for _ in 0..30 {
            check.report(error()).unwrap();
        }
        assert!(check.has_problems());
        assert_eq!(check.list().len(), 1 + MAX_FINDINGS_PER_CODE);
        assert_eq!(check.left_out().collect::<Vec<_>>(), [("V5", 30 - MAX_FINDINGS_PER_CODE)]);
    }
}
