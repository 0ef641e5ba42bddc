//! exFAT: free clusters from the allocation bitmap that the root directory names.
//!
//! The boot region has a checksum, the bitmap has none. So what leads to it is judged instead: the root
//! directory and the bitmap are chains in the FAT, and the bitmap has to count its own clusters as in use,
//! those of the root directory and those of the up-case table. No chain is followed further than what it
//! leads to may be long, and none twice to one place.
//!
//! A volume is at rest when neither of the flags for that is set: `VolumeDirty`, and `MediaFailure`, after
//! which nobody knows what of the last writes arrived.

use std::ops::Range;

use crate::bytes::{u8_at, u16_at, u32_at, u64_at, utf16};
use crate::free::Units;
use crate::own::Own;
use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};

/// No directory may be larger.
const LARGEST_DIRECTORY: u64 = 256 << 20;
const LARGEST_CLUSTER_SHIFT: u32 = 25;
const PIECE: u64 = 1 << 20;
const END_OF_CHAIN: u32 = 0xFFFF_FFFF;
const FIRST_ENTRIES: [u32; 2] = [0xFFFF_FFF8, 0xFFFF_FFFF];

// Types of directory entries, as they are when they are in use.
const END_OF_DIRECTORY: u8 = 0;
const ALLOCATION_BITMAP: u8 = 0x81;
const UP_CASE_TABLE: u8 = 0x82;
const VOLUME_LABEL: u8 = 0x83;

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let volume = Volume::read(window)?;
    let root = volume.chain("the root directory", volume.root, None)?;
    let entries = volume.entries(&root)?;
    let chain_of = |what, data: Data| {
        let clusters = data.length.div_ceil(volume.cluster());
        volume.chain(what, data.first, Some(clusters))
    };
    let bitmap = entries.bitmap.ok_or_else(|| Trouble::damaged("it has no allocation bitmap"))?;
    let bitmap_chain = chain_of("the allocation bitmap", bitmap)?;
    let table = entries.table.ok_or_else(|| Trouble::damaged("it has no up-case table"))?;
    let table_chain = chain_of("the up-case table", table)?;
    let free = volume.free_clusters(bitmap, &bitmap_chain)?;

    let mut own = Own::default();
    for (what, chain) in [
        ("the root directory", &root),
        ("the allocation bitmap", &bitmap_chain),
        ("the up-case table", &table_chain),
    ] {
        chain.iter().for_each(|cluster| own.add(what, volume.place(*cluster)));
    }
    own.judge(&free)?;
    Ok(Survey {
        asleep: false,
        name: "exFAT",
        label: entries.label,
        length: volume.length,
        unit: volume.cluster(),
        free,
        unclean: volume.unclean(),
    })
}

/// The boot region, all of it judged. Offsets and sizes are in bytes.
struct Volume<'a> {
    window: &'a Window<'a>,
    length: u64,
    /// The FAT that is in use.
    fat: u64,
    heap: u64,
    cluster_shift: u32,
    clusters: u64,
    root: u32,
    flags: u16,
}

/// Clusters with a directory entry.
#[derive(Debug, Clone, Copy)]
struct Data {
    first: u32,
    length: u64,
}

#[derive(Default)]
struct Entries {
    bitmap: Option<Data>,
    table: Option<Data>,
    label: String,
}

