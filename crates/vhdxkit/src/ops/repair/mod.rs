//! `check --repair`: mends what can be mended without a guess, and says plainly what cannot.
//!
//! # First in memory
//! A repair is thought out over the file, which is only read: `ground` puts identifier, headers and log in
//! order, `entries` says what each entry of the block table should be, `draft` keeps changed pages and second
//! places. Then the very code that would write the file ([`write`]) is run on a copy-on-write layer over it,
//! and the whole check over the result. Only what leaves nothing wrong that was right, and less wrong than
//! before, is offered at all: a [`Plan`]. New GUIDs come from one seed, so that what is written later is byte
//! for byte what was checked.
//!
//! # What is never guessed
//! Where the file does not hold the answer nothing is done without the user's word ([`Word`]): contents that are
//! not in the file any more, a log without a sequence, headers that contradict each other. As long as something
//! lies behind the end of the file and that word is missing, the file does not grow: what is lost would read as
//! zeros, and nobody would know. Without readable tables nothing is touched: such a file is for `recover`, which
//! makes another one.
//!
//! Nor is anything called gone that may be there: `traces` counts what the file holds and nothing names, and who
//! misses contents is told. Entries of a page that was overwritten (`overwritten`) are given up together, whatever
//! they say. What nobody can vouch for afterwards, though no check finds it, is kept: [`Plan::doubtful_blocks`].
//!
//! # The undo file
//! Before a byte of the image changes, the old contents of every page that will change are made durable in a file
//! beside it (`undo`). What changes is known exactly: it is what the layer holds.
//!
//! # The order of writes
//! Each step rests on the ones before being durable; a sync stands between them.
//!
//! 1. A header with the repair's FileWriteGuid, into the copy that is not current (so a damaged one is the one
//!    that is mended, and never are both undefined). Of two headers that tie, the chosen one thereby counts; a log
//!    that is discarded is thereby discarded; a new DataWriteGuid, where the guest will see a change, stands
//!    before that change. A crash leaves the old header or the new one: the file as before, or this step done.
//! 2. The identifier: eight bytes of one sector.
//! 3. A file that was cut off gets its length; its log is replayed, as every replay is (see `log/replay.rs`), and
//!    retired. A crash leaves a file to be replayed.
//! 4. A new log, where there is none, and a header that names it.
//! 5. Everything that goes where nothing refers to yet: the file's new end, copies of blocks, a larger table.
//!    A crash leaves space that belongs to nothing. (A block behind the old end that is given up lies in the file
//!    from now on, until its entry is dropped: nothing else is put where it would show, so it reads as zeros already.)
//!    When this fails, for want of room, the file gets its length
//!    back. (A block that overlaps the log shows other bytes from the next step on: they were the log's before.)
//! 6. Metadata, through the log like everything else that changes tables: region tables in one entry, pages of the
//!    block table in entries of at most 14 pages, each of which leaves the file better than the one before. Each
//!    entry is durable before its pages are written in place.
//! 7. The log is retired; then free space at the end is cut off; then the second header copy, by which an undo
//!    knows that the repair was completed.
//!
//! So a crash at any point leaves the file as it was, or partly mended, and a second repair completes it. The undo
//! file restores it from any of these states.

mod draft;
mod entries;
mod ground;
mod overwritten;
mod report;
pub(crate) mod shifted;
mod tables;
mod traces;
mod undo;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::defect::{Defect, Severity};
use crate::findings::Findings;
use crate::format::{Guid, GuidSource};
use crate::storage::{FileStorage, OpenMode, Overlay, Storage, StorageExt};
use crate::view::headers::HeaderPair;
use crate::{Error, Result};

use super::check::check;
use super::progress::Progress;

use draft::{Moved, PAGE};
use report::Report;
use write::{Actions, Copies, carry_out};

pub use report::{Left, Step};
pub use undo::{Undo, UndoReport, undo_file};

/// What a repair may do on the user's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Give up a log that cannot be replayed, if the file is consistent without it.
    pub discard_log: bool,
    /// Let blocks whose contents the file does not hold any more read as zeros, and give up log entries that
    /// cannot be reached.
    pub allow_data_loss: bool,
    /// Which of two headers counts that contradict each other: copy 1 or 2.
    pub header: Option<u8>,
    /// Seed of new GUIDs: the same file becomes the same bytes. For tests.
    pub seed: Option<u64>,
}

