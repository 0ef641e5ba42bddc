//! Takes an NTFS volume of mkntfs apart and puts it together otherwise: what no formatter makes, but a
//! driver may, or an enemy.
#![allow(dead_code, unreachable_pub)] // each test uses what it needs

use std::ops::Range;

pub const ATTRIBUTE_LIST: u32 = 0x20;
pub const VOLUME_INFORMATION: u32 = 0x70;
pub const DATA: u32 = 0x80;
pub const INDEX_ROOT: u32 = 0x90;
pub const INDEX_ALLOCATION: u32 = 0xA0;

pub fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

pub fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

pub fn put(bytes: &mut [u8], at: usize, value: u64, size: usize) {
    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// Takes out or puts in an update sequence.
fn take_out(bytes: &mut [u8]) {
    let start = u16_at(bytes, 4);
    for n in 0..bytes.len() / 512 {
        bytes.copy_within(start + 2 + 2 * n..start + 4 + 2 * n, n * 512 + 510);
    }
}

fn put_in(bytes: &mut [u8]) {
    let start = u16_at(bytes, 4);
    for n in 0..bytes.len() / 512 {
        let end = n * 512 + 510;
        bytes.copy_within(end..end + 2, start + 2 + 2 * n);
        bytes.copy_within(start..start + 2, end);
    }
}

/// A volume with records of 1 KiB, whose MFT, log and bitmap are in one piece each.
#[derive(Clone)]
pub struct Volume {
    pub bytes: Vec<u8>,
}

impl Volume {
    pub fn cluster(&self) -> usize {
        u16_at(&self.bytes, 11) * usize::from(self.bytes[13])
    }

    pub fn mft(&self) -> usize {
        u32_at(&self.bytes, 0x30) * self.cluster()
    }

    pub fn mirror(&self) -> usize {
        u32_at(&self.bytes, 0x38) * self.cluster()
    }

    fn record_place(&self, number: usize) -> Range<usize> {
        self.mft() + number * 1024..self.mft() + (number + 1) * 1024
    }

    /// A record without its update sequence.
    pub fn record(&self, number: usize) -> Vec<u8> {
        let mut record = self.bytes[self.record_place(number)].to_vec();
        take_out(&mut record);
        record
    }

    /// Writes a record, and its copy where it has one.
    pub fn write_record(&mut self, number: usize, mut record: Vec<u8>) {
        put_in(&mut record);
        let place = self.record_place(number);
        self.bytes[place].copy_from_slice(&record);
        if number < 4 {
            let copy = self.mirror() + number * 1024;
            self.bytes[copy..copy + 1024].copy_from_slice(&record);
        }
    }

    pub fn change_record(&mut self, number: usize, change: impl Fn(&mut Vec<u8>)) {
        let mut record = self.record(number);
        change(&mut record);
        self.write_record(number, record);
    }

    pub fn attributes(&self, number: usize) -> Vec<Vec<u8>> {
        let record = self.record(number);
        let (mut at, mut found) = (u16_at(&record, 0x14), Vec::new());
        while u32_at(&record, at) != 0xFFFF_FFFF {
            let length = u32_at(&record, at + 4);
            found.push(record[at..at + length].to_vec());
            at += length;
        }
        found
    }

    pub fn set_attributes(&mut self, number: usize, attributes: &[Vec<u8>]) {
        self.change_record(number, |record| {
            let start = u16_at(record, 0x14);
            record[start..].fill(0);
            let mut all = attributes.concat();
            all.extend([0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
            record[start..start + all.len()].copy_from_slice(&all);
            put(record, 0x18, (start + all.len()) as u64, 4);
        });
    }

    /// Changes the first attribute of a type.
    pub fn change_attribute(&mut self, number: usize, kind: u32, change: impl Fn(&mut Vec<u8>)) {
        let mut attributes = self.attributes(number);
        let found = attributes.iter_mut().find(|attribute| u32_at(attribute, 0) == kind as usize);
        change(found.unwrap());
        self.set_attributes(number, &attributes);
    }

    /// Makes a record go on with another one.
    pub fn write_extension(&mut self, number: usize, base: usize, attributes: &[Vec<u8>]) {
        let mut record = self.record(base);
        let sequence = u16_at(&record, 0x10) as u64;
        put(&mut record, 0x10, 1, 2);
        put(&mut record, 0x12, 0, 2);
        put(&mut record, 0x16, 1, 2);
        put(&mut record, 0x20, base as u64 | sequence << 48, 8);
        put(&mut record, 0x2C, number as u64, 4);
        self.write_record(number, record);
        self.set_attributes(number, attributes);
    }

    pub fn first_cluster(&self, number: usize, kind: u32) -> usize {
        let attribute = self.attributes(number).into_iter().find(|a| u32_at(a, 0) == kind as usize);
        let attribute = attribute.unwrap();
        let pairs = &attribute[u16_at(&attribute, 0x20)..];
        let (length, delta) = (usize::from(pairs[0] & 15), usize::from(pairs[0] >> 4));
        let mut lcn = [0; 8];
        lcn[..delta].copy_from_slice(&pairs[1 + length..1 + length + delta]);
        usize::from_le_bytes(lcn)
    }

    /// Bits of the bitmap while it is in one piece.
    pub fn set_bits(&mut self, clusters: Range<usize>, in_use: bool) {
        let start = self.first_cluster(6, DATA) * self.cluster();
        for cluster in clusters {
            let byte = &mut self.bytes[start + cluster / 8];
            *byte = *byte & !(1 << (cluster % 8)) | u8::from(in_use) << (cluster % 8);
        }
    }

    pub fn copy_cluster(&mut self, from: usize, to: usize) {
        let size = self.cluster();
        self.bytes.copy_within(from * size..(from + 1) * size, to * size);
    }
}

/// Runs (first cluster on the volume, or none; how many) as mapping pairs.
pub fn pairs(runs: &[(Option<usize>, usize)]) -> Vec<u8> {
    let (mut found, mut last) = (Vec::new(), 0);
    for (lcn, count) in runs {
        found.push(if lcn.is_some() { 0x44 } else { 0x04 });
        found.extend((*count as u32).to_le_bytes());
        if let Some(lcn) = lcn {
            found.extend((*lcn as i32 - last).to_le_bytes());
            last = *lcn as i32;
        }
    }
    found.push(0);
    found
}

/// One extent of an attribute, after the attribute as it was.
pub fn extent(whole: &[u8], lowest: usize, runs: &[(Option<usize>, usize)]) -> Vec<u8> {
    let mut found = whole[..64].to_vec();
    let behind = lowest + runs.iter().map(|(_, count)| count).sum::<usize>();
    put(&mut found, 0x10, lowest as u64, 8);
    put(&mut found, 0x18, behind as u64 - 1, 8);
    put(&mut found, 0x20, 64, 2);
    if lowest > 0 {
        found[0x28..0x40].fill(0);
    }
    found.extend(pairs(runs));
    found.resize(found.len().next_multiple_of(8), 0);
    let length = found.len() as u64;
    put(&mut found, 4, length, 4);
    found
}

/// An attribute list of unnamed attributes: type, lowest cluster, record, its sequence, instance.
pub fn attribute_list(entries: &[(u32, usize, usize, usize, usize)]) -> Vec<u8> {
    let mut list = vec![0; 24];
    for (kind, lowest, record, sequence, instance) in entries {
        let mut entry = vec![0; 32];
        put(&mut entry, 0, u64::from(*kind), 4);
        put(&mut entry, 4, 32, 2);
        put(&mut entry, 7, 26, 1);
        put(&mut entry, 8, *lowest as u64, 8);
        put(&mut entry, 16, *record as u64 | (*sequence as u64) << 48, 8);
        put(&mut entry, 24, *instance as u64, 2);
        list.extend(entry);
    }
    let length = list.len() as u64;
    put(&mut list, 0, u64::from(ATTRIBUTE_LIST), 4);
    put(&mut list, 4, length, 4);
    put(&mut list, 10, 24, 2);
    put(&mut list, 14, 40, 2);
    put(&mut list, 16, length - 24, 4);
    put(&mut list, 20, 24, 2);
    list
}
