//! `compact`: gives back what a dynamic or differencing image holds without need.
//!
//! # What goes
//! | reason | what becomes of it |
//! |---|---|
//! | all zeros | the block becomes ZERO |
//! | free, as its file system says, or zeros where it is not | likewise |
//! | in a child: as the parent shows it | the block becomes NOT_PRESENT, and shows the parent |
//! | trimmed, and its place kept | the place goes, the state stays |
//! | a sector bitmap that no block needs | its entry is cleared |
//! | owned by nobody | what is above moves down; data that a table may have lost (`ops/nameless.rs`), at the user's word |
//!
//! Whole blocks only. A block that holds one byte in use stays as it is, its free bytes too: nothing is
//! ever written over.
//!
//! # Two steps
//! [`plan`] reads and judges, and changes nothing: the free-space maps of the file systems, then of every
//! block that has a place the bytes that are *not* free, up to the first that forbids giving it away.
//! [`compact`] makes a plan and carries it out; `image/write/compact.rs` argues why a crash at any moment
//! leaves a whole image.
//!
//! # Identity
//! A guest that reads free space sees other bytes afterwards, so a disk from which free blocks are taken
//! gets a new DataWriteGuid, and children do not know it any more. Where only zeros, trimmed blocks and
//! what equals the parent go, nobody can tell the difference, and the identity stays (MS-VHDX 2.2.2.1).

mod plan;
mod scan;

use std::ops::{ControlFlow, Range};

use crate::error::Repr;
use crate::format::bat::{PayloadState, SECTOR_BITMAP_BLOCK};
use crate::image::GivenUp;
use crate::map::walk;
use crate::storage::StorageExt;
use crate::view::geometry::BatSlot;
use crate::{Error, Image, Result};

use super::progress::{Progress, advance};

use plan::Verdict;
pub use plan::{Plan, Tally, plan};

/// What may be given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactOptions {
    free_space: bool,
    assume_clean: bool,
    allow_data_loss: bool,
    also_free: Vec<Range<u64>>,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self {
            free_space: true,
            assume_clean: false,
            allow_data_loss: false,
            also_free: Vec::new(),
        }
    }
}

impl CompactOptions {
    /// Whether blocks go that their file system calls free. They do unless this says otherwise.
    #[must_use]
    pub fn free_space(mut self, yes: bool) -> Self {
        self.free_space = yes;
        self
    }

    /// Takes the user's word that a file system which says otherwise was left in good order: what its
    /// journal or a sleeping guest still has in mind is lost if that is not so.
    #[must_use]
    pub fn assume_clean(mut self, yes: bool) -> Self {
        self.assume_clean = yes;
        self
    }

    /// Takes the user's word that data which no entry of the block table names is nothing, however much it is: a table
    /// that has lost entries leaves it, too.
    #[must_use]
    pub fn allow_data_loss(mut self, yes: bool) -> Self {
        self.allow_data_loss = yes;
        self
    }

    /// Bytes of the disk that the caller knows to be free, whatever a file system says.
    #[must_use]
    pub fn also_free(mut self, range: Range<u64>) -> Self {
        self.also_free.push(range);
        self
    }
}

/// Told how compacting goes on.
///
/// `()` ignores it and never stops.
pub trait Observer: Progress {
    /// The plan is made, and nothing has been changed yet. [`ControlFlow::Break`] ends it here.
    fn planned(&mut self, plan: &Plan) -> ControlFlow<()>;
}

