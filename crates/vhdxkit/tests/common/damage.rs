//! Damage to an image, laid over a file that stays as it is; and a look at what was had in spite of it.
#![allow(dead_code)] // Two tests use it, each its part.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use vhdxkit::ops::recover::{Fate, Report, Salvage, SalvageOptions};
use vhdxkit::storage::{FileStorage, OpenMode, Storage};
use vhdxkit::{ExtentState, Image};
use vhdxkit_testkit::random::mix;

const MIB: u64 = 1 << 20;

/// What stands where something was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instead {
    Zeros,
    Junk,
}

/// One kind of damage.
#[derive(Debug, Clone)]
pub(crate) struct Damage {
    pub(crate) name: &'static str,
    /// File ranges that are overwritten.
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) with: Instead,
    /// The file's new end.
    pub(crate) cut: Option<u64>,
    /// Whether nothing may be lost by it.
    pub(crate) harmless: bool,
}

/// Every kind, for an image.
pub(crate) fn all(image: &Image) -> Vec<Damage> {
    let (metadata, bat) = (image.regions().metadata(), image.regions().bat());
    let log = image.log().place().map_or(0..0, |place| place.offset..place.end());
    let (metadata, bat) = (metadata.offset..metadata.end(), bat.offset..bat.end());
    let third = image.file_size() / 3 * 2 / 512 * 512;
    let kib = |a: u64, b: u64| a << 10..b << 10;
    let mut all = Vec::new();
    let mut add = |name, harmless, ranges: &[Range<u64>]| {
        for with in [Instead::Zeros, Instead::Junk] {
            all.push(Damage { name, ranges: ranges.to_vec(), with, cut: None, harmless });
        }
    };
    let first = 0..MIB;
    add("first mebibyte", true, std::slice::from_ref(&first));
    add("header 1", true, &[kib(64, 128)]);
    add("header 2", true, &[kib(128, 192)]);
    add("both headers", true, &[kib(64, 192)]);
    add("region table 1", true, &[kib(192, 256)]);
    add("region table 2", true, &[kib(256, 320)]);
    add("both region tables", true, &[kib(192, 320)]);
    add("log", false, std::slice::from_ref(&log));
    add("metadata", false, std::slice::from_ref(&metadata));
    add("BAT", false, std::slice::from_ref(&bat));
    add("first MiB and log", false, &[first.clone(), log]);
    add("first MiB and metadata", false, &[first.clone(), metadata]);
    add("first MiB and BAT", false, &[first, bat]);
    let last = third..image.file_size();
    all.push(Damage {
        name: "last third overwritten",
        ranges: vec![last],
        with: Instead::Junk,
        cut: None,
        harmless: false,
    });
    all.push(Damage {
        name: "last third cut",
        ranges: Vec::new(),
        with: Instead::Zeros,
        cut: Some(third),
        harmless: false,
    });
    all
}

impl Damage {
    pub(crate) fn title(&self) -> String {
        match (self.cut, self.with) {
            (Some(_), _) => self.name.to_owned(),
            (None, Instead::Zeros) => format!("{}: zeros", self.name),
            (None, Instead::Junk) => format!("{}: junk", self.name),
        }
    }

    /// Whether any byte of a file range is not what it was.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        self.cut.is_some_and(|end| range.end > end)
            || self.ranges.iter().any(|bad| bad.start < range.end && range.start < bad.end)
    }
}

/// A file with damage over it. Writing to it fails: nobody who salvages may do that.
pub(crate) struct Damaged {
    pub(crate) inner: Arc<dyn Storage>,
    pub(crate) damage: Damage,
}

fn junk(at: u64, buf: &mut [u8]) {
    for (offset, byte) in (at..).zip(buf) {
        *byte = (mix(offset / 8) >> (offset % 8 * 8)) as u8;
    }
}

fn forbidden() -> io::Result<()> {
    panic!("a salvage wrote to the damaged file")
}

impl Storage for Damaged {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..there];
        self.inner.read_at(offset, buf)?;
        let end = offset + there as u64;
        for bad in &self.damage.ranges {
            let (from, to) = (bad.start.max(offset), bad.end.min(end));
            if from < to {
                let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
                match self.damage.with {
                    Instead::Zeros => part.fill(0),
                    Instead::Junk => junk(from, part),
                }
            }
        }
        Ok(there)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        forbidden()
    }
    fn sync(&self) -> io::Result<()> {
        forbidden()
    }
    fn len(&self) -> io::Result<u64> {
        let length = self.inner.len()?;
        Ok(self.damage.cut.map_or(length, |cut| cut.min(length)))
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        forbidden()
    }
    fn punch(&self, _: Range<u64>) -> io::Result<()> {
        forbidden()
    }
    fn allocate(&self, _: Range<u64>) -> io::Result<()> {
        forbidden()
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.len()?;
        let below = self.inner.next_data(offset)?.filter(|run| run.start < end);
        let over = self.damage.ranges.iter().filter(|bad| bad.end > offset);
        let over = over.map(|bad| bad.start.max(offset)..bad.end);
        let first = below.into_iter().chain(over).min_by_key(|run| run.start);
        Ok(first.map(|run| run.start..run.end.min(end)).filter(|run| !run.is_empty()))
    }
}

