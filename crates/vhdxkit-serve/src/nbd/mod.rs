//! An NBD server: exports over sockets, to QEMU, nbdkit and libguestfs tools, the kernel.
//!
//! ```no_run
//! use std::sync::Arc;
//! use vhdxkit_serve::{Disk, Export, nbd};
//!
//! let image = vhdxkit::OpenOptions::new().write(true).open("disk.vhdx")?;
//! let disk = Disk::new(image, Arc::new(|line: &str| eprintln!("{line}")));
//! let server = nbd::Server::new(nbd::Options::default().offer("", "", Export::whole(disk.clone())))?;
//! server.run(vec![nbd::Listener::unix("disk.sock".as_ref())?])?; // until Stopper::stop
//! disk.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is built
//! From the wire up: `protocol` has the numbers and messages, `wire` the sockets. `server` accepts clients,
//! `handshake` finds out which export of which `offer` they want and how they talk (`tls` among it),
//! `session` moves requests and replies, `requests` carries them out, with `tasks` on their way through
//! `workers` for what has to wait, `contexts` for what is asked about ranges, and `replies` to encode the answers.
//!
//! # What is promised to clients
//! * A reply to a write means that the next read, by anybody, finds it. A reply to a flush, on whichever
//!   connection, means that everything that had been replied to before is durable; so does one to a write
//!   with FUA for what it wrote.
//! * Requests that are no multiple of the disk's sectors are refused (reads excepted), as are those longer
//!   than 32 MiB; both are told beforehand.
//! * A client can stop itself, never another one.

mod contexts;
mod handshake;
mod listener;
mod offer;
mod protocol;
mod rehearsal;
mod replies;
mod requests;
mod server;
mod session;
mod tasks;
mod tls;
mod wire;
mod workers;

pub use listener::{Listener, encoded_name, encoded_path};
pub use server::{Options, Server, Stopper};
pub use tls::Tls;
