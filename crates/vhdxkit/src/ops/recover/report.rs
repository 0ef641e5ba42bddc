//! What a salvage tells: where everything was found, what is only inferred, and the fate of every block.

use std::ops::Range;

use crate::format::limits::MAX_LISTED_FATES;
use crate::ops::nameless::CRASHES_LEAVE;
use crate::view::geometry::Geometry;

/// How a structure was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// It lies in its place, and its checksum (where it has one) is right.
    Sound,
    /// It was put together from what the log holds.
    Log,
    /// It lies in its place and makes sense, but its checksum is wrong.
    Doubtful,
    /// It was found by its looks, or concluded from other things.
    Inferred,
    /// The caller has said so.
    Given,
    /// It is not to be had.
    Lost,
}

impl Trust {
    /// `sound`, `log`, `doubtful`, `inferred`, `given` or `lost`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Log => "log",
            Self::Doubtful => "doubtful",
            Self::Inferred => "inferred",
            Self::Given => "given",
            Self::Lost => "lost",
        }
    }
}

/// Something that was looked for: a structure of the file, or a property of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// `header`, `block size`, …
    pub what: &'static str,
    /// How it was had.
    pub trust: Trust,
    /// Where in the file, if it lies in one place.
    pub offset: Option<u64>,
    /// Its value, and why it is believed.
    pub text: String,
}

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// The table names its place. (Payload has no checksum: whether its bytes are right nobody can tell.)
    Intact,
    /// The newest image of the table in the log names its place.
    Log,
    /// Only an image of the table that may be out of date names its place.
    Older,
    /// Its place rests on a guess: an inferred size, an order, a place that two blocks claim.
    Guessed,
    /// Its place lies behind the end of the file, in part or as a whole; what is missing is zeros.
    Cut,
    /// Nothing is stored for it, as the table says.
    Absent,
    /// What it held is not to be had; it reads zeros.
    Lost,
}

impl Fate {
    /// All of them, best first.
    pub const ALL: [Self; 7] =
        [Self::Intact, Self::Log, Self::Older, Self::Guessed, Self::Cut, Self::Absent, Self::Lost];

    /// `intact`, `log`, `older`, `guessed`, `cut`, `absent` or `lost`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Log => "log",
            Self::Older => "older",
            Self::Guessed => "guessed",
            Self::Cut => "cut",
            Self::Absent => "absent",
            Self::Lost => "lost",
        }
    }

    /// Whether it says that the block is what the disk's last state had there.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        matches!(self, Self::Intact | Self::Log | Self::Absent)
    }
}

/// Blocks one after another with the same fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FateRun {
    /// Payload blocks of the disk.
    pub blocks: Range<u64>,
    /// What became of them.
    pub fate: Fate,
    /// The sequence number of the log entry that names them, if one does.
    pub log_entry: Option<u64>,
    /// Why, where the fate alone does not tell; else empty.
    pub why: &'static str,
}

/// The fates of all blocks, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    /// Runs, up to [`MAX_LISTED_FATES`].
    pub runs: Vec<FateRun>,
    /// Blocks that are counted but not listed.
    pub unlisted: u64,
    counts: [u64; 7],
}

impl Fates {
    /// How many blocks met a fate.
    #[must_use]
    pub fn count(&self, fate: Fate) -> u64 {
        let place = Fate::ALL.iter().position(|other| *other == fate);
        place.and_then(|place| self.counts.get(place)).copied().unwrap_or_default()
    }

    /// Blocks of the disk, as far as they are known.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub(super) fn push(&mut self, run: FateRun) {
        let number = run.blocks.end.saturating_sub(run.blocks.start);
        if number == 0 {
            return;
        }
        let place = Fate::ALL.iter().position(|other| *other == run.fate);
        if let Some(count) = place.and_then(|place| self.counts.get_mut(place)) {
            *count = count.saturating_add(number);
        }
        if self.unlisted == 0 {
            if let Some(last) = self.runs.last_mut()
                && last.blocks.end == run.blocks.start
                && (last.fate, last.log_entry, last.why) == (run.fate, run.log_entry, run.why)
            {
                last.blocks.end = run.blocks.end;
                return;
            }
            if self.runs.len() < MAX_LISTED_FATES {
                self.runs.push(run);
                return;
            }
        }
        self.unlisted = self.unlisted.saturating_add(number);
    }
}

