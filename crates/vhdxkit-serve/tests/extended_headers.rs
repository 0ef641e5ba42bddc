//! Extended headers: lengths of 64 bits, and questions about some of the contexts. QEMU uses the first, no
//! client that can be installed the second; so here the bytes are put together by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use vhdxkit::storage::MemoryStorage;
use vhdxkit::{CreateOptions, OpenOptions};
use vhdxkit_serve::nbd::{Options, Server};
use vhdxkit_serve::{Disk, Export};

const DISK: u64 = 8 << 30;
const CONTEXTS: [&str; 3] = ["base:allocation", "vhdx:state", "vhdx:depth"];
const PAYLOAD_LEN: u16 = 32;

fn server() -> Server {
    let file = MemoryStorage::new(Vec::new());
    CreateOptions::new(DISK).create_storage(&file).unwrap();
    let image = OpenOptions::new().write(true).open_storage(Arc::new(file)).unwrap();
    image.write_at(5 << 30, &[1; 65536]).unwrap();
    let export = Export::whole(Disk::new(image, Arc::new(|_: &str| {})));
    Server::new(Options::default().offer("a", "", export)).unwrap()
}

fn text(said: &mut Vec<u8>, text: &str) {
    said.extend((text.len() as u32).to_be_bytes());
    said.extend(text.as_bytes());
}

fn option(said: &mut Vec<u8>, number: u32, data: &[u8]) {
    said.extend(0x4948_4156_454F_5054u64.to_be_bytes());
    said.extend(number.to_be_bytes());
    said.extend((data.len() as u32).to_be_bytes());
    said.extend(data);
}

/// A handshake that agrees on extended headers, all contexts and the export.
fn handshake() -> Vec<u8> {
    let mut said = 3u32.to_be_bytes().to_vec();
    option(&mut said, 11, &[]);
    let mut data = Vec::new();
    text(&mut data, "a");
    data.extend((CONTEXTS.len() as u32).to_be_bytes());
    CONTEXTS.iter().for_each(|name| text(&mut data, name));
    option(&mut said, 10, &data);
    let mut data = Vec::new();
    text(&mut data, "a");
    data.extend([0, 0]);
    option(&mut said, 7, &data);
    said
}

