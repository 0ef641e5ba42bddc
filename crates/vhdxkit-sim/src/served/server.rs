//! The process that is killed: the real server, on a file that tells what is being done to it.

use std::path::Path;
use std::sync::Arc;

use vhdxkit_serve::{Disk, Export, nbd};

use crate::kill::worker::open_traced;

/// Serves the image at `folder/disk.vhdx` on the socket `folder/socket` until it is killed.
///
/// # Errors
/// Something else than a kill ends it.
pub fn work(folder: &Path) -> Result<(), String> {
    let (traced, image) = open_traced(folder)?;
    let disk = Disk::new(image, Arc::new(|line: &str| eprintln!("{line}")));
    let options = nbd::Options::default().offer("", "", Export::whole(disk));
    let server = nbd::Server::new(options).map_err(|e| e.to_string())?;
    let listener = nbd::Listener::unix(&folder.join("socket")).map_err(|e| e.to_string())?;
    traced.opened();
    server.run(vec![listener]).map_err(|e| e.to_string())
}
