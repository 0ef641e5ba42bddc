//! Requests on their way through the workers: step by step, so that none keeps a thread for long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::contexts::Context;
use super::offer::Offer;
use super::protocol::{Errno, Headers, Request};
use super::replies::{Failure, Replies};
use super::requests::{Progress, perform};
use super::wire::Bell;

/// Replies that are ready, from those who waited for devices to the one who sends them.
pub(super) struct Returns {
    pub(super) bell: Bell,
    ready: Mutex<Vec<Done>>,
    /// Nobody waits for them any more.
    gone: AtomicBool,
}

/// A request that is done.
pub(super) struct Done {
    pub(super) replies: Replies,
    /// Memory that was set aside for it.
    pub(super) reserved: usize,
}

impl Returns {
    pub(super) fn new(bell: Bell) -> Self {
        Self { bell, ready: Mutex::default(), gone: AtomicBool::new(false) }
    }

    fn put(&self, done: Done) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        self.bell.ring();
    }

    pub(super) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The client has gone: what it asked for last may be left undone.
    pub(super) fn abandon(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// A request under way.
pub(super) struct Task {
    pub(super) client: u64,
    pub(super) request: Request,
    pub(super) contexts: Arc<[Context]>,
    pub(super) headers: Headers,
    pub(super) reserved: usize,
    pub(super) offer: Arc<Offer>,
    pub(super) returns: Arc<Returns>,
    /// How far it is.
    pub(super) progress: Progress,
}

impl Task {
    /// Has the next step done by a worker, and so on until it is finished.
    pub(super) fn submit(self) {
        let offer = Arc::clone(&self.offer);
        offer.workers.submit(self.client, Box::new(move || self.step()));
    }

    fn step(mut self) {
        let mut replies = Replies::new(self.headers);
        let gone = self.returns.gone.load(Ordering::Relaxed);
        if gone || self.offer.abandoned.load(Ordering::Relaxed) {
            let failure = Failure::new(Errno::Shutdown, "the server ends, or the client has gone");
            replies.failed(&self.request, &failure);
            return self.finish(replies);
        }
        let (request, progress) = (self.request, &mut self.progress);
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            perform(&request, progress, &self.offer.export, &self.contexts, &mut replies)
        }));
        match stepped {
            Ok(true) => self.finish(replies),
            Ok(false) => self.submit(),
            Err(_) => {
                replies.clear();
                let failure = Failure::new(Errno::Io, "the server has made a mistake");
                replies.failed(&request, &failure);
                self.finish(replies);
            }
        }
    }

    fn finish(self, replies: Replies) {
        self.returns.put(Done { replies, reserved: self.reserved });
    }
}
