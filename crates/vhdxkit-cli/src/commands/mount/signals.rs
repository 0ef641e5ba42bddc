//! Ctrl-C and SIGTERM end a mount: the first one so that nothing is lost, and a second one, once the first was
//! answered, at once.
//!
//! The server's own threads may all be waiting for a medium. So nothing here asks the mount: the system's table
//! of mounts tells how it stands.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vhdxkit_serve::fuse::{self, Mount, Standing};

use super::super::attach::sudo;
use super::super::busy::users_in_words;
use super::PATIENCE;
use crate::console::quoted;
use crate::detach::tell;

/// The exit status of a server that was told twice to end.
const STOPPED: i32 = 130;

pub(super) fn end_on_signal(mount: &Mount, fleeting: bool) {
    let lost = if fleeting { "what was written" } else { "what was not synced" };
    let ending = Ending { directory: mount.directory().to_owned(), id: mount.id(), lost };
    let (send, signals) = channel();
    // Signals are received by a thread that never waits: it knows when they came.
    let thread = std::thread::Builder::new().name("ending".to_owned());
    let thread = thread.spawn(move || ending.answer(&signals));
    if thread.is_ok() {
        // A handler that cannot be set leaves the system's: then the image is left dirty, but good.
        let _ = ctrlc::set_handler(move || {
            let _ = send.send(Instant::now());
        });
    }
}

/// Ends a mount.
struct Ending {
    directory: PathBuf,
    id: Option<u64>,
    /// By a second signal.
    lost: &'static str,
}

impl Ending {
    fn answer(&self, signals: &Receiver<Instant>) {
        // Whoever presses again before the answer is out has not read what it would do.
        let mut answered = None;
        for came in signals {
            match answered {
                None => answered = Some(self.end()),
                Some(at) if came > at => answered = Some(self.end_at_once()),
                Some(_) => {}
            }
        }
    }

    fn standing(&self) -> Standing {
        let standing = self.id.and_then(|id| fuse::standing(id).ok());
        standing.unwrap_or_else(|| Standing::OnTop(self.directory.clone()))
    }

    /// Unmounts. Returns when it has been said why that is not the end of it.
    fn end(&self) -> Instant {
        let directory = match self.standing() {
            Standing::OnTop(directory) => directory,
            Standing::Covered(other) => {
                tell(&format!(
                    "{} has {} mounted over it, and goes on being served: `{}umount {}` takes that away; then \
                     stop this again (while it is covered, that ends it at once, and {} is lost)",
                    other.directory.display(),
                    other.source,
                    sudo(),
                    quoted(&other.directory),
                    self.lost
                ));
                return Instant::now();
            }
            Standing::Gone => return self.wait_for_close(),
        };
        match fuse::unmount(&directory, Duration::ZERO) {
            Ok(()) => self.wait_for_close(),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => self.wait_for_users(&directory),
            Err(e) => {
                tell(&format!("cannot unmount {}: {e}", directory.display()));
                Instant::now()
            }
        }
    }

    fn wait_for_users(&self, directory: &Path) -> Instant {
        let (name, lost) = (directory.display(), self.lost);
        tell(&format!(
            "{name} is in use: waiting {} seconds; stopping this again after that ends it at once and loses {lost}",
            PATIENCE.as_secs()
        ));
        match fuse::unmount(directory, PATIENCE) {
            Ok(()) => return self.wait_for_close(),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => tell(&format!(
                "{name} is still in use and goes on being served: {}; then stop this again (while it is in \
                 use, that ends it at once, and {lost} is lost)",
                users_in_time(directory)
            )),
            Err(e) => tell(&format!("cannot unmount {name}: {e}")),
        }
        Instant::now()
    }

    /// The image is being closed, and the process ends with that.
    fn wait_for_close(&self) -> Instant {
        std::thread::sleep(PATIENCE);
        tell(&format!(
            "unmounted, and still writing the image; stopping this again ends it at once and loses {}",
            self.lost
        ));
        Instant::now()
    }

    /// What uses the mount gets errors from now on.
    fn end_at_once(&self) -> Instant {
        let standing = self.standing();
        if let Standing::OnTop(directory) = &standing
            && fuse::unmount(directory, Duration::ZERO).is_ok()
        {
            return self.wait_for_close();
        }
        tell(&format!("ends without closing the image: {} is lost", self.lost));
        if let Standing::OnTop(directory) = &standing {
            let _ = fuse::abandon(directory);
        }
        std::process::exit(STOPPED);
    }
}

/// Who uses the mount, if that can be found out soon: a process that hangs at its medium lets nobody look at
/// it, and the next signal is not to wait for that.
fn users_in_time(directory: &Path) -> String {
    let (send, told) = channel();
    let asked = directory.to_owned();
    std::thread::spawn(move || send.send(users_in_words(&asked)));
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        format!("`{}fuser -vm {}` may tell who uses it", sudo(), quoted(directory))
    })
}
