//! What a right reader gets out of a built image.

use vhdxkit::format::MIB;

use crate::image::Image;
use crate::layout::{Layout, Shape};
use crate::log::{PlacedEntry, Update};
use crate::plan::Plan;
use crate::sink::Sink;

impl Image {
    /// The file as replay leaves it, but for its headers. For small images.
    #[must_use]
    pub fn expected_file(&self) -> Vec<u8> {
        let plan = Plan::new(self);
        let mut file = Vec::new();
        plan.write(&mut file);
        let active = self.active(&plan.layout);
        for entry in &active {
            for update in &entry.updates {
                match update {
                    Update::Data { file_offset, sector } => file.put(*file_offset, &sector[..]),
                    Update::Zero { file_offset, length } => {
                        file.put(*file_offset, &vec![0; usize::try_from(*length).unwrap()]);
                    }
                }
            }
        }
        if let Some(head) = active.last().filter(|head| head.last > file.len() as u64) {
            Sink::set_len(&mut file, head.last);
        }
        file
    }

    /// The guest's bytes after replay; a child shows zeros where its parent would show. For small
    /// images.
    #[must_use]
    pub fn expected_guest(&self) -> Vec<u8> {
        self.expected_guest_over(&[])
    }

    /// The guest's bytes after replay, a child's over these bytes of its parent.
    #[must_use]
    pub fn expected_guest_over(&self, parent: &[u8]) -> Vec<u8> {
        let layout = self.layout();
        guest(&layout.shape, layout.bat_offset, &self.expected_file(), parent)
    }

    /// The log entries that a right reader replays, as indices in the order they were added.
    #[must_use]
    pub fn active_entries(&self) -> Vec<usize> {
        let layout = self.layout();
        let place = |entry: &&PlacedEntry| {
            layout.log_entries.iter().position(|other| std::ptr::eq(other, *entry)).unwrap()
        };
        self.active(&layout).iter().map(place).collect()
    }

    /// The newest entry from which Tail leads back to an unbroken row of whole entries, and that
    /// row.
    fn active<'a>(&self, layout: &'a Layout) -> Vec<&'a PlacedEntry> {
        if self.log_guid.is_zero() {
            return Vec::new();
        }
        let current = |entry: &&PlacedEntry| entry.whole && entry.guid == self.log_guid;
        let at = |log_offset: u64| {
            layout.log_entries.iter().filter(current).find(|entry| entry.log_offset == log_offset)
        };
        let mut heads: Vec<&PlacedEntry> = layout.log_entries.iter().filter(current).collect();
        heads.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
        for head in heads {
            let mut row: Vec<&PlacedEntry> = Vec::new();
            let mut next = at(u64::from(head.tail));
            while let Some(entry) = next {
                if row.last().is_some_and(|last| entry.sequence != last.sequence + 1) {
                    break;
                }
                row.push(entry);
                if std::ptr::eq(entry, head) {
                    return row;
                }
                next = at((entry.log_offset + entry.length) % layout.log_length);
            }
        }
        Vec::new()
    }
}

/// Reads a whole disk out of a file that needs no replay. What the file does not have is zeros.
fn guest(shape: &Shape, bat_offset: u64, file: &[u8], parent: &[u8]) -> Vec<u8> {
    let entry = |index: u64| {
        let bytes = slice(file, bat_offset + 8 * index, 8);
        let raw = u64::from_le_bytes(bytes.try_into().unwrap());
        (raw % 8, raw / MIB * MIB)
    };
    let mut disk = Vec::new();
    for block in 0..shape.blocks() {
        let start = block * shape.block_size;
        let length = shape.block_size.min(shape.virtual_size - start);
        let (state, offset) = entry(shape.bat_index(block));
        match state {
            6 => disk.extend(slice(file, offset, length)),
            0 if shape.differencing => disk.extend(slice(parent, start, length)),
            7 if shape.differencing => {
                let (_, bitmap) = entry(shape.bitmap_index(block / shape.chunk_ratio()));
                for at in (0..length).step_by(usize::try_from(shape.sector).unwrap()) {
                    let bit = (start + at) / shape.sector % (8 * MIB);
                    let present = slice(file, bitmap + bit / 8, 1)[0] >> (bit % 8) & 1 == 1;
                    match present {
                        true => disk.extend(slice(file, offset + at, shape.sector)),
                        false => disk.extend(slice(parent, start + at, shape.sector)),
                    }
                }
            }
            _ => disk.resize(disk.len() + length as usize, 0),
        }
    }
    disk
}

/// Bytes of `from`, zeros where it has none.
fn slice(from: &[u8], offset: u64, length: u64) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap().min(from.len());
    let end = usize::try_from(offset.saturating_add(length)).unwrap().min(from.len());
    let mut bytes = from[start..end].to_vec();
    bytes.resize(length as usize, 0);
    bytes
}