fn request(said: &mut Vec<u8>, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
    said.extend(0x21E4_1C71u32.to_be_bytes());
    said.extend(flags.to_be_bytes());
    said.extend(command.to_be_bytes());
    for field in [cookie, offset, length] {
        said.extend(field.to_be_bytes());
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// A chunk: its kind and its payload.
type Chunk = (u64, Vec<u8>);

/// The chunks of each reply, by cookie; the last of each is marked as such.
fn replies(heard: &[u8]) -> BTreeMap<u64, Vec<Chunk>> {
    let begin = heard.windows(4).position(|four| four == 0x6E8A_278Cu32.to_be_bytes());
    let mut rest = &heard[begin.expect("a reply")..];
    let (mut all, mut done) = (BTreeMap::<u64, Vec<Chunk>>::new(), Vec::new());
    while !rest.is_empty() {
        assert_eq!(number(&rest[..4]), 0x6E8A_278C);
        let (flags, kind, cookie) =
            (number(&rest[4..6]), number(&rest[6..8]), number(&rest[8..16]));
        let length = number(&rest[24..32]) as usize;
        assert!(!done.contains(&cookie), "a chunk behind the last of {cookie}");
        if flags & 1 != 0 {
            done.push(cookie);
        }
        all.entry(cookie).or_default().push((kind, rest[32..32 + length].to_vec()));
        rest = &rest[32 + length..];
    }
    assert_eq!(all.len(), done.len(), "a reply without its end");
    all
}

/// The descriptors of a status chunk, and its context.
fn status((kind, payload): &Chunk) -> (u64, Vec<(u64, u64)>) {
    assert_eq!(*kind, 6);
    let list: Vec<(u64, u64)> =
        payload[8..].chunks(16).map(|d| (number(&d[..8]), number(&d[8..]))).collect();
    assert_eq!(number(&payload[4..8]), list.len() as u64);
    (number(&payload[..4]), list)
}

#[test]
fn one_question_covers_a_disk_of_more_than_four_gibibytes() {
    let mut said = handshake();
    request(&mut said, 7, 0, 1, 0, DISK);
    request(&mut said, 6, 0, 2, 1 << 30, 6 << 30);
    let (heard, ended) = server().rehearse(&said);
    ended.unwrap();
    let replies = replies(&heard);
    let told: Vec<_> = replies[&1].iter().map(status).collect();
    let (before, after) = (5 << 30, DISK - (5 << 30) - 65536);
    assert_eq!(told[0], (1, vec![(before, 3), (65536, 0), (after, 3)]));
    // Of the block that was written the rest is a hole of the file, but the block's own state is data.
    assert_eq!(told[1], (2, vec![(before, 2), (32 << 20, 0), (DISK - before - (32 << 20), 2)]));
    assert_eq!(told[2], (3, vec![(DISK, 0)]));
    assert_eq!(replies[&2], [(0, vec![])], "zeros of six gibibytes");
}

#[test]
fn a_question_may_be_about_some_contexts_only() {
    let mut said = handshake();
    let ask = |said: &mut Vec<u8>, cookie, meant: u64, ids: &[u32]| {
        request(said, 7, PAYLOAD_LEN, cookie, 0, 8 + 4 * ids.len() as u64);
        said.extend(meant.to_be_bytes());
        ids.iter().for_each(|id| said.extend(id.to_be_bytes()));
    };
    ask(&mut said, 1, DISK, &[3]);
    ask(&mut said, 2, 1 << 20, &[2, 1, 2]);
    ask(&mut said, 3, DISK, &[99]);
    ask(&mut said, 4, DISK + 512, &[1]);
    ask(&mut said, 5, 512, &[]);
    request(&mut said, 7, PAYLOAD_LEN, 6, 0, 11);
    said.extend([0; 11]);
    request(&mut said, 3, 0, 7, 0, 0);
    let (heard, ended) = server().rehearse(&said);
    ended.unwrap();
    let replies = replies(&heard);
    assert_eq!(replies[&1].iter().map(status).collect::<Vec<_>>(), [(3, vec![(DISK, 0)])]);
    let told: Vec<_> = replies[&2].iter().map(status).collect();
    assert_eq!(told, [(1, vec![(1 << 20, 3)]), (2, vec![(1 << 20, 2)])]);
    for cookie in 3..=6 {
        let (kind, payload) = &replies[&cookie][0];
        assert_eq!((*kind, number(&payload[..4])), (0x8001, 22), "{cookie}");
    }
    assert_eq!(replies[&7], [(0, vec![])], "what came behind the payloads");
}

#[test]
fn data_goes_both_ways() {
    let mut said = handshake();
    request(&mut said, 1, PAYLOAD_LEN, 1, 8192, 4096);
    said.extend([9; 4096]);
    request(&mut said, 0, 0, 2, 4096, 1 << 20);
    // More than may be asked for at once.
    request(&mut said, 0, 0, 3, 0, 1 << 40);
    let (heard, ended) = server().rehearse(&said);
    ended.unwrap();
    let replies = replies(&heard);
    assert_eq!(replies[&1], [(0, vec![])]);
    let mut read = vec![0xEE; 1 << 20];
    for (kind, payload) in &replies[&2] {
        let at = number(&payload[..8]) as usize - 4096;
        match kind {
            1 => read[at..at + payload.len() - 8].copy_from_slice(&payload[8..]),
            2 => read[at..at + number(&payload[8..]) as usize].fill(0),
            other => panic!("{other} is no data"),
        }
    }
    let mut expected = vec![0; 1 << 20];
    expected[4096..8192].fill(9);
    assert!(read == expected);
    assert!(replies[&2].iter().any(|(kind, _)| *kind == 2), "zeros were sent instead of told");
    assert_eq!(number(&replies[&3][0].1[..4]), 75);
}
