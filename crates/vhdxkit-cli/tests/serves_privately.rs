//! With TLS nobody learns anything without a certificate by the right authority.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;

use common::server::{Server, assert_clean, assert_same, guest_bytes, noise, sample_image};
use common::{Workdir, peer};

/// Not to be heard by anybody who may not.
const SECRET: &str = "payroll";

/// A folder of certificates: an authority, and those that it has given to a server and to a client.
struct Authority {
    folder: String,
}

impl Authority {
    /// `None`, visibly, without OpenSSL.
    fn new(dir: &Workdir, name: &str) -> Option<Self> {
        let folder = dir.path(name);
        std::fs::create_dir(&folder).unwrap();
        let authority = Self { folder };
        authority.certify("ca", &["-addext", "keyUsage=critical,keyCertSign"])?;
        let ca = [authority.file("ca-cert.pem"), authority.file("ca-key.pem")];
        let by = ["-CA", &ca[0], "-CAkey", &ca[1], "-addext", "basicConstraints=CA:FALSE"];
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        let [server, client] =
            ["serverAuth", "clientAuth"].map(|use_| format!("extendedKeyUsage={use_}"));
        authority
            .certify("server", &[&by[..], &["-addext", names, "-addext", &server]].concat())?;
        authority.certify("client", &[&by[..], &["-addext", &client]].concat())?;
        Some(authority)
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn certify(&self, name: &str, more: &[&str]) -> Option<()> {
        let (key, cert) =
            (self.file(&format!("{name}-key.pem")), self.file(&format!("{name}-cert.pem")));
        let subject = format!("/CN={name}");
        let basic = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let rest = ["-nodes", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &cert];
        peer("openssl", &[&basic[..], &rest, more].concat())?.succeeds();
        Some(())
    }

    /// A client's folder with these of the files.
    fn folder_with(&self, dir: &Workdir, name: &str, files: &[&str]) -> String {
        let folder = dir.path(name);
        std::fs::create_dir(&folder).unwrap();
        for file in files {
            std::fs::copy(self.file(file), Path::new(&folder).join(file)).unwrap();
        }
        folder
    }
}

/// The server's URI with certificates to use for it.
fn uri(server: &Server, folder: &str) -> String {
    let uri = server.uri().replace("127.0.0.1", "localhost");
    assert!(uri.starts_with("nbds://localhost:"), "{uri}");
    format!("{uri}?tls-certificates={folder}")
}

#[test]
fn copies_go_through_tls_both_ways() {
    let dir = Workdir::new();
    let (image, raw, bytes) = sample_image(&dir, "512");
    let Some(authority) = Authority::new(&dir, "pki") else { return };
    let certificates = ["--tls-certificates", &*authority.folder];
    let server = Server::start(&[&[&*image, "--tcp", "127.0.0.1:0"], &certificates[..]].concat());
    let (uri, out) = (uri(&server, &authority.folder), dir.path("out.raw"));
    let Some(info) = peer("nbdinfo", &["--json", &uri]) else { return };
    assert_eq!(common::json(&info.succeeds())["TLS"], true);
    peer("nbdcopy", &[&uri, &out]).unwrap().succeeds();
    assert_same(&std::fs::read(&out).unwrap(), &bytes, "through TLS");
    let new = noise(5, bytes.len());
    std::fs::write(&raw, &new).unwrap();
    peer("nbdcopy", &["--flush", "--connections", "4", &raw, &uri]).unwrap().succeeds();
    server.stop();
    assert_clean(&image);
    assert_same(&guest_bytes(&dir, &image), &new, "written through TLS");
}

#[test]
fn qemu_talks_tls_too() {
    let dir = Workdir::new();
    let (image, raw, _) = sample_image(&dir, "512");
    let Some(authority) = Authority::new(&dir, "pki") else { return };
    let certificates = ["--tls-certificates", &*authority.folder];
    let server = Server::start(&[&[&*image, "--tcp", "127.0.0.1:0"], &certificates[..]].concat());
    let port = server.uri().trim_end_matches('/').rsplit_once(':').unwrap().1;
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", authority.folder);
    let there = format!("driver=nbd,host=localhost,port={port},tls-creds=t");
    let here = format!("driver=raw,file.filename={raw}");
    let compare = ["compare", "--object", &credentials, "--image-opts", &here, &there];
    let Some(compared) = peer("qemu-img", &compare) else { return };
    compared.succeeds();
    server.stop();
}

/// A certificate by another authority, none at all, no TLS at all: nothing is told, the export's name
/// neither, and those who may go on as before.
#[test]
fn strangers_learn_nothing() {
    let dir = Workdir::new();
    let image = dir.path(&format!("{SECRET}.vhdx"));
    std::fs::copy(common::testdata("clean.vhdx"), &image).unwrap();
    let (Some(authority), Some(other)) =
        (Authority::new(&dir, "pki"), Authority::new(&dir, "other"))
    else {
        return;
    };
    let mut server = Server::start(&[
        &image,
        "--tcp",
        "127.0.0.1:0",
        "-x",
        SECRET,
        "--tls-certificates",
        &authority.folder,
    ]);
    let good = uri(&server, &authority.folder);
    let Some(known) = peer("nbdinfo", &["--list", &good]) else { return };
    assert!(known.succeeds().contains(SECRET));

    let without = authority.folder_with(&dir, "without", &["ca-cert.pem"]);
    // It trusts our server, and has a certificate of its own that we have not given.
    let foreign = other.folder_with(&dir, "foreign", &["client-cert.pem", "client-key.pem"]);
    std::fs::copy(authority.file("ca-cert.pem"), Path::new(&foreign).join("ca-cert.pem")).unwrap();
    // It has our certificate, and takes us for somebody else.
    let misled = authority.folder_with(&dir, "misled", &["client-cert.pem", "client-key.pem"]);
    std::fs::copy(other.file("ca-cert.pem"), Path::new(&misled).join("ca-cert.pem")).unwrap();
    // A server's certificate is none for clients.
    let server_as_client = authority.folder_with(&dir, "swapped", &["ca-cert.pem"]);
    for (from, to) in [("server-cert.pem", "client-cert.pem"), ("server-key.pem", "client-key.pem")]
    {
        std::fs::copy(authority.file(from), Path::new(&server_as_client).join(to)).unwrap();
    }
    for folder in [&without, &foreign, &misled, &server_as_client] {
        for how in ["--list", "--size"] {
            // Without the export's name, which the program would repeat.
            let unnamed = uri(&server, folder).replace(SECRET, "");
            let text = peer("nbdinfo", &[how, &unnamed]).unwrap().fails();
            assert!(!text.contains(SECRET) && !text.contains("9438720"), "{folder}: {text}");
        }
    }
    let plain = server.uri().replace("nbds:", "nbd:").replace(SECRET, "");
    for how in ["--list", "--size"] {
        let text = peer("nbdinfo", &[how, &plain]).unwrap().fails();
        assert!(!text.contains(SECRET) && !text.contains("9438720"), "{text}");
    }
    if let Some(told) = peer("qemu-img", &["info", &plain]) {
        let text = told.fails();
        assert!(text.contains("TLS") && !text.contains(SECRET), "{text}");
    }
    peer("nbdinfo", &["--size", &good]).unwrap().succeeds();
    assert!(server.is_running(), "{}", server.errors());
    assert!(server.errors().contains("a client was cut off"), "{}", server.errors());
    server.stop();
}

#[test]
fn certificates_that_cannot_be_used_are_told() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let serve = |folder: &str| {
        let options = ["serve", &image, "--tcp", "127.0.0.1:0", "--tls-certificates", folder];
        peer(env!("CARGO_BIN_EXE_vhdx"), &options).unwrap().fails()
    };
    let text = serve(&dir.path("nowhere"));
    assert!(text.contains("nowhere") && text.contains("No such file"), "{text}");
    let Some(authority) = Authority::new(&dir, "pki") else { return };
    // A key that belongs to another certificate.
    std::fs::copy(authority.file("client-key.pem"), authority.file("server-key.pem")).unwrap();
    let text = serve(&authority.folder);
    assert!(text.contains("server-") || text.contains("key"), "{text}");
    std::fs::write(authority.file("server-key.pem"), "nothing\n").unwrap();
    let text = serve(&authority.folder);
    assert!(text.contains("server-key.pem"), "{text}");
}

