//! What a guest may see after a crash.
//!
//! The model watches some sectors of the disk, its *cells*: the first, second, middle and last sector
//! of the blocks that a workload uses. Each write stamps a sector with where it is and which write it
//! was, so that another sector's bytes, an older write's, and bytes that never belonged to the guest
//! are told apart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vhdxkit::Image;
use vhdxkit::format::Guid;

use crate::complaint::Complaint;

/// Bytes of a cell.
pub const SECTOR: u64 = 512;

/// Zeros.
const ZERO: u64 = 0;

/// What a crash may show: sizes of the disk, and for each cell the writes it may hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Expectation {
    /// Any of these.
    pub sizes: Vec<u64>,
    /// By offset on the disk; the last one is the newest. Zero stands for zeros.
    pub cells: Vec<(u64, Vec<u64>)>,
    /// Any of these; whatever they are, when there are none.
    pub properties: Vec<Properties>,
}

/// What an image says of itself, in items of its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Properties {
    /// The disk's identity towards its guest.
    pub disk_id: Guid,
    /// In bytes.
    pub physical_sector_size: u32,
    /// Where the parent is, for a child.
    pub relative_path: Option<String>,
}

impl Properties {
    /// What an image says.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let path = image.parent_locator().and_then(|locator| locator.get("relative_path"));
        Self {
            disk_id: image.geometry().disk_id(),
            physical_sector_size: image.geometry().physical_sector_size(),
            relative_path: path.map(str::to_owned),
        }
    }
}

/// A cell's 512 bytes after write number `version`.
#[must_use]
pub fn stamp(offset: u64, version: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if version != ZERO {
        for pair in bytes.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&(offset ^ 0x5641_4C55_4500_0000).to_le_bytes());
            pair[8..].copy_from_slice(&version.to_le_bytes());
        }
    }
    bytes
}

/// Which write a cell holds.
pub(crate) fn version_of(offset: u64, bytes: &[u8]) -> Result<u64, String> {
    let version = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    if bytes == stamp(offset, version) {
        return Ok(version);
    }
    if bytes == garbage().as_slice() {
        return Ok(GARBAGE);
    }
    let place = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    Err(match bytes.chunks_exact(16).all(|pair| pair == &bytes[..16]) {
        true if place == FOREIGN => "bytes that were never the guest's".to_owned(),
        true => format!("the bytes of sector {:#x}", place ^ 0x5641_4C55_4500_0000),
        false => format!("a mixture: {:02x?}...", &bytes[..16]),
    })
}

/// Which write an image shows in a cell.
fn version_at(image: &Image, offset: u64) -> Result<u64, String> {
    let mut bytes = [0; SECTOR as usize];
    image.read_at(offset, &mut bytes).map_err(|e| format!("cannot read {offset:#x}: {e}"))?;
    version_of(offset, &bytes).map_err(|e| format!("{offset:#x} shows {e}"))
}

/// Marks file space that nobody owns.
pub const FOREIGN: u64 = 0xF0F1_F2F3_F4F5_F6F7;

/// A sector of foreign bytes.
#[must_use]
pub fn foreign() -> Vec<u8> {
    [FOREIGN.to_le_bytes(), FOREIGN.to_le_bytes()].concat().repeat(32)
}

/// Stands for a sector that a crash has left as garbage.
const GARBAGE: u64 = u64::MAX;

/// A sector as some disks leave it that were writing it.
#[must_use]
pub fn garbage() -> Vec<u8> {
    GARBAGE.to_le_bytes().repeat(64)
}

/// The writes that had returned at some moment.
#[derive(Debug, Clone)]
pub struct Mark(Vec<(u64, usize)>);

/// The guest's own knowledge.
#[derive(Debug, Clone)]
pub struct Model {
    size: u64,
    sizes: Vec<u64>,
    cells: BTreeMap<u64, Vec<u64>>,
    properties: Vec<Properties>,
    version: u64,
}

impl Model {
    /// A disk of zeros, watched at these offsets.
    #[must_use]
    pub fn new(size: u64, cells: impl IntoIterator<Item = u64>) -> Self {
        let cells = cells.into_iter().map(|offset| (offset, vec![ZERO])).collect();
        Self { size, sizes: vec![size], cells, properties: Vec::new(), version: 0 }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the image says of itself; `None` where that is not watched.
    #[must_use]
    pub fn properties(&self) -> Option<&Properties> {
        self.properties.last()
    }

    /// The image is being made to say something else of itself.
    pub fn describe(&mut self, properties: Properties) {
        self.properties.push(properties);
    }

    /// What the image says of itself is not watched any more.
    pub fn forget_properties(&mut self) {
        self.properties.clear();
    }

    /// The next write's number.
    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// A range is being given the contents of write `version`; zero for zeros.
    pub fn put(&mut self, range: Range<u64>, version: u64) {
        for (_, allowed) in self.cells.range_mut(range) {
            // More than one says that the sector is being written, if only with what it had.
            if allowed.last() != Some(&version) || allowed.len() == 1 {
                allowed.push(version);
            }
        }
    }

    /// A range may be made to show what this image shows there; zeros behind its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn may_show(&mut self, range: Range<u64>, image: &Image) -> Result<(), String> {
        for (offset, allowed) in self.cells.range_mut(range) {
            let inside = *offset < image.virtual_size();
            allowed.push(if inside { version_at(image, *offset)? } else { ZERO });
        }
        Ok(())
    }

