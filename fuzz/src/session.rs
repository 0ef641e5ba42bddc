//! From a fuzzer's bytes to an NBD client's words, and what must hold whatever a client says.
//!
//! The first byte chooses how the session begins: with whatever follows, or with a handshake that is in
//! order, so that the requests behind it are reached. Requests are made of records of ten bytes; their
//! magic number, and data for writes, are put in. No dependency on a fuzzer.

use std::sync::{Arc, OnceLock};

use vhdxkit::defect::Severity;
use vhdxkit::storage::{MemoryStorage, Overlay, Storage};
use vhdxkit::{CreateOptions, OpenOptions};
use vhdxkit_serve::nbd::{Options, Server};
use vhdxkit_serve::{Disk, Export};

const DISK: u64 = 3 << 20;
const RECORD: usize = 10;

/// How replies look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replies {
    /// Their lengths depend on the requests: they are not looked at.
    Unknown,
    Structured,
    Extended,
}

/// Target `nbd`: a session, from the greeting on.
pub fn nbd(input: &[u8]) {
    let Some((&mode, rest)) = input.split_first() else { return };
    let (said, replies) = match mode % 4 {
        0 => (rest.to_vec(), Replies::Unknown),
        1 => (script(rest, &[], Replies::Unknown), Replies::Unknown),
        2 => (script(rest, &[8, 10], Replies::Structured), Replies::Structured),
        _ => (script(rest, &[11, 10], Replies::Extended), Replies::Extended),
    };
    let base = Arc::clone(template()) as Arc<dyn Storage>;
    let file: Arc<dyn Storage> = Arc::new(Overlay::new(base).expect("memory has a length"));
    let image = OpenOptions::new().write(mode & 0x80 == 0).open_storage(Arc::clone(&file));
    let disk = Disk::new(image.expect("the template opens"), Arc::new(|_: &str| {}));
    let export = Export::whole(Arc::clone(&disk));
    let server = Server::new(Options::default().offer("", "a disk", export)).expect("one export");
    // It must end, and nothing in it may panic.
    let (heard, _) = server.rehearse(&said);
    assert!(heard.len() <= 18 + said.len() * (DISK as usize + 8192), "more than was asked for");
    if replies != Replies::Unknown {
        judge(&heard, replies);
    }
    disk.close().expect("memory does not fail");
    drop((server, disk));
    let found = vhdxkit::ops::check::check(file, &mut ()).expect("memory does not fail");
    let worst = found.list().iter().find(|defect| defect.severity() > Severity::Info);
    assert!(worst.is_none(), "the image has suffered: {worst:?}");
}

/// An image with data, holes and a trimmed block.
fn template() -> &'static Arc<MemoryStorage> {
    static TEMPLATE: OnceLock<Arc<MemoryStorage>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let file = Arc::new(MemoryStorage::new(Vec::new()));
        let options = CreateOptions::new(DISK).block_size(1 << 20).reproducible(1);
        options.create_storage(&*file).expect("memory does not fail");
        let open = OpenOptions::new().write(true).reproducible(2);
        let image = open.open_storage(Arc::clone(&file) as _).expect("a new image opens");
        image.write_at(4096, &[7; 8192]).expect("memory does not fail");
        image.write_at(1 << 20, &vec![8; 1 << 20]).expect("memory does not fail");
        image.discard(2 << 20..3 << 20).expect("memory does not fail");
        image.close().expect("memory does not fail");
        file
    })
}

fn option(said: &mut Vec<u8>, number: u32, data: &[u8]) {
    said.extend(0x4948_4156_454F_5054u64.to_be_bytes());
    said.extend(number.to_be_bytes());
    said.extend((data.len() as u32).to_be_bytes());
    said.extend(data);
}

/// A handshake in order, with these options before the last, and requests made of records.
fn script(records: &[u8], options: &[u32], replies: Replies) -> Vec<u8> {
    let mut said = 3u32.to_be_bytes().to_vec();
    for number in options {
        let mut data = Vec::new();
        if *number == 10 {
            let names = ["base:allocation", "vhdx:state", "vhdx:depth"];
            data.extend([0; 4]);
            data.extend((names.len() as u32).to_be_bytes());
            for name in names {
                data.extend((name.len() as u32).to_be_bytes());
                data.extend(name.as_bytes());
            }
        }
        option(&mut said, *number, &data);
    }
    option(&mut said, 7, &[0; 6]);
    for record in records.chunks(RECORD) {
        let mut bytes = [0; RECORD];
        bytes[..record.len()].copy_from_slice(record);
        request(&mut said, bytes, replies);
    }
    said
}

