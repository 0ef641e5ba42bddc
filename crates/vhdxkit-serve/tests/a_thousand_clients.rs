//! Many clients at once. Alone in its process, whose memory is looked at.

mod common;

use std::time::{Duration, Instant};

use common::Serving;
use vhdxkit_testkit::nbd::{Request, Wire, command};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Clients at every stage, a thousand of them: memory stays bounded, and one more is served at once.
#[test]
fn a_thousand_clients_leave_room_for_one_more() {
    let serving = Serving::memory();
    let mut writer = serving.client();
    assert_eq!(writer.call(&Request::write(0, vec![7; 1 << 20])).unwrap().error, 0);
    let before = resident();
    let (mut wires, mut clients) = (Vec::new(), Vec::new());
    for number in 0..1000 {
        match number % 4 {
            // Has only connected; has agreed on an export; has sent half a request; waits for replies.
            0 => wires.push(Wire::connect(serving.path()).unwrap()),
            kind => {
                let mut client = serving.client();
                match kind {
                    1 => {}
                    2 => client.wire().send(&[0x25, 0x60]).unwrap(),
                    _ => {
                        client.send(&Request::new(command::READ, 0, 256 << 10)).unwrap();
                    }
                }
                clients.push(client);
            }
        }
    }
    let begun = Instant::now();
    let mut one_more = serving.client();
    assert_eq!(one_more.call(&Request::new(command::READ, 0, 4096)).unwrap().data, [7; 4096]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let grown = resident().saturating_sub(before);
    println!("1000 clients: {} MiB more", grown >> 20);
    assert!(grown < 512 << 20, "{} MiB for 1000 clients", grown >> 20);
    drop((wires, clients));
    assert_eq!(one_more.call(&Request::flush()).unwrap().error, 0);
}