/// A word of the user that would let a repair go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Word {
    /// [`RepairOptions::discard_log`].
    DiscardLog,
    /// [`RepairOptions::allow_data_loss`].
    AllowDataLoss,
    /// [`RepairOptions::header`].
    UseHeader,
}

impl Word {
    /// The option of `vhdx check` that says it.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::DiscardLog => "--discard-log",
            Self::AllowDataLoss => "--allow-data-loss",
            Self::UseHeader => "--use-header 1|2",
        }
    }
}

/// A repair, thought out and tried in memory; the file is as it was.
pub struct Plan {
    before: Findings,
    after: Findings,
    report: Report,
    actions: Option<Actions>,
    changes: Changes,
    /// The file as it would be.
    result: Option<Arc<dyn Storage>>,
    seed: u64,
}

/// What a plan changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Pages of the file that will hold something else, within its present length.
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) length_before: u64,
    pub(crate) length_after: u64,
    pub(crate) new_identity: bool,
    /// FileWriteGuid of every header that is written.
    pub(crate) session: Guid,
    /// SequenceNumber of the last one.
    pub(crate) last_sequence: u64,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("steps", &self.report.steps)
            .field("left", &self.report.left)
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
}

/// Thinks a repair of the image in `file` out. Nothing is written.
///
/// # Errors
/// The file cannot be read; it is damaged beyond the bounds of a repair
/// ([`ErrorKind::LimitExceeded`](crate::ErrorKind::LimitExceeded)); an option makes no sense.
pub fn plan(
    file: Arc<dyn Storage>,
    options: &RepairOptions,
    progress: &mut dyn Progress,
) -> Result<Plan> {
    let before = check(Arc::clone(&file), progress)?;
    let mut report = Report::default();
    let seed = options.seed.unwrap_or_else(|| GuidSource::random().first_sequence());
    let length = file.length()?;
    let unchanged = Changes { length_before: length, length_after: length, ..Changes::default() };
    let thought = match ground::read(&file, options, &mut report)? {
        Some(ground) => tables::think(&file, ground, options, &before, &mut report, progress)?,
        None => None,
    };
    let Some((actions, base)) = thought else {
        report.give_up(&before);
        let after = check(file, &mut ())?;
        return Ok(Plan {
            before,
            after,
            report,
            actions: None,
            changes: unchanged,
            result: None,
            seed,
        });
    };
    // What the log, or a damaged identifier, has hidden so far.
    let hidden = actions.identifier || actions.discard || actions.replay;
    let known = match hidden {
        true => check(Arc::clone(&base), &mut ())?,
        false => Findings::default(),
    };
    let moved = Moved::new(Arc::clone(&file), base, &actions.copies)?;
    let target = Overlay::new(Arc::new(moved));
    let target = Arc::new(target.map_err(|e| Error::io_whole("cannot tell a length", e))?);
    carry_out(&*target, &actions, &GuidSource::seeded(seed), Copies::Made, &mut ())?;
    let after = check(Arc::clone(&target) as Arc<dyn Storage>, progress)?;
    if let Err(why) = judge(&before, &known, &after, &report) {
        report.refuse(&before, &why);
        let after = check(file, &mut ())?;
        return Ok(Plan {
            before,
            after,
            report,
            actions: None,
            changes: unchanged,
            result: None,
            seed,
        });
    }
    report.note_left(&after);
    let written = HeaderPair::inspect(&*target)?.current().clone();
    let changes = Changes {
        ranges: pages_within(&target.changes(), length),
        length_before: length,
        length_after: target.length()?,
        new_identity: actions.new_identity,
        session: written.file_write_guid,
        last_sequence: written.sequence_number.get(),
    };
    let result: Option<Arc<dyn Storage>> = Some(target);
    Ok(Plan { before, after, report, actions: Some(actions), changes, result, seed })
}

