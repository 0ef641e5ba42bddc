//! FAT12, FAT16 and FAT32: a cluster is free when its entry in the file allocation table is 0.
//!
//! The table is read once, from its beginning to its end, and every copy of it beside the first: where two
//! copies differ nobody can say which one is right. Entries are judged as they come: one that leads out of
//! the volume, into a free cluster, or where another one leads already, is damage. So no chain can loop but
//! one that closes on itself, and that one's clusters are in use.
//!
//! FAT16 and FAT32 note in the second entry that the volume is at rest, and that no read or write has
//! failed; a byte of the boot sector has said the same since Windows NT. FAT12 has that byte alone. The
//! number of free clusters in FAT32's FSInfo sector is a hint that may be wrong: nothing is taken from it.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::free::Units;
use crate::own::Own;
use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};

/// Entries of 12, 16 and 32 bits all end with such a piece.
const PIECE: u64 = 768 << 10;
const DIRECTORY_ENTRY: u64 = 32;
/// No directory may be larger.
const LARGEST_DIRECTORY: u64 = 65536 * DIRECTORY_ENTRY;

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let boot = window.read("the boot sector", 0, 512)?;
    let volume = Volume::judge(&boot, window.size())?;
    let (free, unclean) = volume.free_clusters(window)?;
    let root = volume.root_clusters(window)?;
    volume.judge_root(&root, &free)?;
    let label = match volume.label(window, &root)? {
        Some(label) => label,
        None => volume.label_of_boot_sector(&boot),
    };
    Ok(Survey {
        asleep: false,
        name: volume.kind.name(),
        label,
        length: volume.length,
        unit: volume.cluster,
        free,
        unclean: volume.unclean(&boot).or(unclean),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Fat12 => "FAT12",
            Self::Fat16 => "FAT16",
            Self::Fat32 => "FAT32",
        }
    }

    fn bits(self) -> u64 {
        match self {
            Self::Fat12 => 12,
            Self::Fat16 => 16,
            Self::Fat32 => 32,
        }
    }

    /// All ones: the bits that count in an entry.
    fn mask(self) -> u32 {
        match self {
            Self::Fat12 => 0xFFF,
            Self::Fat16 => 0xFFFF,
            Self::Fat32 => 0x0FFF_FFFF,
        }
    }

    /// Entry number `index` of a piece.
    fn entry(self, piece: &[u8], index: usize) -> u32 {
        let entry = match self {
            Self::Fat12 => {
                let pair = u16_at(piece, index.saturating_add(index >> 1));
                u32::from(if index & 1 == 0 { pair } else { pair >> 4 })
            }
            Self::Fat16 => u16_at(piece, index.saturating_mul(2)).into(),
            Self::Fat32 => u32_at(piece, index.saturating_mul(4)),
        };
        entry & self.mask()
    }

    /// Clean shutdown, no hard error.
    fn state_bits(self) -> Option<(u32, u32)> {
        match self {
            Self::Fat12 => None,
            Self::Fat16 => Some((0x8000, 0x4000)),
            Self::Fat32 => Some((0x0800_0000, 0x0400_0000)),
        }
    }
}

/// The BIOS parameter block, all of it judged. Offsets and sizes are in bytes.
#[derive(Debug)]
struct Volume {
    kind: Kind,
    cluster: u64,
    /// Data clusters; the first one has number 2.
    clusters: u64,
    /// The first FAT that is in use.
    fat: u64,
    fat_size: u64,
    /// How many FATs are in use, one behind the other.
    copies: u64,
    /// The root directory of FAT12 and FAT16.
    root: u64,
    root_size: u64,
    /// The first cluster of FAT32's root directory.
    root_cluster: u32,
    data: u64,
    length: u64,
    media: u8,
}

