//! What a repair would do about a file, or has done: what is advised depends on it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use vhdxkit::OpenOptions;
use vhdxkit::defect::{Defect, Remedy, Severity};
use vhdxkit::ops::check::CheckedImage;
use vhdxkit::ops::repair::{Left, Plan, RepairOptions, Word, plan_file};

use crate::args::CheckArgs;

/// What a repair would do or has done, as far as the last lines of an answer depend on it.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// It has written the file.
    pub(super) written: bool,
    /// It would do something without any word of the user's.
    pub(super) mends: bool,
    /// Words on which it would do something, or more.
    pub(super) words: Vec<Word>,
    /// What it would leave, or has left.
    left: Vec<Left>,
    /// Codes of findings of which it would mend some, or has mended them.
    mended: Vec<&'static str>,
    /// Blocks that a repair which has written the file has given up, or left with one of two contents.
    pub(super) doubtful: Vec<Range<u64>>,
    /// It has given up what a log held.
    pub(super) log_given_up: bool,
    /// Bytes of the file that nothing names, and that what is missed may be among.
    pub(super) nameless: u64,
    /// A child whose link is wrong, and its parent where that was found.
    pub(super) relink: Option<(PathBuf, Option<PathBuf>)>,
}

impl Outlook {
    /// Of a file that nobody has tried to repair.
    pub(super) fn of(path: &Path, force_share: bool) -> Self {
        match plan_file(path, &RepairOptions::default(), force_share, &mut ()) {
            Ok(plan) => Self::before(&plan).with_words_that_help(path, force_share),
            // What cannot be thought out cannot be offered either.
            Err(_) => Self::default(),
        }
    }

    /// Without words on which a repair of the file would do nothing either: one sends nobody in a circle.
    pub(super) fn with_words_that_help(mut self, path: &Path, force_share: bool) -> Self {
        self.words.retain(|word| {
            let mut options = RepairOptions::default();
            match word {
                Word::DiscardLog => options.discard_log = true,
                Word::UseHeader => options.header = Some(1),
                _ => options.allow_data_loss = true,
            }
            let plan = plan_file(path, &options, force_share, &mut ());
            plan.is_ok_and(|plan| !plan.is_empty())
        });
        for left in &mut self.left {
            left.word = left.word.filter(|word| self.words.contains(word));
        }
        self
    }

    /// Why a repair does nothing about any finding of this code that is there; `None` where it does, or nobody knows.
    pub(super) fn left_of(&self, code: &str) -> Option<&Left> {
        let mends = !self.written && self.mended.contains(&code);
        self.left.iter().find(|left| left.code == code && !mends)
    }

    /// With the link to a parent that a person has to mend.
    pub(super) fn with_link(self, image: &CheckedImage, args: &CheckArgs) -> Self {
        Self { relink: to_relink(image, args), ..self }
    }

    /// As long as a plan is one.
    pub(super) fn before(plan: &Plan) -> Self {
        let mut words = Vec::new();
        for word in plan.left().iter().filter_map(|left| left.word) {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let mended = if plan.is_empty() { Vec::new() } else { plan.codes() };
        let left = plan.left().to_vec();
        Self { mends: !plan.is_empty(), words, left, mended, ..Self::default() }
    }

    /// Once a plan has been carried out.
    pub(super) fn after(plan: &Plan) -> Self {
        let before = Self::before(plan);
        if plan.is_empty() {
            return before;
        }
        Self {
            written: true,
            mends: false,
            doubtful: plan.doubtful_blocks(),
            log_given_up: plan.gives_up_log(),
            nameless: plan.nameless_bytes(),
            ..before
        }
    }

    /// Whether the file is not what it was, though a check may find nothing.
    pub(super) fn is_worse_than_found(&self) -> bool {
        self.log_given_up || !self.doubtful.is_empty()
    }
}

/// Which child of the chain has to be told its parent, and which that is. One in a folder that the user has named
/// comes before one that lies there by chance.
fn to_relink(image: &CheckedImage, args: &CheckArgs) -> Option<(PathBuf, Option<PathBuf>)> {
    let own = || image.path.clone();
    let stale = |finding: &Defect| match finding {
        Defect::ParentPathStale { found } => Some(PathBuf::from(found)),
        _ => None,
    };
    if let Some(parent) = image.findings.list().iter().find_map(stale) {
        return Some((own(), Some(parent)));
    }
    let relinked = |finding: &Defect| {
        finding.severity() > Severity::Info
            && matches!(finding.remedy(), Remedy::Elsewhere(what) if what.contains("relink"))
    };
    if !image.findings.list().iter().any(relinked) {
        return None;
    }
    let options = OpenOptions::new().force_share(args.image.open.force_share).without_log(true);
    let Err(error) = args.parents.over(options).open(&image.path) else {
        return Some((own(), None));
    };
    let Some(problem) = error.parent_problem() else { return Some((own(), None)) };
    let searched =
        |path: &&PathBuf| args.parents.search.iter().any(|folder| path.starts_with(folder));
    let found = problem.found.iter().find(searched).or_else(|| problem.found.first());
    // A link further up may be the one that is wrong.
    let child = Some(&problem.child).filter(|child| !child.as_os_str().is_empty());
    Some((child.cloned().unwrap_or_else(own), found.cloned()))
}
