//! What can go, and why: judged before anything is changed.

use std::ops::Range;

use crate::defect::Defect;
use crate::format::bat::{PayloadState, SECTOR_BITMAP_BLOCK};
use crate::format::region::{BAT_REGION, METADATA_REGION};
use crate::format::{HEADER_SECTION_LENGTH, MIB};
use crate::map::{Block, EntryRules, SpaceMap, walk};
use crate::ops::nameless::Named;
use crate::ops::partitions::{Volume, volumes_counted};
use crate::ops::progress::{Progress, advance};
use crate::storage::StorageExt;
use crate::view::geometry::{BatSlot, DiskType};
use crate::view::regions::Region;
use crate::{Image, Result};

use super::CompactOptions;
use super::scan::{Contents, Scan};

/// Why a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it is zeros.
    Zero,
    /// What is in use of it is zeros, the rest is free.
    Free,
    /// The parent shows the same; but for what is `free`.
    LikeParent { free: bool },
    /// It has nothing but a place: one in this state.
    Anchor(PayloadState),
}

/// How much goes for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of the file that they take.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.blocks = self.blocks.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What compacting gives back, by reason.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What lies on the disk, and whose free space was believed; empty when nobody's was to be.
    pub volumes: Vec<Volume>,
    /// Blocks of the disk that have a place in the file.
    pub placed: Tally,
    /// Blocks that are zeros throughout.
    pub zero: Tally,
    /// Blocks that hold nothing but free space, and zeros.
    pub free: Tally,
    /// Of a child: blocks that the parent shows the same.
    pub like_parent: Tally,
    /// Blocks without contents that kept their places.
    pub trimmed: Tally,
    /// Sector bitmaps that no block needs any more.
    pub sector_bitmaps: Tally,
    /// Bytes of the file that belong to nothing already.
    pub unowned: u64,
    /// Bytes of the file now.
    pub file_size: u64,
    /// Bytes of the file afterwards, if everything can move into the gaps.
    pub file_size_after: u64,
    /// Bytes that lie behind that now, and have to move.
    pub to_move: u64,
    /// Bytes of the disk that were read to find out, those of the file systems' own tables included.
    pub bytes_read: u64,
    /// Blocks that cannot be judged, since their entries are damaged; they stay.
    pub damaged: u64,
    /// Bytes of the file that hold data which no entry names, and which is given up: so much that entries may have
    /// been lost. 0 where a crash or a trim explains it.
    pub nameless: u64,
    /// Why the image cannot be written at all.
    fault: Option<Defect>,
    verdicts: Vec<(Range<u64>, Verdict)>,
    bitmaps: Vec<u64>,
    /// Something lies above a gap that holds it, or the file ends with a gap.
    can_move: bool,
    pinned: u64,
}

impl Plan {
    /// Bytes that blocks and sector bitmaps give up.
    #[must_use]
    pub fn released_bytes(&self) -> u64 {
        let all = [self.zero, self.free, self.like_parent, self.trimmed, self.sector_bitmaps];
        all.iter().fold(0, |sum, tally| sum.saturating_add(tally.bytes))
    }

    /// Whether a guest that reads free space could tell the difference: then children of the disk do not
    /// know it any more.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        let visible =
            |verdict| matches!(verdict, Verdict::Free | Verdict::LikeParent { free: true });
        self.verdicts.iter().any(|(_, verdict)| visible(*verdict))
    }

    /// Whether there is anything to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.released_bytes() > 0 || self.can_move
    }

    /// Why it will not be carried out with these options: the table is damaged, or seems to have lost entries.
    #[must_use]
    pub fn obstacle(&self, options: &CompactOptions) -> Option<Defect> {
        let bytes = self.nameless;
        let nameless =
            (bytes > 0 && !options.allow_data_loss).then_some(Defect::NamelessData { bytes });
        self.fault.clone().or(nameless)
    }

    /// The end of the log, or of a region that nobody knows: they stay where they are.
    pub(super) fn pinned(&self) -> u64 {
        self.pinned
    }

    /// Whether a region lies behind all that is going to be left, so that the file could not be cut.
    pub(super) fn is_in_the_way(&self, region: &Region) -> bool {
        let known = [BAT_REGION, METADATA_REGION].contains(&region.guid);
        known && region.offset >= self.file_size_after
    }

    fn releases(&self, block: u64) -> bool {
        let next = self.verdicts.partition_point(|(blocks, _)| blocks.end <= block);
        self.verdicts.get(next).is_some_and(|(blocks, _)| blocks.contains(&block))
    }

    /// The blocks that go, in order.
    pub(super) fn released(&self) -> impl Iterator<Item = (u64, Verdict)> + '_ {
        self.verdicts.iter().flat_map(|(blocks, why)| blocks.clone().map(move |b| (b, *why)))
    }

    /// The chunks whose sector bitmaps go.
    pub(super) fn bitmaps(&self) -> &[u64] {
        &self.bitmaps
    }

    fn note(&mut self, block: u64, verdict: Verdict, bytes: u64) {
        let tally = match verdict {
            Verdict::Zero => &mut self.zero,
            Verdict::Free => &mut self.free,
            Verdict::LikeParent { .. } => &mut self.like_parent,
            Verdict::Anchor(_) => &mut self.trimmed,
        };
        tally.add(bytes);
        match self.verdicts.last_mut() {
            Some((blocks, why)) if blocks.end == block && *why == verdict => {
                blocks.end = block.saturating_add(1);
            }
            _ => self.verdicts.push((block..block.saturating_add(1), verdict)),
        }
    }
}

