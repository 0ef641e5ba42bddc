//! What a repair does and leaves, in plain words.

use std::ops::Range;

use crate::defect::{Defect, Severity};
use crate::findings::Findings;
use crate::format::MIB;
use crate::ops::doubt::Doubt;

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
    /// Some of that held something else before, as far as the guest could see.
    pub(super) zeroed: bool,
    /// Some of that is a child's, which shows its parent there.
    pub(super) shows_parent: bool,
    /// Blocks that nobody can vouch for afterwards, though no check would find them.
    pub(super) doubtful: Doubt,
    /// Bytes of the file that nothing names and that are not zeros, where contents are missed that they may be.
    pub(super) nameless: u64,
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
        self.zeroed = false;
        self.doubtful = Doubt::default();
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

    /// A block whose contents are gone, from some byte of the disk on: it shows zeros where it has shown more.
    pub(super) fn lose(&mut self, block: u64, range: Range<u64>) {
        self.zeroed = true;
        self.lose_unseen(block, range);
    }

    /// A block whose contents are gone, and which shows none already.
    pub(super) fn lose_unseen(&mut self, block: u64, range: Range<u64>) {
        self.doubt(block);
        self.lost_bytes = self.lost_bytes.saturating_add(range.end.saturating_sub(range.start));
        let room = self.lost.len() < MOST_LOST;
        match self.lost.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if room => self.lost.push(range),
            _ => {}
        }
    }

    /// A block that will not be what it was, or may not be, and no check will find it.
    pub(super) fn doubt(&mut self, block: u64) {
        self.doubtful.add(block..block.saturating_add(1));
    }

    /// Whether anything is told of contents that may be among what nothing names.
    pub(super) fn misses_contents(&self) -> bool {
        self.whys().any(|why| MISSED.contains(&why.as_str()))
    }

    /// So many bytes of the file are named by nothing: said wherever contents are missed that they may be.
    pub(super) fn found_nameless(&mut self, bytes: u64) {
        self.nameless = bytes;
        if bytes == 0 {
            return;
        }
        let more = format!(
            ". The file holds {} that nothing names, and they may be among it: {ORPHANS}",
            mebibytes(bytes)
        );
        for why in self.whys_mut().filter(|why| MISSED.contains(&why.as_str())) {
            why.push_str(&more);
        }
    }

    fn whys(&self) -> impl Iterator<Item = &String> {
        let steps = self.steps.iter().map(|step| &step.why);
        steps.chain(self.left.iter().map(|left| &left.why))
    }

    fn whys_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let steps = self.steps.iter_mut().map(|step| &mut step.why);
        steps.chain(self.left.iter_mut().map(|left| &mut left.why))
    }
}

pub(super) const NO_PLACE: &str = "the file does not say where its contents are";
pub(super) const NO_PLACE_GIVEN_UP: &str =
    "the file does not say where its contents are; you allowed that it reads as zeros from now on";
pub(super) const BEHIND_THE_END: &str =
    "the file ends before the place that the entry names: it was cut off, or was never whole";
pub(super) const BEHIND_THE_END_GIVEN_UP: &str = "the file ends before the place that the entry names; you allowed that it reads as zeros from now on";
pub(super) const TRIMMED_OUTSIDE: &str = "the block says that it was trimmed, and then nothing is lost with it; its \
                                          place lies behind the end of the file";
pub(super) const OVERWRITTEN: &str = "this page of the block table was overwritten, and nobody can tell what the entry \
                                      said, or where the contents are; with the word the entry is taken for what it \
                                      happens to say";
pub(super) const OVERWRITTEN_GIVEN_UP: &str = "what the entry said was overwritten, so no entry names the contents any \
                                               more; you allowed that they are given up";

/// What is said of contents that may be anywhere in the file.
const MISSED: [&str; 7] = [
    NO_PLACE,
    NO_PLACE_GIVEN_UP,
    BEHIND_THE_END,
    BEHIND_THE_END_GIVEN_UP,
    TRIMMED_OUTSIDE,
    OVERWRITTEN,
    OVERWRITTEN_GIVEN_UP,
];

/// What is typed to get at data that nothing names.
pub(super) const ORPHANS: &str = "`vhdx recover IMAGE --orphans DIR` copies it out";

/// Bytes that are whole mebibytes, as they are told.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}

/// A file offset as it is told everywhere.
pub(super) fn hex(offset: u64) -> String {
    format!("{offset:#x}")
}
