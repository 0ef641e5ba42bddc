//! What the host knows of the guest's files: what it has asked for, and what was answered.

use std::collections::{BTreeMap, BTreeSet};

use vhdxkit_testkit::random::Random;

use super::PAGES;

/// Files that the guest has at most: few, so that most of what is written is written over something.
const FILES: u64 = 24;
/// Pages of the largest file.
const LARGEST: u64 = 64;

/// Contents of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Contents {
    /// There is no such file.
    Absent,
    /// These pages of the blob.
    Pages(Vec<u64>),
    /// Known by their checksum only: what was found after a crash where anything was allowed.
    Sum(String),
}

/// What a file may be found as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Allowed {
    /// One of these; if it is one only, an fsync was answered for it.
    OneOf(Vec<Contents>),
    /// It is being written in place, or was written without a sync.
    Anything,
}

/// What the guest is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Write a file anew, in its place; fsync.
    Write { file: u64, skip: u64, count: u64 },
    /// Write another file, fsync, rename.
    Replace { file: u64, skip: u64, count: u64 },
    /// Overwrite some pages; fsync.
    Patch { file: u64, skip: u64, count: u64, seek: u64 },
    /// Write a file anew, without a sync.
    Loose { file: u64, skip: u64, count: u64 },
    /// Delete a file; fsync of the folder.
    Delete { file: u64 },
    /// Give all free space back.
    Trim,
    /// Sync the file system.
    Sync,
}

impl Order {
    /// As the guest reads it.
    pub(super) fn line(&self, id: u64) -> String {
        match self {
            Self::Write { file, skip, count } => format!("{id} write f{file} {skip} {count}\n"),
            Self::Replace { file, skip, count } => format!("{id} replace f{file} {skip} {count}\n"),
            Self::Patch { file, skip, count, seek } => {
                format!("{id} patch f{file} {skip} {count} {seek}\n")
            }
            Self::Loose { file, skip, count } => format!("{id} loose f{file} {skip} {count}\n"),
            Self::Delete { file } => format!("{id} delete f{file}\n"),
            Self::Trim => format!("{id} trim\n"),
            Self::Sync => format!("{id} sync\n"),
        }
    }

    fn file(&self) -> Option<u64> {
        match self {
            Self::Write { file, .. }
            | Self::Replace { file, .. }
            | Self::Patch { file, .. }
            | Self::Loose { file, .. }
            | Self::Delete { file } => Some(*file),
            Self::Trim | Self::Sync => None,
        }
    }
}

/// The host's knowledge.
#[derive(Debug, Default)]
pub(super) struct Memory {
    files: BTreeMap<u64, Allowed>,
    /// Sent and not answered, in this order; with what the file holds once it is done.
    sent: BTreeMap<u64, (Order, Option<Contents>)>,
    /// What files hold that were written without a sync since: a sync settles them.
    loose: BTreeMap<u64, Contents>,
    next: u64,
}

/// What a boot has shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    /// Files that an fsync was answered for, found with these contents.
    pub(super) synced: u64,
    /// Files whose deletion was answered for, not found.
    pub(super) deleted: u64,
    /// Files that were being changed, found as they were before or after.
    pub(super) either: u64,
}

