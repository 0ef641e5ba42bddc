//! What a server offers: exports by name, and on which terms.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustls::ServerConfig;

use crate::Export;

use super::protocol::{Headers, transmission_flag as flag};
use super::workers::Workers;

/// An export under its name.
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) export: Export,
    /// Those who wait for its devices. Each export has its own: a disk that hangs must not stop another.
    pub(super) workers: Workers,
    /// The server cannot wait any longer for what is under way.
    pub(super) abandoned: AtomicBool,
}

impl Offer {
    pub(super) fn flags(&self, headers: Headers) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            // One image, one flush: what any connection has written is in it.
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE;
        if headers >= Headers::Structured {
            flags |= flag::SEND_DF;
        }
        if headers >= Headers::Extended {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
            | match self.export.is_writable() {
                true => {
                    flag::SEND_FUA
                        | flag::SEND_TRIM
                        | flag::SEND_WRITE_ZEROES
                        | flag::SEND_FAST_ZERO
                }
                false => flag::READ_ONLY,
            }
    }
}

/// Everything that a server offers.
pub(super) struct House {
    pub(super) offers: Vec<Arc<Offer>>,
    /// With it, nothing is told to a client that has not started TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl House {
    /// The export that a client means. One that is alone needs no name.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Offer>> {
        let named = self.offers.iter().find(|offer| offer.name == name);
        match (named, &*self.offers) {
            (None, [only]) if name.is_empty() => Some(only),
            (named, _) => named,
        }
    }

    /// The names, for whoever asked for another; some of them when they are many.
    pub(super) fn names(&self) -> String {
        let few = self.offers.iter().take(8).filter(|offer| offer.name.len() <= 100);
        let names: Vec<String> = few.map(|o| format!("'{}'", o.name)).collect();
        let more = if names.len() < self.offers.len() { " and others" } else { "" };
        names.join(", ") + more
    }
}
