//! Inputs to start from: every base, and each structure changed in a way that a rule is about.

use super::base::Base;
use super::input::{FIX_HEADERS, FIX_LOG, FIX_REGIONS, LOG_ENTRY, SET_LENGTH};

const ALL: u8 = FIX_HEADERS | FIX_REGIONS | FIX_LOG;

fn record(place: u8, offset: u16, bytes: &[u8]) -> Vec<u8> {
    let mut record = vec![place];
    record.extend(offset.to_le_bytes());
    record.push(bytes.len() as u8);
    record.extend(bytes);
    record
}

fn seed(name: &str, base: u8, flags: u8, records: &[Vec<u8>]) -> (String, Vec<u8>) {
    let mut bytes = vec![base, flags];
    bytes.extend(records.concat());
    (name.to_owned(), bytes)
}

fn cut(name: &str, base: u8, length: u32) -> (String, Vec<u8>) {
    let mut bytes = vec![base, ALL | SET_LENGTH];
    bytes.extend((length / 512).to_le_bytes());
    (name.to_owned(), bytes)
}

fn log_entry(
    sector: u8,
    sequence: u8,
    tail: u8,
    session: u8,
    descriptors: &[(u8, u16)],
) -> Vec<u8> {
    let mut record = vec![LOG_ENTRY, sector, sequence, tail, session, descriptors.len() as u8];
    for (kind, page) in descriptors {
        record.push(*kind);
        record.extend(page.to_le_bytes());
    }
    record
}

fn bases() -> Vec<(String, Vec<u8>)> {
    (0..Base::COUNT).map(|n| seed(&format!("base-{n:02}"), n, ALL, &[])).collect()
}

/// Seeds of the target `open`, by name.
pub fn open() -> Vec<(String, Vec<u8>)> {
    let mut seeds = bases();
    let both_headers = |offset, bytes: &[u8]| [record(1, offset, bytes), record(2, offset, bytes)];
    let both_tables = |offset, bytes: &[u8]| [record(3, offset, bytes), record(4, offset, bytes)];
    seeds.extend([
        seed("not-vhdx", 0, 0, &[record(0, 0, b"conectix")]),
        seed("header-checksums", 0, 0, &both_headers(8, &[9])),
        seed("header-tie", 0, ALL, &both_headers(8, &[9, 0, 0, 0, 0, 0, 0, 0, 1])),
        seed("version", 0, ALL, &both_headers(0x42, &[2])),
        seed("log-version", 0, ALL, &both_headers(0x40, &[1])),
        seed("log-place", 0, ALL, &both_headers(0x4C, &[0, 0, 4])),
        seed("log-length-zero", 6, ALL, &both_headers(0x44, &[0, 0, 0, 0])),
        seed(
            "sequence-at-end",
            0,
            ALL,
            &[record(2, 8, &[0xFE, 255, 255, 255, 255, 255, 255, 255])],
        ),
        seed("session", 0, ALL, &both_headers(0x30, &[1])),
        seed("region-count", 6, ALL, &both_tables(8, &[255, 255])),
        seed("region-place", 6, ALL, &both_tables(0x22, &[0x20])),
        seed("region-required", 6, ALL, &both_tables(0x10, &[0])),
        seed("regions-differ", 6, ALL, &[record(4, 0x2C, &[0])]),
        seed("metadata-signature", 6, ALL, &[record(10, 0, b"M")]),
        seed("metadata-count", 6, ALL, &[record(10, 10, &[255, 255])]),
        seed(
            "item-repeated",
            6,
            ALL,
            &[record(10, 10, &[6]), record(10, 192, &[0x37, 0x67, 0xa1, 0xca])],
        ),
        seed("item-length", 6, ALL, &[record(10, 52, &[4])]),
        seed("block-size", 6, ALL, &[record(11, 0, &[0, 0, 0x30])]),
        seed("large-blocks", 6, ALL, &[record(11, 0, &[0, 0, 0, 0x10])]),
        seed("virtual-size", 6, ALL, &[record(11, 8, &[0, 0, 0, 0, 0, 0, 1])]),
        seed("sector-size", 8, ALL, &[record(11, 16, &[0, 4])]),
        seed("locator", 8, ALL, &[record(11, 0x28 + 18, &[9])]),
        seed(
            "block-states",
            6,
            ALL,
            &[record(12, 8, &[1]), record(12, 16, &[5, 0, 0x40]), record(12, 24, &[4])],
        ),
        seed("block-outside", 6, ALL, &[record(12, 2, &[0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])]),
        seed("block-overlap", 6, ALL, &[record(12, 8, &[6, 0, 0x40])]),
        seed("partial-without-bitmap", 8, ALL, &[record(13, 0, &[0, 0, 0])]),
        cut("cut-header", 6, 1 << 19),
        cut("cut-metadata", 6, (2 << 20) + (64 << 10)),
        cut("cut-bat", 6, 3 << 20),
        cut("cut-block", 0, (4 << 20) + 512),
        cut("extended", 0, 40 << 20),
    ]);
    seeds
}

/// Seeds of the target `log`, by name.
pub fn log() -> Vec<(String, Vec<u8>)> {
    let mut seeds = bases();
    let bat = 768;
    let chain: Vec<_> = (0..20).map(|n| log_entry(2 * n, 10 + n, 0, 0, &[(0, bat)])).collect();
    let many = [(0, bat + 1); 140];
    let wide: Vec<_> = (0..16).map(|n| record(5, n * 4096, b"loge\0\0\0\0\0\0\x10\0")).collect();
    seeds.extend([
        seed("chain", 0, ALL, &chain),
        seed("many-descriptors", 0, ALL, &[log_entry(9, 50, 9, 0, &many)]),
        seed("zeros", 0, ALL, &[log_entry(9, 50, 9, 0, &[(255, bat), (1, 80), (7, 65535)])]),
        seed("empty-entry", 0, ALL, &[log_entry(9, 50, 9, 0, &[])]),
        seed("into-the-log", 0, ALL, &[log_entry(9, 50, 9, 0, &[(0, 300)])]),
        seed("into-the-headers", 0, ALL, &[log_entry(9, 50, 9, 0, &[(0, 16)])]),
        seed("region-table", 0, ALL, &[log_entry(9, 50, 9, 0, &[(0, 48)])]),
        seed("tail-in-the-middle", 0, ALL, &[log_entry(9, 50, 8, 0, &[(0, bat)])]),
        seed("wraps", 0, ALL, &[log_entry(250, 50, 250, 0, &[(0, bat); 10])]),
        seed("foreign", 0, ALL, &[log_entry(9, 50, 9, 1, &[(0, bat)])]),
        seed("all-claim-the-ring", 0, ALL, &wide),
        seed("entry-length", 0, ALL, &[record(5, 8, &[0, 0, 0x10])]),
        seed("sequence-zero", 0, ALL, &[record(5, 16, &[0])]),
        seed("last-file-offset", 0, ALL, &[record(5, 0x3E, &[1])]),
        seed("far-last-file-offset", 0, ALL, &[record(6, 0x38, &[0, 0, 0, 0, 0, 200])]),
        seed("reserved", 0, ALL, &[record(5, 28, &[1])]),
        seed("data-sector", 0, ALL, &[record(5, 0x1000, b"DATA")]),
        seed("torn", 0, FIX_HEADERS, &[record(6, 0x1FFC, &[9])]),
    ]);
    seeds
}