/// Command, flags, a unit for offset and length, both in it, and how much of a payload really comes.
fn request(said: &mut Vec<u8>, record: [u8; RECORD], replies: Replies) {
    let [command, flags, unit, o1, o2, o3, l1, l2, l3, payload] = record;
    let extended = replies == Replies::Extended;
    let scale = |hi, mid, lo| {
        let number = u64::from(u32::from_be_bytes([0, hi, mid, lo]));
        match unit % 4 {
            0 => number,
            1 => number << 9,
            2 => number << 24,
            // From the end of all numbers.
            _ => number.wrapping_neg(),
        }
    };
    let (offset, length) = (scale(o1, o2, o3), scale(l1, l2, l3));
    let magic: u32 = if extended { 0x21E4_1C71 } else { 0x2560_9513 };
    said.extend(magic.to_be_bytes());
    said.extend(u16::from(flags).to_be_bytes());
    said.extend(u16::from(command).to_be_bytes());
    said.extend((said.len() as u64).to_be_bytes());
    said.extend(offset.to_be_bytes());
    match extended {
        true => said.extend(length.to_be_bytes()),
        false => said.extend((length as u32).to_be_bytes()),
    }
    let length = if extended { length } else { length & 0xFFFF_FFFF };
    if command == 1 || (extended && flags & 32 != 0) {
        // As announced, unless that is much or the record says otherwise.
        let follows = length.min(64 << 10).saturating_sub(u64::from(payload & 1));
        said.extend(std::iter::repeat_n(payload, follows as usize));
    }
}

/// Everything that was heard can be taken apart, to the last byte.
fn judge(heard: &[u8], replies: Replies) {
    let mut rest = heard;
    let mut take = |length: usize| {
        let (now, later) = rest.split_at_checked(length).expect("a message is cut off");
        rest = later;
        now
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    take(18);
    // The answers to options, up to the one that ends the last of them.
    loop {
        let header = take(20);
        assert_eq!(number(&header[..8]), 0x0003_E889_0455_65A9);
        let (option, kind) = (number(&header[8..12]), number(&header[12..16]));
        take(number(&header[16..]) as usize);
        assert_eq!(kind & 0x8000_0000, 0, "option {option} was refused with {kind:#x}");
        if (option, kind) == (7, 1) {
            break;
        }
    }
    while !rest.is_empty() {
        let (magic, later) = rest.split_at_checked(4).expect("a message is cut off");
        let (header, length) = match (number(magic), replies) {
            (0x6744_6698, Replies::Structured) => (16, None),
            (0x668E_33EF, Replies::Structured) => (20, Some(number(&later[12..16]))),
            (0x6E8A_278C, Replies::Extended) => (32, Some(number(&later[20..28]))),
            (magic, _) => panic!("{magic:#x} begins no reply"),
        };
        let whole = header + length.unwrap_or_default() as usize;
        rest = rest.get(whole..).expect("a reply is cut off");
    }
}

/// Inputs to start from.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for mode in [1u8, 2, 3, 0x82, 0x83] {
        for command in 0..=9u8 {
            // Sectors, the first, some, all; with and without flags.
            let mut bytes = vec![mode];
            for (flags, length) in [(0, 1), (1, 8), (2, 0x17), (18, 1), (36, 24), (8, 0x18)] {
                bytes.extend([command, flags, 1, 0, 8, 0, 0, 0, length, 4]);
            }
            bytes.extend([command, 0, 1, 0, 0, 0, 0, 0x18, 0, 0]);
            seeds.push((format!("mode-{mode:02x}-command-{command}"), bytes));
        }
    }
    // Whole handshakes, for the fuzzer to take apart.
    for (number, options) in
        [&[3u32, 9, 6, 2][..], &[5, 8, 8, 10, 7], &[11, 10, 1]].iter().enumerate()
    {
        let mut bytes = vec![0];
        bytes.extend(3u32.to_be_bytes());
        for number in *options {
            let data: &[u8] = match number {
                6 | 7 => &[0, 0, 0, 0, 0, 1, 0, 3],
                9 | 10 => &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, b'v', b'h', b'd', b'x', b':'],
                _ => &[],
            };
            option(&mut bytes, *number, data);
        }
        seeds.push((format!("handshake-{number}"), bytes));
    }
    seeds
}
