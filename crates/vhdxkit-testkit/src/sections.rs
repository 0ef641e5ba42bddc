//! The parts in front of the BAT: file identifier, headers, metadata.

use vhdxkit::format::header::{Header, SIGNATURE, VERSION};
use vhdxkit::format::identifier::FileIdentifier;
use vhdxkit::format::metadata::{
    FileParameters, HAS_PARENT, IS_REQUIRED, Item, LEAVE_BLOCK_ALLOCATED, PARENT_LOCATOR,
    encode_region,
};
use vhdxkit::format::{MIB, locator};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::image::{Image, Kind};

/// The file identifier.
pub(crate) fn identifier(image: &Image) -> Vec<u8> {
    FileIdentifier::new(&image.creator).as_bytes().to_vec()
}

/// Both headers. Writers update them in pairs, so they differ in the sequence number only.
pub(crate) fn headers(image: &Image) -> [Vec<u8>; 2] {
    let header = |sequence| {
        let mut header = Header::new_zeroed();
        header.signature = SIGNATURE;
        header.sequence_number = U64::new(sequence);
        header.file_write_guid = image.file_write_guid();
        header.data_write_guid = image.data_write_guid();
        header.log_guid = image.log_guid;
        header.version = U16::new(VERSION);
        header.log_length = U32::new(image.log_length);
        header.log_offset = U64::new(MIB);
        header.sealed().as_bytes().to_vec()
    };
    let step = u64::from(!image.twin_headers);
    [header(image.header_sequence), header(image.header_sequence + step)]
}

/// The used part of the metadata region.
pub(crate) fn metadata(image: &Image) -> Vec<u8> {
    let mut items = image.items.clone().unwrap_or_else(|| usual_items(image));
    items.extend(image.extra_items.iter().cloned());
    encode_region(&items).expect("metadata items fit their table")
}

fn usual_items(image: &Image) -> Vec<Item> {
    let flags = match image.kind {
        Kind::Dynamic => 0,
        Kind::Fixed => LEAVE_BLOCK_ALLOCATED,
        Kind::Differencing(_) => HAS_PARENT,
    };
    let parameters =
        FileParameters { block_size: U32::new(image.block_size), flags: U32::new(flags) };
    let mut items = Item::mandatory(
        parameters,
        image.virtual_size,
        image.logical_sector,
        image.physical_sector,
        image.disk_id(),
    );
    if let Kind::Differencing(parent) = image.kind {
        let linkage = format!("{{{parent}}}");
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if !image.locator.iter().any(|(key, _)| key == "parent_linkage") {
            pairs.push(("parent_linkage", &linkage));
        }
        pairs.extend(image.locator.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        if image.locator.is_empty() {
            pairs.push(("relative_path", r".\parent.vhdx"));
        }
        let data = locator::encode(&pairs).expect("locator pairs fit");
        items.push(Item { id: PARENT_LOCATOR, flags: IS_REQUIRED, data });
    }
    items
}