/// What was had of an image, counted in mebibytes of its disk that hold data.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Had {
    /// That the image had.
    pub(crate) data: u64,
    /// Of those, the ones whose bytes are still in the file.
    pub(crate) left: u64,
    /// Of those, the ones that the result shows, right.
    pub(crate) right: u64,
    /// Of those, under a fate that claims certainty.
    pub(crate) certain: u64,
}

impl Had {
    /// Of what is still in the file, in hundredths of a per cent.
    pub(crate) fn share(&self) -> u64 {
        (self.right * 10_000).checked_div(self.left).unwrap_or(10_000)
    }
}

/// Where each mebibyte of a disk lies in the image's own file.
fn places(image: &Image, length: u64) -> Vec<Option<u64>> {
    let mut places = vec![None::<u64>; length.div_ceil(MIB) as usize];
    for extent in image.extents(0..image.virtual_size()) {
        let extent = extent.unwrap();
        if extent.state == ExtentState::Data && extent.depth == 0 {
            let mut at = extent.start;
            while at < extent.end() {
                let place = extent.file_offset.map(|place| place + (at - extent.start));
                if let Some(slot) = places.get_mut((at / MIB) as usize) {
                    slot.get_or_insert(place.unwrap_or_default());
                }
                at = (at / MIB + 1) * MIB;
            }
        }
    }
    places
}

/// The fate of the block that a byte of the disk is in.
pub(crate) fn fate_at(report: &Report, at: u64) -> Fate {
    let geometry = report.geometry.unwrap();
    let block = at / u64::from(geometry.block_size());
    let run = report.fates.runs.partition_point(|run| run.blocks.end <= block);
    report.fates.runs[run].fate
}

/// Compares what a salvage shows with the image as it was. No byte may be wrong under a fate that claims
/// certainty, but for those that were overwritten in their place.
pub(crate) fn judge(
    original: &Image,
    salvage: &Salvage,
    result: Option<&Image>,
    damage: &Damage,
) -> Had {
    let mut had = Had::default();
    let size = original.virtual_size();
    let was = places(original, size);
    let is = result.map_or_else(Vec::new, |result| places(result, size.max(result.virtual_size())));
    let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for (number, was) in was.iter().enumerate() {
        let start = number as u64 * MIB;
        let now = is.get(number).copied().flatten();
        let length = (size - start).min(MIB) as usize;
        let left = was.is_some_and(|place| !damage.touches(&(place..place + length as u64)));
        had.data += u64::from(was.is_some());
        had.left += u64::from(left);
        let inside = result.is_some_and(|result| start < result.virtual_size());
        let fate = if inside { fate_at(salvage.report(), start) } else { Fate::Lost };
        if was.is_none() && now.is_none() {
            continue;
        }
        let (a, b) = (&mut a[..length], &mut b[..length]);
        original.read_at(start, a).unwrap();
        b.fill(0);
        if let Some(result) = result.filter(|_| inside) {
            let there = (result.virtual_size() - start).min(length as u64) as usize;
            result.read_at(start, &mut b[..there]).unwrap();
        }
        let overwritten = was.is_some() && !left && damage.cut.is_none();
        let same = a == b;
        assert!(
            same || !fate.is_certain() || overwritten,
            "MiB {number} is wrong and called {}",
            fate.name()
        );
        if left && same && !matches!(fate, Fate::Lost) {
            had.right += 1;
            had.certain += u64::from(fate.is_certain());
        }
    }
    had
}

pub(crate) fn file(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, OpenMode::ReadOnly { force_share: true }).unwrap())
}

pub(crate) fn salvage(
    inner: &Arc<dyn Storage>,
    damage: &Damage,
    options: &SalvageOptions,
) -> Salvage {
    let damaged = Damaged { inner: Arc::clone(inner), damage: damage.clone() };
    Salvage::read(Arc::new(damaged), options, &mut ()).unwrap()
}

pub(crate) fn no_damage() -> Damage {
    let (name, ranges, with) = ("none", Vec::new(), Instead::Zeros);
    Damage { name, ranges, with, cut: None, harmless: true }
}

pub(crate) fn wiped(name: &'static str, ranges: &[Range<u64>]) -> Damage {
    Damage { ranges: ranges.to_vec(), name, ..no_damage() }
}
