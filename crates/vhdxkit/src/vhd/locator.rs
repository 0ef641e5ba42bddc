//! Where the parent of a differencing disk lies: its name, and up to eight locators.

use zerocopy::big_endian::{U32, U64};

use crate::format::Guid;
use crate::storage::{Storage, StorageExt};
use crate::view::locator::{ParentLocator, ParentPaths};
use crate::{Error, Result};

use super::ParentLink;
use super::format::{
    DynamicHeader, LocatorEntry, MAC_URL, MAX_LOCATOR_BYTES, SECTOR, WINDOWS_ABSOLUTE,
    WINDOWS_RELATIVE, guid_of,
};

/// Reads what a header says of the parent. A locator that makes no sense is left out, with a remark: the
/// others, or the user, may still know where the parent is.
pub(super) fn read(
    file: &dyn Storage,
    header_at: u64,
    header: &DynamicHeader,
    length: u64,
    remarks: &mut Vec<String>,
) -> Result<ParentLink> {
    let unique_id = guid_of(header.parent_unique_id);
    if unique_id.is_zero() {
        let text = "it is a differencing disk, and names no parent";
        return Err(Error::malformed("VHD dynamic disk header", header_at, text));
    }
    let units =
        header.parent_unicode_name.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair));
    let name = text(units);
    let (mut paths, mut mac_url, mut end) = (ParentPaths::default(), None, 0u64);
    for entry in &header.parent_locators {
        let code = entry.platform_code;
        if ![WINDOWS_RELATIVE, WINDOWS_ABSOLUTE, MAC_URL].contains(&code) {
            continue;
        }
        let Some(bytes) = path_bytes(file, entry, length)? else {
            let code = String::from_utf8_lossy(&code);
            remarks
                .push(format!("the parent locator {code} is too long or lies outside of the file"));
            continue;
        };
        let size = u64::from(entry.platform_data_length.get());
        end = end.max(entry.platform_data_offset.get().saturating_add(size));
        let utf16 = || text(bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)));
        let place = match code {
            WINDOWS_RELATIVE => &mut paths.relative,
            WINDOWS_ABSOLUTE => &mut paths.absolute_win32,
            _ => {
                mac_url = mac_url.or_else(|| Some(String::from_utf8_lossy(&bytes).into_owned()));
                continue;
            }
        };
        if place.is_none() {
            *place = Some(utf16()).filter(|path| !path.is_empty());
        }
    }
    // The name alone leads to a file beside the child.
    if paths.relative.is_none() && !name.is_empty() {
        let last = name.rsplit(['\\', '/']).next().unwrap_or_default();
        paths.relative = Some(last.to_owned()).filter(|name| !name.is_empty());
    }
    let locator = ParentLocator::new(unique_id, None, &paths);
    let time_stamp = header.parent_time_stamp.get();
    Ok(ParentLink { unique_id, time_stamp, name, locator, mac_url, end })
}

fn path_bytes(file: &dyn Storage, entry: &LocatorEntry, length: u64) -> Result<Option<Vec<u8>>> {
    let (bytes, at) = (entry.platform_data_length.get(), entry.platform_data_offset.get());
    let end = at.checked_add(u64::from(bytes));
    if bytes > MAX_LOCATOR_BYTES || end.is_none_or(|end| end > length) {
        return Ok(None);
    }
    let mut path = vec![0; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(at, &mut path)?;
    Ok(Some(path))
}

/// UTF-16 up to its first zero. What is no Unicode becomes a mark that no file name has.
fn text(units: impl Iterator<Item = u16>) -> String {
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// What a new child says of its parent.
#[derive(Debug, Clone)]
pub(super) struct NewLink {
    pub(super) unique_id: Guid,
    pub(super) time_stamp: u32,
    pub(super) name: String,
    pub(super) paths: ParentPaths,
}

impl NewLink {
    /// Enters the parent into a header. The paths, each in sectors of its own, are to lie from `at` on.
    pub(super) fn enter(&self, header: &mut DynamicHeader, at: u64) -> Result<Vec<u8>> {
        header.parent_unique_id = super::format::guid_bytes(self.unique_id);
        header.parent_time_stamp = U32::new(self.time_stamp);
        let name: Vec<u8> = self.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        // The last unit stays zero.
        match header.parent_unicode_name.get_mut(..name.len()) {
            Some(place) if name.len() <= 510 => place.copy_from_slice(&name),
            _ => return Err(Error::invalid("the parent's file name is too long for a VHD")),
        }
        let given = [
            (WINDOWS_RELATIVE, self.paths.relative.as_ref()),
            (WINDOWS_ABSOLUTE, self.paths.absolute_win32.as_ref()),
        ];
        let given = given.into_iter().filter_map(|(code, path)| Some((code, path?)));
        let mut data = Vec::new();
        for ((code, path), entry) in given.zip(&mut header.parent_locators) {
            let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            if length > MAX_LOCATOR_BYTES {
                return Err(Error::invalid("the parent's path is too long for a VHD"));
            }
            let room = bytes.len().next_multiple_of(usize::try_from(SECTOR).unwrap_or(512));
            let start = data.len();
            *entry = LocatorEntry {
                platform_code: code,
                platform_data_space: U32::new(u32::try_from(room).unwrap_or(u32::MAX)),
                platform_data_length: U32::new(length),
                reserved: U32::ZERO,
                platform_data_offset: U64::new(
                    at.saturating_add(u64::try_from(start).unwrap_or_default()),
                ),
            };
            data.extend_from_slice(&bytes);
            data.resize(start.saturating_add(room), 0);
        }
        Ok(data)
    }
}
