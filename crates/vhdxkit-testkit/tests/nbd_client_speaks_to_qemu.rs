//! The client that our tests of servers rely on must itself keep to the protocol: a server that nobody
//! here has written understands it.
#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vhdxkit_testkit::nbd::{Client, Request, command, flag};

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path) -> Option<Ended> {
    let disk = folder.join("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let server = Command::new("qemu-nbd")
        .args(["-f", "raw", "-t", "--discard=unmap", "-e", "4", "-k"])
        .args([folder.join("socket"), disk])
        .stderr(Stdio::inherit())
        .spawn();
    server.ok().map(Ended)
}

fn connect(folder: &Path, structured: bool) -> Client {
    for _ in 0..500 {
        if let Ok(client) = Client::connect(&folder.join("socket"), "", structured) {
            return client;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("qemu-nbd does not listen");
}

#[test]
fn qemu_understands_the_client() {
    let folder = std::env::temp_dir().join(format!("vhdxkit-nbd-client-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let Some(_server) = serve(&folder) else {
        println!("skipped: qemu-nbd is not installed");
        return;
    };
    for structured in [false, true] {
        let mut client = connect(&folder, structured);
        assert_eq!((client.size(), client.structured()), (1 << 20, structured));
        let mut sent = Vec::new();
        for number in 0..8u8 {
            let write = Request::write(u64::from(number) * 4096, vec![number + 1; 4096]);
            sent.push(client.send(&write.with(flag::FUA)).unwrap());
        }
        for _ in 0..8 {
            let reply = client.receive().unwrap();
            assert_eq!(reply.error, 0);
            sent.retain(|cookie| *cookie != reply.cookie);
        }
        assert!(sent.is_empty() && client.waiting() == 0);
        assert_eq!(client.call(&Request::new(command::WRITE_ZEROES, 4096, 4096)).unwrap().error, 0);
        assert_eq!(client.call(&Request::new(command::TRIM, 65536, 4096)).unwrap().error, 0);
        assert_eq!(client.call(&Request::flush()).unwrap().error, 0);
        let read = client.call(&Request::new(command::READ, 2048, 8192)).unwrap();
        let expected = [[1; 2048].as_slice(), &[0; 4096], &[3; 2048]].concat();
        assert!(read.data == expected && read.error == 0);
        let beyond = client.call(&Request::new(command::READ, 1 << 20, 512)).unwrap();
        assert_ne!(beyond.error, 0);
        client.disconnect().unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
