//! The chunk tree, which tells of all chunks, and the device tree, which must agree with it.

use super::chunks::{Chunk, Chunks};
use super::names::{Key, Root};
use super::superblock::Device;
use super::tree::Reader;
use crate::Trouble;
use crate::bytes::u64_at;

/// Types of items: a device, and what the device has given to a chunk.
const DEVICE_ITEM: u8 = 216;
const DEVICE_EXTENT: u8 = 204;
/// The object that devices have.
const DEVICES: u64 = 1;

/// So many chunks are kept: those of a pebibyte.
const MOST_CHUNKS: usize = 1 << 20;

/// All chunks; and that the device is the superblock's.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Chunks, Trouble> {
    let superblock = reader.superblock();
    let (mut chunks, mut devices) = (Vec::new(), 0u32);
    let keys = Key::LEAST..=Key::MOST;
    reader.walk(&superblock.chunk_root, keys, &mut |key, item| {
        if (key.0, key.1) == (DEVICES, DEVICE_ITEM) {
            devices = devices.saturating_add(1);
            let device = Device::of_item(item);
            if key.2 != device.id || device != superblock.device {
                return Err(Trouble::damaged("its device is not the superblock's"));
            }
        } else {
            if chunks.len() >= MOST_CHUNKS {
                return Err(Trouble::not_known(format!("it has over {MOST_CHUNKS} chunks")));
            }
            chunks.push(Chunk::of_item(superblock, key, item)?);
        }
        Ok(())
    })?;
    if devices != 1 {
        return Err(Trouble::damaged(format!("its chunk tree knows {devices} devices")));
    }
    Chunks::in_order(chunks)
}

/// The device tree must have given just these places to the chunks, no byte to two of them.
pub(super) fn must_be_given_out(reader: &mut Reader<'_>, tree: &Root) -> Result<(), Trouble> {
    let device = &reader.superblock().device;
    let chunks = reader.chunks().clone();
    let places = chunks.places();
    let mut expected = places.iter();
    let (mut behind, mut used) = (0, 0u64);
    let keys = Key(device.id, DEVICE_EXTENT, 0)..=Key(device.id, DEVICE_EXTENT, u64::MAX);
    reader.walk(tree, keys, &mut |key, item| {
        let (chunk, length) = (u64_at(item, 16), u64_at(item, 24));
        let same = expected.next().is_some_and(|(place, expected)| {
            (*place, expected.logical, expected.length) == (key.2, chunk, length)
        });
        if !same || key.2 < behind {
            let at = key.2;
            return Err(Trouble::damaged(format!("byte {at} of the device is in dispute")));
        }
        behind = key.2.saturating_add(length);
        used = used.saturating_add(length);
        Ok(())
    })?;
    if expected.next().is_some() || used != device.bytes_used {
        return Err(Trouble::damaged("the device has not given out what chunks take"));
    }
    Ok(())
}
