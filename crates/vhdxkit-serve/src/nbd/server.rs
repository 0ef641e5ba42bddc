//! The server: accepts clients, a thread for each, until it is stopped.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Export, Tell};

use super::handshake::shake_hands;
use super::listener::Listener;
use super::offer::{House, Offer};
use super::session::transmit;
use super::tls::Tls;
use super::wire::{Bell, Socket, Stream, wait_for};
use super::workers::Workers;

/// Clients that have not chosen their export yet.
const MOST_UNDECIDED: usize = 512;
/// When the server stops, clients have so long to take their last replies.
const LAST_REPLIES: Duration = Duration::from_secs(10);
/// Of a client's thread. All of its large memory is elsewhere.
const STACK: usize = 512 << 10;
/// Clients that were cut off are told of so often at most.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// What a [`Server`] serves, and how.
pub struct Options {
    exports: Vec<(String, String, Export)>,
    tls: Option<Tls>,
    insecure: bool,
    once: bool,
    most_clients: usize,
    handshake: Duration,
    tell: Arc<Tell>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exports: Vec::new(),
            tls: None,
            insecure: false,
            once: false,
            most_clients: 4096,
            handshake: Duration::from_secs(30),
            tell: Arc::new(|_: &str| {}),
        }
    }
}

impl Options {
    /// Offers an export under a name, with a description for people. One that is alone answers to the empty
    /// name as well.
    #[must_use]
    pub fn offer(
        mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        export: Export,
    ) -> Self {
        self.exports.push((name.into(), description.into(), export));
        self
    }

    /// Talks to clients through TLS only.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Listens on addresses that other machines can reach even without TLS: whoever can reach them can read,
    /// and write, all exports.
    #[must_use]
    pub fn insecure(mut self, yes: bool) -> Self {
        self.insecure = yes;
        self
    }

    /// Stops when the last client has gone.
    #[must_use]
    pub fn once(mut self, yes: bool) -> Self {
        self.once = yes;
        self
    }

    /// Serves so many clients at a time; 4096 without this.
    #[must_use]
    pub fn most_clients(mut self, number: usize) -> Self {
        self.most_clients = number;
        self
    }

    /// A client that has not chosen its export within this time is cut off; 30 seconds without this.
    #[must_use]
    pub fn handshake_within(mut self, time: Duration) -> Self {
        self.handshake = time;
        self
    }

    /// Tells of clients that were cut off, in words for whoever runs the server.
    #[must_use]
    pub fn tell(mut self, tell: Arc<Tell>) -> Self {
        self.tell = tell;
        self
    }
}

/// An NBD server.
pub struct Server {
    shared: Arc<Shared>,
}

/// Stops a server, from any thread. It keeps nothing of the server: not the images, nor their locks.
#[derive(Clone)]
pub struct Stopper(Arc<Stop>);

struct Stop {
    stopping: AtomicBool,
    /// To whoever accepts: the server is to stop, or a client has gone.
    bell: Bell,
}

impl Stopper {
    /// No more clients, no more requests: those under way are finished and answered, then
    /// [`Server::run`] returns.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        self.0.bell.ring();
    }
}

struct Shared {
    house: House,
    insecure: bool,
    once: bool,
    most_clients: usize,
    handshake: Duration,
    tell: Arc<Tell>,
    stop: Arc<Stop>,
    /// Somebody has chosen an export; not only asked what there is, or whether a server is there.
    had_clients: AtomicBool,
    clients: Mutex<Clients>,
    gone: Condvar,
    cut_off: Mutex<(Option<Instant>, u64)>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    all: HashMap<u64, Client>,
}