    /// Each sector of a range has become zeros or stayed as it was before: what the living image shows is
    /// the newest now.
    ///
    /// # Errors
    /// It shows something else.
    pub fn keeps_or_loses(
        &mut self,
        range: Range<u64>,
        before: &Self,
        image: &Image,
    ) -> Result<(), String> {
        for (offset, allowed) in self.cells.range_mut(range) {
            let found = version_at(image, *offset)?;
            let newest = before.cells.get(offset).and_then(|allowed| allowed.last());
            if found != ZERO && newest != Some(&found) {
                return Err(format!("{offset:#x} shows write {found}, not {newest:?} or zeros"));
            }
            if allowed.last() != Some(&found) {
                allowed.push(found);
            }
        }
        Ok(())
    }

    /// A write of one cell was reported to have failed: it counts if the living image shows it.
    pub fn may_have_put(&mut self, image: &Image, offset: u64, version: u64) {
        if version_at(image, offset) == Ok(version) {
            self.put(offset..offset + 1, version);
        }
    }

    /// Everything written so far is durable.
    pub fn acknowledge(&mut self) {
        for allowed in self.cells.values_mut() {
            allowed.drain(..allowed.len() - 1);
        }
        self.properties.drain(..self.properties.len().saturating_sub(1));
        self.sizes = vec![self.size];
    }

    /// What a flush that begins now will make durable.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.cells.iter().map(|(offset, allowed)| (*offset, allowed.len())).collect())
    }

    /// A flush has ended that began at the mark.
    pub fn acknowledge_up_to(&mut self, mark: &Mark) {
        for (offset, count) in &mark.0 {
            if let Some(allowed) = self.cells.get_mut(offset) {
                allowed.drain(..count.saturating_sub(1));
            }
        }
        self.sizes = vec![self.size];
    }

    /// The disk is being given another size.
    pub fn resize(&mut self, size: u64) {
        self.sizes = vec![self.size, size];
        self.size = size;
    }

    /// A change of size was reported to have failed: the disk has that size or one it had
    /// before, and the handle shows `size`.
    pub fn failed_resize(&mut self, before: &Self, size: u64) {
        self.sizes = [&before.sizes[..], &[self.size]].concat();
        self.size = size;
    }

    /// The disk has the other size, durably: what was cut off is gone.
    pub fn resized(&mut self) {
        let size = self.size;
        for (_, allowed) in self.cells.range_mut(size..) {
            *allowed = vec![ZERO];
        }
        self.acknowledge();
    }

    /// The disk has gone back to one of the states it may be in: this is what it shows. A crash may
    /// still show any of the others, since nothing was made durable on the way.
    pub fn now_is(&mut self, seen: &[u64]) {
        let Some((size, versions)) = seen.split_first() else { return };
        self.size = *size;
        for ((_, allowed), version) in self.cells.range_mut(..*size).zip(versions) {
            allowed.push(*version);
        }
    }

    /// What a crash may show now.
    #[must_use]
    pub fn expectation(&self) -> Arc<Expectation> {
        let cells = self.cells.iter().map(|(offset, allowed)| (*offset, allowed.clone()));
        Arc::new(Expectation {
            sizes: self.sizes.clone(),
            cells: cells.collect(),
            properties: self.properties.clone(),
        })
    }

    /// Reads every cell of a living image: it must hold the newest write.
    ///
    /// # Errors
    /// What is wrong.
    pub fn require_newest(&self, image: &Image) -> Result<(), String> {
        for (&offset, allowed) in self.cells.range(..self.size) {
            let found = version_at(image, offset)?;
            if allowed.last() != Some(&found) {
                return Err(format!("{offset:#x} shows write {found}, not {:?}", allowed.last()));
            }
        }
        match self.properties() {
            Some(properties) if *properties != Properties::of(image) => {
                Err(format!("it says {:?}, not {properties:?}", Properties::of(image)))
            }
            _ => Ok(()),
        }
    }
}

/// The contents of the cells as an image shows them, each judged.
///
/// # Errors
/// What is wrong: another size, other items, a cell that cannot be read, or one that shows what it must not.
pub fn judge(image: &Image, expected: &Expectation) -> Result<Vec<u64>, Complaint> {
    let size = image.virtual_size();
    if !expected.sizes.contains(&size) {
        let text = format!("the disk has {size} bytes, expected one of {:?}", expected.sizes);
        return Err(Complaint::Older(text));
    }
    let says = Properties::of(image);
    if !expected.properties.is_empty() && !expected.properties.contains(&says) {
        let text = format!("it says {says:?}, expected one of {:?}", expected.properties);
        return Err(Complaint::Older(text));
    }
    let mut seen = vec![size];
    for (offset, allowed) in expected.cells.iter().filter(|(offset, _)| *offset < size) {
        let mut bytes = [0; SECTOR as usize];
        image.read_at(*offset, &mut bytes).map_err(Complaint::told("cannot read"))?;
        let found = version_of(*offset, &bytes).map_err(|what| {
            Complaint::Wrong(format!("{offset:#x} shows {what}; allowed are writes {allowed:?}"))
        })?;
        // What is being written when the power fails may be left as garbage by some disks.
        let torn = found == GARBAGE && allowed.len() > 1;
        if !torn && !allowed.contains(&found) {
            let text = format!("{offset:#x} shows write {found}; allowed are {allowed:?}");
            let older = allowed.iter().any(|allowed| found < *allowed);
            return Err(if older { Complaint::Older(text) } else { Complaint::Wrong(text) });
        }
        seen.push(found);
    }
    Ok(seen)
}