impl<'a> Volume<'a> {
    fn read(window: &'a Window<'a>) -> Result<Self, Trouble> {
        let boot = window.read("the boot sector", 0, 512)?;
        let impossible =
            |what| Trouble::damaged(format!("the boot sector has an impossible {what}"));
        let sector_shift = u32::from(u8_at(&boot, 0x6C));
        if u16_at(&boot, 510) != 0xAA55 || !(9..=12).contains(&sector_shift) {
            return Err(impossible("sector size"));
        }
        let sector = 1u64 << sector_shift;
        judge_checksum(&window.read("the boot region", 0, sector.saturating_mul(12))?, sector)?;
        if u8_at(&boot, 0x69) != 1 {
            return Err(Trouble::not_known("this version of exFAT is not known"));
        }
        if boot.get(0x0B..0x40).unwrap_or_default().iter().any(|byte| *byte != 0) {
            return Err(impossible("field of FAT"));
        }
        let cluster_shift = sector_shift.saturating_add(u8_at(&boot, 0x6D).into());
        if cluster_shift > LARGEST_CLUSTER_SHIFT {
            return Err(impossible("cluster size"));
        }
        // No product can overflow but the volume's length: the others are of 32 bits and 12.
        let bytes = |at| u64::from(u32_at(&boot, at)).saturating_mul(sector);
        let sectors = u64_at(&boot, 0x48);
        let length = sectors.checked_mul(sector).filter(|length| *length <= window.size());
        let length = length.ok_or_else(|| {
            let room = window.size();
            Trouble::damaged(format!(
                "{sectors} sectors of {sector} bytes, in a place of {room} bytes"
            ))
        })?;
        let (fat, fat_size, heap) = (bytes(0x50), bytes(0x54), bytes(0x58));
        let clusters = u64::from(u32_at(&boot, 0x5C));
        let (fats, flags) = (u64::from(u8_at(&boot, 0x6E)), u16_at(&boot, 0x6A));
        let active = u64::from(flags & 1);
        let heap_end = clusters.checked_shl(cluster_shift).and_then(|size| size.checked_add(heap));
        let entries_size = clusters.saturating_add(2).saturating_mul(4);
        if !(1..=2).contains(&fats) || active >= fats {
            return Err(impossible("number of FATs"));
        }
        if fat < sector.saturating_mul(24) || fat_size < entries_size {
            return Err(impossible("FAT"));
        }
        if heap < fat.saturating_add(fat_size.saturating_mul(fats))
            || heap_end.is_none_or(|end| end > length)
            || clusters == 0
            || clusters > 0xFFFF_FFF5
        {
            return Err(impossible("cluster heap"));
        }
        let fat = fat.saturating_add(active.saturating_mul(fat_size));
        let root = u32_at(&boot, 0x60);
        let volume = Self { window, length, fat, heap, cluster_shift, clusters, root, flags };
        let first = window.read("the FAT", volume.fat, 8)?;
        match [u32_at(&first, 0), u32_at(&first, 4)] == FIRST_ENTRIES {
            true => Ok(volume),
            false => Err(Trouble::damaged("its FAT does not begin as such")),
        }
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_shift.min(LARGEST_CLUSTER_SHIFT)
    }

    fn unclean(&self) -> Option<String> {
        match (self.flags & 2 != 0, self.flags & 4 != 0) {
            (true, _) => Some("it was not unmounted cleanly: it is marked dirty".to_owned()),
            (_, true) => Some("reads or writes of it have failed".to_owned()),
            _ => None,
        }
    }

    /// Where a cluster lies, which has been judged.
    fn place(&self, cluster: u32) -> Range<u64> {
        let number = u64::from(cluster).saturating_sub(2);
        let start = self.heap.saturating_add(number.saturating_mul(self.cluster()));
        start..start.saturating_add(self.cluster())
    }

    /// The clusters from `first` on: exactly `count` when that is known, else what a directory may have.
    fn chain(&self, what: &str, first: u32, count: Option<u64>) -> Result<Vec<u32>, Trouble> {
        let most = count.unwrap_or(LARGEST_DIRECTORY.div_ceil(self.cluster())).min(self.clusters);
        let mut fat = FatReader { volume: self, start: 0, piece: Vec::new() };
        let (mut chain, mut next) = (Vec::new(), first);
        while next != END_OF_CHAIN {
            let exists = next >= 2 && u64::from(next).saturating_sub(2) < self.clusters;
            if !exists {
                return Err(Trouble::damaged(format!("{what} goes on at cluster {next}")));
            }
            if u64::try_from(chain.len()).unwrap_or(u64::MAX) >= most {
                return Err(Trouble::damaged(format!(
                    "{what} goes on behind its end, or in a circle"
                )));
            }
            chain.push(next);
            next = fat.entry(next)?;
        }
        match count {
            Some(count) if u64::try_from(chain.len()) != Ok(count) => {
                let found = chain.len();
                Err(Trouble::damaged(format!("{what} has {found} clusters and needs {count}")))
            }
            _ => Ok(chain),
        }
    }