/// Whether a result may be written: nothing is wrong that was not wrong before, and what was to be clean is.
/// `known` is what a check finds once the log is dealt with: it may have been hidden.
fn judge(
    before: &Findings,
    known: &Findings,
    after: &Findings,
    report: &Report,
) -> Result<(), String> {
    let counted = |findings: &Findings| {
        let mut counts: BTreeMap<(Severity, &'static str), usize> = BTreeMap::new();
        for defect in findings.list() {
            let count = counts.entry((defect.severity(), defect.code())).or_default();
            *count = count.saturating_add(1);
        }
        for (code, more) in findings.left_out() {
            let worst =
                findings.list().iter().filter(|d| d.code() == code).map(Defect::severity).max();
            let count = counts.entry((worst.unwrap_or(Severity::Error), code)).or_default();
            *count = count.saturating_add(more);
        }
        counts
    };
    let (before, known) = (counted(before), counted(known));
    for ((severity, code), count) in counted(after) {
        let had = |counts: &BTreeMap<_, usize>| counts.get(&(severity, code)).copied().unwrap_or(0);
        if severity > Severity::Info && count > had(&before).max(had(&known)) {
            let new = after.list().iter().find(|defect| defect.code() == code);
            let new = new.map_or_else(|| code.to_owned(), ToString::to_string);
            return Err(format!("the result would have another fault: {new}"));
        }
    }
    let worst = after.list().iter().find(|defect| defect.severity() == Severity::Error);
    match (report.only_if_clean.first(), worst) {
        (Some(_), Some(worst)) => Err(format!("the file would not be sound even then: {worst}")),
        _ => Ok(()),
    }
}

/// Whole pages that the ranges touch, joined, cut to the file's length.
fn pages_within(ranges: &[Range<u64>], length: u64) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let start = range.start.saturating_sub(range.start % PAGE);
        let end = range.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX).min(length);
        match pages.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => pages.push(start..end),
        }
    }
    pages
}

impl Plan {
    /// What would be done, in order. Empty: nothing.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.report.steps
    }

    /// What would stay as it is, and why.
    #[must_use]
    pub fn left(&self) -> &[Left] {
        &self.report.left
    }

    /// What a check finds now.
    #[must_use]
    pub fn before(&self) -> &Findings {
        &self.before
    }

    /// What a check would find afterwards; without steps, the same.
    #[must_use]
    pub fn after(&self) -> &Findings {
        &self.after
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_none()
    }

    /// The codes of the steps, each once.
    #[must_use]
    pub fn codes(&self) -> Vec<&'static str> {
        let mut codes: Vec<&'static str> = Vec::new();
        for step in self.steps() {
            if !codes.contains(&step.code) {
                codes.push(step.code);
            }
        }
        codes
    }

    /// Ranges of the disk, in bytes, whose contents are given up; at most some hundred of them. They read as zeros
    /// afterwards, or as [the parent](Self::shows_parent_where_lost) does. [`lost_bytes`](Self::lost_bytes) counts them all.
    #[must_use]
    pub fn lost(&self) -> &[Range<u64>] {
        &self.report.lost
    }

    /// Whether some of what is lost belongs to a child, which shows its parent's bytes there.
    #[must_use]
    pub fn shows_parent_where_lost(&self) -> bool {
        self.report.shows_parent
    }

    /// Bytes of the disk whose contents are given up.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.report.lost_bytes
    }

    /// The blocks of the disk that nobody can vouch for afterwards, though a check does not find them any more: what
    /// was given up, and both owners of bytes that were claimed twice. In order.
    #[must_use]
    pub fn doubtful_blocks(&self) -> Vec<Range<u64>> {
        self.report.doubtful.clone().ranges()
    }

    /// Bytes of the file that nothing names and that are not zeros, where contents are missed that they may be;
    /// `vhdx recover --orphans` copies them out. Zero where nothing is missed.
    #[must_use]
    pub fn nameless_bytes(&self) -> u64 {
        self.report.nameless
    }

    /// Whether blocks show other contents afterwards, because pages of the block table that were written shifted are
    /// moved back: their own again.
    #[must_use]
    pub fn moves_blocks_back(&self) -> bool {
        self.actions.as_ref().is_some_and(|actions| actions.moves_back)
    }

    /// Whether changes that the log holds, or held, are given up: nobody can tell what the guest misses then.
    #[must_use]
    pub fn gives_up_log(&self) -> bool {
        self.actions.as_ref().is_some_and(|actions| actions.gives_up_log)
    }

    /// Whether what the guest sees changes, or may. Then the disk has another DataWriteGuid afterwards, and images that
    /// were made on top of it do not know it any more.
    #[must_use]
    pub fn changes_contents(&self) -> bool {
        self.changes.new_identity
    }

    /// The DataWriteGuid by which children know the disk now, when it will be another one.
    #[must_use]
    pub fn identity_given_up(&self) -> Option<Guid> {
        let actions = self.actions.as_ref().filter(|actions| actions.new_identity);
        actions.map(|actions| actions.headers.current().data_write_guid)
    }

    /// Bytes of the file, within its present length, that are written over.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.changes.ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum()
    }

    /// Length of the file now and afterwards, in bytes.
    #[must_use]
    pub fn lengths(&self) -> (u64, u64) {
        (self.changes.length_before, self.changes.length_after)
    }

    /// Writes an undo file for this plan: see [`Undo`]. `name` is the image's.
    ///
    /// # Errors
    /// Reading the image or writing the undo file fails.
    pub fn write_undo(&self, image: &dyn Storage, name: &str, to: &dyn Storage) -> Result<()> {
        let new = self.result.as_deref().unwrap_or(image);
        undo::write(&self.changes, image, new, name, to)
    }

    /// Carries the repair out in the file that it was thought out for, which must not have changed since.
    /// Nothing is written when there is nothing to do.
    ///
    /// # Errors
    /// Writing fails. Then the file is as it was or partly mended; another repair completes it, and the undo file
    /// restores it.
    pub fn carry_out(&self, storage: &dyn Storage, progress: &mut dyn Progress) -> Result<()> {
        match &self.actions {
            Some(actions) => {
                let guids = GuidSource::seeded(self.seed);
                carry_out(storage, actions, &guids, Copies::ToMake, progress)
            }
            None => Ok(()),
        }
    }
}