/// Judges what an image could give back, and gives nothing back. Of one that is being written everything is put in
/// place first. Progress counts bytes of the blocks that are judged.
///
/// # Errors
/// The image is fixed; it cannot be read; the work was stopped.
pub fn plan(image: &Image, options: &CompactOptions, progress: &mut dyn Progress) -> Result<Plan> {
    if image.geometry().disk_type() == DiskType::Fixed {
        return Err(super::fixed());
    }
    // The table is read from the file.
    if image.is_writable() {
        image.settle()?;
    }
    let mut scan = Scan::new(image);
    let (volumes, read) = match options.free_space {
        true => volumes_counted(image)?,
        false => (Vec::new(), 0),
    };
    scan.believe(&volumes, options);
    let mut survey = Survey::begin(image, volumes)?;
    survey.judge_blocks(&mut scan, progress)?;
    survey.judge_bitmaps()?;
    let storage = &**image.storage();
    let (log, regions, rules) = (image.headers().log_place(), image.regions(), image.entry_rules());
    let named = Named { storage, log, regions, rules };
    survey.plan.nameless = named.not_to_be_given_up(progress)?;
    survey.finish(read.saturating_add(scan.bytes_read()))
}

/// A plan in the making.
struct Survey<'a> {
    image: &'a Image,
    rules: EntryRules,
    plan: Plan,
    /// What stays in the file.
    space: SpaceMap,
    stays: u64,
    highest_fixed: u64,
    /// The places that lie highest of those that stay.
    highest_block: u64,
    highest_bitmap: u64,
    /// Of the chunk that is looked at: whether a partially present block stays.
    partial: Vec<u64>,
}

impl<'a> Survey<'a> {
    fn begin(image: &'a Image, volumes: Vec<Volume>) -> Result<Self> {
        let file_size = image.storage().length()?;
        let plan = Plan {
            volumes,
            placed: Tally::default(),
            zero: Tally::default(),
            free: Tally::default(),
            like_parent: Tally::default(),
            trimmed: Tally::default(),
            sector_bitmaps: Tally::default(),
            unowned: 0,
            file_size,
            file_size_after: file_size,
            to_move: 0,
            bytes_read: 0,
            damaged: 0,
            nameless: 0,
            fault: None,
            verdicts: Vec::new(),
            bitmaps: Vec::new(),
            can_move: false,
            pinned: 0,
        };
        let mut survey = Self {
            image,
            rules: image.entry_rules(),
            plan,
            space: SpaceMap::new(file_size),
            stays: 0,
            highest_fixed: 0,
            highest_block: 0,
            highest_bitmap: 0,
            partial: Vec::new(),
        };
        survey.keep_fixed(0, HEADER_SECTION_LENGTH);
        if let Some(log) = image.headers().log_place() {
            survey.keep_fixed(log.offset, u64::from(log.length));
        }
        for region in image.regions().all() {
            let length = u64::from(region.length);
            match [BAT_REGION, METADATA_REGION].contains(&region.guid) {
                true => survey.keep(region.offset, length),
                false => survey.keep_fixed(region.offset, length),
            }
        }
        Ok(survey)
    }

    fn keep_fixed(&mut self, offset: u64, length: u64) {
        self.highest_fixed = self.highest_fixed.max(offset.saturating_add(length));
        self.keep(offset, length);
    }

    /// A block whose place something else has, too, shows the other's bytes.
    fn keep_block(&mut self, index: u64, offset: u64, length: u64) {
        self.stays = self.stays.saturating_add(length);
        if let Some(at) = self.space.claim(offset, length) {
            self.plan.fault.get_or_insert_with(|| Defect::BlockOverlap {
                at: self.rules.at(index),
                what: format!("BAT entry {index}"),
                file_offset: at,
                with: "space that something else takes".to_owned(),
            });
        }
    }