    /// The entries of the root directory that are about the volume. They may stand anywhere.
    fn entries(&self, root: &[u32]) -> Result<Entries, Trouble> {
        let mut found = Entries::default();
        for cluster in root {
            let place = self.place(*cluster);
            let mut at = place.start;
            while at < place.end {
                let length = PIECE.min(place.end.saturating_sub(at));
                let piece = self.window.read("the root directory", at, length)?;
                for entry in piece.chunks_exact(32) {
                    if u8_at(entry, 0) == END_OF_DIRECTORY {
                        return Ok(found);
                    }
                    self.take(&mut found, entry)?;
                }
                at = at.saturating_add(length);
            }
        }
        Ok(found)
    }

    fn take(&self, found: &mut Entries, entry: &[u8]) -> Result<(), Trouble> {
        let data = Data { first: u32_at(entry, 20), length: u64_at(entry, 24) };
        let (kept, what) = match u8_at(entry, 0) {
            // Two FATs have a bitmap each.
            ALLOCATION_BITMAP if u16::from(u8_at(entry, 1) & 1) != self.flags & 1 => return Ok(()),
            ALLOCATION_BITMAP => (&mut found.bitmap, "allocation bitmaps"),
            UP_CASE_TABLE => (&mut found.table, "up-case tables"),
            VOLUME_LABEL => {
                let size = usize::from(u8_at(entry, 1)).saturating_mul(2).min(22);
                found.label = utf16(entry.get(2..size.saturating_add(2)).unwrap_or_default());
                return Ok(());
            }
            _ => return Ok(()),
        };
        match kept.replace(data) {
            None => Ok(()),
            Some(_) => Err(Trouble::damaged(format!("it has two {what}"))),
        }
    }

    fn free_clusters(&self, bitmap: Data, chain: &[u32]) -> Result<FreeMap, Trouble> {
        let needed = self.clusters.div_ceil(8);
        if bitmap.length < needed {
            let length = bitmap.length;
            return Err(Trouble::damaged(format!(
                "the allocation bitmap has {length} bytes and needs {needed}"
            )));
        }
        let units = Units { base: self.heap, unit: self.cluster(), count: self.clusters };
        let mut free = FreeMapBuilder::new(self.length);
        let mut done = 0;
        for cluster in chain {
            let place = self.place(*cluster);
            let mut at = place.start;
            while at < place.end && done < needed {
                let length =
                    PIECE.min(place.end.saturating_sub(at)).min(needed.saturating_sub(done));
                let piece = self.window.read("the allocation bitmap", at, length)?;
                free.add_bitmap(units, done.saturating_mul(8), &piece)?;
                at = at.saturating_add(length);
                done = done.saturating_add(length);
            }
        }
        Ok(free.finish())
    }
}

/// The last of the twelve sectors repeats the checksum of the others. It leaves out the flags and the
/// percentage in use, which change while the volume is mounted.
fn judge_checksum(region: &[u8], sector: u64) -> Result<(), Trouble> {
    let sector = usize::try_from(sector).unwrap_or_default();
    let (sectors, sums) = region.split_at_checked(sector.saturating_mul(11)).unwrap_or_default();
    let counted = sectors.iter().enumerate().filter(|(at, _)| !matches!(at, 0x6A | 0x6B | 0x70));
    let sum = counted.fold(0u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()));
    match sums.chunks_exact(4).all(|found| u32_at(found, 0) == sum) && !sums.is_empty() {
        true => Ok(()),
        false => Err(Trouble::damaged("its boot region has a wrong checksum")),
    }
}

/// Reads the FAT in pieces, and each only once while a chain stays in it.
struct FatReader<'a> {
    volume: &'a Volume<'a>,
    start: u64,
    piece: Vec<u8>,
}

impl FatReader<'_> {
    fn entry(&mut self, cluster: u32) -> Result<u32, Trouble> {
        const SIZE: u64 = 4096;
        let at = u64::from(cluster).saturating_mul(4);
        let start = at & !SIZE.saturating_sub(1);
        if self.piece.is_empty() || self.start != start {
            let all = self.volume.clusters.saturating_add(2).saturating_mul(4);
            let length = SIZE.min(all.saturating_sub(start));
            let from = self.volume.fat.saturating_add(start);
            self.piece = self.volume.window.read("the FAT", from, length)?;
            self.start = start;
        }
        let into = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        Ok(u32_at(&self.piece, into))
    }
}
