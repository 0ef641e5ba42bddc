//! Metadata table and its known items (MS-VHDX 2.6). Rules V17 to V24.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::Guid;
use crate::format::limits::{MAX_METADATA_ITEM, MAX_METADATA_ITEMS, MAX_USER_METADATA_ITEMS};
use crate::format::metadata::{
    CHS_PARAMETERS, FILE_PARAMETERS, FileParameters, INCOMPLETE_FILE, IS_REQUIRED, IS_USER,
    IS_VIRTUAL_DISK, LOGICAL_SECTOR_SIZE, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, PMEM_LABELS,
    SIGNATURE, TABLE_LENGTH, TableEntry, TableHeader, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use crate::storage::{Storage, StorageExt};

use super::regions::{Region, judge_inside};

/// One entry of the metadata table, judged to lie inside the region and to overlap no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataItem {
    /// What it is.
    pub id: Guid,
    /// File offset of its bytes; 0 when it is empty.
    pub offset: u64,
    /// Bytes, at most 1 MiB.
    pub length: u32,
    /// `IsUser`, `IsVirtualDisk`, `IsRequired` as bits 0, 1, 2.
    pub flags: u32,
    /// File offset of its entry in the table.
    pub entry_at: u64,
}

impl MetadataItem {
    /// Whether it belongs to the user, not to the system.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.flags & IS_USER != 0
    }

    /// Whether it belongs to the virtual disk, not to this file.
    #[must_use]
    pub fn is_virtual_disk(&self) -> bool {
        self.flags & IS_VIRTUAL_DISK != 0
    }

    /// Whether it goes with the virtual disk from file to file; the size is looked after elsewhere.
    pub(crate) fn is_of_disk_but_size(&self) -> bool {
        self.is_virtual_disk() && (self.is_user() || self.id != VIRTUAL_DISK_SIZE)
    }

    /// Whether whoever does not know it must not open the file.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.flags & IS_REQUIRED != 0
    }

    /// A name for people: the known items by name, the rest by GUID.
    #[must_use]
    pub fn name(&self) -> String {
        known_name(self.id).map_or_else(|| self.id.to_string(), str::to_owned)
    }
}

fn known_name(id: Guid) -> Option<&'static str> {
    Some(match id {
        FILE_PARAMETERS => "File Parameters",
        VIRTUAL_DISK_SIZE => "Virtual Disk Size",
        VIRTUAL_DISK_ID => "Virtual Disk ID",
        LOGICAL_SECTOR_SIZE => "Logical Sector Size",
        PHYSICAL_SECTOR_SIZE => "Physical Sector Size",
        PARENT_LOCATOR => "Parent Locator",
        CHS_PARAMETERS => "CHS parameters",
        INCOMPLETE_FILE => "Incomplete file",
        PMEM_LABELS => "PMEM labels",
        _ => return None,
    })
}

/// The metadata table.
#[derive(Debug, Clone)]
pub struct MetadataTable {
    items: Vec<MetadataItem>,
    at: u64,
}

impl MetadataTable {
    /// Reads the table of the metadata region. `storage` must be replayed.
    pub(crate) fn read(
        storage: &dyn Storage,
        region: Region,
        findings: &mut Findings,
    ) -> Result<Self> {
        let mut bytes = vec![0; TABLE_LENGTH];
        storage.read_zero_filled(region.offset, &mut bytes)?;
        let at = region.offset;
        let header = TableHeader::read_from_prefix(&bytes).map(|(header, _)| header);
        let found = header.as_ref().map(|header| header.signature).unwrap_or_default();
        let Some(header) = header.ok().filter(|header| header.signature == SIGNATURE) else {
            return Err(Defect::MetadataSignature { at, found }.into());
        };
        let count = header.entry_count.get();
        if count > MAX_METADATA_ITEMS {
            findings.report(Defect::MetadataCount { at: at.saturating_add(0xA), count })?;
        }
        let mut items = Vec::new();
        let mut entry_at = at;
        for raw in bytes.chunks_exact(32).skip(1).take(usize::from(count.min(MAX_METADATA_ITEMS))) {
            entry_at = entry_at.saturating_add(32);
            let Ok(entry) = TableEntry::read_from_bytes(raw) else { break };
            if let Some(item) = judge_entry(&entry, entry_at, region, findings)? {
                items.push(item);
            }
        }
        judge_set(&mut items, at, findings)?;
        let used = items.iter().map(|item| item.offset.saturating_add(u64::from(item.length)));
        let used = used.max().unwrap_or_default().saturating_sub(at);
        let used = used.max(u64::try_from(TABLE_LENGTH).unwrap_or_default());
        judge_inside(&region, used, storage.length()?, findings)?;
        Ok(Self { items, at })
    }

    /// Every item, in the table's order.
    #[must_use]
    pub fn items(&self) -> &[MetadataItem] {
        &self.items
    }

    /// The system item `id`.
    #[must_use]
    pub fn system_item(&self, id: Guid) -> Option<MetadataItem> {
        self.items.iter().find(|item| item.id == id && !item.is_user()).copied()
    }

