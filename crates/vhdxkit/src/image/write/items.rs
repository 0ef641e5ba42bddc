//! Changing metadata items: one log entry carries all of a change, table and items.
//!
//! An item that keeps its length stays in its place. One of another length goes to the first gap of the
//! metadata region that holds it; its old place may be part of that gap, since the entry is replayed whole
//! or not at all. The table is written whole.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::format::limits::MAX_METADATA_ITEMS;
use crate::format::metadata::{
    IS_REQUIRED, Item, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, TABLE_LENGTH, TableEntry, TableHeader,
    VIRTUAL_DISK_ID,
};
use crate::format::{Guid, LOG_SECTOR_LEN};
use crate::image::Image;
use crate::view::geometry::Geometry;
use crate::view::locator::ParentLocator;
use crate::view::metadata::MetadataItem;
use crate::{Error, Result};

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

    /// A GUID from the source of this session.
    pub(crate) fn new_guid(&self) -> Result<Guid> {
        Ok(self.writer()?.guids.guid())
    }

    /// Makes a disk's DataWriteGuid what its children have been told, durably.
    pub(crate) fn set_data_write_guid(&self, guid: Guid) -> Result<()> {
        self.begin_session(self.writer()?, Identity::Set(guid))
    }

    /// Makes the items that belong to the virtual disk, but for its size, those that are given, and no
    /// others. Durable when it returns.
    pub(crate) fn put_disk_items(&mut self, items: &[Item]) -> Result<()> {
        let mut removed = Vec::new();
        let mut same = Vec::new();
        for old in self.metadata.items().iter().filter(|item| item.is_of_disk_but_size()) {
            let bytes = self.item(old)?;
            match items.iter().find(|new| is_same(old, new)) {
                None => removed.push(*old),
                Some(new) if new.data == bytes.data => same.push((old.id, old.is_user())),
                Some(_) => {}
            }
        }
        let changed: Vec<Item> =
            items.iter().filter(|new| !same.contains(&(new.id, new.is_user()))).cloned().collect();
        match changed.is_empty() && removed.is_empty() {
            true => Ok(()),
            false => self.change_items(Identity::New, &changed, &removed),
        }
    }

    /// Replaces or adds items. Flags count for new ones only. Durable when it returns.
    fn put_items(&mut self, identity: Identity, items: &[Item]) -> Result<()> {
        self.change_items(identity, items, &[])
    }

    fn change_items(
        &mut self,
        identity: Identity,
        items: &[Item],
        removed: &[MetadataItem],
    ) -> Result<()> {
        let writer = self.writer()?;
        writer.require_usable()?;
        self.begin_session(writer, identity)?;
        // What is pending must not make the entry larger than one.
        writer.flush()?;
        let plan = self.plan(items, removed)?;
        let total: usize = plan.iter().map(|(_, bytes)| bytes.len()).sum();
        if total > MOST_BYTES {
            return Err(Error::limit("so much metadata does not fit one entry of the log"));
        }
        self.decide(writer, || {
            plan.iter().try_for_each(|(at, bytes)| writer.put_bytes(*at, bytes))
        })?;
        if let Err(error) = self.reload() {
            return Err(self.writer()?.poison(error));
        }
        Ok(())
    }

    /// The bytes to be changed, by their file offsets: items, and the whole table.
    fn plan(&self, items: &[Item], removed: &[MetadataItem]) -> Result<Vec<(u64, Vec<u8>)>> {
        let region = self.regions.metadata();
        let mut plan = Vec::new();
        let mut kept: Vec<MetadataItem> = self.metadata.items().to_vec();
        kept.retain(|old| !removed.contains(old));
        // First those that go elsewhere give up their places, so that any may take them.
        let mut placed: Vec<MetadataItem> = kept.clone();
        let fits =
            |old: &MetadataItem, new: &Item| usize::try_from(old.length) == Ok(new.data.len());
        placed.retain(|old| items.iter().all(|new| !is_same(old, new) || fits(old, new)));
        for item in items {
            let known = kept.iter().position(|old| is_same(old, item));
            let same = known.and_then(|n| kept.get(n)).filter(|old| fits(old, item)).copied();
            let length = u32::try_from(item.data.len()).unwrap_or(u32::MAX);
            let offset = match same {
                Some(same) => same.offset,
                None => {
                    let room = u64::from(region.length);
                    let place = place_for(&placed, region.offset, room, u64::from(length));
                    place.ok_or_else(|| Error::limit("the metadata region has no room for it"))?
                }
            };
            let mut new =
                MetadataItem { id: item.id, offset, length, flags: item.flags, entry_at: 0 };
            match known.and_then(|n| kept.get_mut(n)) {
                Some(old) => {
                    new.flags = old.flags;
                    *old = new;
                }
                None => kept.push(new),
            }
            placed.push(new);
            plan.push((offset, item.data.clone()));
        }
        plan.push((region.offset.saturating_add(0xA), table(&kept, region.offset)?));
        Ok(plan)
    }
}

fn is_same(old: &MetadataItem, new: &Item) -> bool {
    old.id == new.id && old.is_user() == new.is_user()
}

/// The table from its EntryCount on.
fn table(items: &[MetadataItem], region: u64) -> Result<Vec<u8>> {
    let count = u16::try_from(items.len()).unwrap_or(u16::MAX);
    if count > MAX_METADATA_ITEMS {
        return Err(Error::limit("the metadata table is full"));
    }
    let mut bytes = U16::new(count).as_bytes().to_vec();
    bytes.resize(size_of::<TableHeader>().saturating_sub(0xA), 0);
    for item in items {
        let within = u32::try_from(item.offset.saturating_sub(region)).unwrap_or_default();
        let entry = TableEntry {
            item_id: item.id,
            offset: U32::new(if item.length == 0 { 0 } else { within }),
            length: U32::new(item.length),
            flags: U32::new(item.flags),
            reserved2: U32::ZERO,
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    Ok(bytes)
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