impl Clients {
    /// Makes room for one more. Those who have not chosen their export yet, whom anybody can be without any
    /// right to it, give way to newcomers, the oldest first; those who have stay.
    fn make_room(&mut self, most: usize) -> Result<(), String> {
        let undecided = self.all.values().filter(|client| client.deadline.is_some()).count();
        if self.all.len() < most && undecided < MOST_UNDECIDED {
            return Ok(());
        }
        let decided = self.all.len() - undecided;
        if decided >= most {
            return Err(format!("{most} clients are being served already"));
        }
        let oldest = self.all.iter().filter(|(_, client)| client.deadline.is_some());
        if let Some(number) = oldest.min_by_key(|(_, client)| client.deadline).map(|(n, _)| *n)
            && let Some(client) = self.all.remove(&number)
        {
            client.socket.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

/// A client as those see it who do not talk to it.
struct Client {
    socket: Socket,
    /// It has not chosen its export yet, and must have by then.
    deadline: Option<Instant>,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_cut_off(&self, why: &str) {
        let mut told = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.0.is_some_and(|last| now.duration_since(last) < TOLD_AGAIN) {
            told.1 += 1;
            return;
        }
        let more = match std::mem::replace(&mut *told, (Some(now), 0)).1 {
            0 => String::new(),
            more => format!(" ({more} others since the last one told of)"),
        };
        drop(told);
        (self.tell)(&format!("a client was cut off: {why}{more}"));
    }

    /// Serves one client, in its own thread.
    fn serve(&self, number: u64, socket: Socket) -> io::Result<()> {
        let mut wire = Stream::new(socket);
        let agreed = shake_hands(&mut wire, &self.house, &self.stop.stopping)?;
        let Some(agreed) = agreed else { return Ok(()) };
        if let Some(client) = self.clients().all.get_mut(&number) {
            client.deadline = None;
        }
        self.had_clients.store(true, Ordering::Relaxed);
        transmit(&mut wire, agreed, &self.stop.stopping)
    }
}

/// Strikes a client off the list, however its thread ends.
struct Leave {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.shared.clients().all.remove(&self.number);
        self.shared.gone.notify_all();
        self.shared.stop.bell.ring();
    }
}

impl Server {
    /// A server that serves nobody yet.
    ///
    /// # Errors
    /// Two exports have the same name, or none is offered; the system is out of descriptors.
    pub fn new(options: Options) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if options.exports.is_empty() {
            return Err(invalid("there is nothing to serve".to_owned()));
        }
        let mut offers: Vec<Arc<Offer>> = Vec::new();
        for (name, description, export) in options.exports {
            if name.len() > 4096 || description.len() > 4096 {
                return Err(invalid("an export's name or description is too long".to_owned()));
            }
            if offers.iter().any(|offer| offer.name == name) {
                return Err(invalid(format!("two exports have the name '{name}'")));
            }
            let (workers, abandoned) = (Workers::default(), AtomicBool::new(false));
            offers.push(Offer { name, description, export, workers, abandoned }.into());
        }
        let shared = Shared {
            house: House { offers, tls: options.tls.map(|tls| tls.0) },
            insecure: options.insecure,
            once: options.once,
            most_clients: options.most_clients,
            handshake: options.handshake,
            tell: options.tell,
            stop: Arc::new(Stop { stopping: AtomicBool::new(false), bell: Bell::new()? }),
            had_clients: AtomicBool::new(false),
            clients: Mutex::default(),
            gone: Condvar::new(),
            cut_off: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// All that serving one client takes.
    pub(super) fn stage(&self) -> (&House, &AtomicBool) {
        (&self.shared.house, &self.shared.stop.stopping)
    }

    /// What stops this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared.stop))
    }

    /// Serves clients until it is stopped; then finishes what is under way. Nothing is flushed on the way
    /// out: that is [`Disk::close`](crate::Disk::close).
    ///
    /// # Errors
    /// A listener can be reached from other machines, and neither TLS nor [`Options::insecure`] is there; the
    /// system does not let us accept.
    pub fn run(&self, listeners: Vec<Listener>) -> io::Result<()> {
        let protected = self.shared.house.tls.is_some() || self.shared.insecure;
        if let Some(open) = listeners.iter().find(|l| !protected && !l.is_local()) {
            let address = open.address().map_or_else(String::new, |a| a.to_string());
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("other machines can reach {address}, and there is no TLS to keep them out"),
            ));
        }
        raise_descriptor_limit();
        for listener in &listeners {
            listener.poll_only()?;
        }
        let accepted = self.accept(&listeners);
        // From here on nobody can come; who has come is let go.
        drop(listeners);
        self.shared.stop.stopping.store(true, Ordering::Relaxed);
        self.finish();
        accepted
    }