impl Memory {
    /// A file system has been made.
    pub(super) fn forget(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// Orders that are not answered yet.
    pub(super) fn waiting(&self) -> usize {
        self.sent.len()
    }

    /// Chooses what to do next, and takes it as sent.
    pub(super) fn order(&mut self, random: &mut Random) -> String {
        let busy: BTreeSet<u64> =
            self.sent.values().filter_map(|(order, _)| order.file()).collect();
        let mut file = random.below(FILES);
        while busy.contains(&file) {
            file = random.below(FILES);
        }
        let count = 1 + random.below(LARGEST);
        let skip = random.below(PAGES - count);
        let pages = match self.allowed(file) {
            Allowed::OneOf(list) => match list.as_slice() {
                [Contents::Pages(pages)] => pages.len() as u64,
                _ => 0,
            },
            Allowed::Anything => 0,
        };
        let order = match random.below(20) {
            0..=4 => Order::Write { file, skip, count },
            5..=8 => Order::Replace { file, skip, count },
            9..=12 if pages > 0 => {
                let seek = random.below(pages);
                Order::Patch { file, skip, count: count.min(pages - seek), seek }
            }
            9..=14 => Order::Loose { file, skip, count },
            15..=16 => Order::Delete { file },
            17 => Order::Trim,
            _ => Order::Sync,
        };
        let id = self.next;
        self.next += 1;
        let line = order.line(id);
        let after = self.after(&order);
        self.take_as_sent(&order, after.as_ref());
        self.sent.insert(id, (order, after));
        line
    }

    fn allowed(&self, file: u64) -> Allowed {
        let absent = || Allowed::OneOf(vec![Contents::Absent]);
        self.files.get(&file).cloned().unwrap_or_else(absent)
    }

    /// What the file holds once an order is done; `None` where no file is meant.
    fn after(&self, order: &Order) -> Option<Contents> {
        Some(match order {
            Order::Write { skip, count, .. }
            | Order::Replace { skip, count, .. }
            | Order::Loose { skip, count, .. } => Contents::Pages((*skip..skip + count).collect()),
            Order::Delete { .. } => Contents::Absent,
            Order::Patch { file, skip, count, seek } => {
                let Allowed::OneOf(list) = self.allowed(*file) else { return None };
                let Some(Contents::Pages(mut pages)) = list.into_iter().next() else { return None };
                let seek = *seek as usize;
                pages.splice(seek..seek + *count as usize, *skip..skip + count);
                Contents::Pages(pages)
            }
            Order::Trim | Order::Sync => return None,
        })
    }

    /// From now on the guest may be at it.
    fn take_as_sent(&mut self, order: &Order, after: Option<&Contents>) {
        let Some(file) = order.file() else { return };
        let allowed = match (order, self.allowed(file)) {
            (Order::Replace { .. } | Order::Delete { .. }, Allowed::OneOf(mut list)) => {
                list.extend(after.cloned());
                Allowed::OneOf(list)
            }
            _ => Allowed::Anything,
        };
        self.files.insert(file, allowed);
        // A sync that is answered from now on may have come after this order, or before it.
        self.loose.remove(&file);
    }

    /// An order was answered: it is durable, if it was one with a sync. Returns what it was.
    pub(super) fn answered(&mut self, id: u64) -> Option<Order> {
        let (order, after) = self.sent.remove(&id)?;
        match (&order, order.file(), after) {
            (Order::Sync, ..) => {
                for (file, contents) in std::mem::take(&mut self.loose) {
                    self.files.insert(file, Allowed::OneOf(vec![contents]));
                }
            }
            (Order::Loose { .. }, Some(file), Some(after)) => {
                self.loose.insert(file, after);
            }
            (_, Some(file), Some(after)) => {
                self.files.insert(file, Allowed::OneOf(vec![after]));
            }
            _ => {}
        }
        Some(order)
    }

    /// Judges what a boot has found, and takes it as what there is.
    ///
    /// # Errors
    /// A file is not as it must be.
    pub(super) fn judge(
        &mut self,
        found: &BTreeMap<u64, String>,
        sum: impl Fn(&[u64]) -> Result<String, String>,
    ) -> Result<Shown, String> {
        self.sent.clear();
        self.loose.clear();
        let mut shown = Shown::default();
        for file in 0..FILES {
            let (seen, allowed) = (found.get(&file), self.allowed(file));
            let Allowed::OneOf(list) = &allowed else {
                let seen = seen.map_or(Contents::Absent, |seen| Contents::Sum(seen.clone()));
                self.files.insert(file, Allowed::OneOf(vec![seen]));
                continue;
            };
            let mut fits = None;
            for contents in list {
                let same = match contents {
                    Contents::Absent => seen.is_none(),
                    Contents::Sum(known) => seen == Some(known),
                    Contents::Pages(pages) => seen == Some(&sum(pages)?),
                };
                fits = fits.or(same.then(|| contents.clone()));
            }
            let fits = fits.ok_or_else(|| {
                let seen = seen.map_or("not there".to_owned(), |sum| format!("found with {sum}"));
                format!("f{file} is {seen}; allowed is {list:?}")
            })?;
            match (list.len(), &fits) {
                (1, Contents::Absent) if !self.files.contains_key(&file) => {}
                (1, Contents::Absent) => shown.deleted += 1,
                (1, _) => shown.synced += 1,
                _ => shown.either += 1,
            }
            self.files.insert(file, Allowed::OneOf(vec![fits]));
        }
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(pages: &[u64]) -> Result<String, String> {
        Ok(format!("{pages:?}"))
    }

    fn sent(memory: &mut Memory, id: u64, order: Order) {
        let after = memory.after(&order);
        memory.take_as_sent(&order, after.as_ref());
        memory.sent.insert(id, (order, after));
    }

    fn found(pages: &[u64]) -> BTreeMap<u64, String> {
        BTreeMap::from([(1, format!("{pages:?}"))])
    }

    /// The harness must not forgive the loss that it is there to find.
    #[test]
    fn what_was_answered_with_a_sync_must_be_there() {
        let mut memory = Memory::default();
        sent(&mut memory, 0, Order::Write { file: 1, skip: 5, count: 3 });
        memory.answered(0);
        sent(&mut memory, 1, Order::Patch { file: 1, skip: 9, count: 1, seek: 1 });
        memory.answered(1);
        assert!(memory.judge(&found(&[5, 6, 7]), sum).is_err());
        assert!(memory.judge(&BTreeMap::new(), sum).is_err());
        assert_eq!(memory.judge(&found(&[5, 9, 7]), sum).unwrap().synced, 1);
    }

    #[test]
    fn what_was_not_answered_may_have_happened_or_not() {
        let mut memory = Memory::default();
        sent(&mut memory, 0, Order::Write { file: 1, skip: 5, count: 1 });
        memory.answered(0);
        sent(&mut memory, 1, Order::Replace { file: 1, skip: 8, count: 1 });
        for pages in [5, 8] {
            let mut memory = Memory { files: memory.files.clone(), ..Memory::default() };
            assert_eq!(memory.judge(&found(&[pages]), sum).unwrap().either, 1);
        }
        assert!(memory.judge(&found(&[6]), sum).is_err());
    }

    /// A sync covers what was written before it, and nothing that was begun since.
    #[test]
    fn a_sync_settles_what_was_written_loosely() {
        let mut memory = Memory::default();
        sent(&mut memory, 0, Order::Loose { file: 1, skip: 5, count: 1 });
        memory.answered(0);
        assert_eq!(memory.allowed(1), Allowed::Anything);
        sent(&mut memory, 1, Order::Sync);
        memory.answered(1);
        assert_eq!(memory.allowed(1), Allowed::OneOf(vec![Contents::Pages(vec![5])]));
        sent(&mut memory, 2, Order::Sync);
        sent(&mut memory, 3, Order::Patch { file: 1, skip: 1, count: 1, seek: 0 });
        memory.answered(2);
        assert_eq!(memory.allowed(1), Allowed::Anything);
    }
}
