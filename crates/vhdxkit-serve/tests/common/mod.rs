//! A server in this process, for tests that are its clients.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhdxkit::storage::{MemoryStorage, Storage};
use vhdxkit::{CreateOptions, OpenOptions};
use vhdxkit_serve::nbd::{Listener, Options, Server, Stopper};
use vhdxkit_serve::{Disk, Export};
use vhdxkit_testkit::nbd::Client;

/// Bytes of a disk for a test.
pub(crate) const DISK: u64 = 16 << 20;

/// A server on a Unix socket, until it is dropped.
pub(crate) struct Serving {
    _folder: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) disk: Arc<Disk>,
    told: Arc<Mutex<Vec<String>>>,
    stopper: Stopper,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Serving {
    /// Serves a disk that lies on this storage.
    pub(crate) fn storage(
        storage: Arc<dyn Storage>,
        options: impl FnOnce(Options) -> Options,
    ) -> Self {
        let image = OpenOptions::new().write(true).open_storage(storage).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&told);
        let tell = Arc::new(move |line: &str| hears.lock().unwrap().push(line.to_owned()));
        let disk = Disk::new(image, tell.clone());
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let export = Export::whole(Arc::clone(&disk));
        let server = Server::new(options(Options::default().tell(tell)).offer("", "", export));
        let server = server.unwrap();
        let (stopper, listener) = (server.stopper(), Listener::unix(&socket).unwrap());
        let thread = std::thread::spawn(move || server.run(vec![listener]));
        Self { _folder: folder, socket, disk, told, stopper, thread: Some(thread) }
    }

    /// Serves a new disk in memory.
    pub(crate) fn memory() -> Self {
        Self::storage(Arc::new(new_disk(512)), |options| options)
    }

    /// A client that understands structured replies.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket, "", true).unwrap()
    }

    /// What whoever runs the server was told.
    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// Whether the server has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the server, which must end well.
    pub(crate) fn stop(mut self) -> Arc<Disk> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
        Arc::clone(&self.disk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

/// A new disk of [`DISK`] bytes in memory.
pub(crate) fn new_disk(sector: u32) -> MemoryStorage {
    let file = MemoryStorage::new(Vec::new());
    let options = CreateOptions::new(DISK).block_size(1 << 20).logical_sector_size(sector);
    options.create_storage(&file).unwrap();
    file
}