    /// The bytes of a fixed-size item, zero-extended into `T`; reports a missing item or another
    /// length and gives `None`.
    fn fixed<T: FromBytes + IntoBytes>(
        &self,
        storage: &dyn Storage,
        id: Guid,
        findings: &mut Findings,
    ) -> Result<Option<(T, u64)>> {
        let name = known_name(id).unwrap_or("item");
        let Some(item) = self.system_item(id) else {
            findings.report(Defect::ItemMissing { at: self.at, name })?;
            return Ok(None);
        };
        let expected = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
        if item.length != expected {
            let at = item.entry_at.saturating_add(0x14);
            findings.report(Defect::ItemLength { at, name, found: item.length, expected })?;
            return Ok(None);
        }
        let mut value = T::new_zeroed();
        // What the file does not hold any more was reported with the region.
        let there = storage.read_zero_filled(item.offset, value.as_mut_bytes())?;
        if there < size_of::<T>() {
            return Ok(None);
        }
        Ok(Some((value, item.offset)))
    }

    /// The mandatory items' raw values, each with its file offset.
    pub(crate) fn disk_items(
        &self,
        storage: &dyn Storage,
        findings: &mut Findings,
    ) -> Result<DiskItems> {
        let parameters = self.fixed::<FileParameters>(storage, FILE_PARAMETERS, findings)?;
        let number = |value: Option<(U32, u64)>| value.map(|(value, at)| (value.get(), at));
        let size = self.fixed::<U64>(storage, VIRTUAL_DISK_SIZE, findings)?;
        Ok(DiskItems {
            parameters,
            virtual_size: size.map(|(value, at)| (value.get(), at)),
            logical_sector: number(self.fixed(storage, LOGICAL_SECTOR_SIZE, findings)?),
            physical_sector: number(self.fixed(storage, PHYSICAL_SECTOR_SIZE, findings)?),
            disk_id: self.fixed::<Guid>(storage, VIRTUAL_DISK_ID, findings)?.map(|(id, _)| id),
        })
    }
}

/// The five items every file must have; `None` where one was missing (and reported).
pub(crate) struct DiskItems {
    pub(crate) parameters: Option<(FileParameters, u64)>,
    pub(crate) virtual_size: Option<(u64, u64)>,
    pub(crate) logical_sector: Option<(u32, u64)>,
    pub(crate) physical_sector: Option<(u32, u64)>,
    pub(crate) disk_id: Option<Guid>,
}

fn judge_entry(
    entry: &TableEntry,
    at: u64,
    region: Region,
    findings: &mut Findings,
) -> Result<Option<MetadataItem>> {
    let (id, offset, length) = (entry.item_id, entry.offset.get(), entry.length.get());
    let table = u32::try_from(TABLE_LENGTH).unwrap_or(u32::MAX);
    let why = if length == 0 {
        (offset != 0).then_some("an empty item must have offset 0")
    } else if offset < table {
        Some("items must lie behind the table's 64 KiB")
    } else if length > MAX_METADATA_ITEM {
        Some("an item has at most 1 MiB")
    } else if offset.checked_add(length).is_none_or(|end| end > region.length) {
        Some("it reaches beyond the metadata region")
    } else {
        None
    };
    if let Some(why) = why {
        findings.report(Defect::ItemRange { at, id, offset, length, why })?;
        return Ok(None);
    }
    let offset = match length {
        0 => 0,
        _ => region.offset.saturating_add(u64::from(offset)),
    };
    Ok(Some(MetadataItem { id, offset, length, flags: entry.flags.get(), entry_at: at }))
}

fn judge_set(items: &mut Vec<MetadataItem>, at: u64, findings: &mut Findings) -> Result<()> {
    let users = items.iter().filter(|item| item.is_user()).count();
    if users > MAX_USER_METADATA_ITEMS {
        findings.report(Defect::MetadataUserCount { at, count: users })?;
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut repeated = Vec::new();
    items.retain(|item| {
        let fresh = !item.id.is_zero() && seen.insert((item.id, item.is_user()));
        if !fresh {
            repeated.push(Defect::ItemRepeated { at: item.entry_at, id: item.id });
        }
        fresh
    });
    for defect in repeated {
        findings.report(defect)?;
    }
    let mut by_place: Vec<&MetadataItem> = items.iter().filter(|item| item.length > 0).collect();
    by_place.sort_by_key(|item| item.offset);
    let mut reach: Option<&MetadataItem> = None;
    for item in by_place {
        let end = |item: &MetadataItem| item.offset.saturating_add(u64::from(item.length));
        if let Some(before) = reach.filter(|before| end(before) > item.offset) {
            let (id, with) = (item.id, before.id);
            findings.report(Defect::ItemOverlap { at: item.entry_at, id, with })?;
        }
        if reach.is_none_or(|before| end(item) > end(before)) {
            reach = Some(item);
        }
    }
    for item in items.iter() {
        if item.id == INCOMPLETE_FILE && !item.is_user() {
            findings.report(Defect::IncompleteFile { at: item.entry_at })?;
        } else if item.is_required() && (item.is_user() || known_name(item.id).is_none()) {
            findings.report(Defect::UnknownRequiredItem { at: item.entry_at, id: item.id })?;
        }
    }
    Ok(())
}
