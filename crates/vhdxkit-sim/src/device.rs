//! Kinds of disks: what each makes of a write that was under way, and whether its word can be trusted.
//!
//! On the first three everything that is promised must hold. The last two break the one thing that any
//! order of writes has to rely on; of them it is only counted what a user would get.

use clap::ValueEnum;
use vhdxkit_testkit::random::Random;

use crate::disk::Window;

/// A kind of disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Device {
    /// Sectors of 512 bytes, which arrive in any order; the rest of a torn write is old or, of metadata,
    /// garbage.
    #[default]
    Sectors512,
    /// Sectors of 4096 bytes: an aligned 4 KiB is old or new as a whole.
    Sectors4096,
    /// Sectors of 512 bytes, and the one that was being written is garbage, be it metadata or what the guest
    /// was writing.
    Garbage,
    /// One sync in each window says that it is done and has done nothing.
    LyingSync,
    /// One write of each window goes to another place.
    StrayWrite,
}

/// How a write is torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// The first 512 bytes are new, the rest old.
    FirstNew,
    /// The first 512 bytes are old, the rest new.
    FirstOld,
    /// The first 512 bytes are new, the rest garbage.
    RestGarbage,
    /// The first 512 bytes are garbage, the rest new.
    FirstGarbage,
    /// The first 512 bytes are guest data that can be told to be garbage, the rest new.
    GuestGarbage,
}

impl Device {
    /// Whether everything that is promised must hold on it.
    #[must_use]
    pub fn is_honest(self) -> bool {
        !matches!(self, Self::LyingSync | Self::StrayWrite)
    }

    /// How it can tear a write of so many bytes.
    #[must_use]
    pub fn tears(self, length: usize, metadata: bool) -> &'static [Tear] {
        use Tear::{FirstGarbage, FirstNew, FirstOld, GuestGarbage, RestGarbage};
        match (self, metadata) {
            (Self::Garbage, true) => &[FirstGarbage],
            (Self::Garbage, false) => &[GuestGarbage],
            (Self::Sectors512, _) if length <= 512 => &[],
            (Self::Sectors512, true) => &[FirstNew, FirstOld, RestGarbage],
            (Self::Sectors512, false) => &[FirstNew, FirstOld],
            _ => &[],
        }
    }

    /// Windows as this disk makes them: where a sync has lied, what was under way before it still is.
    #[must_use]
    pub fn windows(self, mut windows: Vec<Window>) -> Vec<Window> {
        if self == Self::LyingSync {
            for number in (1..windows.len()).rev() {
                let [before, after] = &mut windows[number - 1..=number] else { continue };
                after.durable.clone_from(&before.durable);
                after.events.splice(0..0, before.events.iter().cloned());
            }
        }
        windows
    }

    /// Where a write goes that should go to `offset` of a disk of so many bytes; nowhere else on most.
    #[must_use]
    pub fn strays(self, offset: u64, length: u64) -> Vec<u64> {
        if self != Self::StrayWrite {
            return Vec::new();
        }
        // The neighbour, the same place in the next MiB, somewhere.
        let somewhere = Random::new(offset).below(length / 4096) * 4096;
        let places = [offset + 4096, offset + (1 << 20), somewhere];
        places.into_iter().filter(|place| *place != offset && place + 4096 <= length).collect()
    }
}
