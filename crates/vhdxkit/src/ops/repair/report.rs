//! What a repair does and leaves, in plain words.

use std::ops::Range;

use crate::defect::{Defect, Severity};
use crate::findings::Findings;

use super::Word;

/// Guest ranges kept; what lies beyond is counted.
const MOST_LOST: usize = 256;

/// One thing that a repair does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The code of the finding that goes with it.
    pub code: &'static str,
    /// What is done, and where.
    pub what: String,
    /// Why that is right, or what is lost.
    pub why: String,
    /// How many findings it is for.
    pub count: u64,
}

/// A finding that a repair does nothing about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Its code.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The finding.
    pub what: String,
    /// Why nothing is done.
    pub why: String,
    /// What the user can say so that something is done.
    pub word: Option<Word>,
    /// How many findings of this kind.
    pub count: u64,
}

/// What is gathered while a repair is thought out.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) steps: Vec<Step>,
    pub(super) left: Vec<Left>,
    /// Ranges of the disk that hold zeros from now on, because what they held is gone.
    pub(super) lost: Vec<Range<u64>>,
    pub(super) lost_bytes: u64,
    /// Steps that are only right when nothing is wrong afterwards: their findings.
    pub(super) only_if_clean: Vec<Defect>,
}

impl Report {
    /// Something will be done about a finding. What is alike is told once and counted.
    pub(super) fn step(&mut self, defect: &Defect, what: String, why: &str) {
        self.step_of(defect.code(), what, why);
    }

    pub(super) fn step_of(&mut self, code: &'static str, what: String, why: &str) {
        match self.steps.iter_mut().find(|step| step.code == code && step.why == why) {
            Some(same) => same.count = same.count.saturating_add(1),
            None => self.steps.push(Step { code, what, why: why.to_owned(), count: 1 }),
        }
    }

    /// Nothing can be done about a finding.
    pub(super) fn beyond(&mut self, defect: &Defect, why: &str) {
        self.leave(defect, None, why);
    }

    /// Something could be done about a finding, on the user's word.
    pub(super) fn needs(&mut self, defect: &Defect, word: Word, why: &str) {
        self.leave(defect, Some(word), why);
    }

    fn leave(&mut self, defect: &Defect, word: Option<Word>, why: &str) {
        let code = defect.code();
        let same = self.left.iter_mut().find(|left| left.code == code && left.why == why);
        match same {
            Some(same) => same.count = same.count.saturating_add(1),
            None => self.left.push(Left {
                code,
                severity: defect.severity(),
                what: defect.to_string(),
                why: why.to_owned(),
                word,
                count: 1,
            }),
        }
    }

    pub(super) fn keep_only_if_clean(&mut self, defect: &Defect) {
        self.only_if_clean.push(defect.clone());
    }

    /// Nothing is done at all: whatever steps there were are left.
    pub(super) fn give_up(&mut self, before: &Findings) {
        self.steps.clear();
        self.lost.clear();
        self.lost_bytes = 0;
        self.note_left(before);
    }

    /// The result would not be good enough, for this reason: nothing is done.
    pub(super) fn refuse(&mut self, before: &Findings, why: &str) {
        let worst = self.only_if_clean.first().cloned();
        let worst = worst.or_else(|| before.list().iter().max_by_key(|d| d.severity()).cloned());
        if let Some(defect) = worst {
            self.leave(&defect, None, why);
        }
        self.give_up(before);
    }

    /// Everything wrong that stays, and of which nothing was said yet.
    pub(super) fn note_left(&mut self, after: &Findings) {
        let told: Vec<&'static str> = self.left.iter().map(|left| left.code).collect();
        for defect in after.list() {
            if defect.severity() > Severity::Info && !told.contains(&defect.code()) {
                self.leave(defect, None, defect.remedy().why_not());
            }
        }
    }

    /// A range of the disk whose contents are gone.
    pub(super) fn lose(&mut self, range: Range<u64>) {
        self.lost_bytes = self.lost_bytes.saturating_add(range.end.saturating_sub(range.start));
        let room = self.lost.len() < MOST_LOST;
        match self.lost.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if room => self.lost.push(range),
            _ => {}
        }
    }
}

/// A file offset as it is told everywhere.
pub(super) fn hex(offset: u64) -> String {
    format!("{offset:#x}")
}
