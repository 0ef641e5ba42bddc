//! Where a server can be reached.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::wire::Socket;

/// A socket on which clients are accepted.
#[derive(Debug)]
pub struct Listener {
    socket: Listening,
    /// The socket's file, which goes with it.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket's file that we have made, by its number: a later one of that name is not ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    number: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |meta: fs::Metadata| (meta.dev(), meta.ino()) == self.number;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Whatever keeps it there, it is of no use to anybody.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// A Unix socket at a path, which goes when this is dropped. One that a killed server has left there is
    /// replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when a server listens there; the path is something else than a socket;
    /// it cannot be made.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let in_use = |what| {
            let text = format!("{}: {what}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        };
        // Two servers that find the same socket left behind must not each remove the other's new one.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::File::open(folder.unwrap_or(Path::new(".")))?;
        rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)?;
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return in_use("there is a file already"),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return in_use("another server listens there"),
                // Nobody does: it was left behind.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Err(_) => return in_use("a socket is there, and cannot be connected to"),
            },
            Err(_) => {}
        }
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let socket = UnixListener::bind(path).map_err(told)?;
        let meta = fs::symlink_metadata(path).map_err(told)?;
        let number = (meta.dev(), meta.ino());
        // A server in the background may leave this directory.
        let file = Some(SocketFile { path: std::path::absolute(path)?, number });
        Ok(Self { socket: Listening::Unix(socket), _file: file })
    }

    /// A TCP socket at an address; with port 0 the system chooses one.
    ///
    /// # Errors
    /// What the system reports: [`io::ErrorKind::AddrInUse`] when the port is taken.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{address}: {e}"));
        TcpListener::bind(address).map(Self::from_tcp).map_err(told)
    }

    /// A Unix socket that somebody has opened for us.
    #[must_use]
    pub fn from_unix(socket: UnixListener) -> Self {
        Self { socket: Listening::Unix(socket), _file: None }
    }

    /// A TCP socket that somebody has opened for us.
    #[must_use]
    pub fn from_tcp(socket: TcpListener) -> Self {
        Self { socket: Listening::Tcp(socket), _file: None }
    }

    /// Its TCP address, if it has one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Listening::Unix(_) => None,
            Listening::Tcp(socket) => socket.local_addr().ok(),
        }
    }

    /// The URI by which clients name an export on it, in two parts: [`encoded_name`] of the export goes
    /// between them. None for a socket without a name.
    #[must_use]
    pub fn uri_parts(&self, tls: bool) -> Option<(String, String)> {
        let scheme = if tls { "nbds" } else { "nbd" };
        match &self.socket {
            Listening::Tcp(socket) => {
                Some((format!("{scheme}://{}/", socket.local_addr().ok()?), String::new()))
            }
            Listening::Unix(socket) => {
                let address = socket.local_addr().ok()?;
                let path = std::path::absolute(address.as_pathname()?).ok()?;
                let path = encoded(path.to_str()?, true);
                Some((format!("{scheme}+unix:///"), format!("?socket={path}")))
            }
        }
    }

    /// Whether only this machine can reach it.
    pub(super) fn is_local(&self) -> bool {
        self.address().is_none_or(|address| address.ip().is_loopback())
    }

    /// Accepting does not wait any more.
    pub(super) fn poll_only(&self) -> io::Result<()> {
        match &self.socket {
            Listening::Unix(socket) => socket.set_nonblocking(true),
            Listening::Tcp(socket) => socket.set_nonblocking(true),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Socket> {
        match &self.socket {
            Listening::Unix(socket) => {
                let (client, _) = socket.accept()?;
                client.set_nonblocking(false)?;
                Ok(Socket::Unix(client))
            }
            Listening::Tcp(socket) => {
                let (client, _) = socket.accept()?;
                client.set_nonblocking(false)?;
                // A reply is sent as a whole: nothing is gained by waiting for more of it.
                client.set_nodelay(true)?;
                // A client whose machine has died says nothing any more.
                rustix::net::sockopt::set_socket_keepalive(&client, true)?;
                Ok(Socket::Tcp(client))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listening::Unix(socket) => socket.as_fd(),
            Listening::Tcp(socket) => socket.as_fd(),
        }
    }
}

/// An export's name as a part of a URI.
#[must_use]
pub fn encoded_name(export: &str) -> String {
    encoded(export, false)
}

/// A path as a part of a URI.
#[must_use]
pub fn encoded_path(path: &Path) -> String {
    encoded(&path.to_string_lossy(), true)
}

/// A text as a part of a URI; a path keeps its slashes.
fn encoded(text: &str, path: bool) -> String {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (path && byte == b'/')
    };
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::unix(&path).unwrap();
        let error = Listener::unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another server"), "{error}");
        let (before, after) = listener.uri_parts(false).unwrap();
        assert_eq!((&*before, &*encoded_name("a/ä")), ("nbd+unix:///", "a%2F%C3%A4"));
        assert!(after.starts_with("?socket=/") && after.ends_with("/a%20b.sock"), "{after}");
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert!(Listener::unix(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.address().unwrap();
        let error = Listener::tcp(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
