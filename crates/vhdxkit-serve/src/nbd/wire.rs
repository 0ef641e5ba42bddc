//! What a session talks through: a socket, with or without TLS; in tests anything.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustls::{ServerConfig, ServerConnection};

/// A two-way stream of bytes to a client.
pub(super) trait Wire {
    /// Reads what is there, at least one byte; 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Sends all of it.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits until there is something to read, or the bell has rung.
    fn wait(&mut self, bell: &Bell) -> io::Result<Ready>;

    /// Whether the client has gone for good, as far as can be told: it neither sends nor takes any more.
    fn has_gone(&self) -> bool;

    /// Goes on encrypted, by the client's handshake.
    fn start_tls(&mut self, config: &Arc<ServerConfig>) -> io::Result<()>;
}

/// What has been waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    /// Reading would not wait.
    pub(super) readable: bool,
    /// The bell has rung.
    pub(super) rung: bool,
}

/// Rings in one thread what is waited for in another.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        // It fails only when it has been rung 2^64 times without being heard.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it silent, until it is rung again.
    pub(super) fn hear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of them can be read, or is at its end; at most for some time, if one is given.
pub(super) fn wait_for(fds: &[BorrowedFd<'_>], at_most: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    // A time that is too long to be told is no limit.
    let limit = at_most.and_then(|time| Timespec::try_from(time).ok());
    match poll(&mut polled, limit.as_ref()) {
        // Whoever waits looks again.
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // Errors and hang-ups are found out by whoever reads.
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// A socket of either kind.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
        })
    }

    pub(super) fn shutdown(&self, how: Shutdown) {
        // A socket whose other end has gone cannot be shut down, nor need it be.
        let _ = match self {
            Self::Unix(socket) => socket.shutdown(how),
            Self::Tcp(socket) => socket.shutdown(how),
        };
    }

    /// Sending gives up after this time.
    fn send_at_most_for(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.set_write_timeout(Some(time)),
            Self::Tcp(socket) => socket.set_write_timeout(Some(time)),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(buf),
            Self::Tcp(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.write(buf),
            Self::Tcp(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's socket, encrypted once it has asked for that.
pub(super) struct Stream {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

impl Stream {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, tls: None }
    }
}

impl Wire for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.tls {
                Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).read(buf),
                None => self.socket.read(buf),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => {
                let mut stream = rustls::Stream::new(&mut **tls, &mut self.socket);
                stream.write_all(bytes)?;
                stream.flush()
            }
            None => self.socket.write_all(bytes),
        }
    }

    fn wait(&mut self, bell: &Bell) -> io::Result<Ready> {
        let Some(tls) = &mut self.tls else {
            let ready = wait_for(&[self.socket.as_fd(), bell.as_fd()], None)?;
            return Ok(Ready { readable: ready[0], rung: ready[1] });
        };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        if state.plaintext_bytes_to_read() > 0 {
            return Ok(Ready { readable: true, rung: false });
        }
        let ready = wait_for(&[self.socket.as_fd(), bell.as_fd()], None)?;
        // What has come may be a part of a record only: to read would be to wait for the rest of it.
        let readable = ready[0] && {
            let ended = tls.read_tls(&mut self.socket)? == 0;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            ended || state.plaintext_bytes_to_read() > 0 || state.peer_has_closed()
        };
        Ok(Ready { readable, rung: ready[1] })
    }

    fn has_gone(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)).is_ok_and(|count| count > 0)
    }

    fn start_tls(&mut self, config: &Arc<ServerConfig>) -> io::Result<()> {
        let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            // Whatever it was, the client may be told about it by an alert on the way out.
            if let Err(error) = tls.complete_io(&mut self.socket) {
                let _ = tls.write_tls(&mut self.socket);
                return Err(error);
            }
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            // So that the client can tell the end from a cut wire.
            tls.send_close_notify();
            if self.socket.send_at_most_for(Duration::from_secs(1)).is_ok() {
                let _ = tls.write_tls(&mut self.socket);
            }
        }
    }
}
