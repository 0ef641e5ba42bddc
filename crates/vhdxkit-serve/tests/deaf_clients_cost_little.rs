//! Clients that ask for much and read nothing. Alone in its process, whose memory is looked at.

mod common;

use std::sync::Arc;

use common::{DISK, Serving};
use vhdxkit::CreateOptions;
use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit_testkit::nbd::{Request, Wire, command, option};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A client that has agreed on all contexts.
fn curious(serving: &Serving) -> Wire {
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    wire.send_option(option::STRUCTURED_REPLY, &[]).unwrap();
    wire.receive_answer().unwrap();
    let mut data = vec![0, 0, 0, 0, 0, 0, 0, 3];
    for name in ["base:allocation", "vhdx:state", "vhdx:depth"] {
        data.extend((name.len() as u32).to_be_bytes());
        data.extend(name.as_bytes());
    }
    wire.send_option(10, &data).unwrap();
    while wire.receive_answer().unwrap().1 != 1 {}
    wire.send_option(option::GO, &[0; 6]).unwrap();
    while wire.receive_answer().unwrap().1 != 1 {}
    wire
}

#[test]
fn what_a_client_asks_for_and_does_not_read_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    CreateOptions::new(DISK).block_size(1 << 20).create(&path).unwrap();
    let file = FileStorage::open(&path, OpenMode::ReadWrite).unwrap();
    let serving = Serving::storage(Arc::new(file), |options| options);
    let mut writer = serving.client();
    assert_eq!(writer.call(&Request::write(0, vec![7; DISK as usize])).unwrap().error, 0);
    // As fragmented as can be: a long answer to a short question.
    for at in (0..DISK).step_by(8192) {
        let zeros = Request::new(command::WRITE_ZEROES, at, 4096);
        assert_eq!(writer.call(&zeros).unwrap().error, 0);
    }
    let before = resident();
    let clients: Vec<Wire> = (0..64)
        .map(|_| {
            let mut wire = curious(&serving);
            for cookie in 0..200 {
                let request = match cookie % 2 {
                    0 => Request::new(command::BLOCK_STATUS, 0, DISK as u32),
                    _ => Request::new(command::READ, 4096, 32 << 10),
                };
                wire.send_request(cookie, request.length, &request).unwrap();
            }
            wire
        })
        .collect();
    // Until nothing moves any more.
    let mut grown = 0;
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = resident().saturating_sub(before);
        if now == grown && grown > 0 {
            break;
        }
        grown = now;
    }
    println!("64 deaf clients: {} MiB more", grown >> 20);
    assert!(grown < 64 * (2 << 20), "{} MiB for 64 clients", grown >> 20);
    assert_eq!(writer.call(&Request::new(command::READ, 4096, 4096)).unwrap().data, [7; 4096]);
    drop(clients);
}