    fn keep(&mut self, offset: u64, length: u64) {
        self.stays = self.stays.saturating_add(length);
        self.space.claim(offset, length);
    }

    fn judge_blocks(&mut self, scan: &mut Scan<'_>, progress: &mut dyn Progress) -> Result<()> {
        let geometry = self.rules.geometry;
        let storage = self.image.storage();
        walk(&**storage, self.rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let BatSlot::Payload(block) = geometry.slot(index) else { continue };
                let bytes = u64::from(geometry.block_size());
                let place = self.rules.owned(raw);
                let verdict = match self.rules.payload(block, raw) {
                    Ok(Block::Absent(state)) => place.map(|_| Verdict::Anchor(state)),
                    Ok(Block::Present { .. } | Block::Partial { .. }) => {
                        match scan.judge(block, raw)? {
                            Contents::InUse => None,
                            Contents::Zero => Some(Verdict::Zero),
                            Contents::Free => Some(Verdict::Free),
                            Contents::LikeParent { free } => Some(Verdict::LikeParent { free }),
                        }
                    }
                    Err(defect) => {
                        self.plan.fault.get_or_insert(defect);
                        self.plan.damaged = self.plan.damaged.saturating_add(1);
                        None
                    }
                };
                if let Some(place) = place {
                    self.plan.placed.add(bytes);
                    if verdict.is_none() {
                        self.keep_block(index, place, bytes);
                        self.highest_block = self.highest_block.max(place);
                    }
                    advance(progress, bytes)?;
                }
                match verdict {
                    Some(verdict) => self.plan.note(block, verdict, bytes),
                    None if raw.state() == PayloadState::PartiallyPresent.to_raw() => {
                        let chunk = geometry.chunk_of(block);
                        if self.partial.last() != Some(&chunk) {
                            self.partial.push(chunk);
                        }
                    }
                    None => {}
                }
            }
            Ok(())
        })
    }

    fn judge_bitmaps(&mut self) -> Result<()> {
        let geometry = self.rules.geometry;
        if !geometry.is_differencing() {
            return Ok(());
        }
        let storage = self.image.storage();
        walk(&**storage, self.rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let BatSlot::Bitmap(chunk) = geometry.slot(index) else { continue };
                let Ok(Some(place)) = self.rules.bitmap(chunk, raw) else { continue };
                if self.partial.binary_search(&chunk).is_ok() {
                    self.keep(place, SECTOR_BITMAP_BLOCK);
                    self.highest_bitmap = self.highest_bitmap.max(place);
                } else {
                    self.plan.sector_bitmaps.add(SECTOR_BITMAP_BLOCK);
                    self.plan.bitmaps.push(chunk);
                }
            }
            Ok(())
        })
    }

    fn finish(mut self, bytes_read: u64) -> Result<Plan> {
        let unowned = self.space.unowned().saturating_sub(self.plan.released_bytes());
        self.plan.unowned = unowned;
        self.plan.bytes_read = bytes_read;
        let after = self.stays.max(self.highest_fixed);
        self.plan.file_size_after = after.min(self.plan.file_size);
        let block = u64::from(self.rules.geometry.block_size());
        self.plan.pinned = self.highest_fixed;
        let movable =
            |gap: &Range<u64>, place: u64| gap.start < place && place >= self.highest_fixed;
        self.plan.can_move = self.space.gaps().iter().any(|gap| {
            let room = gap.end.saturating_sub(gap.start);
            let ends_file = room >= MIB && gap.end >= crate::format::mib_floor(self.plan.file_size);
            let region = |region: &Region| {
                self.plan.is_in_the_way(region)
                    && gap.start < region.offset
                    && room >= u64::from(region.length)
            };
            ends_file
                || self.image.regions().all().iter().any(region)
                || (room >= block && movable(gap, self.highest_block))
                || (room >= SECTOR_BITMAP_BLOCK && movable(gap, self.highest_bitmap))
        });
        self.plan.to_move = self.to_move()?;
        Ok(self.plan)
    }

    /// Bytes of blocks that stay and lie behind the end that the file is going to have.
    fn to_move(&self) -> Result<u64> {
        let (geometry, storage) = (self.rules.geometry, self.image.storage());
        let mut bytes = 0u64;
        walk(&**storage, self.rules.bat_offset, geometry.bat_entries(), &mut |stretch| {
            for (index, raw) in stretch.entries().filter(|(_, raw)| raw.0 != 0) {
                let BatSlot::Payload(block) = geometry.slot(index) else { continue };
                let above = self.rules.owned(raw).is_some_and(|at| at >= self.plan.file_size_after);
                if above && !self.plan.releases(block) {
                    bytes = bytes.saturating_add(u64::from(geometry.block_size()));
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }
}
