//! What the builder promises, tried on small images and on one of 64 TiB.

use vhdxkit_testkit::{
    Contents, Image, LogEntry, patch, reseal_header, reseal_log_entry, reseal_region_table,
};

const MIB: u64 = 1 << 20;

fn u64_at(bytes: &[u8], offset: u64) -> u64 {
    u64::from_le_bytes(bytes[offset as usize..][..8].try_into().unwrap())
}

#[test]
fn regions_lie_as_windows_lays_them() {
    let image = Image::dynamic(6 << 30).block(4096, Contents::Data(b"chunk two".to_vec()));
    let layout = image.layout();
    assert_eq!((layout.log_offset, layout.metadata_offset), (MIB, 2 * MIB));
    assert_eq!((layout.bat_offset, layout.payload_start), (3 * MIB, 4 * MIB));
    assert_eq!(layout.bat_entry_offset(4096), 3 * MIB + 8 * 4097);
    let bytes = image.build_vec();
    assert_eq!(bytes.len() as u64, 5 * MIB);
    assert_eq!(bytes.len() as u64, layout.file_length);
    assert_eq!(u64_at(&bytes, layout.bat_entry_offset(4096)), (4 * MIB) | 6);
    assert_eq!(&bytes[4 << 20..][..9], b"chunk two");
}

#[test]
fn equal_descriptions_give_equal_bytes_and_seeds_tell_them_apart() {
    let image = Image::dynamic(3 * MIB).block(0, Contents::Pattern(1));
    assert!(image.build_vec() == image.build_vec());
    assert!(image.build_vec() != image.seed(2).build_vec());
}

#[test]
fn a_fixed_disk_has_all_its_blocks_and_may_end_with_its_last_byte() {
    let image = Image::fixed(2 * MIB + 512).block(1, Contents::Pattern(7));
    let bytes = image.build_vec();
    assert_eq!(bytes.len() as u64, 7 * MIB);
    for block in 0..3 {
        assert_eq!(u64_at(&bytes, 3 * MIB + 8 * block), ((4 + block) * MIB) | 6);
    }
    let guest = image.expected_guest();
    assert_eq!((guest.len() as u64, guest[1 << 20], guest[2 << 20]), (2 * MIB + 512, 7, 0));
    let cut = image.cut_last_block(true);
    assert_eq!(cut.layout().file_length, 6 * MIB + 512);
    assert_eq!(cut.extra_tail(512).build_vec().len() as u64, 6 * MIB + 1024);
}

#[test]
fn a_partial_block_shows_its_parent_between_its_sectors() {
    let parent = Image::dynamic(2 * MIB).block(1, Contents::Pattern(b'p'));
    let child = Image::differencing(2 * MIB, parent.data_write_guid()).partial_block(
        1,
        (0..2).chain([2047]),
        vec![b'c'; 1 << 20],
    );
    let layout = child.layout();
    assert_eq!((layout.bitmaps[&0], layout.blocks[&1]), (4 * MIB, 5 * MIB));
    let bytes = child.build_vec();
    assert_eq!(u64_at(&bytes, layout.bat_offset + 8 * layout.bitmap_index(0)), (4 * MIB) | 6);
    assert_eq!(u64_at(&bytes, layout.bat_entry_offset(1)), (5 * MIB) | 7);
    let bits = &bytes[(4 << 20) + 256..][..256];
    assert_eq!((bits[0], bits[255], bits.iter().filter(|byte| **byte != 0).count()), (3, 0x80, 2));
    let guest = child.expected_guest_over(&parent.expected_guest());
    let block = &guest[1 << 20..];
    assert_eq!([block[0], block[1023], block[1024], block[(1 << 20) - 1]], *b"ccpc");
    assert_eq!(child.expected_guest()[(1 << 20) + 1024], 0);
}

#[test]
fn replay_starts_at_the_tail_and_stops_before_damage() {
    let image = Image::dynamic(16 * MIB);
    let session = image.session(1);
    let put = |block, byte| LogEntry::new().allocate(block, Contents::Pattern(byte));
    let image = image
        .dirty(session)
        .log_entry(LogEntry::new())
        .log_entry(put(0, b'0').applied())
        .log_entry(put(1, b'1').tail_entry(2))
        .log_entry(put(2, b'2').tail_entry(2))
        .log_entry(put(3, b'3').tail_entry(2).corrupt(5000, 1));
    assert_eq!(image.active_entries(), [2, 3]);
    let guest = image.expected_guest();
    let firsts = [0, 1, 2, 3].map(|block: usize| guest[block << 20]);
    assert_eq!(firsts, *b"012\0");
    let on_disk = image.build_vec();
    let layout = image.layout();
    assert_ne!(u64_at(&on_disk, layout.bat_entry_offset(0)), 0);
    assert_eq!(u64_at(&on_disk, layout.bat_entry_offset(1)), 0);
    assert_eq!(layout.log_entries[3].tail, 0x3000);
}

