//! A few threads that wait for devices, so that those who talk to clients need not.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Something to be done. It must not panic: nobody would hear of it.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Threads at most: so many requests wait for devices at once.
const MOST: usize = 16;

/// Threads that are started as they are needed, and end with this.
#[derive(Default)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do, or the end has come.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state();
                continue;
            }
            if state.ended {
                return;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Workers {
    /// Has the job done soon. When no thread can be had at all the caller does it.
    pub(super) fn submit(&self, job: Job) {
        let mut state = self.shared.state();
        state.jobs.push_back(job);
        if state.idle < state.jobs.len() && state.threads < MOST {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("device".into()).stack_size(256 << 10);
            match builder.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => {
                    let job = state.jobs.pop_back();
                    drop(state);
                    return job.map_or((), |job| job());
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// One request that waits for a slow device must not keep the next one waiting.
    #[test]
    fn jobs_do_not_wait_for_each_other() {
        let workers = Workers::default();
        let (finished, results) = channel();
        let (release, held) = channel::<()>();
        let slow = finished.clone();
        workers.submit(Box::new(move || {
            held.recv().unwrap();
            slow.send(1).unwrap();
        }));
        workers.submit(Box::new(move || finished.send(2).unwrap()));
        assert_eq!(results.recv().unwrap(), 2);
        release.send(()).unwrap();
        assert_eq!(results.recv().unwrap(), 1);
    }

    #[test]
    fn all_jobs_are_done_although_threads_are_few() {
        let (finished, results) = channel();
        let workers = Workers::default();
        for number in 0..1000 {
            let finished = finished.clone();
            workers.submit(Box::new(move || finished.send(number).unwrap()));
        }
        drop(workers);
        let mut seen: Vec<i32> = results.iter().take(1000).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..1000));
    }
}
