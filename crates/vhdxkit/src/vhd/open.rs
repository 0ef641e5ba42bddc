//! Opening a VHD: which footer counts, and whether header and BAT make sense.
//!
//! Nothing is believed before it is checked, and no memory depends on what the file says: the BAT stays in
//! the file and is read where it is needed.

use std::sync::{Arc, Mutex};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::format::limits::MAX_VIRTUAL_SIZE;
use crate::storage::{Storage, StorageExt};
use crate::view::geometry::DiskType;
use crate::{Error, Result};

use super::format::{
    DynamicHeader, FOOTER_BYTES, FOOTER_COOKIE, Footer, HEADER_BYTES, HEADER_COOKIE,
    MAX_BLOCK_SIZE, MAX_GEOMETRY, MAX_SIZE, MIN_BLOCK_SIZE, SECTOR, TYPE_DIFFERENCING,
    TYPE_DYNAMIC, TYPE_FIXED, VERSION,
};
use super::write::Writer;
use super::{Table, Vhd, locator};

/// A footer, where it lies, and how many of its bytes are in the file.
struct Found {
    footer: Footer,
    at: u64,
}

/// Whether a file has the cookie of a footer where one belongs.
pub(crate) fn has_footer(file: &dyn Storage) -> Result<bool> {
    let length = file.length()?;
    for at in places(length) {
        let mut cookie = [0; 8];
        file.read_zero_filled(at, &mut cookie)?;
        if cookie == FOOTER_COOKIE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where footers lie: the last sector; where old versions of Virtual PC left its last byte out; the first.
fn places(length: u64) -> impl Iterator<Item = u64> {
    let last = length.checked_sub(FOOTER_BYTES);
    let short = length.checked_sub(FOOTER_BYTES.saturating_sub(1)).filter(|at| at % SECTOR == 0);
    [last, short, (length >= FOOTER_BYTES).then_some(0)].into_iter().flatten()
}

/// Opens one file, without its parent.
pub(crate) fn open_layer(file: Arc<dyn Storage>, write: bool) -> Result<Vhd> {
    let length = file.length()?;
    let mut remarks = Vec::new();
    let Found { footer, at } = find_footer(&*file, length, &mut remarks)?;
    let disk_type = match footer.disk_type.get() {
        TYPE_FIXED => DiskType::Fixed,
        TYPE_DYNAMIC => DiskType::Dynamic,
        TYPE_DIFFERENCING => DiskType::Differencing,
        other => return Err(Error::unsupported(format!("a VHD of disk type {other}"))),
    };
    if footer.file_format_version.get() >> 16 != VERSION >> 16 {
        let found = footer.file_format_version.get();
        return Err(Error::unsupported(format!("a VHD of file format version {found:#x}")));
    }
    let size = size_of_disk(&footer, at, &mut remarks)?;
    let mut vhd = Vhd {
        path: None,
        disk_type,
        size,
        table: None,
        link: None,
        parent: None,
        remarks,
        writer: None,
        footer,
        file,
    };
    if disk_type == DiskType::Fixed {
        if at < size {
            let text =
                format!("the disk has {size} bytes, and only {at} lie in front of the footer");
            return Err(Error::malformed("VHD footer", at, text));
        }
    } else {
        let header = vhd.read_header(at)?;
        vhd.table = Some(vhd.judge_header(&header, length)?);
        if disk_type == DiskType::Differencing {
            let at = vhd.footer.data_offset.get();
            vhd.link = Some(locator::read(&*vhd.file, at, &header, length, &mut vhd.remarks)?);
        }
    }
    if vhd.footer.saved_state != 0 {
        let text = "a machine was suspended on this disk: what it kept in memory is not here";
        vhd.remarks.push(text.to_owned());
    }
    if write {
        vhd.writer = Some(Mutex::new(Writer::survey(&vhd, length)?));
    }
    Ok(vhd)
}

/// The footer at the end, or, where that is damaged, its copy at the head.
fn find_footer(file: &dyn Storage, length: u64, remarks: &mut Vec<String>) -> Result<Found> {
    let mut damaged = None;
    for at in places(length) {
        let mut footer = Footer::new_zeroed();
        file.read_zero_filled(at, footer.as_mut_bytes())?;
        if footer.cookie != FOOTER_COOKIE {
            continue;
        }
        if !footer.is_sound() {
            damaged = damaged.or(Some(at));
            continue;
        }
        if at == 0 && footer.disk_type.get() == TYPE_FIXED && length > FOOTER_BYTES {
            // A fixed disk has no copy there: these are the guest's own bytes.
            continue;
        }
        if at == 0 && length > FOOTER_BYTES {
            let text = "the footer at the end is damaged or missing; its copy at the head was used";
            remarks.push(text.to_owned());
        } else if length.saturating_sub(at) < FOOTER_BYTES {
            remarks.push(
                "the footer has 511 bytes, as old versions of Virtual PC wrote it".to_owned(),
            );
        }
        return Ok(Found { footer, at });
    }
    Err(match damaged {
        Some(at) => {
            Error::malformed("VHD footer", at, "the checksum is wrong, and there is no sound copy")
        }
        None => Error::wrong_format("it is no VHD: neither its end nor its start is a VHD footer"),
    })
}

/// See the head of the module for who means what.
fn size_of_disk(footer: &Footer, at: u64, remarks: &mut Vec<String>) -> Result<u64> {
    let current = footer.current_size.get();
    if !current.is_multiple_of(SECTOR) {
        remarks.push(format!(
            "the disk's size, {current} bytes, is no multiple of a sector; the rest is left out"
        ));
    }
    let mut sectors = current / SECTOR;
    let by_geometry = footer.geometry_sectors();
    let means_geometry = matches!(&footer.creator_application, b"vpc " | b"qemu");
    if means_geometry && by_geometry != MAX_GEOMETRY && by_geometry != sectors {
        let (said, meant) = (sectors.saturating_mul(SECTOR), by_geometry.saturating_mul(SECTOR));
        remarks.push(format!(
            "the footer gives the disk {said} bytes, its geometry {meant}: its creator means the geometry"
        ));
        sectors = by_geometry;
    }
    let fixed = footer.disk_type.get() == TYPE_FIXED;
    let most = if fixed { MAX_VIRTUAL_SIZE } else { MAX_SIZE };
    match sectors.checked_mul(SECTOR) {
        Some(size) if size <= most => Ok(size),
        _ => Err(Error::malformed(
            "VHD footer",
            at,
            format!("the disk's size, {current} bytes, is larger than the format allows ({most})"),
        )),
    }
}

impl Vhd {
    fn read_header(&self, footer_at: u64) -> Result<DynamicHeader> {
        let at = self.footer.data_offset.get();
        let mut bytes = [0; 1024];
        if at
            .checked_add(HEADER_BYTES)
            .is_none_or(|end| end > self.file.length().unwrap_or_default())
        {
            let text = format!("the dynamic disk header at {at:#x} lies outside of the file");
            return Err(Error::malformed("VHD footer", footer_at, text));
        }
        self.file.read_exact_at(at, &mut bytes)?;
        let header =
            DynamicHeader::read_from_bytes(&bytes).unwrap_or_else(|_| DynamicHeader::empty());
        let wrong = |text: &str| Error::malformed("VHD dynamic disk header", at, text);
        if header.cookie != HEADER_COOKIE {
            return Err(wrong("its cookie is not \"cxsparse\""));
        }
        if !header.is_sound() {
            return Err(wrong("the checksum is wrong"));
        }
        if header.header_version.get() >> 16 != VERSION >> 16 {
            let found = header.header_version.get();
            return Err(Error::unsupported(format!("a VHD with header version {found:#x}")));
        }
        Ok(header)
    }

    fn judge_header(&self, header: &DynamicHeader, length: u64) -> Result<Table> {
        let at = self.footer.data_offset.get();
        let wrong = |text: String| Error::malformed("VHD dynamic disk header", at, text);
        let block = header.block_size.get();
        if !block.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block) {
            return Err(wrong(format!(
                "blocks of {block} bytes; a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE} is expected"
            )));
        }
        let block_size = u64::from(block);
        let blocks = self.size.div_ceil(block_size);
        let entries = u64::from(header.max_table_entries.get());
        if entries < blocks {
            return Err(wrong(format!("the BAT has {entries} entries, the disk {blocks} blocks")));
        }
        let offset = header.table_offset.get();
        // Entries beyond the disk's last block need not be there.
        let end = blocks.checked_mul(4).and_then(|bytes| offset.checked_add(bytes));
        if end.is_none_or(|end| end > length) || !offset.is_multiple_of(4) {
            return Err(wrong(format!(
                "the BAT at {offset:#x} lies outside of the file, or askew"
            )));
        }
        let bitmap_bytes = (block_size / SECTOR / 8).next_multiple_of(SECTOR);
        let table = Table { offset, blocks, entries, block_size, bitmap_bytes, header: at };
        let bat = blocks.saturating_mul(4);
        let [copy, header, bat] = [(0, FOOTER_BYTES), (at, HEADER_BYTES), (offset, bat)];
        if overlap(copy, header) || overlap(copy, bat) || overlap(header, bat) {
            let text = format!("it, the BAT at {offset:#x} and the footer's copy overlap");
            return Err(wrong(text));
        }
        Ok(table)
    }
}

/// Whether two ranges, start and length, share a byte.
pub(super) fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}