    fn accept(&self, listeners: &[Listener]) -> io::Result<()> {
        let shared = &self.shared;
        loop {
            if shared.stop.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            let (count, next_deadline) = self.cut_off_late_ones();
            if shared.once && count == 0 && shared.had_clients.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut fds: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
            fds.push(shared.stop.bell.as_fd());
            let ready = wait_for(&fds, next_deadline)?;
            if ready.last() == Some(&true) {
                shared.stop.bell.hear();
            }
            for (listener, _) in listeners.iter().zip(&ready).filter(|(_, ready)| **ready) {
                match listener.accept() {
                    Ok(socket) => self.welcome(socket),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        // It has gone again, or descriptors are out: others may still leave.
                        shared.tell_cut_off(&format!("it could not be accepted: {error}"));
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        }
    }

    /// Cuts off those who should have chosen an export by now. Tells how many clients there are, and the time
    /// until the next one is late.
    fn cut_off_late_ones(&self) -> (usize, Option<Duration>) {
        let clients = self.shared.clients();
        let now = Instant::now();
        let mut next = None;
        for client in clients.all.values() {
            match client.deadline {
                Some(deadline) if deadline <= now => client.socket.shutdown(Shutdown::Both),
                Some(deadline) => {
                    let left = deadline - now + Duration::from_millis(1);
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
                None => {}
            }
        }
        (clients.all.len(), next)
    }

    fn welcome(&self, socket: Socket) {
        let shared = Arc::clone(&self.shared);
        let mut clients = shared.clients();
        if let Err(why) = clients.make_room(shared.most_clients) {
            drop(clients);
            return shared.tell_cut_off(&why);
        }
        let number = clients.next;
        clients.next += 1;
        let known = match socket.try_clone() {
            Ok(known) => known,
            Err(error) => {
                drop(clients);
                return shared.tell_cut_off(&error.to_string());
            }
        };
        let deadline = Some(Instant::now() + shared.handshake);
        clients.all.insert(number, Client { socket: known, deadline });
        drop(clients);
        let leave = Leave { shared: Arc::clone(&shared), number };
        let thread = std::thread::Builder::new().name("client".into()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            let leave = leave;
            if let Err(error) = leave.shared.serve(number, socket)
                && !has_just_gone(&error)
            {
                leave.shared.tell_cut_off(&error.to_string());
            }
        });
        if let Err(error) = spawned {
            self.shared.tell_cut_off(&error.to_string());
        }
    }

    /// Lets the clients that are left take their last replies, and go.
    fn finish(&self) {
        let shared = &self.shared;
        for client in shared.clients().all.values() {
            // Its thread finds the end when it has done what it had read.
            client.socket.shutdown(Shutdown::Read);
        }
        if self.wait_for_all(LAST_REPLIES) {
            return;
        }
        for client in shared.clients().all.values() {
            client.socket.shutdown(Shutdown::Both);
        }
        for offer in &shared.house.offers {
            offer.abandoned.store(true, Ordering::Relaxed);
        }
        if !self.wait_for_all(LAST_REPLIES) {
            (shared.tell)("a device does not answer; what it was asked for last is left undone");
        }
    }

    fn wait_for_all(&self, at_most: Duration) -> bool {
        let clients = self.shared.clients();
        let waited = self.shared.gone.wait_timeout_while(clients, at_most, |c| !c.all.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// Whether that is how clients usually leave.
fn has_just_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// A client takes up to three descriptors, and systems allow 1024 of them until they are asked for more.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Without it there are fewer clients, and that is told when it happens.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