/// Whether an undo file is written before the image is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepUndo {
    /// Beside the image, named `IMAGE.undo-<time>`.
    Beside,
    /// None: what was there is gone for good.
    No,
}

/// An image that is open and locked, with the repair that it needs.
pub struct Repair {
    file: Arc<FileStorage>,
    path: PathBuf,
    plan: Plan,
}

impl Repair {
    /// Opens the image at `path` for writing, alone, and thinks its repair out. Nothing is written yet.
    ///
    /// # Errors
    /// As [`plan`]; the image is in use ([`ErrorKind::Locked`](crate::ErrorKind::Locked)) or cannot be opened.
    pub fn open(path: &Path, options: &RepairOptions, progress: &mut dyn Progress) -> Result<Self> {
        let named = |e: Error| e.in_file(path);
        let file = Arc::new(FileStorage::open(path, OpenMode::ReadWrite).map_err(named)?);
        let storage: Arc<dyn Storage> = Arc::clone(&file) as Arc<dyn Storage>;
        let plan = plan(storage, options, progress).map_err(named)?;
        Ok(Self { file, path: path.to_path_buf(), plan })
    }

    /// What would be done.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes the undo file, if one is wanted, and gives its path; nothing of the image has changed yet.
    ///
    /// # Errors
    /// It cannot be written: then nothing was changed.
    pub fn save_undo(&self, keep: KeepUndo) -> Result<Option<PathBuf>> {
        if keep == KeepUndo::No || self.plan.is_empty() {
            return Ok(None);
        }
        undo::save(&self.path, |name, to| self.plan.write_undo(&*self.file, name, to)).map(Some)
    }

    /// Carries the repair out and gives the image free.
    ///
    /// # Errors
    /// As [`Plan::carry_out`].
    pub fn carry_out(self, progress: &mut dyn Progress) -> Result<Plan> {
        let named = |e: Error| e.in_file(&self.path);
        self.plan.carry_out(&*self.file, progress).map_err(named)?;
        // It reads the file.
        Ok(Plan { result: None, ..self.plan })
    }
}

/// Thinks the repair of the image at `path` out, without asking for the image to be free for writing.
///
/// # Errors
/// As [`plan`]; somebody is writing the image.
pub fn plan_file(
    path: &Path,
    options: &RepairOptions,
    force_share: bool,
    progress: &mut dyn Progress,
) -> Result<Plan> {
    let named = |e: Error| e.in_file(path);
    let file = FileStorage::open(path, OpenMode::ReadOnly { force_share }).map_err(named)?;
    plan(Arc::new(file), options, progress).map_err(named)
}