impl Volume {
    fn judge(boot: &[u8], room: u64) -> Result<Self, Trouble> {
        let bpb = Bpb::read(boot)?;
        let length = bpb.sectors.saturating_mul(bpb.sector);
        let root = bpb.reserved.saturating_add(bpb.fats.saturating_mul(bpb.fat_sectors));
        let root_size = bpb.root_entries.saturating_mul(DIRECTORY_ENTRY);
        let data = root.saturating_add(root_size.div_ceil(bpb.sector.max(1)));
        let clusters = bpb.sectors.saturating_sub(data).checked_div(bpb.per_cluster).unwrap_or(0);
        if length > room || clusters == 0 {
            return Err(Trouble::damaged(format!(
                "{} sectors of {} bytes with {clusters} clusters, in a place of {room} bytes",
                bpb.sectors, bpb.sector
            )));
        }
        let kind = bpb.kind(clusters)?;
        let fat_size = bpb.fat_sectors.saturating_mul(bpb.sector);
        let entries = fat_size.saturating_mul(8).checked_div(kind.bits()).unwrap_or(0);
        if entries < clusters.saturating_add(2) {
            return Err(Trouble::damaged(format!(
                "a FAT of {entries} entries for {clusters} clusters"
            )));
        }
        if kind == Kind::Fat32 && u16_at(boot, 0x2A) != 0 {
            return Err(Trouble::not_known("this version of FAT32 is not known"));
        }
        // FAT32 can use one of its FATs alone.
        let flags = if kind == Kind::Fat32 { u16_at(boot, 0x28) } else { 0 };
        let (active, copies) = match flags & 0x80 {
            0 => (0, bpb.fats),
            _ => (u64::from(flags & 0x0F), 1),
        };
        if active >= bpb.fats {
            return Err(Trouble::damaged(format!("FAT {active} of {} is in use", bpb.fats)));
        }
        let bytes = |sectors: u64| sectors.saturating_mul(bpb.sector);
        Ok(Self {
            kind,
            cluster: bytes(bpb.per_cluster),
            clusters,
            fat: bytes(bpb.reserved).saturating_add(active.saturating_mul(fat_size)),
            fat_size,
            copies,
            root: bytes(root),
            root_size,
            root_cluster: u32_at(boot, 0x2C),
            data: bytes(data),
            length,
            media: u8_at(boot, 0x15),
        })
    }

    /// FAT32's root directory lies in clusters, which have to be in use.
    fn judge_root(&self, root: &[u64], free: &FreeMap) -> Result<(), Trouble> {
        let mut own = Own::default();
        for start in root {
            own.add("the root directory", *start..start.saturating_add(self.cluster));
        }
        own.judge(free)
    }

    /// Where the clusters of FAT32's root directory begin.
    fn root_clusters(&self, window: &Window<'_>) -> Result<Vec<u64>, Trouble> {
        let (mut found, mut cluster) = (Vec::new(), self.root_cluster);
        if self.kind != Kind::Fat32 {
            return Ok(found);
        }
        // Longer than any directory may be: a chain that goes round ends here.
        for _ in 0..LARGEST_DIRECTORY.div_ceil(self.cluster.max(1)) {
            let start = self.byte(cluster.into()).ok_or_else(|| {
                Trouble::damaged(format!("the root directory goes on at cluster {cluster}"))
            })?;
            found.push(start);
            let at = self.fat.saturating_add(u64::from(cluster).saturating_mul(4));
            cluster = self.kind.entry(&window.read("the FAT", at, 4)?, 0);
            if cluster >= self.kind.mask() & !7 {
                return Ok(found);
            }
        }
        Err(Trouble::damaged("the root directory has no end"))
    }

    /// Where a cluster begins; `None` when it does not exist.
    fn byte(&self, cluster: u64) -> Option<u64> {
        let number = cluster.checked_sub(2).filter(|number| *number < self.clusters)?;
        number.checked_mul(self.cluster)?.checked_add(self.data)
    }

    /// What the boot sector says: bit 0 while the volume is mounted, bit 1 when it wants to be checked.
    fn unclean(&self, boot: &[u8]) -> Option<String> {
        let at = if self.kind == Kind::Fat32 { 0x41 } else { 0x25 };
        match u8_at(boot, at) & 3 {
            0 => None,
            2 => Some("reads or writes have failed, by its boot sector".to_owned()),
            _ => Some("it was not unmounted cleanly, by its boot sector".to_owned()),
        }
    }