impl Observer for () {
    fn planned(&mut self, _plan: &Plan) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What compacting did.
#[derive(Debug)]
#[non_exhaustive]
pub struct CompactReport {
    /// What was planned, and done.
    pub plan: Plan,
    /// Bytes of the file before.
    pub bytes_before: u64,
    /// Bytes of the file after.
    pub bytes_after: u64,
    /// Bytes of blocks and sector bitmaps that were copied to another place.
    pub moved: u64,
}

/// So many blocks are moved in one sweep: their list takes no more memory than this many times 16 bytes.
const MOST_MOVES: usize = 1 << 20;
/// Bytes copied at once.
const STEP: usize = 1 << 20;

/// Gives space back in place and closes the image; what was written before is durable, too. Progress counts the bytes of blocks that are judged,
/// and, from the plan on, of those that are given back and of those that move.
///
/// The image was opened for writing; a child with its parent, if what equals that is to go.
///
/// # Errors
/// The image is fixed ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)); there is an
/// [obstacle](Plan::obstacle), and nothing was changed; it cannot be read or written; the work was stopped. Then the
/// image is whole, and compacting again goes on.
pub fn compact(
    mut image: Image,
    options: CompactOptions,
    observer: &mut dyn Observer,
) -> Result<CompactReport> {
    let plan = plan(&image, &options, observer)?;
    let bytes_before = image.storage().length()?;
    if observer.planned(&plan).is_break() {
        return Err(Error::new(Repr::Cancelled));
    }
    if let Some(defect) = plan.obstacle(&options) {
        return Err(defect.into());
    }
    let mut moved = 0;
    if plan.has_work() {
        image.begin_compaction(plan.is_visible())?;
        let done = carry_out(&mut image, &plan, observer);
        // Whatever went wrong, what was done is a whole image, and closing it gives its end back.
        let closed = image.close();
        moved = done.and_then(|moved| closed.map(|()| moved))?;
    }
    let bytes_after = image.storage().length()?;
    Ok(CompactReport { plan, bytes_before, bytes_after, moved })
}

fn carry_out(image: &mut Image, plan: &Plan, progress: &mut dyn Progress) -> Result<u64> {
    let mut given_up = GivenUp::default();
    for (block, verdict) in plan.released() {
        let state = match verdict {
            Verdict::Zero | Verdict::Free => PayloadState::Zero,
            Verdict::LikeParent { .. } => PayloadState::NotPresent,
            Verdict::Anchor(state) => state,
        };
        image.release_block(block, state)?;
        advance(progress, u64::from(image.geometry().block_size()))?;
        image.commit_compaction(&mut given_up, false)?;
    }
    // Before their bitmaps: a partially present block must not be without one.
    image.commit_compaction(&mut given_up, true)?;
    for &chunk in plan.bitmaps() {
        image.release_bitmap(chunk, &mut given_up)?;
        image.commit_compaction(&mut given_up, false)?;
    }
    image.settle_compaction(&mut given_up)?;
    let mut buf = vec![0; STEP];
    let regions = move_regions(image, plan, &mut given_up, &mut buf)?;
    let blocks = move_down(image, plan.pinned(), &mut given_up, &mut buf, progress)?;
    image.finish_compaction()?;
    Ok(regions.saturating_add(blocks))
}

/// Moves the regions that would keep the file from becoming as short as its contents.
fn move_regions(
    image: &mut Image,
    plan: &Plan,
    given_up: &mut GivenUp,
    buf: &mut [u8],
) -> Result<u64> {
    let mut moved = 0u64;
    for region in image.regions().all().to_vec() {
        if plan.is_in_the_way(&region) && image.move_region(region, given_up, buf)? {
            moved = moved.saturating_add(u64::from(region.length));
        }
    }
    Ok(moved)
}

/// Something that has a place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    offset: u64,
    slot: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Block(u64),
    Bitmap(u64),
}

/// Moves what lies highest, and behind `pinned`, into the lowest gaps, until nothing can move.
fn move_down(
    image: &mut Image,
    pinned: u64,
    given_up: &mut GivenUp,
    buf: &mut [u8],
    progress: &mut dyn Progress,
) -> Result<u64> {
    let mut moved = 0u64;
    loop {
        let before = moved;
        // What finds no gap tells that nothing of its kind below it does.
        let (mut blocks, mut bitmaps) = (true, true);
        for Placed { offset, slot } in highest(image)? {
            if offset < pinned {
                // The file does not become shorter by what lies before the log, wherever that goes.
                break;
            }
            let (more, length) = match slot {
                Slot::Block(block) if blocks => {
                    blocks = image.move_block(block, buf)?;
                    (blocks, u64::from(image.geometry().block_size()))
                }
                Slot::Bitmap(chunk) if bitmaps => {
                    bitmaps = image.move_bitmap(chunk, given_up, buf)?;
                    (bitmaps, SECTOR_BITMAP_BLOCK)
                }
                _ => continue,
            };
            if more {
                moved = moved.saturating_add(length);
                advance(progress, length)?;
                image.commit_compaction(given_up, false)?;
            }
        }
        image.settle_compaction(given_up)?;
        if moved == before {
            return Ok(moved);
        }
    }
}

/// What lies highest in the file, highest first.
fn highest(image: &Image) -> Result<Vec<Placed>> {
    let geometry = *image.geometry();
    let rules = image.entry_rules();
    let mut found = std::collections::BinaryHeap::new();
    walk(&**image.storage(), rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
        for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
            let placed = match geometry.slot(index) {
                BatSlot::Payload(block) => {
                    rules.owned(raw).map(|offset| Placed { offset, slot: Slot::Block(block) })
                }
                BatSlot::Bitmap(chunk) => {
                    let place = rules.bitmap(chunk, raw).ok().flatten();
                    place.map(|offset| Placed { offset, slot: Slot::Bitmap(chunk) })
                }
                BatSlot::Padding => None,
            };
            if let Some(placed) = placed {
                found.push(std::cmp::Reverse(placed));
                if found.len() > MOST_MOVES {
                    found.pop();
                }
            }
        }
        Ok(())
    })?;
    // Reversed, ascending order is highest first.
    Ok(found.into_sorted_vec().into_iter().map(|placed| placed.0).collect())
}

/// The error of a fixed image.
fn fixed() -> Error {
    Error::invalid(
        "a fixed image holds all of its blocks, and that is what it is for: there is nothing to give back; \
         convert it to a dynamic image (vhdx convert), which leaves out what is zero",
    )
}