#[test]
fn entries_wrap_and_what_they_overwrite_is_gone() {
    let image = Image::dynamic(16 * MIB);
    let session = image.session(1);
    let image = image
        .dirty(session)
        .log_entry(LogEntry::new().sequence(9).allocate(5, Contents::State(2, 0)))
        .log_entry(LogEntry::new().at(253).allocate(6, Contents::Pattern(b'a')).tail_self())
        .log_entry(LogEntry::new().allocate(7, Contents::Pattern(b'b')).tail_entry(1));
    assert_eq!(image.active_entries(), [1, 2]);
    let layout = image.layout();
    assert_eq!(layout.log_entries[2].log_offset, 255 * 4096);
    assert!(!layout.log_entries[0].whole);
    assert_eq!(layout.log_entries[2].sequence, 11);
    let bytes = image.build_vec();
    assert_eq!(&bytes[1 << 20..][..4], b"data");
    assert_eq!(image.expected_guest()[7 << 20], b'b');
}

#[test]
fn an_unwritten_block_makes_replay_extend_the_file() {
    let image = Image::dynamic(4 * MIB);
    let session = image.session(1);
    let image = image.dirty(session).log_entry(LogEntry::new().allocate_unwritten(0));
    assert_eq!(image.build_vec().len() as u64, 4 * MIB);
    assert_eq!(image.expected_file().len() as u64, 5 * MIB);
    let entry = &image.layout().log_entries[0];
    assert_eq!((entry.flushed, entry.last), (4 * MIB, 5 * MIB));
}

#[test]
fn resealing_what_was_not_changed_changes_nothing() {
    let image = Image::dynamic(16 * MIB);
    let session = image.session(1);
    let image = image
        .dirty(session)
        .log_entry(LogEntry::new().at(255).allocate(1, Contents::State(2, 0)).tail_self());
    let bytes = image.build_vec();
    let offset = image.layout().log_entry_offset(0);
    let mut again = bytes.clone();
    for checksum in [0x10004, 0x20004, 0x30004, 0x40004, offset + 4] {
        patch::put_u32(&mut again, checksum, 0);
    }
    for copy in 0..2 {
        reseal_header(&mut again, copy);
        reseal_region_table(&mut again, copy);
    }
    reseal_log_entry(&mut again, offset, MIB, MIB);
    assert!(again == bytes);
}

#[test]
fn the_largest_disk_is_a_sparse_file() {
    let path = std::env::temp_dir().join(format!("vhdxkit-testkit-{}", std::process::id()));
    let last = (64 << 20) - 1;
    let image = Image::dynamic(64 << 40).block(last, Contents::Data(b"the end".to_vec()));
    image.build_file(&path);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::remove_file(&path).unwrap();
    let layout = image.layout();
    assert_eq!((layout.bat_length, layout.payload_start), (513 * MIB, 516 * MIB));
    assert_eq!((length, layout.file_length), (517 * MIB, 517 * MIB));
}

#[test]
fn odd_images_differ_where_they_are_told_to() {
    let plain = Image::dynamic(4 * MIB).block(0, Contents::Pattern(1));
    let twins = plain.clone().twin_headers().build_vec();
    assert!(twins[0x10000..0x11000] == twins[0x20000..0x21000]);
    let qemu = plain.clone().required_flag(false).build_vec();
    let flags = |bytes: &[u8]| [bytes[0x30000 + 44], bytes[0x30000 + 76]];
    assert_eq!((flags(&qemu), flags(&twins)), ([0, 0], [1, 1]));

    let guid = vhdxkit_testkit::guid(9, 9);
    let extra = plain.clone().extra_region(guid, true, 2 << 20);
    let layout = extra.layout();
    assert_eq!((layout.extra_regions, layout.payload_start), (vec![4 * MIB], 6 * MIB));
    assert_eq!(extra.build_vec()[0x30000 + 80..][..16], guid.to_bytes());

    let lying = plain.clone().bat_entry(0, 0xFFFF_FFFF_FFF0_0006).bat_entry(4096, 6);
    let bytes = lying.build_vec();
    assert_eq!(u64_at(&bytes, 3 * MIB), 0xFFFF_FFFF_FFF0_0006);
    assert_eq!(u64_at(&bytes, 3 * MIB + 8 * 4096), 6);
    assert!(lying.expected_guest().iter().all(|byte| *byte == 0));

    let no_log = plain.clone().log_length(0).layout();
    assert_eq!((no_log.metadata_offset, no_log.bat_offset), (MIB, 2 * MIB));
    let scribbled = plain.raw_log(255, b"loge").build_vec();
    assert_eq!(&scribbled[(1 << 20) + 255 * 4096..][..4], b"loge");
}