    /// From the FAT, with what that says of the volume's state.
    fn free_clusters(&self, window: &Window<'_>) -> Result<(FreeMap, Option<String>), Trouble> {
        let size = self.clusters.saturating_add(2).saturating_mul(self.kind.bits()).div_ceil(8);
        let mut walk = Walk::new(self);
        let (mut at, mut unclean) = (0, None);
        while at < size {
            let length = PIECE.min(size.saturating_sub(at));
            let piece = self.same_in_all(window, at, length)?;
            if at == 0 {
                unclean = self.judge_first(&piece)?;
            }
            let first = at.saturating_mul(8).checked_div(self.kind.bits()).unwrap_or(0);
            walk.take(first, &piece)?;
            at = at.saturating_add(length);
        }
        Ok((walk.finish()?, unclean))
    }

    /// A piece of the FAT, and all its copies have to be equal.
    fn same_in_all(&self, window: &Window<'_>, at: u64, length: u64) -> Result<Vec<u8>, Trouble> {
        let start = self.fat.saturating_add(at);
        let piece = window.read("the FAT", start, length)?;
        for copy in 1..self.copies {
            let start = start.saturating_add(copy.saturating_mul(self.fat_size));
            if window.read("a copy of the FAT", start, length)? != piece {
                return Err(Trouble::damaged("its FATs differ"));
            }
        }
        Ok(piece)
    }

    /// The first entry repeats the media byte, the second tells the volume's state.
    fn judge_first(&self, piece: &[u8]) -> Result<Option<String>, Trouble> {
        let media = self.kind.entry(piece, 0);
        if media & 0xFF != u32::from(self.media) {
            return Err(Trouble::damaged(format!(
                "its FAT begins with {media:#x}, for a medium {:#x}",
                self.media
            )));
        }
        let Some((at_rest, no_errors)) = self.kind.state_bits() else { return Ok(None) };
        let state = self.kind.entry(piece, 1);
        if state & at_rest == 0 {
            return Ok(Some("it was not unmounted cleanly, by its FAT".to_owned()));
        }
        Ok((state & no_errors == 0).then(|| "reads or writes have failed, by its FAT".to_owned()))
    }

