//! Where the server listens: a socket it was handed, a Unix socket, a TCP port.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use vhdxkit_serve::nbd::{Listener, encoded_name, encoded_path};

use crate::args::PlaceArgs;

/// The port that belongs to NBD.
const PORT: u16 = 10809;

/// Listeners, and what to tell of them.
pub(super) struct Place {
    listeners: Vec<Listener>,
    address: Address,
}

/// How clients find the server.
pub(super) struct Address {
    /// The Unix socket's path.
    pub(super) socket: Option<PathBuf>,
    /// The TCP port.
    pub(super) port: Option<u16>,
    /// The address with the export's name left open.
    before: String,
    after: String,
    /// With TLS, the folder that clients find their certificates in, as far as we know.
    pub(super) certificates: Option<PathBuf>,
    /// Whether they are there.
    pub(super) has_client_certificate: bool,
    /// The TCP address.
    tcp: Option<SocketAddr>,
    /// The folder that the socket lies in, if it is ours.
    _folder: Option<tempfile::TempDir>,
}

impl Address {
    /// The URI of an export; `None` for a socket that has no name.
    pub(super) fn uri(&self, export: &str) -> Option<String> {
        (!self.before.is_empty())
            .then(|| format!("{}{}{}", self.before, encoded_name(export), self.after))
    }

    /// The same with what a client needs besides: with TLS, where its certificates lie.
    pub(super) fn uri_for_clients(&self, export: &str) -> Option<String> {
        let uri = self.uri(export)?;
        Some(match &self.certificates {
            None => uri,
            Some(folder) => {
                let joined = if self.after.is_empty() { '?' } else { '&' };
                format!("{uri}{joined}tls-certificates={}", encoded_path(folder))
            }
        })
    }

    /// The TCP address without its port.
    pub(super) fn host(&self) -> String {
        self.tcp.map_or_else(String::new, |address| address.ip().to_string())
    }

    /// The address in QEMU's words.
    pub(super) fn qemu_server(&self) -> String {
        match (&self.socket, self.tcp) {
            (Some(path), _) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("server.type=unix,server.path={}", path.display())
            }
            (None, Some(address)) => {
                let (host, port) = (address.ip(), address.port());
                format!("server.type=inet,server.host={host},server.port={port}")
            }
            (None, None) => String::new(),
        }
    }
}

impl Place {
    /// Begins to listen.
    pub(super) fn take(args: &PlaceArgs) -> anyhow::Result<Self> {
        let tls = args.tls_certificates.as_deref();
        let inherited = inherited()?;
        if !inherited.is_empty() {
            if args.unix.is_some() || args.tcp.is_some() {
                bail!("the sockets were handed over (LISTEN_FDS): leave --unix and --tcp away");
            }
            return Self::of(inherited, None, None, tls);
        }
        match (&args.unix, &args.tcp) {
            (_, Some(address)) => {
                let protected = tls.is_some() || args.insecure;
                Self::of(listen_on(address, protected)?, None, None, tls)
            }
            (Some(path), None) => {
                let listener = Listener::unix(path).map_err(|error| {
                    let taken = error.kind() == std::io::ErrorKind::AddrInUse;
                    anyhow::Error::from(error).context(match taken {
                        true => "cannot listen on the socket: choose another path with --unix, or end the server that has it",
                        false => "cannot make the socket (its path has 107 bytes at most, in a folder that exists)",
                    })
                })?;
                Self::of(vec![listener], Some(path.clone()), None, tls)
            }
            (None, None) => {
                let folder = tempfile::Builder::new().prefix("vhdx-").tempdir()?;
                let path = folder.path().join("nbd.sock");
                let listener = Listener::unix(&path).context("cannot listen")?;
                Self::of(vec![listener], Some(path), Some(folder), tls)
            }
        }
    }

    fn of(
        listeners: Vec<Listener>,
        socket: Option<PathBuf>,
        folder: Option<tempfile::TempDir>,
        tls: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let tcp = listeners.iter().find_map(Listener::address);
        let parts = listeners.iter().find_map(|listener| listener.uri_parts(tls.is_some()));
        let (before, after) = parts.unwrap_or_default();
        let clients = |folder: &Path| {
            ["client-cert.pem", "client-key.pem"].iter().all(|name| folder.join(name).exists())
        };
        let has_client_certificate = tls.is_some_and(clients);
        let certificates = tls.map(|folder| match has_client_certificate {
            true => std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf()),
            false => PathBuf::from("DIR"),
        });
        let address = Address {
            socket,
            port: tcp.map(|address| address.port()),
            before,
            after,
            certificates,
            has_client_certificate,
            tcp,
            _folder: folder,
        };
        Ok(Self { listeners, address })
    }

    pub(super) fn split(self) -> (Vec<Listener>, Address) {
        (self.listeners, self.address)
    }
}

/// Sockets that a service manager has opened for us.
fn inherited() -> anyhow::Result<Vec<Listener>> {
    let mut handed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for at in 0..handed.len() {
        if let Ok(Some(socket)) = handed.take_unix_listener(at) {
            listeners.push(Listener::from_unix(socket));
        } else if let Ok(Some(socket)) = handed.take_tcp_listener(at) {
            listeners.push(Listener::from_tcp(socket));
        } else {
            bail!("descriptor {} was handed over and is no listening socket", 3 + at);
        }
    }
    Ok(listeners)
}

/// Listens on all addresses that a text names.
fn listen_on(text: &str, protected: bool) -> anyhow::Result<Vec<Listener>> {
    let addresses = resolve(text).with_context(|| format!("'{text}' is no address and port"))?;
    if let Some(open) = addresses.iter().find(|a| !protected && !a.ip().is_loopback()) {
        bail!(
            "other machines can reach {open}: give --tls-certificates DIR, so that only clients with a certificate get in, or --insecure to let everybody read and write"
        );
    }
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = Listener::tcp(address)
            .context("cannot listen: choose another port with --tcp ADDRESS:PORT, or end the server that has it")?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// `ADDRESS:PORT`, `ADDRESS`, `:PORT` or `PORT`.
fn resolve(text: &str) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, PORT)]);
    }
    match text.contains(':') {
        true => Ok(text.to_socket_addrs()?.collect()),
        false => Ok((text, PORT).to_socket_addrs()?.collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_an_address_is_local() {
        for (text, address) in [
            ("10810", "127.0.0.1:10810"),
            (":10810", "127.0.0.1:10810"),
            ("127.0.0.2", "127.0.0.2:10809"),
            ("[::1]:5", "[::1]:5"),
            ("::1", "[::1]:10809"),
            ("127.0.0.1:0", "127.0.0.1:0"),
        ] {
            assert_eq!(resolve(text).unwrap(), [address.parse().unwrap()], "{text}");
        }
        assert!(resolve("127.0.0.1:x").is_err());
    }

    #[test]
    fn nobody_listens_to_the_world_by_accident() {
        let error = listen_on("0.0.0.0:0", false).unwrap_err().to_string();
        assert!(error.contains("--tls-certificates") && error.contains("--insecure"), "{error}");
        listen_on("0.0.0.0:0", true).unwrap();
        listen_on("127.0.0.1:0", false).unwrap();
    }
}