/// With certificates other machines may come: it is what they are for.
#[test]
fn other_machines_may_come_with_certificates_only() {
    let dir = Workdir::new();
    let image = dir.copy("clean.vhdx");
    let Some(authority) = Authority::new(&dir, "pki") else { return };
    let listen = [&*image, "--tcp", "0.0.0.0:0"];
    let refused = peer(env!("CARGO_BIN_EXE_vhdx"), &[&["serve"], &listen[..]].concat());
    assert!(refused.unwrap().fails().contains("other machines can reach"));
    let server = Server::start(&[&listen[..], &["--tls-certificates", &authority.folder]].concat());
    assert!(server.uri().starts_with("nbds://"), "{}", server.uri());
    server.stop();
}

/// Clients that stop in the midst of TLS: with half of a record of the handshake, and with half of one behind
/// it. Everybody else is served, and the server ends when it is told to.
#[test]
fn whoever_dawdles_over_tls_holds_nobody_up() {
    use std::io::{Read as _, Write as _};
    let dir = Workdir::new();
    let (image, _, bytes) = sample_image(&dir, "512");
    let Some(authority) = Authority::new(&dir, "pki") else { return };
    let certificates = ["--tls-certificates", &*authority.folder];
    let mut server =
        Server::start(&[&[&*image, "--tcp", "127.0.0.1:0"], &certificates[..]].concat());
    let address = server.uri().trim_start_matches("nbds://").trim_end_matches('/').to_owned();
    let stalled: Vec<std::net::TcpStream> = (0..20)
        .map(|number| {
            let mut client = std::net::TcpStream::connect(&address).unwrap();
            client.read_exact(&mut [0; 18]).unwrap();
            // Flags, and the option STARTTLS.
            client.write_all(&[0, 0, 0, 3]).unwrap();
            client.write_all(b"IHAVEOPT\0\0\0\x05\0\0\0\0").unwrap();
            let mut answer = [0; 20];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer[12..16], [0, 0, 0, 1], "TLS may begin");
            // A record of 512 bytes is announced; some of it comes.
            let hello = [&[0x16, 3, 1, 2, 0][..], &vec![1; number * 10]].concat();
            client.write_all(&hello).unwrap();
            client
        })
        .collect();
    let out = dir.path("out.raw");
    let begun = std::time::Instant::now();
    let Some(copied) = peer("nbdcopy", &[&uri(&server, &authority.folder), &out]) else { return };
    copied.succeeds();
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_same(&std::fs::read(&out).unwrap(), &bytes, "beside clients that dawdle");
    // They are still there, and hold the end up no more than the rest.
    let begun = std::time::Instant::now();
    server.signal("TERM");
    assert_eq!(server.ends(), 0, "{}", server.errors());
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(stalled);
    assert_clean(&image);
}
