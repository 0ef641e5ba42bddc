//! Clients that do not keep to the protocol, or to good manners: each gets what it deserves, the server
//! goes on, and nobody else notices.

mod common;

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{DISK, Serving, new_disk};
use vhdxkit_testkit::nbd::{Client, Request, Wire, answer, command, flag, option};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const BLOCK_SIZE_REQD: u32 = 0x8000_0008;
const TOO_BIG: u32 = 0x8000_0009;

/// The server still does what it should, for somebody else.
fn require_served(serving: &Serving) {
    let mut client = serving.client();
    let bytes = vec![0x5A; 4096];
    assert_eq!(client.call(&Request::write(8192, bytes.clone())).unwrap().error, 0);
    assert_eq!(client.call(&Request::new(command::READ, 8192, 4096)).unwrap().data, bytes);
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    client.disconnect().unwrap();
}

/// The server has hung up.
fn require_cut_off(mut wire: impl std::io::Read) {
    let mut rest = Vec::new();
    match wire.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

/// Each is answered by its own error, and the same client goes on.
#[test]
fn requests_that_cannot_be_are_refused_one_by_one() {
    let serving = Serving::memory();
    let mut client = serving.client();
    let read = |offset, length| Request::new(command::READ, offset, length);
    let zero = |offset, length| Request::new(command::WRITE_ZEROES, offset, length);
    let trim = |offset, length| Request::new(command::TRIM, offset, length);
    for (what, request, error) in [
        ("an unknown command", Request::new(99, 0, 512), EINVAL),
        ("the resize that nobody has", Request::new(8, 0, 512), EINVAL),
        ("a flag that there is not", read(0, 512).with(1 << 12), EINVAL),
        ("a flag of another command", read(0, 512).with(flag::NO_HOLE), EINVAL),
        ("a read of nothing", read(0, 0), EINVAL),
        ("a read behind the end", read(DISK, 1), EINVAL),
        ("a read across the end", read(DISK - 512, 1024), EINVAL),
        ("a read at the end of all numbers", read(u64::MAX, 2), EINVAL),
        ("a read of more than is allowed", read(0, (32 << 20) + 512), EINVAL),
        ("a write behind the end", Request::write(DISK, vec![0; 512]), ENOSPC),
        ("a write across the end", Request::write(DISK - 512, vec![0; 1024]), ENOSPC),
        ("a write of a part of a sector", Request::write(0, vec![0; 100]), EINVAL),
        ("a write inside of a sector", Request::write(256, vec![0; 512]), EINVAL),
        ("zeros across the end", zero(DISK - 512, 1024), ENOSPC),
        ("zeros in a part of a sector", zero(1, 512), EINVAL),
        ("zeros that keep their space, and quickly", zero(0, 512).with(18), ENOTSUP),
        ("a trim across the end", trim(DISK - 512, u32::MAX - 511), EINVAL),
        ("a trim of a part of a sector", trim(0, 511), EINVAL),
        ("a question that was not agreed on", Request::new(command::BLOCK_STATUS, 0, 512), EINVAL),
        ("a prefetch behind the end", Request::new(command::CACHE, DISK, 512), EINVAL),
    ] {
        let reply = client.call(&request).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(reply.error, error, "{what}: {}", reply.message);
    }
    // Nothing of it has changed the disk, and a read may be as small as it likes.
    let all = client.call(&read(0, DISK as u32)).unwrap();
    assert!(all.data.iter().all(|byte| *byte == 0));
    assert_eq!(client.call(&read(3, 5)).unwrap().data, [0; 5]);
    require_served(&serving);
}

/// Every request of a batch has its reply, in whichever order: also those that are refused in between.
#[test]
fn a_batch_of_good_and_bad_is_answered_whole() {
    let serving = Serving::memory();
    let mut client = serving.client();
    let mut expected = std::collections::HashMap::new();
    for number in 0..200u64 {
        let (request, error) = match number % 5 {
            0 => (Request::write(number * 4096, vec![number as u8; 4096]), 0),
            1 => (Request::new(77, 0, 0), EINVAL),
            2 => (Request::new(command::READ, number * 4096, 4096), 0),
            3 => (Request::write(DISK - 512, vec![1; 4096]), ENOSPC),
            _ => (Request::flush().with(flag::FUA), 0),
        };
        expected.insert(client.send(&request).unwrap(), error);
    }
    for _ in 0..200 {
        let reply = client.receive().unwrap();
        assert_eq!(Some(reply.error), expected.remove(&reply.cookie), "{}", reply.message);
    }
    assert!(expected.is_empty());
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let serving = Serving::memory();
    // Instead of a request.
    let mut client = serving.client();
    client.wire().send(&[0xAB; 28]).unwrap();
    require_cut_off(client.wire().stream());
    // A write of four gibibytes.
    let mut client = serving.client();
    let huge = Request::new(command::WRITE, 0, u32::MAX);
    client.wire().send_request(1, u32::MAX, &huge).unwrap();
    require_cut_off(client.wire().stream());
    // Half of a request, half of a write.
    let mut client = serving.client();
    client.wire().send(&0x2560_9513u32.to_be_bytes()).unwrap();
    drop(client);
    let mut client = serving.client();
    client.wire().send_request(1, 4096, &Request::write(0, vec![9; 1000])).unwrap();
    drop(client);
    // Instead of an answer to the greeting: flags that there are not, an HTTP request, nothing.
    for bytes in [&0x8000_0000u32.to_be_bytes()[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut wire = Wire::connect(serving.path()).unwrap();
        wire.send(bytes).unwrap();
        if !bytes.is_empty() {
            require_cut_off(wire.stream());
        }
    }
    require_served(&serving);
    let half_a_write = serving.client().call(&Request::new(command::READ, 0, 4096)).unwrap();
    assert_eq!(half_a_write.data, vec![0; 4096], "a write was carried out that never came");
}

#[test]
fn options_that_cannot_be_are_refused_one_by_one() {
    let serving = Serving::memory();
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    let name = |name: &str| {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data
    };
    let go = |text: &str| [name(text), vec![0, 0]].concat();
    for (what, number, data, wanted) in [
        ("an option that there is not", 4242, vec![], UNSUP),
        ("a name that is longer than its option", option::GO, vec![0, 0, 1, 0, 65], INVALID),
        ("information that is not named", option::GO, [name(""), vec![0, 9]].concat(), INVALID),
        ("more behind the end", option::GO, [go(""), vec![0]].concat(), INVALID),
        (
            "a name that is no text",
            option::GO,
            [&[0, 0, 0, 2, 0xC3, 0x28, 0, 0][..]].concat(),
            INVALID,
        ),
        ("another name", option::GO, go("other"), UNKNOWN),
        ("TLS without a certificate", 5, vec![], 0x8000_0002),
        ("data for a list", 3, vec![1], INVALID),
        ("contexts without structured replies", 10, [name(""), vec![0; 4]].concat(), INVALID),
        ("much too long a name", option::GO, vec![65; 100_000], TOO_BIG),
    ] {
        wire.send_option(number, &data).unwrap();
        let (answers, kind, words) = wire.receive_answer().unwrap();
        assert_eq!((answers, kind), (number, wanted), "{what}");
        assert!(!words.is_empty(), "{what}: not a word about it");
    }
    // It is still there, and an abort is answered.
    wire.send_option(2, &[]).unwrap();
    assert_eq!(wire.receive_answer().unwrap().1, answer::ACK);
    require_cut_off(wire.stream());
    // An option that goes on for ever.
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    wire.send(&0x4948_4156_454F_5054u64.to_be_bytes()).unwrap();
    wire.send(&[0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap();
    require_cut_off(wire.stream());
    require_served(&serving);
}

/// A disk with sectors of 4096 bytes: a client that does not ask for sizes would write parts of them.
#[test]
fn large_sectors_are_told_and_kept() {
    let serving = Serving::storage(Arc::new(new_disk(4096)), |options| options);
    let error = Client::connect(serving.path(), "", true).unwrap_err().to_string();
    assert!(error.contains(&format!("{BLOCK_SIZE_REQD:#x}")), "{error}");
    assert!(error.contains("4096"), "{error}");
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    // An empty name, and one kind of information: sizes.
    wire.send_option(option::GO, &[0, 0, 0, 0, 0, 1, 0, 3]).unwrap();
    let mut sizes = None;
    loop {
        let (_, kind, data) = wire.receive_answer().unwrap();
        match (kind, data.get(..2)) {
            (answer::ACK, _) => break,
            (answer::INFO, Some([0, 3])) => sizes = Some(data[2..].to_vec()),
            _ => {}
        }
    }
    let sizes: Vec<u32> =
        sizes.unwrap().chunks(4).map(|size| u32::from_be_bytes(size.try_into().unwrap())).collect();
    assert_eq!(sizes, [4096, 4096, 32 << 20]);
    for (length, error) in [(512, EINVAL), (4096, 0)] {
        wire.send_request(7, length, &Request::write(4096, vec![1; length as usize])).unwrap();
        let reply = wire.receive(16).unwrap();
        assert_eq!(reply[4..8], error.to_be_bytes(), "{length}");
    }
}

/// The old way to choose an export has no way to tell of sizes.
#[test]
fn large_sectors_are_not_given_to_those_who_cannot_hear_of_them() {
    let serving = Serving::storage(Arc::new(new_disk(4096)), |options| options);
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    wire.send_option(1, &[]).unwrap();
    require_cut_off(wire.stream());
    let serving = Serving::memory();
    let mut wire = Wire::connect(serving.path()).unwrap();
    wire.greet(3).unwrap();
    wire.send_option(1, &[]).unwrap();
    assert_eq!(wire.receive(10).unwrap()[..8], DISK.to_be_bytes());
}

/// Those who only connect need no right to it: they must not keep those away who may.
#[test]
fn silent_clients_give_way_to_those_who_speak() {
    let serving = Serving::storage(Arc::new(new_disk(512)), |options| options.most_clients(4));
    let silent: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(serving.path()).unwrap()).collect();
    let mut clients: Vec<Client> = (0..4).map(|_| serving.client()).collect();
    for client in &mut clients {
        assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    }
    drop(silent);
}

/// Whoever looks whether a server is there has not been its client.
#[test]
fn a_server_for_one_client_outlives_a_probe() {
    let serving = Serving::storage(Arc::new(new_disk(512)), |options| options.once(true));
    for _ in 0..5 {
        drop(UnixStream::connect(serving.path()).unwrap());
        let mut wire = Wire::connect(serving.path()).unwrap();
        wire.greet(3).unwrap();
        wire.send_option(2, &[]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let client = serving.client();
    assert!(!serving.has_ended());
    drop(client);
    let begun = Instant::now();
    while !serving.has_ended() {
        assert!(begun.elapsed() < Duration::from_secs(10), "its only client has gone");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Its last requests come back when it has gone: whoever waits for them must hear of each, or would wait
/// for ever.
#[test]
fn a_client_that_goes_in_the_midst_of_something_is_forgotten() {
    let serving = Serving::memory();
    for round in 0..300u64 {
        let mut client = serving.client();
        for number in 0..4 {
            client.send(&Request::write(number << 20, vec![round as u8; 512])).unwrap();
            client.send(&Request::flush()).unwrap();
            client.send(&Request::new(command::TRIM, number << 20, 1 << 20)).unwrap();
        }
        std::thread::sleep(Duration::from_micros(round * 7 % 400));
        match round % 3 {
            0 => drop(client),
            1 => client.disconnect().unwrap(),
            _ => client.wire().stream().shutdown(std::net::Shutdown::Write).unwrap(),
        }
    }
    let begun = Instant::now();
    serving.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_disk_that_is_read_only_says_so_and_keeps_to_it() {
    let image = vhdxkit::OpenOptions::new().open_storage(Arc::new(new_disk(512))).unwrap();
    let disk = vhdxkit_serve::Disk::new(image, Arc::new(|_: &str| {}));
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    use vhdxkit_serve::nbd::{Listener, Options, Server};
    let export = vhdxkit_serve::Export::whole(disk);
    let server = Server::new(Options::default().offer("", "", export)).unwrap();
    let (stopper, listener) = (server.stopper(), Listener::unix(&socket).unwrap());
    let thread = std::thread::spawn(move || server.run(vec![listener]));
    let mut client = Client::connect(&socket, "", true).unwrap();
    assert_eq!(client.flags() & 2, 2);
    for request in [
        Request::write(0, vec![0; 512]),
        Request::write(0, vec![0; 1 << 20]),
        Request::new(command::TRIM, 0, 512),
        Request::new(command::WRITE_ZEROES, 0, 512),
    ] {
        assert_eq!(client.call(&request).unwrap().error, EPERM);
    }
    assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
    drop(client);
    stopper.stop();
    thread.join().unwrap().unwrap();
}

/// Its replies fill its socket, and its own thread waits for it. All others are served as before.
#[test]
fn a_client_that_never_reads_stops_nobody_else() {
    let serving = Serving::memory();
    let mut deaf: Vec<Client> = (0..20).map(|_| serving.client()).collect();
    for client in &mut deaf {
        client.wire().stream().set_nonblocking(true).unwrap();
        // Reads, and what workers do, until not even more requests are taken.
        for number in 0..100_000 {
            let request = match number % 3 {
                0 => Request::new(command::READ, 0, 1 << 20),
                1 => Request::flush(),
                _ => Request::new(command::TRIM, 0, 4096),
            };
            if client.send(&request).is_err() {
                break;
            }
        }
    }
    let begun = Instant::now();
    for _ in 0..50 {
        require_served(&serving);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The server ends although they still do not read.
    drop(deaf);
    serving.stop();
}

#[test]
fn one_client_too_many_is_sent_away() {
    let serving = Serving::storage(Arc::new(new_disk(512)), |options| options.most_clients(3));
    let clients: Vec<Client> = (0..3).map(|_| serving.client()).collect();
    require_cut_off(UnixStream::connect(serving.path()).unwrap());
    drop(clients);
    // Their threads notice in a moment.
    let begun = Instant::now();
    while Client::connect(serving.path(), "", true).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(serving.told().iter().any(|line| line.contains("3 clients")), "{:?}", serving.told());
}

/// Who says a byte now and then would otherwise keep its place for ever.
#[test]
fn a_client_that_dawdles_over_its_handshake_is_cut_off() {
    let patience = Duration::from_millis(300);
    let serving =
        Serving::storage(Arc::new(new_disk(512)), |options| options.handshake_within(patience));
    let mut settled = serving.client();
    let mut slow = Wire::connect(serving.path()).unwrap();
    slow.greet(3).unwrap();
    let begun = Instant::now();
    while slow.send(&[0x49]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Whoever has chosen an export may be silent as long as it likes.
    assert_eq!(settled.call(&Request::flush()).unwrap().error, 0);
}
