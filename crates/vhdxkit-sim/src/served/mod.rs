//! Killing a real server under clients that remember what was acknowledged.
//!
//! The server ([`server`]) is a process of its own: `vhdxkit_serve::nbd` on a file that tells what is being
//! done to it. Its clients (`client`) are threads of this process, on several connections with several
//! requests under way on each: writes, rewrites of the same place, zeros, trims, with and without FUA, and
//! flushes, which cover what other connections wrote. They keep one `ledger` of what was sent and what was
//! answered. After each kill ([`run`]) it says what each sector may hold, and the image is judged by that.

mod client;
mod ledger;
mod run;
#[cfg(all(target_os = "linux", feature = "serve"))]
pub mod server;

pub use run::{Plan, Report, run};

/// Connections.
const CLIENTS: u64 = 3;
