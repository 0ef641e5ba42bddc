//! Changing metadata items: one log entry carries all of a change, table and items.
//!
//! An item that keeps its length stays in its place. One of another length goes to the first gap of the
//! metadata region that holds it; its old place may be part of that gap, since the entry is replayed whole
//! or not at all.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::format::metadata::{
    IS_REQUIRED, Item, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, TABLE_LENGTH, TableEntry,
    VIRTUAL_DISK_ID,
};
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::image::Image;
use crate::view::geometry::Geometry;
use crate::view::locator::ParentLocator;
use crate::view::metadata::MetadataItem;
use crate::{Error, Result};

use super::Writer;
use super::session::Identity;

/// A change of metadata has to fit one log entry, with room to spare for the sectors around it.
const MOST_BYTES: usize = 100 * LOG_SECTOR_LEN;
/// Items begin at multiples of this.
const ALIGNMENT: u64 = 8;

impl Image {
    /// Gives the disk another identity towards its guest (Virtual Disk ID, SCSI page 0x83). Durable when
    /// it returns. The DataWriteGuid changes with it: children of this disk do not know it any more.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn set_disk_id(&mut self, id: Guid) -> Result<()> {
        let item = Item { id: VIRTUAL_DISK_ID, flags: 0, data: id.as_bytes().to_vec() };
        self.put_items(Identity::New, &[item])
    }

    /// Tells the guest another sector size of the medium, 512 or 4096. As [`set_disk_id`](Self::set_disk_id).
    ///
    /// # Errors
    /// Another size; and as [`flush`](Self::flush).
    pub fn set_physical_sector_size(&mut self, bytes: u32) -> Result<()> {
        if !Geometry::is_sector_size(bytes) {
            return Err(Error::invalid(format!("a sector has 512 or 4096 bytes, not {bytes}")));
        }
        let data = U32::new(bytes).as_bytes().to_vec();
        self.put_items(Identity::New, &[Item { id: PHYSICAL_SECTOR_SIZE, flags: 0, data }])
    }

    /// Replaces the parent locator of a child. The guest's view is the same: the DataWriteGuid stays.
    pub(crate) fn set_parent_locator(&mut self, locator: &ParentLocator) -> Result<()> {
        let data = locator.to_bytes();
        let data = data.ok_or_else(|| Error::limit("the parent locator would be too large"))?;
        self.put_items(Identity::Keep, &[Item { id: PARENT_LOCATOR, flags: IS_REQUIRED, data }])
    }

    /// Makes a disk's DataWriteGuid what its children have been told, durably.
    pub(crate) fn set_data_write_guid(&self, guid: Guid) -> Result<()> {
        self.begin_session(self.writer()?, Identity::Set(guid))
    }

    /// Replaces or adds items. Flags count for new ones only. Durable when it returns.
    pub(crate) fn put_items(&mut self, identity: Identity, items: &[Item]) -> Result<()> {
        let total: usize = items.iter().map(|item| item.data.len()).sum();
        if total > MOST_BYTES {
            return Err(Error::limit("so much metadata does not fit one entry of the log"));
        }
        let writer = self.writer()?;
        writer.require_usable()?;
        self.begin_session(writer, identity)?;
        // What is pending must not make the entry larger than one.
        writer.flush()?;
        let plan = self.plan(items)?;
        self.decide(writer, || plan.stage(writer))?;
        if let Err(error) = self.reload() {
            return Err(self.writer()?.poison(error));
        }
        Ok(())
    }

    /// Where everything goes.
    fn plan(&self, items: &[Item]) -> Result<Plan> {
        let region = self.regions.metadata();
        let mut kept: Vec<MetadataItem> = self.metadata.items().to_vec();
        let replaced = |old: &MetadataItem| {
            items.iter().any(|new| {
                let length = u32::try_from(new.data.len()).unwrap_or(u32::MAX);
                old.id == new.id && old.is_user() == new.is_user() && old.length != length
            })
        };
        kept.retain(|old| !replaced(old));
        let mut plan = Plan::default();
        let mut count = self.metadata.items().len();
        for item in items {
            let known = self.metadata.items().iter();
            let known =
                known.copied().find(|old| old.id == item.id && old.is_user() == item.is_user());
            let length = u32::try_from(item.data.len()).unwrap_or(u32::MAX);
            if let Some(same) = known.filter(|old| old.length == length) {
                plan.bytes.push((same.offset, item.data.clone()));
                continue;
            }
            let offset =
                place_for(&kept, region.offset, u64::from(region.length), u64::from(length));
            let offset =
                offset.ok_or_else(|| Error::limit("the metadata region has no room for it"))?;
            let entry_at = match known {
                Some(old) => old.entry_at,
                None => {
                    count = count.saturating_add(1);
                    let at = u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(32);
                    if at >= u64::try_from(TABLE_LENGTH).unwrap_or_default() {
                        return Err(Error::limit("the metadata table is full"));
                    }
                    region.offset.saturating_add(at)
                }
            };
            let flags = known.map_or(item.flags, |old| old.flags);
            let within = u32::try_from(offset.saturating_sub(region.offset)).unwrap_or_default();
            let entry = TableEntry {
                item_id: item.id,
                offset: U32::new(if length == 0 { 0 } else { within }),
                length: U32::new(length),
                flags: U32::new(flags),
                reserved2: U32::ZERO,
            };
            plan.bytes.push((entry_at, entry.as_bytes().to_vec()));
            plan.bytes.push((offset, item.data.clone()));
            kept.push(MetadataItem { id: item.id, offset, length, flags, entry_at });
        }
        if count != self.metadata.items().len() {
            let count = U16::new(u16::try_from(count).unwrap_or(u16::MAX));
            plan.bytes.push((region.offset.saturating_add(0xA), count.as_bytes().to_vec()));
        }
        Ok(plan)
    }
}

/// Bytes to be changed, by their file offsets.
#[derive(Debug, Default)]
struct Plan {
    bytes: Vec<(u64, Vec<u8>)>,
}

impl Plan {
    fn stage(&self, writer: &Writer) -> Result<()> {
        self.bytes.iter().try_for_each(|(at, bytes)| writer.put_bytes(*at, bytes))
    }
}

/// The file offset of the first gap between the items that has room for `length` bytes.
fn place_for(items: &[MetadataItem], start: u64, region_length: u64, length: u64) -> Option<u64> {
    let mut used: Vec<Range<u64>> = items
        .iter()
        .filter(|item| item.length > 0)
        .map(|item| item.offset..item.offset.saturating_add(u64::from(item.length)))
        .collect();
    used.sort_by_key(|range| range.start);
    let mut at = start.saturating_add(u64::try_from(TABLE_LENGTH).ok()?);
    for range in used {
        if at.saturating_add(length) <= range.start {
            break;
        }
        at = at.max(range.end.next_multiple_of(ALIGNMENT));
    }
    (at.saturating_add(length) <= start.saturating_add(region_length)).then_some(at)
}
