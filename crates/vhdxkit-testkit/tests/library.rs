//! The library opens what the builder builds, and reads what the builder expects.
//!
//! Both compute BAT indices, log entries and replay on their own. Were one of them wrong, every
//! other test that uses built images would still pass or fail for the wrong reason.

use std::sync::Arc;

use vhdxkit::storage::MemoryStorage;
use vhdxkit::{ErrorKind, OpenOptions};
use vhdxkit_testkit::samples;
use vhdxkit_testkit::{Contents, Image, LogEntry};

const MIB: u64 = 1 << 20;

fn open(image: &Image) -> vhdxkit::Image {
    OpenOptions::new().open_storage(Arc::new(MemoryStorage::new(image.build_vec()))).unwrap()
}

fn read(image: &vhdxkit::Image, offset: u64, length: u64) -> Vec<u8> {
    // Not zeros: a range the library leaves alone must show.
    let mut bytes = vec![0xEE; length as usize];
    image.read_at(offset, &mut bytes).unwrap();
    bytes
}

/// The whole disk reads as the builder expects.
fn agree(what: &str, image: &Image) {
    let expected = image.expected_guest();
    let opened = open(image);
    assert_eq!(opened.virtual_size(), expected.len() as u64, "{what}");
    assert!(read(&opened, 0, opened.virtual_size()) == expected, "{what}");
}

#[test]
fn samples_without_a_parent_read_as_expected() {
    for sample in samples::all().iter().filter(|sample| sample.parent.is_none()) {
        agree(sample.name, &sample.image);
    }
}

#[test]
fn a_childs_own_blocks_read_and_those_of_its_parent_are_refused() {
    let sample = samples::all().into_iter().find(|sample| sample.parent.is_some()).unwrap();
    let (guest, opened) = (sample.guest(), open(&sample.image));
    for block in [1, 3] {
        let range = (block * MIB) as usize..((block + 1) * MIB) as usize;
        assert!(read(&opened, block * MIB, MIB) == guest[range], "block {block}");
    }
    let states = [0, 1, 3, 6].map(|block| {
        let index = sample.image.layout().bat_index(block);
        opened.bat_entry(index).unwrap().state()
    });
    assert_eq!(states, [0, 6, 2, 7]);
    for block in [0, 6] {
        let error = opened.read_at(block * MIB, &mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentNeeded, "block {block}: {error}");
    }
}

#[test]
fn every_shape_of_disk_reads_as_expected() {
    let data = || Contents::Data(b"some text\n".repeat(5000));
    let plain = Image::dynamic(5 * MIB + 512).block(5, data()).block(1, Contents::Pattern(0xA7));
    agree("dynamic", &plain);
    agree("identical headers", &plain.clone().twin_headers());
    agree("regions not marked required", &plain.clone().required_flag(false));
    agree("long log", &plain.clone().log_length(4 << 20));
    agree("no log", &plain.clone().log_length(0));
    agree("bytes behind the end", &plain.clone().extra_tail(512));
    let region = vhdxkit_testkit::guid(9, 9);
    agree("unknown region", &plain.extra_region(region, false, 1 << 20));

    let fixed = Image::fixed(3 * MIB + 1536).block(3, data()).block(0, Contents::Pattern(0x0F));
    agree("fixed", &fixed);
    agree("fixed, cut at its last byte", &fixed.cut_last_block(true));
    for mib in [2, 8, 32] {
        let wide = Image::dynamic(70 * MIB).block_size(mib << 20);
        agree("wider blocks", &wide.block(2, data()).block(0, data()));
    }
    agree("4096-byte sectors", &Image::dynamic(3 * MIB).sectors(4096, 4096).block(2, data()));
}

/// The table has a sector bitmap's entry between the chunks, in disks without a parent too.
#[test]
fn blocks_around_a_chunk_border_are_found() {
    for (sector, border) in [(512, 4096), (4096, 32768)] {
        let blocks = [border - 1, border, border + 1];
        let mut image = Image::dynamic((border + 2) * MIB).sectors(sector, 4096);
        for (block, byte) in blocks.into_iter().zip(*b"abc") {
            image = image.block(block, Contents::Pattern(byte));
        }
        let layout = image.layout();
        let opened = open(&image);
        let indices = blocks.map(|block| layout.bat_index(block));
        assert_eq!(indices, [border - 1, border + 1, border + 2]);
        for (block, byte) in blocks.into_iter().zip(*b"abc") {
            let entry = opened.bat_entry(layout.bat_index(block)).unwrap();
            assert_eq!((entry.state(), entry.file_offset()), (6, layout.blocks[&block]));
            assert!(read(&opened, block * MIB, MIB).iter().all(|read| *read == byte), "{block}");
        }
        assert!(read(&opened, (border - 2) * MIB, MIB).iter().all(|read| *read == 0));
    }
}

#[test]
fn logs_are_replayed_as_expected() {
    let image = Image::dynamic(16 * MIB).block(4, Contents::Pattern(b'4'));
    let session = image.session(1);
    let image = image.dirty(session);
    let put = |block, byte| LogEntry::new().allocate(block, Contents::Pattern(byte));
    agree("an empty entry", &image.clone().log_entry(LogEntry::new()));
    let started = image.clone().log_entry(LogEntry::new()).log_entry(put(0, b'0'));
    agree("one block", &started);
    agree("unmapped", &started.clone().log_entry(put(1, b'1').allocate(4, Contents::State(3, 0))));
    agree("payload not written", &started.clone().log_entry(LogEntry::new().allocate_unwritten(9)));
    let zeroed = LogEntry::new().zero(image.layout().bat_offset, 4096);
    agree("table zeroed", &started.clone().log_entry(zeroed));
    agree("torn", &started.clone().log_entry(put(2, b'2').torn(1)));
    agree("damaged", &started.clone().log_entry(put(2, b'2').corrupt(5000, 1)));
    let gap = started.log_entry(put(2, b'2').sequence(9));
    assert_eq!(gap.active_entries(), [0, 1]);
    agree("a sequence number left out", &gap);
    let wrapped = image
        .log_entry(LogEntry::new().sequence(9).at(253).allocate(6, Contents::Pattern(b'6')))
        .log_entry(put(7, b'7'));
    assert_eq!(wrapped.layout().log_entries[1].log_offset, 255 * 4096);
    assert_eq!(wrapped.active_entries(), [0, 1]);
    agree("round the end of the ring", &wrapped);
}
