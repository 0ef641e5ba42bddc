//! Long work tells how far it is, and can be stopped.

use std::ops::ControlFlow;

use crate::error::Repr;
use crate::{Error, Result};

/// Told about the progress of long work.
///
/// `()` ignores it and never stops.
pub trait Progress {
    /// `bytes` more bytes of the disk are dealt with. [`ControlFlow::Break`] stops the work, which
    /// then fails with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    fn advance(&mut self, bytes: u64) -> ControlFlow<()>;
}

impl Progress for () {
    fn advance(&mut self, _bytes: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

pub(crate) fn advance(progress: &mut dyn Progress, bytes: u64) -> Result<()> {
    match progress.advance(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(Repr::Cancelled)),
    }
}