/// What a salvage found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Bytes of the damaged file.
    pub file_size: u64,
    /// Structures of the file and properties of the disk, in the order in which they were looked for.
    pub found: Vec<Statement>,
    /// The disk, where its sizes could be had.
    pub geometry: Option<Geometry>,
    /// What became of every block.
    pub fates: Fates,
    /// Bytes of blocks that are in the result.
    pub recovered: u64,
    /// Bytes that were in blocks as far as anything still tells: what was recovered, what was cut off, what
    /// was lost with its place known, and, once the place of a block is lost, what the file holds that nothing
    /// names.
    pub known: u64,
    /// Parts of the file that hold data and that nothing names, in whole mebibytes.
    pub orphans: Vec<Range<u64>>,
    /// What keeps the disk from being had for certain whatever became of its blocks: a parent that nothing vouches for,
    /// sizes that contradict the file's own.
    pub doubts: Vec<String>,
    /// What a person should know besides.
    pub remarks: Vec<String>,
    /// Parts of the file that could not be read; they were taken for zeros.
    pub unreadable: Vec<Range<u64>>,
}

impl Report {
    pub(super) fn say(
        &mut self,
        what: &'static str,
        trust: Trust,
        offset: Option<u64>,
        text: impl Into<String>,
    ) {
        self.found.push(Statement { what, trust, offset, text: text.into() });
    }

    /// The share of the known data that was recovered, in hundredths of a per cent; 10000 where there was none.
    #[must_use]
    pub fn share(&self) -> u64 {
        let share = u128::from(self.recovered)
            .saturating_mul(10_000)
            .checked_div(u128::from(self.known))
            .unwrap_or(10_000);
        u64::try_from(share).unwrap_or(10_000).min(10_000)
    }

    /// Whether the disk is had as it was last, and nothing about its contents is a guess. (Its identity may be
    /// new all the same.)
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.geometry.is_some()
            && self.unreadable.is_empty()
            && self.doubts.is_empty()
            && self.orphaned_bytes() <= CRASHES_LEAVE
            && Fate::ALL.iter().all(|fate| fate.is_certain() || self.fates.count(*fate) == 0)
    }

    /// Bytes of all [orphans](Self::orphans).
    #[must_use]
    pub fn orphaned_bytes(&self) -> u64 {
        let lengths = self.orphans.iter().map(|run| run.end.saturating_sub(run.start));
        lengths.fold(0, u64::saturating_add)
    }

    /// The runs of bytes of the disk that are zeros in the result although something else was, or may have been,
    /// there.
    pub fn lost(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let geometry = self.geometry;
        let runs = self.fates.runs.iter();
        runs.filter(|run| matches!(run.fate, Fate::Lost | Fate::Cut)).filter_map(move |run| {
            let geometry = geometry?;
            let end = geometry.block_start(run.blocks.end).min(geometry.virtual_size());
            Some(geometry.block_start(run.blocks.start)..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_fate_are_one_and_every_block_is_counted() {
        let mut fates = Fates::default();
        let run = |blocks, fate| FateRun { blocks, fate, log_entry: None, why: "" };
        for (blocks, fate) in [
            (0..1, Fate::Intact),
            (1..2, Fate::Intact),
            (2..2, Fate::Lost),
            (2..9, Fate::Lost),
            (9..10, Fate::Intact),
        ] {
            fates.push(run(blocks, fate));
        }
        let expected = [run(0..2, Fate::Intact), run(2..9, Fate::Lost), run(9..10, Fate::Intact)];
        assert_eq!(fates.runs, expected);
        assert_eq!((fates.count(Fate::Intact), fates.count(Fate::Lost)), (3, 7));
        assert_eq!((fates.total(), fates.unlisted), (10, 0));
    }

    #[test]
    fn the_share_of_nothing_is_all_of_it() {
        let mut report = Report::default();
        assert_eq!(report.share(), 10_000);
        (report.recovered, report.known) = (1, 3);
        assert_eq!(report.share(), 3333);
        assert!(!report.is_whole(), "a disk without sizes is not had");
    }
}
