//! The figures of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::memory::{Order, Shown};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Machines started.
    pub boots: u64,
    /// Rounds by how they ended, in words.
    pub kills: BTreeMap<&'static str, u64>,
    /// Rounds that ended while the guest recovered and looked at its files.
    pub early: u64,
    /// Boots whose every file was looked at.
    pub verified: u64,
    /// Looked at by `e2fsck`, after the journal's recovery, and found clean.
    pub fsck_clean: u64,
    /// Files answered for with a sync, found as they were; counted at each boot.
    pub synced: u64,
    /// Files that were deleted with a sync, not found.
    pub deleted: u64,
    /// Files found as they were before or after what was not answered.
    pub either: u64,
    /// What the guest has answered, in words.
    pub answered: BTreeMap<&'static str, u64>,
    /// Times that `vhdx check` looked at what was left.
    pub checked: u64,
    /// Images left with a log to be replayed.
    pub dirty: u64,
    /// Servers that were asked to end while their client had been killed, and left a clean image.
    pub ended_clean: u64,
    /// Of everything.
    pub time: Duration,
    /// What did not hold.
    pub failure: Option<String>,
}

impl Report {
    pub(super) fn count_answer(&mut self, order: &Order) {
        let what = match order {
            Order::Write { .. } => "files written, with fsync",
            Order::Replace { .. } => "files replaced by rename, with fsync",
            Order::Patch { .. } => "files overwritten in place, with fsync",
            Order::Loose { .. } => "files written without fsync",
            Order::Delete { .. } => "files deleted, with fsync of the folder",
            Order::Trim => "trims of all free space",
            Order::Sync => "syncs of the file system",
        };
        *self.answered.entry(what).or_default() += 1;
    }

    pub(super) fn count_shown(&mut self, shown: Shown) {
        self.verified += 1;
        self.synced += shown.synced;
        self.deleted += shown.deleted;
        self.either += shown.either;
    }

    /// The figures, as Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from("| a whole guest | times |\n|---|---:|\n");
        let mut row = |what: &str, times: u64| {
            let _ = writeln!(text, "| {what} | {times} |");
        };
        for (how, times) in &self.kills {
            row(&format!("killed: {how}"), *times);
        }
        row("... of these while it recovered and looked at its files", self.early);
        row("boots", self.boots);
        row("boots that looked at every file", self.verified);
        row("`e2fsck -fn` clean after the journal's recovery", self.fsck_clean);
        row("files answered for with a sync, found with their contents", self.synced);
        row("files deleted with a sync, not found", self.deleted);
        row("files found as before or after an unanswered change", self.either);
        row("`vhdx check` content with the image", self.checked);
        row("images left with a log to replay", self.dirty);
        row("servers that ended well after their client was killed", self.ended_clean);
        for (what, times) in &self.answered {
            row(&format!("answered: {what}"), *times);
        }
        let failures = u64::from(self.failure.is_some());
        let _ = writeln!(text, "\n{failures} failures; {:.0} s", self.time.as_secs_f64());
        text
    }
}