    /// The label in the root directory.
    fn label(&self, window: &Window<'_>, root: &[u64]) -> Result<Option<String>, Trouble> {
        if self.kind != Kind::Fat32 {
            let root = window.read("the root directory", self.root, self.root_size)?;
            return Ok(label_in(&root).unwrap_or_default());
        }
        for start in root {
            if let Some(found) =
                label_in(&window.read("the root directory", *start, self.cluster)?)
            {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn label_of_boot_sector(&self, boot: &[u8]) -> String {
        let at = if self.kind == Kind::Fat32 { 0x42 } else { 0x26 };
        let extended = boot.get(at..).unwrap_or_default();
        match u8_at(extended, 0) {
            0x29 => match text(extended.get(5..16).unwrap_or_default()) {
                label if label == "NO NAME" => String::new(),
                label => label,
            },
            _ => String::new(),
        }
    }
}

/// The label among these entries; `Some(None)` when they end without one, `None` when they go on.
fn label_in(entries: &[u8]) -> Option<Option<String>> {
    for entry in entries.chunks_exact(32) {
        match (u8_at(entry, 0), u8_at(entry, 11)) {
            (0, _) => return Some(None),
            (0xE5, _) => {}
            // A part of a long name has this bit, too.
            (_, attributes) if attributes & 0x0F == 0x0F || attributes & 0x08 == 0 => {}
            _ => return Some(Some(text(entry.get(..11).unwrap_or_default()))),
        }
    }
    None
}

/// Its encoding is the code page of whoever wrote it: what is not ASCII is replaced.
fn text(bytes: &[u8]) -> String {
    let char_of = |byte: &u8| match byte {
        0x20..=0x7E => char::from(*byte),
        _ => char::REPLACEMENT_CHARACTER,
    };
    bytes.iter().map(char_of).collect::<String>().trim_end().to_owned()
}

/// The fields that everything is computed from, each possible in itself.
struct Bpb {
    sector: u64,
    per_cluster: u64,
    reserved: u64,
    fats: u64,
    root_entries: u64,
    sectors: u64,
    fat_sectors: u64,
    /// It has the fields of FAT32.
    is_wide: bool,
}

impl Bpb {
    fn read(boot: &[u8]) -> Result<Self, Trouble> {
        let is_wide = u16_at(boot, 0x16) == 0;
        let (few, many) = (u16_at(boot, 0x13), u32_at(boot, 0x20));
        let sectors = if few == 0 { u64::from(many) } else { u64::from(few) };
        let fat_sectors = match is_wide {
            true => u64::from(u32_at(boot, 0x24)),
            false => u64::from(u16_at(boot, 0x16)),
        };
        let bpb = Self {
            sector: u16_at(boot, 0x0B).into(),
            per_cluster: u8_at(boot, 0x0D).into(),
            reserved: u16_at(boot, 0x0E).into(),
            fats: u8_at(boot, 0x10).into(),
            root_entries: u16_at(boot, 0x11).into(),
            sectors,
            fat_sectors,
            is_wide,
        };
        let media = u8_at(boot, 0x15);
        let possible = u16_at(boot, 510) == 0xAA55
            && bpb.sector.is_power_of_two()
            && (512..=4096).contains(&bpb.sector)
            && bpb.per_cluster.is_power_of_two()
            && bpb.reserved > 0
            && (1..=2).contains(&bpb.fats)
            && (bpb.root_entries == 0) == is_wide
            && bpb.fat_sectors > 0
            && (media == 0xF0 || media >= 0xF8);
        match possible {
            true => Ok(bpb),
            false => Err(Trouble::damaged("the boot sector's parameters are impossible")),
        }
    }

    /// By the number of clusters, and by nothing else. A volume with the fields of FAT32 can be nothing
    /// else, even where it is too small: formatters make such ones when they are told to.
    fn kind(&self, clusters: u64) -> Result<Kind, Trouble> {
        match (self.is_wide, clusters) {
            (true, 0..0x0FFF_FFF5) => Ok(Kind::Fat32),
            (false, 0..4085) => Ok(Kind::Fat12),
            (false, 4085..65525) => Ok(Kind::Fat16),
            _ => Err(Trouble::damaged(format!("{clusters} clusters are too many for its FAT"))),
        }
    }
}

/// One pass over all entries.
struct Walk {
    kind: Kind,
    units: Units,
    free: FreeMapBuilder,
    /// One bit for each cluster: some entry leads to it.
    led_to: Vec<u8>,
}

impl Walk {
    fn new(volume: &Volume) -> Self {
        let units = Units { base: volume.data, unit: volume.cluster, count: volume.clusters };
        let size = usize::try_from(volume.clusters.div_ceil(8)).unwrap_or_default();
        let free = FreeMapBuilder::new(volume.length);
        Self { kind: volume.kind, units, free, led_to: vec![0; size] }
    }

    /// A piece of the FAT, whose first entry has this number.
    fn take(&mut self, first: u64, piece: &[u8]) -> Result<(), Trouble> {
        let end = self.units.count.saturating_add(2);
        let byte = |cluster: u64| {
            let number = cluster.saturating_sub(2);
            self.units.base.saturating_add(number.saturating_mul(self.units.unit))
        };
        let bits = u64::try_from(piece.len()).unwrap_or_default().saturating_mul(8);
        let entries = bits.checked_div(self.kind.bits()).unwrap_or_default();
        for cluster in first.max(2)..first.saturating_add(entries).min(end) {
            let index = usize::try_from(cluster.saturating_sub(first)).unwrap_or(usize::MAX);
            match self.kind.entry(piece, index) {
                0 => self.free.add(byte(cluster)..byte(cluster.saturating_add(1)))?,
                // The last of a file, or a bad one.
                entry if entry >= self.kind.mask() & !8 | 7 => {}
                next => lead(&mut self.led_to, end, cluster, next.into())?,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<FreeMap, Trouble> {
        let free = self.free.finish();
        for range in free.ranges() {
            let number = |byte: u64| {
                let data = byte.saturating_sub(self.units.base);
                data.checked_div(self.units.unit).unwrap_or_default()
            };
            let in_range = number(range.start)..number(range.end);
            if let Some(found) = first_set(&self.led_to, in_range) {
                let cluster = found.saturating_add(2);
                return Err(Trouble::damaged(format!(
                    "a file goes on in cluster {cluster}, which is said to be free"
                )));
            }
        }
        Ok(free)
    }
}

/// Notes that one cluster leads to another.
fn lead(led_to: &mut [u8], end: u64, from: u64, next: u64) -> Result<(), Trouble> {
    let number = next.checked_sub(2).filter(|_| next < end);
    let byte = number.and_then(|number| led_to.get_mut(usize::try_from(number >> 3).ok()?));
    let (Some(number), Some(byte)) = (number, byte) else {
        return Err(Trouble::damaged(format!(
            "cluster {from} leads to {next}, which does not exist"
        )));
    };
    let bit = 1 << (number & 7);
    if *byte & bit != 0 {
        return Err(Trouble::damaged(format!("two clusters lead to {next}, one of them {from}")));
    }
    *byte |= bit;
    Ok(())
}

/// The first bit in `range` that is 1.
fn first_set(bits: &[u8], range: std::ops::Range<u64>) -> Option<u64> {
    let mut at = range.start;
    while at < range.end {
        let byte = u8_at(bits, usize::try_from(at >> 3).unwrap_or(usize::MAX));
        if byte == 0 {
            at = (at | 7).saturating_add(1);
        } else if (byte >> (at & 7)) & 1 == 1 {
            return Some(at);
        } else {
            at = at.saturating_add(1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot sector for so many clusters of one sector.
    fn boot(clusters: u32, is_wide: bool) -> Vec<u8> {
        let mut boot = vec![0; 512];
        boot[0x0B..0x0E].copy_from_slice(&[0, 2, 1]);
        boot[0x0E..0x11].copy_from_slice(&[1, 0, 1]);
        boot[0x15] = 0xF8;
        boot[510..].copy_from_slice(&[0x55, 0xAA]);
        let fat = clusters / 64 + 1;
        let mut sectors = clusters + 1 + fat;
        if is_wide {
            boot[0x24..0x28].copy_from_slice(&fat.to_le_bytes());
        } else {
            boot[0x11] = 16;
            boot[0x16..0x18].copy_from_slice(&(fat as u16).to_le_bytes());
            sectors += 1;
        }
        boot[0x20..0x24].copy_from_slice(&sectors.to_le_bytes());
        boot
    }

    /// Where the standard draws the lines.
    #[test]
    fn the_number_of_clusters_alone_decides_between_fat12_and_fat16() {
        let kind = |clusters, is_wide| {
            let volume = Volume::judge(&boot(clusters, is_wide), u64::MAX).ok()?;
            assert_eq!(volume.clusters, u64::from(clusters));
            Some(volume.kind)
        };
        assert_eq!(kind(1, false), Some(Kind::Fat12));
        assert_eq!(kind(4084, false), Some(Kind::Fat12));
        assert_eq!(kind(4085, false), Some(Kind::Fat16));
        assert_eq!(kind(65524, false), Some(Kind::Fat16));
        assert_eq!(kind(65525, false), None, "too many for 16 bits");
        assert_eq!(kind(65525, true), Some(Kind::Fat32));
        assert_eq!(kind(0, false), None);
    }

    #[test]
    fn a_fat_that_is_too_short_is_damaged() {
        for (at, value) in
            [(0x16, 1), (0x0B, 1), (0x0C, 0), (0x0D, 3), (0x0E, 0), (0x10, 3), (0x15, 0)]
        {
            let mut boot = boot(10000, false);
            assert!(Volume::judge(&boot, u64::MAX).is_ok());
            boot[at] = value;
            assert!(matches!(Volume::judge(&boot, u64::MAX), Err(Trouble::Damaged(_))), "{at:#x}");
        }
        let boot = boot(10000, false);
        let length = Volume::judge(&boot, u64::MAX).unwrap().length;
        assert!(Volume::judge(&boot, length).is_ok());
        assert!(Volume::judge(&boot, length - 1).is_err());
    }

    #[test]
    fn entries_of_12_bits_are_packed() {
        let table = [0xF8, 0xFF, 0xFF, 0x34, 0x12, 0xAB, 0xCD, 0x0E];
        let entries: Vec<u32> = (0..5).map(|index| Kind::Fat12.entry(&table, index)).collect();
        assert_eq!(entries, [0xFF8, 0xFFF, 0x234, 0xAB1, 0xECD]);
    }
}
