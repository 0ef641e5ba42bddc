//! Telling whoever runs a server what goes wrong, without drowning them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhdxkit::{Error, ErrorKind};

/// Where the words go; one call for each line.
pub type Tell = dyn Fn(&str) + Send + Sync;

/// The same trouble is told again after this time at the earliest.
const AGAIN: Duration = Duration::from_secs(30);

/// What went wrong with one disk.
pub(crate) struct Troubles {
    disk: String,
    tell: Arc<Tell>,
    known: Mutex<HashMap<Key, Known>>,
}

type Key = (&'static str, ErrorKind, Option<std::io::ErrorKind>);

struct Known {
    told: Instant,
    since: u64,
}

impl Troubles {
    pub(crate) fn new(disk: String, tell: Arc<Tell>) -> Self {
        Self { disk, tell, known: Mutex::new(HashMap::new()) }
    }

    /// Tells of an error, or counts it when the same was told a moment ago. A client's own mistake is its
    /// own business.
    pub(crate) fn note(&self, doing: &'static str, error: &Error) {
        if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::OutOfRange) {
            return;
        }
        let key = (doing, error.kind(), error.io_error().map(std::io::Error::kind));
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let more = match known.get_mut(&key) {
            Some(known) if now.duration_since(known.told) < AGAIN => {
                known.since += 1;
                return;
            }
            Some(known) => {
                let since = known.since;
                *known = Known { told: now, since: 0 };
                format!(" ({since} more of these since)")
            }
            None => {
                known.insert(key, Known { told: now, since: 0 });
                String::new()
            }
        };
        drop(known);
        (self.tell)(&format!("{}: {error}{more}; {}", self.disk, what_now(error)));
    }
}

impl std::fmt::Debug for Troubles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Troubles").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// What is safe, and what to do.
fn what_now(error: &Error) -> &'static str {
    use std::io::ErrorKind as Io;
    match (error.kind(), error.io_error().map(std::io::Error::kind)) {
        (ErrorKind::Poisoned, _) => {
            "reading goes on and everything that was flushed is safe; see to the medium, end this server and start it again"
        }
        (_, Some(Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge)) => {
            "the client is told that the disk is full; what was flushed is safe, reading goes on, and so does writing once there is room"
        }
        (_, Some(Io::OutOfMemory)) => {
            "the snapshot has used all the memory it was given (--snapshot-memory; a child image has no such limit): the client is told that the disk is full, and reading goes on"
        }
        (ErrorKind::Corrupt, _) => {
            "the client is told of an input/output error; `vhdx check` lists what is wrong"
        }
        _ => "the client is told of an input/output error; what was flushed is safe",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest on a full disk tries again and again: its owner wants to read about it once.
    #[test]
    fn the_same_trouble_is_told_once() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&said);
        let troubles = Troubles::new(
            "a.vhdx".to_owned(),
            Arc::new(move |line: &str| hears.lock().unwrap().push(line.to_owned())),
        );
        let corrupt = vhdxkit::Image::open("Cargo.toml").unwrap_err();
        for _ in 0..5 {
            troubles.note("read", &corrupt);
        }
        troubles.note("write", &corrupt);
        let said = said.lock().unwrap();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("a.vhdx: "), "{said:?}");
    }
}
