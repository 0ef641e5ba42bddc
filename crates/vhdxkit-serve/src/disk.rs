//! An open image that is being served.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vhdxkit::{Image, Result};

use crate::trouble::{Tell, Troubles};

/// An open image that is being served. All exports of it share one.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    /// Writes of whole sectors share this. A write that begins or ends inside of a sector has to read that
    /// sector first, and has it alone: the other bytes must not change in between.
    sectors: RwLock<()>,
    troubles: Troubles,
}

impl Disk {
    /// Serves an image: for writing when it was opened so. `tell` is told what goes wrong, in words for
    /// whoever runs the server, and not more often than a person can read.
    #[must_use]
    pub fn new(image: Image, tell: Arc<Tell>) -> Arc<Self> {
        let name = image.path().map_or_else(|| "the disk".to_owned(), |p| p.display().to_string());
        Self::named(name, image, tell)
    }

    /// [`new`](Self::new) for an image that lies on a storage of the caller's: `name` is what whoever runs the
    /// server is told of it.
    #[must_use]
    pub fn named(name: String, image: Image, tell: Arc<Tell>) -> Arc<Self> {
        Arc::new(Self { image, sectors: RwLock::new(()), troubles: Troubles::new(name, tell) })
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Makes everything durable that was written, and leaves the image clean. Nothing is written
    /// afterwards; whoever tries gets an error.
    ///
    /// # Errors
    /// As [`Image::close`]: then the image is left dirty, and opens with everything that was flushed.
    pub fn close(&self) -> Result<()> {
        match self.image.is_writable() {
            true => self.image.close(),
            false => Ok(()),
        }
    }

    /// Passes on a result, and tells what went wrong.
    pub(crate) fn watch<T>(&self, doing: &'static str, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.troubles.note(doing, error);
        }
        result
    }

    // The lock guards no data: it cannot be left inconsistent by a panic.

    pub(crate) fn whole_sectors(&self) -> RwLockReadGuard<'_, ()> {
        self.sectors.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn parts_of_sectors(&self) -> RwLockWriteGuard<'_, ()> {
        self.sectors.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
